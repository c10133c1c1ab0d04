"""The folder in which the local route keeps its jobs; the gateway and each job's supervisor meet here.

    <state folder>/
        lock               held while a job is added, started, cancelled while waiting, or found lost
        counter            the last job id
        parallel           how many jobs may run at once
        active/<id>        exists while job <id> may still have something ahead of it
        jobs/<id>/
            job.json         what was submitted; the job exists from the moment this folder has its name
            script           byte for byte
            environment.json what the script will see; readable by its owner only, gone once the script runs
            supervised       locked (flock) as long as the job's supervisor lives; the kernel lets go when it dies
            status.json      absent: waiting; then running; then how it ended. Written by the supervisor, replaced whole
            cancel           exists once somebody wants the job ended
            supervisor.log   empty, unless something is wrong with the supervisor itself

Nothing here relies on a process that lives on: whoever looks next (service, supervisor of another job) starts what
waits and settles what is lost. The folder must be on this machine's own disk.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO, Any

from orchestrator.records import JobState, Scalar, utc_now
from orchestrator.runs import write_atomically
from orchestrator.slurm.environment import for_jobs

MARKER = "ORCHESTRATOR_LOCAL_JOB_FOLDER"
"""Every process of a job carries this variable with the job's folder; that is how stragglers are found and ended."""

KEPT_FOR = timedelta(days=30)
"""How long a job is remembered after its end; what matters of it stands in its run's directory."""

_HALF = ".new-"
"""What the folder's name begins with while the job doesn't exist yet, or any more; a crash can leave one behind."""


@dataclass(frozen=True, kw_only=True)
class LocalJob:
    """A job as it was submitted."""

    job_id: int
    name: str
    comment: str
    cluster: str
    submitted_at: datetime
    working_directory: str
    output: str
    error: str | None
    append: bool
    time_limit_s: float | None
    kill_wait_s: float
    tasks: tuple[int, ...] = ()
    """Numbers of a job array's tasks."""
    after: tuple[int, ...] = ()
    """Ids of the jobs that must have succeeded before."""

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "submitted_at": self.submitted_at.isoformat()}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> LocalJob:
        values = json.loads(text)
        numbers = {name: tuple(values.get(name, ())) for name in ("tasks", "after")}
        return cls(**{**values, **numbers, "submitted_at": datetime.fromisoformat(values["submitted_at"])})


@dataclass(frozen=True, kw_only=True)
class Status:
    """How a job stands, in the words its supervisor wrote."""

    words: str
    started_at: datetime | None = None
    ended_at: datetime | None = None
    exit_code: int | None = None
    signal: int | None = None
    reason: str = ""
    supervisor_pid: int | None = None
    script_pid: int | None = None
    usage: Mapping[str, Scalar] = field(default_factory=dict)
    tasks: Mapping[int, Status] = field(default_factory=dict)
    """Of a job array, each task that has begun."""

    @property
    def ended(self) -> bool:
        return self.ended_at is not None

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, default=datetime.isoformat)

    @classmethod
    def from_json(cls, text: str) -> Status:
        return cls._from_values(json.loads(text))

    @classmethod
    def _from_values(cls, values: dict[str, Any]) -> Status:
        times = {name: values[name] and datetime.fromisoformat(values[name]) for name in ("started_at", "ended_at")}
        tasks = {int(number): cls._from_values(task) for number, task in values.get("tasks", {}).items()}
        return cls(**{**values, **times, "tasks": tasks})


NEVER = Status(words="CANCELLED", reason="DependencyNeverSatisfied")
"""What becomes of a job that comes after one that didn't succeed."""


@dataclass(frozen=True)
class JobFolder:
    """One job's folder."""

    path: Path

    @property
    def script(self) -> Path:
        return self.path / "script"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def cancel(self) -> Path:
        return self.path / "cancel"

    @property
    def supervisor_log(self) -> Path:
        return self.path / "supervisor.log"

    def job(self) -> LocalJob:
        return LocalJob.from_json((self.path / "job.json").read_text())

    def status(self) -> Status | None:
        """Return what the supervisor wrote last; None while the job waits."""
        try:
            return Status.from_json((self.path / "status.json").read_text())
        except FileNotFoundError:
            return None

    def ended_long_ago(self) -> bool:
        """Whether the job ended so long ago that nobody asks about it any more."""
        # Its status is the last thing that changed in the folder.
        if self.path.stat().st_mtime > (utc_now() - KEPT_FOR).timestamp():
            return False
        status = self.status()
        return status is not None and status.ended

    def write_job(self, job: LocalJob) -> None:
        write_atomically(self.path / "job.json", job.to_json())

    def write_status(self, status: Status) -> None:
        write_atomically(self.path / "status.json", status.to_json())

    def is_supervised(self) -> bool:
        """Whether the job's supervisor lives. Askers share the lock, so they don't take each other for it."""
        with self.supervision() as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    def supervision(self) -> IO[bytes]:
        return (self.path / "supervised").open("ab")

    def signal_processes(self, number: int) -> int:
        """Send a signal to every process of the job, whatever group or session it moved to; return how many there were.

        Signal 0 only counts.
        """
        mark = f"{MARKER}={self.path}".encode()
        count = 0
        for entry in Path("/proc").iterdir():
            # A process may end, or belong to somebody else.
            with suppress(OSError):
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), number)
                    count += 1
        return count

    def kill_processes(self) -> None:
        """Kill every process of the job, again until none is left that could have begotten another."""
        for _ in range(100):
            if not self.signal_processes(signal.SIGKILL):
                return
            # One that hangs in the kernel can't be waited for; it dies as soon as it comes out.
            time.sleep(0.02)


