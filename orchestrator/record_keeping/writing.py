"""The records of ended runs, written into their directories."""

from __future__ import annotations

import logging
from pathlib import Path

from orchestrator.injob import file_sha256
from orchestrator.provenance import OutputIdentity, RunDetail, Store, record_text
from orchestrator.runs import RECORDS, RunDirectory, write_atomically
from orchestrator.settings import Settings

log = logging.getLogger(__name__)


def records_folder(settings: Settings) -> Path:
    """Return the folder for the records of runs whose directories aren't the service's to write."""
    return settings.reruns.drop / RECORDS


def write_due(store: Store, elsewhere: Path) -> int:
    """Write the records that are due; return how many.

    Parameters
    ----------
    elsewhere
        Folder for those whose directory isn't ours to write: who made a run with sbatch owns it.

    Raises
    ------
    OSError
        When one can't be written there either; the others are.
    """
    obstacles: list[OSError] = []
    due = store.due_records()
    for run_id, changes in due:
        try:
            _record_log(store, store.run(run_id))
            write_record(store.run(run_id), elsewhere)
        except OSError as error:
            obstacles.append(error)
        else:
            store.mark_recorded(run_id, changes)
    for obstacle in obstacles:
        raise obstacle
    return len(due)


def _record_log(store: Store, detail: RunDetail) -> None:
    """Keep what the job's log is, unless that is known: nothing is added to it once the job has ended."""
    if not detail.attempts:
        return
    log_file = RunDirectory(detail.summary.run_directory).attempt(detail.attempts[-1].tag.attempt).log
    known = next((output.size for output in detail.outputs if output.path == log_file), None)
    if log_file.is_file() and log_file.stat().st_size != known:
        identity = OutputIdentity(path=log_file, kind="log", size=log_file.stat().st_size, sha256=file_sha256(log_file))
        store.record_output(detail.summary.run_id, identity)


def write_record(detail: RunDetail, elsewhere: Path) -> Path:
    """Write one run's record; return where it is."""
    own = RunDirectory(detail.summary.run_directory).provenance
    text = record_text(detail)
    try:
        own.parent.mkdir(parents=True, exist_ok=True)  # of a run that was refused there is none
        write_atomically(own, text, durable=False)
    except PermissionError:
        other = elsewhere / f"{detail.summary.run_id}.json"
        log.info("%s can't be written; the record is in %s", own, other)
        write_atomically(other, text, durable=False)
        return other
    return own
