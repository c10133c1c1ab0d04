"""Which records are due, and the way back: rows from records, after the database was lost."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from sqlalchemy import select, true, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from orchestrator.errors import InvalidInput
from orchestrator.provenance.adoptions import came_home
from orchestrator.provenance.attempts import forget_reports, take_report
from orchestrator.provenance.database import Database, batched
from orchestrator.provenance.documents import encoded
from orchestrator.provenance.lineage import keep_image, keep_used_files
from orchestrator.provenance.messages import bring_back_message
from orchestrator.provenance.new_runs import add_runs
from orchestrator.provenance.rows import Arrival, AttemptRecord, JobEvent, RunDetail, Validation
from orchestrator.provenance.runs import input_row, keep_counts, lock_run, output_row
from orchestrator.provenance.tables import AttemptRow, JobEventRow, OutputRow, ParameterRow, RunRow
from orchestrator.provenance.texts import keep_texts
from orchestrator.records import sha256_of


class RecordStore(Database):
    """The store's part that deals with runs' records."""

    def due_records(self, limit: int = 100, *, after: str = "") -> Sequence[tuple[str, int]]:
        """Return ended runs whose own directory hasn't the newest record, and how often each has changed since.

        They are in the order of their ids; `after` gives those behind one.
        """
        wanted = (
            select(RunRow.run_id, RunRow.changes)
            .where(RunRow.record_due == true(), RunRow.run_id > after)
            .order_by(RunRow.run_id)
            .limit(limit)
        )
        with self.reading() as session:
            return [(run_id, changes) for run_id, changes in session.execute(wanted)]

    def mark_recorded(self, run_id: str, changes: int, *, examination_due: bool = False) -> None:
        """Say that a run's record is written; it stays due when the run has changed since that was asked for.

        Parameters
        ----------
        examination_due
            Whether something of the run hasn't been looked at yet (`orchestrator.examining`).
        """
        seen = (RunRow.run_id == run_id, RunRow.changes == changes)
        values = {"record_due": False, "examination_due": examination_due}
        with self.writing() as session:
            session.connection().execute(update(RunRow).where(*seen).values(values))

    def due_examinations(self, limit: int = 20) -> Sequence[str]:
        """Return the ids of ended runs of which something hasn't been looked at yet, the newest first."""
        due = select(RunRow.run_id).where(RunRow.examination_due == true()).order_by(RunRow.ended_at.desc())
        with self.reading() as session:
            return session.scalars(due.limit(limit)).all()

    def record_validation(self, run_id: str, path: Path, validation: Validation) -> None:
        """Keep what a validator said of an output; nothing happens where the run has no such output any more."""
        wanted = select(OutputRow).where(OutputRow.run_id == run_id, OutputRow.path == str(path))
        with self.writing() as session:
            lock_run(session, run_id)
            for row in session.scalars(wanted):
                row.validation = encoded(validation)

    def knows_run(self, run_id: str) -> bool:
        """Return whether there is a run of this id."""
        with self.reading() as session:
            return session.scalar(select(RunRow.run_id).where(RunRow.run_id == run_id)) is not None

    def record_is_due(self, run_id: str) -> bool:
        """Return whether a run's record is to be written."""
        wanted = select(RunRow.run_id).where(RunRow.run_id == run_id, RunRow.record_due == true())
        with self.reading() as session:
            return session.scalar(wanted) is not None

    def record_again(self, run_ids: Collection[str]) -> None:
        """Have the records of ended runs written anew, whatever stands there."""
        for lot in batched(sorted(run_ids)):
            with self.writing() as session:
                ended = (RunRow.run_id.in_(lot), RunRow.ended_at.is_not(None))
                session.connection().execute(update(RunRow).where(*ended).values(record_due=True))

    def import_run(self, detail: RunDetail, message: Arrival | None, *, recorded: bool = True) -> bool:
        """Make the rows of a run from its record, unless it is there.

        Parameters
        ----------
        message
            The message that asked for it, understood anew.
        recorded
            Whether the record stands where it belongs, so that it needn't be written.

        Returns
        -------
        bool
            Whether it was new.

        Raises
        ------
        InvalidInput
            When the record contradicts itself, so that no rows can be made of it.
        """
        try:
            return self._import_run(detail, message, recorded=recorded)
        except IntegrityError as error:
            raise InvalidInput(
                f"the record of run {detail.summary.run_id} contradicts itself: {error.orig}",
                remedy="take it from a backup, or leave it out",
            ) from error

    def _import_run(self, detail: RunDetail, message: Arrival | None, *, recorded: bool) -> bool:
        run_id = detail.summary.run_id
        with self.writing() as session:
            if session.get(RunRow, run_id) is not None:
                return False
            message_id = None
            if message is not None and detail.message is not None:
                message_id = bring_back_message(session, message, detail.message)
            add_runs(session, [(message_id, detail.plan)])
            keep_texts(session, [text for attempt in detail.attempts for text in _texts(attempt)])
            run = session.get_one(RunRow, run_id)
            _fill(run, detail)
            _add_defaults(session, detail)
            session.add_all(_attempt_row(attempt) for attempt in detail.attempts)
            for attempt in detail.attempts:
                keep_image(session, run_id, attempt.software)
            session.add_all(_event_row(run_id, event) for event in detail.events)
            session.add_all(input_row(run_id, identity) for identity in detail.inputs)
            for identity in detail.inputs:
                keep_used_files(session, run_id, identity)
            session.add_all(output_row(run_id, output) for output in detail.outputs)
            for attempt in detail.attempts:
                if attempt.identity is not None:
                    came_home(session, detail.plan, attempt.identity)
            session.flush()
            if recorded:  # which the rows have just made due
                values = {"record_due": False, "examination_due": detail.unexamined}
                session.connection().execute(update(RunRow).where(RunRow.run_id == run_id).values(values))
        return True


