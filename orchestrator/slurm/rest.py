"""The route over slurmrestd, SLURM's REST service: HTTP(S) or its unix socket, with tokens (JWT).

One call for all jobs, over a kept connection; a submission is two: the job, and its submit time, without which the id
is no identity. Nothing is kept between calls but the version of the API, the cluster's name, tokens and connections.
What is sent is made by `rest_job`, what comes back is read by `rest_documents`, failures by `rest_failures`; this
module only decides what to ask. Nothing of SLURM has to be installed where it runs.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import ClassVar

from orchestrator.errors import GatewayError, GatewayUnavailable, OutcomeUnknown
from orchestrator.records import JobIdentity, JobReport, Json, RerunJob, RunTag, Submission, SubmittedJob
from orchestrator.slurm import lookup, parsing, rest_documents, rest_failures, rest_policy
from orchestrator.slurm.gateway import Gateway, GatewayInfo, check_folder
from orchestrator.slurm.rest_connection import Connection, Query, Reply
from orchestrator.slurm.rest_documents import Queued
from orchestrator.slurm.rest_job import job_request
from orchestrator.slurm.rest_versions import NEW_QUERIES, ApiVersion, negotiated
from orchestrator.slurm.script_options import ScriptOption, read_options
from orchestrator.slurm.tokens import CommandTokens, FileTokens, NoTokens, TokenSource

_IDS_PER_CALL = 4_000
"""They stand in the address of the request, which may have 80 kB."""
_CLOCK_S = 60.0
"""How far slurmrestd's clock may be ahead of ours when a token expires."""
_PLAIN_NAME = re.compile(r"[a-z0-9._-]+")


@dataclass(frozen=True, kw_only=True)
class _Server:
    """What is known of the other side."""

    version: ApiVersion
    info: GatewayInfo


