"""``orchestrator log``: what a run's job printed."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.common import SiteOption, err, says_errors
from orchestrator.cli.run_argument import RunArgument
from orchestrator.errors import NotFound
from orchestrator.provenance import RunSummary, Store
from orchestrator.runs import RunDirectory
from orchestrator.service import open_store
from orchestrator.settings import load_settings

LOOK_EVERY_S = 0.5


@says_errors
def log(
    run: RunArgument,
    site: SiteOption,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
    attempt: Annotated[int | None, typer.Option(min=1, help="Of this attempt instead of the newest.")] = None,
) -> None:
    """Print what a run's job printed: output of the script, the kernel and the MPI launcher.

    With `-f` it waits for a job that hasn't begun, goes on with the next attempt if there is one, and ends when the run
    has ended.

    - the newest run's: `orchestrator log latest`
    - of a run under way: `orchestrator log 3f2a -f`
    """
    with open_store(load_settings(site)) as store:
        run_id = store.find_run(run)
        if follow:
            _follow(store, run_id, attempt)
        else:
            summary = store.run(run_id).summary
            path = _path(summary, attempt or summary.attempts)
            if not path.exists():
                raise _no_log(summary, path)
            if not _copy(path, 0):
                err.print("The job has printed nothing; kernels are silent when all goes well.")


def _path(summary: RunSummary, attempt: int) -> Path:
    return RunDirectory(summary.run_directory).attempt(max(attempt, 1)).log


def _no_log(summary: RunSummary, path: Path) -> NotFound:
    if summary.job is not None and not summary.run_directory.exists():
        remedy = "the run's directory was moved or removed: `orchestrator db check --no-digests` looks for it"
    elif summary.state.ended:
        remedy = f"the run is {summary.state}: {summary.reason}"
    else:
        remedy = f"the run is {summary.state}; add -f to wait for its job"
    return NotFound(f"there is no log {path}", remedy=remedy)


def _copy(path: Path, position: int) -> int:
    """Write what stands in a file from `position` on to standard output; return where it ended."""
    try:
        with path.open("rb") as stream:
            if path.stat().st_size < position:  # a requeued job has begun it anew
                position = 0
            stream.seek(position)
            while block := stream.read(1 << 16):
                sys.stdout.buffer.write(block)
                position += len(block)
    except FileNotFoundError:
        return position
    sys.stdout.flush()
    return position


def _follow(store: Store, run_id: str, only: int | None) -> None:
    current, position = 0, 0
    while True:
        summary = store.run(run_id).summary  # before the log, so that an ended run's last lines are read
        newest = only or max(summary.attempts, 1)
        if newest != current:
            if current:
                _copy(_path(summary, current), position)
                err.print(f"attempt {newest}:")
            current, position = newest, 0
        position = _copy(_path(summary, current), position)
        if summary.state.ended:
            break
        time.sleep(LOOK_EVERY_S)
    err.print(f"run {run_id} is {summary.state}: {summary.reason}", markup=False)
