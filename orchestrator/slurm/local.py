"""The route without SLURM: the same script, on this machine, with the same outcomes.

Jobs wait in a folder, at most so many run at once, in order; each one has a supervisor process that outlives the
service. Honoured of the ``#SBATCH`` lines: output, error, open-mode, chdir, time, export, array (its tasks run one
after another); what only has a meaning on a cluster (partition, account, memory, …) is read over; several nodes and
dependencies in the script are refused. Nothing limits a job's memory here. How the folder works is told in
`local_queue`.
"""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import ClassVar

from orchestrator.errors import GatewayUnavailable, SubmitRefused, UnknownJob
from orchestrator.records import (
    Evidence,
    JobIdentity,
    JobReport,
    JobState,
    RerunJob,
    RunTag,
    Submission,
    SubmittedJob,
    utc_now,
)
from orchestrator.slurm.arrays import fold
from orchestrator.slurm.directives import Directives, exported, read_directives
from orchestrator.slurm.environment import for_jobs
from orchestrator.slurm.gateway import Gateway, GatewayInfo, check_folder, refuse_other_users
from orchestrator.slurm.local_queue import JobFolder, LocalJob, LocalQueue, Status
from orchestrator.slurm.states import job_state

_WAITING = Status(words="PENDING", reason="Resources")
_WAITS_FOR_ANOTHER = Status(words="PENDING", reason="Dependency")


