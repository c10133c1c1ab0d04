"""The outbox to ISPyB: which runs are to be mirrored there, what of them stands there, and what stands in the way.

Nothing here talks to ISPyB. A run is *entered* when it is seen first, and *due* as long as it may change: until it was
mirrored once more some minutes after its end. Both are found through indexes over the newest and the unsettled rows, so
that the number of runs doesn't matter.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Row, Select, case, exists, func, or_, select, update
from sqlalchemy.orm import Session

from orchestrator.provenance.database import Database, batched
from orchestrator.provenance.documents import plan_from_json
from orchestrator.provenance.new_runs import add_runs
from orchestrator.provenance.runs import add_event, lock_run
from orchestrator.provenance.tables import IspybRunRow, RunRow
from orchestrator.records import CollectionStart, JobPlan, Json, RunState, RunTag

LOOK_AGAIN_AFTER = timedelta(minutes=6)
"""A run is mirrored once more so long after its end: for what its job tells late (`orchestrator.following.late`)."""

EVENT = "ispyb"

_OVERLAP = timedelta(hours=1)
"""Runs that are recorded so much later than their time says are still entered: by clocks that differ."""

_AT_ONCE = 1000

_BEFORE_ALL = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class IspybIds:
    """Where a run stands in ISPyB; None where it doesn't yet."""

    data_collection: int | None = None
    processing_job: int | None = None
    program: int | None = None


@dataclass(frozen=True, kw_only=True)
class IspybRun:
    """What of a run stands in ISPyB."""

    run_id: str
    run_state: RunState
    """As it is here."""
    state: RunState | None
    """As it was when it was mirrored last; None before the first time."""
    ids: IspybIds
    requested: bool
    """Whether somebody asked for it in ISPyB: the ProcessingJob isn't ours."""
    due_at: datetime | None
    """When it is looked at next; None when nothing more is to be done."""
    obstacle: str
    """Why it isn't there, or not as it is here; empty when nothing stands in the way."""
    failures: int
    """How often in a row."""
    waiting_since: datetime | None
    """Since when."""
    mirrored_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class Mirrored:
    """A run stands in ISPyB as it was here."""

    run_id: str
    state: RunState
    attempts: int
    ids: IspybIds
    fingerprint: str
    """SHA-256 of the rows that were made of it."""
    at: datetime