class LocalQueue:
    """All jobs of one state folder.

    Parameters
    ----------
    root
        The state folder, absolute.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def prepare(self, parallel: int) -> None:
        """Make the folder, say how many jobs may run at once, and clear away what ended long ago."""
        for folder in (self.root / "jobs", self.root / "active"):
            folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.root / "parallel", str(parallel))
        with self._locked():
            for job in self.folders():
                if job.ended_long_ago():
                    job.path.rename(self.root / "jobs" / f"{_HALF}{job.path.name}")
            for half in (self.root / "jobs").glob(f"{_HALF}*"):
                shutil.rmtree(half)

    def folder(self, job_id: int) -> JobFolder:
        return JobFolder(self.root / "jobs" / str(job_id))

    def folders(self) -> list[JobFolder]:
        """Return the folders of all jobs that ever were submitted here, oldest first."""
        names = [path.name for path in (self.root / "jobs").iterdir() if path.name.isdigit()]
        return [self.folder(job_id) for job_id in sorted(map(int, names))]

    def add(self, job: LocalJob, *, script: str, environment: Mapping[str, str]) -> LocalJob:
        """Add a job with the next id; it exists when this returns, and not at all when it raises."""
        with self._locked():
            numbered = replace(job, job_id=self._next_id())
            new = JobFolder(self.root / "jobs" / f"{_HALF}{numbered.job_id}")
            try:
                new.path.mkdir(mode=0o700)
                write_atomically(new.script, script, mode=0o700)
                write_atomically(new.environment, json.dumps(dict(environment)), mode=0o600)
                new.write_job(numbered)
                (self.root / "active" / str(numbered.job_id)).touch()
                new.path.rename(self.folder(numbered.job_id).path)
                _make_durable(self.root / "jobs")
            except BaseException:
                for path in (new.path, self.folder(numbered.job_id).path):
                    shutil.rmtree(path, ignore_errors=True)
                raise
        return numbered

    def start_waiting(self) -> None:
        """Start waiting jobs in the order of their ids as far as the limit allows, and settle those that are lost.

        A job that comes after others isn't started before they have succeeded, and never when one of them didn't.
        """
        with self._locked():
            running = 0
            limit = int((self.root / "parallel").read_text())
            for job_id in sorted(int(path.name) for path in (self.root / "active").iterdir()):
                folder = self.folder(job_id)
                if not folder.path.exists() or self._is_over(folder):
                    (self.root / "active" / str(job_id)).unlink()
                elif folder.is_supervised():
                    running += 1
                elif (waits_for := self._unfinished(folder)) is None:
                    folder.environment.unlink()
                    folder.write_status(replace(NEVER, ended_at=utc_now()))
                elif not waits_for and running < limit:
                    _start(folder)
                    running += 1

    def is_active(self, job_id: int) -> bool:
        return (self.root / "active" / str(job_id)).exists()

    def cancel(self, folder: JobFolder) -> None:
        """End a job: a waiting one at once, a running one by its supervisor."""
        with self._locked():
            folder.cancel.touch()
            if folder.status() is None and not folder.is_supervised():
                folder.environment.unlink()
                folder.write_status(Status(words="CANCELLED", ended_at=utc_now()))

    def _unfinished(self, folder: JobFolder) -> list[int] | None:
        """Return the jobs that a waiting one still has to wait for; None when one of them didn't succeed."""
        statuses = {job_id: self._status_of(job_id) for job_id in folder.job().after}
        if any(status is not None and status.ended and status.words != "COMPLETED" for status in statuses.values()):
            return None
        return [job_id for job_id, status in statuses.items() if status is None or not status.ended]

    def _status_of(self, job_id: int) -> Status | None:
        """Return how a job stands; one that is forgotten here can't be known to have succeeded."""
        folder = self.folder(job_id)
        return folder.status() if folder.path.exists() else replace(NEVER, ended_at=utc_now())

    def _is_over(self, folder: JobFolder) -> bool:
        """Whether a job has ended; one whose supervisor died without a word has, as on a node that went down."""
        status = folder.status()
        if status is None or status.ended:
            return status is not None
        if folder.is_supervised():
            return False
        # It may have ended between the two looks.
        status = folder.status() or status
        if not status.ended:
            folder.kill_processes()
            reason = "its supervisor was killed, or the machine was restarted"
            folder.write_status(replace(status, words=JobState.NODE_FAIL.name, ended_at=utc_now(), reason=reason))
        return True

    def _next_id(self) -> int:
        counter = self.root / "counter"
        last = int(counter.read_text()) if counter.exists() else 0
        write_atomically(counter, str(last + 1))
        return last + 1

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.root / "lock").open("ab") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield


def _start(folder: JobFolder) -> None:
    """Start a job's supervisor as a process of its own that outlives this one.

    The lock that says it lives is taken here and handed over, so that no moment is left in which two could start it.
    """
    with folder.supervision() as lock, folder.supervisor_log.open("ab") as log:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # setsid --fork returns at once, and leaves no zombie behind in the service.
        subprocess.run(
            ["setsid", "--fork", sys.executable, "-m", "orchestrator.slurm.local_job", str(folder.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=for_jobs(os.environ),
            pass_fds=[lock.fileno()],
            check=True,
        )


def _make_durable(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
