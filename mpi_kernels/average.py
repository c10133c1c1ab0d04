"""The mean of line patterns: arrays in, arrays out. Knows no files and no MPI."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Mean:
    """The mean of some frames' patterns; all of shape ``(bins,)``, NaN in bins that no frame has."""

    intensity: NDArray[np.float64]
    sigma: NDArray[np.float64] | None
    """Standard deviation of the mean, from the frames' own: ``√Σσ² / n``. None where they have none."""
    scatter: NDArray[np.float64]
    """Standard deviation of the frames around the mean, ``√(Σ(I - mean)² / (n - 1))``; NaN with fewer than two."""
    frames: NDArray[np.int64]
    """How many frames have the bin."""


def mean_pattern(intensity: NDArray[np.float64], sigma: NDArray[np.float64] | None) -> Mean:
    """Return the mean over frames, each bin over the frames that have it (aren't NaN).

    Parameters
    ----------
    intensity
        Shape ``(frames, bins)``.
    sigma
        Standard deviations, the same shape.
    """
    there = np.isfinite(intensity)
    number = there.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(there, intensity, 0.0).sum(axis=0) / number
        squares = np.where(there, (intensity - mean) ** 2, 0.0).sum(axis=0)
        scatter = np.where(number > 1, np.sqrt(squares / (number - 1)), np.nan)
        error = None if sigma is None else np.sqrt(np.where(there, sigma**2, 0.0).sum(axis=0)) / number
    return Mean(mean, error, scatter, number.astype(np.int64))
