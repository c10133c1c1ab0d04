"""What the files of an attempt and the reports on its job say, and the conclusion drawn from them.

Two halves: reading the files that kernel and job leave in the run's directory (`read_progress`, `read_events`), and the
pure rule that turns evidence into a run's final state (`conclude`). Absence of evidence never means success: a run is
complete only when its job ended in order *and* the kernel accounted for every frame.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from orchestrator.records import Evidence, FrameCounts, JobReport, JobState, Json, RunState, utc_now
from orchestrator.runs import AttemptDirectory

Number = TypeVar("Number", int, float)

EXIT_INPUT = 3
EXIT_PARTIAL = 4
"""The kernel's exit codes for *the input can't be used* and *ended in order, frames missing*;
docs/reference/kernel-command-line.md."""

_KIND_LIMIT = 64
_LINE_SHOWN = 500

_LAST_WORDS = frozenset({"finished", "failed"})
"""States of a progress file after which the kernel says nothing more."""

_NEWER_STARTS = re.compile(r"progress\.(\d+)\.json")

UNREADABLE = "unreadable"
"""Kind of an event for a line that isn't one: cut off on a full disk, say."""

_MEMORY_NOTE = re.compile(
    r"^(?:slurmstepd[^\n:]*: error: (?P<step>[^\n]*(?:xceeded (?:job )?memory limit|oom[-_]kill event)[^\n]*)"
    r"|srun: error: (?P<task>[^\n]*: Out Of Memory))$",
    re.MULTILINE,
)
"""What slurmstepd and srun write into the job's log when memory was the end of it; SLURM 22.05 to 26.05."""
_REQUEUE_NOTE = re.compile(
    r"^slurmstepd[^\n]*CANCELLED AT \S+ DUE TO (?:PREEMPTION|JOB REQUEUE|NODE FAILURE)", re.MULTILINE
)
_LOG_READ = 1 << 20

_MARKS = {JobState.OUT_OF_MEMORY: 125, JobState.DEADLINE: 1}
"""What SLURM itself puts where an exit code has its signal; nobody sent it."""
_END_TEXTS = {
    JobState.TIMEOUT: "its time limit came before its end",
    JobState.OUT_OF_MEMORY: "it used more memory than it had asked for",
    JobState.NODE_FAIL: "a node it ran on was lost",
    JobState.PREEMPTED: "it had to make way for another job",
    JobState.BOOT_FAIL: "a node it was given didn't boot",
    JobState.DEADLINE: "its deadline came before its end",
}
"""What it means that a job ended so, where SLURM's word leaves that to be asked."""

_KERNEL_EXITS = {
    1: "a fault in the kernel; its log has the traceback",
    2: "the kernel refused its command line or parameter file",
    EXIT_INPUT: "the input can't be used",
    5: "the result can't be written",
}


@dataclass(frozen=True, kw_only=True)
class KernelProgress:
    """What the kernel last said about itself."""

    counts: FrameCounts
    state: str
    message: str
    inputs: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)
    """What the input was at ``open`` and at ``end``, as far as the kernel has told."""
    parameters: Mapping[str, Json] = field(default_factory=dict)
    """All of them, the kernel's defaults included; empty where it could take none."""
    software: Mapping[str, Json] = field(default_factory=dict)
    """What it had loaded: interpreter, HDF5, MPI, decoder, with their versions."""


@dataclass(frozen=True, kw_only=True)
class InJobEvent:
    """One line that was written inside the job."""

    sequence: int
    """Line number in the attempt's events file, from 0."""
    kind: str
    at: datetime
    detail: Mapping[str, Json]

    @property
    def restarts(self) -> int:
        """How often SLURM had requeued the job when it wrote this."""
        job = self.detail.get("job")
        restarts = job.get("restarts") if isinstance(job, dict) else None
        return restarts if isinstance(restarts, int) else 0


@dataclass(frozen=True, kw_only=True)
class Conclusion:
    """How a run ended, and why it is held to have ended so."""

    state: RunState
    reason: str


def read_progress(path: Path) -> KernelProgress | None:
    """Read the kernel's progress file; None when it isn't there yet.

    Raises
    ------
    ValueError
        When the file isn't what docs/reference/kernel-command-line.md says; the message names it.
    """
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path}: not a progress file: {error}") from error
    try:
        state = str(document["state"])
        counts = FrameCounts(
            expected=_optional(int, document["expected"]),
            written=int(document["written"]),
            processed=int(document["processed"]),
            failed=int(document["failed"]),
            lag_median_s=_optional(float, document.get("lag_median_s")),
            lag_max_s=_optional(float, document.get("lag_max_s")),
            finished=state == "finished",
            ended_because=str(document.get("ended_because", "")),
        )
        inputs = _inputs(document)
        parameters, software = (dict(document.get(name) or {}) for name in ("parameters", "software"))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a progress file: {error!r}") from error
    return KernelProgress(
        counts=counts,
        state=state,
        message=str(document.get("message", "")),
        inputs=inputs,
        parameters=parameters,
        software=software,
    )


