"""Counts of pixels to sums per bin, exactly: whole numbers, so that no order, rank or processor makes a difference.

Three ways lead to the same sums: the native core, straight from the stored chunks; numba, from frames; numpy, from
frames. The first is there when the package was compiled, the second when numba is installed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mpi_kernels.jit import places_of, sum_split_pixels, sum_whole_pixels
from mpi_kernels.native import binning
from mpi_kernels.native.library import PATH as NATIVE
from mpi_kernels.native.library import Chunk
from mpi_kernels.native.splitting import WEIGHT_ONE, SplitBinner
from mpi_kernels.splitting import Pairs, value_sums, weighted_sums, whole
from mpi_kernels.splitting import azimuthal_variance as scatter

_BLOCK = 32768
"""Pixels that numpy sums at a time; as float64 with their bins they are half a megabyte, which stays in the cache."""
_NONE = np.empty(0, np.intp)
_TABLES = {"_binner", "_places", "_pairs", "_splitter"}
"""What each rank makes for itself."""

Values = NDArray[np.float64]
Where = NDArray[np.intp] | slice
ALL = slice(None)


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

    @property
    def whole(self) -> tuple[int, int]:
        """The limits of whole numbers."""
        assert isinstance(self.low, int)  # noqa: S101  `of` makes them so
        assert isinstance(self.high, int)  # noqa: S101
        return self.low, self.high

    def outside(self, counts: NDArray[Any]) -> NDArray[np.intp]:
        """Return which of these values, shape ``(n,)``, are no measurements."""
        bad = _NONE
        if counts.dtype.kind == "f":
            bad = np.flatnonzero(~np.isfinite(counts))
        if self.low is not None and (counts.dtype.kind != "u" or self.low > 0):
            bad = np.union1d(bad, np.flatnonzero(counts < self.low))
        if self.high is not None:
            above = np.flatnonzero(counts > self.high)
            bad = np.union1d(bad, above) if bad.size else above
        return bad


@dataclass(frozen=True)
class Counts:
    """Sums over the pixels of each bin, of one frame.

    Parameters
    ----------
    signal, variance
        Of the counts and of their variances, shape ``(bins,)``.
    excluded
        Which pixels with a bin were left out, because their values are no measurements; ascending.
    """

    signal: Values
    variance: Values
    excluded: NDArray[np.intp]


class Pixels(Protocol):
    """Which bins pixels count in, and sums over them."""

    bins: int
    pixels_per_bin: NDArray[np.intp]

    @property
    def used(self) -> int:
        """How many pixels count in any bin."""

    @property
    def takes_chunks(self) -> bool:
        """Whether stored chunks of bitshuffle-LZ4 can be summed without a frame in between."""

    def get_ready(self) -> None:
        """Make the tables that summing needs."""

    def of_chunks(self, chunks: Sequence[Chunk]) -> list[Counts | str]:
        """Return the sums of each frame, or what is wrong with its chunk."""

    def of_frame(self, counts: NDArray[Any]) -> Counts:
        """Return the sums of a frame, shape ``(y·x,)``."""

    def binned(self, values: Values, pixels: Where = ALL) -> Values:
        """Return the sums of some pixels' values over each bin; `values` belong to `pixels`."""

    def binned_variance(self, values: Values, pixels: Where = ALL) -> Values:
        """Return the same of variances, whose shares count squared."""

    def scatter(self, signal: Values, norm: Values) -> Values:
        """Return the variance of each bin's sum of signals, from the scatter of its pixels (`splitting`)."""

    def pixels_left(self, excluded: NDArray[np.intp]) -> NDArray[np.intp]:
        """Return how many pixels each bin has without the excluded ones."""

    def without_bins(self, pixels: NDArray[np.intp]) -> NDArray[np.intp]:
        """Return those of the pixels that count in a bin."""


