"""The ground on which faults happen: a private SLURM with accounting, a broker, a PostgreSQL, each behind a proxy, and
the service as a process of its own.

The jobs are trivially short: they pass the fence, append a line to a file that the service doesn't know, say that their
kernel has finished, and leave with the exit code that the message asks for.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import sqlalchemy
import tomlkit
from sqlalchemy import text

from orchestrator.demonstration import shipped
from orchestrator.errors import DoorUnavailable
from orchestrator.listening.stomp import publish
from orchestrator.messages import start_document
from orchestrator.records import CollectionStart
from orchestrator.settings import StompSettings
from orchestrator.slurm.states import is_held_after_launch
from orchestrator.stack import Stack, databases, ports, processes
from orchestrator.stack.programs import find_program
from tests.faults.proxy import Proxy
from tests.faults.verdict import Accounted, Effect, Record, Sent

SUBMIT_DEADLINE_S = 4.0
ABSENCE_GRACE_S = 2.0
HEARTBEAT_S = 2.0
RELEASED_AFTER_S = 10.0
QUEUE = "faults"

TEMPLATE = """\
#!/bin/bash
{% include "_sbatch.j2" %}

{% include "_begin.j2" %}

printf '%s %s %s %s\\n' {{ collection.uid }} "$run_id" "$attempt" "${SLURM_JOB_ID}" >> "$EFFECTS"
progress={{ paths.progress }}
printf '%s\\n' '{"state": "finished", "expected": 1, "written": 1, "processed": 1, "failed": 0}' > "$progress.part"
mv "$progress.part" "$progress"
exit {{ plan.parameters.exit_code }}
"""

_MESSAGES = text("SELECT uid FROM messages WHERE kind = 'start' AND uid LIKE :like")
_RECORDS = text(
    "SELECT r.collection_uid, r.run_id, r.state, r.reason, r.attempts, a.number, a.job_id, a.job_state, a.exit_code,"
    " a.adopted, a.evidence FROM runs r LEFT JOIN attempts a ON a.run_id = r.run_id AND a.number ="
    " (SELECT max(number) FROM attempts b WHERE b.run_id = r.run_id) WHERE r.collection_uid LIKE :like"
)
_ENDED = ("complete", "partial", "failed", "cancelled", "unknown", "refused")


class Impossible(Exception):
    """This machine can't make this fault."""


