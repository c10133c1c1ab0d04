"""The route through libslurm, called by way of pyslurm.

Its calls hold the interpreter's lock and may hang, so they are made in helper processes (`pyslurm_process`): one for
submissions, one for questions, because a long answer to a question mustn't hold a submission up. pyslurm is GPL-2.0 and
has to be of SLURM's own release: it is imported there only, by an interpreter of its own.

All active jobs at once are asked about with squeue: pyslurm makes an object of each job on the cluster, which costs
five times as much where there are thousands. Accounting is asked with sacct. pyslurm 22.5.3 files accounting's records
by job id and keeps the last of each: those of a requeued job's earlier runs, and of earlier owners of an id, would be
lost.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from orchestrator.errors import GatewayError, GatewayUnavailable, OutcomeUnknown, SubmitRefused
from orchestrator.records import Evidence, JobIdentity, JobReport, RerunJob, RunTag, Submission, SubmittedJob
from orchestrator.slurm import arrays, lookup, parsing
from orchestrator.slurm.cli import CliGateway
from orchestrator.slurm.environment import for_jobs
from orchestrator.slurm.failures import query_failure, submit_failure
from orchestrator.slurm.gateway import Gateway, GatewayInfo, check_folder, refuse_other_users
from orchestrator.slurm.pyslurm_job import describe
from orchestrator.slurm.pyslurm_process import CallFailed, Conversation, HelperProcess, NoAnswer, NotStarted
from orchestrator.slurm.states import job_state

_BUILD = "script/build-pyslurm builds the one for this host's SLURM; name its Python in gateway.pyslurm_python"
_LOOK = "look for the job by its tag before submitting it again"
_AT_ONCE = 2
"""Submissions handed to the helper: the one that it makes, and the next one."""
_SLURMS_OWN_ERRORS = range(2000, 3000)
"""Numbers of ``slurm_errno.h`` that only the controller's own judgement of a request has."""


