"""Runs: planned, progressing, ended; and the files they read and made.

Every change to a run begins by locking its row, so that services and threads change it one after another and never
deadlock.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence, Set
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import Integer, Row, and_, bindparam, case, delete, exists, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from orchestrator.errors import NotFound
from orchestrator.provenance.columns import UtcDateTime
from orchestrator.provenance.database import Database, batched
from orchestrator.provenance.documents import encoded, plan_from_json, retry_from_json
from orchestrator.provenance.lineage import keep_used_files, path_digest
from orchestrator.provenance.messages import mark_handled, raw_of
from orchestrator.provenance.new_runs import add_runs
from orchestrator.provenance.rows import Decision, InputIdentity, MessageKind, MessageState, OutputIdentity, PlannedRun
from orchestrator.provenance.tables import (
    InputRow,
    JobEventRow,
    MessageRow,
    OutputRow,
    ParameterRow,
    PredecessorRow,
    RunRow,
)
from orchestrator.records import FrameCounts, JobPlan, Json, Origin, RunState, RunTag, utc_now

_end = aliased(MessageRow)
_has_ended = exists().where(
    _end.uid == RunRow.collection_uid, _end.kind == MessageKind.END, _end.state != MessageState.REJECTED
)
_live = case((or_(RunRow.parent_run_id.is_not(None), _has_ended), 0), else_=1)
"""1 for a run whose collection still goes on, 0 for others and for reruns."""

_MAY_BE_SENT = (
    RunRow.state == RunState.PLANNED,
    or_(RunRow.not_before.is_(None), RunRow.not_before <= bindparam("now", type_=UtcDateTime())),
)
_BEHIND = or_(
    _live < bindparam("after_live", type_=Integer()),
    and_(
        _live == bindparam("after_live", type_=Integer()),
        or_(
            RunRow.created_at > bindparam("after_at"),
            and_(RunRow.created_at == bindparam("after_at"), RunRow.run_id > bindparam("after_id")),
        ),
    ),
)
_IN_ORDER = (_live.desc(), RunRow.created_at, RunRow.run_id)
_IDS = select(RunRow.run_id).where(*_MAY_BE_SENT).order_by(*_IN_ORDER)
_NEXT_IDS = _IDS.where(_BEHIND)
# Columns instead of objects, and statements that are built once: this stands in every collection's way to its job.
_PLANNED = (
    select(
        *(RunRow.run_id, RunRow.plan, RunRow.attempts, RunRow.created_at, RunRow.reason, RunRow.retry),
        *(MessageRow.body, MessageRow.source, MessageRow.headers, MessageRow.received_at),
        _live.label("live"),
    )
    .outerjoin(MessageRow, RunRow.message_id == MessageRow.id)
    .where(*_MAY_BE_SENT)
    .order_by(*_IN_ORDER)
)
_FIRST = _PLANNED.limit(bindparam("most", type_=Integer()))
_NEXT = _FIRST.where(_BEHIND)
_THESE = _PLANNED.where(RunRow.run_id.in_(bindparam("ids", expanding=True)))


class RunStore(Database):
    """The store's part that deals with runs."""

    def record_runs(
        self, message_id: int | None, plans: Sequence[JobPlan], *, note: str, handled: bool = True
    ) -> Sequence[str]:
        """Record the runs that a message makes, and that the message is handled, in one transaction.

        Runs that are there already are left alone, so the call may be repeated.

        Parameters
        ----------
        message_id
            None for runs that no message asked for.
        note
            What was decided, kept with the message.

        Returns
        -------
        Sequence[str]
            Ids of the runs that are new.
        """
        with self.writing() as session:
            if handled and message_id is not None:
                mark_handled(session, {message_id: note})
            return add_runs(session, [(message_id, plan) for plan in plans])

    def record_decisions(self, decisions: Sequence[Decision]) -> Sequence[str]:
        """Record what was decided about messages and the runs that they make, in one transaction; repeatable too.

        Returns
        -------
        Sequence[str]
            Ids of the runs that are new.
        """
        with self.writing() as session:
            mark_handled(session, {decision.message_id: decision.note for decision in decisions})
            return add_runs(session, [(item.message_id, plan) for item in decisions for plan in item.plans])

    def record_refused_run(self, run_id: str, reason: str) -> bool:
        """End a run that can't be submitted as REFUSED; False, and nothing done, when it isn't PLANNED any more."""
        with self.writing() as session:
            row = lock_run(session, run_id)
            if row.state is not RunState.PLANNED:
                return False
            row.state, row.reason, row.ended_at = RunState.REFUSED, reason, utc_now()
        return True

    def planned_runs(
        self, limit: int = 1000, *, after: PlannedRun | None = None, leave_out: Callable[[str], bool] | None = None
    ) -> Sequence[PlannedRun]:
        """Return runs that wait to be submitted and may be now; with `after`, those behind that one.

        Live ones come first, then those of collections that have ended, and reruns; each oldest first. Which ones are
        to be left out is asked about one id after another, in that order; they cost next to nothing.
        """
        values: dict[str, object] = {"now": utc_now(), "most": limit}
        if after is not None:
            values |= {"after_live": int(after.live), "after_at": after.created_at, "after_id": after.tag.run_id}
        with self.reading() as session:
            connection = session.connection()
            if leave_out is None:
                return [_planned(row) for row in connection.execute(_FIRST if after is None else _NEXT, values)]
            in_order = connection.scalars(_IDS if after is None else _NEXT_IDS, values)
            ids = list(islice((run_id for run_id in in_order if not leave_out(run_id)), limit))
            lots = [connection.execute(_THESE, values | {"ids": lot}) for lot in batched(ids)]
            return [_planned(row) for lot in lots for row in lot]

    def still_planned(self, run_ids: Collection[str]) -> Set[str]:
        """Return those of some runs that are PLANNED and that nobody is just changing."""
        wanted = select(RunRow.run_id).where(RunRow.run_id.in_(sorted(run_ids)), RunRow.state == RunState.PLANNED)
        with self.reading() as session:
            return set(session.scalars(wanted.with_for_update(skip_locked=True)))

    def record_obstacle(self, run_id: str, reason: str) -> None:
        """Say why a run that is still PLANNED waits; nothing happens to one that has gone on."""
        self.record_obstacles({run_id: reason})

    def record_obstacles(self, reasons: Mapping[str, str]) -> None:
        """Say why runs wait, by their ids, as far as they are still PLANNED."""
        runs_of: dict[str, list[str]] = {}
        for run_id in sorted(reasons):
            runs_of.setdefault(reasons[run_id], []).append(run_id)
        with self.writing() as session:
            for reason, run_ids in runs_of.items():
                _say_why(session, reason, run_ids)

    def record_obstacle_to_all(self, reason: str) -> None:
        """Say why every run waits that is PLANNED and could be submitted otherwise.

        Those that wait for their time, or for the jobs of runs that they come after, have a reason of their own.
        """
        earlier = aliased(RunRow)
        without_job = exists().where(
            PredecessorRow.run_id == RunRow.run_id,
            PredecessorRow.predecessor_id == earlier.run_id,
            earlier.state.in_([RunState.PLANNED, RunState.SUBMITTING]),
        )
        wanted = select(RunRow.run_id).where(*_MAY_BE_SENT, RunRow.reason != reason, ~without_job)
        with self.writing() as session:
            run_ids = session.scalars(wanted.order_by(RunRow.run_id), {"now": utc_now()}).all()
            _say_why(session, reason, run_ids)

    def record_progress(self, run_id: str, counts: FrameCounts, *, attempt: int | None = None) -> None:
        """Keep how the kernel stands; the newest call wins.

        This, inputs and outputs are of the run's present attempt: word of another `attempt` changes nothing.
        """
        with self.writing() as session:
            row = lock_run(session, run_id)
            if _another_is_present(row, attempt):
                return
            keep_counts(row, counts)

    def record_defaults(self, run_id: str, values: Mapping[str, Json], *, place: str) -> None:
        """Keep the values of those parameters that nobody decided, as the kernel tells them; known ones stay.

        Parameters
        ----------
        values
            All parameters that the kernel took, by name.
        place
            Where the defaults come from.
        """
        with self.writing() as session:
            lock_run(session, run_id)
            known = set(session.scalars(select(ParameterRow.name).where(ParameterRow.run_id == run_id)))
            session.add_all(
                ParameterRow(
                    run_id=run_id, name=name, position=position, value=value, origin=Origin.DEFAULT, place=place
                )
                for position, (name, value) in enumerate(values.items(), start=len(known))
                if name not in known
            )

    def record_input(self, run_id: str, identity: InputIdentity, *, attempt: int | None = None) -> None:
        """Keep what an input file was; a second call for the same path and moment replaces the first."""
        with self.writing() as session:
            if _another_is_present(lock_run(session, run_id), attempt):
                return
            session.execute(
                delete(InputRow).where(
                    InputRow.run_id == run_id, InputRow.moment == identity.at, InputRow.path == str(identity.path)
                )
            )
            session.add(input_row(run_id, identity))
            keep_used_files(session, run_id, identity)

    def record_output(self, run_id: str, output: OutputIdentity, *, attempt: int | None = None) -> None:
        """Keep what a run made; a second call for the same path replaces the first."""
        with self.writing() as session:
            if _another_is_present(lock_run(session, run_id), attempt):
                return
            session.execute(delete(OutputRow).where(OutputRow.run_id == run_id, OutputRow.path == str(output.path)))
            session.add(output_row(run_id, output))

    def finish_run(self, run_id: str, state: RunState, reason: str, ended_at: datetime | None = None) -> bool:
        """End a run, once.

        Returns
        -------
        bool
            True when this call ended it. False when it had ended before: its record stays as it is, and a verdict that
            differs is kept as an event of kind ``late-verdict``.
        """
        if not state.ended:
            raise ValueError(f"a run doesn't end as {state}")
        with self.writing() as session:
            row = lock_run(session, run_id)
            if not row.state.ended:
                row.state, row.reason, row.ended_at = state, reason, ended_at or utc_now()
                return True
            if row.state is not state:
                add_event(
                    session,
                    RunTag(run_id=run_id, attempt=row.attempts),
                    "late-verdict",
                    {"state": str(state), "reason": reason},
                    ended_at or utc_now(),
                )
            return False


