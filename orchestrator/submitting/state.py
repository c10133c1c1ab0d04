"""What submission remembers from one round to the next, and meets in one."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from orchestrator.back_pressure import BackPressure, HeldRuns, Queue
from orchestrator.errors import GatewayUnavailable
from orchestrator.provenance import Outcome, PlannedRun
from orchestrator.records import JobIdentity, RunTag, Submission
from orchestrator.template_origins import TemplateOrigins


@dataclass
class Memory:
    """What is remembered from one round to the next; a new process does without it."""

    pressure: BackPressure = field(default_factory=BackPressure)
    made: int = 0
    """Jobs, in all rounds."""
    call_s: float = 0.06
    """How long a call takes, from the last ones; sbatch's usual time to begin with."""
    first_seen_s: dict[tuple[RunTag, datetime], float] = field(default_factory=dict)
    """Since when this process has known of an intent, by its attempt and time; on a clock that only goes on."""
    settled_once: bool = False
    """Whether what an earlier process left open is among those."""
    look_again_s: dict[tuple[RunTag, datetime], float] = field(default_factory=dict)
    """When an intent's job may be looked for again."""
    unrecorded: list[Outcome] = field(default_factory=list)
    """What the store couldn't take when it became known."""
    origins: TemplateOrigins = field(default_factory=TemplateOrigins)
    held: HeldRuns = field(init=False)
    unwanted: list[JobIdentity] = field(default_factory=list)
    """Jobs of runs that were cancelled meanwhile, and that couldn't be ended yet."""

    def __post_init__(self) -> None:
        self.held = HeldRuns(self.pressure)


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A run with all that its submission needs."""

    planned: PlannedRun
    submission: Submission
    rerun: str
    """The script that makes the run again."""

    @property
    def tag(self) -> RunTag:
        return self.submission.tag


@dataclass
class Round:
    """What one round has met."""

    made: int = 0
    unanswered: bool = False
    batch_most: int = 4
    """The first batch is small: nothing is sent while it is prepared."""
    last: bool = False
    """Whether the newest batch is the last one."""
    closed: dict[Queue, GatewayUnavailable] = field(default_factory=dict)
    reruns_left: int | None = None
    """How many more runs that are made again may get a job; None before the first is met."""
    waiting: dict[str, str] = field(default_factory=dict)
    """Reasons by run id."""
    directories: list[str] = field(default_factory=list)
    faults: list[Exception] = field(default_factory=list)
    """Of runs that couldn't be made ready; the others go on."""


def queue_of(planned: PlannedRun) -> Queue:
    """Return the queue that a run's job would stand in."""
    asked = planned.plan_of_attempt.resources
    return Queue(asked.partition, asked.account, asked.qos, planned.plan.submit_as)


def reason_of(error: GatewayUnavailable) -> str:
    """Word why runs wait, for their records."""
    return f"waiting: {error.full_text}"
