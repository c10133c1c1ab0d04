"""Intents: what is about to be submitted, committed before the call, and what became of it.

Both are recorded for many attempts in one transaction, which costs the database little more than one. Rows are locked
in the order of their run ids, so that services that share the work never wait for each other in a circle.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import BindParameter, Row, Update, bindparam, exists, insert, select, update
from sqlalchemy.orm import Session, defer

from orchestrator.errors import NotFound
from orchestrator.provenance.attempts import forget_reports, identity_of, tag_of
from orchestrator.provenance.database import Database
from orchestrator.provenance.endings import end_refused, no_longer_avoids_nodes
from orchestrator.provenance.leases import database_now, living_services
from orchestrator.provenance.rows import (
    AttemptStage,
    Intent,
    NotSubmitted,
    Outcome,
    Submitted,
    Unanswered,
    UnsettledAttempt,
)
from orchestrator.provenance.runs import add_event
from orchestrator.provenance.tables import AttemptRow, RunRow
from orchestrator.provenance.texts import keep_texts
from orchestrator.records import BatchScript, Json, RunState, RunTag, SubmittedJob, utc_now

_LEFT_TO_ITS_HOLDER = timedelta(minutes=10)
"""How long a living service is trusted to find out about its own submissions."""

_IDS: BindParameter[Sequence[str]] = bindparam("ids", expanding=True)
_INTENDED_BEFORE = exists().where(AttemptRow.run_id == RunRow.run_id, AttemptRow.number == RunRow.attempts + 1)
_RUNS_TO_SUBMIT = (
    select(RunRow.run_id, RunRow.state, RunRow.attempts, RunRow.retry, _INTENDED_BEFORE.label("intended_before"))
    .where(RunRow.run_id.in_(_IDS))
    .order_by(RunRow.run_id)
    .with_for_update()
)
_NEW_ATTEMPTS = insert(AttemptRow)
_NOW_SUBMITTING = (
    update(RunRow)
    .where(RunRow.run_id == bindparam("key"))
    .values(state=RunState.SUBMITTING, attempts=bindparam("attempt_made"), reason="")
)


class IntentStore(Database):
    """The store's part that deals with submissions."""

    def record_intent(self, tag: RunTag, script: BatchScript, *, gateway: str) -> bool:
        """Commit that one attempt is about to be submitted; see `record_intents`."""
        return tag in self.record_intents([Intent(tag=tag, script=script)], gateway=gateway, at=utc_now())

    def record_intents(self, intents: Collection[Intent], *, gateway: str, at: datetime) -> Set[RunTag]:
        """Commit that attempts are about to be submitted; their runs are SUBMITTING afterwards.

        An attempt that surely made no job is intended again under its own number: should a job of it turn up after all,
        the fence in the run's directory lets only one of the two work.

        Returns
        -------
        Set[RunTag]
            Those that are the caller's to make. Left out is what has its intent already, or a run that isn't PLANNED
            (any more). Of two services that try at the same moment one gets it.
        """
        # Columns instead of objects: this stands in every collection's way to its job.
        with self.writing() as session:
            connection, ids = session.connection(), sorted({intent.tag.run_id for intent in intents})
            runs = {run.run_id: run for run in connection.execute(_RUNS_TO_SUBMIT, {"ids": ids})}
            _all_there(ids, runs)
            ours = [intent for intent in intents if _may_be_made(runs[intent.tag.run_id], intent.tag)]
            if not ours:
                return set()
            keep_texts(session, _texts_of(ours))
            rows = {
                intent.tag: _intent_row(intent, gateway, at, self.holder, runs[intent.tag.run_id].retry)
                for intent in ours
            }
            for tag in [tag for tag in rows if runs[tag.run_id].intended_before]:
                connection.execute(_intended_again(rows.pop(tag)))
            if rows:
                connection.execute(_NEW_ATTEMPTS, list(rows.values()))
            connection.execute(
                _NOW_SUBMITTING, [{"key": intent.tag.run_id, "attempt_made": intent.tag.attempt} for intent in ours]
            )
        return {intent.tag for intent in ours}

    def record_submitted(self, tag: RunTag, job: SubmittedJob) -> bool:
        """Keep the identity of the job that was made; the run is PENDING afterwards.

        Returns
        -------
        bool
            False when the run has ended meanwhile (somebody cancelled it): the identity is kept, the job should go.
        """
        return tag not in self.record_outcomes([Submitted(tag=tag, job=job)])

    def record_outcomes(self, outcomes: Sequence[Outcome]) -> Set[RunTag]:
        """Record what became of intents.

        A refused run that had earlier attempts ends as the last of them did. Where this one was to avoid their nodes,
        it is tried with them before: maybe there are no others. Nothing happens to one whose outcome is known already.

        Returns
        -------
        Set[RunTag]
            Those that have a job although their run has ended meanwhile (somebody cancelled it): the job's identity is
            kept unless the attempt ended with another one, the job should go.
        """
        with self.writing() as session:
            runs = _locked_runs(session, {outcome.tag.run_id for outcome in outcomes})
            rows = _attempts_of(session, runs.keys())
            for outcome in outcomes:
                run, row = runs[outcome.tag.run_id], rows.get(outcome.tag)
                if row is None:
                    raise NotFound(
                        f"run {run.run_id} has no attempt {outcome.tag.attempt}",
                        remedy=f"see `orchestrator show {run.run_id}`",
                    )
                _take(session, run, row, outcome)
            jobs = [outcome.tag for outcome in outcomes if isinstance(outcome, Submitted)]
            return {tag for tag in jobs if _is_over(runs[tag.run_id], rows[tag])}

    def unsettled_attempts(self) -> Sequence[UnsettledAttempt]:
        """Return attempts whose intent is committed and whose outcome isn't known, oldest first.

        Left out are those that another living service has begun a short while ago: it knows more about them.
        """
        wanted = (
            select(AttemptRow, RunRow)
            .join(RunRow, AttemptRow.run_id == RunRow.run_id)
            .where(AttemptRow.stage == AttemptStage.INTENDED)
            .order_by(AttemptRow.intent_at)
        )
        with self.reading() as session:
            return [
                UnsettledAttempt(
                    tag=tag_of(row),
                    gateway=row.gateway,
                    intent_at=row.intent_at,
                    latest_intent_at=row.latest_intent_at,
                    run_directory=Path(run.run_directory),
                    run_state=run.state,
                    reason=run.reason if run.state is RunState.SUBMITTING else "",
                )
                for row, run in _not_of_others(session, session.execute(wanted).all(), self.holder)
            ]


