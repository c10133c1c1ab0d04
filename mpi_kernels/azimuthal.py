"""Azimuthal integration to one dimension: arrays in, arrays out. Knows no files and no MPI.

With counts C, dark D, background B and its scale s, flat F, relative solid angle Ω, polarisation factor P and sensor
absorption A, per bin (sums over its valid pixels, each with its share w of the bin):

    I = k Σ w[(C - D) - s (B - D)] / Σ w[F Ω P A]        standard deviation = k √Σ w² var / Σ w[F Ω P A]

the quotient of sums of pyFAI's ``integrate1d_ng`` (Ashiotis et al., J. Appl. Cryst. 48 (2015) 510-519, and pyFAI's
documentation). With Poisson errors var = C + s² var(B) + (1 - s)² var(D). k is the frame's scale: transmission,
monitor, thickness and the factor to absolute units (`corrections.scale`).

All but C is known beforehand and summed once; of a frame only the counts are summed, exactly (`summing`), so the result
can't depend on the order or number of ranks. What has to be computed pixel by pixel, dead time and scatter, is summed
in the order of the pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mpi_kernels.corrections import DeadTimeModel, dead_time, scale
from mpi_kernels.kernel import Array, Column, Reduced
from mpi_kernels.native.library import CHUNKS_SIDE_BY_SIDE, Chunk
from mpi_kernels.splitting import Pairs
from mpi_kernels.summing import Counts, Limits, Pixels, SplitPixels, WholePixels

Values: TypeAlias = NDArray[np.float64]
ErrorModel: TypeAlias = Literal["poisson", "pyfai", "azimuthal", "none"]
Split: TypeAlias = Callable[[Values], Pairs]
"""From the bins' edges to the shares of pixels in them."""

UPPER_EDGE = 1.0 + float(np.finfo(np.float32).eps)
"""The largest value of the axis lies just inside the last bin, as in pyFAI."""

_SPECTRUM = {"interpretation": "spectrum", "units": "arbitrary units"}


@dataclass(frozen=True, kw_only=True)
class DeadTime:
    """How long a pixel is busy with one pulse, and how long it counts (`corrections.dead_time`)."""

    model: DeadTimeModel
    dead_time_s: float
    time_s: float


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """What intensities are multiplied by (`corrections.scale`).

    Parameters
    ----------
    numbers
        Those that are the same for all frames, by the names of `corrections.scale`.
    datasets
        Paths in the input file of those that each frame has, by the same names.
    """

    numbers: Mapping[str, float] = field(default_factory=dict)
    datasets: Mapping[str, str] = field(default_factory=dict)

    def factor(self, given: Mapping[str, float]) -> float:
        """Return a frame's factor from its own numbers.

        Raises
        ------
        ValueError
            Naming the number that can't be.
        """
        return scale(**{**self.numbers, **given})


@dataclass(frozen=True)
class PixelImages:
    """What is known of each pixel before the first frame, all of shape ``(y, x)``.

    `norm` is F Ω P A; `offset` is what is subtracted; `offset_variance` its variance; `extent` where pixels begin and
    end on the radial axis, when they are split.
    """

    radial: Values
    valid: NDArray[np.bool_]
    norm: Values
    offset: Values | None = None
    offset_variance: Values | None = None
    extent: tuple[Values, Values] | None = None


@dataclass(frozen=True)
class Pattern:
    """Integrated frames, each of shape ``(frames, bins)`` or ``(bins,)``; NaN in bins without valid pixels."""

    intensity: Values
    sigma: Values | None


