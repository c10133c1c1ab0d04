"""The contract that every route to SLURM keeps.

In: frozen submissions and job identities. Out: frozen reports. A gateway never touches the database, never retries by
itself and never guesses: what it doesn't know it says (`OutcomeUnknown`), and what it couldn't ask it says too
(`GatewayUnavailable`), so that the caller can tell *absent* from *not heard of*.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import ClassVar

from orchestrator.errors import GatewayError, GatewayUnavailable, SubmitRefused
from orchestrator.records import JobIdentity, JobReport, RerunJob, RunTag, Submission, SubmittedJob

CLOCK_DIFFERENCE = timedelta(minutes=5)
"""How far SLURM's clock may be from ours when a job is looked for that was submitted since a moment of ours."""

CLOCK_JUMP = timedelta(days=1)
"""How far a clock may have been set, by hand or by a machine that woke up with a wrong one. A look that far back costs
accounting more, so it is taken once, before absence is believed."""

LOOK_AHEAD_S = 1.0
"""How old a submission may be that was taken ahead, when it is sent."""

WAITING_AGE_S = 10.0
"""How old what `Gateway.poll` tells of a job that waits may be."""


def dependency(after: Sequence[JobIdentity]) -> str:
    """Return SLURM's ``--dependency`` for a job that comes after others; no text when there are none.

    An id that the controller has forgotten counts as satisfied (SLURM 22.05): the job's own fence looks again.
    """
    return "afterok:" + ":".join(str(job.job_id) for job in after) if after else ""


def refuse_other_users(submission: Submission, route: str) -> None:
    """Raise `SubmitRefused` for a submission that is to belong to somebody else: `route` can't do that."""
    if submission.user is not None:
        raise SubmitRefused(
            f"the route {route} submits as the service's own user, not as {submission.user}",
            remedy='leave out submit_as, or take the route that can: gateway.route = "rest"',
        )


def check_folder(folder: Path) -> None:
    """Raise `GatewayUnavailable` for a working directory that isn't there.

    A moment ago it was: who submits has written it. So a file system is out of sight, and the next try makes it anew.
    """
    if not folder.is_dir():
        raise GatewayUnavailable(f"{folder}: no such folder", remedy="see that its file system is there", doubtful=True)


@dataclass(frozen=True, kw_only=True)
class GatewayInfo:
    """What stands behind a gateway."""

    gateway: str
    cluster: str
    release: str
    """SLURM's release, e.g. ``22.05.8``; the operating system's for the local route."""
    accounting: bool
    """Whether finished jobs can be looked up after the controller has forgotten them."""


class Gateway(ABC):
    """One route to SLURM. Methods may be called from several threads at the same time."""

    name: ClassVar[str]

    @abstractmethod
    def check(self) -> GatewayInfo:
        """Ask whether the other side can be reached, and what it is.

        Raises
        ------
        GatewayUnavailable
            When it can't be reached; the message names the program or address and the remedy.
        """

    @abstractmethod
    def submit(self, submission: Submission) -> SubmittedJob:
        """Hand a script to SLURM, once.

        The script's own ``#SBATCH`` lines decide, ``--array`` among them; the submitter's ``SLURM_*`` and ``SBATCH_*``
        variables don't leak into the job. The job carries the tag's name and comment, waits for the jobs that the
        submission comes after, and belongs to the submission's user; a route that can't submit for another user
        refuses. A job that comes after one that failed never runs: it is cancelled, or waits with the reason
        ``DependencyNeverSatisfied`` until somebody cancels it. A job array is one job, here and in every report.

        Raises
        ------
        SubmitRefused
            SLURM refused for good (unknown partition, limit that can never be met, bad option); no job exists.
        GatewayUnavailable
            The call surely had no effect and may be repeated.
        OutcomeUnknown
            No answer came; the job may exist. Look with `find` before trying again.
        """

    def submit_each(self, submissions: Iterator[Submission]) -> Iterator[SubmittedJob | GatewayError | None]:
        """Hand scripts over one after another, each as `submit` does, until one isn't accepted; give what each met.

        What `submit` raises is given, and is the end. A route may take one submission more before it gives what became
        of the last, so that SLURM needn't wait for its caller: of one that was taken after the one that wasn't
        accepted None is given; it surely wasn't sent. One is sent within `LOOK_AHEAD_S` after it was taken, or not.
        """
        for submission in submissions:
            try:
                job = self.submit(submission)
            except GatewayError as error:
                yield error
                return
            yield job

    @abstractmethod
    def find(self, tag: RunTag, *, since: datetime) -> tuple[JobReport, ...]:
        """Look for jobs with this tag, submitted at or after `since`: in the controller, then in accounting.

        An empty answer proves absence at both places (a job still being accepted can appear later: the caller waits).

        Raises
        ------
        GatewayUnavailable
            When a place that has to be asked couldn't be.
        """

    @abstractmethod
    def poll(self, jobs: Sequence[JobIdentity]) -> Mapping[JobIdentity, JobReport]:
        """Ask the controller about all `jobs` in one call; jobs it doesn't know (any more) are left out.

        A job id that now belongs to another job (other submit time) is left out as well. That a job has begun or ended
        is told at once. Why it waits, and that it has left the controller unseen, may be told `WAITING_AGE_S` late:
        where there are thousands of jobs a route may keep what it heard of those that wait. Such an answer has the same
        report objects as the one before, as far as nothing has changed.

        Raises
        ------
        GatewayUnavailable
            When the controller can't be asked; what happened meanwhile is in the next answer.
        """

    @abstractmethod
    def account(self, jobs: Sequence[JobIdentity]) -> Mapping[JobIdentity, JobReport]:
        """Ask accounting about all `jobs` in one call; unknown ones are left out. Empty where there is no accounting.

        Raises
        ------
        GatewayUnavailable
            When accounting is configured but can't be asked.
        """

    @abstractmethod
    def queued_reruns(self) -> Sequence[RerunJob]:
        """List everybody's jobs that carry a `RerunTag`, as the controller has them; an array is one.

        Where the site lets users see their own jobs only (``PrivateData=jobs``), and the service's account is neither
        operator nor administrator, others' jobs are missing: nothing tells that from there being none.

        Raises
        ------
        GatewayUnavailable
            When the controller can't be asked.
        """

    @abstractmethod
    def accounted_reruns(self, *, since: datetime) -> Sequence[RerunJob]:
        """List from accounting such jobs that hadn't ended by `since`. Empty where there is no accounting.

        That takes a while where there are many jobs. Those that were held, or waited for another one, until they were
        cancelled are missing: for SLURM there was no time in which they could have run. Of a job that was requeued it
        is the last start; the submit time in its identity is that of the first start that hadn't ended by `since`.

        Raises
        ------
        GatewayUnavailable
            When accounting is configured but can't be asked.
        """

    @abstractmethod
    def cancel(self, job: JobIdentity) -> None:
        """End a job, of an array all tasks. Cancelling one that has ended already is no error.

        Raises
        ------
        UnknownJob
            When the controller never heard of it.
        GatewayUnavailable
            When the controller can't be asked.
        """

    def close(self) -> None:
        """Let go of helper processes and connections. Jobs go on."""
