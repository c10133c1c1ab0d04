"""What SLURM doesn't take at present, and when it may be asked again: pure, times are handed in.

A refusal that will pass (MaxJobCount, a limit of the account, a closed partition, no controller) closes the whole
cluster, or one queue where no more is known. While something is closed nothing is sent there. When its time is over,
one job may try: its acceptance opens it, another refusal closes it for twice as long.

A refusal that may be for good, about one run only, keeps that run back for longer than its queue, so that the next
trial is another run's: it isn't given up, and it doesn't stand in the others' way.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Set
from dataclasses import dataclass, field

from orchestrator.errors import GatewayUnavailable

FIRST_S = 0.5
LONGEST_S = 15.0
"""How long something stays closed after one refusal, and after many."""
ALONE_FIRST_S = 4.0
ALONE_LONGEST_S = 300.0
"""The same of a single run."""


@dataclass(frozen=True)
class Queue:
    """What a limit of SLURM's may be about."""

    partition: str | None
    account: str | None
    qos: str | None
    user: str | None


@dataclass(frozen=True)
class _Closure:
    error: GatewayUnavailable
    interval_s: float
    until_s: float


@dataclass
class BackPressure:
    """What is closed, and until when. Times are those of a clock that only goes on."""

    _closures: dict[Queue | str | None, _Closure] = field(default_factory=dict)
    """None stands for the whole cluster, a text for the run with this id."""

    def obstacle(self, queue: Queue | None, now_s: float, *, run_id: str | None = None) -> GatewayUnavailable | None:
        """Return why nothing may be sent to a queue now, None when something may; without a queue, to any.

        With a run's id, why that run may not be sent.
        """
        closures = (self._closures.get(key) for key in (None, queue, run_id))
        return next((closure.error for closure in closures if closure is not None and now_s < closure.until_s), None)

    def on_trial(self, queue: Queue) -> bool:
        """Whether one job has to be accepted before others may be sent."""
        return None in self._closures or queue in self._closures

    def refused(self, queue: Queue, error: GatewayUnavailable, now_s: float, *, alone: str | None = None) -> None:
        """Close what a refusal is about; `alone` is the id of a run that it may be about for good."""
        self._close(None if error.everywhere else queue, error, now_s, FIRST_S, LONGEST_S)
        if alone is not None:
            self._close(alone, error, now_s, ALONE_FIRST_S, ALONE_LONGEST_S)

    def accepted(self, queue: Queue, *, run_id: str | None = None) -> None:
        """Open a queue, which took a job."""
        for key in (None, queue, run_id):
            self._closures.pop(key, None)

    def forget(self, run_id: str) -> None:
        """Keep nothing of a run that won't be sent any more."""
        self._closures.pop(run_id, None)

    def _close(
        self, key: Queue | str | None, error: GatewayUnavailable, now_s: float, first_s: float, longest_s: float
    ) -> None:
        before = self._closures.get(key)
        interval_s = first_s if before is None else min(2 * before.interval_s, longest_s)
        self._closures[key] = _Closure(error, interval_s, now_s + interval_s)


@dataclass
class _Held:
    run_ids: set[str] = field(default_factory=set)
    reason: str = ""
    """What their records say; empty when that isn't known."""


@dataclass
class HeldRuns:
    """Runs that wait for their queue to open: it may be long, and closed for hours, and nobody reads it all each time.

    Who is known here is of a queue that was closed; whether it is so still, `pressure` says.
    """

    pressure: BackPressure
    _held: dict[Queue, _Held] = field(default_factory=dict)

    def hold(self, queue: Queue, run_id: str, reason: str, now_s: float) -> None:
        """Keep a run in mind whose record gives this reason; not one that is held back alone."""
        if self.pressure.obstacle(queue, now_s):
            self._held.setdefault(queue, _Held(reason=reason)).run_ids.add(run_id)

    def let_go(self, queue: Queue, run_id: str) -> None:
        """Forget a run that is sent."""
        if held := self._held.get(queue):
            held.run_ids.discard(run_id)

    def open(self) -> Set[Queue]:
        """Return the queues that are open again; all their runs are read."""
        return {queue for queue in self._held if not self.pressure.on_trial(queue)}

    def forget(self, queues: Set[Queue]) -> None:
        """Forget queues whose runs have all been read: who is left here has gone another way."""
        for queue in queues:
            del self._held[queue]

    def closed(self, now_s: float) -> dict[Queue, GatewayUnavailable]:
        """Return the queues that are closed now, and why."""
        obstacles = {queue: self.pressure.obstacle(queue, now_s) for queue in self._held}
        return {queue: error for queue, error in obstacles.items() if error is not None}

    def to_be_told(self, queue: Queue, reason: str) -> Collection[str]:
        """Return the runs whose records give another reason; they give this one from now on."""
        held = self._held[queue]
        if held.reason == reason:
            return ()
        held.reason = reason
        return held.run_ids

    def say_again(self) -> None:
        """Note that the records may give another reason by now."""
        for held in self._held.values():
            held.reason = ""

    def left_out(self, now_s: float) -> Callable[[str], bool] | None:
        """Return what leaves out, of runs in their order, those of closed queues and of one on trial all but the first.

        None when there are none to be left out.
        """
        closed = self.closed(now_s)
        out = {run_id for queue in closed for run_id in self._held[queue].run_ids}
        trials = [
            held.run_ids for queue, held in self._held.items() if queue not in closed and self.pressure.on_trial(queue)
        ]

        def left_out(run_id: str) -> bool:
            of_trial = next((run_ids for run_ids in trials if run_id in run_ids), None)
            if of_trial is None:
                return run_id in out
            trials.remove(of_trial)
            out.update(of_trial)
            return False

        return left_out if out or trials else None
