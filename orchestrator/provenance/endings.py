"""How attempts end, and what follows: the run's end, or another attempt, decided in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from orchestrator.provenance.attempts import FOLLOWED, WAS_SUBMITTED, forget_reports, identity_of, locked
from orchestrator.provenance.database import Database
from orchestrator.provenance.documents import encoded, plan_from_json, retry_from_json
from orchestrator.provenance.rows import MADE, AttemptEnd, AttemptStage
from orchestrator.provenance.runs import add_event
from orchestrator.provenance.tables import AttemptRow, InputRow, JobEventRow, OutputRow, RunRow, UsedFileRow
from orchestrator.records import JobIdentity, Retry, RunState, RunTag, utc_now

MOST_VANISHED = 3
"""How often an attempt is submitted again because its job was gone without having begun: a cluster that forgets every
job isn't asked for ever."""


class EndingStore(Database):
    """The store's part that ends attempts."""

    def end_attempt(
        self, tag: RunTag, job: JobIdentity, end: AttemptEnd, *, retry: Retry | None = None
    ) -> RunState | None:
        """End an attempt, once; its run ends as it did, or is PLANNED again for the next one.

        Nothing but an event of kind ``late-verdict`` comes of it when the run has ended or gone on meanwhile: of two
        services that follow one job, one decides. Nothing at all comes of it when the attempt has another job by now. A
        run that somebody asked to cancel isn't tried again. What the run says of frames, inputs and outputs is
        forgotten when another attempt is to follow: it was this attempt's, whose own directory keeps it.

        Returns
        -------
        RunState or None
            The run's state afterwards; None when the attempt wasn't its present one, or `job` not the attempt's.
        """
        with self.writing() as session:
            run, row = locked(session, tag)
            if identity_of(row) != job:
                return None
            if run.attempts != tag.attempt or run.state not in FOLLOWED:
                _keep_late_verdict(session, run, tag, end)
                return None
            row.cause, row.outcome, row.outcome_reason, row.concluded_at = end.cause, end.state, end.reason, utc_now()
            if retry is not None and not _cancel_wanted(session, tag.run_id):
                _plan_again(session, run, tag, end, retry)
            else:
                run.state, run.ended_at = end.state, end.ended_at
                run.reason = end.reason if retry is None else f"{end.reason}; not tried again, because it was cancelled"
            state: RunState = run.state
            return state

    def plan_again_unbegun(self, tag: RunTag, job: JobIdentity, reason: str) -> RunState | None:
        """Plan an attempt again, under its own number, whose job is gone without having claimed it.

        Should that job turn up after all, the fence lets only one of the two work.

        Returns
        -------
        RunState or None
            PLANNED, or the run's state as it was where it happened too often before, somebody asked to cancel, or
            somebody had made it with sbatch: that is theirs to submit. None when the attempt has another job by now, or
            its run has gone on.
        """
        with self.writing() as session:
            run, row = locked(session, tag)
            if run.attempts != tag.attempt or run.state not in FOLLOWED or identity_of(row) != job:
                return None
            of_this = (JobEventRow.run_id == tag.run_id, JobEventRow.attempt == tag.attempt)
            before = session.scalar(select(func.count()).where(*of_this, JobEventRow.kind == "vanished"))
            given_up = (before or 0) >= MOST_VANISHED or _made_by_hand(session, tag.run_id)
            if not given_up and not _cancel_wanted(session, tag.run_id):
                add_event(session, tag, "vanished", {"reason": reason}, utc_now())
                forget_reports(row)
                row.cluster = row.job_id = row.submitted_at = None
                row.stage, row.failure = AttemptStage.FAILED, reason
                run.state, run.attempts, run.reason = RunState.PLANNED, tag.attempt - 1, reason
            state: RunState = run.state
            return state

    def unwanted_jobs(self, since: datetime) -> Sequence[JobIdentity]:
        """Return jobs that were accepted while their runs were being cancelled, at or after `since`.

        Nothing is known of them afterwards: whoever had them ended may have died before.
        """
        wanted = (
            select(AttemptRow)
            .join(RunRow, AttemptRow.run_id == RunRow.run_id)
            .where(func.coalesce(RunRow.state, RunState.UNKNOWN) == RunState.CANCELLED, RunRow.ended_at >= since)
            .where(WAS_SUBMITTED, AttemptRow.job_state.is_(None))
        )
        with self.reading() as session:
            return [job for row in session.scalars(wanted) if (job := identity_of(row)) is not None]


def _keep_late_verdict(session: Session, run: RunRow, tag: RunTag, end: AttemptEnd) -> None:
    if run.state.ended and run.attempts == tag.attempt and run.state is not end.state:
        add_event(session, tag, "late-verdict", {"state": str(end.state), "reason": end.reason}, end.ended_at)


def _cancel_wanted(session: Session, run_id: str) -> bool:
    return _has_event(session, run_id, "cancel")


def _made_by_hand(session: Session, run_id: str) -> bool:
    return _has_event(session, run_id, MADE)


def _has_event(session: Session, run_id: str, kind: str) -> bool:
    wanted = select(JobEventRow.id).where(JobEventRow.run_id == run_id, JobEventRow.kind == kind).limit(1)
    return session.scalar(wanted) is not None


def _plan_again(session: Session, run: RunRow, tag: RunTag, end: AttemptEnd, retry: Retry) -> None:
    run.state, run.retry, run.not_before = RunState.PLANNED, encoded(retry), retry.not_before
    run.reason = "; ".join((f"{retry.because}, attempt {tag.attempt + 1} follows", *retry.changes))
    run.frames_written = run.frames_processed = run.frames_failed = None
    run.lag_median_s = run.lag_max_s = run.progress_at = None
    run.frames_finished, run.ended_because = False, ""
    for table in (InputRow, UsedFileRow, OutputRow):
        session.execute(delete(table).where(table.run_id == tag.run_id))
    add_event(session, tag, "retry", {"because": retry.because, "changes": list(retry.changes)}, end.ended_at)


def no_longer_avoids_nodes(run: RunRow) -> bool:
    """Let a retry have the nodes that it was to avoid; return whether there were any.

    Where no others are left SLURM refuses such a job. What it refuses for another reason it refuses again.
    """
    if run.retry is None:
        return False
    retry, planned = retry_from_json(run.retry), plan_from_json(run.plan).resources.exclude
    if retry.resources.exclude == planned:
        return False
    changes = tuple(change for change in retry.changes if not change.startswith(Retry.AVOIDS))
    run.retry = encoded(replace(retry, resources=replace(retry.resources, exclude=planned), changes=changes))
    return True


def end_refused(session: Session, run: RunRow, reason: str) -> None:
    """End a run whose newest attempt SLURM has refused: as the one before did, where there was one."""
    former = session.get(AttemptRow, (run.run_id, run.attempts - 1))
    run.state, run.reason, run.ended_at = RunState.REFUSED, reason, utc_now()
    if former is not None and former.outcome is not None:
        run.state = former.outcome
        run.reason = f"{former.outcome_reason}; attempt {run.attempts} was refused: {reason}"
