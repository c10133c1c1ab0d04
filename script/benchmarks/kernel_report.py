"""What was measured of the kernels, as tables, and against what was promised. In: figures of `kernel_rounds`."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from kernel_decoding import DECTRIS, WHOLE_FRAMES
from kernel_files import HOT_16, MIDDLE
from kernel_rounds import AVX2, AZIMUTHAL, BOUNDING_BOX, PROJECTION, TWO_RANKS, WHEELS
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from targets import Target, at_least, at_most, table_of

DECODE = "the best full-frame decode"
PYFAI, FASTEST = "pyFAI out of the box", "pyFAI, its fastest"

RATIOS = (
    (MIDDLE, AZIMUTHAL, DECODE, 0.95),
    (MIDDLE, AZIMUTHAL, PYFAI, 50.0),
    (MIDDLE, AZIMUTHAL, FASTEST, 20.0),
    (MIDDLE, BOUNDING_BOX, DECODE, 0.75),
    (MIDDLE, BOUNDING_BOX, PYFAI, 30.0),
    (HOT_16, AZIMUTHAL, DECODE, 0.85),
    (MIDDLE, WHEELS, DECTRIS, 0.65),
    (MIDDLE, AVX2, AZIMUTHAL, 0.8),
    (MIDDLE, PROJECTION, DECODE, 1.0),
    (MIDDLE, AZIMUTHAL + TWO_RANKS, AZIMUTHAL, 1.85),
)
"""Load, contender, whom it is held against, and the least ratio of their rates.

AVX2 is held against the kernel's own choice, which is AVX-512 where there is a difference to see.
"""
MEMORY_GROWTH = 1.1
_MS = {"computed": "from flush to computed", "visible": "from flush to visible"}

Rates = Mapping[str, Sequence[float]]


def report(figures: dict[str, Any]) -> int:
    """Print everything; return 0 when every target is met, 1 when one isn't, 2 when nothing was measured."""
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(", ".join(f"{name} {value}" for name, value in figures["machine"].items()), markup=False)
    if figures["frames_per_s"]:
        console.print(rate_table(figures))
    if figures["live"]:
        console.print(live_table(figures["live"]))
    for line in (*memory_lines(figures["memory_mb"]), *failure_lines(figures["failures"])):
        console.print(line, markup=False)
    if figures["nodes"]:
        console.print(node_table(figures["nodes"]["projected"]))
        for line in node_lines(figures["nodes"]):
            console.print(line, markup=False)
    if not any(figures[name] for name in ("frames_per_s", "live", "memory_mb")):
        return 2
    found = targets(figures)
    console.print(table_of(found))
    return 0 if all(target.met for target in found) else 1


# ------------------------------------------------------------------------------------------------ tables


def rate_table(figures: dict[str, Any]) -> Table:
    """Return all rates, each beside the best decoder of its load and beside pyFAI."""
    table = Table("contender", "frames/s", "rounds", "x decode", f"x {PYFAI}", title="one rank unless it says two")
    for load, rates in figures["frames_per_s"].items():
        if not rates:
            continue
        table.add_section()
        table.add_row(f"[bold]{load}[/bold], {figures['stored_bytes'][load] / 1e3:.0f} kB a frame")
        best = best_decode(rates)
        for name, values in rates.items():
            rounds = " ".join(f"{value:.0f}" for value in values)
            ratios = (_told(rates, name, best), _told(rates, name, PYFAI))
            table.add_row(f"  {escape(name)}", f"{statistics.median(values):.0f}", rounds, *ratios)
    return table


def _told(rates: Rates, name: str, reference: str) -> str:
    return f"{_ratio(rates, name, reference):.2f}" if reference in rates else "-"


def live_table(live: dict[str, dict[str, Any]]) -> Table:
    """Return the lags of all rates."""
    heads = [f"{text}, ms: median, 95 %, worst" for text in _MS.values()]
    table = Table("live", "frames", *heads, "last tenth, ms", "wrong", "writer late, ms", "computed is")
    for name, figures in live.items():
        lags = [
            " ".join(f"{value:.1f}" for value in np.percentile(figures[f"{kind}_ms"], (50, 95, 100))) for kind in _MS
        ]
        last, late = f"{last_tenth_ms(figures):.1f}", f"{figures['writer_late_ms']:.0f}"
        table.add_row(name, str(figures["frames"]), *lags, last, str(figures["wrong"]), late, figures["stamp"])
    return table


