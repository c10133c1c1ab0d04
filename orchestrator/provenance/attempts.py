"""Attempts: the intent before the call, what became of it, and what is heard of the job afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.orm import Session

from orchestrator.errors import NotFound
from orchestrator.provenance.columns import storable
from orchestrator.provenance.database import Database
from orchestrator.provenance.rows import ActiveAttempt, AttemptStage, UnsettledAttempt
from orchestrator.provenance.runs import add_event, event_row, lock_run
from orchestrator.provenance.tables import AttemptRow, JobEventRow, RunRow, TextRow
from orchestrator.records import (
    BatchScript,
    FrameCounts,
    JobIdentity,
    JobReport,
    JobState,
    Json,
    RunState,
    RunTag,
    Scalar,
    SubmittedJob,
    utc_now,
)

_FOLLOWED = (RunState.SUBMITTING, RunState.PENDING, RunState.RUNNING)
_RUN_STATES = {
    JobState.PENDING: RunState.PENDING,
    JobState.RUNNING: RunState.RUNNING,
    JobState.SUSPENDED: RunState.RUNNING,
    JobState.COMPLETING: RunState.RUNNING,
}
"""What a living job says about its run; how a run ends is decided elsewhere."""


class AttemptStore(Database):
    """The store's part that deals with attempts and their jobs."""

    def record_intent(self, tag: RunTag, script: BatchScript, *, gateway: str) -> bool:
        """Commit that this attempt is about to be submitted; the run is SUBMITTING afterwards.

        An attempt that surely made no job is intended again under its own number: should a job of it turn up after all,
        the fence in the run's directory lets only one of the two work.

        Returns
        -------
        bool
            False when the attempt isn't the caller's to make: its intent is there already, or the run isn't PLANNED
            (any more). Of two services that try at the same moment one gets True.
        """
        with self.writing() as session:
            run = lock_run(session, tag.run_id)
            if run.state is not RunState.PLANNED or tag.attempt != run.attempts + 1:
                return False
            _keep_text(session, script.sha256, script.text)
            _keep_text(session, script.template_sha256, script.template_text)
            row = _intent_row(tag, script, gateway)
            earlier = session.get(AttemptRow, (tag.run_id, tag.attempt))
            if earlier is not None:
                row.intent_at = earlier.intent_at
            session.merge(row)
            run.state, run.attempts, run.reason = RunState.SUBMITTING, tag.attempt, ""
        return True

    def record_submitted(self, tag: RunTag, job: SubmittedJob) -> bool:
        """Keep the identity of the job that was made; the run is PENDING afterwards.

        Returns
        -------
        bool
            False when the run has ended meanwhile (somebody cancelled it): the identity is kept, the job should go.
        """
        with self.writing() as session:
            run, row = _locked(session, tag)
            if identity_of(row) not in {None, job.identity}:  # what was said of another job isn't true of this one
                _forget_reports(row)
            row.stage, row.failure = AttemptStage.SUBMITTED, ""
            row.gateway, row.adopted = job.gateway, job.adopted
            row.cluster, row.job_id = job.identity.cluster, job.identity.job_id
            row.submitted_at = job.identity.submitted_at
            if run.state is RunState.SUBMITTING:
                run.state, run.reason = RunState.PENDING, ""
            return not run.state.ended

    def record_submit_failed(self, tag: RunTag, reason: str, *, refused: bool) -> None:
        """Say that no job was made: the run is REFUSED, or PLANNED again under the same number.

        Nothing happens when the attempt's outcome is known already.
        """
        with self.writing() as session:
            run, row = _locked(session, tag)
            if row.stage is not AttemptStage.INTENDED:
                return
            if row.failure != reason:
                add_event(session, tag, "not-submitted", {"reason": reason, "refused": refused}, utc_now())
            row.stage, row.failure = (AttemptStage.REFUSED if refused else AttemptStage.FAILED), reason
            if run.state is not RunState.SUBMITTING:
                return
            if not refused:
                run.attempts = tag.attempt - 1
            run.reason = reason
            run.state = RunState.REFUSED if refused else RunState.PLANNED
            run.ended_at = utc_now() if refused else None

    def record_unanswered(self, tag: RunTag, reason: str) -> None:
        """Keep what was heard instead of an answer to a submission; its outcome stays unknown."""
        with self.writing() as session:
            run, _row = _locked(session, tag)
            if run.state is RunState.SUBMITTING:
                run.reason = reason

    def unsettled_attempts(self) -> Sequence[UnsettledAttempt]:
        """Return attempts whose intent is committed and whose outcome isn't known, oldest first."""
        wanted = (
            select(AttemptRow, RunRow)
            .join(RunRow, AttemptRow.run_id == RunRow.run_id)
            .where(AttemptRow.stage == AttemptStage.INTENDED)
            .order_by(AttemptRow.intent_at)
        )
        with self.reading() as session:
            return [
                UnsettledAttempt(
                    tag=_tag(row),
                    gateway=row.gateway,
                    intent_at=row.intent_at,
                    latest_intent_at=row.latest_intent_at,
                    run_directory=Path(run.run_directory),
                    run_state=run.state,
                    reason=run.reason if run.state is RunState.SUBMITTING else "",
                )
                for row, run in session.execute(wanted)
            ]

    def active_attempts(self) -> Sequence[ActiveAttempt]:
        """Return the jobs to follow: the newest attempt of every run that has a job and hasn't ended, oldest first."""
        wanted = (
            select(AttemptRow, RunRow)
            .join(RunRow, (AttemptRow.run_id == RunRow.run_id) & (AttemptRow.number == RunRow.attempts))
            .where(RunRow.state.in_(_FOLLOWED), AttemptRow.stage == AttemptStage.SUBMITTED)
            .order_by(RunRow.created_at)
        )
        with self.reading() as session:
            return [_active(row, run) for row, run in session.execute(wanted)]

    def ended_attempts(self, since: datetime) -> Sequence[ActiveAttempt]:
        """Return the newest attempts of runs that had a job and ended at or after `since`, oldest first."""
        wanted = (
            select(AttemptRow, RunRow)
            .join(RunRow, (AttemptRow.run_id == RunRow.run_id) & (AttemptRow.number == RunRow.attempts))
            .where(RunRow.ended_at >= since, AttemptRow.stage == AttemptStage.SUBMITTED)
            .order_by(RunRow.ended_at)
        )
        with self.reading() as session:
            return [_active(row, run) for row, run in session.execute(wanted)]

    def record_report(self, tag: RunTag, report: JobReport) -> bool:
        """Keep what a source said about a job, if it is news.

        The attempt's columns take the newest words; nodes, times, exit code and usage that an earlier report of the
        same start gave stay when this one is silent about them. Each change is an event of kind ``state``.

        Returns
        -------
        bool
            Whether it was news.
        """
        with self.writing() as session:
            run, row = _locked(session, tag)
            before = _told(row)
            _take_report(row, report)
            if _told(row) == before:
                return False
            add_event(session, tag, "state", _detail(report), utc_now())
            if run.attempts == tag.attempt and run.state in _FOLLOWED and report.state in _RUN_STATES:
                run.state = _RUN_STATES[report.state]
            return True

    def record_event(self, tag: RunTag, kind: str, detail: Json, at: datetime, *, sequence: int | None = None) -> bool:
        """Keep something that happened, such as ``begin`` and ``end`` from inside the job, ``adopted``, ``cancelled``.

        Parameters
        ----------
        tag
            Attempt 0 stands for the run as a whole.
        sequence
            Number of the event among those of its kind; the same number again is a no-op. None takes the next number,
            so that each call is an event of its own.

        Returns
        -------
        bool
            Whether it was new.
        """
        with self.writing() as session:
            lock_run(session, tag.run_id)
            if sequence is None:
                add_event(session, tag, kind, detail, at)
                return True
            there = select(JobEventRow.id).where(
                JobEventRow.run_id == tag.run_id,
                JobEventRow.attempt == tag.attempt,
                JobEventRow.kind == kind,
                JobEventRow.sequence == sequence,
            )
            if session.scalar(there) is not None:
                return False
            session.add(event_row(tag, kind, sequence, detail, at))
        return True

    def record_software(self, tag: RunTag, software: Mapping[str, Json]) -> None:
        """Keep which programs, versions and modules this attempt ran with; a later call replaces what it names anew."""
        with self.writing() as session:
            _run, row = _locked(session, tag)
            row.software = {**(row.software if isinstance(row.software, dict) else {}), **software}


