"""What the sums over all frames say of each pixel: mean, variance, whether it is dead or hot. Arrays in, arrays out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from mpi_kernels.projection import Accumulation

Values: TypeAlias = NDArray[np.float64]

_SORTED = 1 << 21
"""Values that are sorted at a time for the medians; they take 16 megabytes."""


class PixelFlag(IntFlag):
    """Bits of NXdetector's ``pixel_mask`` (NeXus definitions, ``NXdetector.nxdl.xml``)."""

    DEAD = 1 << 1
    NOISY = 1 << 4


@dataclass(frozen=True)
class PixelStatistics:
    """Each of shape ``(y, x)``.

    Parameters
    ----------
    mean
        Counts per frame, over the frames in which the pixel counts; NaN where there is none.
    variance
        Counts² per frame: Σ(value - mean)² / (n - 1), numpy's ``ddof=1``; NaN where the pixel counts in fewer than two.
    pixel_mask
        `PixelFlag` of each pixel.
    """

    mean: Values
    variance: Values
    pixel_mask: NDArray[np.uint32]


def pixel_statistics(
    sums: Accumulation, *, window: int = 5, factor: float = 10.0, deviations: float = 6.0
) -> PixelStatistics:
    """Return mean, variance and flags of each pixel.

    Parameters
    ----------
    sums
        Over all frames.
    window
        A pixel is compared with the square of `window` × `window` pixels around it; odd.
    factor
        A hot pixel's mean is larger than `factor` times the median around it.
    deviations
        A dead or hot pixel deviates by more than so many standard deviations.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(sums.counted > 0, sums.total / sums.counted, np.nan)
    return PixelStatistics(mean, variance(sums), _flags(sums, local_median(mean, window), factor, deviations))


def variance(sums: Accumulation) -> Values:
    """Return the variance over frames, shape ``(y, x)``: (n Σx² - (Σx)²) / (n (n - 1)).

    The numerator is calculated with whole numbers: floats would cancel where the mean is large.
    """
    result = np.full(sums.total.shape, np.nan)
    number = sums.counted
    # (Σx)² ≤ n Σx², so where this one has fewer than 63 bits, both have
    fits = number * (sums.squares_low + sums.squares_high * 2.0**32) < 2.0**62
    for pixels, kind in ((fits & (number > 1), np.int64), (~fits & (number > 1), object)):
        n, total, low, high = (
            part[pixels].astype(kind) for part in (number, sums.total, sums.squares_low, sums.squares_high)
        )
        spread = n * (low + (high << 32)) - total * total
        result[pixels] = (spread / (n * (n - 1))).astype(np.float64)
    return result


def local_median(image: Values, window: int) -> Values:
    """Return the median in the square of `window` × `window` pixels around each pixel, without those that are NaN.

    It is NaN where all of them are.
    """
    half = window // 2
    padded = np.pad(image, half, constant_values=np.nan)
    result = np.empty_like(image)
    rows = max(1, _SORTED // (image.shape[1] * window**2))
    for start in range(0, len(image), rows):
        strip = padded[start : start + rows + 2 * half]
        around = sliding_window_view(strip, (window, window)).reshape(-1, window**2)
        around = np.sort(around, axis=1)  # NaN last
        there = np.count_nonzero(~np.isnan(around), axis=1)
        each = np.arange(len(around))
        middle = around[each, np.maximum(there - 1, 0) // 2] + around[each, there // 2]
        result[start : start + rows] = (middle / 2).reshape(-1, image.shape[1])
    return result


def _flags(sums: Accumulation, around: Values, factor: float, deviations: float) -> NDArray[np.uint32]:
    """Return each pixel's flags, given the median of the means around it.

    Counts are compared by twice their square root, whose standard deviation is 1 whatever they are (F. J. Anscombe,
    Biometrika 35 (1948) 246-254). So a dead pixel is one that never counted anything where about 13 counts or more were
    to be expected; in fewer frames, or in the dark, nothing can be said. A reflection that stays in its place in all
    frames, narrower than half the window, looks like a hot pixel.
    """
    expected = around * sums.counted
    deviation = 2 * (np.sqrt(sums.total + 0.375) - np.sqrt(expected + 0.375))
    dead = (sums.total == 0) & (deviation < -deviations)
    hot = (sums.total > factor * expected) & (deviation > deviations)
    return np.where(dead, PixelFlag.DEAD, 0).astype(np.uint32) | np.where(hot, PixelFlag.NOISY, 0).astype(np.uint32)
