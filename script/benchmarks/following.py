"""Following many active jobs: what a cycle costs, how many calls it makes, how soon a finished job is seen.

The jobs are real ones, submitted over the whole path, of a partition that is down; some are ended while they are
followed. In: the command line's options and the stack. Out: figures; `targets` holds them against what was promised.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dispatch
from bench_site import clear_queue, routes_of, settings_for, slurm
from targets import Target, at_most, below

from orchestrator.errors import OrchestratorError
from orchestrator.provenance import Store
from orchestrator.service import Service
from orchestrator.slurm.gateway import Gateway
from orchestrator.stack import Stack

WATCHED_S = 60.0
ENDED = 20
"""Jobs that are ended afterwards, one after another, while the others are followed."""


def measure(options: argparse.Namespace, folder: Path, stack: Stack) -> dict[str, Any]:
    """Submit so many jobs over the fastest route that works, then follow them for a minute."""
    failures: dict[str, str] = {}
    for route, needs in routes_of(options).items():
        settings = settings_for(route, folder / "following", needs)
        path = dispatch.WholePath(settings)
        try:
            dispatch.checked_gateway(settings).close()
        except OrchestratorError as error:
            failures[route] = error.full_text
            continue
        sys.stderr.write(f"bench: {options.follow} jobs over {route}\n")
        with path.running() as service:
            uids = dispatch.new_uids(options.follow)
            submitted_s = path.burst(service, uids)
            figures = {"route": route, "jobs": options.follow, "submitted_s": submitted_s, "failures": failures}
            figures |= _watch(service, stack, [dispatch.run_of(settings, uid) for uid in uids])
        clear_queue()
        return figures
    return {"jobs": 0, "failures": failures}


def _watch(service: Service, stack: Stack, run_ids: Sequence[str]) -> dict[str, Any]:
    sys.stderr.write(f"bench: following them for {WATCHED_S:g} s\n")
    time.sleep(30)  # the first cycles read everything
    calls, cycles = _count_calls(service.gateway), _count_cycles(service)
    ours_s, controller_s = _own_cpu_s(), _cpu_s(_pid(stack, "slurmctld"))
    time.sleep(WATCHED_S)
    figures = {
        "cycles": cycles["cycle"],
        "calls": dict(calls),
        "own_cpu_share": (_own_cpu_s() - ours_s) / WATCHED_S,
        "controller_cpu_share": (_cpu_s(_pid(stack, "slurmctld")) - controller_s) / WATCHED_S,
    }
    sys.stderr.write(f"bench: ending {ENDED} of them\n")
    seen_after_s = []
    for number, run_id in enumerate(run_ids[:ENDED]):
        seen_after_s.append(_seen_after_s(service.store, run_id))
        time.sleep(0.5 + 0.37 * number % 1.5)  # anywhere between two questions
    return figures | {"seen_after_s": seen_after_s}


def _count_calls(gateway: Gateway) -> Counter[str]:
    calls: Counter[str] = Counter()
    for name in ("poll", "account", "find"):
        method = getattr(gateway, name)

        def counted(*arguments: Any, _name: str = name, _method: Any = method, **named: Any) -> Any:
            calls[_name] += 1
            return _method(*arguments, **named)

        vars(gateway)[name] = counted
    return calls


def _count_cycles(service: Service) -> Counter[str]:
    cycles: Counter[str] = Counter()
    cycle = service.follower.cycle

    def counted() -> int:
        cycles["cycle"] += 1
        return cycle()

    vars(service.follower)["cycle"] = counted
    return cycles


def _seen_after_s(store: Store, run_id: str) -> float:
    """End a job; return the seconds from SLURM's knowing it to the record's telling it."""
    job = store.run(run_id).summary.job
    if job is None:
        raise OrchestratorError(f"run {run_id} has no job")
    slurm("scancel", str(job.job_id))
    known_s = time.perf_counter()
    while not any(attempt.last_report and attempt.last_report.state.ended for attempt in store.run(run_id).attempts):
        time.sleep(0.02)
    return time.perf_counter() - known_s


def _own_cpu_s() -> float:
    """Return the processor time of this process, of the children it has waited for, and of those that live."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in usage) + sum(map(_cpu_s, _children()))


def _children() -> list[int]:
    return [int(word) for task in Path("/proc/self/task").iterdir() for word in (task / "children").read_text().split()]


def _cpu_s(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _pid(stack: Stack, name: str) -> int:
    return next(daemon.pid for daemon in stack.status() if daemon.name == name and daemon.pid is not None)


def targets(figures: dict[str, Any]) -> list[Target]:
    """Hold the figures against what was promised."""
    found = figures.get("following")
    if not found or not found["jobs"]:
        return []
    jobs, asked = found["jobs"], found["calls"].get("poll", 0) + found["calls"].get("find", 0)
    return [
        at_most(f"questions to the controller per cycle, {jobs} active jobs", asked / found["cycles"], 1.05),
        below(f"share of one core, {jobs} active jobs, %", 100 * found["own_cpu_share"], 5.0),
        below(
            f"a finished job is seen after s, worst of {len(found['seen_after_s'])}", max(found["seen_after_s"]), 2.0
        ),
    ]


def rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what else was seen, for people."""
    found = figures.get("following")
    if not found or not found["jobs"]:
        return []
    return [
        ("route", found["route"]),
        ("jobs submitted over the whole path, jobs/s", f"{found['jobs'] / found['submitted_s']:.0f}"),
        ("cycles in a minute", str(found["cycles"])),
        ("questions to accounting, about ended jobs", str(found["calls"].get("account", 0))),
        ("a finished job is seen after s, median", f"{statistics.median(found['seen_after_s']):.2f}"),
        ("slurmctld's share of one core, %", f"{100 * found['controller_cpu_share']:.1f}"),
    ]
