"""The route over SLURM's own commands: sbatch, squeue, sacct, scancel, scontrol.

One process per call, one call for all jobs. Nothing is kept between calls but the cluster's name, and the last answer
about the queue (`queue_view`). The commands' output is read by `parsing`, their failures by `failures`; this module
only decides what to ask.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import ClassVar

from orchestrator.errors import GatewayUnavailable, OutcomeUnknown
from orchestrator.records import JobIdentity, JobReport, RerunJob, RunTag, Submission, SubmittedJob
from orchestrator.slurm import lookup, parsing
from orchestrator.slurm.environment import for_jobs
from orchestrator.slurm.failures import query_failure, submit_failure
from orchestrator.slurm.gateway import (
    WAITING_AGE_S,
    Gateway,
    GatewayInfo,
    check_folder,
    dependency,
    refuse_other_users,
)
from orchestrator.slurm.queue_view import BEGUN, QueueView

LONG_QUEUE = 1_000
"""From how many jobs on `poll` asks for the whole queue only every `WAITING_AGE_S`."""

_IDS_PER_CALL = 10_000
"""Linux limits one argument to 128 KiB; this many ids fit."""
_PRINTED_SO = {"TZ": "UTC", "SLURM_TIME_FORMAT": "%s", "LC_ALL": "C.UTF-8", "SLURM_BITSTR_LEN": "0"}
"""How the commands are to print: times as seconds, lists of array tasks whole."""
_ACCOUNTING_ABSENT = re.compile(r"accounting storage is disabled", re.IGNORECASE)
_ABSENT_STORAGE = frozenset({"accounting_storage/none", "none", "(null)", "", "N/A"})
_BY_SIGNAL = 128
_SIGNALS = range(1, 65)
"""A shell, which an sbatch of the site may be, adds a signal's number to 128; sbatch's own 255 isn't one."""
_INVALID_ID = "Invalid job id specified"


@dataclass(frozen=True, kw_only=True)
class _Answer:
    code: int
    out: str
    err: str


