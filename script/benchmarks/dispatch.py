"""From a message to an accepted job: every contender in turn, round by round, on one SLURM.

In: the command line's options. Out: figures (`measure`), and a table of rates, ratios and targets (`report`). What is
compared was measured in the same run, minutes apart at most, so that a noisy machine is noisy for all.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import costs
import following
import peers_environment
import stomp
from bench_site import PARTITION, ROUTES, clear_queue, routes_of, settings_for
from rich.console import Console
from rich.table import Table
from targets import Target, at_least, below, table_of

from orchestrator.errors import OrchestratorError
from orchestrator.listening.credentials import read_credentials
from orchestrator.messages import start_document
from orchestrator.planning import plan, run_id_of
from orchestrator.records import CollectionStart, RunTag, Submission, SubmittedJob
from orchestrator.rendering import render
from orchestrator.service import Service, open_doors, open_gateway, open_store
from orchestrator.settings import Settings
from orchestrator.slurm.gateway import Gateway
from orchestrator.stack import Stack

Loop = Callable[[int], float]
"""Submits so many jobs; returns the seconds it took."""

SBATCH_LOOP = "loop over sbatch"
PATIENCE_S = 300


@dataclass(kw_only=True)
class Submissions:
    """Begin and end of every submission of a gateway, by run id, in seconds of the monotonic clock."""

    began_s: dict[str, float] = field(default_factory=dict)
    ended_s: dict[str, float] = field(default_factory=dict)
    news: threading.Condition = field(default_factory=threading.Condition)

    def watch(self, gateway: Gateway) -> Gateway:
        """Have a gateway note its submissions here."""
        submit_each = gateway.submit_each

        def timed(submissions: Iterator[Submission]) -> Iterator[Any]:
            taken: deque[str] = deque()

            def noted() -> Iterator[Submission]:
                for submission in submissions:
                    taken.append(submission.tag.run_id)
                    self.began_s[taken[-1]] = time.perf_counter()
                    yield submission

            for answer in submit_each(noted()):
                run_id = taken.popleft()
                if isinstance(answer, SubmittedJob):
                    with self.news:
                        self.ended_s[run_id] = time.perf_counter()
                        self.news.notify_all()
                yield answer

        vars(gateway)["submit_each"] = timed
        return gateway

    def wait_for(self, run_ids: Sequence[str]) -> None:
        """Wait until all of these were accepted."""
        with self.news:
            if not self.news.wait_for(lambda: all(run_id in self.ended_s for run_id in run_ids), PATIENCE_S):
                missing = sum(run_id not in self.ended_s for run_id in run_ids)
                raise OrchestratorError(f"{missing} of {len(run_ids)} jobs weren't accepted within {PATIENCE_S} s")


# ------------------------------------------------------------------------------------------------ collections


def some_collection(settings: Settings, uid: str) -> CollectionStart:
    """Return a collection that the site's recipe wants."""
    return CollectionStart(
        uid=uid,
        beamline="demo",
        detector="simulated",
        scan_type="time-series",
        visit="bench",
        file=settings.allowed_roots[0] / f"{uid}.h5",
        dataset="/entry/data/data",
        frames_expected=100,
    )


def new_uids(number: int) -> list[str]:
    """Return uids that nobody has used."""
    return [f"bench-{uuid.uuid4().hex}" for _ in range(number)]


def run_of(settings: Settings, uid: str) -> str:
    """Return the id of the run that a collection leads to."""
    (recipe,) = (name for name, recipe in settings.recipes.items() if recipe.enabled)
    return run_id_of(uid, recipe)


@contextmanager
def publisher(settings: Settings) -> Iterator[Callable[[bytes], None]]:
    """Give a function that sends a message over a connection that stays open."""
    door = settings.stomp
    if door is None:
        raise OrchestratorError(f"{settings.source}: no table [stomp]")
    connection = stomp.Connection12(list(door.addresses()))
    login = read_credentials(door.credentials_file) if door.credentials_file else (None, None)
    connection.connect(*login, wait=True)
    try:
        yield lambda body: connection.send(door.destination, body, content_type="application/json", persistent="true")
    finally:
        connection.disconnect()


# ------------------------------------------------------------------------------------------------ contenders


def sbatch_loop(settings: Settings, folder: Path) -> Loop:
    """Return a plain loop over sbatch, as a shell script would do it, over scripts that lie ready."""

    def loop(number: int) -> float:
        scripts = []
        for submission in _ready(settings, number):
            script = submission.working_directory / "script.sh"
            script.write_text(submission.script.text)
            scripts.append(script)
        began_s = time.perf_counter()
        for script in scripts:
            subprocess.run(["sbatch", "--parsable", str(script)], check=True, capture_output=True, cwd=folder)
        return time.perf_counter() - began_s

    return loop