def _say_why(session: Session, reason: str, run_ids: Collection[str]) -> None:
    """Say why runs wait, as far as they are still PLANNED."""
    still = update(RunRow).where(RunRow.state == RunState.PLANNED).values(reason=reason)
    for lot in batched(run_ids):
        session.connection().execute(still.where(RunRow.run_id.in_(lot)))


def lock_run(session: Session, run_id: str) -> RunRow:
    """Return a run's row, locked until the transaction ends.

    Raises
    ------
    NotFound
        When there is no such run.
    """
    row = session.get(RunRow, run_id, with_for_update=True)
    if row is None:
        raise NotFound(f"there is no run {run_id}", remedy="`orchestrator runs` lists them")
    return row


def _another_is_present(run: RunRow, attempt: int | None) -> bool:
    """Whether a run has gone on to another attempt, or is about to."""
    return attempt is not None and (run.attempts != attempt or run.state is RunState.PLANNED)


def add_event(session: Session, tag: RunTag, kind: str, detail: Json, at: datetime) -> None:
    """Append an event under the next free number; the run's row must be locked."""
    numbers = select(func.max(JobEventRow.sequence)).where(
        JobEventRow.run_id == tag.run_id, JobEventRow.attempt == tag.attempt, JobEventRow.kind == kind
    )
    last = session.scalar(numbers)
    session.add(event_row(tag, kind, 0 if last is None else last + 1, detail, at))


