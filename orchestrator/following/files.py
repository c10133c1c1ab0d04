"""What kernel and job left in the run's directory, taken into the store.

Files that haven't changed aren't read: they are opened all the same, because NFS looks for changes then only. The
marks of files (inode, size, time) may lie for a moment, where clocks are coarse; so unchanged ones are read for some
seconds on, and now and then.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from orchestrator.evidence import InJobEvent, KernelProgress, newest_progress, of_newest_start, read_events
from orchestrator.following.roster import Followed
from orchestrator.provenance import InputMoment, OutputIdentity, Store, input_from_json
from orchestrator.records import Evidence, JobReport, JobState, Json, sha256_of
from orchestrator.runs import AttemptDirectory

READ_EVERY = timedelta(seconds=10)
"""How often an active job's files are read although they look unchanged."""

WAITING_EVERY = timedelta(minutes=1)
"""How often the directory of an attempt is looked at whose job waits."""

WAITING_AT_ONCE = 100
"""How many of these are looked at in one cycle."""

_MARKS_SETTLE = timedelta(seconds=3)

_EVENTS_PER_TASK = 1_000_000
"""What the numbers of a job array's events are told apart by."""


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """The way from the runs' directories to the store."""

    store: Store
    now: Callable[[], datetime]

    def look(self, one: Followed, *, read_every: timedelta = READ_EVERY) -> None:
        """Take in what an attempt's kernel and job wrote, unless it looks unchanged."""
        now, restarts = self.now(), one.settled.restarts if one.settled is not None else 0
        one.looked_at = now
        with one.at_its_own_cost():
            mark = _mark(one.directory, restarts)
            if mark is None or mark != one.mark:
                one.mark, one.marked_at = mark, now
            if mark is not None and one.waits and not any(mark.values()):
                return
        settled = one.marked_at is not None and now - one.marked_at > _MARKS_SETTLE
        if not settled or one.read_at is None or now - one.read_at >= read_every:
            self.take_in(one)

    def look_at_all(self, followed: Iterable[Followed]) -> None:
        """Do so for all attempts: for those whose job waits seldom, and a part of them at a time.

        There is nothing in their directories, unless a job that was taken for lost has claimed the attempt.
        """
        due_since, turns = self.now() - WAITING_EVERY, WAITING_AT_ONCE
        for one in followed:
            if not one.waits:
                self.look(one)
            elif turns and (one.looked_at is None or one.looked_at <= due_since):
                turns -= 1
                self.look(one, read_every=timedelta.max)

    def take_in(self, one: Followed) -> KernelProgress | None:
        """Record what the kernel and the job wrote; return the kernel's word, None where it can't be read."""
        one.read_at = self.now()
        progress = None
        for task, here in one.directory.tasks().items():
            with one.at_its_own_cost():
                self._take_in_events(one, read_events(here.events), task)
        with one.at_its_own_cost():
            progress = newest_progress(one.directory)
            self._take_in_progress(one, progress)
        return progress

    def _take_in_progress(self, one: Followed, progress: KernelProgress | None) -> None:
        if progress is None:
            return
        tag = one.attempt.tag
        if progress.counts != (one.counts or one.attempt.counts):
            self.store.record_progress(tag.run_id, progress.counts, attempt=tag.attempt)
            one.counts = progress.counts
        if progress.parameters and not one.kernel_known:
            self.store.record_defaults(tag.run_id, progress.parameters, place="the kernel's")
            self.store.record_software(tag, {"loaded": dict(progress.software)})
            one.kernel_known = True
        for moment in progress.inputs.keys() - one.inputs_known:
            document = dict(progress.inputs[moment])
            identity = input_from_json(document, InputMoment(moment))
            self.store.record_input(tag.run_id, identity, attempt=tag.attempt)
            one.inputs_known.add(moment)

    def _take_in_events(self, one: Followed, events: Sequence[InJobEvent], task: int | None) -> None:
        tag, read = one.attempt.tag, one.events_read
        for event in events[read.get(task, 0) :]:
            detail = dict(event.detail) | ({} if task is None else {"task": task})
            sequence = event.sequence + (task or 0) * _EVENTS_PER_TASK
            self.store.record_event(tag, event.kind, detail, event.at, sequence=sequence)
            if event.kind == "begin":
                self._take_in_begin(one, detail, task)
            if event.kind == "end" and task is None:
                one.ended_start = event.restarts
                one.settle(None)
            if event is of_newest_start(events, "outputs"):
                for output in _outputs(detail):
                    self.store.record_output(tag.run_id, output, attempt=tag.attempt)
            read[task] = event.sequence + 1

    def _take_in_begin(self, one: Followed, detail: Mapping[str, Json], task: int | None) -> None:
        """Keep which software a job says that it runs."""
        if isinstance(software := detail.get("software"), dict):
            self.store.record_software(one.attempt.tag, software)
        file = one.directory.task(task).packages
        if "packages_sha256" in detail and file.exists():
            packages = file.read_text()
            if sha256_of(packages) == detail["packages_sha256"]:  # else it is of another start by now
                self.store.record_packages(one.attempt.tag, packages)


def own_record(one: Followed, *, by_itself: bool = False) -> JobReport | None:
    """Return what the job itself said about its end, as a report.

    Parameters
    ----------
    by_itself
        Only where it ended without having been told to.
    """
    tasks = one.directory.tasks().values()
    ends = [end for task in tasks if (end := of_newest_start(read_events(task.events), "end")) is not None]
    if len(ends) < len(tasks) or (by_itself and any(end.detail.get("interrupted") for end in ends)):
        return None
    end = next((end for end in ends if end.detail.get("exit_code") != 0), ends[-1])
    exit_code, before = end.detail.get("exit_code"), one.attempt.last_report
    return JobReport(
        identity=one.attempt.identity,
        name=one.attempt.tag.job_name,
        state=JobState.COMPLETED if exit_code == 0 else JobState.FAILED,
        words=f"ended with {exit_code}",
        evidence=Evidence.JOB_RECORD,
        exit_code=exit_code if isinstance(exit_code, int) else None,
        restarts=end.restarts,
        started_at=before.started_at if before else None,
        ended_at=end.at,
    )


def _mark(directory: AttemptDirectory, restarts: int) -> Mapping[Path, tuple[int, int, int] | None] | None:
    """Return what changes when a job writes; None for job arrays, which have many files."""
    if (directory.path / "tasks").exists():
        return None
    return {path: _stamp(path) for path in (directory.events, directory.progress_of(restarts))}


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        found = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    return found.st_ino, found.st_size, found.st_mtime_ns


def _outputs(detail: Mapping[str, Json]) -> list[OutputIdentity]:
    """Return the files that a job's end record names."""
    outputs = detail.get("outputs")
    return [
        OutputIdentity(
            path=Path(str(output["path"])),
            kind=str(output["kind"]),
            size=int(str(output["size"])),
            sha256=str(output["sha256"]),
            content_sha256=None if output.get("content_sha256") is None else str(output["content_sha256"]),
        )
        for output in (outputs if isinstance(outputs, list) else [])
        if isinstance(output, dict)
    ]
