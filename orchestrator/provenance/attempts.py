"""Attempts: what is heard of their jobs; `intents` has how they came to them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TypeAlias

from sqlalchemy import func, select, union
from sqlalchemy.orm import Session, defer

from orchestrator.errors import NotFound
from orchestrator.provenance.database import Database, batched
from orchestrator.provenance.lineage import keep_image
from orchestrator.provenance.rows import ActiveAttempt, AttemptStage
from orchestrator.provenance.runs import add_event, event_row, lock_run
from orchestrator.provenance.tables import AttemptRow, JobEventRow, RunRow
from orchestrator.provenance.texts import keep_texts
from orchestrator.records import (
    FrameCounts,
    JobIdentity,
    JobReport,
    JobState,
    Json,
    RunState,
    RunTag,
    Scalar,
    sha256_of,
    utc_now,
)

FOLLOWED = (RunState.SUBMITTING, RunState.PENDING, RunState.RUNNING)
"""States of a run whose newest attempt hasn't ended."""

ActiveJob: TypeAlias = tuple[str, int, int | None]
"""Run, number of the attempt, job id."""

_NEWEST = (AttemptRow.run_id == RunRow.run_id) & (AttemptRow.number == RunRow.attempts)
# Nearly all attempts were submitted, few are asked for. SQLite can't know, and would begin with all attempts, by the
# index of their stages: of an expression there is none.
WAS_SUBMITTED = func.coalesce(AttemptRow.stage, AttemptStage.FAILED) == AttemptStage.SUBMITTED
_HAS_A_LIVING_JOB = (RunRow.state.in_(FOLLOWED), WAS_SUBMITTED)

_REPORTS_AT_ONCE = 100
"""Most reports of one transaction; a database of many services locks that many runs at a time."""

_RUN_STATES = {
    JobState.PENDING: RunState.PENDING,
    JobState.RUNNING: RunState.RUNNING,
    JobState.SUSPENDED: RunState.RUNNING,
    JobState.COMPLETING: RunState.RUNNING,
}
"""What a living job says about its run; how a run ends is decided elsewhere."""


