"""Runs that somebody made without the service: taken in when it hears of them, with the job that they have."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Set
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from orchestrator.errors import InvalidInput
from orchestrator.provenance.database import Database, batched
from orchestrator.provenance.intents import insert_intents, record_job
from orchestrator.provenance.messages import message_id_of
from orchestrator.provenance.new_runs import add_runs
from orchestrator.provenance.rows import CAME_HOME, LOST, MADE, Intent
from orchestrator.provenance.runs import add_event, lock_run
from orchestrator.provenance.tables import AttemptRow, JobEventRow, RunRow
from orchestrator.records import JobIdentity, JobPlan, Json, RunState, RunTag, SubmittedJob, utc_now


class AdoptionStore(Database):
    """The store's part that deals with them."""

    def record_adopted(self, plan: JobPlan, intent: Intent, job: SubmittedJob, told: Json, at: datetime) -> bool:
        """Record a run together with its job, all in one transaction: at no moment is it one to be submitted.

        Parameters
        ----------
        intent
            The attempt that the job is.
        told
            How the run came about, kept as its event ``made``.
        at
            When.

        Returns
        -------
        bool
            Whether it was new.

        Raises
        ------
        InvalidInput
            When the job is another run's: whoever says so could have that one ended.
        """
        try:
            return self._record(plan, intent, job, told, at)
        except IntegrityError:  # another service has just done so
            return False

    def _record(self, plan: JobPlan, intent: Intent, job: SubmittedJob, told: Json, at: datetime) -> bool:
        tag = intent.tag
        with self.writing() as session:
            parent = plan.parent_run and session.get(RunRow, plan.parent_run, with_for_update=True)
            message_id = (parent.message_id if parent else None) or message_id_of(session, plan.collection.uid)
            if not add_runs(session, [(message_id, plan)]):
                return False
            if other := _run_of(session, job):
                raise InvalidInput(
                    f"run {tag.run_id}: job {job.identity} is that of run {other}", remedy="run it again"
                )
            run = session.get_one(RunRow, tag.run_id)
            run.state, run.attempts, run.created_at = RunState.SUBMITTING, tag.attempt, at
            session.flush()
            insert_intents(session, [intent], gateway=job.gateway, at=at, holder=None)
            record_job(session, run, tag, job)
            add_event(session, tag, MADE, told, utc_now())
            came_home(session, plan, job.identity)
        return True

    def known_reruns(self, jobs: Collection[JobIdentity]) -> Set[tuple[str, int, str]]:
        """Return of which jobs there are runs: cluster, job id, and the run that was made again.

        Submit times aren't compared: a requeue changes them, and a job that couldn't ask SLURM guessed its own. That
        another job gets the same id and makes the same run again, a controller would have to lose its state for.
        """
        with self.reading() as session:
            return {known for lot in batched(jobs) for known in _known(session, lot)}

    def record_lost_rerun(self, parent: str, job: JobIdentity, told: Mapping[str, Json], at: datetime) -> bool:
        """Keep at a run that a job made it again, or was to, of which no run came home; once for each job.

        Later words on the same job take the place of earlier ones, until its run has come home.

        Returns
        -------
        bool
            Whether it was news.

        Raises
        ------
        NotFound
            When there is no such run.
        """
        detail: dict[str, Json] = {
            "cluster": job.cluster, "job_id": job.job_id, "submitted_at": job.submitted_at.isoformat(), **told,
        }  # fmt: skip
        with self.writing() as session:
            lock_run(session, parent)
            if (job.cluster, job.job_id, parent) in _known(session, [job]):
                return False
            event = _lost(session, parent, job)
            if event is None:
                add_event(session, RunTag(run_id=parent, attempt=0), LOST, detail, at)
                return True
            before = _detail(event)
            if CAME_HOME in before or before == detail | {"submitted_at": before.get("submitted_at")}:
                return False
            event.detail, event.at = detail | {"submitted_at": before.get("submitted_at")}, at
        return True


def _known(session: Session, jobs: Collection[JobIdentity]) -> Set[tuple[str, int, str]]:
    row = AttemptRow
    here = row.cluster.in_({job.cluster for job in jobs}), row.job_id.in_({job.job_id for job in jobs})
    wanted = select(row.cluster, row.job_id, RunRow.parent_run_id).join(RunRow, row.run_id == RunRow.run_id)
    found = session.execute(wanted.where(*here, RunRow.parent_run_id.is_not(None)))
    return {(str(cluster), int(job_id or 0), str(parent)) for cluster, job_id, parent in found}


def came_home(session: Session, plan: JobPlan, job: JobIdentity) -> None:
    """Say at a run's parent, which should be locked, that it has come home, where its job was called lost."""
    if plan.parent_run is not None and (event := _lost(session, plan.parent_run, job)) is not None:
        event.detail = _detail(event) | {CAME_HOME: plan.run_id}


def _lost(session: Session, parent: str, job: JobIdentity) -> JobEventRow | None:
    events = session.scalars(select(JobEventRow).filter_by(run_id=parent, attempt=0, kind=LOST))
    same = {"cluster": job.cluster, "job_id": job.job_id}
    return next((event for event in events if same.items() <= _detail(event).items()), None)


def _detail(event: JobEventRow) -> dict[str, Json]:
    return dict(event.detail) if isinstance(event.detail, dict) else {}


def _run_of(session: Session, job: SubmittedJob) -> str | None:
    one, row = job.identity, AttemptRow
    same = (row.cluster == one.cluster, row.job_id == one.job_id, row.submitted_at == one.submitted_at)
    return session.scalar(select(row.run_id).where(*same).limit(1))
