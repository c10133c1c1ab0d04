"""What SLURM's commands print, turned into records. Pure: text in, records out; nothing is run here.

The commands are asked for a format that survives any job name: fields end with the ASCII unit separator, free text
stands last, times are seconds since 1970 (``SLURM_TIME_FORMAT=%s``). A line that doesn't begin like a record belongs to
the free text of the one before it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.records import Evidence, JobIdentity, JobReport, JobState, RerunJob, RerunTag, RunTag, Scalar
from orchestrator.slurm import arrays
from orchestrator.slurm.states import job_state

SEPARATOR = "\x1f"

QUEUE_FIELDS = (
    "JobArrayID", "State", "Reason", "SubmitTime", "StartTime", "EndTime", "exit_code", "RestartCnt", "NodeList",
    "Name", "Comment",
)  # fmt: skip
QUEUE_FORMAT = ",".join(f"{field}:0{SEPARATOR}" for field in QUEUE_FIELDS)
"""For ``squeue --Format``. Width 0 means neither padding nor truncation."""

ACCOUNT_FIELDS = (
    "JobID", "State", "ExitCode", "DerivedExitCode", "Submit", "Start", "End", "ElapsedRaw", "TotalCPU", "MaxRSS",
    "ReqMem", "AllocTRES", "NodeList", "Reason", "JobName", "Comment",
)  # fmt: skip
ACCOUNT_FORMAT = ",".join(ACCOUNT_FIELDS)
"""For ``sacct --parsable2 --duplicates --format``."""

_OF_A_RERUN = ("UserName", "WorkDir")
_RERUN_QUEUE_FIELDS = (*QUEUE_FIELDS[:-2], *_OF_A_RERUN, *QUEUE_FIELDS[-2:])
_RERUN_ACCOUNT_FIELDS = (*ACCOUNT_FIELDS[:-2], *_OF_A_RERUN, *ACCOUNT_FIELDS[-2:])
RERUN_QUEUE_FORMAT = ",".join(f"{field}:0{SEPARATOR}" for field in _RERUN_QUEUE_FIELDS)
RERUN_ACCOUNT_FORMAT = ",".join(_RERUN_ACCOUNT_FIELDS).replace("UserName", "User")
"""The same for everybody's jobs, among which those of a ``rerun.sbatch`` are looked for."""

_JOB_ID = re.compile(r"(?P<job>\d+)(\+(?P<offset>\d+))?(_(?P<tasks>\d+|\[[^\]]*\]))?")
"""``7``, the tasks of an array ``7_4`` or ``7_[5-9%2]``, the second component of a heterogeneous job ``7+1``."""
_RECORD_START = re.compile(rf"{_JOB_ID.pattern}(\.\w+)?{SEPARATOR}")
_BETWEEN_RECORDS = re.compile(rf"\n(?={_RECORD_START.pattern})")
_NOTHING = frozenset({"", "(null)", "N/A", "None", "Unknown", "None assigned", "n/a"})
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50}


def parse_sbatch(text: str) -> int | None:
    """Return the job id that ``sbatch --parsable`` printed (``12`` or ``12;cluster``); None when there is none."""
    found = re.search(r"^(\d+)(;\S+)?$", text.strip(), re.MULTILINE)
    return int(found[1]) if found else None


def parse_config(text: str) -> dict[str, str]:
    """Return ``scontrol show config`` as names and values."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {name.strip(): value.strip() for name, _, value in pairs}


def parse_squeue(text: str, *, cluster: str) -> list[JobReport]:
    """Return one report per job of ``squeue --noheader --Format=QUEUE_FORMAT``; an array is one job."""
    return arrays.folded(row for record in records(text) if (row := queue_row(record, cluster=cluster)) is not None)


def queue_row(record: str, *, cluster: str) -> JobReport | None:
    """Return the report of one of squeue's `records`, of an array a row as `arrays` takes it; None of half a record."""
    fields = _fields(record, QUEUE_FIELDS)
    return None if fields is None else _queued(fields, cluster)


def parse_sacct(text: str, *, cluster: str) -> list[JobReport]:
    """Return one report per run of a job: a requeued job has several with the same id, the oldest first.

    The tasks of an array are rows as `arrays` takes them; `latest_of` makes one report of them.

    What only the steps know (memory) is merged into the job they belong to.
    """
    reports: list[JobReport] = []
    for fields in (fields for record in records(text) if (fields := _fields(record, ACCOUNT_FIELDS)) is not None):
        if "." not in fields["JobID"]:
            reports.append(_accounted(fields, cluster))
        elif reports:
            reports[-1] = _with_step(reports[-1], fields)
    return reports


def parse_queued_reruns(text: str, *, cluster: str) -> list[RerunJob]:
    """Return the jobs of a ``rerun.sbatch`` in ``squeue --noheader --Format=RERUN_QUEUE_FORMAT``; an array is one."""
    found = [(_queued(fields, cluster), fields) for fields in _rerun_fields(text, _RERUN_QUEUE_FIELDS)]
    return rerun_jobs(arrays.folded(report for report, _ in found), _owners(found))


