"""Rows of new runs, inserted inside a transaction of whoever asks for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sqlalchemy import bindparam, insert, select
from sqlalchemy.orm import Session

from orchestrator.provenance.documents import plan_to_json
from orchestrator.provenance.tables import ParameterRow, PredecessorRow, RunRow
from orchestrator.records import JobPlan, RunState, utc_now

_KNOWN = select(RunRow.run_id).where(RunRow.run_id.in_(bindparam("ids", expanding=True)))
_RUNS, _PARAMETERS, _PREDECESSORS = insert(RunRow), insert(ParameterRow), insert(PredecessorRow)


def add_runs(session: Session, wanted: Sequence[tuple[int | None, JobPlan]], *, look: bool = True) -> Sequence[str]:
    """Add the runs of messages, by the messages' ids, in state PLANNED; those that are there are left alone.

    Parameters
    ----------
    look
        Whether some may be there. Without it, one that is there is an `IntegrityError`.

    Returns
    -------
    Sequence[str]
        Ids of the runs that are new.
    """
    connection, ids = session.connection(), {plan.run_id for _, plan in wanted}
    there = set(connection.scalars(_KNOWN, {"ids": sorted(ids)})) if look and ids else set()
    new = {plan.run_id: (message_id, plan) for message_id, plan in wanted if plan.run_id not in there}
    plans = [plan for _, plan in new.values()]
    # Plain values instead of mapped objects: this stands in every collection's way to its job.
    for statement, rows in (
        (_RUNS, [_run_row(message_id, plan) for message_id, plan in new.values()]),
        (_PARAMETERS, [row for plan in plans for row in _parameter_rows(plan)]),
        (_PREDECESSORS, [row for plan in plans for row in _predecessor_rows(plan)]),
    ):
        if rows:
            connection.execute(statement, rows)
    return list(new)


def _run_row(message_id: int | None, plan: JobPlan) -> dict[str, object]:
    return {
        "run_id": plan.run_id,
        "message_id": message_id,
        "parent_run_id": plan.parent_run,
        "requester": plan.requester,
        "recipe": plan.recipe,
        "kernel": plan.kernel,
        "beamline": plan.collection.beamline,
        "visit": plan.collection.visit,
        "collection_uid": plan.collection.uid,
        "file": str(plan.collection.file),
        "run_directory": str(plan.run_directory),
        "plan": plan_to_json(plan),
        "state": RunState.PLANNED,
        "reason": "",
        "attempts": 0,
        "created_at": utc_now(),
        "frames_expected": plan.collection.frames_expected,
        "frames_finished": False,
        "ended_because": "",
    }


def _parameter_rows(plan: JobPlan) -> Iterator[dict[str, object]]:
    for position, parameter in enumerate(plan.parameters):
        yield {
            "run_id": plan.run_id,
            "name": parameter.name,
            "position": position,
            "value": parameter.value,
            "origin": parameter.origin,
            "place": parameter.place,
        }


def _predecessor_rows(plan: JobPlan) -> Iterator[dict[str, object]]:
    for position, one in enumerate(plan.after):
        yield {"run_id": plan.run_id, "predecessor_id": one.run_id, "position": position}
