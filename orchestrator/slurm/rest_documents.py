"""What slurmrestd answers, turned into records. Pure: a JSON document in, records out; nothing is asked here.

The documents differ from version to version in how they write one and the same thing, not in its name: a number is
``5``, or ``{"set": true, "infinite": false, "number": 5}``; a state is a word, or a list of words; an exit code is a
wait status, or says code and signal apart. Every form is read whatever the version. Source: openapi v0.0.38 and
``PARSER_ARRAY(JOB_INFO)``, ``PARSER_ARRAY(JOB)`` of data_parser v0.0.39 to v0.0.45, SLURM 22.05 to 26.05.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from orchestrator.records import Evidence, JobIdentity, JobReport, JobState, Json, RerunJob, Scalar
from orchestrator.slurm import arrays, parsing
from orchestrator.slurm.states import job_state

Fields = Mapping[str, Json]

_MB = 2**20
_NOTHING = frozenset({"", "None", "None assigned", "(null)", "N/A"})


@dataclass(frozen=True, kw_only=True)
class RestError:
    """One entry of an answer's ``errors``."""

    number: int
    """Of ``slurm_errno.h``; 0 where none is given."""
    text: str

    def __str__(self) -> str:
        return f"{self.text} (SLURM error {self.number})" if self.number > 0 else self.text


@dataclass(frozen=True, kw_only=True)
class Queued:
    """One job or array at the controller."""

    report: JobReport
    user: str


def errors(document: Json) -> list[RestError]:
    """Return what an answer calls errors, the most telling one first; warnings are none."""
    entries = [entry for entry in _list(_fields(document).get("errors")) if isinstance(entry, dict)]
    found = [_error(entry) for entry in entries]
    # What slurmrestd adds last is only that the request failed; "Unspecified error" says nothing.
    return [one for one in found if one.text]


def _error(entry: Fields) -> RestError:
    number_ = whole(entry.get("error_number", entry.get("error_code"))) or 0
    words = (_text(entry.get("error")), _text(entry.get("description")))
    # A description often ends with the error itself.
    said = [word for word in words if word and word != "Unspecified error"]
    if len(said) == 2 and said[0] in said[1]:
        del said[0]
    return RestError(number=number_, text=": ".join(said))


def release(document: Json) -> str:
    """Return SLURM's release; ``unknown`` where the answer doesn't say."""
    meta = _fields(_fields(document).get("meta"))
    slurm = _fields(meta.get("slurm") or meta.get("Slurm"))
    return _text(slurm.get("release")) or "unknown"


def cluster_of(document: Json) -> str:
    """Return the cluster's name from an answer's ``meta`` (from 0.0.40 on); nothing where it isn't there."""
    return _text(_fields(_fields(_fields(document).get("meta")).get("slurm")).get("cluster"))


def only_cluster(document: Json) -> str:
    """Return the name of the only cluster that accounting knows; nothing where it knows several."""
    names = {_text(_fields(entry).get("name")) for entry in _list(_fields(document).get("clusters"))}
    return names.pop() if len(names) == 1 else ""


def cluster_of_jobs(document: Json) -> str:
    """Return the name of the cluster that the controller's jobs are on; nothing where there are none."""
    jobs = map(_fields, _list(_fields(document).get("jobs")))
    return next((name for job in jobs if (name := _text(job.get("cluster")))), "")


def submitted_id(document: Json) -> int | None:
    """Return the id of the job that was made; None when none was.

    An answer may have errors and an id: the job exists, and is held, say.
    """
    fields = _fields(document)
    found = whole(fields.get("job_id")) or whole(_fields(fields.get("result")).get("job_id"))
    return found or None


# -------------------------------------------------------------------------------------------------- controller


def queued(document: Json, *, cluster: str) -> list[Queued]:
    """Return the jobs of ``/slurm/…/jobs`` or ``/slurm/…/job/…``; an array is one job."""
    users: dict[JobIdentity, str] = {}
    rows = []
    for job in map(_fields, _list(_fields(document).get("jobs"))):
        row = _at_controller(job, cluster)
        users[row.identity] = _text(job.get("user_name"))
        rows.append(row)
    return [Queued(report=report, user=users.get(report.identity, "")) for report in arrays.folded(rows)]


def queued_reruns(document: Json, *, cluster: str) -> list[RerunJob]:
    """Return the jobs of a ``rerun.sbatch`` in ``/slurm/…/jobs``; an array is one job."""
    found = [(_at_controller(job, cluster), job) for job in _reruns(document)]
    owners = {
        report.identity.job_id: (_text(job.get("user_name")), _text(job.get("current_working_directory")))
        for report, job in found
    }
    return parsing.rerun_jobs(arrays.folded(report for report, _ in found), owners)


