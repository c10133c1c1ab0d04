"""Azimuthal integration to one dimension: arrays in, arrays out. Knows no files and no MPI.

Every pixel counts with its centre, whole, in one bin (no splitting). With counts C, dark D, background B and its scale
s, flat F, relative solid angle Ω and polarisation factor P, per bin (sums over its valid pixels):

    I = Σ[(C - D) - s (B - D)] / Σ[F Ω P]        standard deviation = √Σ var / Σ[F Ω P]

the quotient of sums of pyFAI's ``integrate1d_ng`` (Ashiotis et al., J. Appl. Cryst. 48 (2015) 510-519, and pyFAI's
documentation). With Poisson errors var = C + s² var(B) + (1 - s)² var(D).

All but C is known beforehand and summed once; of a frame only the counts are summed, exactly (whole numbers in
float64), so the result can't depend on the order or number of ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Values: TypeAlias = NDArray[np.float64]
ErrorModel: TypeAlias = Literal["poisson", "pyfai", "none"]

_BLOCK = 32768
"""Pixels that are summed at a time; as float64 with their bins they are half a megabyte."""

UPPER_EDGE = 1.0 + float(np.finfo(np.float32).eps)
"""The largest value of the axis lies just inside the last bin, as in pyFAI."""


@dataclass(frozen=True)
class Limits:
    """Which pixel values are measurements: `low` ≤ value ≤ `high`. None: no such limit."""

    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, dtype: np.dtype[Any], saturation: float | None, underload: float | None = None) -> Limits:
        """Return the limits for a detector's data type.

        The largest unsigned value marks gaps and dead pixels, negative signed values do (DECTRIS and NeXus habit).
        """
        if dtype.kind == "f":
            return cls(underload, saturation)
        top = int(np.iinfo(dtype).max) - (dtype.kind == "u")
        high = top if saturation is None else max(-1, min(top, saturation))
        return cls(math.ceil(max(0.0, underload or 0.0)), math.floor(high))  # whole numbers compare faster


@dataclass(frozen=True)
class PixelImages:
    """What is known of each pixel before the first frame, all of shape ``(y, x)``.

    `norm` is F Ω P; `offset` is what is subtracted; `offset_variance` its variance.
    """

    radial: Values
    valid: NDArray[np.bool_]
    norm: Values
    offset: Values | None = None
    offset_variance: Values | None = None


@dataclass(frozen=True)
class Pattern:
    """One integrated frame, each of shape ``(bins,)``; NaN in bins without valid pixels."""

    intensity: Values
    sigma: Values | None


@dataclass(frozen=True)
class Sums:
    """Sums over the valid pixels of each bin, each of shape ``(bins,)``; `norm` is 0 in bins without any."""

    signal: Values
    norm: Values
    variance: Values | None

    def pattern(self) -> Pattern:
        """Return the quotients."""
        with np.errstate(divide="ignore", invalid="ignore"):
            intensity = np.where(self.norm > 0, self.signal / self.norm, np.nan)
            if self.variance is None:
                return Pattern(intensity, None)
            return Pattern(intensity, np.where(self.norm > 0, np.sqrt(self.variance) / self.norm, np.nan))


class Integrator:
    """Integrates frames of one detector, one after the other.

    Parameters
    ----------
    images
        What is known of the pixels.
    bins
        Number of bins.
    radial_range
        Lower and upper edge; None takes the valid pixels' range.
    limits
        Which values are measurements.
    error_model
        Variance of a pixel: its counts, ``max(counts, 1)``, or none.
    """

    def __init__(
        self,
        images: PixelImages,
        *,
        bins: int,
        radial_range: tuple[float, float] | None,
        limits: Limits,
        error_model: ErrorModel,
    ) -> None:
        self.bins, self._limits, self._error_model = bins, limits, error_model
        self.shape = images.radial.shape
        self.edges = bin_edges(images, bins, radial_range)
        self._bin_of = bin_numbers(images, self.edges)
        self._pixels_per_bin = np.bincount(self._bin_of, minlength=bins + 1)[:bins]
        self._norm = images.norm.ravel()
        self._offset = None if images.offset is None else images.offset.ravel()
        self._variance = None if images.offset_variance is None else images.offset_variance.ravel()
        self.norm = self._binned(slice(None), self._norm)
        self._offset_sum = None if self._offset is None else self._binned(slice(None), self._offset)
        self._variance_sum = None if self._variance is None else self._binned(slice(None), self._variance)
        starts = range(0, len(self._bin_of), _BLOCK)
        blocks = [slice(start, min(start + _BLOCK, len(self._bin_of))) for start in starts]
        self._blocks = [block for block in blocks if (self._bin_of[block] < bins).any()]

    @property
    def centres(self) -> Values:
        """The radial axis, shape ``(bins,)``."""
        return (self.edges[:-1] + self.edges[1:]) / 2

    @property
    def pixels(self) -> int:
        """Number of pixels that fall into a bin."""
        return int(self._pixels_per_bin.sum())

    def integrate(self, frame: NDArray[Any]) -> Pattern:
        """Integrate one frame, shape ``(y, x)``."""
        return self.sums(frame).pattern()

    def sums(self, frame: NDArray[Any]) -> Sums:
        """Return the sums over each bin's valid pixels of one frame, shape ``(y, x)``."""
        counts, variance, bad = self._sum_counts(frame.reshape(-1))
        signal = counts - self._without(self._offset_sum, self._offset, bad)
        norm = self._norm_without(bad)
        if self._error_model == "none":
            return Sums(signal, norm, None)
        return Sums(signal, norm, variance + self._without(self._variance_sum, self._variance, bad))

    def _sum_counts(self, counts: NDArray[Any]) -> tuple[Values, Values, NDArray[np.intp]]:
        """Return per bin the sum of counts and that of their variances, and which pixels were left out.

        Whole numbers are summed block by block, so that what is between stays in the processor's cache; their sums
        don't depend on it. Those of floats would.
        """
        summed, variance = np.zeros(self.bins), np.zeros(self.bins)
        left_out: list[NDArray[np.intp]] = []
        for pixels in self._blocks if counts.dtype.kind in "ui" else [slice(0, counts.size)]:
            block = counts[pixels]
            bad = self._bad_values(block)
            measured = block.astype(np.float64)
            measured[bad] = 0
            summed += self._binned(pixels, measured)
            if self._error_model == "pyfai":
                np.maximum(measured, 1, out=measured)
                measured[bad] = 0
                variance += self._binned(pixels, measured)
            if bad.size:
                left_out.append(bad + pixels.start)
        bad = np.concatenate(left_out) if left_out else np.empty(0, np.intp)
        return summed, variance if self._error_model == "pyfai" else summed, bad[self._bin_of[bad] < self.bins]

    def _bad_values(self, counts: NDArray[Any]) -> NDArray[np.intp]:
        """Return which of these values are no measurements."""
        bad = np.empty(0, np.intp)
        if counts.dtype.kind == "f":
            bad = np.flatnonzero(~np.isfinite(counts))
        low, high = self._limits.low, self._limits.high
        if low is not None and counts.dtype.kind != "u":
            bad = np.union1d(bad, np.flatnonzero(counts < low))
        elif low is not None and low > 0:
            bad = np.flatnonzero(counts < low)
        if high is not None:
            above = np.flatnonzero(counts > high)
            bad = np.union1d(bad, above) if bad.size else above
        return bad

    def _norm_without(self, bad: NDArray[np.intp]) -> Values:
        if not bad.size:
            return self.norm
        left = self._pixels_per_bin - np.bincount(self._bin_of[bad], minlength=self.bins + 1)[: self.bins]
        return np.where(left > 0, self._without(self.norm, self._norm, bad), 0.0)

    def _without(self, total: Values | None, values: Values | None, bad: NDArray[np.intp]) -> Values | float:
        """Return a sum over all pixels less what the bad ones had put in; 0 when there is nothing to sum."""
        if total is None or values is None:
            return 0.0
        return total - self._binned(bad, values[bad]) if bad.size else total

    def _binned(self, pixels: NDArray[np.intp] | slice, values: NDArray[Any]) -> Values:
        sums = np.bincount(self._bin_of[pixels], weights=values, minlength=self.bins + 1)
        return np.asarray(sums[: self.bins], np.float64)


def bin_edges(images: PixelImages, bins: int, radial_range: tuple[float, float] | None) -> Values:
    """Return the edges of equally wide bins, shape ``(bins + 1,)``."""
    if radial_range is None:
        radial = images.radial[images.valid]
        radial_range = (float(radial.min()), float(radial.max()) * UPPER_EDGE)
    return np.linspace(*radial_range, bins + 1)


def bin_numbers(images: PixelImages, edges: Values) -> NDArray[np.intp]:
    """Return each pixel's bin, shape ``(y·x,)``; `bins` for those that fall into none."""
    bins = len(edges) - 1
    low, high = float(edges[0]), float(edges[-1])
    radial = images.radial.ravel()
    inside = images.valid.ravel() & (radial >= low) & (radial < high)
    numbers = np.full(radial.shape, bins, np.intp)
    position = (radial[inside] - low) / ((high - low) / bins)
    numbers[inside] = np.minimum(position.astype(np.intp), bins - 1)
    return numbers
