"""The kinds of faults. Each is a function that is given the ground and a round, delivers the round's messages with its
fault around them, heals what it broke, and returns how often the fault really happened.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from orchestrator.crashpoints import VARIABLE, CrashPoint
from tests.faults.ground import ABSENCE_GRACE_S, HEARTBEAT_S, SUBMIT_DEADLINE_S, Ground, Impossible, wait_until
from tests.faults.proxy import Ambush, Fault, Proxy

SHARE = 0.3
"""Of the requests that a fault of a proxy meets, so that some go well between those that don't."""
LATE_S = SUBMIT_DEADLINE_S + ABSENCE_GRACE_S + 3.0
"""Later than a submission's absence counts as proven."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """What a kind needs of the round it is in."""

    chance: random.Random
    messages: int
    """How many different ones."""
    deliver: Callable[[], None]
    """Publish the round's messages; some of them twice."""
    settled: Callable[[], bool]
    """Whether all of the round's runs have ended."""


Kind = Callable[[Ground, Round], int]


def _through_proxy(ground: Ground, round_: Round, proxy: Proxy, ambush: Ambush, *, within_s: float) -> int:
    before = proxy.happened[ambush.fault]
    ground.ensure_service()
    proxy.arm(ambush)
    try:
        round_.deliver()
        wait_until(round_.settled, timeout_s=within_s)
    finally:
        proxy.heal()
    return proxy.happened[ambush.fault] - before


def _slurm(fault: Fault, *, delay_s: float = 0.0, times: int | None = None, within_s: float = 40) -> Kind:
    def happen(ground: Ground, round_: Round) -> int:
        ambush = Ambush(fault=fault, share=SHARE, delay_s=delay_s, times=times)
        return _through_proxy(ground, round_, ground.slurm_door, ambush, within_s=within_s)

    return happen


def _database(ground: Ground, round_: Round) -> int:
    ambush = Ambush(fault=Fault.REPLY_DROPPED, share=0.1)
    return _through_proxy(ground, round_, ground.database_door, ambush, within_s=15)


def _broker(ground: Ground, round_: Round) -> int:
    return _through_proxy(
        ground, round_, ground.broker_door, Ambush(fault=Fault.REPLY_DROPPED, share=SHARE), within_s=20
    )


def _refused(ground: Ground, round_: Round) -> int:
    """Close the controller's door for a while; a submission waits for it by itself, so a minute would teach no more."""
    ground.ensure_service()
    ground.slurm_door.arm(Ambush(fault=Fault.REFUSED))
    try:
        round_.deliver()
        time.sleep(round_.chance.uniform(3, 12))
    finally:
        ground.slurm_door.heal()
    return 1