class MirrorStore(Database):
    """The store's part that remembers what is mirrored to ISPyB."""

    def enter_for_ispyb(self, now: datetime) -> int:
        """Enter the runs that are new since the last time; return how many.

        The first time those of the last hour are entered; older ones are by `mirror_again`.
        """
        entered = 0
        while True:
            with self.writing() as session:
                newest = session.scalar(select(func.max(IspybRunRow.created_at)))
                since = min(now, newest or now) - _OVERLAP
                missing = ~exists().where(IspybRunRow.run_id == RunRow.run_id)
                wanted = select(RunRow.run_id).where(RunRow.created_at >= since, missing)
                ids = session.scalars(wanted.order_by(RunRow.created_at).limit(_AT_ONCE)).all()
                _enter(session, ids, now)
            entered += len(ids)
            if len(ids) < _AT_ONCE:
                return entered

    def mirror_again(self, run_ids: Collection[str], now: datetime) -> None:
        """Have runs looked at now, whatever became of them before; those that were never entered are."""
        since = case((IspybRunRow.waiting_since.is_(None), None), else_=now)
        again = {"due_at": now, "fingerprint": None, "failures": 0, "waiting_since": since}
        for lot in batched(sorted(run_ids)):
            with self.writing() as session:
                there = set(session.scalars(select(IspybRunRow.run_id).where(IspybRunRow.run_id.in_(lot))))
                session.connection().execute(update(IspybRunRow).where(IspybRunRow.run_id.in_(there)).values(again))
                _enter(session, [run_id for run_id in lot if run_id not in there], now)

    def due_for_ispyb(self, now: datetime, limit: int) -> Sequence[IspybRun]:
        """Return runs that are to be mirrored now, those first that wait longest."""
        differs = or_(
            IspybRunRow.fingerprint.is_(None),
            IspybRunRow.state.is_(None),
            IspybRunRow.state != RunRow.state,
            IspybRunRow.attempt != RunRow.attempts,
        )
        wanted = _mirrors().where(IspybRunRow.due_at <= now, differs).order_by(IspybRunRow.due_at).limit(limit)
        with self.reading() as session:
            return [_record(row) for row in session.execute(wanted)]

    def record_data_collection(self, run_id: str, data_collection_id: int) -> None:
        """Keep which data collection a run is of."""
        with self.writing() as session:
            session.get_one(IspybRunRow, run_id).data_collection_id = data_collection_id

    def record_mirrored(self, mirrored: Mirrored) -> None:
        """Keep that a run stands in ISPyB; the first time, and the first after an obstacle, is an event of the run."""
        with self.writing() as session:
            run = lock_run(session, mirrored.run_id)
            row = session.get_one(IspybRunRow, mirrored.run_id)
            if row.mirrored_at is None or row.obstacle:
                ids = mirrored.ids
                said: Json = {"processing_job": ids.processing_job, "program": ids.program}
                add_event(session, RunTag(run_id=mirrored.run_id, attempt=0), EVENT, said, mirrored.at)
            row.state, row.attempt, row.mirrored_at = mirrored.state, mirrored.attempts, mirrored.at
            row.data_collection_id = mirrored.ids.data_collection
            row.processing_job_id, row.program_id = mirrored.ids.processing_job, mirrored.ids.program
            row.obstacle, row.failures, row.waiting_since = "", 0, None
            row.fingerprint, row.due_at = mirrored.fingerprint, mirrored.at
            if mirrored.state.ended and run.state is mirrored.state:
                row.due_at = _once_more(run, mirrored.at)
                row.fingerprint = None if row.due_at else mirrored.fingerprint

    def record_not_mirrored(self, run_id: str, obstacle: str, at: datetime, *, again_at: datetime | None) -> None:
        """Keep why a run can't be mirrored now; each obstacle that is another than the last is an event of the run.

        Parameters
        ----------
        again_at
            When it is tried again; None for never, unless somebody asks for it.
        """
        with self.writing() as session:
            lock_run(session, run_id)
            row = session.get_one(IspybRunRow, run_id)
            if row.obstacle != obstacle:
                detail: Json = {"reason": obstacle}
                add_event(session, RunTag(run_id=run_id, attempt=0), EVENT, detail, at)
            row.obstacle, row.failures, row.due_at = obstacle, row.failures + 1, again_at
            row.waiting_since = row.waiting_since or at

    def record_requested_run(self, plan: JobPlan, ids: IspybIds, now: datetime) -> bool:
        """Record a run that was asked for in ISPyB, and its ProcessingJob there; False when it is there already."""
        with self.writing() as session:
            if not add_runs(session, [(None, plan)]):
                return False
            _enter(session, [plan.run_id], now, ids)
        return True

    def ispyb_requests_known(self, processing_job_ids: Collection[int]) -> Set[int]:
        """Return those ProcessingJobs that runs were made of."""
        column = IspybRunRow.processing_job_id
        with self.reading() as session:
            lots = [session.scalars(select(column).where(column.in_(lot))) for lot in batched(processing_job_ids)]
            return {known for lot in lots for known in lot if known is not None}

    def collection_of(self, data_collection_id: int) -> CollectionStart | None:
        """Return the collection that an ISPyB data collection is, as the newest run of it has it; None without runs."""
        wanted = (
            select(RunRow.plan)
            .join(IspybRunRow, IspybRunRow.run_id == RunRow.run_id)
            .where(IspybRunRow.data_collection_id == data_collection_id)
            .order_by(IspybRunRow.created_at.desc())
            .limit(1)
        )
        with self.reading() as session:
            plan = session.scalar(wanted)
        return None if plan is None else plan_from_json(plan).collection

    def ispyb_programs(self, run_ids: Collection[str]) -> Mapping[str, int]:
        """Return the AutoProcPrograms of those runs that have one."""
        columns = (IspybRunRow.run_id, IspybRunRow.program_id)
        wanted = select(*columns).where(IspybRunRow.run_id.in_(sorted(run_ids)), IspybRunRow.program_id.is_not(None))
        with self.reading() as session:
            return {run_id: program for run_id, program in session.execute(wanted) if program is not None}

    def ispyb_runs(self, *, obstructed: bool = False, limit: int = 50) -> Sequence[IspybRun]:
        """Return what stands in ISPyB of the newest runs; with `obstructed`, of those with the newest obstacles."""
        newest = IspybRunRow.waiting_since if obstructed else IspybRunRow.created_at
        wanted = _mirrors().where(newest.is_not(None)).order_by(newest.desc(), IspybRunRow.run_id).limit(limit)
        with self.reading() as session:
            return [_record(row) for row in session.execute(wanted)]

    def ispyb_run(self, run_id: str) -> IspybRun | None:
        """Return what stands in ISPyB of one run; None when it was never entered."""
        with self.reading() as session:
            row = session.execute(_mirrors().where(IspybRunRow.run_id == run_id)).one_or_none()
        return None if row is None else _record(row)

    def ispyb_counts(self) -> Mapping[str, int]:
        """Return how many runs aren't settled: those to be followed, behind an obstacle, and given up."""
        # As ranges, which begin in the indexes where the nulls end: nearly all rows have nulls.
        unsettled, obstructed = IspybRunRow.due_at > _BEFORE_ALL, IspybRunRow.waiting_since > _BEFORE_ALL
        counts = [
            select(func.count()).select_from(IspybRunRow).where(*conditions).scalar_subquery()
            for conditions in ((unsettled,), (obstructed,), (unsettled, obstructed))
        ]
        with self.reading() as session:
            due, behind_obstacles, waiting = session.execute(select(*counts)).one()
        return {"active": due - waiting, "waiting": waiting, "given_up": behind_obstacles - waiting}