class PyslurmGateway(Gateway):
    """SLURM through libslurm.

    Parameters
    ----------
    python
        The interpreter that has pyslurm; it needn't be the service's own.
    submit_timeout_s
        How long a submission may take; then its helper is killed and the outcome is unknown.
    query_timeout_s
        How long a question may take; then its helper is killed.
    environment
        What jobs and helpers get instead of this process's environment. ``SLURM_*`` and ``SBATCH_*`` are taken out
        either way, but for what is needed to reach the cluster.
    """

    name: ClassVar[str] = "pyslurm"

    def __init__(
        self,
        *,
        python: Path,
        submit_timeout_s: float = 60.0,
        query_timeout_s: float = 60.0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._submit_timeout_s = submit_timeout_s
        self._query_timeout_s = query_timeout_s
        self._environment = for_jobs(os.environ if environment is None else environment)
        self._submitter = HelperProcess(python, self._environment)
        self._asker = HelperProcess(python, self._environment)
        self._commands = CliGateway(query_timeout_s=query_timeout_s, environment=self._environment)
        self._info: GatewayInfo | None = None

    def check(self) -> GatewayInfo:
        config = self._ask("config")
        facts, release = self._asker.facts, config["version"]
        if not _release(release) == _release(facts["pyslurm"]) == _release(facts["api"]):
            raise GatewayUnavailable(
                f"pyslurm {facts['pyslurm']} of SLURM {facts['api']} doesn't fit this cluster's SLURM {release}",
                remedy=f'{_BUILD}; or take another route: gateway.route = "cli"',
            )
        self._info = GatewayInfo(
            gateway=self.name,
            cluster=config["cluster_name"],
            release=release,
            accounting=config["accounting_storage_type"].startswith("accounting_storage/slurmdbd"),
        )
        return self._info

    def submit(self, submission: Submission) -> SubmittedJob:
        [answer] = self.submit_each(iter([submission]))
        if not isinstance(answer, SubmittedJob):
            raise answer or AssertionError("the only one was left out")
        return answer

    def submit_each(self, submissions: Iterator[Submission]) -> Iterator[SubmittedJob | GatewayError | None]:
        first = next(submissions, None)
        if first is None:
            return
        try:
            cluster = self._known().cluster
            with self._submitter.conversation(timeout_s=self._submit_timeout_s) as conversation:
                yield from self._submit_each(chain([first], submissions), conversation, cluster)
        except NotStarted as error:
            yield _not_started(error)
        except GatewayUnavailable as error:
            yield error

    def _submit_each(
        self, submissions: Iterator[Submission], conversation: Conversation, cluster: str
    ) -> Iterator[SubmittedJob | GatewayError | None]:
        """Have the next submission lie ready while the helper is busy with one."""
        under_way = deque[GatewayError | None]()
        """What was taken: None for what was sent, the error for what can't be."""
        takes_more = True
        while True:
            while takes_more and len(under_way) < _AT_ONCE:
                submission = next(submissions, None)
                if submission is not None:
                    under_way.append(self._obstacle_or_sent(submission, conversation))
                takes_more = submission is not None and under_way[-1] is None
            if not under_way:
                return
            answer = under_way.popleft() or _received(conversation, cluster)
            takes_more = takes_more and isinstance(answer, SubmittedJob)
            yield answer

    def _obstacle_or_sent(self, submission: Submission, conversation: Conversation) -> GatewayError | None:
        try:
            refuse_other_users(submission, self.name)
            check_folder(submission.working_directory)
            asked = describe(submission, self._environment)
        except GatewayError as error:
            return error
        conversation.send("submit", script=asked.script, attributes=asked.attributes, environment=asked.environment)
        return None

    def find(self, tag: RunTag, *, since: datetime) -> tuple[JobReport, ...]:
        earliest = since.replace(microsecond=0)
        queued = self._jobs(name=tag.job_name, comment=tag.comment)
        return self._commands.with_accounted(parsing.tagged(queued, tag, earliest), tag, earliest)

    def poll(self, jobs: Sequence[JobIdentity]) -> Mapping[JobIdentity, JobReport]:
        return self._commands.poll(jobs)

    def account(self, jobs: Sequence[JobIdentity]) -> Mapping[JobIdentity, JobReport]:
        return self._commands.account(jobs)

    def queued_reruns(self) -> Sequence[RerunJob]:
        return self._commands.queued_reruns()

    def accounted_reruns(self, *, since: datetime) -> Sequence[RerunJob]:
        return self._commands.accounted_reruns(since=since)

    def cancel(self, job: JobIdentity) -> None:
        report = next(iter(self._jobs(ids=[job.job_id])), None)
        if lookup.may_be_ended(job, report, self.account):
            self._ask("cancel", job_id=job.job_id)

    def close(self) -> None:
        self._submitter.close()
        self._asker.close()

    # ------------------------------------------------------------------------------------------------- how it is asked

    def _known(self) -> GatewayInfo:
        return self._info or self.check()

    def _jobs(self, **selection: object) -> list[JobReport]:
        """Return this user's jobs, an array as one."""
        cluster = self._known().cluster
        rows = self._ask("jobs", uid=os.getuid(), **selection)
        reports = ((_report(row, cluster), row) for row in rows)
        return arrays.folded(
            arrays.row(report, array_job_id=row["array"] or row["id"], tasks=row["tasks"]) for report, row in reports
        )

    def _ask(self, call: str, **arguments: object) -> Any:
        try:
            return self._asker.call(call, timeout_s=self._query_timeout_s, **arguments)
        except NotStarted as error:
            raise _not_started(error) from error
        except NoAnswer as error:
            raise GatewayUnavailable(str(error), remedy="see that slurmctld answers: `scontrol ping`") from error
        except CallFailed as error:
            # libslurm reads slurm.conf once: the next helper sees what has changed there meanwhile.
            self._asker.close()
            raise query_failure("libslurm", f"{error.remarks}\n{error}") from error


def _not_started(error: NotStarted) -> GatewayUnavailable:
    if error.missing is not None:
        return GatewayUnavailable(f"pyslurm can't be used: {error}", remedy=_BUILD)
    known = query_failure("pyslurm", str(error))
    return GatewayUnavailable(f"pyslurm can't be used: {known}", remedy=known.remedy)


def _received(conversation: Conversation, cluster: str) -> SubmittedJob | GatewayError | None:
    try:
        job = conversation.receive()
    except NoAnswer as error:
        return OutcomeUnknown(str(error), remedy=_LOOK)
    except CallFailed as error:
        return _refusal(error)
    return None if job is None else SubmittedJob(identity=_identity(job, cluster), gateway=PyslurmGateway.name)


def _refusal(error: CallFailed) -> GatewayError:
    """Tell a refusal for good from one for now and from an unknown outcome."""
    if error.accepted is not None:
        said = f"SLURM accepted job {error.accepted}, then couldn't be asked when: {error}"
        return OutcomeUnknown(said, remedy=_LOOK)
    if not error.built:
        return SubmitRefused(f"pyslurm can't put the job together: {error}", remedy="correct the #SBATCH lines")
    known = submit_failure(f"{error.remarks}\nBatch job submission failed: {error}")
    if isinstance(known, OutcomeUnknown) and error.number in _SLURMS_OWN_ERRORS:
        return SubmitRefused(str(known), remedy="correct the script, or ask an administrator what SLURM means")
    return known


def _release(text: str) -> tuple[int, ...]:
    """Return year and month of ``22.05.8``, or of ``22.5.3`` as pyslurm writes it."""
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


def _identity(row: Mapping[str, Any], cluster: str) -> JobIdentity:
    submitted_at = datetime.fromtimestamp(row["submit"] or 0, UTC)
    return JobIdentity(cluster=cluster, job_id=row["id"], submitted_at=submitted_at)


def _report(row: Mapping[str, Any], cluster: str) -> JobReport:
    state = job_state(row["state"])
    return JobReport(
        identity=_identity(row, cluster),
        name=row["name"] or "",
        state=state,
        words=row["state"],
        evidence=Evidence.CONTROLLER,
        reason="" if row["reason"] in {None, "None"} else row["reason"],
        exit_code=row["exit"] if state.ended else None,
        signal=(row["signal"] or None) if state.ended else None,
        restarts=row["restarts"],
        nodes=row["nodes"] or "",
        # Of a job without nodes it is an estimate, or the time at which it was cancelled.
        started_at=_time(row["start"]) if row["nodes"] else None,
        # Of a running job it is the time at which it must end.
        ended_at=_time(row["end"]) if state.ended else None,
        comment=row["comment"] or "",
    )


def _time(seconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(seconds, UTC) if seconds else None
