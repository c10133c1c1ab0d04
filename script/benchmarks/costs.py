"""Where the processors' time goes while a burst of messages becomes jobs: by step of the service, and by process.

In: what makes the burst, and how many messages it has. Out: milliseconds of processor time per message. A step is
measured on the clock of the thread that takes it, so that waiting, for SLURM, a disk or another thread, counts nothing.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from unittest import mock

from orchestrator.dispatching import Dispatcher
from orchestrator.following import Follower
from orchestrator.provenance import Store
from orchestrator.submitting import calls, preparing, submitter

STEPS: Mapping[str, tuple[object, str]] = {
    "received: understood, planned": (Dispatcher, "receive"),
    "received: recorded, with its runs": (Store, "record_messages"),
    "read back": (Store, "planned_runs"),
    "rendered": (preparing.Preparation, "made_ready"),
    "intents": (Store, "record_intents"),
    "directories": (submitter, "write_directories"),
    "calls, without the gateway's processes": (calls.Calls, "make"),
    "outcomes": (Store, "record_outcomes"),
    "following": (Follower, "cycle"),
}
"""Steps and the methods or functions that take them; what one step calls of another one counts for that one."""

PROCESSES = ("slurmctld", "slurmrestd", "slurmdbd", "mariadbd", "munged", "java", "sbatch", "squeue", "scontrol")
_TICK_MS = 1000 / os.sysconf("SC_CLK_TCK")


def measure(burst: Callable[[], object], messages: int) -> dict[str, dict[str, float]]:
    """Return milliseconds per message: of `steps` of the service, and of `processes`."""
    before, began_s = _processes_ms(), time.process_time()
    with _steps() as spent_s:
        burst()
    service_ms = (time.process_time() - began_s) * 1e3 / messages
    after = _processes_ms()
    steps = {name: spent_s[name] * 1e3 / messages for name in STEPS}
    steps["the rest, with the sender"] = service_ms - sum(steps.values())
    processes = {name: (after[name] - before[name]) / messages for name in after if after[name] > before[name]}
    return {"steps": steps, "processes": {"the service, with the sender": service_ms, **processes}}


@contextmanager
def _steps() -> Iterator[Counter[str]]:
    """Have the steps' methods add up what they take, by the steps' names, in seconds."""
    spent_s: Counter[str] = Counter()
    within = threading.local()

    def timed(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def step(*arguments: Any, **more: Any) -> Any:
            around, within.others_s = getattr(within, "others_s", 0.0), 0.0
            began_s = time.thread_time()
            try:
                return method(*arguments, **more)
            finally:
                took_s = time.thread_time() - began_s
                spent_s[name] += took_s - within.others_s
                within.others_s = around + took_s

        return step

    patches = [
        mock.patch.object(owner, name, timed(step, getattr(owner, name))) for step, (owner, name) in STEPS.items()
    ]
    for patch in patches:
        patch.start()
    try:
        yield spent_s
    finally:
        for patch in patches:
            patch.stop()


def _processes_ms() -> Counter[str]:
    """Return the processor time that living processes have used, children that are gone included, by their names."""
    spent: Counter[str] = Counter()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or entry.name == str(os.getpid()):
            continue
        try:
            name, _, fields = (entry / "stat").read_text().partition("(")[2].rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if name in PROCESSES:
            spent[name] += sum(int(field) for field in fields.split()[11:13]) * _TICK_MS
        elif _is_helper(entry):
            spent["pyslurm's helpers"] += sum(int(field) for field in fields.split()[11:13]) * _TICK_MS
    return spent


def _is_helper(entry: Path) -> bool:
    try:
        return b"pyslurm_helper.py" in (entry / "cmdline").read_bytes()
    except OSError:
        return False