def _inputs(document: Mapping[str, Any]) -> dict[str, dict[str, Json]]:
    """Return what the input was, with the files that parameters name, and at the end with what was read of it."""
    told = dict(document.get("inputs", {}).items())
    seal, files = told.pop("seal", None), document.get("files", [])
    inputs = {moment: {**identity, "files": files} for moment, identity in told.items() if identity is not None}
    if "end" in inputs:
        inputs["end"]["seal"] = seal
    return inputs


def _optional(kind: Callable[[Any], Number], value: object) -> Number | None:
    return None if value is None else kind(value)


def newest_progress(directory: AttemptDirectory) -> KernelProgress | None:
    """Read the progress file of an attempt's newest start, or those of its tasks; None when no kernel has begun yet.

    Raises
    ------
    ValueError
        As `read_progress`.
    """
    tasks = directory.tasks()
    if None not in tasks:
        return _in_all({task: _newest_progress(here) for task, here in tasks.items() if task is not None})
    return _newest_progress(directory)


def _newest_progress(directory: AttemptDirectory) -> KernelProgress | None:
    try:
        found = [_NEWER_STARTS.fullmatch(path.name) for path in directory.path.iterdir()]
    except FileNotFoundError:
        return None
    return read_progress(directory.progress_of(max((int(match[1]) for match in found if match), default=0)))


def _in_all(tasks: Mapping[int, KernelProgress | None]) -> KernelProgress | None:
    """Return how an array's kernels stand together; None when none has begun.

    Frames are summed: each task processes all of them. It has said its last word when all tasks have.
    """
    begun = {task: progress for task, progress in tasks.items() if progress is not None}
    if not begun:
        return None
    counts = [progress.counts for progress in begun.values()]
    states = {progress.state for progress in begun.values()}
    over = len(begun) == len(tasks) and states <= _LAST_WORDS
    state = ("finished" if states == {"finished"} else "failed") if over else "running"
    announced = [one.expected for one in counts]
    medians = [one.lag_median_s for one in counts if one.lag_median_s is not None]
    first = next(iter(begun.values()))
    said = {task: one.message for task, one in begun.items() if one.message}
    return KernelProgress(
        counts=FrameCounts(
            # A task that hasn't begun will have as many to do as the first one.
            expected=None if None in announced else (announced[0] or 0) * len(tasks),
            written=sum(one.written for one in counts),
            processed=sum(one.processed for one in counts),
            failed=sum(one.failed for one in counts),
            lag_median_s=median(medians) if medians else None,
            lag_max_s=max((one.lag_max_s for one in counts if one.lag_max_s is not None), default=None),
            finished=state == "finished",
            ended_because=", ".join(dict.fromkeys(one.ended_because for one in counts if one.ended_because)),
        ),
        state=state,
        message="; ".join(f"task {task}: {message}" for task, message in said.items()),
        inputs=first.inputs,
        parameters=first.parameters,
        software=first.software,
    )


def read_events(path: Path) -> tuple[InJobEvent, ...]:
    """Read the events written inside the job; what is still being written at the end is left for the next time.

    A line before others that isn't an event becomes one of kind `UNREADABLE`, so that it hides none of them.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return ()
    events = [_event(sequence, line) for sequence, line in enumerate(lines)]
    while events and events[-1].kind == UNREADABLE:  # over NFS, lines can come before their content
        events.pop()
    return tuple(events)


def _event(sequence: int, line: bytes) -> InJobEvent:
    try:
        return _understood(sequence, json.loads(line))
    except (KeyError, TypeError, ValueError) as error:
        text = line[:_LINE_SHOWN].decode(errors="backslashreplace")
        return InJobEvent(sequence=sequence, kind=UNREADABLE, at=utc_now(), detail={"line": text, "error": repr(error)})


def _understood(sequence: int, document: Any) -> InJobEvent:
    kind, at = document["kind"], datetime.fromisoformat(document["at"])
    if not isinstance(kind, str) or len(kind) > _KIND_LIMIT or at.tzinfo is None:
        raise ValueError("an event needs a word for its kind, and a time with its zone")
    return InJobEvent(sequence=sequence, kind=kind, at=at, detail={**document["detail"], "job": document["job"]})


def of_newest_start(events: Sequence[InJobEvent], kind: str) -> InJobEvent | None:
    """Return the last event of a kind that the newest start of the job wrote; None when it wrote none.

    A start before a requeue may live on, on a node that was cut off, and write its end after the newer one began.
    """
    newest = max((event.restarts for event in events if event.kind == "begin"), default=0)
    return next((event for event in reversed(events) if event.kind == kind and event.restarts >= newest), None)


def claim_owner(directory: AttemptDirectory) -> str | None:
    """Return the id of the job that has claimed an attempt; None when none has.

    A claim that can't be read counts as none.
    """
    try:
        return str(json.loads(directory.claim.read_bytes())["job_id"])
    except (OSError, KeyError, TypeError, ValueError):
        return None


def with_memory_note(report: JobReport, log: Path) -> JobReport:
    """Return a failed job's report as OUT_OF_MEMORY where SLURM's own note in the job's log says so.

    SLURM's word for the job is FAILED, with signal 9 or the script's exit code, unless cgroups enforce memory, and even
    then when it was a step of srun that was killed. `words` stays what SLURM said of the job.
    """
    if report.state is not JobState.FAILED or report.exit_code in {EXIT_PARTIAL, EXIT_INPUT}:
        return report
    note = _memory_note(log)
    return replace(report, state=JobState.OUT_OF_MEMORY, reason=note) if note else report


def _memory_note(log: Path) -> str:
    """Return what SLURM wrote into the log about the memory of the job's newest start; empty when nothing."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(stream.seek(0, os.SEEK_END) - _LOG_READ, 0))
            text = stream.read(_LOG_READ).decode(errors="replace")
    except OSError:  # a log that can't be read tells nothing; the report stays as SLURM gave it
        return ""
    found = _MEMORY_NOTE.search(_REQUEUE_NOTE.split(text)[-1])
    return (found["step"] or found["task"])[:_LINE_SHOWN] if found else ""