def parse_accounted_reruns(text: str, *, cluster: str) -> list[RerunJob]:
    """Return the same from ``sacct --allocations`` with `RERUN_ACCOUNT_FORMAT`; of a requeued job the last start."""
    found = [(_accounted(fields, cluster), fields) for fields in _rerun_fields(text, _RERUN_ACCOUNT_FIELDS)]
    reports = [report for report, _ in found]
    return rerun_jobs(latest_of(first_identities(reports), reports).values(), _owners(found))


def rerun_jobs(reports: Iterable[JobReport], owners: Mapping[int, tuple[str, str]]) -> list[RerunJob]:
    """Return those jobs that carry a `RerunTag`; `owners` has user and working directory by the job's id."""
    jobs = []
    for report in reports:
        tag = RerunTag.of_job(report.name, report.comment)
        user, folder = owners[report.identity.job_id]
        if tag is not None:
            place = Path(folder) if folder.startswith("/") else None
            jobs.append(RerunJob(report=report, tag=tag, user=user, working_directory=place))
    return jobs


def _rerun_fields(text: str, names: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """Give the fields of records that may be of a ``rerun.sbatch``: most of a cluster's many aren't, and are let be."""
    for record in records(text):
        if "rerun" in record and (fields := _fields(record, names)) is not None:
            yield fields


def _owners(found: Iterable[tuple[JobReport, Mapping[str, str]]]) -> dict[int, tuple[str, str]]:
    return {report.identity.job_id: (fields["UserName"], fields["WorkDir"]) for report, fields in found}


def records(text: str) -> list[str]:
    """Return the records of a command's output, each with the lines that belong to its free text."""
    text = text.removesuffix("\n")
    ends = [found.start() for found in _BETWEEN_RECORDS.finditer(text)]
    return [text[begin:end] for begin, end in zip([0, *(end + 1 for end in ends)], [*ends, len(text)], strict=True)]


def _fields(record: str, names: tuple[str, ...]) -> dict[str, str] | None:
    values = record.rstrip("\n").split(SEPARATOR)
    return dict(zip(names, values, strict=False)) if len(values) >= len(names) else None


def _queued(fields: dict[str, str], cluster: str) -> JobReport:
    state = job_state(fields["State"])
    code, signal = _exit(fields["exit_code"]) if state.ended else (None, None)
    report = JobReport(
        identity=_identity(fields["JobArrayID"], fields["SubmitTime"], cluster),
        name=fields["Name"],
        state=state,
        words=fields["State"],
        evidence=Evidence.CONTROLLER,
        reason=_text(fields["Reason"]),
        exit_code=code,
        signal=signal,
        restarts=int(fields["RestartCnt"] or 0),
        nodes=_text(fields["NodeList"]),
        # Of a job without nodes it is an estimate, or the time at which it was cancelled.
        started_at=parse_time(fields["StartTime"]) if fields["NodeList"] else None,
        # Of a running job it is the time at which it must end.
        ended_at=parse_time(fields["EndTime"]) if state.ended else None,
        comment=_text(fields["Comment"]),
    )
    return _row(report, fields["JobArrayID"])


def _accounted(fields: dict[str, str], cluster: str) -> JobReport:
    state = job_state(fields["State"])
    code, signal = _exit(fields["ExitCode"]) if state.ended else (None, None)
    report = JobReport(
        identity=_identity(fields["JobID"], fields["Submit"], cluster),
        name=fields["JobName"],
        state=state,
        words=fields["State"],
        evidence=Evidence.ACCOUNTING,
        reason=_text(fields["Reason"]),
        exit_code=code,
        signal=signal,
        nodes=_text(fields["NodeList"]),
        started_at=parse_time(fields["Start"]) if _text(fields["NodeList"]) else None,
        ended_at=parse_time(fields["End"]),
        comment=_text(fields["Comment"]),
        usage=_usage(fields),
    )
    return _row(report, fields["JobID"])


def _usage(fields: dict[str, str]) -> dict[str, Scalar]:
    usage: dict[str, Scalar | None] = {
        "elapsed_s": _number(fields["ElapsedRaw"]),
        "cpu_s": parse_duration_s(fields["TotalCPU"]),
        "max_rss_bytes": parse_bytes(fields["MaxRSS"]),
        "requested_memory_bytes": parse_bytes(fields["ReqMem"]),
        "allocated": fields["AllocTRES"] or None,
        "derived_exit_code": fields["DerivedExitCode"] or None,
    }
    return {name: value for name, value in usage.items() if value is not None}


def _with_step(job: JobReport, step: dict[str, str]) -> JobReport:
    step_rss = parse_bytes(step["MaxRSS"]) or 0
    largest = max(step_rss, int(job.usage.get("max_rss_bytes", 0)))
    return replace(job, usage={**job.usage, "max_rss_bytes": largest}) if largest else job


def _identity(job_id: str, submitted: str, cluster: str) -> JobIdentity:
    at = parse_time(submitted) or datetime.fromtimestamp(0, UTC)
    found = _job_id(job_id)
    return JobIdentity(cluster=cluster, job_id=int(found["job"]) + int(found["offset"] or 0), submitted_at=at)


def _row(report: JobReport, job_id: str) -> JobReport:
    return arrays.row(report, array_job_id=report.identity.job_id, tasks=_job_id(job_id)["tasks"] or "")


def _job_id(text: str) -> re.Match[str]:
    if (found := _JOB_ID.fullmatch(text)) is None:
        raise ValueError(f"{text!r} is no job id")
    return found


def _text(value: str) -> str:
    return "" if value in _NOTHING else value


def _number(value: str) -> int | None:
    return int(value) if value.isdigit() else None


def _exit(value: str) -> tuple[int | None, int | None]:
    """Read ``code:signal``, or the raw wait status that squeue prints before SLURM 23.02."""
    if found := re.fullmatch(r"(\d+):(\d+)", value):
        return int(found[1]), int(found[2]) or None
    if not value.isdigit():
        return None, None
    status = int(value)
    return (status >> 8) & 0xFF if not status & 0x7F else 0, status & 0x7F or None


def parse_time(value: str) -> datetime | None:
    """Return a time printed as seconds since 1970, or in ISO form as UTC; None where SLURM has none."""
    if value.isdigit():
        return datetime.fromtimestamp(int(value), UTC) if int(value) else None
    try:
        return datetime.fromisoformat(value).replace(tzinfo=UTC)
    except ValueError:
        return None


def parse_duration_s(value: str) -> float | None:
    """Return ``[days-][hours:]minutes:seconds[.fraction]`` in seconds; None when it isn't one."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+(?:\.\d+)?)", value)
    if found is None:
        return None
    days, hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def parse_bytes(value: str) -> int | None:
    """Return ``102400K`` or ``4Gn`` (per node, before SLURM 21.08) in bytes; None when nothing was measured."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGTP]?)[nc]?", value)
    size = int(float(found[1]) * _UNITS[found[2]]) if found else None
    # SLURM's own "no value" is near 2**64 of its units.
    return size if size is not None and size < 2**60 else None