def _texts(attempt: AttemptRecord) -> tuple[str, ...]:
    return attempt.script_text, attempt.template_text, *([attempt.packages] if attempt.packages else [])


def _fill(run: RunRow, detail: RunDetail) -> None:
    summary = detail.summary
    run.state, run.reason, run.attempts = summary.state, summary.reason, summary.attempts
    run.created_at, run.ended_at = summary.created_at, summary.ended_at
    if summary.counts is not None:
        keep_counts(run, summary.counts)


def _add_defaults(session: Session, detail: RunDetail) -> None:
    """Add the parameters that nobody had decided; the plan's are there."""
    planned = {parameter.name for parameter in detail.plan.parameters}
    for position, parameter in enumerate(detail.parameters):
        if parameter.name not in planned:
            session.add(ParameterRow(run_id=detail.summary.run_id, position=position, **vars(parameter)))


def _event_row(run_id: str, event: JobEvent) -> JobEventRow:
    return JobEventRow(run_id=run_id, **vars(event))


def _attempt_row(attempt: AttemptRecord) -> AttemptRow:
    row = AttemptRow(
        run_id=attempt.tag.run_id,
        number=attempt.tag.attempt,
        gateway=attempt.gateway,
        holder=None,
        stage=attempt.stage,
        failure=attempt.failure,
        script_sha256=attempt.script_sha256,
        template_name=attempt.template_name,
        template_sha256=attempt.template_sha256,
        template_origin=attempt.template_origin,
        packages_sha256=sha256_of(attempt.packages) if attempt.packages else None,
        intent_at=attempt.intent_at,
        latest_intent_at=attempt.intent_at,
        adopted=attempt.adopted,
        software=attempt.software,
        retry=None if attempt.retry is None else encoded(attempt.retry),
    )
    forget_reports(row)
    if attempt.identity is not None:
        row.cluster, row.job_id = attempt.identity.cluster, attempt.identity.job_id
        row.submitted_at = attempt.identity.submitted_at
    if attempt.last_report is not None:
        take_report(row, attempt.last_report)
    if attempt.end is not None:
        row.cause, row.outcome, row.outcome_reason = attempt.end.cause, attempt.end.state, attempt.end.reason
        row.concluded_at = attempt.end.ended_at
    return row
