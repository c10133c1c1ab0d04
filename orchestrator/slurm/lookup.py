"""What the routes to a controller and its accounting do alike with what they are told, however they ask.

In: reports, and functions of a route that ask for more. Out: reports and identities as the contract has them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from orchestrator.errors import GatewayUnavailable, OutcomeUnknown, UnknownJob
from orchestrator.records import JobIdentity, JobReport, RunTag
from orchestrator.slurm import parsing


def with_accounted(
    queued: Sequence[JobReport], tag: RunTag, earliest: datetime, ask: Callable[[], Sequence[JobReport]]
) -> tuple[JobReport, ...]:
    """Add to the controller's jobs with a tag those that only accounting, which `ask` asks, knows any more."""
    try:
        records = parsing.tagged(ask(), tag, earliest)
    except GatewayUnavailable:
        # One in hand can be adopted without accounting; absence can't be proven without it.
        if queued:
            return tuple(queued)
        raise
    known = {report.identity.job_id for report in queued}
    purged = [identity for identity in parsing.first_identities(records) if identity.job_id not in known]
    return (*queued, *parsing.latest_of(purged, records).values())


def accounted(
    jobs: Sequence[JobIdentity],
    cluster: str,
    ask: Callable[[datetime, Sequence[int]], Sequence[JobReport]],
    *,
    at_once: int,
) -> Mapping[JobIdentity, JobReport]:
    """Return what accounting says of a cluster's jobs; `ask` takes the earliest submit time and so many ids at most."""
    here = [job for job in jobs if job.cluster == cluster]
    reports: dict[JobIdentity, JobReport] = {}
    for begin in range(0, len(here), at_once):
        some = here[begin : begin + at_once]
        records = ask(min(job.submitted_at for job in some), sorted({job.job_id for job in some}))
        reports |= parsing.latest_of(some, records)
    return reports


def read_back(job_id: int, ask: Callable[[], JobReport | None]) -> JobIdentity:
    """Return the identity of a job that was just accepted: without its submit time the id is none.

    Raises
    ------
    OutcomeUnknown
        When it can't be read; the job exists.
    """
    look = "look for it by its tag"
    try:
        report = ask()
    except GatewayUnavailable as error:
        said = f"SLURM accepted job {job_id}, then couldn't be asked when: {error}"
        raise OutcomeUnknown(said, remedy=look) from error
    if report is None:
        raise OutcomeUnknown(f"SLURM forgot job {job_id} at once", remedy=look)
    return report.identity


def may_be_ended(
    job: JobIdentity,
    report: JobReport | None,
    account: Callable[[Sequence[JobIdentity]], Mapping[JobIdentity, JobReport]],
) -> bool:
    """Whether a job of which the controller tells this is ours and lives; accounting knows those that ended long ago.

    Raises
    ------
    UnknownJob
        When neither knows it.
    """
    if report is not None and parsing.is_same_job(job, report):
        return not report.state.ended
    if not account([job]):
        raise UnknownJob(f"job {job} isn't known to SLURM", remedy="its id may have been used again; see `sacct`")
    return False