def _crash_at(point: CrashPoint, ground: Ground, round_: Round) -> int:
    """Kill the service at a point, after a number of passings that chance decides; then start another.

    Messages that come together take most steps together: a point is passed a few times only.
    """
    commits = point in {CrashPoint.BEFORE_COMMIT, CrashPoint.AFTER_COMMIT}
    most = max(1, round_.messages // (2 if commits else 10))
    if point in {CrashPoint.JOB_FOUND, CrashPoint.ADOPTED}:  # nothing is looked for unless answers are lost
        ground.slurm_door.arm(Ambush(fault=Fault.REPLY_DROPPED))
    ground.stop_service()
    service = ground.start_service(**{VARIABLE: f"{point}:{round_.chance.randint(1, most)}"})
    round_.deliver()
    wait_until(lambda: service.poll() is not None or round_.settled(), timeout_s=40)
    ground.slurm_door.heal()
    died = service.poll() == -signal.SIGKILL
    ground.kill_service()
    ground.start_service()
    return int(died)


def _killed_any_time(ground: Ground, round_: Round) -> int:
    """Kill the service three times, whatever it does; replies are slow, so that some submissions are under way."""
    ground.slurm_door.arm(Ambush(fault=Fault.REPLY_DELAYED, share=0.5, delay_s=1.0))
    ground.ensure_service()
    round_.deliver()
    for _ in range(3):
        time.sleep(round_.chance.uniform(0.5, 4.0))
        ground.kill_service()
        ground.start_service()
    ground.slurm_door.heal()
    return 3


def _daemon(name: str, action: str, ground: Ground, round_: Round) -> int:
    """Stop or kill one of the stack's daemons in the midst of the messages; start it some seconds later."""
    ground.ensure_service()
    with _at_work(ground, round_):
        getattr(ground.stack, action)(name)
        time.sleep(round_.chance.uniform(1, 8))
        ground.stack.start(name)
    return 1


def _database_killed(ground: Ground, round_: Round) -> int:
    ground.ensure_service()
    with _at_work(ground, round_):
        ground.database.kill()
        time.sleep(round_.chance.uniform(0.5, 5))
        ground.database.start()
    return 1


@contextmanager
def _at_work(ground: Ground, round_: Round) -> Iterator[None]:
    """Do something when some of the round's messages have been taken and some of its jobs made."""
    marked = ground.slurm_door.marked
    round_.deliver()
    wait_until(lambda: ground.slurm_door.marked >= marked + round_.chance.randint(1, 6), timeout_s=20)
    yield


def _clock(offset_s: int, ground: Ground, round_: Round) -> int:
    """Let the service's clock jump while answers are lost, for what was lost is looked for by its time."""
    ground.stop_service()
    ground.set_clock(0)
    ground.start_service(**ground.false_clock())
    ground.slurm_door.arm(Ambush(fault=Fault.REPLY_DROPPED, share=SHARE))
    try:
        with _at_work(ground, round_):
            ground.set_clock(offset_s)
            wait_until(round_.settled, timeout_s=30)
    finally:
        ground.slurm_door.heal()
        ground.stop_service()
        ground.set_clock(0)
        ground.start_service()
    return 1


def _disk_full(which: str, ground: Ground, round_: Round) -> int:
    disk = ground.runs_disk if which == "runs" else ground.database_disk
    if not disk.mounted:
        raise Impossible(f"a small file system can't be mounted here: {disk.obstacle}")
    ground.ensure_service()
    disk.fill()
    try:
        round_.deliver()
        time.sleep(round_.chance.uniform(3, 10))
    finally:
        disk.clear()
    if which == "database" and not ground.database.alive:
        ground.database.start()
    return 1


def _repeated(ground: Ground, round_: Round) -> int:
    """Publish everything three times, the last time when all of it has ended."""
    ground.ensure_service()
    round_.deliver()
    round_.deliver()
    wait_until(round_.settled, timeout_s=90)
    round_.deliver()
    return 2


def _paused(ground: Ground, round_: Round) -> int:
    """Stop the service for longer than the broker waits for its heartbeats: its messages are handed out again."""
    ground.ensure_service()
    with _at_work(ground, round_):
        ground.service.send_signal(signal.SIGSTOP)
        time.sleep(4 * HEARTBEAT_S)
        ground.service.send_signal(signal.SIGCONT)
    return 1


def _two_services(ground: Ground, round_: Round) -> int:
    """Let two services share queue and database; kill one of them in the midst of it."""
    ground.ensure_service()
    second = ground.start_service()
    with _at_work(ground, round_):
        time.sleep(round_.chance.uniform(0, 3))
        second.kill()
        second.wait()
    return 1


def all_kinds() -> dict[str, Kind]:
    """Return every kind by its name, in the order of the table."""
    return {
        "none": lambda ground, round_: (ground.ensure_service(), round_.deliver(), 0)[-1],
        "slurm: reply dropped": _slurm(Fault.REPLY_DROPPED),
        "slurm: reply delayed": _slurm(Fault.REPLY_DELAYED, delay_s=SUBMIT_DEADLINE_S + 1, times=4),
        "slurm: request delayed": _slurm(Fault.REQUEST_DELAYED, delay_s=LATE_S, times=4),
        "slurm: request cut": _slurm(Fault.REQUEST_CUT, times=6),
        "slurm: connection refused": _refused,
        "slurmctld stopped": partial(_daemon, "slurmctld", "stop"),
        "slurmctld killed": partial(_daemon, "slurmctld", "kill"),
        "slurmdbd killed": partial(_daemon, "slurmdbd", "kill"),
        "broker: connection lost after ACK": _broker,
        "broker killed": partial(_daemon, "broker", "kill"),
        "messages repeated": _repeated,
        "database: answer to COMMIT dropped": _database,
        "database killed": _database_killed,
        "database's disk full": partial(_disk_full, "database"),
        "runs' disk full": partial(_disk_full, "runs"),
        "clock 10 min forward": partial(_clock, 600),
        "clock 10 min back": partial(_clock, -600),
        "service paused": _paused,
        "service killed at any time": _killed_any_time,
        "two services, one killed": _two_services,
        **{f"service killed: {point}": partial(_crash_at, point) for point in CrashPoint},
    }
