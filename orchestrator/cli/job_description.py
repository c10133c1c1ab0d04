"""An attempt's job, and a run's history, in plain words: the part of ``orchestrator show`` that tells of SLURM."""

from __future__ import annotations

import json
from collections.abc import Iterator

from orchestrator.cli.wording import counted, seconds, size, when
from orchestrator.evidence import EXIT_PARTIAL
from orchestrator.provenance import AttemptRecord, JobEvent, RunDetail
from orchestrator.records import Evidence, JobReport, Json
from orchestrator.runs import RunDirectory

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
        adopted = "; the answer to its submission was lost, and it was found by its name" if attempt.adopted else ""
        yield "job", f"{attempt.identity} through the {attempt.gateway} gateway{adopted}"
    if attempt.failure:
        yield "failure", attempt.failure
    yield "intended", when(attempt.intent_at)
    if attempt.identity is not None:
        yield "submitted", when(attempt.identity.submitted_at)
    yield from _place(attempt)
    if attempt.last_report is not None:
        yield from _report(attempt.last_report)
    yield "log", str(RunDirectory(run.summary.run_directory).attempt(attempt.tag.attempt).log)


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


def _report(report: JobReport) -> Iterator[Field]:
    yield "nodes", report.nodes or "unknown"
    yield "state", f"{report.words}{_because(report)}, says {_SOURCES[report.evidence]}"
    if report.restarts:
        yield "requeued", counted(report.restarts, "time")
    yield "started", when(report.started_at) if report.started_at else "not yet"
    if report.ended_at is not None:
        yield "ended", when(report.ended_at)
    if report.exit_code is not None:
        meaning = ", the kernel's for: ended in order, frames are missing" if report.exit_code == EXIT_PARTIAL else ""
        yield "exit code", f"{report.exit_code}{f', signal {report.signal}' if report.signal else ''}{meaning}"
    if report.state.ended:
        yield "usage", ", ".join(_usage(report)) or "not known; accounting told nothing"


def _because(report: JobReport) -> str:
    return f" ({report.reason})" if report.reason not in {"", "None"} else ""


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
    told: tuple[Json, ...]
    match event.kind:
        case "state":
            usage = "with its usage" if member(event, "usage") else ""
            told = ("job", member(event, "words"), _in_brackets(event, "reason"), _on(member(event, "nodes")), usage)
        case "begin":
            told = ("the job claimed the attempt", _on(member(event, "host")))
        case "duplicate":
            told = ("a second job for this attempt left without doing anything",)
        case "end":
            told = ("the kernel ended with exit code", member(event, "exit_code"))
        case "outputs":
            told = ("the job recorded the digest of what it made",)
        case "cancel":
            told = ("cancelled by", member(event, "by"))
        case "not-submitted":
            told = ("no job was made:", member(event, "reason"))
        case _:
            told = (event.kind, json.dumps(event.detail))
    return " ".join(str(part) for part in told if part != "")


def _in_brackets(event: JobEvent, name: str) -> str:
    return f"({value})" if (value := member(event, name)) not in (None, "", "None") else ""


def _on(place: Json) -> str:
    return f"on {place}" if place else ""


def member(event: JobEvent, name: str) -> Json:
    """Return one thing that an event tells, None where it doesn't."""
    return event.detail.get(name) if isinstance(event.detail, dict) else None