class CliGateway(Gateway):
    """SLURM through its commands.

    Parameters
    ----------
    submit_timeout_s
        How long sbatch may take. It waits by itself, up to two minutes, while the controller is too busy; when it is
        stopped at the time-out the outcome is unknown.
    query_timeout_s
        How long squeue, sacct, scancel and scontrol may take.
    programs
        Folder of SLURM's commands where they aren't on the PATH.
    environment
        What the commands get instead of this process's environment. ``SLURM_*`` and ``SBATCH_*`` are taken out either
        way, but for what is needed to reach the cluster.
    long_queue
        From how many jobs on `poll` asks for the whole queue only now and then.
    """

    name: ClassVar[str] = "cli"

    def __init__(
        self,
        *,
        submit_timeout_s: float = 60.0,
        query_timeout_s: float = 60.0,
        programs: Path | None = None,
        environment: Mapping[str, str] | None = None,
        long_queue: int = LONG_QUEUE,
    ) -> None:
        self._long_queue = long_queue
        self._view: QueueView | None = None
        self._submit_timeout_s = submit_timeout_s
        self._query_timeout_s = query_timeout_s
        self._programs = programs
        self._environment = for_jobs(os.environ if environment is None else environment)
        self._info: GatewayInfo | None = None

    def check(self) -> GatewayInfo:
        config = parsing.parse_config(self._ask("scontrol", "show", "config"))
        if "ClusterName" not in config:
            raise GatewayUnavailable("scontrol show config names no cluster", remedy="try it in a shell")
        self._info = GatewayInfo(
            gateway=self.name,
            cluster=config["ClusterName"],
            release=config.get("SLURM_VERSION", "unknown"),
            accounting=config.get("AccountingStorageType", "") not in _ABSENT_STORAGE,
        )
        return self._info

    def submit(self, submission: Submission) -> SubmittedJob:
        refuse_other_users(submission, self.name)
        self._known()  # that SLURM answers is found out before anything is sent
        check_folder(submission.working_directory)
        # The script carries name and comment too; here they hold whatever a template leaves out.
        options = ["--parsable", f"--job-name={submission.tag.job_name}", f"--comment={submission.tag.comment}"]
        if submission.after:
            # On the command line, not in the script, which stays fit to be run again by itself.
            options += [f"--dependency={dependency(submission.after)}", "--kill-on-invalid-dep=yes"]
        answer = self._run(
            "sbatch",
            *options,
            # Not by its path: who may write there could put another script in its place before sbatch reads it.
            script=submission.script.text,
            timeout_s=self._submit_timeout_s,
            environment=self._environment,
            folder=submission.working_directory,
        )
        signal = -answer.code if answer.code < 0 else answer.code - _BY_SIGNAL
        if signal in _SIGNALS:
            raise OutcomeUnknown(f"sbatch was ended by signal {signal}", remedy="look for the job by its tag")
        if answer.code > 0:
            raise submit_failure(answer.err)
        job_id = parsing.parse_sbatch(answer.out)
        if job_id is None:
            raise OutcomeUnknown(f"sbatch printed no job id but {answer.out!r}", remedy="look for the job by its tag")
        return SubmittedJob(identity=lookup.read_back(job_id, lambda: self._one(job_id)), gateway=self.name)

    def find(self, tag: RunTag, *, since: datetime) -> tuple[JobReport, ...]:
        earliest = since.replace(microsecond=0)
        return self.with_accounted(parsing.tagged(self._queue(), tag, earliest), tag, earliest)

    def with_accounted(self, queued: Sequence[JobReport], tag: RunTag, earliest: datetime) -> tuple[JobReport, ...]:
        """Add to the controller's jobs with a tag those that only accounting knows any more."""
        return lookup.with_accounted(queued, tag, earliest, lambda: self._accounting(earliest, f"--user={os.getuid()}"))

    def poll(self, jobs: Sequence[JobIdentity]) -> Mapping[JobIdentity, JobReport]:
        if not jobs:
            return {}
        jobs = tuple(jobs)  # the same object where it is one already: a view knows at once what it was made for
        # An answer that is lost leaves nothing to compare the next one with: that one is asked for whole.
        before, self._view = self._view, None
        self._view = view = self._view_for(jobs, before)
        told = view.told_of(jobs)
        return told if len(told) == len(jobs) else {**told, **self._of_others([job for job in jobs if job not in told])}

    def _of_others(self, jobs: Sequence[JobIdentity]) -> Mapping[JobIdentity, JobReport]:
        """Return the reports of jobs that aren't this user's: somebody made a run again with sbatch."""
        cluster = self._known().cluster
        ids = sorted({job.job_id for job in jobs if job.cluster == cluster})
        queue = {report.identity.job_id: report for report in (self._by_id(*ids) if ids else ())}
        found = ((job, queue[job.job_id]) for job in jobs if job.job_id in queue)
        return {job: replace(report, identity=job) for job, report in found if parsing.is_same_job(job, report)}

    def _view_for(self, jobs: Sequence[JobIdentity], before: QueueView | None) -> QueueView:
        now_s = time.monotonic()
        if before is not None and len(before.rows) >= self._long_queue and now_s - before.whole_at_s < WAITING_AGE_S:
            moved = before.moved(self._squeue(states=BEGUN)) if before.knows(jobs) else None
            if moved is not None:
                return moved
        cluster = self._known().cluster
        return QueueView.of_whole(self._squeue(), jobs, cluster=cluster, at_s=now_s, before=before)

    def account(self, jobs: Sequence[JobIdentity]) -> Mapping[JobIdentity, JobReport]:
        def ask(since: datetime, ids: Sequence[int]) -> list[JobReport]:
            return self._accounting(since, "--allusers", f"--jobs={','.join(map(str, ids))}")

        return lookup.accounted(jobs, self._known().cluster, ask, at_once=_IDS_PER_CALL) if jobs else {}

    def queued_reruns(self) -> Sequence[RerunJob]:
        cluster = self._known().cluster
        text = self._ask(
            "squeue", "--noheader", "--all", "--local", "--states=all", f"--Format={parsing.RERUN_QUEUE_FORMAT}"
        )
        return parsing.parse_queued_reruns(text, cluster=cluster)

    def accounted_reruns(self, *, since: datetime) -> Sequence[RerunJob]:
        cluster = self._known().cluster
        everybody = ("--allusers", "--allocations", f"--format={parsing.RERUN_ACCOUNT_FORMAT}")
        return parsing.parse_accounted_reruns(self._sacct(since, *everybody), cluster=cluster)

    def cancel(self, job: JobIdentity) -> None:
        if lookup.may_be_ended(job, self._one(job.job_id), self.account):
            self._ask("scancel", str(job.job_id))

    # ------------------------------------------------------------------------------------------- what is asked

    def _known(self) -> GatewayInfo:
        return self._info or self.check()

    def _queue(self) -> list[JobReport]:
        cluster = self._known().cluster
        return parsing.parse_squeue(self._squeue(), cluster=cluster)

    def _squeue(self, *, states: str = "all") -> str:
        """Return all of this user's jobs: naming ids would load everybody's."""
        return self._ask(
            "squeue", "--noheader", "--all", "--local", f"--states={states}", f"--user={os.getuid()}",
            f"--Format={parsing.QUEUE_FORMAT}",
        )  # fmt: skip

    def _one(self, job_id: int) -> JobReport | None:
        return next(iter(self._by_id(job_id)), None)

    def _by_id(self, *job_ids: int) -> list[JobReport]:
        """Return those of some jobs that the controller knows, whosever they are."""
        cluster = self._known().cluster
        command = ("--noheader", "--all", "--local", "--states=all", f"--Format={parsing.QUEUE_FORMAT}")
        answer = self._run("squeue", *command, f"--jobs={','.join(map(str, job_ids))}")
        if answer.code != 0 and _INVALID_ID not in answer.err:  # what it says of a single one that is purged
            raise query_failure("squeue", answer.err)
        return parsing.parse_squeue(answer.out, cluster=cluster)

    def _accounting(self, since: datetime, *selection: str) -> list[JobReport]:
        cluster = self._known().cluster
        text = self._sacct(since, f"--format={parsing.ACCOUNT_FORMAT}", *selection)
        return parsing.parse_sacct(text, cluster=cluster)

    def _sacct(self, since: datetime, *selection: str) -> str:
        """Return the records of jobs that had not ended before `since`; the end allows for a clock that is ahead."""
        cluster = self._known().cluster
        until = datetime.now(UTC) + timedelta(days=1)
        answer = self._run(
            "sacct", "--noheader", "--parsable2", f"--delimiter={parsing.SEPARATOR}", "--duplicates", "--units=K",
            f"--starttime={since:%Y-%m-%dT%H:%M:%S}", f"--endtime={until:%Y-%m-%dT%H:%M:%S}",
            # The controller's cluster: slurm.conf here may name another one, of which sacct would tell instead.
            f"--clusters={cluster}", *selection,
        )  # fmt: skip
        if answer.code == 0:
            return answer.out
        if _ACCOUNTING_ABSENT.search(answer.err):
            return ""
        raise query_failure("sacct", answer.err)

    # ---------------------------------------------------------------------------------------- how it is asked

    def _ask(self, program: str, *arguments: str) -> str:
        answer = self._run(program, *arguments)
        if answer.code != 0:
            raise query_failure(program, answer.err)
        return answer.out

    def _run(
        self,
        program: str,
        *arguments: str,
        timeout_s: float | None = None,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        script: str = "",
    ) -> _Answer:
        path = str(self._programs / program) if self._programs else program
        try:
            with _as_file(script) as stdin:
                done = subprocess.run(
                    [path, *arguments],
                    stdin=stdin,
                    capture_output=True,
                    timeout=timeout_s or self._query_timeout_s,
                    env=environment or self._environment | _PRINTED_SO,
                    cwd=folder,
                    check=False,
                    # A Ctrl-C in the service's terminal must not reach a submission that is under way.
                    start_new_session=True,
                )
        except subprocess.TimeoutExpired as error:
            said = f"{program} gave no answer within {error.timeout:g} s"
            if program == "sbatch":
                raise OutcomeUnknown(said, remedy="look for the job by its tag before submitting it again") from error
            raise GatewayUnavailable(said, remedy="see that slurmctld answers: `scontrol ping`") from error
        except OSError as error:
            remedy = 'install SLURM\'s commands or put them on the PATH; without SLURM choose gateway = "local"'
            said = f"{path} can't be started: {error.strerror}"
            raise GatewayUnavailable(said, remedy=remedy, everywhere=True) from error
        return _Answer(code=done.returncode, out=_decoded(done.stdout), err=_decoded(done.stderr))


@contextmanager
def _as_file(text: str) -> Iterator[int]:
    """Give a text as an open file, whole before anybody reads it.

    Through a pipe, an sbatch that outlives a service that is killed would take what has arrived for the script.
    """
    descriptor = os.memfd_create("script")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(text.encode())
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


def _decoded(output: bytes) -> str:
    return output.decode(errors="replace")
