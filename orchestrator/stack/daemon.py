"""What the stack has to know about each of its daemons; the modules beside this one describe them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import StackError
from orchestrator.stack import processes
from orchestrator.stack.processes import ProcessIdentity


@dataclass(frozen=True, kw_only=True)
class Daemon:
    """How one daemon is started, and how to ask whether it works."""

    name: str
    command: tuple[str, ...]
    """Keeps it in the foreground, with its log on its output."""
    log: Path
    environment: Mapping[str, str]
    ready: Callable[[], bool]
    """Really asks it; False or `StackError` means not yet."""
    port: int | None = None
    after: tuple[str, ...] = ()
    """Daemons that have to be ready before."""
    startup_timeout_s: float = 60


@dataclass(frozen=True, kw_only=True)
class DaemonStatus:
    """How one daemon is."""

    name: str
    alive: bool
    pid: int | None
    """None when it was never started or was stopped on purpose."""
    port: int | None
    log: Path
    last_lines: tuple[str, ...] = ()
    """Of its log; only when it is dead."""


@dataclass(frozen=True, kw_only=True)
class BrokerAddress:
    """Where the broker listens, and who is let in."""

    host: str
    port: int
    tls_port: int
    user: str
    password: str
    credentials: Path
    """TOML file with ``username`` and ``password``."""
    certificate: Path
    """PEM file of the self-signed certificate of the TLS port."""


def wait_ready(daemon: Daemon, process: ProcessIdentity) -> None:
    """Wait until a daemon answers.

    Raises
    ------
    StackError
        It ended, or doesn't answer in time; the message has its last words.
    """
    reason = ""

    def ready() -> bool:
        nonlocal reason
        if daemon.port is not None and not processes.listens(process, daemon.port):
            # Another one may: then asking would say nothing about ours.
            reason = f"it doesn't listen on port {daemon.port}"
            return False
        try:
            return daemon.ready()
        except StackError as not_yet:
            reason = str(not_yet)
            return False

    def decided() -> bool:
        return not processes.is_alive(process) or ready()

    in_time = processes.wait_until(decided, timeout_s=daemon.startup_timeout_s)
    if processes.is_alive(process) and in_time:
        return
    what = "doesn't answer" if processes.is_alive(process) else "ended at once"
    last = "\n".join([reason, *processes.tail(daemon.log)]).strip()
    raise StackError(f"{daemon.name} {what}:\n{last}", remedy=f"read {daemon.log}")
