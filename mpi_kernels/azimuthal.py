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

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Values: TypeAlias = NDArray[np.float64]
ErrorModel: TypeAlias = Literal["poisson", "pyfai", "none"]

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
        return cls(max(0.0, underload or 0.0), top if saturation is None else min(top, saturation))


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
        self.norm = self._sum(self._norm)
        self._offset_sum = None if self._offset is None else self._sum(self._offset)
        self._variance_sum = None if self._variance is None else self._sum(self._variance)

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
        counts = frame.reshape(-1)
        bad = self._bad_pixels(counts)
        signal = counts_sum = self._sum(counts, bad)
        norm = self._norm_without(bad)
        if self._offset is not None and self._offset_sum is not None:
            signal = counts_sum - self._without(self._offset_sum, self._offset, bad)
        with np.errstate(divide="ignore", invalid="ignore"):
            intensity = np.where(norm > 0, signal / norm, np.nan)
            if self._error_model == "none":
                return Pattern(intensity, None)
            variance = self._total_variance(counts, counts_sum, bad)
            return Pattern(intensity, np.where(norm > 0, np.sqrt(variance) / norm, np.nan))

    def _total_variance(self, counts: NDArray[Any], counts_sum: Values, bad: NDArray[np.intp]) -> Values:
        variance = counts_sum
        if self._error_model == "pyfai":  # max(counts, 1) = counts, plus what lacks to one
            low = np.flatnonzero(counts < 1)
            lacking = self._binned(low, 1.0 - counts[low])
            bad_low = bad[counts[bad] < 1]
            variance = variance + lacking - self._binned(bad_low, 1.0 - counts[bad_low])
        if self._variance is not None and self._variance_sum is not None:
            variance = variance + self._without(self._variance_sum, self._variance, bad)
        return variance

    def _bad_pixels(self, counts: NDArray[Any]) -> NDArray[np.intp]:
        """Return the pixels that fall into a bin but aren't measurements in this frame."""
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
        return bad[self._bin_of[bad] < self.bins]

    def _sum(self, values: NDArray[Any], bad: NDArray[np.intp] | None = None) -> Values:
        if bad is not None and bad.size:
            values = values.copy()
            values[bad] = 0
        sums: Values = np.bincount(self._bin_of, weights=values, minlength=self.bins + 1)
        return sums[: self.bins]

    def _norm_without(self, bad: NDArray[np.intp]) -> Values:
        if not bad.size:
            return self.norm
        left = self._pixels_per_bin - np.bincount(self._bin_of[bad], minlength=self.bins + 1)[: self.bins]
        return np.where(left > 0, self._without(self.norm, self._norm, bad), 0.0)

    def _without(self, total: Values, values: Values, bad: NDArray[np.intp]) -> Values:
        return total - self._binned(bad, values[bad]) if bad.size else total

    def _binned(self, pixels: NDArray[np.intp], values: NDArray[Any]) -> Values:
        sums: Values = np.bincount(self._bin_of[pixels], weights=values, minlength=self.bins + 1)
        return sums[: self.bins]


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
    position = (radial[inside] - low) * (bins / (high - low))
    numbers[inside] = np.minimum(position.astype(np.intp), bins - 1)
    return numbers
