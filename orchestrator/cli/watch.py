"""``orchestrator watch``: active runs as they go on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Protocol

import typer
from rich.console import Group
from rich.live import Live
from rich.padding import Padding
from rich.text import Text

from orchestrator.cli.common import ExitCode, SiteOption, err, out, says_errors
from orchestrator.cli.progress import frame_bars, lag_of
from orchestrator.cli.run_argument import complete_run
from orchestrator.cli.runs import ACTIVE
from orchestrator.cli.waiting import with_waiting_reasons
from orchestrator.evidence import newest_progress
from orchestrator.provenance import RunSummary, Store
from orchestrator.records import RunState
from orchestrator.runs import RunDirectory
from orchestrator.service import open_store
from orchestrator.settings import load_settings

MOST = 100
"""Most runs that are watched at once."""


class Display(Protocol):
    """Where runs are shown again and again."""

    def __call__(self, runs: Sequence[RunSummary]) -> None:
        """Show how runs stand now."""


@says_errors
def watch(
    *,
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN]",
            help="A run's id, the beginning of one, or `latest`. Without: all active runs.",
            autocompletion=complete_run,
        ),
    ] = None,
    site: SiteOption,
    interval: Annotated[float, typer.Option(min=0.05, metavar="SECONDS", help="Time between two looks.")] = 0.5,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per line and change, for scripts.")
    ] = False,
) -> None:
    """Follow active runs: frames written and processed, how far processing lags, state, why a job waits, nodes.

    With a RUN it ends when that run has ended, with exit code 6 unless the run is complete. Without one it goes on
    until Ctrl-C, also while nothing is active. Where the output isn't a terminal each change is one line.

    - what is going on at the beamline: `orchestrator watch`
    - wait for a run in a script: `orchestrator watch 3f2a > /dev/null && echo complete`
    """
    with open_store(load_settings(site)) as store, _display(as_json=as_json) as show:
        if run is None:
            _watch_all(store, show, interval)
        elif _watch_one(store, store.find_run(run), show, interval) is not RunState.COMPLETE:
            raise typer.Exit(ExitCode.INCOMPLETE)


def _watch_one(store: Store, run_id: str, show: Display, interval_s: float) -> RunState:
    while True:
        (summary,) = with_waiting_reasons(store, [current(store.run(run_id).summary)])
        show([summary])
        if summary.state.ended:
            return summary.state
        time.sleep(interval_s)


def _watch_all(store: Store, show: Display, interval_s: float) -> None:
    """Show all active runs until somebody presses Ctrl-C; a run that ends is shown once more."""
    shown: set[str] = set()
    try:
        while True:
            active = store.runs(states=ACTIVE, limit=MOST)
            ended = shown - {run.run_id for run in active}
            waiting_or_not = with_waiting_reasons(store, active)
            show([*map(current, waiting_or_not), *(store.run(run_id).summary for run_id in sorted(ended))])
            shown = {run.run_id for run in active}
            time.sleep(interval_s)
    except KeyboardInterrupt:
        err.print("Runs go on.")


def current(run: RunSummary) -> RunSummary:
    """Return a run with what its kernel said a moment ago, where the store doesn't know yet."""
    if run.state.ended or run.state is RunState.PLANNED or not run.attempts:
        return run
    try:
        progress = newest_progress(RunDirectory(run.run_directory).attempt(run.attempts))
    except (OSError, ValueError):
        return run  # the service says what is wrong with the file; the store's numbers are older, not wrong
    return run if progress is None else replace(run, counts=progress.counts)


# ----------------------------------------------------------------------------------------------------- displays


@contextmanager
def _display(*, as_json: bool) -> Iterator[Display]:
    if as_json or not out.is_terminal:
        yield Lines(as_json=as_json)
        return
    with Live(console=out, auto_refresh=False, vertical_overflow="ellipsis") as live:

        def show(runs: Sequence[RunSummary]) -> None:
            for run in runs:
                if run.state.ended:  # it stays above those that go on
                    live.console.print(bars([run]), soft_wrap=False)
            active = [run for run in runs if not run.state.ended]
            live.update(bars(active) if active or not runs else Group(), refresh=True)

        yield show


@dataclass(kw_only=True)
class Lines:
    """Writes one line for each run that has changed."""

    as_json: bool = False

    def __post_init__(self) -> None:
        self._before: dict[str, RunSummary] = {}

    def __call__(self, runs: Sequence[RunSummary]) -> None:
        for run in runs:
            if self._before.get(run.run_id) != run:
                typer.echo(json.dumps(_facts(run)) if self.as_json else _line(run))
        self._before = {run.run_id: run for run in runs}


def _line(run: RunSummary) -> str:
    parts = [time.strftime("%H:%M:%S"), run.run_id, run.state, run.recipe, str(run.job or "no job")]
    if run.nodes:
        parts.append(f"on {run.nodes}")
    if run.counts is not None:
        expected = "?" if run.counts.expected is None else run.counts.expected
        parts.append(f"written {run.counts.written}/{expected} processed {run.counts.processed}")
        if run.counts.failed:
            parts.append(f"failed {run.counts.failed}")
        parts.append(lag_of(run.counts, run.counts.written))
    parts.append(run.reason)
    return "  ".join(part for part in parts if part)


def _facts(run: RunSummary) -> dict[str, object]:
    counts = run.counts
    return {
        "run": run.run_id,
        "state": run.state,
        "reason": run.reason,
        "recipe": run.recipe,
        "job": None if run.job is None else str(run.job),
        "nodes": run.nodes,
        "frames_expected": None if counts is None else counts.expected,
        "frames_written": None if counts is None else counts.written,
        "frames_processed": None if counts is None else counts.processed,
        "frames_failed": None if counts is None else counts.failed,
        "lag_median_s": None if counts is None else counts.lag_median_s,
        "lag_max_s": None if counts is None else counts.lag_max_s,
    }


def bars(runs: Sequence[RunSummary]) -> Group:
    """Return runs as a heading and two bars each, to be drawn on a terminal."""
    if not runs:
        return Group(Text("No run is active. Waiting; Ctrl-C ends.", style="dim"))
    return Group(*(part for run in runs for part in _block(run)))


def _block(run: RunSummary) -> Iterable[Text | Padding]:
    style = "red" if run.state in {RunState.FAILED, RunState.REFUSED, RunState.UNKNOWN} else "cyan"
    where = "" if run.job is None else f"job {run.job}{f' on {run.nodes}' if run.nodes else ''}"
    what = f"{run.recipe} of {run.file.name}"
    yield Text.assemble((run.run_id[:8], "bold"), "  ", (run.state, style), f"  {what}  {where}")
    if run.reason:
        yield Padding(Text(run.reason), (0, 0, 0, 2))
    if run.counts is None:
        return
    counts = run.counts
    rows = (("written", counts.written, ""), ("processed", counts.processed, lag_of(counts, counts.written)))
    yield Padding(frame_bars(rows, counts.expected), (0, 0, 0, 2))