class AttemptStore(Database):
    """The store's part that deals with attempts and their jobs."""

    def active_attempts(self, run_ids: Collection[str] | None = None) -> Sequence[ActiveAttempt]:
        """Return the jobs to follow: the newest attempt of every run that has a job and hasn't ended, oldest first.

        Parameters
        ----------
        run_ids
            Only of these runs; of all when left out.
        """
        wanted = select(AttemptRow, RunRow).join(RunRow, _NEWEST).where(*_HAS_A_LIVING_JOB).order_by(RunRow.created_at)
        some = [wanted] if run_ids is None else [wanted.where(RunRow.run_id.in_(ids)) for ids in batched(run_ids)]
        with self.reading() as session:
            return [_active(row, run) for question in some for row, run in session.execute(question)]

    def active_jobs(self) -> Set[ActiveJob]:
        """Return which jobs are to be followed: no more than says whether one of `active_attempts` is another now."""
        wanted = select(AttemptRow.run_id, AttemptRow.number, AttemptRow.job_id).join(RunRow, _NEWEST)
        with self.reading() as session:
            return {(run_id, number, job) for run_id, number, job in session.execute(wanted.where(*_HAS_A_LIVING_JOB))}

    def count_active(self) -> int:
        """Return how many runs have a job that hasn't ended; a look into an index, for who asks every second."""
        living = (RunState.PENDING, RunState.RUNNING)
        with self.reading() as session:
            return session.scalar(select(func.count()).select_from(RunRow).where(RunRow.state.in_(living))) or 0

    def count_active_reruns(self) -> int:
        """Return how many runs that were made again through a service have a job, or are about to."""
        wanted = select(func.count()).select_from(RunRow).join(AttemptRow, _NEWEST)
        ours = (RunRow.state.in_(FOLLOWED), RunRow.parent_run_id.is_not(None), AttemptRow.holder.is_not(None))
        with self.reading() as session:
            return session.scalar(wanted.where(*ours)) or 0

    def ended_attempts(self, since: datetime) -> Sequence[ActiveAttempt]:
        """Return the attempts that had a job and ended at or after `since`, oldest run first."""
        # Each in the index of its own: of the two together SQLite would look at every attempt.
        newest = select(AttemptRow.run_id, AttemptRow.number).join(RunRow, _NEWEST).where(RunRow.ended_at >= since)
        ended = select(AttemptRow.run_id, AttemptRow.number).where(AttemptRow.concluded_at >= since)
        either = union(newest, ended).subquery()
        wanted = (
            select(AttemptRow, RunRow)
            .join(either, (AttemptRow.run_id == either.c.run_id) & (AttemptRow.number == either.c.number))
            .join(RunRow, AttemptRow.run_id == RunRow.run_id)
            .where(WAS_SUBMITTED)
            .order_by(RunRow.ended_at, RunRow.run_id, AttemptRow.number)
        )
        with self.reading() as session:
            return [_active(row, run) for row, run in session.execute(wanted)]

    def record_report(self, tag: RunTag, report: JobReport) -> bool:
        """Keep what a source said about a job, if it is news.

        The attempt's columns take the newest words; nodes, times, exit code and usage that an earlier report of the
        same start gave stay when this one is silent about them. Each change is an event of kind ``state``. What is said
        of a job that the attempt hasn't got (any more) isn't kept.

        Returns
        -------
        bool
            Whether it was news.
        """
        return tag in self.record_reports({tag: report})

    def record_reports(self, reports: Mapping[RunTag, JobReport]) -> Set[RunTag]:
        """Keep what a source said about several jobs, as `record_report` does about one.

        There are a few transactions of many reports each: the way to the database is free for others in between.

        Returns
        -------
        Set[RunTag]
            Those about which it was news.
        """
        news: set[RunTag] = set()
        for lot in batched(sorted(reports, key=_in_order), _REPORTS_AT_ONCE):
            with self.writing() as session:
                rows = _locked_attempts(session, lot)
                numbers = _next_numbers(session, lot)
                news |= {tag for tag in lot if _keep_report(session, *rows[tag], reports[tag], numbers.get(tag, 0))}
        return news

    def record_hindrance(self, tag: RunTag, reason: str) -> None:
        """Say in the reason of a run that hasn't ended what keeps its job from going on; nothing takes it back.

        Each one is an event of kind ``hindrance``.
        """
        with self.writing() as session:
            run, _row = locked(session, tag)
            if run.attempts != tag.attempt or run.state not in FOLLOWED or run.reason == reason:
                return
            run.reason = reason
            if reason:
                add_event(session, tag, "hindrance", {"reason": reason}, utc_now())

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

    def record_packages(self, tag: RunTag, packages: str) -> None:
        """Keep which packages were installed where an attempt's job ran; the text of many runs is stored once."""
        with self.writing() as session:
            _run, row = locked(session, tag)
            keep_texts(session, [packages])
            row.packages_sha256 = sha256_of(packages)

    def record_software(self, tag: RunTag, software: Mapping[str, Json]) -> None:
        """Keep which programs, versions and modules this attempt ran with; a later call replaces what it names anew."""
        with self.writing() as session:
            _run, row = locked(session, tag)
            row.software = {**(row.software if isinstance(row.software, dict) else {}), **software}
            keep_image(session, tag.run_id, dict(software))


def identity_of(row: AttemptRow | None) -> JobIdentity | None:
    """Return the identity of an attempt's job, or None where there is none."""
    if row is None or row.cluster is None or row.job_id is None or row.submitted_at is None:
        return None
    name = tag_of(row).job_name
    return JobIdentity(cluster=row.cluster, job_id=row.job_id, submitted_at=row.submitted_at, name=name)