def _reruns(document: Json) -> Iterator[Fields]:
    """Give those jobs that may be of a ``rerun.sbatch``: most of a cluster's many aren't, and are let be."""
    for job in map(_fields, _list(_fields(document).get("jobs"))):
        comment = job.get("comment")
        words = (job.get("name"), comment if isinstance(comment, str) else _fields(comment).get("job"))
        if any("rerun" in _text(word) for word in words):
            yield job


def count_of(document: Json, user: str) -> int:
    """Return how many jobs of a user's ``/slurm/…/jobs`` has, each task of an array for itself."""
    jobs = queued(document, cluster="")
    return sum(max(1, len(job.report.tasks)) for job in jobs if job.user == user)


def _at_controller(job: Fields, cluster: str) -> JobReport:
    words, state = _state(job.get("job_state"))
    code, signal = _exit(job.get("exit_code"), state)
    nodes = _text(job.get("nodes"))
    report = JobReport(
        identity=JobIdentity(
            cluster=cluster, job_id=whole(job.get("job_id")) or 0, submitted_at=_time_or_zero(job.get("submit_time"))
        ),
        name=_text(job.get("name")),
        state=state,
        words=words,
        evidence=Evidence.CONTROLLER,
        reason=_text(job.get("state_reason")),
        exit_code=code,
        signal=signal,
        restarts=whole(job.get("restart_cnt")) or 0,
        nodes=nodes,
        # Of a job without nodes it is an estimate, or the time at which it was cancelled.
        started_at=_time(job.get("start_time")) if nodes else None,
        # Of a running job it is the time at which it must end.
        ended_at=_time(job.get("end_time")) if state.ended else None,
        comment=_text(job.get("comment")),
    )
    return _row(report, job.get("array_job_id"), job.get("array_task_string"), job.get("array_task_id"))


# -------------------------------------------------------------------------------------------------- accounting


def accounted(document: Json, *, cluster: str) -> list[JobReport]:
    """Return one report per run of a job of ``/slurmdb/…/jobs``, oldest first; tasks of arrays are rows."""
    jobs = map(_fields, _list(_fields(document).get("jobs")))
    reports = [_in_accounting(job, cluster) for job in jobs if _text(job.get("cluster")) in {"", cluster}]
    return sorted(reports, key=lambda report: (report.identity.submitted_at, min(report.tasks, default=0)))


def accounted_reruns(document: Json, *, cluster: str) -> list[RerunJob]:
    """Return the jobs of a ``rerun.sbatch`` in ``/slurmdb/…/jobs``; of a requeued one the last start."""
    jobs = [job for job in _reruns(document) if _text(job.get("cluster")) in {"", cluster}]
    found = [(_in_accounting(job, cluster), job) for job in jobs]
    owners = {
        report.identity.job_id: (_text(job.get("user")), _text(job.get("working_directory"))) for report, job in found
    }
    reports = sorted((report for report, _ in found), key=lambda report: report.identity.submitted_at)
    return parsing.rerun_jobs(parsing.latest_of(parsing.first_identities(reports), reports).values(), owners)


def _in_accounting(job: Fields, cluster: str) -> JobReport:
    words, state = _state(_fields(job.get("state")).get("current"))
    code, signal = _exit(job.get("exit_code"), state)
    times, array = _fields(job.get("time")), _fields(job.get("array"))
    nodes = _text(job.get("nodes"))
    report = JobReport(
        identity=JobIdentity(
            cluster=cluster, job_id=whole(job.get("job_id")) or 0, submitted_at=_time_or_zero(times.get("submission"))
        ),
        name=_text(job.get("name")),
        state=state,
        words=words,
        evidence=Evidence.ACCOUNTING,
        reason=_text(_fields(job.get("state")).get("reason")),
        exit_code=code,
        signal=signal,
        nodes=nodes,
        started_at=_time(times.get("start")) if nodes else None,
        # A start that was requeued has ended too; of one that goes on there is none.
        ended_at=_time(times.get("end")),
        comment=_text(_fields(job.get("comment")).get("job")),
        usage=_usage(job, state),
    )
    return _row(report, array.get("job_id"), array.get("task"), array.get("task_id"))


