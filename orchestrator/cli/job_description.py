"""An attempt's job, and a run's history, in plain words: the part of ``orchestrator show`` that tells of SLURM."""

from __future__ import annotations

import json
import pwd
import re
from collections.abc import Callable, Iterator, Mapping

from orchestrator.cli.wording import counted, resources_asked, seconds, size, when
from orchestrator.evidence import EXIT_PARTIAL
from orchestrator.provenance import CAME_HOME, LOST, AttemptRecord, JobEvent, RunDetail
from orchestrator.records import Evidence, JobReport, JobState, Json, Retry
from orchestrator.runs import RunDirectory
from orchestrator.slurm.states import end_reason

Field = tuple[str, str]
"""A label and what is to be said."""

_USAGE = {"elapsed_s": "elapsed", "cpu_s": "CPU time", "max_rss_bytes": "peak memory"}
_SOURCES = {
    Evidence.CONTROLLER: "the controller",
    Evidence.ACCOUNTING: "accounting",
    Evidence.JOB_RECORD: "the job's own record",
    Evidence.ABSENCE: "nobody",
}


def describe_job(attempt: AttemptRecord, run: RunDetail) -> Iterator[Field]:
    """Return who ran an attempt, where, when, and how it ended."""
    if attempt.identity is None:
        yield "job", f"none known ({attempt.stage})"
    else:
        yield "job", f"{attempt.identity} {_way(attempt, run)}"
    if attempt.retry is not None:
        yield "again because", describe_retry(attempt.retry)
        yield "asks for", ", ".join(resources_asked(attempt.retry.resources))
    if attempt.failure:
        yield "failure", attempt.failure
    yield "intended", when(attempt.intent_at)
    if attempt.identity is not None:
        yield "submitted", when(attempt.identity.submitted_at)
    yield from _place(attempt)
    if attempt.last_report is not None:
        yield from _report(attempt.last_report)
        yield from _earlier(attempt)
    if attempt.end is not None and len(run.attempts) > 1:
        yield "outcome", f"{attempt.end.state}: {attempt.end.reason}"
    yield "log", str(RunDirectory(run.summary.run_directory).attempt(attempt.tag.attempt).log)


def _way(attempt: AttemptRecord, run: RunDetail) -> str:
    """Say how the job got to SLURM."""
    if run.made_by_hand:
        return f"handed over by {run.summary.requester}, without the service"
    adopted = "; the answer to its submission was lost, and it was found by its name" if attempt.adopted else ""
    return f"through the {attempt.gateway} gateway{adopted}"


def describe_retry(retry: Retry) -> str:
    """Say why there is another attempt, and what is different."""
    return f"{retry.because}: {', '.join(retry.changes) or 'the same again'}"


def _place(attempt: AttemptRecord) -> Iterator[Field]:
    """Say where SLURM put the job, as the job itself saw it."""
    begin = next((event for event in attempt.events if event.kind == "begin"), None)
    if begin is None:
        return
    environment, machine = member(begin, "environment"), member(begin, "machine")
    if isinstance(environment, dict):
        for name in ("partition", "account", "qos"):
            if value := environment.get(f"SLURM_JOB_{name.upper()}"):
                yield name, str(value)
    yield "user", f"{member(begin, 'user')} on {member(begin, 'host')}"
    if isinstance(machine, dict):
        yield "machine", f"{machine.get('cpu')}, {machine.get('cores')} cores, {machine.get('system')}"


def _earlier(attempt: AttemptRecord) -> Iterator[Field]:
    """Say how the starts before the present one ended."""
    report = attempt.last_report
    if report is None or not report.restarts:
        return
    endings = {event.sequence: _ending(event) for event in attempt.events if event.kind == "earlier-start"}
    told = ", ".join(f"start {number + 1} ended as {ending}" for number, ending in sorted(endings.items()))
    yield "requeued", f"{counted(report.restarts, 'time')}; {told or 'accounting has not told why'}"


def _ending(event: JobEvent) -> str:
    return " ".join(str(part) for part in (member(event, "words"), _on(member(event, "nodes"))) if part)


def _report(report: JobReport) -> Iterator[Field]:
    yield "nodes", report.nodes or ("none yet" if report.started_at is None else "unknown")
    yield "state", f"{report.words}{_because(report)}, says {_SOURCES[report.evidence]}"
    if meaning := _meaning(report):
        yield "meaning", meaning
    if report.started_at or report.evidence is not Evidence.JOB_RECORD:
        never = "never" if report.state.ended else "not yet"
        yield "started", when(report.started_at) if report.started_at else never
    if report.ended_at is not None:
        yield "ended", when(report.ended_at)
    if report.exit_code is not None:
        yield "exit code", f"{report.exit_code}{f', signal {report.signal}' if report.signal else ''}{_of_exit(report)}"
    if report.state.ended:
        yield "usage", ", ".join(_usage(report)) or "not known; accounting has told nothing so far"
        if int(report.usage.get("max_rss_bytes", 0)) > int(report.usage.get("requested_memory_bytes", 0)) > 0:
            yield "memory", "its peak is more than it had asked for"


def _of_exit(report: JobReport) -> str:
    """Say what an exit code means; SLURM has one also for jobs whose script never gave it."""
    if report.exit_code == EXIT_PARTIAL:
        return ", the kernel's for: ended in order, frames are missing"
    if report.words.startswith(("NODE_FAIL", "BOOT_FAIL", "DEADLINE", "OUT_OF_MEMORY")) and report.exit_code == 0:
        return f", which SLURM says of every job that ended as {report.words}; it isn't the script's"
    return ""


