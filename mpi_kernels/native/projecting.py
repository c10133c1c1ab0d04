"""Stored chunks of many frames straight to their sums pixel by pixel: decoding and summing in one go.

Whole numbers only, so the sums are exact and the same on every path and in any order.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpi_kernels.native.binning import fits
from mpi_kernels.native.grouping import PADDING
from mpi_kernels.native.library import (
    ERRORS,
    PATH,
    BinningRecord,
    Chunk,
    NativePath,
    ProjectionRecord,
    Size,
    TotalsRecord,
    addresses_of,
    functions,
)


@dataclass
class PixelSums:
    """Sums over frames, each of shape ``(pixels,)``, of valid pixels' values within the limits.

    Parameters
    ----------
    total
        Of the values.
    squares_low, squares_high
        Of the low and of the high 32 bits of each value's square.
    excluded
        In how many frames a valid pixel's value was outside the limits.
    largest
        The largest value; 0 where there is none.
    spare
        Where the next `largest` is put together, so that this one is still there if a chunk turns out broken.
    """

    total: NDArray[np.uint64]
    squares_low: NDArray[np.uint64]
    squares_high: NDArray[np.uint64]
    excluded: NDArray[np.uint32]
    largest: NDArray[np.uint32]
    spare: NDArray[np.uint32]

    @classmethod
    def zeros(cls, pixels: int) -> PixelSums:
        """Return the sums over no frame."""
        total, low, high = (np.zeros(pixels, np.uint64) for _ in range(3))
        excluded, largest, spare = (np.zeros(pixels, np.uint32) for _ in range(3))
        return cls(total, low, high, excluded, largest, spare)


@dataclass(frozen=True)
class FrameTotals:
    """Per frame, each of shape ``(frames,)``; zero for a frame that has an error.

    Parameters
    ----------
    counts
        Sum over the valid pixels' values within the limits.
    excluded
        How many valid pixels had a value outside the limits.
    largest
        The largest value within the limits.
    errors
        What is wrong with the frame's chunk; None: nothing.
    """

    counts: NDArray[np.int64]
    excluded: NDArray[np.int64]
    largest: NDArray[np.uint32]
    errors: tuple[str | None, ...]


class Summer:
    """Sums frames pixel by pixel; one for all frames of a detector.

    Parameters
    ----------
    valid
        Which pixels are summed, shape ``(pixels,)``.
    dtype
        Type of the stored elements: whole numbers of 8, 16 or 32 bits, little-endian.
    low, high
        Values that count: `low` ≤ value ≤ `high`, where `low` ≥ 0.
    path
        Way through the compiled core.
    """

    def __init__(
        self, valid: NDArray[np.bool_], *, dtype: np.dtype[Any], low: int, high: int, path: NativePath | None = PATH
    ) -> None:
        assert path is not None  # noqa: S101
        if not fits(dtype):
            raise ValueError(f"{dtype.str} isn't summed here: whole numbers of 8, 16 or 32 bits, little-endian")
        if low < 0:
            raise ValueError(f"values from {low} on aren't summed here, only from 0 on")
        self._path = path
        self._valid = np.append(np.packbits(valid.ravel(), bitorder="little"), np.zeros(PADDING, np.uint8))
        largest = int(np.iinfo(dtype).max)
        self._record = BinningRecord(
            bin_of=None,
            valid=self._valid.ctypes.data,
            pixels=valid.size,
            bins=0,
            element_size=dtype.itemsize,
            low=min(low, largest + 1),
            high=max(min(high, largest), -1),
            is_signed=dtype.kind == "i",
        )

    def add(self, sums: PixelSums, chunks: Sequence[Chunk]) -> FrameTotals:
        """Add frames that are stored in one chunk each; 64 or more at a time are added best.

        A broken chunk adds nothing. That one is broken may show late; then all frames are taken back, and the others
        are added again.
        """
        totals = self._add_all(sums, chunks)
        good = [index for index, error in enumerate(totals.errors) if error is None]
        if len(good) == len(chunks):
            return totals
        rest = self.add(sums, [chunks[index] for index in good])
        errors = list(totals.errors)
        for index, error in zip(good, rest.errors, strict=True):
            errors[index] = error
        counts, excluded, largest = (
            _spread(part, good, len(chunks)) for part in (rest.counts, rest.excluded, rest.largest)
        )
        return FrameTotals(counts, excluded, largest, tuple(errors))

    def _add_all(self, sums: PixelSums, chunks: Sequence[Chunk]) -> FrameTotals:
        """Add all frames or, if any of them has an error, none; the other totals then mean nothing."""
        frames = len(chunks)
        counts, excluded = np.zeros(frames, np.int64), np.zeros(frames, np.int64)
        largest, errors = np.zeros(frames, np.uint32), np.zeros(frames, np.int32)
        projection = ProjectionRecord(
            total=sums.total.ctypes.data,
            squares_low=sums.squares_low.ctypes.data,
            squares_high=sums.squares_high.ctypes.data,
            excluded=sums.excluded.ctypes.data,
            largest_before=sums.largest.ctypes.data,
            largest=sums.spare.ctypes.data,
        )
        totals = TotalsRecord(
            totals=counts.ctypes.data,
            excluded=excluded.ctypes.data,
            largest=largest.ctypes.data,
            errors=errors.ctypes.data,
        )
        functions().native_project(
            int(self._path),
            ctypes.byref(self._record),
            addresses_of(chunks),
            (Size * frames)(*map(len, chunks)),
            frames,
            ctypes.byref(projection),
            ctypes.byref(totals),
        )
        if frames and not errors.any():
            sums.largest, sums.spare = sums.spare, sums.largest
        return FrameTotals(counts, excluded, largest, tuple(ERRORS.get(int(error)) for error in errors))


def _spread(values: NDArray[Any], places: list[int], size: int) -> NDArray[Any]:
    """Return zeros with the values in their places."""
    spread = np.zeros(size, values.dtype)
    spread[places] = values
    return spread
