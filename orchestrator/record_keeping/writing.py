"""The records of ended runs, and the plans of those that wait, written into their directories."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from orchestrator.errors import RunDirectoryUnavailable
from orchestrator.injob import file_sha256
from orchestrator.provenance import OutputIdentity, PlannedRun, RunDetail, Store, record_text, write_plan
from orchestrator.runs import RECORDS, RunDirectory, write_atomically
from orchestrator.settings import Settings

_AT_ONCE = 100


def records_folder(settings: Settings) -> Path:
    """Return the folder for the records of runs whose directories aren't the service's to write."""
    return settings.reruns.drop / RECORDS


def write_due(store: Store, elsewhere: Path) -> int:
    """Write all records that are due; return how many.

    Parameters
    ----------
    elsewhere
        Folder for those whose directory isn't ours: who made a run with sbatch owns it, and may put links into it.

    Raises
    ------
    RunDirectoryUnavailable
        When one can't be written; the others are, and it stays due.
    """
    obstacles: list[OSError] = []
    number = 0
    for run_id, changes in _all_due(store):
        try:
            written = _write(store, run_id, elsewhere)
        except OSError as error:
            obstacles.append(error)
        else:
            store.mark_recorded(run_id, changes, examination_due=written.unexamined)
            number += 1
    for obstacle in obstacles:
        raise RunDirectoryUnavailable(
            f"{obstacle.filename}: {obstacle.strerror}; {len(obstacles)} records can't be written",
            remedy="free space or correct the rights; records are written later",
        ) from obstacle
    return number


def write_waiting(store: Store, kept: set[str], *, before: datetime) -> None:
    """Write the plans of runs that wait to be submitted into their directories: they survive the database, too.

    Parameters
    ----------
    kept
        The runs that were dealt with already; remembered from call to call.
    before
        Only those that were planned before: most get their job, and with it their directory, at once.

    Raises
    ------
    RunDirectoryUnavailable
        When one can't be written; the next call tries again.
    """
    met: set[str] = set()

    def is_kept(run_id: str) -> bool:
        met.add(run_id)
        return run_id in kept

    waiting = store.planned_runs(_AT_ONCE, leave_out=is_kept)
    if len(waiting) < _AT_ONCE:
        kept &= met  # the others have gone on
    for planned in waiting:
        if planned.created_at >= before:
            continue
        if not RunDirectory(planned.plan.run_directory).plan.exists():
            _write_plan(planned)
        kept.add(planned.tag.run_id)


def _write_plan(planned: PlannedRun) -> None:
    try:
        write_plan(planned)
    except OSError as error:
        raise RunDirectoryUnavailable(
            f"{error.filename}: {error.strerror}; a run that waits isn't kept outside the database",
            remedy="free space or correct the rights; it is written later",
        ) from error


def _all_due(store: Store) -> Iterator[tuple[str, int]]:
    """Give those that are due at this time, once each: one that can't be written keeps none from its turn."""
    after = ""
    while page := store.due_records(after=after):
        yield from page
        after = page[-1][0]


def _write(store: Store, run_id: str, elsewhere: Path) -> RunDetail:
    detail = store.run(run_id)
    run = RunDirectory(detail.summary.run_directory)
    if run.path.exists() and run.path.stat().st_uid != os.getuid():
        write_atomically(elsewhere / f"{run_id}.json", record_text(detail), durable=False)
        return detail
    if _record_log(store, detail):
        detail = store.run(run_id)
    run.path.mkdir(parents=True, exist_ok=True)  # of a run that was refused there is none
    write_atomically(run.provenance, record_text(detail), durable=False)
    return detail


def _record_log(store: Store, detail: RunDetail) -> bool:
    """Keep what the job's log is, and return whether that is news: nothing is added to it once the job has ended."""
    if not detail.attempts:
        return False
    log_file = RunDirectory(detail.summary.run_directory).attempt(detail.attempts[-1].tag.attempt).log
    known = next((output.size for output in detail.outputs if output.path == log_file), None)
    if not log_file.is_file() or log_file.stat().st_size == known:
        return False
    identity = OutputIdentity(path=log_file, kind="log", size=log_file.stat().st_size, sha256=file_sha256(log_file))
    store.record_output(detail.summary.run_id, identity)
    return True
