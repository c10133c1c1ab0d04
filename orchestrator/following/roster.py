"""Which jobs are active, kept in memory, and what is remembered of each from one cycle to the next.

There may be tens of thousands, of which a few change between two cycles: a glance at the store tells whether any came
or went, and only those are read. Nothing here is the truth; without it things are read again, nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from orchestrator.errors import GatewayError, InvalidSettings, OrchestratorError, StoreUnavailable
from orchestrator.provenance import ActiveAttempt, Store
from orchestrator.provenance.attempts import ActiveJob
from orchestrator.records import FrameCounts, JobIdentity, JobReport, JobState
from orchestrator.runs import AttemptDirectory, RunDirectory

log = logging.getLogger(__name__)

LISTED_EVERY = timedelta(seconds=30)
"""How often the active jobs are listed even if there are as many as before: one may have come for another that went."""


_WAITING = {JobState.PENDING}


@dataclass(kw_only=True, eq=False)
class Followed:
    """One attempt, and what is remembered of it."""

    attempt: ActiveAttempt
    settled: JobReport | None = None
    """The report that was dealt with and leaves nothing to be done until there is another one."""
    waits: bool = False
    """Whether its job has never run, so that there is nothing of it in its directory."""
    events_read: dict[int | None, int] = field(default_factory=dict)
    """By the number of a job array's task; None for other jobs."""
    inputs_known: set[str] = field(default_factory=set)
    kernel_known: bool = False
    counts: FrameCounts | None = None
    mark: object = None
    """By which its files were known when they were last looked at."""
    marked_at: datetime | None = None
    """Since when they have had this mark."""
    looked_at: datetime | None = None
    read_at: datetime | None = None
    missing_since: datetime | None = None
    ended_start: int | None = None
    """Of which start its job has recorded an end, counted as SLURM counts restarts: SLURM should soon tell of it."""
    ended_since: datetime | None = None
    hindrance: str = field(init=False)
    """What its run's reason says of it."""
    earlier_known: int = 0
    """Of how many of the job's earlier starts accounting has told."""
    complaints: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.hindrance = self.attempt.hindrance

    @property
    def directory(self) -> AttemptDirectory:
        """Where its job leaves its files."""
        return RunDirectory(self.attempt.run_directory).attempt(self.attempt.tag.attempt)

    def settle(self, report: JobReport | None) -> None:
        """Remember that nothing is to be done until there is another report than this one; None to forget it."""
        self.settled = report
        self.waits = report is not None and not report.restarts and {report.state, *report.tasks.values()} == _WAITING

    @property
    def lacks_earlier(self) -> bool:
        """Whether accounting may tell more about earlier starts of its job."""
        report = self.attempt.last_report
        return report is not None and report.restarts > self.earlier_known

    @contextmanager
    def at_its_own_cost(self) -> Iterator[None]:
        """Let a fault in one run's files or reports cost that run's news only; said once, not in every cycle."""
        try:
            yield
        except (StoreUnavailable, InvalidSettings, GatewayError):
            raise
        except Exception as error:  # the other runs must go on
            foreseen = isinstance(error, OSError | ValueError | OrchestratorError)
            if str(error) not in self.complaints:
                log.error("run %s: %s", self.attempt.tag.run_id, error, exc_info=None if foreseen else error)
            self.complaints.add(str(error))


@dataclass(kw_only=True)
class Roster:
    """The active jobs of one store."""

    store: Store
    now: Callable[[], datetime]
    _followed: dict[ActiveJob, Followed] = field(default_factory=dict)
    _identities: Sequence[JobIdentity] | None = None
    _count: int = 0
    """As many as the store has, as far as is known."""
    _listed_at: datetime | None = None

    def __iter__(self) -> Iterator[Followed]:
        return iter(list(self._followed.values()))

    def __len__(self) -> int:
        return len(self._followed)

    @property
    def identities(self) -> Sequence[JobIdentity]:
        """The jobs to ask about; the same object as long as they are the same."""
        if self._identities is None:
            self._identities = tuple(one.attempt.identity for one in self._followed.values())
        return self._identities

    def refresh(self) -> Sequence[Followed]:
        """Take in what came and went; return what is new."""
        now, count = self.now(), self.store.count_active()
        if count == self._count and self._listed_at is not None and now - self._listed_at < LISTED_EVERY:
            return []
        listed = self.store.active_jobs()
        new = self._load(listed - self._followed.keys())
        for job in self._followed.keys() - listed:
            del self._followed[job]
            self._identities = None
        self._count, self._listed_at = count, now
        return new

    def _load(self, jobs: set[ActiveJob]) -> Sequence[Followed]:
        """Read some of them from the store; return those that are new."""
        if not jobs:
            return []
        # All at once where none is known yet: they come in the order of their runs.
        found = self.store.active_attempts({run_id for run_id, _, _ in jobs} if self._followed else None)
        new = {_key(attempt): Followed(attempt=attempt) for attempt in found if _key(attempt) not in self._followed}
        self._followed |= new
        self._identities = None
        return list(new.values())

    def change_job(self, one: Followed, job: JobIdentity) -> None:
        """Follow another job of the same attempt from now on."""
        del self._followed[_key(one.attempt)]
        named = replace(job, name=one.attempt.tag.job_name)
        one.attempt = replace(one.attempt, identity=named, last_report=None)
        self._followed[_key(one.attempt)] = one
        self._identities = None

    def drop(self, one: Followed) -> None:
        """Follow a job no more: its run has ended, or goes on with another one."""
        if self._followed.pop(_key(one.attempt), None) is not None:
            self._count -= 1
            self._identities = None


def _key(attempt: ActiveAttempt) -> ActiveJob:
    return (attempt.tag.run_id, attempt.tag.attempt, attempt.identity.job_id)