class LocalGateway(Gateway):
    """Jobs on this machine.

    Parameters
    ----------
    state_folder
        Where the jobs are kept, on this machine's own disk; made when it isn't there. Another gateway with the same
        folder, in this process or a later one, sees the same jobs.
    parallel
        How many jobs may run at once; the others wait.
    kill_wait_s
        Seconds between SIGTERM and SIGKILL for a job that has to end, as KillWait in slurm.conf.
    environment
        What jobs see instead of this process's environment; ``SLURM_*`` and ``SBATCH_*`` are taken out either way.
    """

    name: ClassVar[str] = "local"

    def __init__(
        self,
        state_folder: Path,
        *,
        parallel: int = 2,
        kill_wait_s: float = 30.0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._queue = LocalQueue(state_folder.absolute())
        self._parallel = parallel
        self._kill_wait_s = kill_wait_s
        self._environment = {
            name: value
            for name, value in for_jobs(os.environ if environment is None else environment).items()
            if not name.startswith("SLURM_")
        }
        self._cluster = f"local-{socket.gethostname()}"
        self._prepared = False

    def check(self) -> GatewayInfo:
        self._ready()
        return GatewayInfo(gateway=self.name, cluster=self._cluster, release=platform.release(), accounting=True)

    def submit(self, submission: Submission) -> SubmittedJob:
        refuse_other_users(submission, self.name)
        asked = read_directives(submission.script.text)
        check_folder(submission.working_directory)
        home = asked.chdir or submission.working_directory
        if not home.is_dir():
            raise SubmitRefused(f"{home}: no such folder", remedy="correct --chdir")
        self._ready(start=False)
        try:
            job = self._queue.add(
                self._job(submission, asked, home),
                script=submission.script.text,
                environment=exported(self._environment, asked.export),
            )
        except OSError as error:
            raise self._broken(error) from error
        # The job is in the queue, come what may; if it can't be started now, the next look tries again and says so.
        with suppress(GatewayUnavailable):
            self._ready()
        return SubmittedJob(identity=_identity(job), gateway=self.name)

    def find(self, tag: RunTag, *, since: datetime) -> tuple[JobReport, ...]:
        self._ready()
        earliest = since.replace(microsecond=0)
        jobs = ((folder, folder.job()) for folder in self._queue.folders())
        ours = ((folder, job) for folder, job in jobs if job.name == tag.job_name and job.submitted_at >= earliest)
        return tuple(_report(folder, job, Evidence.CONTROLLER) for folder, job in ours)

    def poll(self, jobs: Sequence[JobIdentity]) -> Mapping[JobIdentity, JobReport]:
        self._ready()
        return self._reports(jobs, Evidence.CONTROLLER)

    def account(self, jobs: Sequence[JobIdentity]) -> Mapping[JobIdentity, JobReport]:
        self._ready()
        return self._reports(jobs, Evidence.ACCOUNTING)

    def queued_reruns(self) -> Sequence[RerunJob]:
        return ()  # what people run with bash is no job of this queue

    def accounted_reruns(self, *, since: datetime) -> Sequence[RerunJob]:  # noqa: ARG002 - as above
        return ()

    def cancel(self, job: JobIdentity) -> None:
        self._ready()
        if not self._reports([job], Evidence.CONTROLLER):
            raise UnknownJob(f"job {job} isn't known in {self._queue.root}", remedy="see `orchestrator runs`")
        if self._queue.is_active(job.job_id):
            try:
                self._queue.cancel(self._queue.folder(job.job_id))
            except OSError as error:
                raise self._broken(error) from error

    # ---------------------------------------------------------------------------------------------- inside

    def _ready(self, *, start: bool = True) -> None:
        """See that the folder is there, and that no job waits that could run."""
        try:
            if not self._prepared:
                self._queue.prepare(self._parallel)
                self._prepared = True
            if start:
                self._queue.start_waiting()
        except OSError as error:
            raise self._broken(error) from error

    def _broken(self, error: OSError) -> GatewayUnavailable:
        return GatewayUnavailable(
            f"{self._queue.root}: {error}", remedy="the folder must be writable and its disk not full"
        )

    def _job(self, submission: Submission, asked: Directives, home: Path) -> LocalJob:
        return LocalJob(
            job_id=0,
            name=submission.tag.job_name,
            comment=submission.tag.comment,
            cluster=self._cluster,
            submitted_at=utc_now().replace(microsecond=0),
            working_directory=str(home.absolute()),
            output=asked.output,
            error=asked.error,
            append=asked.append,
            time_limit_s=asked.time_limit_s,
            kill_wait_s=self._kill_wait_s,
            tasks=asked.tasks,
            after=tuple(one.job_id for one in submission.after),
        )

    def _reports(self, jobs: Sequence[JobIdentity], evidence: Evidence) -> dict[JobIdentity, JobReport]:
        reports = {}
        for identity in jobs:
            folder = self._queue.folder(identity.job_id)
            if folder.path.is_dir() and _identity(job := folder.job()) == identity:
                reports[identity] = _report(folder, job, evidence)
        return reports


def _identity(job: LocalJob) -> JobIdentity:
    return JobIdentity(cluster=job.cluster, job_id=job.job_id, submitted_at=job.submitted_at)


def _report(folder: JobFolder, job: LocalJob, evidence: Evidence) -> JobReport:
    status = folder.status() or (_WAITS_FOR_ANOTHER if job.after else _WAITING)
    if not job.tasks:
        return _told(job, status, evidence)
    told = {number: _told(job, _task_status(status, number), evidence) for number in job.tasks}
    return fold([replace(report, tasks={number: report.state}) for number, report in told.items()])


def _task_status(whole: Status, number: int) -> Status:
    """Return how a task stands; one that hadn't ended when the whole did ended with it."""
    task = whole.tasks.get(number)
    if whole.ended and (task is None or not task.ended):
        return replace(whole, started_at=task.started_at if task else None, tasks={})
    return task or (_WAITING if whole.started_at else whole)


def _told(job: LocalJob, status: Status, evidence: Evidence) -> JobReport:
    state = job_state(status.words)
    return JobReport(
        identity=_identity(job),
        name=job.name,
        comment=job.comment,
        state=state,
        words=status.words,
        evidence=evidence,
        reason=status.reason,
        exit_code=status.exit_code,
        signal=status.signal,
        nodes="" if state is JobState.PENDING else socket.gethostname(),
        started_at=status.started_at,
        ended_at=status.ended_at,
        usage=dict(status.usage),
    )