def may_say_more(report: JobReport, progress: KernelProgress | None) -> bool:
    """Whether a kernel that ended in order hasn't been seen to say its last word, on which the verdict depends."""
    in_order = report.state is JobState.COMPLETED or (
        report.state is JobState.FAILED and report.exit_code in {EXIT_PARTIAL, EXIT_INPUT}
    )
    return in_order and (progress is None or progress.state not in _LAST_WORDS)


def conclude(report: JobReport, progress: KernelProgress | None, *, forgiven: bool = False) -> Conclusion:
    """Decide how a run ended from its job's last report and the kernel's last word.

    Parameters
    ----------
    report
        A report whose state has ended, from the best source there was.
    progress
        None when the kernel never wrote its progress file.
    forgiven
        OUT_OF_MEMORY is no failure where the kernel accounted for every frame: the script ended with 0, and the site
        wants it so.
    """
    if forgiven and report.state is JobState.OUT_OF_MEMORY and progress is not None and progress.counts.complete:
        told = f"{describe_frames(progress.counts)}; something in the job was killed for its memory ({report.words})"
        return Conclusion(state=RunState.COMPLETE, reason=told)
    if report.state is JobState.CANCELLED:
        return Conclusion(state=RunState.CANCELLED, reason=f"the job was cancelled ({report.words})")
    if report.state is JobState.COMPLETED:
        return _conclude_orderly(progress)
    if report.state is JobState.FAILED and report.exit_code == EXIT_PARTIAL and progress is not None:
        return Conclusion(state=RunState.PARTIAL, reason=describe_frames(progress.counts))
    return Conclusion(state=RunState.FAILED, reason=_describe_failure(report, progress))


def _conclude_orderly(progress: KernelProgress | None) -> Conclusion:
    if progress is None:
        return Conclusion(state=RunState.FAILED, reason="the job ended with 0 but the kernel never reported")
    if progress.counts.complete:
        return Conclusion(state=RunState.COMPLETE, reason=describe_frames(progress.counts))
    if progress.counts.finished:
        return Conclusion(state=RunState.PARTIAL, reason=describe_frames(progress.counts))
    frames = describe_frames(progress.counts)
    return Conclusion(
        state=RunState.FAILED,
        reason=f"the job ended with 0 but the kernel's last word was '{progress.state}' ({frames})",
    )


def _describe_failure(report: JobReport, progress: KernelProgress | None) -> str:
    own = report.evidence is Evidence.JOB_RECORD  # which knows no more than the exit code
    parts = [f"the job ended{'' if own else f' as {report.words}'}{_meaning(report)}"]
    if report.exit_code and not report.signal and report.state is not JobState.DEADLINE:  # there it is SLURM's own mark
        parts[0] += f", exit code {report.exit_code}"
        if report.state is JobState.FAILED and report.exit_code in _KERNEL_EXITS:
            parts[0] += f": {_KERNEL_EXITS[report.exit_code]}"
    if report.evidence is not Evidence.CONTROLLER:
        parts[0] += f", says {report.evidence}"
    if progress is not None:
        parts.append(progress.message or describe_frames(progress.counts))
    return "; ".join(part for part in parts if part)


def _meaning(report: JobReport) -> str:
    """Say what SLURM's words mean, its reason and the signal."""
    text = f": {_END_TEXTS[report.state]}" if report.state in _END_TEXTS else ""
    by_signal = report.signal and report.signal != _MARKS.get(report.state)
    # SLURM says JobLaunchFailure also of a script that was launched well, and then ended by a signal.
    misleading = report.reason == "JobLaunchFailure" and by_signal
    if report.reason not in {"", "None"} and not misleading:
        text += f" ({report.reason})"
    return f"{text}, signal {report.signal}" if by_signal else text


def describe_frames(counts: FrameCounts) -> str:
    """Say in one line how far the frames went."""
    text = f"{counts.processed} of {counts.written} written frames processed"
    if counts.expected is not None and counts.expected != counts.written:
        text += f", {counts.expected} were announced"
    if counts.failed:
        text += f", {counts.failed} failed"
    return f"{text}; ended because: {counts.ended_because}" if counts.ended_because else text
