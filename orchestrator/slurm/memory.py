"""A little SLURM in memory, for tests of everything that uses a gateway.

It keeps the contract as the real routes do, and is deterministic: jobs start pending and do what the test tells them.
Faults are scripted: what the next submissions meet is put into `upcoming`; `controller_up` and `accounting_up` are
switches. Nothing is run, and nothing of the script is read but its ``--array``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from enum import Enum, auto
from pathlib import Path
from threading import Lock
from typing import ClassVar

from orchestrator.errors import GatewayError, GatewayUnavailable, OutcomeUnknown, SubmitRefused, UnknownJob
from orchestrator.records import (
    BatchScript,
    Evidence,
    JobIdentity,
    JobReport,
    JobState,
    RerunJob,
    RerunTag,
    RunTag,
    Submission,
    SubmittedJob,
    utc_now,
)
from orchestrator.slurm.arrays import fold
from orchestrator.slurm.directives import array_tasks
from orchestrator.slurm.gateway import Gateway, GatewayInfo
from orchestrator.slurm.states import job_state


class Meets(Enum):
    """What a submission meets."""

    ACCEPTANCE = auto()
    REFUSAL = auto()
    UNAVAILABLE = auto()
    LOST_REQUEST = auto()
    """No answer, and no job."""
    LOST_REPLY = auto()
    """No answer, but the job exists."""
    LATE_ACCEPTANCE = auto()
    """No answer, and the job comes into being at the next `accept_late`."""


class MemoryGateway(Gateway):
    """Jobs as records in memory.

    Parameters
    ----------
    cluster
        The cluster's name.
    accounting
        Whether there is accounting.
    clock
        Gives the submit times.
    """

    name: ClassVar[str] = "memory"

    def __init__(
        self, *, cluster: str = "memory", accounting: bool = True, clock: Callable[[], datetime] = utc_now
    ) -> None:
        self.upcoming: deque[Meets] = deque()
        self.controller_up = True
        self.accounting_up = True
        self.next_id = 1
        self.calls: list[str] = []
        """Names of the contract's methods in the order they were called."""
        self._cluster = cluster
        self._accounting = accounting
        self._clock = clock
        self._lock = Lock()
        self._controller: dict[JobIdentity, JobReport] = {}
        self._records: dict[JobIdentity, JobReport] = {}
        self._tasks: dict[JobIdentity, dict[int, JobReport]] = {}
        """The rows of each job array."""
        self._after: dict[JobIdentity, tuple[JobIdentity, ...]] = {}
        self._late: list[Submission] = []
        self._reruns: dict[JobIdentity, RerunJob] = {}
        """Jobs that others handed over, as they were then."""

    # ------------------------------------------------------------------------------------------- the contract

    def check(self) -> GatewayInfo:
        self._called("check")
        return GatewayInfo(gateway=self.name, cluster=self._cluster, release="memory", accounting=self._accounting)

    def submit(self, submission: Submission) -> SubmittedJob:
        self._called("submit")
        with self._lock:
            meets = self.upcoming.popleft() if self.upcoming else Meets.ACCEPTANCE
            if meets is Meets.REFUSAL:
                raise SubmitRefused("Invalid partition name specified", remedy="--partition: choose another")
            if meets is Meets.UNAVAILABLE:
                raise GatewayUnavailable("the controller can't be reached", remedy="wait")
            if meets is Meets.LATE_ACCEPTANCE:
                self._late.append(submission)
            elif meets is not Meets.LOST_REQUEST:
                identity = self._accept(submission)
            if meets is not Meets.ACCEPTANCE:
                raise OutcomeUnknown("the socket timed out", remedy="look for the job by its tag")
            return SubmittedJob(identity=identity, gateway=self.name)

    def submit_each(self, submissions: Iterator[Submission]) -> Iterator[SubmittedJob | GatewayError | None]:
        ahead = next(submissions, None)
        while ahead is not None:
            submission, ahead = ahead, next(submissions, None)
            try:
                answer = self.submit(submission)
            except GatewayError as error:
                yield error
                if ahead is not None:
                    yield None
                return
            yield answer

    def find(self, tag: RunTag, *, since: datetime) -> tuple[JobReport, ...]:
        self._called("find")
        earliest = since.replace(microsecond=0)
        both = self._accounted() | self._controller
        return tuple(r for job, r in both.items() if r.name == tag.job_name and job.submitted_at >= earliest)

    def poll(self, jobs: Sequence[JobIdentity]) -> Mapping[JobIdentity, JobReport]:
        self._called("poll")
        return {job: self._controller[job] for job in jobs if job in self._controller}

    def account(self, jobs: Sequence[JobIdentity]) -> Mapping[JobIdentity, JobReport]:
        self.calls.append("account")
        accounted = self._accounted()
        return {job: accounted[job] for job in jobs if job in accounted}

    def queued_reruns(self) -> Sequence[RerunJob]:
        self._called("queued_reruns")
        return [
            replace(self._reruns[job], report=self._controller[job]) for job in self._reruns if job in self._controller
        ]

    def accounted_reruns(self, *, since: datetime) -> Sequence[RerunJob]:
        self.calls.append("accounted_reruns")
        told = {job: report for job, report in self._accounted().items() if job in self._reruns}
        lived = (job for job, report in told.items() if report.ended_at is None or report.ended_at >= since)
        return [replace(self._reruns[job], report=told[job]) for job in lived]

    def cancel(self, job: JobIdentity) -> None:
        self._called("cancel")
        if job not in self._controller and job not in self._accounted():
            raise UnknownJob(f"job {job} isn't known", remedy="its id may have been used again")
        if job in self._controller and not self._controller[job].state.ended:
            self.set_state(job, "CANCELLED by 0")

    # --------------------------------------------------------------------------------------- the test's levers

    def hand_over(self, tag: RerunTag, *, user: str, working_directory: Path) -> JobIdentity:
        """Let somebody hand a ``rerun.sbatch`` to sbatch."""
        script = BatchScript(text="#!/bin/bash\n", template_name="", template_text="")
        none = RunTag(run_id=tag.parent, attempt=0)
        with self._lock:
            identity = self._accept(Submission(tag=none, script=script, working_directory=working_directory))
        report = replace(self._controller[identity], name=tag.job_name, comment=tag.comment)
        self._keep(report)
        self._reruns[identity] = RerunJob(report=report, tag=tag, user=user, working_directory=working_directory)
        return identity

    def set_state(
        self,
        job: JobIdentity,
        words: str,
        *,
        exit_code: int | None = None,
        signal: int | None = None,
        reason: str = "",
        task: int | None = None,
    ) -> None:
        """Let a job be in a state of SLURM's, in SLURM's words; accounting hears of it too.

        A job array's tasks are all in it, or the one that is named. Jobs that come after one that fails are cancelled.
        """
        state = job_state(words)
        self._check_dependency(job, state)

        def changed(before: JobReport) -> JobReport:
            begins = before.started_at is None and state not in {JobState.PENDING, JobState.CANCELLED}
            return replace(
                before,
                state=state,
                words=words,
                reason=reason,
                exit_code=exit_code,
                signal=signal,
                nodes="" if state is JobState.PENDING else "memory[1]",
                started_at=self._clock() if begins else before.started_at,
                ended_at=self._clock() if state.ended else None,
            )

        if rows := self._tasks.get(job):
            for number in rows if task is None else (task,):
                rows[number] = replace(changed(rows[number]), tasks={number: state})
            self._keep(fold(list(rows.values())))
        else:
            self._keep(changed(self._controller[job]))
        self._end_dependents(job)

    def requeue(self, job: JobIdentity) -> None:
        """Let SLURM put a job back into the queue."""
        before = self._controller[job]
        self._keep(replace(before, restarts=before.restarts + 1, started_at=None, ended_at=None))
        self.set_state(job, "PENDING", reason="BeginTime")

    def purge(self, job: JobIdentity, *, accounting: bool = False) -> None:
        """Let the controller forget a job (MinJobAge), and accounting too if told."""
        self._controller.pop(job, None)
        if accounting:
            self._records.pop(job, None)

    def accept_late(self) -> None:
        """Let the submissions come into being whose answer was lost before the controller dealt with them."""
        with self._lock:
            for submission in self._late:
                self._accept(submission)
            self._late.clear()

    @property
    def jobs(self) -> tuple[JobReport, ...]:
        """Every job that ever came into being and isn't purged everywhere, oldest first."""
        return tuple((self._controller | self._records).values())

    # ---------------------------------------------------------------------------------------------- inside

    def _called(self, method: str) -> None:
        self.calls.append(method)
        if not self.controller_up:
            said = "Unable to contact slurm controller (connect failure)"
            raise GatewayUnavailable(said, remedy="`scontrol ping`", everywhere=True)

    def _accounted(self) -> dict[JobIdentity, JobReport]:
        if self._accounting and not self.accounting_up:
            raise GatewayUnavailable("accounting can't be reached", remedy="see that slurmdbd runs")
        return {job: replace(report, evidence=Evidence.ACCOUNTING) for job, report in self._records.items()}

    def _check_dependency(self, job: JobIdentity, state: JobState) -> None:
        waits_for = [str(one) for one in self._after.get(job, ()) if not self._satisfied(one)]
        if waits_for and state not in {JobState.PENDING, JobState.CANCELLED}:
            raise ValueError(f"job {job} comes after {', '.join(waits_for)} and can't be {state}")

    def _satisfied(self, job: JobIdentity) -> bool:
        """Whether a dependency is met; one on a job that the controller has forgotten is, as SLURM has it."""
        return job not in self._controller or self._controller[job].state is JobState.COMPLETED

    def _end_dependents(self, job: JobIdentity) -> None:
        if not self._controller[job].state.ended or self._satisfied(job):
            return
        for later, after in self._after.items():
            if job in after and later in self._controller and not self._controller[later].state.ended:
                self.set_state(later, "CANCELLED", reason="DependencyNeverSatisfied")

    def _accept(self, submission: Submission) -> JobIdentity:
        tasks = array_tasks(submission.script.text)
        submitted_at = self._clock().replace(microsecond=0)
        identity = JobIdentity(cluster=self._cluster, job_id=self.next_id, submitted_at=submitted_at)
        self.next_id += 1
        report = JobReport(
            identity=identity,
            name=submission.tag.job_name,
            comment=submission.tag.comment,
            state=JobState.PENDING,
            words="PENDING",
            evidence=Evidence.CONTROLLER,
            reason="Dependency" if submission.after else "",
            tasks=dict.fromkeys(tasks, JobState.PENDING),
        )
        self._keep(report)
        self._after[identity] = submission.after
        if tasks:
            self._tasks[identity] = {number: replace(report, tasks={number: report.state}) for number in tasks}
        for earlier in submission.after:
            if earlier in self._controller:
                self._end_dependents(earlier)
        return identity

    def _keep(self, report: JobReport) -> None:
        self._controller[report.identity] = report
        if self._accounting:
            self._records[report.identity] = report