def _usage(job: Fields, state: JobState) -> dict[str, Scalar]:
    times, tres = _fields(job.get("time")), _fields(job.get("tres"))
    total = _fields(times.get("total"))
    seconds, microseconds = whole(total.get("seconds")), whole(total.get("microseconds"))
    requested_mb = _count(tres.get("requested"), "mem")
    code, signal = _exit(job.get("derived_exit_code"), state)
    usage: dict[str, Scalar | None] = {
        "elapsed_s": whole(times.get("elapsed")),
        "cpu_s": None if seconds is None else seconds + (microseconds or 0) / 1e6,
        "max_rss_bytes": _max_rss_bytes(job),
        "requested_memory_bytes": None if requested_mb is None else requested_mb * _MB,
        "allocated": _resources(tres.get("allocated")) or None,
        "derived_exit_code": None if code is None else f"{code}:{signal or 0}",
    }
    return {name: value for name, value in usage.items() if value is not None}


def _max_rss_bytes(job: Fields) -> int | None:
    """Return the most that a task of a step used; what SLURM calls *requested* of a step is what it took in."""
    steps = (_fields(_fields(_fields(step).get("tres")).get("requested")) for step in _list(job.get("steps")))
    return max((size for step in steps if (size := _count(step.get("max"), "mem"))), default=None)


def _count(entries: Json, kind: str) -> int | None:
    found = (_fields(entry) for entry in _list(entries))
    return next((whole(entry.get("count")) for entry in found if entry.get("type") == kind), None)


def _resources(entries: Json) -> str:
    """Return trackable resources as sacct prints them: ``billing=1,cpu=1,mem=100M,node=1``."""
    parts = []
    for entry in map(_fields, _list(entries)):
        kind, name, count = _text(entry.get("type")), _text(entry.get("name")), whole(entry.get("count"))
        if kind and count and count > 0:
            parts.append(f"{kind}/{name}={count}" if name else f"{kind}={count}{'M' if kind == 'mem' else ''}")
    return ",".join(sorted(parts))


# ------------------------------------------------------------------------------------------------ common forms


def whole(value: Json) -> int | None:
    """Return a number, whichever way it is written; None where it isn't set or has no limit."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return int(value)
    if isinstance(value, str):
        return int(value) if value.isdigit() else None
    if isinstance(value, dict) and value.get("set") is True and not value.get("infinite"):
        return whole(value.get("number"))
    return None


def found_at(document: Json, *names: str) -> Json:
    """Return what stands at the end of nested names; None where one of them isn't there."""
    for name in names:
        document = _fields(document).get(name)
    return document


def entries(document: Json, *names: str) -> list[Json]:
    """Return the list under the first of `names` that is there; an empty one where there is none."""
    return next((list(_list(value)) for name in names if (value := _fields(document).get(name)) is not None), [])


def _state(value: Json) -> tuple[str, JobState]:
    words = [value] if isinstance(value, str) else [word for word in _list(value) if isinstance(word, str)]
    return "|".join(words), job_state(words)


def _exit(value: Json, state: JobState) -> tuple[int | None, int | None]:
    """Return code and signal of a job that has ended."""
    if not state.ended:
        return None, None
    if isinstance(value, dict) and "return_code" in value:
        return _told_apart(value, state)
    status = whole(value)
    if status is None:
        return None, None
    return (status >> 8) & 0xFF if not status & 0x7F else 0, status & 0x7F or None


def _told_apart(value: Fields, state: JobState) -> tuple[int | None, int | None]:
    told = _fields(value.get("signal"))
    signal = whole(told.get("id", told.get("signal_id"))) or None
    code = whole(value.get("return_code"))
    if signal is not None:
        return 0, signal
    # Up to 0.0.39 accounting says SUCCESS and 0 of every job that ended by itself.
    untrue = code == 0 and value.get("status") == "SUCCESS" and state is JobState.FAILED
    return (None if untrue or code is None or code < 0 else code), None


def _row(report: JobReport, array_job_id: Json, tasks: Json, task: Json) -> JobReport:
    leader = whole(array_job_id)
    if not leader:
        return report
    number = whole(task)
    # A list that slurmrestd has shortened says of what it left out nothing at all.
    text = str(number) if number is not None else _text(tasks).partition("...")[0].rstrip(",")
    return arrays.row(report, array_job_id=leader, tasks=text)


def _time(value: Json) -> datetime | None:
    seconds = whole(value)
    return datetime.fromtimestamp(seconds, UTC) if seconds else None


def _time_or_zero(value: Json) -> datetime:
    return _time(value) or datetime.fromtimestamp(0, UTC)


def _text(value: Json) -> str:
    return value if isinstance(value, str) and value not in _NOTHING else ""


def _fields(value: Json) -> Fields:
    return value if isinstance(value, dict) else {}


def _list(value: Json) -> Iterator[Json]:
    return iter(value if isinstance(value, list) else ())