def checked_gateway(settings: Settings) -> Gateway:
    """Open a site's gateway and see that it works."""
    gateway = open_gateway(settings)
    gateway.check()
    return gateway


def gateway_loop(settings: Settings) -> Loop:
    """Return a bare loop over a gateway's submissions, rendered beforehand; no database, no broker."""
    gateway = checked_gateway(settings)

    def loop(number: int) -> float:
        submissions = list(_ready(settings, number))
        began_s = time.perf_counter()
        for answer in gateway.submit_each(iter(submissions)):
            if not isinstance(answer, SubmittedJob):
                raise answer or OrchestratorError("a submission was given back")
        return time.perf_counter() - began_s

    return loop


def _ready(settings: Settings, number: int) -> Iterator[Submission]:
    for uid in new_uids(number):
        (one,) = plan(some_collection(settings, uid), settings).plans
        one.run_directory.mkdir(parents=True)
        tag = RunTag(run_id=one.run_id, attempt=1)
        yield Submission(
            tag=tag, script=render(one, tag.attempt, settings.templates), working_directory=one.run_directory
        )


class WholePath:
    """The whole path of one site: broker, database and gateway, in the service that people run."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.submissions = Submissions()

    @contextmanager
    def running(self) -> Iterator[Service]:
        """Run the service until the block ends; wait first until it has said that it listens."""
        service = Service(
            settings=self.settings,
            store=open_store(self.settings, create=True),
            gateway=self.submissions.watch(open_gateway(self.settings)),
            doors=open_doors(self.settings),
        )
        with service, publisher(self.settings) as send:
            self._through(send, new_uids(1))  # connected, warm
            self.send = send
            yield service

    def _through(self, send: Callable[[bytes], None], uids: Sequence[str]) -> None:
        for uid in uids:
            send(start_document(some_collection(self.settings, uid)))
        self.submissions.wait_for([run_of(self.settings, uid) for uid in uids])

    def loop(self, number: int) -> float:
        """Return the seconds from the first message sent to the last job accepted and recorded."""
        with self.running() as service:
            return self.burst(service, new_uids(number))

    def burst(self, service: Service, uids: Sequence[str]) -> float:
        """Send messages at once; return the seconds from the first one sent to the last job accepted and recorded."""
        began_s = time.perf_counter()
        self._through(self.send, uids)
        while service.store.unsettled_attempts():
            time.sleep(0.005)
        return time.perf_counter() - began_s

    def costs(self, number: int) -> dict[str, dict[str, float]]:
        """Return where the processors' time goes in a burst, in milliseconds per message."""
        with self.running() as service:
            return costs.measure(lambda: self.burst(service, new_uids(number)), number)

    def idle(self, number: int) -> list[tuple[float, float]]:
        """Return, for single messages, the seconds to the job's acceptance, and those of them in the gateway."""
        seconds = []
        with self.running():
            for uid in new_uids(number):
                time.sleep(0.1)
                sent_s = time.perf_counter()
                self._through(self.send, [uid])
                run_id = run_of(self.settings, uid)
                ended_s = self.submissions.ended_s[run_id]
                seconds.append((ended_s - sent_s, ended_s - self.submissions.began_s[run_id]))
        return seconds


