"""Counts of pixels to sums per bin, exactly: whole numbers, so that no order, rank or processor makes a difference.

Three ways lead to the same sums: the native core, straight from the stored chunks; numba, from frames; numpy, from
frames. The first is there when the package was compiled, the second when numba is installed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpi_kernels.jit import sum_whole_pixels
from mpi_kernels.native import binning
from mpi_kernels.native.library import PATH as NATIVE

_BLOCK = 32768
"""Pixels that numpy sums at a time; as float64 with their bins they are half a megabyte, which stays in the cache."""
_NONE = np.empty(0, np.intp)


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

    signal: NDArray[np.float64]
    variance: NDArray[np.float64]
    excluded: NDArray[np.intp]


class WholePixels:
    """Every pixel counts whole, into one bin.

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
        """Return what another rank needs; it makes its own tables."""
        return {name: value for name, value in self.__dict__.items() if name not in {"_binner", "_bins_for_numba"}}

    @property
    def takes_chunks(self) -> bool:
        """Whether stored chunks of bitshuffle-LZ4 can be summed without a frame in between."""
        return NATIVE is not None and binning.fits(self._dtype) and self._least_variance == 0

    def of_chunks(self, chunks: Sequence[bytes]) -> list[Counts | str]:
        """Return the sums of each frame, or what is wrong with its chunk."""
        sums = self._binner.sums(chunks)
        counts = sums.counts.astype(np.float64)
        return [
            Counts(counts[index], counts[index], excluded.astype(np.intp)) if error is None else error
            for index, (excluded, error) in enumerate(zip(sums.excluded, sums.errors, strict=True))
        ]

    def of_frame(self, frame: NDArray[Any]) -> Counts:
        """Return the sums of a frame, shape ``(y, x)``."""
        counts = frame.reshape(-1)
        if self._least_variance == 0 and sum_whole_pixels is not None and _is_simple(counts.dtype):
            summed, excluded = sum_whole_pixels(counts, self._bins_for_numba, self.bins, self._whole_limits)
            signal = summed.astype(np.float64)
            return Counts(signal, signal, excluded)
        return self._by_numpy(counts)

    def binned(
        self, values: NDArray[np.float64], pixels: NDArray[np.intp] | slice = slice(None)
    ) -> NDArray[np.float64]:
        """Return the sums of some pixels' values over each bin; `values` belong to `pixels`."""
        sums = np.bincount(self._bin_of[pixels], weights=values, minlength=self.bins + 1)
        return np.asarray(sums[: self.bins], np.float64)

    binned_variance = binned

    def pixels_left(self, excluded: NDArray[np.intp]) -> NDArray[np.intp]:
        """Return how many pixels each bin has without the excluded ones."""
        return self.pixels_per_bin - np.bincount(self._bin_of[excluded], minlength=self.bins + 1)[: self.bins]

    @cached_property
    def _binner(self) -> binning.Binner:
        low, high = self._whole_limits
        return binning.Binner(self._bin_of, bins=self.bins, dtype=self._dtype, low=low, high=high)

    @property
    def _whole_limits(self) -> tuple[int, int]:
        low, high = self._limits.low, self._limits.high
        assert isinstance(low, int)  # noqa: S101  limits of whole numbers are whole numbers
        assert isinstance(high, int)  # noqa: S101
        return low, high

    @cached_property
    def _bins_for_numba(self) -> NDArray[np.uint32]:
        return self._bin_of.astype(np.uint32)

    def _by_numpy(self, counts: NDArray[Any]) -> Counts:
        """Sum block by block, so that what is between stays in the processor's cache.

        Sums of whole numbers don't depend on the blocks. Those of floats would, so they are summed in one.
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
        return Counts(summed, variance if self._least_variance else summed, bad[self._bin_of[bad] < self.bins])


def _is_simple(dtype: np.dtype[Any]) -> bool:
    """Whether all values of a type fit 64 bits with a sign, in this machine's order of bytes."""
    return dtype.kind in "ui" and dtype.isnative and (dtype.itemsize < 8 or dtype.kind == "i")