def identity_of(row: AttemptRow | None) -> JobIdentity | None:
    """Return the identity of an attempt's job, or None where there is none."""
    if row is None or row.cluster is None or row.job_id is None or row.submitted_at is None:
        return None
    return JobIdentity(cluster=row.cluster, job_id=row.job_id, submitted_at=row.submitted_at)


def last_report(row: AttemptRow) -> JobReport | None:
    """Return the best that is known about an attempt's job, or None before the first report."""
    identity = identity_of(row)
    if identity is None or row.job_state is None or row.evidence is None:
        return None
    return JobReport(
        identity=identity,
        name=_tag(row).job_name,
        state=row.job_state,
        words=row.words,
        evidence=row.evidence,
        reason=row.reason,
        exit_code=row.exit_code,
        signal=row.signal,
        restarts=row.restarts,
        nodes=row.nodes,
        started_at=row.started_at,
        ended_at=row.ended_at,
        comment=_tag(row).comment,
        usage=_scalars(row.usage),
    )


def counts_of(run: RunRow) -> FrameCounts | None:
    """Return a run's frame counts, or None before the kernel said anything."""
    if run.frames_written is None or run.frames_processed is None or run.frames_failed is None:
        return None
    return FrameCounts(
        expected=run.frames_expected,
        written=run.frames_written,
        processed=run.frames_processed,
        failed=run.frames_failed,
        lag_median_s=run.lag_median_s,
        lag_max_s=run.lag_max_s,
        finished=run.frames_finished,
        ended_because=run.ended_because,
    )


