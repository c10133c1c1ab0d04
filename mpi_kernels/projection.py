"""Sums over all frames of a scan, pixel by pixel: arrays or stored chunks in, arrays out. Knows no files and no MPI.

All sums are of whole numbers and exact, so they don't depend on the order of frames, nor on how many ranks share them.
Frames of floats are refused: their sums would.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpi_kernels.errors import UnusableInput
from mpi_kernels.native.binning import fits
from mpi_kernels.native.library import PATH, Chunk, NativePath
from mpi_kernels.native.projecting import FrameTotals, PixelSums, Summer
from mpi_kernels.summing import Limits

_BLOCK = 16384
"""Pixels that are summed at a time; what is between then stays in the processor's cache."""


@dataclass(frozen=True)
class Accumulation:
    """Sums over frames, each of shape ``(y, x)``. A pixel counts in the frames in which its value is a measurement.

    Parameters
    ----------
    frames
        How many frames were added.
    total
        Sum of the values.
    squares_low, squares_high
        Sums of the low and of the high 32 bits of the values' squares: Σ value² = low + 2³² high.
    largest
        The largest value; 0 where `counted` is.
    counted
        In how many frames the pixel counts.
    """

    frames: int
    total: NDArray[np.int64]
    squares_low: NDArray[np.uint64]
    squares_high: NDArray[np.uint64]
    largest: NDArray[np.uint32]
    counted: NDArray[np.int64]

    def __add__(self, other: Accumulation) -> Accumulation:
        """Return the sums over the frames of both."""
        return Accumulation(
            self.frames + other.frames,
            self.total + other.total,
            self.squares_low + other.squares_low,
            self.squares_high + other.squares_high,
            np.maximum(self.largest, other.largest),
            self.counted + other.counted,
        )


class Projector:
    """Adds up frames of one detector.

    Parameters
    ----------
    valid
        Which pixels count at all, shape ``(y, x)``.
    limits
        Which values are measurements. Negative ones never are: they mark gaps and dead pixels (`Limits.of`).
    dtype
        Type of the frames' values: whole numbers of at most 32 bits.
    path
        Way through the compiled core; None: without.

    Raises
    ------
    UnusableInput
        When the values are of another type.
    """

    def __init__(
        self, valid: NDArray[np.bool_], limits: Limits, dtype: np.dtype[Any], *, path: NativePath | None = PATH
    ) -> None:
        if dtype.kind not in "ui" or dtype.itemsize > 4:
            raise UnusableInput(
                f"frames of {dtype.name} can't be summed exactly",
                remedy="project frames of whole numbers of at most 32 bits",
            )
        self._valid = valid.ravel()
        self._low = 0 if limits.low is None else max(0, math.ceil(limits.low))
        self._high = int(np.iinfo(dtype).max) if limits.high is None else math.floor(limits.high)
        self._shape, self._wide, self._signed = valid.shape, dtype.itemsize > 2, dtype.kind == "i"
        self._frames, self._sums = 0, PixelSums.zeros(valid.size)
        self._summer = None
        if path is not None and fits(dtype):
            self._summer = Summer(valid, dtype=dtype, low=self._low, high=self._high, path=path)

    @property
    def takes_chunks(self) -> bool:
        """Whether `add_chunks` can be used."""
        return self._summer is not None

    def accumulation(self) -> Accumulation:
        """Return the sums over the frames so far; frames that come later don't change it."""
        sums, shape = self._sums, self._shape
        counted = np.where(self._valid, self._frames - sums.excluded.astype(np.int64), 0)
        return Accumulation(
            self._frames,
            sums.total.astype(np.int64).reshape(shape),
            sums.squares_low.copy().reshape(shape),
            sums.squares_high.copy().reshape(shape),
            sums.largest.copy().reshape(shape),
            counted.reshape(shape),
        )

    def add_chunks(self, chunks: Sequence[Chunk]) -> FrameTotals:
        """Add frames that are stored in one chunk of bitshuffle-LZ4 each; those that are broken add nothing."""
        assert self._summer is not None  # noqa: S101  takes_chunks says so
        totals = self._summer.add(self._sums, chunks)
        self._frames += totals.errors.count(None)
        return totals

    def add_frames(self, frames: Sequence[NDArray[Any]]) -> FrameTotals:
        """Add frames of shape ``(y, x)``."""
        rows = [frame.reshape(-1) for frame in frames]
        counts, excluded = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
        largest = np.zeros(len(rows), np.uint32)
        for start in range(0, self._valid.size, _BLOCK):
            pixels = slice(start, start + _BLOCK)
            for index, row in enumerate(rows):
                values, outside = self._add_block(pixels, row[pixels])
                counts[index] += values.sum(dtype=np.int64)
                excluded[index] += np.count_nonzero(outside)
                largest[index] = max(largest[index], values.max())
        self._frames += len(rows)
        return FrameTotals(counts, excluded, largest, (None,) * len(rows))

    def _add_block(self, pixels: slice, block: NDArray[Any]) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
        """Return the values, 0 where they don't count, and which valid pixels are outside the limits."""
        sums, valid = self._sums, self._valid[pixels]
        outside = valid & ~self._measured(block)
        values = np.where(valid & ~outside, block, 0).astype(np.uint32)
        self._add_values(pixels, values.astype(np.uint64))
        sums.excluded[pixels] += outside
        np.maximum(sums.largest[pixels], values, out=sums.largest[pixels])
        return values, outside

    def _measured(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        measured = values <= self._high
        return measured & (values >= self._low) if self._signed or self._low else measured

    def _add_values(self, pixels: slice, values: NDArray[np.uint64]) -> None:
        sums, squares = self._sums, values * values
        sums.total[pixels] += values
        if not self._wide:
            sums.squares_low[pixels] += squares
            return
        sums.squares_low[pixels] += squares & 0xFFFFFFFF
        sums.squares_high[pixels] += squares >> 32