def last_report(row: AttemptRow) -> JobReport | None:
    """Return the best that is known about an attempt's job, or None before the first report."""
    identity = identity_of(row)
    if identity is None or row.job_state is None or row.evidence is None:
        return None
    return JobReport(
        identity=identity,
        name=tag_of(row).job_name,
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
        comment=tag_of(row).comment,
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


def locked(session: Session, tag: RunTag) -> tuple[RunRow, AttemptRow]:
    """Return an attempt's row and its run's, which is locked until the transaction ends.

    Raises
    ------
    NotFound
        When there is no such run or attempt.
    """
    run = lock_run(session, tag.run_id)
    row = session.get(AttemptRow, (tag.run_id, tag.attempt))
    if row is None:
        raise NotFound(f"run {tag.run_id} has no attempt {tag.attempt}", remedy=f"see `orchestrator show {tag.run_id}`")
    return run, row


def tag_of(row: AttemptRow) -> RunTag:
    """Return the tag that an attempt's job carries."""
    return RunTag(run_id=row.run_id, attempt=row.number)


def _active(row: AttemptRow, run: RunRow) -> ActiveAttempt:
    identity = identity_of(row)
    if identity is None:
        raise ValueError(f"attempt {row.run_id}.{row.number} was submitted, but has no job")
    return ActiveAttempt(
        tag=tag_of(row),
        identity=identity,
        gateway=row.gateway,
        run_directory=Path(run.run_directory),
        run_state=run.state,
        collection_uid=run.collection_uid,
        frames_expected=run.frames_expected,
        counts=counts_of(run),
        last_report=last_report(row),
        hindrance=run.reason,
        intent_at=row.intent_at,
    )


def heard(before: JobReport | None, report: JobReport) -> JobReport:
    """Return what is known of a job when `report` has come after what was known before.

    Nodes, times, exit code and usage that an earlier report of the same start gave stay when this one is silent about
    them; what the start before told isn't true of this one.
    """
    if before is None or report.restarts > before.restarts:
        return report
    silent = report.exit_code is None
    return replace(
        report,
        exit_code=before.exit_code if silent else report.exit_code,
        signal=before.signal if silent else report.signal,
        restarts=before.restarts,
        nodes=report.nodes or before.nodes,
        started_at=report.started_at or before.started_at,
        ended_at=report.ended_at or before.ended_at,
        usage=report.usage or before.usage,
    )


def _in_order(tag: RunTag) -> tuple[str, int]:
    return tag.run_id, tag.attempt


def _locked_attempts(session: Session, tags: Sequence[RunTag]) -> Mapping[RunTag, tuple[RunRow, AttemptRow]]:
    """Return the rows of attempts and of their runs, which are locked, as `locked` does for one."""
    ids = [tag.run_id for tag in tags]
    # In the order of their ids: who shares the database never waits for us in a circle.
    wanted = select(RunRow).where(RunRow.run_id.in_(ids)).order_by(RunRow.run_id).with_for_update()
    # Plans are large, and nobody here reads them.
    runs = {run.run_id: run for run in session.scalars(wanted.options(defer(RunRow.plan)))}
    attempts = {tag_of(row): row for row in session.scalars(select(AttemptRow).where(AttemptRow.run_id.in_(ids)))}
    return {
        tag: (runs[tag.run_id], attempts[tag]) if tag.run_id in runs and tag in attempts else locked(session, tag)
        for tag in tags
    }


def _next_numbers(session: Session, tags: Sequence[RunTag]) -> Mapping[RunTag, int]:
    """Return the next free number of the attempts' events of kind ``state``; those that have none are left out."""
    event = JobEventRow
    last = (
        select(event.run_id, event.attempt, func.max(event.sequence))
        .where(event.run_id.in_([tag.run_id for tag in tags]), event.kind == "state")
        .group_by(event.run_id, event.attempt)
    )
    return {RunTag(run_id=run_id, attempt=attempt): number + 1 for run_id, attempt, number in session.execute(last)}


def _keep_report(session: Session, run: RunRow, row: AttemptRow, report: JobReport, number: int) -> bool:
    if identity_of(row) != report.identity:
        return False
    before = _told(row)
    take_report(row, heard(last_report(row), report))
    if _told(row) == before:
        return False
    session.add(event_row(tag_of(row), "state", number, _detail(report), utc_now()))
    if run.attempts == row.number and run.state in FOLLOWED and report.state in _RUN_STATES:
        run.state = _RUN_STATES[report.state]
    return True


def take_report(row: AttemptRow, known: JobReport) -> None:
    """Keep what is known about an attempt's job."""
    row.job_state, row.words, row.evidence, row.reason = known.state, known.words, known.evidence, known.reason
    row.exit_code, row.signal, row.restarts, row.nodes = known.exit_code, known.signal, known.restarts, known.nodes
    row.started_at, row.ended_at, row.usage = known.started_at, known.ended_at, dict(known.usage)


def forget_reports(row: AttemptRow) -> None:
    """Take back what was said of an attempt's job."""
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