def _locked(session: Session, tag: RunTag) -> tuple[RunRow, AttemptRow]:
    run = lock_run(session, tag.run_id)
    row = session.get(AttemptRow, (tag.run_id, tag.attempt))
    if row is None:
        raise NotFound(f"run {tag.run_id} has no attempt {tag.attempt}", remedy=f"see `orchestrator show {tag.run_id}`")
    return run, row


def _tag(row: AttemptRow) -> RunTag:
    return RunTag(run_id=row.run_id, attempt=row.number)


def _keep_text(session: Session, sha256: str, content: str) -> None:
    """Store a text unless it is there; others may do so at the same moment."""
    values = {"sha256": sha256, "content": storable(content)}
    dialect = session.get_bind().dialect.name
    if dialect == "sqlite":
        session.execute(sqlite.insert(TextRow).values(values).on_conflict_do_nothing())
    elif dialect == "postgresql":
        session.execute(postgresql.insert(TextRow).values(values).on_conflict_do_nothing())
    else:
        insert = mysql.insert(TextRow).values(values)
        session.execute(insert.on_duplicate_key_update(sha256=insert.inserted.sha256))


def _intent_row(tag: RunTag, script: BatchScript, gateway: str) -> AttemptRow:
    now = utc_now()
    return AttemptRow(
        run_id=tag.run_id,
        number=tag.attempt,
        gateway=gateway,
        stage=AttemptStage.INTENDED,
        script_sha256=script.sha256,
        template_name=script.template_name,
        template_sha256=script.template_sha256,
        intent_at=now,
        latest_intent_at=now,
        adopted=False,
        words="",
        reason="",
        restarts=0,
        nodes="",
        usage={},
    )


def _active(row: AttemptRow, run: RunRow) -> ActiveAttempt:
    identity = identity_of(row)
    if identity is None:
        raise ValueError(f"attempt {row.run_id}.{row.number} was submitted, but has no job")
    return ActiveAttempt(
        tag=_tag(row),
        identity=identity,
        gateway=row.gateway,
        run_directory=Path(run.run_directory),
        run_state=run.state,
        collection_uid=run.collection_uid,
        frames_expected=run.frames_expected,
        counts=counts_of(run),
        last_report=last_report(row),
        intent_at=row.intent_at,
    )


def _take_report(row: AttemptRow, report: JobReport) -> None:
    row.job_state, row.words, row.evidence, row.reason = report.state, report.words, report.evidence, report.reason
    restarted = report.restarts > row.restarts  # what the start before told isn't true of this one
    if restarted or report.exit_code is not None:
        row.exit_code, row.signal = report.exit_code, report.signal
    if restarted or report.nodes:
        row.nodes = report.nodes
    if restarted or report.started_at is not None:
        row.started_at = report.started_at
    if restarted or report.ended_at is not None:
        row.ended_at = report.ended_at
    if restarted or report.usage:
        row.usage = dict(report.usage)
    row.restarts = max(row.restarts, report.restarts)


def _forget_reports(row: AttemptRow) -> None:
    row.job_state, row.words, row.evidence, row.reason = None, "", None, ""
    row.exit_code = row.signal = row.started_at = row.ended_at = None
    row.restarts, row.nodes, row.usage = 0, "", {}


def _told(row: AttemptRow) -> tuple[object, ...]:
    times = (row.started_at, row.ended_at)
    return (row.job_state, row.words, row.reason, row.exit_code, row.signal, row.restarts, row.nodes, *times, row.usage)


def _detail(report: JobReport) -> Json:
    """Return what an event keeps of a report; silence is left out."""
    times = {"started_at": report.started_at, "ended_at": report.ended_at}
    told: dict[str, Json] = {
        "state": str(report.state),
        "words": report.words,
        "evidence": str(report.evidence),
        "reason": report.reason,
        "exit_code": report.exit_code,
        "signal": report.signal,
        "restarts": report.restarts,
        "nodes": report.nodes,
        "usage": dict(report.usage),
        **{name: time.isoformat() for name, time in times.items() if time is not None},
    }
    return {name: value for name, value in told.items() if value not in (None, "", {})}


def _scalars(value: Json) -> Mapping[str, Scalar]:
    pairs = value.items() if isinstance(value, dict) else ()
    return {name: item for name, item in pairs if isinstance(item, bool | int | float | str)}
