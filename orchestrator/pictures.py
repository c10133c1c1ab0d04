"""Pictures of a result, and how far it lagged behind its detector, read from the NeXus files alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from orchestrator.errors import InvalidInput

WRITTEN_TIME = "/entry/diamond_scan/frame_written_time"
"""In the detector's file: seconds since 1970 at which each frame became readable; NaN: never."""
PROCESSED_TIME = "/entry/frames/processed_time"
"""In the result: seconds since 1970 at which each frame's pattern became readable; NaN: never."""

_NEUTRAL, _ACCENT = "#3b4252", "#c2410c"


def default_plot(file: h5py.File) -> h5py.Group:
    """Follow the ``default`` attributes of a NeXus file to the NXdata group that is plotted.

    Raises
    ------
    InvalidInput
        When they lead nowhere.
    """
    group: Any = file
    while group.attrs.get("NX_class") not in (b"NXdata", "NXdata"):
        name = group.attrs.get("default")
        if name is None or name not in group:
            raise InvalidInput(
                f"{file.filename}: {group.name} names no default plot", remedy="is it a kernel's result?"
            )
        group = group[name]
    return group


@dataclass(frozen=True, kw_only=True)
class Patterns:
    """The line patterns of a result."""

    radial: npt.NDArray[np.float64]
    """Bin centres, shape (bin,)."""
    label: str
    intensity: npt.NDArray[np.float64]
    """Shape (frame, bin); NaN where a frame has no result."""
    errors: npt.NDArray[np.float64] | None
    """Standard deviations, same shape."""

    @property
    def there(self) -> npt.NDArray[np.intp]:
        """Numbers of the frames that have a result."""
        return np.flatnonzero(np.isfinite(self.intensity).any(axis=1))


def read_patterns(result: Path) -> Patterns:
    """Read the default plot of a result, which may still be growing.

    Raises
    ------
    InvalidInput
        When it has none, or no frame has been processed yet.
    """
    with h5py.File(result, "r", swmr=True) as file:
        data = default_plot(file)
        signal, axis = str(data.attrs["signal"]), str(np.atleast_1d(data.attrs["axes"])[-1])
        radial, unit = data[axis][()], str(data[axis].attrs.get("units", ""))
        name = str(data[axis].attrs.get("long_name", axis))
        errors = f"{signal}_errors"
        patterns = Patterns(
            radial=radial,
            label=f"{name} ({unit})" if unit else name,
            intensity=data[signal][()].reshape(-1, radial.size),
            errors=data[errors][()].reshape(-1, radial.size) if errors in data else None,
        )
    if not patterns.there.size:
        raise InvalidInput(f"{result}: no frame has been processed yet", remedy="look again later")
    return patterns


def draw_result(result: Path, picture: Path, *, title: str) -> None:
    """Draw a result into a PNG: the newest pattern with its errors, and all patterns as an image.

    Raises
    ------
    InvalidInput
        As `read_patterns` does.
    """
    patterns = read_patterns(result)
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12)
    line, image = figure.subplots(1, 2, width_ratios=(1.15, 1))
    _draw_newest(line, patterns)
    _draw_all(image, patterns)
    figure.savefig(picture, dpi=120)


def draw_pattern(patterns: Patterns, picture: Path, *, title: str) -> None:
    """Draw the newest pattern with its errors, alone, into a PNG."""
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    newest = patterns.there[-1]
    pattern = patterns.intensity[newest]
    axes.plot(patterns.radial, pattern, color=_ACCENT, linewidth=1.2)
    if patterns.errors is not None:
        sigma = patterns.errors[newest]
        axes.fill_between(patterns.radial, pattern - sigma, pattern + sigma, color=_ACCENT, alpha=0.25, linewidth=0)
    axes.set(xlabel=patterns.label, ylabel="intensity", title=title)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=120)


def _draw_newest(axes: Axes, patterns: Patterns) -> None:
    newest = int(patterns.there[-1])
    pattern = patterns.intensity[newest]
    mean = np.mean(patterns.intensity[patterns.there], axis=0)
    axes.plot(patterns.radial, mean, color=_NEUTRAL, linewidth=0.8, label="mean of all frames")
    if patterns.errors is not None:
        sigma = patterns.errors[newest]
        axes.fill_between(patterns.radial, pattern - sigma, pattern + sigma, color=_ACCENT, alpha=0.25, linewidth=0)
    axes.plot(patterns.radial, pattern, color=_ACCENT, linewidth=1.2, label=f"frame {newest} ± σ")
    positive = pattern[pattern > 0]
    if positive.size > pattern.size // 2 and positive.max() > 50 * np.median(positive):
        axes.set_yscale("log")
    axes.set(xlabel=patterns.label, ylabel="intensity", title="newest pattern")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_all(axes: Axes, patterns: Patterns) -> None:
    low, high = np.nanpercentile(patterns.intensity, [1, 99.5])
    edges = (float(patterns.radial[0]), float(patterns.radial[-1]), -0.5, patterns.intensity.shape[0] - 0.5)
    image = axes.imshow(
        patterns.intensity, aspect="auto", origin="lower", extent=edges, vmin=low, vmax=high, interpolation="nearest"
    )
    axes.set(xlabel=patterns.label, ylabel="frame", title="all frames")
    axes.figure.colorbar(image, ax=axes, label="intensity")


def frame_lags_s(detector_file: Path, result: Path) -> tuple[float, ...]:
    """Return, for each frame in both files, the seconds from the detector's flush to its pattern being readable.

    Raises
    ------
    InvalidInput
        When one of the files lacks its times.
    """
    written, processed = _times(detector_file, WRITTEN_TIME), _times(result, PROCESSED_TIME)
    number = min(written.size, processed.size)
    lags = processed[:number] - written[:number]
    return tuple(float(lag) for lag in lags[np.isfinite(lags)])


def _times(path: Path, dataset: str) -> npt.NDArray[np.float64]:
    with h5py.File(path, "r", swmr=True) as file:
        if dataset not in file:
            raise InvalidInput(f"{path}: no dataset {dataset}", remedy="was it written by another program?")
        return np.asarray(file[dataset][()], dtype=np.float64)