def peer_loop(name: str, folder: Path, environment: dict[str, str]) -> Loop:
    """Return a loop of one of the alternatives, in its own environment."""
    python = peers_environment.interpreter()
    program = Path(__file__).parent / "peers.py"

    def loop(number: int) -> float:
        done = subprocess.run(
            [python, program, name, str(number), PARTITION, str(folder)],
            env=os.environ | environment,
            cwd=folder,
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise OrchestratorError(f"{name}: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
        return float(sum(json.loads(done.stdout.splitlines()[-1])))

    return loop


# ------------------------------------------------------------------------------------------------ measuring


def measure(options: argparse.Namespace, folder: Path, stack: Stack) -> dict[str, Any]:
    """Measure all contenders; what can't be measured says why."""
    changes: dict[str, object] = {}
    if options.database:
        changes["database"] = options.database

    def new_site(route: str) -> Settings:
        # With a database of its own: that the jobs of earlier rounds have ended is work for the service that had them.
        return settings_for(route, folder / uuid.uuid4().hex, changes | routes_of(options)[route])

    loops, failures = _contenders(options, folder, new_site, stack.token())
    figures: dict[str, Any] = {"seconds_per_job": _rounds(options, loops, failures), "failures": failures}
    figures["idle"], figures["costs"] = {}, {}
    for route in routes_of(options):
        if f"path over {route}" in figures["seconds_per_job"]:
            _say(f"where the processors' time goes, over {route}")
            figures["costs"][route] = WholePath(new_site(route)).costs(options.jobs)
            clear_queue()
            _say(f"latency of {options.idle} single messages over {route}")
            figures["idle"][route] = WholePath(new_site(route)).idle(options.idle)
            clear_queue()
    return figures


def _contenders(
    options: argparse.Namespace, folder: Path, new_site: Callable[[str], Settings], token: str
) -> tuple[dict[str, Loop], dict[str, str]]:
    loops: dict[str, Loop] = {}
    failures: dict[str, str] = {}

    def path_loop(route: str) -> Loop:
        return lambda number: WholePath(new_site(route)).loop(number)

    for route in routes_of(options):
        if route == "cli":
            loops[SBATCH_LOOP] = sbatch_loop(new_site(route), folder)
        try:
            loops[f"gateway {route}"] = gateway_loop(new_site(route))
        except OrchestratorError as error:
            failures[f"gateway {route}"] = error.full_text
        else:
            loops[f"path over {route}"] = path_loop(route)
    for name in () if options.without_peers else peers_environment.PEERS:
        own = folder / name
        own.mkdir()
        try:
            loops[name] = peer_loop(name, own, {"SLURM_JWT": token} if name == "zocalo" else {})
        except subprocess.CalledProcessError as error:
            failures[name] = f"can't be installed: {error}"
    return loops, failures


def _rounds(options: argparse.Namespace, loops: dict[str, Loop], failures: dict[str, str]) -> dict[str, list[float]]:
    """Return seconds per job of each contender, one value a round; the order turns from round to round."""
    seconds: dict[str, list[float]] = {}
    names = list(loops)
    for number in range(options.rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            if name in failures:
                continue
            _say(f"round {number + 1} of {options.rounds}: {name}")
            try:
                seconds.setdefault(name, []).append(loops[name](options.jobs) / options.jobs)
            except (OrchestratorError, subprocess.CalledProcessError) as error:
                failures[name] = str(error)
                seconds.pop(name, None)
            clear_queue()
    return {name: seconds[name] for name in names if name in seconds}


def _say(what: str) -> None:
    sys.stderr.write(f"bench: {what}\n")


# ------------------------------------------------------------------------------------------------ report


def targets(figures: dict[str, Any]) -> list[Target]:
    """Hold the figures against what was promised; a target that nothing was measured for is left out."""
    seconds, idle = figures["seconds_per_job"], figures["idle"]
    found: list[Target] = []
    for route in ROUTES:
        if f"path over {route}" in seconds:
            ratio = _ratio(seconds, f"path over {route}", f"gateway {route}")
            found.append(at_least(f"path over {route} / gateway {route}", ratio, 0.8))
    paths = [name for name in seconds if name.startswith("path over")]
    if paths and SBATCH_LOOP in seconds:
        best = min(paths, key=lambda name: statistics.median(seconds[name]))
        found.append(at_least(f"{best} / {SBATCH_LOOP}", _ratio(seconds, best, SBATCH_LOOP), 4.0))
    for route, samples in idle.items():
        own = sorted((total - gateway) * 1e3 for total, gateway in samples)
        found.append(below(f"own share of latency over {route}, median, ms", statistics.median(own), 10.0))
        found.append(below(f"own share of latency over {route}, 99th percentile, ms", own[-1 - len(own) // 100], 50.0))
    return [*found, *following.targets(figures)]


def _ratio(seconds: dict[str, list[float]], name: str, other: str) -> float:
    """Return the rate of one over that of the other: the median of the rounds' ratios."""
    return statistics.median(theirs / ours for ours, theirs in zip(seconds[name], seconds[other], strict=True))


def report(figures: dict[str, Any]) -> int:
    """Print the tables; return 0 when every target is met, else 1."""
    seconds = figures["seconds_per_job"]
    reference = SBATCH_LOOP if SBATCH_LOOP in seconds else next(iter(seconds), "")
    rates = Table("contender", "jobs/s", "ms/job", "ms/job, rounds", f"x {reference}")
    for name, values in seconds.items():
        median = statistics.median(values)
        rounds = " ".join(f"{value * 1e3:.1f}" for value in values)
        ratio = f"{_ratio(seconds, name, reference):.2f}"
        rates.add_row(name, f"{1 / median:.1f}", f"{median * 1e3:.1f}", rounds, ratio)
    for name, reason in figures["failures"].items():
        rates.add_row(name, "-", "-", f"not measured: {reason}", "-")
    spent = Table("processor time per message, ms", *figures["costs"])
    for kind in ("steps", "processes"):
        for name in dict.fromkeys(name for of_route in figures["costs"].values() for name in of_route[kind]):
            values = [of_route[kind].get(name) for of_route in figures["costs"].values()]
            spent.add_row(name, *("-" if value is None else f"{value:.2f}" for value in values))
        spent.add_section()
    found = targets(figures)
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(rates)
    console.print(spent)
    for name, value in following.rows(figures):
        console.print(f"following: {name}: {value}")
    console.print(table_of(found))
    return 0 if all(target.met for target in found) else 1
