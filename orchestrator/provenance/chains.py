"""Chains: how the runs stand that a run comes after, and which come after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import select
from sqlalchemy.orm import aliased

from orchestrator.chaining import Earlier
from orchestrator.provenance.attempts import identity_of
from orchestrator.provenance.database import Database
from orchestrator.provenance.tables import AttemptRow, PredecessorRow, RunRow


class ChainStore(Database):
    """The store's part that deals with runs that come after others."""

    def earlier_runs(self, run_id: str) -> Sequence[Earlier]:
        """Return how the runs stand that a run comes after, in the recipe's order; none for most runs."""
        return self.earlier_runs_of([run_id]).get(run_id, ())

    def earlier_runs_of(self, run_ids: Sequence[str]) -> Mapping[str, Sequence[Earlier]]:
        """Return the same for several runs; those that come after none are left out."""
        newest = (AttemptRow.run_id == RunRow.run_id) & (AttemptRow.number == RunRow.attempts)
        wanted = (
            select(PredecessorRow, RunRow, AttemptRow)
            .outerjoin(RunRow, PredecessorRow.predecessor_id == RunRow.run_id)
            .outerjoin(AttemptRow, newest)
            .where(PredecessorRow.run_id.in_(run_ids))
            .order_by(PredecessorRow.run_id, PredecessorRow.position)
        )
        found: dict[str, list[Earlier]] = {}
        with self.reading() as session:
            for row, run, attempt in session.execute(wanted):
                found.setdefault(row.run_id, []).append(_earlier(row, run, attempt))
        return found

    def later_runs(self, run_id: str) -> Sequence[Earlier]:
        """Return how the runs stand that come after a run, oldest first."""
        later = aliased(RunRow)
        newest = (AttemptRow.run_id == later.run_id) & (AttemptRow.number == later.attempts)
        wanted = (
            select(PredecessorRow, later, AttemptRow)
            .join(later, PredecessorRow.run_id == later.run_id)
            .outerjoin(AttemptRow, newest)
            .where(PredecessorRow.predecessor_id == run_id)
            .order_by(later.created_at, later.run_id)
        )
        with self.reading() as session:
            return [_earlier(row, run, attempt) for row, run, attempt in session.execute(wanted)]


def _earlier(row: PredecessorRow, run: RunRow | None, attempt: AttemptRow | None) -> Earlier:
    if run is None:
        return Earlier(run_id=row.predecessor_id, recipe="unknown", state=None)
    return Earlier(
        run_id=run.run_id,
        recipe=run.recipe,
        state=run.state,
        reason=run.reason,
        exit_code=None if attempt is None else attempt.exit_code,
        job=identity_of(attempt),
        intent_at=None if attempt is None else attempt.latest_intent_at,
    )