@dataclass(frozen=True)
class Sums:
    """Sums over the valid pixels of each bin, of frames or of one; `norm` is 0 in bins without any."""

    signal: Values
    norm: Values
    variance: Values | None

    def pattern(self, factor: Values) -> Pattern:
        """Return the quotients, times the factor of each frame, shape ``(frames, 1)``, or of one, shape ``()``."""
        with np.errstate(divide="ignore", invalid="ignore"):
            intensity = np.where(self.norm > 0, self.signal / self.norm * factor, np.nan)
            if self.variance is None:
                return Pattern(intensity, None)
            return Pattern(intensity, np.where(self.norm > 0, np.sqrt(self.variance) / self.norm * factor, np.nan))


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
        Variance of a pixel: its counts, ``max(counts, 1)``, the scatter in its bin, or none.
    split
        How pixels are split; None: not at all.
    busy
        Dead time that counts are corrected for.
    scaling
        What intensities are multiplied by.
    group
        Where the patterns stand in the result.
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
        split: Split | None = None,
        busy: DeadTime | None = None,
        scaling: Scaling | None = None,
        group: str = "data",
    ) -> None:
        self.bins, self._error_model, self._limits, self._busy = bins, error_model, limits, busy
        self.scaling, self.group = scaling or Scaling(), group
        self.edges = bin_edges(images, bins, radial_range)
        least = 1 if error_model == "pyfai" else 0
        self._pixels: Pixels
        if split is None:
            numbers = bin_numbers(images, self.edges)
            self._pixels = WholePixels(numbers, bins=bins, limits=limits, dtype=dtype, least_variance=least)
        else:
            pairs = split(self.edges)
            self._pixels = SplitPixels(pairs, bins=bins, limits=limits, dtype=dtype, least_variance=least)
        self._norm = images.norm.ravel()
        self._offset = None if images.offset is None else images.offset.ravel()
        self._variance = None if images.offset_variance is None else images.offset_variance.ravel()
        self.norm = self._pixels.binned(self._norm)
        self._offset_sum = None if self._offset is None else self._pixels.binned(self._offset)
        self._variance_sum = None if self._variance is None else self._pixels.binned_variance(self._variance)

    @property
    def centres(self) -> Values:
        """The radial axis, shape ``(bins,)``."""
        return (self.edges[:-1] + self.edges[1:]) / 2

    @property
    def pixels(self) -> int:
        """Number of pixels that fall into a bin."""
        return self._pixels.used

    @property
    def columns(self) -> Sequence[Column]:
        """Intensity, and its standard deviation if there is an error model."""
        attributes = _SPECTRUM | {"long_name": "intensity"}
        intensity = Column(group=self.group, name="I", shape=(self.bins,), attributes=attributes)
        attributes = _SPECTRUM | {"long_name": "estimated intensity error"}
        errors = Column(group=self.group, name="I_errors", shape=(self.bins,), attributes=attributes)
        return [intensity] if self._error_model == "none" else [intensity, errors]

    @property
    def per_frame(self) -> Mapping[str, str]:
        """Numbers that each frame has, and their datasets."""
        return self.scaling.datasets

    @property
    def takes_chunks(self) -> bool:
        """Whether stored chunks can be integrated without a frame in between."""
        return self._pixels.takes_chunks and not self._needs_pixels

    @property
    def chunks_at_once(self) -> int:
        """As many as the native core takes side by side."""
        return CHUNKS_SIDE_BY_SIDE

    def get_ready(self) -> None:
        """Make the tables."""
        if not self._needs_pixels:
            self._pixels.get_ready()

    @property
    def _needs_pixels(self) -> bool:
        """Whether more is needed of a frame than sums of its counts."""
        return self._busy is not None or self._error_model == "azimuthal"

    def of_chunks(self, chunks: Sequence[Chunk], given: Sequence[Mapping[str, float]]) -> Reduced:
        """Integrate frames that are stored as one chunk of bitshuffle-LZ4 each."""
        return self._reduced(self._pixels.of_chunks(chunks), given)

    def of_frames(self, frames: Sequence[Array], given: Sequence[Mapping[str, float]]) -> Reduced:
        """Integrate frames, each of shape ``(y, x)``."""
        return self._reduced([self._counts(frame) for frame in frames], given)

    def integrate(self, frame: Array) -> Pattern:
        """Integrate one frame, shape ``(y, x)``, that isn't scaled by numbers of its own."""
        return self.sums(frame).pattern(np.array(self.scaling.factor({})))

    def sums(self, frame: Array) -> Sums:
        """Return the sums over each bin's valid pixels of one frame, shape ``(y, x)``."""
        counts = self._counts(frame)
        assert not isinstance(counts, str)  # noqa: S101  no detector counts so high
        sums = self._corrected([counts])
        return Sums(sums.signal[0], sums.norm[0], None if sums.variance is None else sums.variance[0])

    def _counts(self, frame: Array) -> Counts | str:
        try:
            flat = frame.reshape(-1)
            return self._by_pixel(flat) if self._needs_pixels else self._pixels.of_frame(flat)
        except OverflowError as error:
            return str(error)

    def _by_pixel(self, counts: Array) -> Counts:
        """Return the sums of counts that were corrected, or whose variance was found, one by one."""
        bad = self._limits.outside(counts)
        signal = counts.astype(np.float64)
        signal[bad] = 0
        variance = np.maximum(signal, 1) if self._error_model == "pyfai" else signal
        if self._busy is not None:
            busy = self._busy
            signal, variance = dead_time(
                signal, variance, model=busy.model, dead_time_s=busy.dead_time_s, time_s=busy.time_s
            )
            bad = np.union1d(bad, np.flatnonzero(np.isnan(signal)))
            signal[bad] = 0
        variance[bad] = 0
        summed = self._pixels.binned(signal)
        if self._error_model == "azimuthal":
            of_each = self._scatter(signal, bad)
        else:
            of_each = self._pixels.binned_variance(variance)
        return Counts(summed, of_each, self._pixels.without_bins(bad))

    def _scatter(self, signal: Values, bad: NDArray[np.intp]) -> Values:
        left, norm = signal if self._offset is None else signal - self._offset, self._norm.copy()
        left[bad] = norm[bad] = 0
        return self._pixels.scatter(left, norm)

    def _reduced(self, of_each: Sequence[Counts | str], given: Sequence[Mapping[str, float]]) -> Reduced:
        errors = {index: counts for index, counts in enumerate(of_each) if isinstance(counts, str)}
        good: dict[int, Counts] = {}
        factors: list[float] = []
        for index, (counts, numbers) in enumerate(zip(of_each, given, strict=True)):
            if isinstance(counts, str):
                continue
            try:
                factors.append(self.scaling.factor(numbers))
                good[index] = counts
            except ValueError as error:
                errors[index] = str(error)
        columns = {column.path: np.full((len(of_each), self.bins), np.nan) for column in self.columns}
        if good:
            pattern = self._corrected(list(good.values())).pattern(np.array(factors)[:, None])
            columns[f"{self.group}/I"][list(good)] = pattern.intensity
            if pattern.sigma is not None:
                columns[f"{self.group}/I_errors"][list(good)] = pattern.sigma
        return Reduced(columns, errors)

    def _corrected(self, of_each: Sequence[Counts]) -> Sums:
        """Return the sums of some frames, shape ``(frames, bins)``; the norm may be one for all."""
        signal, variance = np.stack([counts.signal for counts in of_each]), None
        if self._error_model != "none":
            variance = np.stack([counts.variance for counts in of_each])
        parts = [self._known(np.empty(0, np.intp))]
        if any(counts.excluded.size for counts in of_each):
            parts = [self._known(counts.excluded) for counts in of_each]
        norm = np.stack([part.norm for part in parts])
        signal -= np.stack([part.signal for part in parts])
        if variance is not None and self._error_model != "azimuthal":
            variance += np.stack([np.zeros(1) if part.variance is None else part.variance for part in parts])
        return Sums(signal, norm, variance)

    def _known(self, bad: NDArray[np.intp]) -> Sums:
        """Return the sums of what is known beforehand, without some pixels: offset, norm, the offset's variance."""
        offset, variance = np.zeros(self.bins), None
        if self._offset_sum is not None and self._offset is not None:
            offset = self._without(self._offset_sum, self._offset, bad)
        if self._variance_sum is not None and self._variance is not None:
            variance = self._without(self._variance_sum, self._variance, bad, squared=True)
        return Sums(offset, self._norm_without(bad), variance)

    def _norm_without(self, bad: NDArray[np.intp]) -> Values:
        if not bad.size:
            return self.norm
        return np.where(self._pixels.pixels_left(bad) > 0, self._without(self.norm, self._norm, bad), 0.0)

    def _without(self, total: Values, values: Values, bad: NDArray[np.intp], *, squared: bool = False) -> Values:
        """Return a sum over all pixels less what the bad ones had put in."""
        if not bad.size:
            return total
        return np.asarray(total - (self._pixels.binned_variance if squared else self._pixels.binned)(values[bad], bad))


