"""Whether a run that comes after others may begin: the rule of chains, pure.

In: how the runs stand that it comes after. Out: `Go`, with the jobs that SLURM has to see succeed first; `Wait`; or
`Never`, with the reason. What counts is the exit code 0 of a run's job, as in SLURM's ``afterok``, so that the rule is
the same whether the service decides, SLURM, or the fence inside the job: a run that ends partial with the kernel's exit
code 4 has no successors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from orchestrator.injob import EXIT_PREDECESSOR
from orchestrator.records import JobIdentity, JobReport, JobState, RunState

NEVER_SATISFIED = "DependencyNeverSatisfied"
"""SLURM's word for a job that comes after one that didn't succeed."""


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """How a run stands that another one comes after."""

    run_id: str
    recipe: str
    state: RunState | None
    """None when there is no such run."""
    reason: str = ""
    exit_code: int | None = None
    """Of its newest attempt's job."""
    job: JobIdentity | None = None
    """Of its newest attempt; None while it has none."""
    intent_at: datetime | None = None
    """When the newest attempt was about to be submitted."""

    @property
    def succeeded(self) -> bool:
        """Whether what comes after it may begin."""
        return self.state is RunState.COMPLETE or (self.state is RunState.PARTIAL and self.exit_code == 0)

    @property
    def failed(self) -> bool:
        """Whether what comes after it will never begin."""
        return self.state is None or (self.state.ended and not self.succeeded)

    def __str__(self) -> str:
        return f"run {self.run_id[:8]} ({self.recipe})"


@dataclass(frozen=True, kw_only=True)
class Go:
    """It may be submitted."""

    after: tuple[JobIdentity, ...] = ()
    """Jobs that have to end with exit code 0 first."""


@dataclass(frozen=True, kw_only=True)
class Wait:
    """It can't be submitted yet."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Never:
    """It won't be submitted any more."""

    reason: str


def decide(earlier: Sequence[Earlier]) -> Go | Wait | Never:
    """Decide whether a run may be submitted, and after which jobs."""
    for one in earlier:
        if one.state is None:
            return Never(reason=f"it comes after {one}, which doesn't exist")
        if one.failed:
            return Never(reason=f"it comes after {one}, which ended as {one.state}: {one.reason}")
    going_on = [one for one in earlier if not one.succeeded]
    without_job = [one for one in going_on if one.job is None or one.state in {RunState.PLANNED, RunState.SUBMITTING}]
    if without_job:
        return Wait(reason=f"it comes after {' and '.join(map(str, without_job))}, which has no job yet")
    return Go(after=tuple(one.job for one in going_on if one.job is not None))


def decide_again(
    earlier: Sequence[Earlier], intent_at: datetime, *, report: JobReport | None = None
) -> Go | Wait | Never:
    """Decide what becomes of a run whose job SLURM gave up because of one that it came after.

    That one's run may be tried again (then this one is, too), or end. `Wait` while that isn't decided.

    Parameters
    ----------
    intent_at
        When the job that was given up was about to be submitted.
    report
        The last one on that job.
    """
    verdict = decide(earlier)
    if isinstance(verdict, Go):
        if not verdict.after and report is not None and report.exit_code == EXIT_PREDECESSOR:
            silent = [one for one in earlier if one.intent_at is None or one.intent_at <= intent_at]
            if len(silent) == len(earlier):  # the same job would find the same
                names = " and ".join(map(str, silent))
                return Never(reason=f"it comes after {names}, and its job found no record there of an end with 0")
        known = (one.intent_at for one in earlier if one.job in verdict.after and one.intent_at is not None)
        if any(at <= intent_at for at in known):
            return Wait(reason="what became of the job that it comes after isn't recorded yet")
    return Go() if isinstance(verdict, Wait) else verdict


def given_up(report: JobReport) -> bool:
    """Whether a job will never run, or left at its fence, because one that it comes after didn't succeed."""
    if report.state is JobState.FAILED:
        return report.exit_code == EXIT_PREDECESSOR
    return report.state in {JobState.PENDING, JobState.CANCELLED} and NEVER_SATISFIED in report.reason
