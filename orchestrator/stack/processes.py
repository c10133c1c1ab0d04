"""Start programs so that they outlive us, and end exactly those.

A process is named by its id together with its start time, because ids are reused. Nothing here knows any daemon.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import StackError
from orchestrator.stack.programs import find_program

PROC = Path("/proc")
KILL_PATIENCE_S = 10
_STATE, _PARENT, _STARTED = 0, 1, 19  # fields after the command's name in /proc/<pid>/stat, see proc(5)


@dataclass(frozen=True, kw_only=True)
class ProcessIdentity:
    """One process, never mistaken for a later one with the same id."""

    pid: int
    started_ticks: int
    """Start time in clock ticks since boot."""
    boot_id: str


def boot_id() -> str:
    """Return the kernel's name for the time since the last boot; start times only mean something within it."""
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


def _stat(pid: int) -> str:
    try:
        return (PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _stat_fields(pid: int) -> list[str]:
    return _stat(pid).rpartition(")")[2].split()


def program_name(pid: int) -> str:
    """Return the name of what a process runs (its first 15 bytes), empty when there is no such process."""
    return _stat(pid).partition("(")[2].rpartition(")")[0]


def identify(pid: int) -> ProcessIdentity | None:
    """Return the identity of a running process, None when there is none (or only its zombie)."""
    fields = _stat_fields(pid)
    if not fields or fields[_STATE] in "ZX":
        return None
    return ProcessIdentity(pid=pid, started_ticks=int(fields[_STARTED]), boot_id=boot_id())


def is_alive(process: ProcessIdentity) -> bool:
    """Return whether this very process still runs; reaps it when it was our child."""
    with contextlib.suppress(ChildProcessError):  # started by an earlier invocation: init reaps it
        os.waitpid(process.pid, os.WNOHANG)
    return identify(process.pid) == process


def launch(
    command: Sequence[str | Path],
    *,
    log: Path,
    directory: Path,
    environment: Mapping[str, str] | None = None,
) -> ProcessIdentity:
    """Start a program in a session of its own, with default signals; its output is appended to `log`.

    The program has to stay in the foreground, else its id says nothing.

    Parameters
    ----------
    environment
        The whole environment; ours where None.

    Raises
    ------
    StackError
        The program can't be started.
    """
    arguments = [find_program("env"), f"--chdir={directory}", *map(str, command)]
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    pid = os.posix_spawn(
        arguments[0],
        arguments,
        dict(os.environ if environment is None else environment),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), append, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigmask=[],
        setsigdef=sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}),
    )
    process = identify(pid)
    if process is None:
        raise StackError(f"{command[0]} ended at once: {' '.join(tail(log))}", remedy=f"read {log}")
    return process


def run(
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    text: str = "",
    timeout_s: float = 60,
) -> str:
    """Run a short program to its end, with `text` as its standard input, and return its standard output.

    Raises
    ------
    StackError
        It failed or took longer than `timeout_s`; the message has what it said.
    """
    words = [str(word) for word in command]
    name = Path(words[0]).name
    try:
        done = subprocess.run(
            words,
            env=None if environment is None else dict(environment),
            input=text,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as expired:
        raise StackError(f"{name} gave no answer within {timeout_s:g} s") from expired
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise StackError(f"{name} failed with exit code {done.returncode}: {said}")
    return done.stdout


def end(processes: Iterable[ProcessIdentity], *, patience_s: float = 10) -> None:
    """End processes: TERM to all, wait up to `patience_s` for all of them, then KILL.

    Raises
    ------
    StackError
        One survives even KILL (stuck in the kernel, or not ours to end).
    """
    waiting = _signal(processes, signal.SIGTERM)
    if waiting := _wait_for_end(waiting, patience_s):
        waiting = _wait_for_end(_signal(waiting, signal.SIGKILL), KILL_PATIENCE_S)
    if waiting:
        pids = ", ".join(str(process.pid) for process in waiting)
        raise StackError(f"processes that can't be ended: {pids}", remedy="end them by hand, then repeat the command")


def kill(process: ProcessIdentity) -> None:
    """End a process at once, as a crash would."""
    _wait_for_end(_signal([process], signal.SIGKILL), KILL_PATIENCE_S)


def _signal(processes: Iterable[ProcessIdentity], number: signal.Signals) -> list[ProcessIdentity]:
    reached = []
    for process in processes:
        if not is_alive(process):
            continue
        try:
            os.kill(process.pid, number)
        except ProcessLookupError:
            continue
        except PermissionError as refused:
            raise StackError(f"process {process.pid} belongs to another user and can't be ended") from refused
        reached.append(process)
    return reached


def _wait_for_end(processes: Iterable[ProcessIdentity], patience_s: float) -> list[ProcessIdentity]:
    """Return those that are still alive after `patience_s`."""
    waiting = list(processes)
    deadline = time.monotonic() + patience_s
    while (waiting := [process for process in waiting if is_alive(process)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return waiting


def wait_until(check: Callable[[], bool], *, timeout_s: float, interval_s: float = 0.05) -> bool:
    """Return whether `check` became true within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(interval_s)
    return True


def listens(process: ProcessIdentity, port: int) -> bool:
    """Return whether this very process accepts connections on a TCP port."""
    sockets = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    try:
        return any(str(descriptor.readlink()) in sockets for descriptor in (PROC / str(process.pid) / "fd").iterdir())
    except FileNotFoundError:  # it closed something, or ended, while we looked
        return False


def _listening_inodes(port: int) -> Iterator[str]:
    """Yield the inodes of the sockets that listen on a port; the columns are explained in proc(5)."""
    for table in ("tcp", "tcp6"):
        for line in (PROC / "net" / table).read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and int(local.rpartition(":")[2], 16) == port:
                yield inode


def processes_where(matches: Callable[[Path], bool]) -> Iterator[ProcessIdentity]:
    """Yield the processes whose folder in /proc satisfies `matches`; those that can't be looked into are left out."""
    for folder in PROC.glob("[0-9]*"):
        try:
            wanted = matches(folder)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if wanted and (process := identify(int(folder.name))):
            yield process


def with_descendants(processes: Iterable[ProcessIdentity]) -> set[ProcessIdentity]:
    """Return these processes and all that they started, directly or not."""
    family = set(processes)
    children: dict[int, list[int]] = {}
    for folder in PROC.glob("[0-9]*"):
        if fields := _stat_fields(int(folder.name)):
            children.setdefault(int(fields[_PARENT]), []).append(int(folder.name))
    pending = [process.pid for process in family]
    while pending:
        for pid in children.get(pending.pop(), []):
            if (child := identify(pid)) and child not in family:
                family.add(child)
                pending.append(pid)
    return family


def tail(log: Path, lines: int = 10) -> list[str]:
    """Return the last lines of a log, none when it doesn't exist."""
    if not log.exists():
        return []
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - 200 * lines))
        return stream.read().decode(errors="replace").splitlines()[-lines:]