def event_row(tag: RunTag, kind: str, sequence: int, detail: Json, at: datetime) -> JobEventRow:
    """Return a new event's row."""
    return JobEventRow(
        run_id=tag.run_id,
        attempt=tag.attempt,
        kind=kind,
        sequence=sequence,
        at=at,
        recorded_at=utc_now(),
        detail=detail,
    )


def _planned(row: Row[*tuple[Any, ...]]) -> PlannedRun:
    return PlannedRun(
        plan=plan_from_json(row.plan),
        tag=RunTag(run_id=row.run_id, attempt=row.attempts + 1),
        message=None if row.body is None else raw_of(row),
        live=bool(row.live),
        created_at=row.created_at,
        reason=row.reason,
        retry=None if row.retry is None else retry_from_json(row.retry),
    )


def keep_counts(run: RunRow, counts: FrameCounts) -> None:
    """Keep in a run's row how its kernel stands."""
    run.frames_expected = counts.expected
    run.frames_written = counts.written
    run.frames_processed = counts.processed
    run.frames_failed = counts.failed
    run.lag_median_s = counts.lag_median_s
    run.lag_max_s = counts.lag_max_s
    run.frames_finished = counts.finished
    run.ended_because = counts.ended_because
    run.progress_at = utc_now()


def input_row(run_id: str, identity: InputIdentity) -> InputRow:
    """Return an input's row."""
    return InputRow(
        run_id=run_id,
        moment=identity.at,
        path=str(identity.path),
        real_path=str(identity.real_path),
        dataset=identity.dataset,
        size=identity.size,
        mtime_ns=identity.mtime_ns,
        inode=None if identity.inode is None else str(identity.inode),
        shape=encoded(identity.shape),
        dtype=identity.dtype,
        chunks=encoded(identity.chunks),
        sources=encoded(identity.sources),
        seal=identity.seal,
        files=encoded(identity.files),
        recorded_at=utc_now(),
    )


def output_row(run_id: str, output: OutputIdentity) -> OutputRow:
    """Return an output's row."""
    return OutputRow(
        run_id=run_id,
        path=str(output.path),
        path_sha256=path_digest(output.path),
        kind=output.kind,
        size=output.size,
        sha256=output.sha256,
        content_sha256=output.content_sha256,
        validation=None if output.validation is None else encoded(output.validation),
        recorded_at=utc_now(),
    )


def input_identity(row: InputRow) -> InputIdentity:
    """Return a row as the record that the store hands out."""
    return InputIdentity(
        at=row.moment,
        path=Path(row.path),
        real_path=Path(row.real_path),
        dataset=row.dataset,
        size=row.size,
        mtime_ns=row.mtime_ns,
        inode=None if row.inode is None else int(row.inode),
        shape=_integers(row.shape),
        dtype=row.dtype,
        chunks=_integers(row.chunks),
        sources=_objects(row.sources),
        seal=row.seal,
        files=_objects(row.files),
    )


def _items(value: Json) -> Sequence[Json]:
    return value if isinstance(value, list) else ()


def _objects(value: Json) -> tuple[dict[str, Json], ...]:
    return tuple(item for item in _items(value) if isinstance(item, dict))


def _integers(value: Json) -> tuple[int, ...] | None:
    return None if value is None else tuple(item for item in _items(value) if isinstance(item, int))
