"""What the controller last said of the queue, kept so that the next question can be a cheaper one.

squeue needs a third less for ten thousand jobs that wait when it needn't print them, and reading what it prints costs
this program twice that. So a long queue is asked for whole now and then, and in between for the jobs that have begun;
of what was printed only records that changed are read. In: squeue's texts. Out: reports; `moved` gives None when only
the whole queue can tell. Pure.

What is told of a job that waits (its reason, that it has left the queue without a trace) is as old as the last whole
answer; that it has begun or ended is always of the last answer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Self

from orchestrator.records import JobIdentity, JobReport, JobState
from orchestrator.slurm import arrays, parsing
from orchestrator.slurm.states import STATES

BEGUN = ",".join(("COMPLETING", *(word for word in STATES if word != "PENDING")))
"""For ``squeue --states``: every base state but PENDING. Flags stand beside one of them."""

_NOT_LISTED = frozenset({JobState.PENDING, JobState.UNKNOWN})
"""Jobs in these needn't be among those that have begun; REVOKED, CONFIGURING and REQUEUED are told as one of them."""


@dataclass(frozen=True, kw_only=True)
class QueueView:
    """The queue as of two answers: a whole one, and a later one about the jobs that had begun by then."""

    cluster: str
    whole_at_s: float
    """When the whole queue was asked for, on the caller's clock."""
    rows: Mapping[str, tuple[str, JobReport | None]]
    """Each record by its first field, and the row that was read from it."""
    reports: Mapping[JobIdentity, JobReport]
    """Of the jobs it was made for, as far as they are in the queue."""
    made_for: Collection[JobIdentity]
    by_id: Mapping[int, list[JobIdentity]]
    """The same jobs; an id may have been used again."""
    _begun: frozenset[int]
    """Ids of those that have to be among the jobs that have begun."""

    @classmethod
    def of_whole(
        cls, text: str, jobs: Collection[JobIdentity], *, cluster: str, at_s: float, before: Self | None = None
    ) -> Self:
        """Make one for `jobs` of squeue's whole answer; what stood in the view before needn't be read again."""
        rows = _rows(text, {} if before is None else before.rows, cluster)
        queue = _one_per_job(row for _, row in rows.values() if row is not None)
        by_id = before.by_id if before is not None and before.made_for is jobs else _by_id(jobs)
        found = ((job, queue[job.job_id]) for job in jobs if job.job_id in queue)
        reports = {job: _under(job, report) for job, report in found if parsing.is_same_job(job, report)}
        begun = frozenset(job.job_id for job, report in reports.items() if report.state not in _NOT_LISTED)
        return cls(
            cluster=cluster, whole_at_s=at_s, rows=rows, reports=reports, made_for=jobs, by_id=by_id, _begun=begun
        )

    def moved(self, text: str) -> Self | None:
        """Return the view after squeue's answer about the jobs that have begun.

        None where the whole queue has to be asked for: a job that had begun isn't among them any more (requeued, or
        forgotten), or tasks of an array have gone on, of which others may still wait.
        """
        told = _rows(text, self.rows, self.cluster)
        news = [row for key, (_, row) in told.items() if row is not None and self.rows.get(key) is not told[key]]
        begun = self._begun | {row.identity.job_id for row in news if row.identity.job_id in self.by_id}
        listed = {row.identity.job_id for _, row in told.values() if row is not None}
        if begun - listed or any(row.tasks and row.identity.job_id in self.by_id for row in news):
            return None
        if not news:
            return self
        reports = dict(self.reports)
        for row in news:
            for job in self.by_id.get(row.identity.job_id, ()):
                reports.pop(job, None)
                if parsing.is_same_job(job, row):
                    reports[job] = _under(job, row)
        return replace(self, rows={**self.rows, **told}, reports=reports, _begun=begun)

    def knows(self, jobs: Collection[JobIdentity]) -> bool:
        """Whether it was made for these jobs, and perhaps others."""
        return jobs is self.made_for or all(
            job in self.reports or job in self.by_id.get(job.job_id, ()) for job in jobs
        )

    def told_of(self, jobs: Collection[JobIdentity]) -> Mapping[JobIdentity, JobReport]:
        """Return the reports of these jobs; those that aren't in the queue are left out."""
        if jobs is self.made_for:
            return self.reports
        return {job: report for job in jobs if (report := self.reports.get(job)) is not None}


def _rows(
    text: str, known: Mapping[str, tuple[str, JobReport | None]], cluster: str
) -> dict[str, tuple[str, JobReport | None]]:
    rows: dict[str, tuple[str, JobReport | None]] = {}
    for record in parsing.records(text):
        key = record.partition(parsing.SEPARATOR)[0]
        before = known.get(key)
        if before is None or before[0] != record:
            before = (record, parsing.queue_row(record, cluster=cluster))
        rows[key] = before
    return rows


def _one_per_job(rows: Iterable[JobReport]) -> dict[int, JobReport]:
    """Return one report per job; only arrays have several rows, so the many others needn't be gathered first."""
    told, tasks = {}, []
    for row in rows:
        if row.tasks:
            tasks.append(row)
        else:
            told[row.identity.job_id] = row
    return told | {array.identity.job_id: array for array in arrays.folded(tasks)}


def _by_id(jobs: Iterable[JobIdentity]) -> Mapping[int, list[JobIdentity]]:
    by_id: dict[int, list[JobIdentity]] = defaultdict(list)
    for job in jobs:
        by_id[job.job_id].append(job)
    return by_id


def _under(job: JobIdentity, report: JobReport) -> JobReport:
    """Return the report under the identity that the job was submitted with, which a requeue doesn't change."""
    return report if report.identity == job else replace(report, identity=job)