class RestGateway(Gateway):
    """SLURM through slurmrestd.

    Parameters
    ----------
    url
        Address of slurmrestd, ``http://host:port`` or ``https://host:port``.
    socket
        Path of its unix socket, instead of `url`.
    user
        The service's user at SLURM; the one it runs as when left out.
    token_file
        File that holds the user's token; ``{user}`` in it stands for the user's name.
    token_command
        Program and arguments that print the user's token; ``{user}`` in it stands for the user's name. With neither,
        the socket must tell slurmrestd who is calling.
    ca_file
        Certificates to trust for HTTPS, instead of the system's.
    cluster
        Name of the cluster, for servers that don't tell it (SLURM before 23.11, with several clusters in accounting).
    submit_timeout_s
        How long a submission may take before its outcome is unknown.
    query_timeout_s
        How long a question may take.
    environment
        What jobs get for ``--export=ALL`` instead of this process's environment.
    """

    name: ClassVar[str] = "rest"

    def __init__(
        self,
        *,
        url: str | None = None,
        socket: Path | None = None,
        user: str | None = None,
        token_file: Path | None = None,
        token_command: Sequence[str] = (),
        ca_file: Path | None = None,
        cluster: str | None = None,
        submit_timeout_s: float = 60.0,
        query_timeout_s: float = 60.0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._user = user or getpass.getuser()
        self._tokens = _token_source(self._user, token_file, token_command)
        self._connection = Connection(url=url, socket=socket, tokens=self._tokens, ca_file=ca_file)
        self._cluster = cluster
        self._submit_timeout_s = submit_timeout_s
        self._query_timeout_s = query_timeout_s
        self._environment = dict(os.environ if environment is None else environment)
        self._server: _Server | None = None

    def __repr__(self) -> str:
        return f"RestGateway({self._connection.address!r}, user={self._user!r})"

    def check(self) -> GatewayInfo:
        return self._negotiate().info

    def submit(self, submission: Submission) -> SubmittedJob:
        server = self._known()
        user = submission.user or self._user
        check_folder(submission.working_directory)
        body = job_request(submission, server.version, self._environment, own=user == self._user)
        reply = self._connection.call(
            "POST", f"/slurm/v{server.version}/job/submit", user=user, timeout_s=self._submit_timeout_s, body=body
        )
        job_id = rest_documents.submitted_id(reply.document)
        if job_id is None:
            raise self._submission_failure(reply, submission, user)
        identity = lookup.read_back(job_id, lambda: _report(self._one(job_id, user)))
        return SubmittedJob(identity=identity, gateway=self.name)

    def find(self, tag: RunTag, *, since: datetime) -> tuple[JobReport, ...]:
        earliest = since.replace(microsecond=0)
        queued = parsing.tagged((job.report for job in self._queue()), tag, earliest)
        return lookup.with_accounted(queued, tag, earliest, lambda: self._accounting(earliest, _named(tag)))

    def poll(self, jobs: Sequence[JobIdentity]) -> Mapping[JobIdentity, JobReport]:
        if not jobs:
            return {}
        queue = {job.report.identity.job_id: job.report for job in self._queue()}
        found = ((job, queue[job.job_id]) for job in jobs if job.job_id in queue)
        return {job: replace(report, identity=job) for job, report in found if parsing.is_same_job(job, report)}

    def account(self, jobs: Sequence[JobIdentity]) -> Mapping[JobIdentity, JobReport]:
        def ask(since: datetime, ids: Sequence[int]) -> list[JobReport]:
            return self._accounting(since, self._chosen(ids))

        return lookup.accounted(jobs, self._known().info.cluster, ask, at_once=_IDS_PER_CALL) if jobs else {}

    def queued_reruns(self) -> Sequence[RerunJob]:
        server = self._known()
        document = self._ask(f"/slurm/v{server.version}/jobs").document
        return rest_documents.queued_reruns(document, cluster=server.info.cluster)

    def accounted_reruns(self, *, since: datetime) -> Sequence[RerunJob]:
        return rest_documents.accounted_reruns(self._records(since), cluster=self._known().info.cluster)

    def cancel(self, job: JobIdentity) -> None:
        found = self._one(job.job_id, self._user)
        if lookup.may_be_ended(job, _report(found), self.account):
            self._end(job, (found and found.user) or self._user)

    def close(self) -> None:
        self._connection.close()

    # ------------------------------------------------------------------------------------------- what is asked

    def _known(self) -> _Server:
        return self._server or self._negotiate()

    def _negotiate(self) -> _Server:
        document = self._ask("/openapi/v3").document
        paths = document.get("paths") if isinstance(document, dict) else None
        spoken = negotiated(paths if isinstance(paths, dict) else (), self._connection.address)
        # Unlike ping, it is answered only to those whom the controller lets in.
        diag = self._ask(f"/slurm/v{spoken.version}/diag").document
        info = GatewayInfo(
            gateway=self.name,
            cluster=self._cluster_name(spoken.version, spoken.accounting, diag),
            release=rest_documents.release(diag),
            accounting=spoken.accounting,
        )
        self._server = server = _Server(version=spoken.version, info=info)
        return server

    def _cluster_name(self, version: ApiVersion, accounting: bool, diag: Json) -> str:
        """Return the cluster's name, which slurmrestd tells by itself from 0.0.40 on."""
        told = rest_documents.cluster_of(diag) or self._cluster_by_others(version, accounting)
        if told and self._cluster not in {None, told}:
            raise GatewayUnavailable(
                f"{self._connection.address} serves the cluster {told}, not {self._cluster}",
                remedy="correct gateway.rest: its url, socket or cluster",
            )
        if name := told or self._cluster:
            return name
        raise GatewayUnavailable(
            f"{self._connection.address} doesn't tell the cluster's name", remedy="write it into gateway.rest.cluster"
        )

    def _cluster_by_others(self, version: ApiVersion, accounting: bool) -> str:
        """Return the name from accounting where it has one cluster only, or from the controller's jobs."""
        if accounting:
            with contextlib.suppress(GatewayUnavailable):
                if name := rest_documents.only_cluster(self._ask(f"/slurmdb/v{version}/clusters").document):
                    return name
        return rest_documents.cluster_of_jobs(self._ask(f"/slurm/v{version}/jobs").document)

    def _queue(self) -> list[Queued]:
        server = self._known()
        document = self._ask(f"/slurm/v{server.version}/jobs").document
        return rest_documents.queued(document, cluster=server.info.cluster)

    def _one(self, job_id: int, user: str) -> Queued | None:
        server = self._known()
        reply = self._ask(f"/slurm/v{server.version}/job/{job_id}", user=user, absent=rest_failures.NOT_FOUND)
        return next(iter(rest_documents.queued(reply.document, cluster=server.info.cluster)), None)

    def _accounting(self, since: datetime, chosen: Query) -> list[JobReport]:
        return rest_documents.accounted(self._records(since, chosen), cluster=self._known().info.cluster)

    def _records(self, since: datetime, chosen: Query = ()) -> Json:
        """Return accounting's jobs that had not ended before `since`; the end allows for a clock that is ahead."""
        server = self._known()
        if not server.info.accounting:
            return None
        end = datetime.now(UTC) + timedelta(days=1)
        window = [("start_time", f"uts{since.timestamp():.0f}"), ("end_time", f"uts{end.timestamp():.0f}")]
        every_run = [("show_duplicates", "true")] if server.version >= NEW_QUERIES else []
        query = [*window, *every_run, *chosen]
        reply = self._ask(f"/slurmdb/v{server.version}/jobs", query=query, absent=rest_failures.NOTHING_FOUND)
        return reply.document

    def _chosen(self, job_ids: Iterable[int]) -> Query:
        """Return the question's part that names jobs: a list with commas at first, later the name for each."""
        ids = [str(job_id) for job_id in job_ids]
        repeated = self._known().version >= NEW_QUERIES
        return [("step", job_id) for job_id in ids] if repeated else [("step", ",".join(ids))]

    def _end(self, job: JobIdentity, user: str) -> None:
        path = f"/slurm/v{self._known().version}/job/{job.job_id}"
        self._ask(path, method="DELETE", user=user, absent=rest_failures.NOT_FOUND)

    # ---------------------------------------------------------------------------------------- how it is asked

    def _ask(
        self,
        path: str,
        *,
        method: str = "GET",
        user: str | None = None,
        query: Query = (),
        absent: frozenset[int] = frozenset(),
    ) -> Reply:
        """Ask a question, or for something that may be asked for twice; errors in `absent` are an answer."""
        asker = user or self._user
        try:
            reply = self._connection.call(method, path, user=asker, timeout_s=self._query_timeout_s, query=query)
        except OutcomeUnknown as error:
            raise GatewayUnavailable(str(error), remedy="see that slurmrestd and slurmctld run") from error
        # Accounting that is down is told with status 200.
        if (reply.ok and not reply.errors) or any(error.number in absent for error in reply.errors):
            return reply
        self._forget_lost_version(reply)
        if self._token_is_rejected(reply, asker):
            raise self._rejected(asker)
        raise rest_failures.query_failure(reply.status, reply.errors, plain=reply.plain, what=path)

    def _forget_lost_version(self, reply: Reply) -> None:
        """Have the next call ask what slurmrestd speaks, when it doesn't know an address: another release runs now."""
        if reply.status in rest_failures.NO_SUCH_ADDRESS:
            self._server = None

    def _submission_failure(self, reply: Reply, submission: Submission, user: str) -> GatewayError:
        self._forget_lost_version(reply)
        if self._token_is_rejected(reply, user):
            return self._rejected(user)
        options = read_options(submission.script.text)
        if any(error.number == rest_policy.POLICY for error in reply.errors):
            return self._policy_failure(rest_failures.sentence(reply.status, reply.errors, reply.plain), options, user)
        return rest_failures.submission_failure(reply.status, reply.errors, plain=reply.plain, options=options)

    def _policy_failure(self, said: str, options: Mapping[str, ScriptOption], user: str) -> GatewayError:
        """Find out which limit it was: none of what is asked for here has an effect."""
        version = self._known().version
        try:
            limits = rest_policy.Limits(
                qos=self._ask(f"/slurmdb/v{version}/qos", user=user).document,
                associations=self._ask(f"/slurmdb/v{version}/associations", user=user).document,
            )
            queue = self._ask(f"/slurm/v{version}/jobs", user=user).document
        except GatewayUnavailable:
            return rest_policy.doubtful(said)
        known_jobs = rest_documents.count_of(queue, user)
        return rest_policy.meaning(said, limits, user=user, known_jobs=known_jobs, options=options)

    def _token_is_rejected(self, reply: Reply, user: str) -> bool:
        """Whether that is why; where the answer leaves it open (SLURM 22.05), accounting knows the same tokens.

        What it says of a token that came or expired meanwhile is nothing about the one that went with the request.
        """
        said, server = rest_failures.token_verdict(reply.status, reply.errors), self._server
        if said is not None or server is None or not server.info.accounting:
            return said is True
        path = f"/slurmdb/v{server.version}/clusters"
        try:
            probe = self._connection.call("GET", path, user=user, timeout_s=self._query_timeout_s)
        except GatewayError:
            return False
        rejected = rest_failures.token_verdict(probe.status, probe.errors) is True
        return rejected and probe.token == reply.token and not (probe.token and probe.token.expires_within(_CLOCK_S))

    def _rejected(self, user: str) -> GatewayUnavailable:
        token = self._tokens.token(user)
        self._tokens.forget(user)
        where = f"{self._connection.address} doesn't accept"
        if token is None:
            return GatewayUnavailable(
                f"{where} {user} without a token",
                remedy="give it one: gateway.rest.token_file or token_command; or start it with -a rest_auth/local",
            )
        if token.user not in {None, user}:
            return GatewayUnavailable(
                f"{where} the token of {token.user} for {user}",
                remedy=f"see gateway.rest.user, and make a token of {user}: scontrol token username={user}",
            )
        return GatewayUnavailable(
            f"{where} the token of {user}, although it hasn't expired: it wasn't signed with the cluster's key, or "
            f"{user} is no user of the cluster",
            remedy=f"make a new one on the cluster: scontrol token username={user} lifespan=…",
        )


def _report(found: Queued | None) -> JobReport | None:
    return None if found is None else found.report


def _token_source(user: str, file: Path | None, command: Sequence[str]) -> TokenSource:
    if file is not None:
        return FileTokens(file, own_user=user)
    return CommandTokens(command, own_user=user) if command else NoTokens(own_user=user)


def _named(tag: RunTag) -> Query:
    """Return the names a job of this tag can have in accounting, where they can stand in a list with commas.

    It is called ``allocation`` until accounting has heard of its start, and has its comment all the same.
    """
    return [("job_name", f"{tag.job_name},allocation")] if _PLAIN_NAME.fullmatch(tag.job_name) else []