class WholePixels:
    """Every pixel counts whole, into one bin; `Pixels`.

    Parameters
    ----------
    bin_of
        Bin of each pixel, shape ``(y·x,)``; `bins` for those without one.
    limits
        Which values are measurements.
    dtype
        Of the frames.
    least_variance
        No measured pixel's variance is less.
    """

    def __init__(
        self, bin_of: NDArray[np.intp], *, bins: int, limits: Limits, dtype: np.dtype[Any], least_variance: int = 0
    ) -> None:
        self.bins, self._bin_of, self._limits, self._dtype = bins, bin_of, limits, dtype
        self._least_variance = least_variance
        self.pixels_per_bin = np.bincount(bin_of, minlength=bins + 1)[:bins]
        starts = range(0, len(bin_of), _BLOCK)
        blocks = [slice(start, min(start + _BLOCK, len(bin_of))) for start in starts]
        self._blocks = [block for block in blocks if (bin_of[block] < bins).any()]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _TABLES}

    @property
    def used(self) -> int:
        return int(self.pixels_per_bin.sum())

    @property
    def takes_chunks(self) -> bool:
        return NATIVE is not None and binning.fits(self._dtype) and self._least_variance == 0

    def get_ready(self) -> None:
        if self.takes_chunks:
            _ = self._binner
        else:
            self.of_frame(np.zeros(len(self._bin_of), self._dtype))  # has numba compile

    def of_chunks(self, chunks: Sequence[Chunk]) -> list[Counts | str]:
        sums = self._binner.sums(chunks)
        counts = sums.counts.astype(np.float64)
        return [
            Counts(counts[index], counts[index], excluded.astype(np.intp)) if error is None else error
            for index, (excluded, error) in enumerate(zip(sums.excluded, sums.errors, strict=True))
        ]

    def of_frame(self, counts: NDArray[Any]) -> Counts:
        if self._least_variance == 0 and sum_whole_pixels is not None and _is_simple(counts.dtype):
            summed, excluded = sum_whole_pixels(counts, self._places, self.bins, self._limits.whole)
            signal = summed.astype(np.float64)
            return Counts(signal, signal, excluded)
        return self.by_numpy(counts)

    def by_numpy(self, counts: NDArray[Any]) -> Counts:
        """Return what `of_frame` does, whether numba is there or not.

        It sums block by block, so that what is between stays in the processor's cache. Sums of whole numbers don't
        depend on the blocks. Those of floats would, so they are summed in one.
        """
        summed, variance = np.zeros(self.bins), np.zeros(self.bins)
        left_out: list[NDArray[np.intp]] = []
        for pixels in self._blocks if counts.dtype.kind in "ui" else [slice(0, counts.size)]:
            block = counts[pixels]
            bad = self._limits.outside(block)
            measured = block.astype(np.float64)
            measured[bad] = 0
            summed += self.binned(measured, pixels)
            if self._least_variance:
                np.maximum(measured, self._least_variance, out=measured)
                measured[bad] = 0
                variance += self.binned(measured, pixels)
            if bad.size:
                left_out.append(bad + pixels.start)
        bad = np.concatenate(left_out) if left_out else _NONE
        return Counts(summed, variance if self._least_variance else summed, self.without_bins(bad))

    def binned(self, values: Values, pixels: Where = ALL) -> Values:
        sums = np.bincount(self._bin_of[pixels], weights=values, minlength=self.bins + 1)
        return np.asarray(sums[: self.bins], np.float64)

    binned_variance = binned

    def scatter(self, signal: Values, norm: Values) -> Values:
        return scatter(signal, norm, self._pairs, self.bins)

    def pixels_left(self, excluded: NDArray[np.intp]) -> NDArray[np.intp]:
        return self.pixels_per_bin - np.bincount(self._bin_of[excluded], minlength=self.bins + 1)[: self.bins]

    def without_bins(self, pixels: NDArray[np.intp]) -> NDArray[np.intp]:
        return pixels[self._bin_of[pixels] < self.bins]

    @cached_property
    def _binner(self) -> binning.Binner:
        low, high = self._limits.whole
        return binning.Binner(self._bin_of, bins=self.bins, dtype=self._dtype, low=low, high=high)

    @cached_property
    def _places(self) -> NDArray[Any]:
        return places_of(self._bin_of, self.bins)

    @cached_property
    def _pairs(self) -> Pairs:
        return whole(self._bin_of, self.bins)