def _not_of_others(
    session: Session, rows: Sequence[Row[AttemptRow, RunRow]], holder: str
) -> Sequence[Row[AttemptRow, RunRow]]:
    if all(row.holder in {None, holder} for row, _run in rows):
        return rows
    others = living_services(session) - {holder}
    since = database_now(session) - _LEFT_TO_ITS_HOLDER
    return [pair for pair in rows if pair[0].holder not in others or pair[0].latest_intent_at < since]


def _locked_runs(session: Session, run_ids: Set[str]) -> Mapping[str, RunRow]:
    wanted = select(RunRow).where(RunRow.run_id.in_(sorted(run_ids))).order_by(RunRow.run_id).with_for_update()
    runs = {row.run_id: row for row in session.scalars(wanted.options(defer(RunRow.plan)))}  # large, and not read here
    _all_there(run_ids, runs)
    return runs


def _all_there(run_ids: Iterable[str], runs: Mapping[str, object]) -> None:
    for run_id in run_ids:
        if run_id not in runs:
            raise NotFound(f"there is no run {run_id}", remedy="`orchestrator runs` lists them")


def _attempts_of(session: Session, run_ids: Set[str]) -> Mapping[RunTag, AttemptRow]:
    wanted = select(AttemptRow).where(AttemptRow.run_id.in_(sorted(run_ids)))
    return {tag_of(row): row for row in session.scalars(wanted)}


def _is_over(run: RunRow, row: AttemptRow) -> bool:
    """Whether a job comes too late for its attempt: the run has ended, or gone on, or waits for its next attempt."""
    return run.state.ended or run.attempts > row.number or row.concluded_at is not None


