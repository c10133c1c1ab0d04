"""What SLURM doesn't take at present, and when it may be asked again: pure, times are handed in.

A refusal that will pass (MaxJobCount, a limit of the account, a closed partition, no controller) closes the whole
cluster, or one queue where no more is known. While something is closed nothing is sent there. When its time is over,
one job may try: its acceptance opens it, another refusal closes it for twice as long.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.errors import GatewayUnavailable

FIRST_S = 0.5
LONGEST_S = 15.0
"""How long something stays closed after one refusal, and after many."""


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

    _closures: dict[Queue | None, _Closure] = field(default_factory=dict)
    """None stands for the whole cluster."""

    def obstacle(self, queue: Queue | None, now_s: float) -> GatewayUnavailable | None:
        """Return why nothing may be sent to a queue now, None when something may; without a queue, to any."""
        closures = (self._closures.get(key) for key in (None, queue))
        return next((closure.error for closure in closures if closure is not None and now_s < closure.until_s), None)

    def on_trial(self, queue: Queue) -> bool:
        """Whether one job has to be accepted before others may be sent."""
        return None in self._closures or queue in self._closures

    def refused(self, queue: Queue, error: GatewayUnavailable, now_s: float) -> None:
        """Close what a refusal is about."""
        key = None if error.everywhere else queue
        before = self._closures.get(key)
        interval_s = FIRST_S if before is None else min(2 * before.interval_s, LONGEST_S)
        self._closures[key] = _Closure(error, interval_s, now_s + interval_s)

    def accepted(self, queue: Queue) -> None:
        """Open a queue, which took a job."""
        self._closures.pop(None, None)
        self._closures.pop(queue, None)