class SplitPixels:
    """Pixels count in several bins, with shares that are whole numbers of 1/65535; `Pixels`.

    Parameters
    ----------
    pairs
        Pixels, bins and shares.
    limits, dtype, least_variance
        As of `WholePixels`.
    """

    def __init__(
        self, pairs: Pairs, *, bins: int, limits: Limits, dtype: np.dtype[Any], least_variance: int = 0
    ) -> None:
        self.bins, self._given, self._limits, self._dtype = bins, pairs, limits, dtype
        self._least_variance = least_variance
        self.pixels_per_bin = np.bincount(pairs.bin_of, minlength=bins)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _TABLES}

    @property
    def used(self) -> int:
        return int(np.count_nonzero(np.diff(self._given.starts)))

    @property
    def takes_chunks(self) -> bool:
        return NATIVE is not None and binning.fits(self._dtype) and self._least_variance == 0

    def get_ready(self) -> None:
        if self.takes_chunks:
            _ = self._splitter
        else:
            self.of_frame(np.zeros(self._given.pixels, self._dtype))  # has numba compile

    def of_chunks(self, chunks: Sequence[Chunk]) -> list[Counts | str]:
        sums = self._splitter.sums(chunks)
        assert sums.squares is not None  # noqa: S101  it was given those of the weights
        signal, variance = sums.counts / WEIGHT_ONE, sums.squares / WEIGHT_ONE
        return [
            Counts(signal[index], variance[index], excluded.astype(np.intp)) if error is None else error
            for index, (excluded, error) in enumerate(zip(sums.excluded, sums.errors, strict=True))
        ]

    def of_frame(self, counts: NDArray[Any]) -> Counts:
        if self._least_variance == 0 and sum_split_pixels is not None and _is_short(counts.dtype):
            sums, squares, excluded = sum_split_pixels(counts, self._given, self.bins, self._limits.whole)
            return Counts(sums / WEIGHT_ONE, squares / WEIGHT_ONE, excluded)
        bad = self._limits.outside(counts)
        if bad.size:
            counts = counts.copy()
            counts[bad] = 0
        signal, variance = self._sums(counts)
        if self._least_variance:
            raised = np.maximum(counts, self._least_variance)
            raised[bad] = 0
            variance = self._sums(raised)[1]
        return Counts(signal, variance, self.without_bins(bad))

    def _sums(self, counts: NDArray[Any]) -> tuple[Values, Values]:
        if counts.dtype.kind == "f":
            return self.binned(counts.astype(np.float64)), self.binned_variance(counts.astype(np.float64))
        signal, variance = weighted_sums(counts, self._given, self.bins)
        return signal / WEIGHT_ONE, variance / WEIGHT_ONE

    def binned(self, values: Values, pixels: Where = ALL) -> Values:
        return value_sums(values, self._of(pixels), self.bins)

    def binned_variance(self, values: Values, pixels: Where = ALL) -> Values:
        return value_sums(values, self._of(pixels), self.bins, squared=True)

    def scatter(self, signal: Values, norm: Values) -> Values:
        return scatter(signal, norm, self._given, self.bins)

    def pixels_left(self, excluded: NDArray[np.intp]) -> NDArray[np.intp]:
        return self.pixels_per_bin - np.bincount(self._given.of(excluded).bin_of, minlength=self.bins)

    def without_bins(self, pixels: NDArray[np.intp]) -> NDArray[np.intp]:
        return pixels[np.diff(self._given.starts)[pixels] > 0]

    @cached_property
    def _splitter(self) -> SplitBinner:
        low, high = self._limits.whole
        pairs = self._given
        return SplitBinner(
            pairs.starts,
            pairs.bin_of,
            pairs.weights,
            squares=pairs.squares,
            bins=self.bins,
            dtype=self._dtype,
            low=low,
            high=high,
        )

    def _of(self, pixels: Where) -> Pairs:
        return self._given if isinstance(pixels, slice) else self._given.of(pixels)


def _is_simple(dtype: np.dtype[Any]) -> bool:
    """Whether all values of a type fit 64 bits with a sign, in this machine's order of bytes."""
    return dtype.kind in "ui" and dtype.isnative and (dtype.itemsize < 8 or dtype.kind == "i")


def _is_short(dtype: np.dtype[Any]) -> bool:
    """Whether sums of this type's values over all pixels, times a weight, can't reach 2⁶³."""
    return dtype.kind in "ui" and dtype.isnative and dtype.itemsize <= 4