def _may_be_made(run: Row[*tuple[Any, ...]], tag: RunTag) -> bool:
    return run.state is RunState.PLANNED and tag.attempt == run.attempts + 1


def _take(session: Session, run: RunRow, row: AttemptRow, outcome: Outcome) -> None:
    match outcome:
        case Submitted():
            _take_job(run, row, outcome.job)
        case _ if outcome.intent_at not in {None, row.latest_intent_at}:
            return  # it came late, and is about an intent that was settled meanwhile
        case NotSubmitted():
            _take_failure(session, run, row, outcome)
        case Unanswered():
            if run.state is RunState.SUBMITTING:
                run.reason = outcome.reason


def _take_job(run: RunRow, row: AttemptRow, job: SubmittedJob) -> None:
    if identity_of(row) not in {None, job.identity}:
        if _is_over(run, row):  # by what the other job did
            return
        forget_reports(row)  # what was said of another job isn't true of this one
    row.stage, row.failure = AttemptStage.SUBMITTED, ""
    row.gateway, row.adopted = job.gateway, job.adopted
    row.cluster, row.job_id = job.identity.cluster, job.identity.job_id
    row.submitted_at = job.identity.submitted_at
    if run.state is RunState.SUBMITTING and run.attempts == row.number:
        run.state, run.reason = RunState.PENDING, ""


def _take_failure(session: Session, run: RunRow, row: AttemptRow, outcome: NotSubmitted) -> None:
    if row.stage is not AttemptStage.INTENDED:
        return
    if not outcome.given_back and row.failure != outcome.reason:
        detail: Json = {"reason": outcome.reason, "refused": outcome.refused}
        add_event(session, outcome.tag, "not-submitted", detail, utc_now())
    row.stage = AttemptStage.REFUSED if outcome.refused else AttemptStage.FAILED
    row.failure = outcome.reason
    if run.state is not RunState.SUBMITTING or run.attempts != row.number:
        return
    if outcome.refused and not no_longer_avoids_nodes(run):
        end_refused(session, run, outcome.reason)
    else:
        run.state, run.attempts, run.reason = RunState.PLANNED, outcome.tag.attempt - 1, outcome.reason


def _texts_of(intents: Iterable[Intent]) -> Sequence[str]:
    return [text for intent in intents for text in (intent.script.text, intent.script.template_text)]


def insert_intents(
    session: Session, intents: Sequence[Intent], *, gateway: str, at: datetime, holder: str | None
) -> None:
    """Insert attempts that nobody has intended before, inside a transaction; `holder` is None for others' jobs."""
    keep_texts(session, _texts_of(intents))
    rows = [_intent_row(intent, gateway, at, holder, None) for intent in intents]
    session.connection().execute(_NEW_ATTEMPTS, rows)


def record_job(session: Session, run: RunRow, tag: RunTag, job: SubmittedJob) -> None:
    """Keep inside a transaction the job that an attempt has."""
    _take_job(run, session.get_one(AttemptRow, (tag.run_id, tag.attempt)), job)


def _intended_again(row: Mapping[str, Any]) -> Update:
    """Return the statement that puts a new intent in place of one that made no job, whose time and failure stay."""
    kept = {"run_id", "number", "intent_at", "failure"}
    same = (AttemptRow.run_id == row["run_id"], AttemptRow.number == row["number"])
    return update(AttemptRow).where(*same).values({name: row[name] for name in row.keys() - kept})


def _intent_row(intent: Intent, gateway: str, at: datetime, holder: str | None, retry: Json) -> dict[str, Any]:
    return {
        "run_id": intent.tag.run_id,
        "number": intent.tag.attempt,
        "gateway": gateway,
        "stage": AttemptStage.INTENDED,
        "holder": holder,
        "failure": "",
        "script_sha256": intent.script.sha256,
        "template_name": intent.script.template_name,
        "template_sha256": intent.script.template_sha256,
        "template_origin": dict(intent.script.template_origin),
        "intent_at": at,
        "latest_intent_at": at,
        "adopted": False,
        "words": "",
        "reason": "",
        "restarts": 0,
        "nodes": "",
        "usage": {},
        "retry": retry,
    }