def _because(report: JobReport) -> str:
    return f" ({report.reason})" if report.reason not in {"", "None"} else ""


def _meaning(report: JobReport) -> str:
    """Say in plain words what the end of a job means, where SLURM's words don't say it; why one waits is the run's."""
    if not report.state.ended:
        return ""
    if report.state is JobState.OUT_OF_MEMORY and "OUT_OF_MEMORY" not in report.words:
        return "it used more memory than it had asked for: the reason is SLURM's own note in the job's log"
    if found := re.search(r"by (\d+)$", report.words):
        return f"user {_user(int(found[1]))} cancelled it"
    meaning = end_reason(report.reason)
    return "" if meaning == report.reason else meaning


def _user(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} ({uid})"
    except KeyError:  # of another machine
        return str(uid)


def _usage(report: JobReport) -> Iterator[str]:
    known = [name for name in _USAGE if name in report.usage]
    for name in (*known, *(name for name in report.usage if name not in _USAGE)):
        value, label = report.usage[name], _USAGE.get(name, name)
        if isinstance(value, str):
            yield f"{label} {value}"
        elif name.endswith("_bytes"):
            yield f"{label} {size(int(value))}"
        else:
            yield f"{label} {seconds(value) if name.endswith('_s') else value}"


def describe_history(run: RunDetail) -> Iterator[Field]:
    """Return what happened when, from the message to the end."""
    several = len(run.attempts) > 1
    happened = [
        (run.summary.created_at, f"the run was recorded, recipe {run.summary.recipe}"),
        *((attempt.intent_at, f"attempt {attempt.tag.attempt} was about to be submitted") for attempt in run.attempts),
        *(
            (event.at, f"attempt {event.attempt}: {_event(event)}" if several else _event(event))
            for event in run.events
        ),
    ]
    if run.message is not None:
        happened.append((run.message.raw.received_at, "its message came in"))
    for moment, what in sorted(happened):
        yield moment.astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3], what


def _event(event: JobEvent) -> str:
    told = _TOLD[event.kind](event) if event.kind in _TOLD else (event.kind, json.dumps(event.detail))
    return " ".join(str(part) for part in told if part != "")


def _state_event(event: JobEvent) -> tuple[Json, ...]:
    usage = "with its usage" if member(event, "usage") else ""
    return "job", member(event, "words"), _in_brackets(event, "reason"), _on(member(event, "nodes")), usage


def _retry_event(event: JobEvent) -> tuple[Json, ...]:
    changes = member(event, "changes")
    changed = ", ".join(map(str, changes)) if isinstance(changes, list) else ""
    return "another attempt is to follow, because", f"{member(event, 'because')}:", changed or "the same again"


def describe_lost(event: JobEvent) -> str:
    """Tell of a job that made a run again of which none is known: whose, how it ended, and why."""
    code, signal = member(event, "exit_code"), member(event, "signal")
    ending = "" if code is None else f", exit code {code}{f', signal {signal}' if signal else ''}"
    who = f"job {member(event, 'cluster')}:{member(event, 'job_id')} of {member(event, 'user')}"
    return f"{who}, {member(event, 'words')}{ending}, {when(event.at)}: {member(event, 'because')}"


def _lost_event(event: JobEvent) -> tuple[Json, ...]:
    if run := member(event, CAME_HOME):
        job = f"{member(event, 'cluster')}:{member(event, 'job_id')}"
        return "a job of which no word had come,", f"{job} of {member(event, 'user')}, made it again as run {run}"
    return "it was made again, and no run of that is known:", describe_lost(event)


def _in_ispyb(event: JobEvent) -> str:
    if (reason := member(event, "reason")) is not None:
        return f"not in ISPyB: {reason}"
    return f"it stands in ISPyB as AutoProcProgram {member(event, 'program')}"


_TOLD: Mapping[str, Callable[[JobEvent], tuple[Json, ...]]] = {
    "state": _state_event,
    "made": lambda event: (
        "made again with rerun.sbatch",
        f"because: {member(event, 'because')}" if member(event, "because") else "",
        "with edits" if member(event, "edits") else "as it was",
    ),
    LOST: _lost_event,
    "verified": lambda event: (
        f"{member(event, 'first')} was repeated as {member(event, 'second')}:",
        member(event, "verdict"),
    ),
    "begin": lambda event: ("the job claimed the attempt", _on(member(event, "host"))),
    "duplicate": lambda event: (
        "another start for this attempt left without doing anything: it",
        member(event, "because") or "belongs to another job",
    ),
    "overruled": lambda event: (
        "SLURM called the job",
        f"{member(event, 'words')}, though it had ended; its own record counts",
    ),
    "end": lambda event: ("the kernel ended with exit code", member(event, "exit_code")),
    "outputs": lambda _: ("the job recorded the digest of what it made",),
    "cancel": lambda event: ("cancelled by", member(event, "by")),
    "retry": _retry_event,
    "hindrance": lambda event: (member(event, "reason"),),
    "ispyb": lambda event: (_in_ispyb(event),),
    "earlier-start": lambda event: ("this start ended as", _ending(event), "and was requeued, says accounting"),
    "not-submitted": lambda event: ("no job was made:", member(event, "reason")),
}
"""An event of each kind in words."""


def _in_brackets(event: JobEvent, name: str) -> str:
    return f"({value})" if (value := member(event, name)) not in (None, "", "None") else ""


def _on(place: Json) -> str:
    return f"on {place}" if place else ""


def member(event: JobEvent, name: str) -> Json:
    """Return one thing that an event tells, None where it doesn't."""
    return event.detail.get(name) if isinstance(event.detail, dict) else None