class Several:
    """Several integrations of the same frames; a `kernel.Reduction`."""

    def __init__(self, integrators: Sequence[Integrator]) -> None:
        self._integrators = integrators

    @property
    def columns(self) -> Sequence[Column]:
        """Those of all."""
        return [column for integrator in self._integrators for column in integrator.columns]

    @property
    def per_frame(self) -> Mapping[str, str]:
        """The same for all."""
        return self._integrators[0].per_frame

    @property
    def takes_chunks(self) -> bool:
        """Whether all can be made without a frame in between."""
        return all(integrator.takes_chunks for integrator in self._integrators)

    @property
    def chunks_at_once(self) -> int:
        """As many as the native core takes side by side."""
        return CHUNKS_SIDE_BY_SIDE

    def get_ready(self) -> None:
        """Make the tables."""
        for integrator in self._integrators:
            integrator.get_ready()

    def of_chunks(self, chunks: Sequence[Chunk], given: Sequence[Mapping[str, float]]) -> Reduced:
        """Integrate frames that are stored as one chunk of bitshuffle-LZ4 each."""
        return _together([integrator.of_chunks(chunks, given) for integrator in self._integrators])

    def of_frames(self, frames: Sequence[Array], given: Sequence[Mapping[str, float]]) -> Reduced:
        """Integrate frames, each of shape ``(y, x)``."""
        return _together([integrator.of_frames(frames, given) for integrator in self._integrators])


def _together(parts: Sequence[Reduced]) -> Reduced:
    return Reduced(
        {path: values for part in parts for path, values in part.columns.items()},
        {index: text for part in parts for index, text in part.errors.items()},
    )


def bin_edges(images: PixelImages, bins: int, radial_range: tuple[float, float] | None) -> Values:
    """Return the edges of equally wide bins, shape ``(bins + 1,)``."""
    if radial_range is None:
        low, high = (images.radial, images.radial) if images.extent is None else images.extent
        radial_range = (max(0.0, float(low[images.valid].min())), float(high[images.valid].max()) * UPPER_EDGE)
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