class PostgreSql:
    """A private PostgreSQL that can be killed and started again on its port."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.port = ports.free_ports(1)[0]
        self._command = [
            *databases._as_postgres(directory),
            *databases._postgresql_command(directory, "faults", self.port),
            *("-c", "max_wal_size=48MB", "-c", "min_wal_size=32MB"),
        ]
        self._process: processes.ProcessIdentity | None = None

    def url(self, port: int) -> str:
        """SQLAlchemy URL by way of a port."""
        return f"postgresql+psycopg://{databases.USER}:faults@{ports.LOOPBACK}:{port}/postgres"

    def start(self) -> None:
        """Start it, again and again until it answers: what a killed one left is in the way for a moment."""
        for _ in range(20):
            self._process = processes.launch(
                self._command, log=self._directory / "server.log", directory=self._directory
            )
            if processes.wait_until(self._settled, timeout_s=30) and self.alive:
                return
            time.sleep(0.5)
        raise RuntimeError(f"PostgreSQL doesn't start: {processes.tail(self._directory / 'server.log')}")

    def _settled(self) -> bool:
        return not self.alive or databases.accepts_connections(self.url(self.port))

    @property
    def alive(self) -> bool:
        """Whether its first process runs."""
        return self._process is not None and processes.is_alive(self._process)

    def kill(self) -> None:
        """End it as a crash would."""
        if self._process is not None:
            processes.kill(self._process)

    def stop(self) -> None:
        """End it in order."""
        if self._process is not None:
            processes.end([self._process])


class SmallDisk:
    """A file system of a few megabytes in memory; None of it can be had without the right to mount."""

    def __init__(self, place: Path, megabytes: int) -> None:
        place.mkdir(parents=True, exist_ok=True)
        self._place = place
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0755", "tmpfs", str(place)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        self.mounted = done.returncode == 0
        self.obstacle = done.stderr.strip()

    def fill(self) -> None:
        """Leave no byte."""
        with (self._place / "ballast").open("wb", buffering=0) as stream:
            for size in (2**20, 2**12, 1):
                while True:
                    try:
                        if stream.write(b"\0" * size) < size:
                            break
                    except OSError:
                        break

    def clear(self) -> None:
        """Make room again."""
        (self._place / "ballast").unlink(missing_ok=True)

    def unmount(self) -> None:
        """Take it away, with all that is on it."""
        if self.mounted:
            subprocess.run(["umount", "-l", str(self._place)], check=True)


class Ground:
    """Everything that runs; a context manager."""

    def __init__(self, directory: Path, *, seed: int, route: str = "cli", pyslurm_python: Path | None = None) -> None:
        self.directory = directory
        self.route = route
        self._pyslurm_python = pyslurm_python
        self._cleanup = ExitStack()
        self._seed = seed
        self._services: list[subprocess.Popen[bytes]] = []
        self.effects_file = directory / "effects"
        self._publisher: StompSettings | None = None
        self.clock_file = directory / "clock"
        self._held: dict[str, float] = {}

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self._cleanup.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.close()

    def _build(self) -> None:
        (self.directory / "data").mkdir(parents=True, exist_ok=True)
        self.effects_file.touch()
        self.clock_file.write_text("+0\n")
        self.runs_disk = self._disk("runs", 48)
        self.database_disk = self._disk("database", 224)
        self.database = PostgreSql(self.directory / "database" / "pg")
        self._cleanup.callback(self.database.stop)
        self.database.start()
        self.stack = Stack(self.directory / "stack")
        self._cleanup.callback(self.stack.down)
        rest = {"rest"} if self.route == "rest" else set()
        self.stack.up({"slurm", "accounting", "broker"} | rest, nodes=2)
        facts = self.stack.layout
        entrance = "slurmrestd" if self.route == "rest" else "slurmctld"
        self.slurm_door = self._proxy(facts.ports[entrance], b"orchestrator.injob begin")
        self.database_door = self._proxy(self.database.port, b"COMMIT")
        self.broker_door = self._proxy(self.stack.broker.port, b"ACK\n")
        self.engine = sqlalchemy.create_engine(self.database.url(self.database.port), poolclass=sqlalchemy.NullPool)
        self._write_site()
        self.command("db", "upgrade")
        self._cleanup.callback(self.stop_service)

    def _disk(self, name: str, megabytes: int) -> SmallDisk:
        disk = SmallDisk(self.directory / name, megabytes)
        self._cleanup.callback(disk.unmount)
        return disk

    def _proxy(self, port: int, mark: bytes) -> Proxy:
        return self._cleanup.enter_context(Proxy(port, mark=mark, seed=self._seed))

    def _write_site(self) -> None:
        facts, slurm = self.stack.layout, self.directory / "client-slurm.conf"
        text_ = facts.slurm_conf.read_text()
        if self.route != "rest":
            real, door = facts.ports["slurmctld"], self.slurm_door.port
            text_ = text_.replace(f"SlurmctldPort={real}", f"SlurmctldPort={door}")
        slurm.write_text(text_)
        self.environment = os.environ | {"SLURM_CONF": str(slurm)}
        templates = self.directory / "templates"
        templates.mkdir(exist_ok=True)
        for partial in shipped("jobtemplates").glob("_*.j2"):
            (templates / partial.name).write_text(partial.read_text())
        (templates / "count.sbatch.j2").write_text(TEMPLATE)
        broker = {
            "brokers": [f"{ports.LOOPBACK}:{self.broker_door.port}"],
            "queue": QUEUE,
            "credentials_file": str(self.stack.broker.credentials),
            "heartbeat_s": HEARTBEAT_S,
            "receipt_timeout_s": 5.0,
            "reconnect_longest_s": 2.0,
        }
        self._publisher = StompSettings(
            **(broker | {"brokers": [f"{ports.LOOPBACK}:{self.stack.broker.port}"], "heartbeat_s": 10.0})
        )
        self.site = self.directory / "site.toml"
        self.site.write_text(tomlkit.dumps(self._site_file(templates, broker)))

    def _site_file(self, templates: Path, broker: Mapping[str, object]) -> dict[str, object]:
        return {
            "name": "faults",
            "database": self.database.url(self.database_door.port),
            "runs_root": str(self.directory / "runs"),
            "allowed_roots": [str(self.directory / "data")],
            "templates": str(templates),
            "python": sys.executable,
            "gateway": self._gateway(),
            "stomp": dict(broker),
            "defaults": {"launcher": "none", "resources": {"ntasks": 1, "time_limit_min": 1, "requeue": True}},
            "recipes": {
                "count": {
                    "kernel": "azimuthal",
                    "template": "count.sbatch.j2",
                    "match": {"beamline": "*"},
                    "parameters": {"exit_code": 0},
                    "from_metadata": {"exit_code": "exit_code"},
                    "environment": {"EFFECTS": str(self.effects_file)},
                }
            },
        }

    def _gateway(self) -> dict[str, object]:
        more: dict[str, object] = {}
        if self._pyslurm_python is not None:
            more = {"pyslurm_python": str(self._pyslurm_python)}
        if self.route == "rest":
            token = self.directory / "token"
            token.touch(mode=0o600)
            token.write_text(self.stack.token(lifespan_s=24 * 3600))
            url = f"http://{ports.LOOPBACK}:{self.slurm_door.port}"
            more = {"rest": {"url": url, "token_file": str(token)}}
        return more | {
            "route": self.route,
            "poll_interval_s": 0.5,
            "poll_interval_max_s": 2.0,
            "submit_deadline_s": SUBMIT_DEADLINE_S,
            "absence_grace_s": ABSENCE_GRACE_S,
            "vanish_after_s": 20.0,
        }

    # ------------------------------------------------------------------------------------------- the service

    def command(self, *arguments: str) -> None:
        """Run one of the program's commands."""
        subprocess.run(
            [sys.executable, "-m", "orchestrator", *arguments, "--site", str(self.site)],
            env=self.environment, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip

    def start_service(self, **environment: str) -> subprocess.Popen[bytes]:
        """Start one; several may run at once."""
        with (self.directory / "service.log").open("ab") as log:
            service = subprocess.Popen(
                [sys.executable, "-m", "orchestrator", "serve", "--site", str(self.site)],
                env=self.environment | environment, stdout=log, stderr=log,
            )  # fmt: skip
        self._services.append(service)
        return service

    @property
    def service(self) -> subprocess.Popen[bytes]:
        """The service that was started last."""
        return self._services[-1]

    def kill_service(self) -> None:
        """End all of them as a crash would."""
        for service in self._services:
            service.kill()
            service.wait()
        self._services.clear()

    def stop_service(self) -> None:
        """End all of them in order."""
        for service in self._services:
            service.send_signal(signal.SIGCONT)
            service.terminate()
        for service in self._services:
            try:
                service.wait(30)
            except subprocess.TimeoutExpired:
                service.kill()
                service.wait()
        self._services.clear()

    def ensure_service(self) -> None:
        """Start one unless it runs."""
        if not self._services or self.service.poll() is not None:
            self.kill_service()
            self.start_service()

    def false_clock(self) -> dict[str, str]:
        """Return the environment of a service whose clock is set by `set_clock`; only its wall clock is false."""
        library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
        if library is None:
            raise Impossible("libfaketime isn't installed (apt-get install faketime)")
        return {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self.clock_file),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_CACHE_DURATION": "1",
        }

    def set_clock(self, offset_s: int) -> None:
        """Move the false clock by so much from the true one."""
        part = self.clock_file.with_suffix(".part")
        part.write_text(f"{offset_s:+d}\n")
        part.rename(self.clock_file)

    # ------------------------------------------------------------------------------------ messages and answers

    def publish(self, item: Sent) -> None:
        """Send a collection's start, again until the broker has taken it."""
        start = CollectionStart(
            uid=item.uid, beamline="faults", detector="none", file=self.directory / "data" / "none.nxs",
            dataset="/entry/data/data", frames_expected=1, metadata={"exit_code": item.exit_code},
        )  # fmt: skip
        assert self._publisher is not None
        while True:
            try:
                publish(self._publisher, start_document(start))
            except DoorUnavailable:
                time.sleep(0.2)
            else:
                return

    def messages(self, like: str) -> Counter[str]:
        """Count the rows of each collection in the table of messages."""
        with self.engine.connect() as connection:
            return Counter(row[0] for row in connection.execute(_MESSAGES, {"like": like}))

    def records(self, like: str) -> list[Record]:
        """Return the runs of collections, with their newest attempts."""
        with self.engine.connect() as connection:
            return [
                Record(
                    uid=row[0], run_id=row[1], state=row[2], reason=row[3], attempts=row[4], attempt=row[5],
                    job_id=row[6], job_state=row[7], exit_code=row[8], adopted=bool(row[9]), evidence=row[10],
                )
                for row in connection.execute(_RECORDS, {"like": like})
            ]  # fmt: skip

    def effects(self) -> list[Effect]:
        """Return what the jobs have written, in order."""
        lines = (line.split() for line in self.effects_file.read_text().splitlines())
        return [Effect(uid=uid, run_id=run, attempt=int(attempt), job_id=int(job)) for uid, run, attempt, job in lines]

    def accounted(self) -> list[Accounted]:
        """Return all jobs that accounting has."""
        said = self.slurm_command(
            "sacct", "--noheader", "--parsable2", "--allocations", "--duplicates", "--delimiter=|",
            "--starttime=now-1day", "--endtime=now+1day", "--format=JobIDRaw,JobName,Comment,State,ExitCode",
        )  # fmt: skip
        return [_accounted(*line.split("|")) for line in said.splitlines()]

    def slurm_command(self, program: str, *arguments: str) -> str:
        """Run one of SLURM's commands past the proxy."""
        return processes.run([find_program(program), *arguments], environment=os.environ | self.stack.environment())

    def tidy_up(self) -> None:
        """Do what an administrator does after slurmctld forgot its last jobs.

        It gives their ids to others, or starts them again. A node that still has the first job of an id is drained
        (_Duplicate jobid_), and the second one is held; the service is given some seconds to see to it.
        """
        drained = self.slurm_command("sinfo", "--noheader", "--Node", "--states=drain", "--format=%N").split()
        if drained:
            self.slurm_command("scontrol", "update", f"NodeName={','.join(set(drained))}", "State=RESUME")
        told = self.slurm_command("squeue", "--noheader", "--states=PENDING", "--format=%i %r").splitlines()
        held = {line.split()[0] for line in told if is_held_after_launch(line.partition(" ")[2])}
        self._held = {job: self._held.get(job, time.monotonic()) for job in held}
        if ripe := [job for job, since_s in self._held.items() if time.monotonic() - since_s > RELEASED_AFTER_S]:
            self.slurm_command("scontrol", "release", ",".join(ripe))

    def queued(self) -> int:
        """Return how many jobs haven't ended."""
        return len(self.slurm_command("squeue", "--noheader", "--format=%i").split())

    def all_ended(self, like: str, number: int) -> bool:
        """Whether so many runs have ended."""
        return sum(record.state in _ENDED for record in self.records(like)) >= number


def _accounted(job_id: str, name: str, comment: str, state: str, exit_code: str) -> Accounted:
    told = re.fullmatch(r"orchestrator run=(\S+) attempt=(\d+)", comment)
    return Accounted(
        job_id=int(job_id), tag=f"run-{told[1]}.{told[2]}" if told else name, state=state.partition(" ")[0],
        exit_code=int(exit_code.partition(":")[0]),
    )  # fmt: skip


def wait_until(check: Callable[[], bool], *, timeout_s: float) -> bool:
    """Return whether something came true in time."""
    return processes.wait_until(check, timeout_s=timeout_s, interval_s=0.25)