def _mirrors() -> Select[IspybRunRow, RunState]:
    return select(IspybRunRow, RunRow.state).join(RunRow, RunRow.run_id == IspybRunRow.run_id)


def _record(found: Row[IspybRunRow, RunState]) -> IspybRun:
    row, run_state = found
    return IspybRun(
        run_id=row.run_id,
        run_state=run_state,
        state=row.state,
        ids=IspybIds(
            data_collection=row.data_collection_id, processing_job=row.processing_job_id, program=row.program_id
        ),
        requested=row.requested,
        due_at=row.due_at,
        obstacle=row.obstacle,
        failures=row.failures,
        waiting_since=row.waiting_since,
        mirrored_at=row.mirrored_at,
    )


def _once_more(run: RunRow, now: datetime) -> datetime | None:
    """Return when a run that has ended is mirrored once more; None when that time has passed."""
    then = (run.ended_at or now) + LOOK_AGAIN_AFTER
    return then if then > now else None


def _enter(session: Session, run_ids: Collection[str], now: datetime, request: IspybIds | None = None) -> None:
    times = {
        run_id: created_at
        for lot in batched(run_ids)
        for run_id, created_at in session.execute(
            select(RunRow.run_id, RunRow.created_at).where(RunRow.run_id.in_(lot))
        )
    }
    ids = request or IspybIds()
    session.add_all(
        IspybRunRow(
            run_id=run_id,
            created_at=times[run_id],
            due_at=now,
            attempt=0,
            data_collection_id=ids.data_collection,
            processing_job_id=ids.processing_job,
            requested=request is not None,
            obstacle="",
            failures=0,
        )
        for run_id in run_ids
    )
