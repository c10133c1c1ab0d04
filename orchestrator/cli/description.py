"""A run in plain words, in the order in which a person asks: `describe` makes the sections of ``orchestrator show``.

Pure: a run's record and what its files say come in, labelled sentences come out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.chaining import Earlier
from orchestrator.cli.job_description import (
    Field,
    describe_history,
    describe_job,
    describe_lost,
    describe_retry,
    member,
)
from orchestrator.cli.wording import resources_asked, seconds, size, when
from orchestrator.evidence import KernelProgress, describe_frames
from orchestrator.provenance import (
    CAME_HOME,
    LOST,
    MADE,
    AttemptRecord,
    InputIdentity,
    InputMoment,
    OutputIdentity,
    RunDetail,
)
from orchestrator.provenance.rows import container_of
from orchestrator.records import FrameCounts, Json, Origin, RunState
from orchestrator.runs import RunDirectory

_ERRORS_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What `show` saw beside the database at the moment it was asked."""

    sizes: Mapping[Path, int | None]
    """Bytes of files that the run made, None for those that are gone."""
    parent_known: bool = True
    """Whether the run that this one was made from is in the database."""
    reruns: Sequence[str] = ()
    """Ids of runs that have this one as their parent."""
    earlier: Sequence[Earlier] = ()
    """The runs that this one comes after."""
    later: Sequence[Earlier] = ()
    """The runs that come after this one."""
    tasks: Mapping[int, KernelProgress | None] = field(default_factory=dict)
    """How the kernel of each task of a job array stands; None for those that haven't begun."""
    stale: Sequence[str] = ()
    """Why the result may not be what would be made now."""
    options: str = ""
    """What the proposed commands need to find the site, with a leading space."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """Labelled sentences under a title."""

    title: str
    fields: tuple[Field, ...]


def describe(run: RunDetail, findings: Findings) -> tuple[Section, ...]:
    """Return everything about a run, the most wanted first."""
    sections = {
        "State": _state(run, findings),
        "Frames": _frames(run),
        "Tasks": _tasks(run, findings),
        "Result": _result(run, findings),
        "What was processed": _input(run),
        "Parameters": _parameters(run),
        "Code": _code(run),
        "Script": _script(run),
        "Asked for": _request(run, findings),
        **{f"Job of attempt {attempt.tag.attempt}": describe_job(attempt, run) for attempt in run.attempts},
        "History": describe_history(run),
        "Next": _next(run, findings),
    }
    return tuple(Section(title=title, fields=found) for title, lines in sections.items() if (found := tuple(lines)))


# ------------------------------------------------------------------------------------------------ how it ended


def _state(run: RunDetail, findings: Findings) -> Iterator[Field]:
    summary = run.summary
    yield "state", summary.state
    for reason in findings.stale:
        yield "STALE", reason
    if summary.reason:
        yield "because", summary.reason
    for attempt in run.attempts:
        if attempt.retry is not None:
            yield f"attempt {attempt.tag.attempt}", f"made because {describe_retry(attempt.retry)}"
    ours = [event for event in run.events if event.kind == "cancel"]
    for event in ours:
        yield "cancelled by", f"{member(event, 'by')}, {when(event.at)}"
    if summary.state is RunState.CANCELLED and not ours:
        yield "cancelled by", "somebody outside this program (scancel, an administrator); see the job below"
    if summary.ended_at is not None:
        took_s = (summary.ended_at - summary.created_at).total_seconds()
        yield "ended", f"{when(summary.ended_at)}, {seconds(took_s)} after it was recorded"


def _frames(run: RunDetail) -> Iterator[Field]:
    counts = run.summary.counts
    if counts is None:
        announced = run.plan.collection.frames_expected
        yield "announced", "no number" if announced is None else str(announced)
        yield "processed", "the kernel has not reported yet" if not run.summary.state.ended else "no kernel reported"
        return
    yield "announced", "no number" if counts.expected is None else str(counts.expected)
    yield "written", f"{counts.written} by the detector, as the kernel saw them"
    yield "processed", f"{counts.processed}{_missing(counts, ended=run.summary.state.ended)}"
    yield "failed", f"{counts.failed}{'; the result says which and why' if counts.failed else ''}"
    if counts.ended_because:
        yield "ended", counts.ended_because
    if counts.lag_median_s is not None:
        lag = f"median {seconds(counts.lag_median_s)}, worst {seconds(counts.lag_max_s)}"
        yield "lag", f"{lag}, from a frame being readable to its result being readable"


def _tasks(run: RunDetail, findings: Findings) -> Iterator[Field]:
    array = run.plan.array
    if array is None:
        return
    made = {output.path: output for output in run.outputs}
    directory = RunDirectory(run.summary.run_directory)
    for task, value in enumerate(array.values):
        progress = findings.tasks.get(task)
        parts = [f"{array.parameter} = {json.dumps(value, ensure_ascii=False)}"]
        parts.append("not begun" if progress is None else f"{progress.state}, {describe_frames(progress.counts)}")
        if progress is not None and progress.message:
            parts.append(progress.message)
        if (output := made.get(directory.result_of(task))) is not None:
            parts.append(f"{output.path.name}, sha256 {output.sha256}")
        yield f"task {task}", "; ".join(parts)


def _missing(counts: FrameCounts, *, ended: bool) -> str:
    announced = counts.written if counts.expected is None else max(counts.expected, counts.written)
    missing = announced - counts.processed - counts.failed
    if not missing:
        return ": all" if counts.processed and not counts.failed else ""
    return f", {missing} missing" if ended else f", {missing} to come"


# ------------------------------------------------------------------------------------------ where the result is


def _result(run: RunDetail, findings: Findings) -> Iterator[Field]:
    expected = RunDirectory(run.summary.run_directory).result
    for output in run.outputs:
        yield output.kind, str(output.path)
        yield "size", f"{size(output.size)}; {_as_recorded(output, findings.sizes.get(output.path))}"
        yield "sha256", output.sha256
        if output.content_sha256 is not None:
            yield "content", f"sha256 {output.content_sha256}, the same for equal results"
        if output.validation is not None:
            yield "validity", "\n".join((output.validation.words, *output.validation.texts[:_ERRORS_SHOWN]))
    if not run.outputs:
        there = findings.sizes.get(expected)
        if run.plan.array is not None:
            yield "result", f"one of each task in {run.summary.run_directory}; the job left no record of them yet"
            return
        if there is None:
            yield "result", "none was made" if run.summary.state.ended else f"none yet; it will be {expected}"
            return
        yield "result", str(expected)
        growing = "it grows while the job runs" if not run.summary.state.ended else "the job left no record of it"
        yield "size", f"{size(there)}; {growing}"
    yield "look at it", "any viewer of NeXus or HDF5 files, also while it grows: silx view, nexpy, h5web"


def _as_recorded(output: OutputIdentity, there: int | None) -> str:
    if there is None:
        return "the file is gone"
    return "the file is there" if there == output.size else f"CHANGED since: the file there has {there} bytes"


# --------------------------------------------------------------------------------------- what was processed, how


def _input(run: RunDetail) -> Iterator[Field]:
    collection = run.plan.collection
    yield "collection", collection.uid
    yield "beamline", collection.beamline
    yield "visit", collection.visit or "none"
    yield "detector", collection.detector
    if collection.scan_type:
        yield "scan type", collection.scan_type
    if collection.started_at is not None:
        yield "started", when(collection.started_at)
    if collection.metadata:
        yield "metadata", ", ".join(f"{name} = {value}" for name, value in collection.metadata.items())
    yield "file", str(collection.file)
    yield "dataset", collection.dataset
    for identity in run.inputs:
        moment = "at open" if identity.at is InputMoment.OPEN else "at end"
        yield moment, "\n".join(_identity(identity))
    yield from _files(run)
    if not run.inputs:
        yield "identity", "the kernel has not told what the file was"


def _identity(identity: InputIdentity) -> Iterator[str]:
    shape = "shape unknown" if identity.shape is None else " x ".join(map(str, identity.shape))
    chunks = "not chunked" if identity.chunks is None else f"chunks of {' x '.join(map(str, identity.chunks))}"
    yield f"{shape} of {identity.dtype or 'unknown type'}, {chunks}"
    yield f"{size(identity.size)}, modified {_nanoseconds(identity.mtime_ns)}, inode {identity.inode}"
    if identity.real_path != identity.path:
        yield f"links resolved: {identity.real_path}"
    for source in identity.sources:
        told = source.get("size"), source.get("mtime_ns")
        bytes_, mtime_ns = (value if isinstance(value, int) else None for value in told)
        yield f"source {source.get('path')}, {size(bytes_)}, modified {_nanoseconds(mtime_ns)}"


def _files(run: RunDetail) -> Iterator[Field]:
    """Yield what was read of the input, and the files that parameters name, as the kernel told last."""
    if not run.inputs:
        return
    seal = run.inputs[-1].seal
    if isinstance(seal, dict):
        is_sealed = seal.get("state") == "sealed"
        digest = f"{seal.get('frames')} frames, {seal.get('algorithm')} {seal.get('digest')}"
        yield "as read", digest if is_sealed else "not sealed: the kernel closed no result"
    for file in run.inputs[-1].files:
        digest = f"sha256 {file.get('sha256') or 'unknown: it was being written'}"
        yield f"{file.get('parameter')}", f"{file.get('path')}\n{digest}"


def _nanoseconds(mtime_ns: int | None) -> str:
    return when(None if mtime_ns is None else datetime.fromtimestamp(mtime_ns / 1e9, UTC))


def _parameters(run: RunDetail) -> Iterator[Field]:
    values = [
        "none" if parameter.value is None else json.dumps(parameter.value, ensure_ascii=False)
        for parameter in run.parameters
    ]
    width = min(max(map(len, values), default=0), 24)
    for parameter, value in zip(run.parameters, values, strict=True):
        yield parameter.name, f"{value:<{width}}  {parameter.origin:<7}  {parameter.place}"
    if all(parameter.origin is not Origin.DEFAULT for parameter in run.parameters):
        yield "others", f"the defaults of kernel {run.plan.kernel}, which hasn't told them"


def _code(run: RunDetail) -> Iterator[Field]:
    yield "kernel", f"{run.plan.kernel}, started by {' '.join((run.plan.launcher, *run.plan.launcher_options))}"
    software = run.attempts[-1].software if run.attempts else None
    if isinstance(software, dict):
        yield from _software(software)
    else:
        yield "software", "no job has begun, so none is recorded"
    if run.plan.environment:
        yield "variables", ", ".join(f"{name}={value}" for name, value in run.plan.environment.items())


def _software(software: Mapping[str, Json]) -> Iterator[Field]:
    packages = software.get("packages")
    versions = dict(packages) if isinstance(packages, dict) else {}
    yield "program", f"orchestrator {versions.pop('orchestrator', 'of unknown version')}{_commit(software)}"
    yield "python", f"{software.get('python')} ({software.get('interpreter')})"
    yield "packages", ", ".join(f"{name} {version}" for name, version in versions.items())
    if image := container_of(dict(software)):
        yield "container", _image(image)
    modules = software.get("modules")
    yield "modules", ", ".join(map(str, modules)) if isinstance(modules, list) and modules else "none"
    loaded = software.get("loaded")
    if isinstance(loaded, dict):
        yield "loaded", ", ".join(f"{name} {version}" for name, version in loaded.items()) + ", says the kernel"


def _image(image: Mapping[str, Json]) -> str:
    parts = [str(image["path"])] if "path" in image else []
    if "stated" in image:
        parts.append(f"{image['stated']}, says the site")
    if "sif_uuid" in image:
        parts.append(f"SIF {image['sif_uuid']}")
    if "sha256" in image:
        parts.append(f"sha256 {image['sha256']}")
    elif "sha256_unknown_because" in image:
        parts.append(f"digest unknown: {image['sha256_unknown_because']}")
    return ", ".join(parts)


def _commit(software: Mapping[str, Json]) -> str:
    if software.get("commit") is None:
        reason = software.get("commit_unknown_because")
        return f", commit unknown: {reason}" if reason else ", installed, not a checkout"
    changed = "WITH CHANGES that aren't committed" if software.get("dirty") else "unchanged"
    return f", commit {software['commit']}, {changed}"


def _script(run: RunDetail) -> Iterator[Field]:
    directory = RunDirectory(run.summary.run_directory)
    yield "directory", str(directory.path)
    if not run.attempts:
        yield "script", "none was made"
        return
    newest = run.attempts[-1]
    yield "script", f"{directory.script.name}, sha256 {newest.script_sha256}{_ran(newest)}"
    yield "template", f"{newest.template_name}, in {directory.template.name}, sha256 {newest.template_sha256}"
    yield "again with", f"sbatch {directory.rerun}, or orchestrator rerun {run.summary.run_id[:8]}"
    also = (directory.provenance, directory.message, directory.plan, directory.parameters)
    yield "also there", ", ".join(path.name for path in also)


def _ran(attempt: AttemptRecord) -> str:
    for event in attempt.events:
        if event.kind == "begin":
            ran = member(event, "script_sha256")
            return "; it is what ran" if ran == attempt.script_sha256 else f"; CHANGED before it ran, to sha256 {ran}"
    return ""


# ---------------------------------------------------------------------------------------------- who, where, when


def _request(run: RunDetail, findings: Findings) -> Iterator[Field]:
    summary, message = run.summary, run.message
    yield "by", summary.requester
    yield "recipe", summary.recipe
    if message is None:
        yield "message", "none"
    else:
        repeats = f", came {message.repeats + 1} times" if message.repeats else ""
        yield "message", f"number {message.message_id}, {when(message.raw.received_at)}, {message.raw.source}{repeats}"
        yield "its sha256", message.raw.sha256
    yield "recorded", when(summary.created_at)
    for one in findings.earlier:
        yield "comes after", f"{one.run_id}, recipe {one.recipe}, {one.state or 'which does not exist'}"
    for one in findings.later:
        yield "before", f"{one.run_id}, recipe {one.recipe}, {one.state}"
    yield from _made_again(run, findings)
    for rerun in findings.reruns:
        yield "rerun", rerun
    for event in run.events:
        if event.kind == LOST and not member(event, CAME_HOME):
            yield "rerun", f"no run of it is known: {describe_lost(event)}\n{member(event, 'remedy')}"
    yield "resources", ", ".join(resources_asked(run.plan.resources))


def _made_again(run: RunDetail, findings: Findings) -> Iterator[Field]:
    """Say from which run this one was made, why, and what was edited in its script."""
    if run.summary.parent_run:
        unknown = "" if findings.parent_known else ", which this database doesn't have (`orchestrator db import DIR`)"
        yield "parent run", f"{run.summary.parent_run}{unknown}"
    if run.plan.because:
        yield "because", run.plan.because
    for event in run.events:
        if event.kind == MADE and (edits := member(event, "edits")):
            yield "edits", str(edits)


def _next(run: RunDetail, findings: Findings) -> Iterator[Field]:
    name = f"{run.summary.run_id[:8]}{findings.options}"
    if not run.summary.state.ended:
        yield "follow it", f"orchestrator watch {name}"
        yield "end it", f"orchestrator cancel {name}"
    if run.attempts:
        failed = run.summary.state.ended and run.summary.state is not RunState.COMPLETE
        yield "why it failed" if failed else "its log", f"orchestrator log {name}"
        yield "its script", f"orchestrator show {name} --script"
    if run.message is not None:
        yield "its message", f"orchestrator show {name} --message"
    yield "everything", f"orchestrator show {name} --json"