def tagged(reports: Iterable[JobReport], tag: RunTag, earliest: datetime) -> list[JobReport]:
    """Return the reports of jobs that carry the tag and were submitted at `earliest` or later.

    The name alone won't do: accounting calls a job ``allocation`` until it has heard of its start, which can come after
    its end. The comment alone won't either: accounting keeps it only with ``AccountingStoreFlags=job_comment``.
    """
    ours = (report for report in reports if report.name == tag.job_name or report.comment == tag.comment)
    return [report for report in ours if report.identity.submitted_at >= earliest]


def first_identities(reports: Sequence[JobReport]) -> list[JobIdentity]:
    """Return the jobs in accounting's records, oldest first: one for each id, as it was submitted."""
    first = {report.identity.job_id: report.identity for report in reversed(reports)}
    return list(first.values())


def latest_of(jobs: Iterable[JobIdentity], records: Iterable[JobReport]) -> dict[JobIdentity, JobReport]:
    """Return the last run of each job among the accounting records, under the identity it was submitted with."""
    by_id: dict[int, list[JobReport]] = defaultdict(list)
    for record in records:
        by_id[record.identity.job_id].append(record)
    runs = {job: runs_of(job, by_id[job.job_id]) for job in jobs}
    return {job: replace(_last_run(found), identity=job) for job, found in runs.items() if found}


def _last_run(records: Sequence[JobReport]) -> JobReport:
    """Return the last of a job's records, oldest first; of an array those of each task, folded."""
    by_tasks: dict[tuple[int, ...], list[JobReport]] = defaultdict(list)
    for record in records:
        by_tasks[tuple(record.tasks)].append(record)
    last = [replace(same[-1], restarts=len(same) - 1, earlier=tuple(same[:-1])) for same in by_tasks.values()]
    return arrays.fold(last) if records[0].tasks else last[0]


def runs_of(job: JobIdentity, same_id: Sequence[JobReport]) -> list[JobReport]:
    """Return the records of `job`, oldest first: a requeued job gets a new record with a new submit time.

    A later record with the same id belongs to it only under the same name; otherwise the id was used again.
    """
    name = next((record.name for record in same_id if record.identity == job), None)
    later = [r for r in same_id if r.name == name and r.identity.submitted_at >= job.submitted_at]
    return sorted(later, key=lambda record: record.identity.submitted_at)


def is_same_job(identity: JobIdentity, report: JobReport) -> bool:
    """Whether what the controller has under this id is the job that was meant.

    A controller that lost its state gives lost jobs' ids to others. Those have names of other attempts; a job that
    somebody has renamed is still itself.

    SLURM moves the submit time forward when it requeues a job, at the moment the job is completing; that is why a later
    submit time is no contradiction there.
    """
    if report.identity == identity:
        return True
    same_id = (report.identity.cluster, report.identity.job_id) == (identity.cluster, identity.job_id)
    requeued = report.restarts > 0 or report.state is JobState.COMPLETING
    if identity.name and report.name != identity.name and RunTag.of_job_name(report.name) is not None:
        return False
    return same_id and requeued and report.identity.submitted_at > identity.submitted_at
