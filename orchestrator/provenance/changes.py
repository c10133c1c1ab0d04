"""What changes about a run that has ended makes its record due: whoever changes it needn't think of that."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import event
from sqlalchemy.orm import Session, UOWTransaction

from orchestrator.provenance.tables import AttemptRow, InputRow, JobEventRow, OutputRow, ParameterRow, RunRow

_PARTS = (AttemptRow, InputRow, JobEventRow, OutputRow, ParameterRow)


class MarkingSession(Session):
    """A session that marks the records of ended runs as due when something about them changes."""


@event.listens_for(MarkingSession, "before_flush")
def _mark(session: Session, _context: UOWTransaction, _instances: object) -> None:
    changed = [item for item in (*session.new, *session.dirty) if session.is_modified(item)]
    for run in {run.run_id: run for item in changed for run in _runs_of(session, item)}.values():
        if run.ended_at is not None:
            run.changes += 1
            run.record_due = True


def _runs_of(session: Session, item: object) -> Iterator[RunRow]:
    if isinstance(item, RunRow):
        yield item
    elif isinstance(item, _PARTS):
        with session.no_autoflush:
            yield session.get_one(RunRow, item.run_id)