def last_tenth_ms(figures: dict[str, Any]) -> float:
    """Return the median lag of the last tenth of the frames: who doesn't keep up falls behind there."""
    lags = figures["computed_ms"]
    return float(statistics.median(lags[-max(1, len(lags) // 10) :]))


def memory_lines(memory: dict[str, dict[Any, list[float]]]) -> Iterator[str]:
    """Tell the peak memory of each rank."""
    for name, by_frames in memory.items():
        for frames, ranks_mb in by_frames.items():
            told = ", ".join(f"rank {rank} {mb:.0f} MB" for rank, mb in enumerate(ranks_mb))
            yield f"memory: {name}, {frames} frames: {told}"


def failure_lines(failures: dict[str, str]) -> Iterator[str]:
    """Tell what wasn't measured, and why."""
    for reason in dict.fromkeys(failures.values()):
        labels = "; ".join(label for label, found in failures.items() if found == reason)
        yield f"not measured: {labels}: {reason}"


def node_table(projected: list[dict[str, Any]]) -> Table:
    """Return the projection to many nodes."""
    table = Table("nodes", "ranks", *projected[0]["limits"], "frames/s", "limited by", title="projected, not measured")
    for row in projected:
        limits = [f"{value:.0f}" for value in row["limits"].values()]
        table.add_row(str(row["nodes"]), str(row["ranks"]), *limits, f"{row['rate']:.0f}", row["limit"])
    return table


def node_lines(nodes: dict[str, Any]) -> Iterator[str]:
    """Tell the projection's costs and assumptions."""
    told = ", ".join(f"{name.removesuffix('_s')} {seconds * 1e6:.1f}" for name, seconds in nodes["costs_s"].items())
    yield f"64 nodes: measured costs, µs: {told}; {nodes['rank_rate']:.0f} frames/s a rank"
    for assumption in nodes["assumptions"]:
        yield f"64 nodes: assumed: {assumption}"


# ------------------------------------------------------------------------------------------------ targets


def targets(figures: dict[str, Any]) -> list[Target]:
    """Hold the figures against what was promised.

    What wasn't asked for is left out; what was, and couldn't be measured, is a target missed.
    """
    return [*_ratio_targets(figures), *_live_targets(figures), *_memory_targets(figures["memory_mb"])]


def _ratio_targets(figures: dict[str, Any]) -> Iterator[Target]:
    for load, name, reference, wanted in RATIOS:
        rates = figures["frames_per_s"].get(load, {})
        other = best_decode(rates) if reference == DECODE else reference
        label = f"{load}: {name} / {reference}"
        if name in rates and other in rates:
            yield at_least(label, _ratio(rates, name, other), wanted)
        elif any(f"{load}: {missing}" in figures["failures"] for missing in (name, other)):
            yield at_least(label, math.nan, wanted)


def _live_targets(figures: dict[str, Any]) -> Iterator[Target]:
    limits_of = {
        "live 100/s, 1 rank": ((50, "computed", 2.0), (95, "computed", 5.0), (100, "visible", 100.0)),
        "live 100/s, 2 ranks": ((50, "computed", 2.0), (95, "computed", 5.0), (100, "visible", 100.0)),
        "live 1500/s, 1 rank": ((95, "computed", 40.0),),
    }
    words = {50: "median", 95: "95 %", 100: "worst"}
    for name, limits in limits_of.items():
        found = figures["live"].get(name)
        if found is None and name not in figures["failures"]:
            continue
        for percent, kind, wanted in limits:
            seen = math.nan if found is None else float(np.percentile(found[f"{kind}_ms"], percent))
            yield at_most(f"{name}: {_MS[kind]}, {words[percent]}, ms", seen, wanted)
        if found and "1500" in name:
            yield at_most(f"{name}: keeps up: median of the last tenth, ms", last_tenth_ms(found), 40.0)
    if figures["live"]:
        yield at_most("live: wrong frames, all rates", sum(found["wrong"] for found in figures["live"].values()), 0)


def _memory_targets(memory: dict[str, dict[Any, list[float]]]) -> Iterator[Target]:
    for name, by_frames in memory.items():
        (fewer, less_mb), (more, more_mb) = by_frames.items()
        growth = max(after / before for before, after in zip(less_mb, more_mb, strict=True))
        yield at_most(f"memory: {name}, {more} frames / {fewer}, worst rank", growth, MEMORY_GROWTH)


def best_decode(rates: Rates) -> str:
    """Return who decodes whole frames fastest; empty when nobody was measured."""
    return max(
        (name for name in WHOLE_FRAMES if name in rates), key=lambda name: statistics.median(rates[name]), default=""
    )


def _ratio(rates: Rates, name: str, other: str) -> float:
    """Return the rate of one over that of the other: the median of the rounds' ratios."""
    return statistics.median(ours / theirs for ours, theirs in zip(rates[name], rates[other], strict=True))
