"""What SLURM doesn't take at present, and when it may be asked again: pure, times are handed in.

A refusal that will pass (MaxJobCount, a limit of the account, a closed partition, no controller) closes the whole
cluster, or one queue where no more is known. While something is closed nothing is sent there. When its time is over,
one job may try: its acceptance opens it, another refusal closes it for twice as long.

A refusal that may be for good, about one run only, keeps that run back for longer than its queue, so that the next
trial is another run's: it isn't given up, and it doesn't stand in the others' way.
"""

from __future__ import annotations

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
