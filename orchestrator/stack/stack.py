"""The private stack: brings its daemons up in the right order, says how they are, and ends exactly those."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import threading
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

from orchestrator.errors import StackError
from orchestrator.stack import accounting, broker, catalogue, layout, ports, processes, rest, slurm
from orchestrator.stack.daemon import BrokerAddress, Daemon, DaemonStatus, wait_ready
from orchestrator.stack.layout import Layout, Service

log = logging.getLogger(__name__)

DEFAULT_SERVICES = (Service.SLURM, Service.BROKER)
DEFAULT_NODES = 2


class Stack:
    """One private stack, identified by its directory; several may run side by side.

    Parameters
    ----------
    directory
        Holds everything of it; the user's state folder where None.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = (directory or layout.default_directory()).absolute()
        self._record = threading.Lock()

    # ------------------------------------------------------------------------------------------ up and down

    def up(
        self,
        services: Collection[str] = DEFAULT_SERVICES,
        *,
        nodes: int | None = None,
        slurm_settings: Mapping[str, str] | None = None,
    ) -> None:
        """Bring daemons up and wait until each has answered; running ones are kept, dead ones started again.

        Parameters
        ----------
        services
            Of `Service`; those that they need are added. On a running stack they add to what is there.
        nodes
            Number of slurmd; the present number, or 2, where None.
        slurm_settings
            Options of slurm.conf that are to differ from the usual ones (`orchestrator.stack.slurm.SETTINGS`), for
            good; the present ones where None. SLURM's daemons are started anew when they change.

        Raises
        ------
        StackError
            A program is missing, a daemon doesn't come up, or a running stack has another number of nodes.
        """
        wanted = catalogue.with_needed(services)
        catalogue.require_programs(wanted)
        with self._locked():
            facts = self._layout_for(wanted, nodes)
            if slurm_settings is not None:
                facts = replace(facts, slurm_settings=dict(slurm_settings))
            layout.save(facts)
            if catalogue.prepare(facts):
                # Running jobs outlive this.
                self._end([name for name in self._processes() if name.startswith(("slurmctld", "slurmd-"))])
            self._bring_up(catalogue.describe(facts))

    def down(self) -> None:
        """End this stack's jobs and daemons; data and logs stay in the directory. Harmless when nothing runs."""
        if not self._processes_file.exists():
            return
        with self._locked():
            facts = layout.load(self.directory)
            if facts is not None and Service.SLURM in facts.services:
                self._end_slurm(facts)
            # The rest may still need its database.
            self._end([name for name in self._processes() if name != "mariadb"])
            self._end(list(self._processes()))
            if facts is not None:
                layout.forget(facts)

    def _end_slurm(self, facts: Layout) -> None:
        controller = self._processes().get("slurmctld")
        if controller is not None and processes.is_alive(controller):
            try:
                slurm.cancel_jobs(facts)
            except StackError as refused:
                log.warning("slurmctld couldn't cancel the jobs of the stack; killing them: %s", refused)
        self._end([name for name in self._processes() if name.startswith(("slurmctld", "slurmd-", "slurmrestd"))])
        slurm.end_job_processes(facts)

    def _layout_for(self, services: frozenset[Service], nodes: int | None) -> Layout:
        present = layout.load(self.directory)
        if present is None:
            return layout.new_layout(self.directory, services, nodes or DEFAULT_NODES)
        running = any(map(processes.is_alive, self._processes().values()))
        if not running and not _usable(present):
            # After a reboot, say.
            layout.forget(present)
            return layout.new_layout(self.directory, services | present.services, nodes or present.nodes)
        if nodes not in (None, present.nodes):
            raise StackError(
                f"the stack in {self.directory} has {present.nodes} nodes, not {nodes}",
                remedy="take it down first: orchestrator stack down",
            )
        return layout.extended(present, services)

    # ---------------------------------------------------------------------------------------- single daemons

    def start(self, name: str) -> None:
        """Start one daemon of a stack that was brought up, and wait until it answers; harmless when it runs."""
        with self._locked():
            self._bring_up([self._daemon(name)])

    def stop(self, name: str) -> None:
        """End one daemon in order."""
        self._daemon(name)
        with self._locked():
            self._end([name])

    def kill(self, name: str) -> None:
        """End one daemon as a crash would; it is then shown as dead. Jobs of a killed slurmd go on."""
        self._daemon(name)
        if process := self._processes().get(name):
            processes.kill(process)

    # ------------------------------------------------------------------------------------------------ asking

    def status(self) -> list[DaemonStatus]:
        """Return how each daemon is; empty when the stack isn't up."""
        facts = layout.load(self.directory)
        if facts is None:
            return []
        running = self._processes()
        return [_status(daemon, running.get(daemon.name)) for daemon in catalogue.describe(facts)]

    def environment(self) -> dict[str, str]:
        """Return the variables that point programs at this stack.

        Raises
        ------
        StackError
            The stack isn't up.
        """
        facts = self.layout
        variables = {}
        if Service.SLURM in facts.services:
            variables["SLURM_CONF"] = str(facts.slurm_conf)
            variables["ORCHESTRATOR_SLURM_JWT_KEY"] = str(facts.jwt_key)
        if Service.BROKER in facts.services:
            variables["ORCHESTRATOR_BROKER"] = f"{self.broker.host}:{self.broker.port}"
            variables["ORCHESTRATOR_BROKER_CREDENTIALS"] = str(self.broker.credentials)
        if Service.ACCOUNTING in facts.services:
            variables["ORCHESTRATOR_MARIADB_URL"] = accounting.database_url(facts)
        if Service.REST in facts.services:
            variables["ORCHESTRATOR_SLURMRESTD_URL"] = rest.url(facts)
        return variables

    @property
    def layout(self) -> Layout:
        """Paths and ports.

        Raises
        ------
        StackError
            The stack isn't up.
        """
        facts = layout.load(self.directory)
        if facts is None:
            raise StackError(f"there is no stack in {self.directory}", remedy="bring it up: orchestrator stack up")
        return facts

    @property
    def broker(self) -> BrokerAddress:
        """Where the broker listens, and who is let in."""
        return broker.address(self.layout)

    def token(self, *, lifespan_s: int = 1800) -> str:
        """Return a new token for slurmrestd."""
        return rest.token(self.layout, lifespan_s=lifespan_s)

    # ---------------------------------------------------------------------------------------------- the work

    def _daemon(self, name: str) -> Daemon:
        daemons = {daemon.name: daemon for daemon in catalogue.describe(self.layout)}
        if name not in daemons:
            raise StackError(f"this stack has no daemon {name}", remedy=f"it has: {', '.join(daemons)}")
        return daemons[name]

    def _bring_up(self, daemons: list[Daemon]) -> None:
        """Start what doesn't run, each as soon as those it needs are ready, independent ones at the same time."""
        started: dict[str, Future[None]] = {}
        with ThreadPoolExecutor(max_workers=len(daemons)) as pool:
            for daemon in daemons:
                needed = [started[name] for name in daemon.after if name in started]
                started[daemon.name] = pool.submit(self._ensure, daemon, needed)
        for future in started.values():
            future.result()

    def _ensure(self, daemon: Daemon, needed: list[Future[None]]) -> None:
        for earlier in needed:
            earlier.result()
        process = self._processes().get(daemon.name)
        if process is None or not processes.is_alive(process):
            process = processes.launch(
                daemon.command, log=daemon.log, directory=self.directory, environment=daemon.environment
            )
            self._remember({daemon.name: process})
        wait_ready(daemon, process)

    def _end(self, names: Collection[str]) -> None:
        known = self._processes()
        chosen = {name: known[name] for name in names if name in known}
        processes.end(chosen.values())
        self._remember(dict.fromkeys(chosen))

    # ----------------------------------------------------------------------------------- what is remembered

    @property
    def _processes_file(self) -> Path:
        return self.directory / "processes.json"

    def _processes(self) -> dict[str, processes.ProcessIdentity]:
        if not self._processes_file.exists():
            return {}
        known = json.loads(self._processes_file.read_text())
        return {name: processes.ProcessIdentity(**fields) for name, fields in known.items()}

    def _remember(self, changes: Mapping[str, processes.ProcessIdentity | None]) -> None:
        """Write down which process is which daemon; None forgets one."""
        with self._record:
            known = {**self._processes(), **changes}
            fields = {name: asdict(process) for name, process in known.items() if process is not None}
            layout.write_private(self._processes_file, json.dumps(fields, indent=2) + "\n")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Let one at a time change the stack."""
        layout.make_private(self.directory)
        with (self.directory / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _usable(facts: Layout) -> bool:
    """Return whether a stack of which nothing runs can come up again with the ports and folders that it had."""
    return facts.runtime.is_dir() and all(map(ports.is_free, facts.ports.values()))


def _status(daemon: Daemon, process: processes.ProcessIdentity | None) -> DaemonStatus:
    alive = process is not None and processes.is_alive(process)
    return DaemonStatus(
        name=daemon.name,
        alive=alive,
        pid=process.pid if process else None,
        port=daemon.port,
        log=daemon.log,
        last_lines=() if alive else tuple(processes.tail(daemon.log)),
    )
