"""Runs that somebody made without the service: taken in when it hears of them, with the job that they have."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from orchestrator.errors import InvalidInput
from orchestrator.provenance.database import Database
from orchestrator.provenance.intents import insert_intents, record_job
from orchestrator.provenance.messages import message_id_of
from orchestrator.provenance.new_runs import add_runs
from orchestrator.provenance.rows import MADE, Intent
from orchestrator.provenance.runs import add_event
from orchestrator.provenance.tables import AttemptRow, RunRow
from orchestrator.records import JobPlan, Json, RunState, SubmittedJob, utc_now


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
            parent = session.scalar(select(RunRow.message_id).where(RunRow.run_id == plan.parent_run))
            message_id = parent or message_id_of(session, plan.collection.uid)
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
        return True


def _run_of(session: Session, job: SubmittedJob) -> str | None:
    one, row = job.identity, AttemptRow
    same = (row.cluster == one.cluster, row.job_id == one.job_id, row.submitted_at == one.submitted_at)
    return session.scalar(select(row.run_id).where(*same).limit(1))
