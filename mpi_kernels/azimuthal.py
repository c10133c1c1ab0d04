"""Azimuthal integration to one dimension: arrays in, arrays out. Knows no files and no MPI.

With counts C, dark D, background B and its scale s, flat F, relative solid angle Ω and polarisation factor P, per bin
(sums over its valid pixels):

    I = Σ[(C - D) - s (B - D)] / Σ[F Ω P]        standard deviation = √Σ var / Σ[F Ω P]

the quotient of sums of pyFAI's ``integrate1d_ng`` (Ashiotis et al., J. Appl. Cryst. 48 (2015) 510-519, and pyFAI's
documentation). With Poisson errors var = C + s² var(B) + (1 - s)² var(D).

All but C is known beforehand and summed once; of a frame only the counts are summed, exactly (`summing`), so the result
can't depend on the order or number of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mpi_kernels.kernel import Column, Reduced
from mpi_kernels.summing import Counts, Limits, WholePixels

Values: TypeAlias = NDArray[np.float64]
ErrorModel: TypeAlias = Literal["poisson", "pyfai", "none"]

UPPER_EDGE = 1.0 + float(np.finfo(np.float32).eps)
"""The largest value of the axis lies just inside the last bin, as in pyFAI."""

INTENSITY, ERRORS = "data/I", "data/I_errors"
_SPECTRUM = {"interpretation": "spectrum", "units": "arbitrary units"}


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
    """Integrates frames of one detector; a `kernel.Reduction`.

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
    dtype
        Of the frames.
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
        dtype: np.dtype[Any],
        error_model: ErrorModel,
    ) -> None:
        self.bins, self._error_model = bins, error_model
        self.edges = bin_edges(images, bins, radial_range)
        least = 1 if error_model == "pyfai" else 0
        self._pixels = WholePixels(
            bin_numbers(images, self.edges), bins=bins, limits=limits, dtype=dtype, least_variance=least
        )
        self._norm = images.norm.ravel()
        self._offset = None if images.offset is None else images.offset.ravel()
        self._variance = None if images.offset_variance is None else images.offset_variance.ravel()
        self.norm = self._pixels.binned(self._norm)
        self._offset_sum = None if self._offset is None else self._pixels.binned(self._offset)
        self._variance_sum = None if self._variance is None else self._pixels.binned(self._variance)

    @property
    def centres(self) -> Values:
        """The radial axis, shape ``(bins,)``."""
        return (self.edges[:-1] + self.edges[1:]) / 2

    @property
    def pixels(self) -> int:
        """Number of pixels that fall into a bin."""
        return int(self._pixels.pixels_per_bin.sum())

    @property
    def columns(self) -> Sequence[Column]:
        """Intensity, and its standard deviation if there is an error model."""
        intensity = Column(
            group="data", name="I", shape=(self.bins,), attributes=_SPECTRUM | {"long_name": "intensity"}
        )
        long_name = {"long_name": "estimated intensity error"}
        errors = Column(group="data", name="I_errors", shape=(self.bins,), attributes=_SPECTRUM | long_name)
        return [intensity] if self._error_model == "none" else [intensity, errors]

    @property
    def takes_chunks(self) -> bool:
        """Whether stored chunks can be integrated without a frame in between."""
        return self._pixels.takes_chunks

    def of_chunks(self, chunks: Sequence[bytes]) -> Reduced:
        """Integrate frames that are stored as one chunk of bitshuffle-LZ4 each."""
        return self._reduced(self._pixels.of_chunks(chunks))

    def of_frames(self, frames: Sequence[NDArray[Any]]) -> Reduced:
        """Integrate frames, each of shape ``(y, x)``."""
        return self._reduced([self._pixels.of_frame(frame) for frame in frames])

    def integrate(self, frame: NDArray[Any]) -> Pattern:
        """Integrate one frame, shape ``(y, x)``."""
        return self.sums(frame).pattern()

    def sums(self, frame: NDArray[Any]) -> Sums:
        """Return the sums over each bin's valid pixels of one frame, shape ``(y, x)``."""
        return self._corrected(self._pixels.of_frame(frame))

    def _reduced(self, of_each: Sequence[Counts | str]) -> Reduced:
        errors = {index: counts for index, counts in enumerate(of_each) if isinstance(counts, str)}
        nothing = np.full(self.bins, np.nan)
        patterns = [
            Pattern(nothing, nothing) if isinstance(counts, str) else self._corrected(counts).pattern()
            for counts in of_each
        ]
        columns = {INTENSITY: np.stack([pattern.intensity for pattern in patterns])}
        if self._error_model != "none":
            columns[ERRORS] = np.stack([nothing if item.sigma is None else item.sigma for item in patterns])
        return Reduced(columns, errors)

    def _corrected(self, counts: Counts) -> Sums:
        bad = counts.excluded
        signal = counts.signal - self._without(self._offset_sum, self._offset, bad)
        norm = self._norm_without(bad)
        if self._error_model == "none":
            return Sums(signal, norm, None)
        return Sums(signal, norm, counts.variance + self._without(self._variance_sum, self._variance, bad))

    def _norm_without(self, bad: NDArray[np.intp]) -> Values:
        if not bad.size:
            return self.norm
        return np.where(self._pixels.pixels_left(bad) > 0, self._without(self.norm, self._norm, bad), 0.0)

    def _without(self, total: Values | None, values: Values | None, bad: NDArray[np.intp]) -> Values | float:
        """Return a sum over all pixels less what the bad ones had put in; 0 when there is nothing to sum."""
        if total is None or values is None:
            return 0.0
        return total - self._pixels.binned(values[bad], bad) if bad.size else total


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
