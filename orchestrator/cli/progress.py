"""Progress of frames, drawn on a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.progress_bar import ProgressBar
from rich.table import Table

from orchestrator.cli.wording import seconds
from orchestrator.records import FrameCounts


def frame_bars(rows: Iterable[tuple[str, int, str]], expected: int | None) -> Table:
    """Return one bar for each name, number of frames and remark.

    Parameters
    ----------
    expected
        The number that makes a full bar; None, where none was announced, takes the largest number so far.
    """
    bars = tuple(rows)
    total = max(count for _, count, _ in bars) if expected is None else expected
    announced = "" if expected is None else f"/{expected}"
    grid = Table.grid(padding=(0, 2), expand=True)
    grid.add_column(width=9)
    grid.add_column(ratio=1)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(no_wrap=True, min_width=24)
    for name, count, remark in bars:
        # rich draws a total of 0 as a full bar.
        grid.add_row(name, ProgressBar(total=max(total, 1), completed=count), f"{count}{announced}", remark)
    return grid


def lag_of(counts: FrameCounts | None, written: int) -> str:
    """Word how far processing lags, in time and in frames of those `written`."""
    if counts is None:
        return ""
    behind = written - counts.processed - counts.failed
    lag = "" if counts.lag_median_s is None else f"lag {seconds(counts.lag_median_s)}"
    return ", ".join(part for part in (lag, f"{behind} behind" if behind else "") if part)
