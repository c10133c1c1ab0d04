"""What `binning` and `splitting` share: a batch of stored chunks through the compiled core, and what comes out.

Whole numbers only, so the sums are exact and the same on every path and in any order. What doesn't fit the limits is
left out of the sums and named, so that a norm can be corrected.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpi_kernels.native.grouping import PADDING, Groups
from mpi_kernels.native.library import (
    ERRORS,
    BinningRecord,
    Chunk,
    NativePath,
    ResultsRecord,
    Size,
    addresses_of,
    functions,
)

_ROOM = 4096
"""Pixels outside the limits, per frame, for which there is room at first."""


@dataclass(frozen=True)
class Sums:
    """What became of a batch of frames.

    Parameters
    ----------
    sums
        Per frame, set and bin, shape ``(frames, sets, bins)``; zero for a frame that has an error.
    excluded
        Per frame the pixels that have a bin and a value outside the limits, ascending.
    errors
        Per frame what is wrong with its chunk; None: nothing.
    """

    sums: NDArray[np.int64]
    excluded: tuple[NDArray[np.int32], ...]
    errors: tuple[str | None, ...]


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Which pixel counts into which bins, as ``struct native_binning`` has it.

    Parameters
    ----------
    valid
        Which pixels have a bin, shape ``(pixels,)``.
    bin_of
        Bin of each pixel, or of each pair of a pixel and a bin, uint32, padded.
    starts, weights, squares
        Pairs of each pixel, and what is multiplied with; None: each pixel has one bin, and counts once.
    groups
        The same by group.
    bins
        Number of bins.
    """

    valid: NDArray[np.bool_]
    bin_of: NDArray[np.uint32]
    groups: Groups
    bins: int
    starts: NDArray[np.int64] | None = None
    weights: NDArray[np.uint16] | None = None
    squares: NDArray[np.uint16] | None = None


class Summer:
    """Sums frames of one type by one assignment. Threads may share it.

    Parameters
    ----------
    assignment
        Which pixel counts into which bins.
    dtype
        Type of the stored elements: whole numbers of 8, 16 or 32 bits, little-endian.
    low, high
        Values that count: `low` ≤ value ≤ `high`; None: all.
    path
        Way through the compiled core.
    """

    def __init__(
        self, assignment: Assignment, dtype: np.dtype[Any], low: int | None, high: int | None, path: NativePath
    ) -> None:
        self._assignment, self._path, self._room = assignment, path, _ROOM
        self._valid = np.append(np.packbits(assignment.valid, bitorder="little"), np.zeros(PADDING, np.uint8))
        span, groups = np.iinfo(dtype), assignment.groups
        self._record = BinningRecord(
            starts=_address(assignment.starts),
            bin_of=_address(assignment.bin_of),
            weights=_address(assignment.weights),
            squares=_address(assignment.squares),
            valid=_address(self._valid),
            groups=_address(groups.records),
            factors=_address(groups.factors),
            first_group=_address(groups.first),
            most=_address(groups.most),
            pixels=assignment.valid.size,
            bins=assignment.bins,
            element_size=dtype.itemsize,
            low=span.min if low is None else min(max(low, span.min), span.max + 1),
            high=span.max if high is None else max(min(high, span.max), span.min - 1),
            is_signed=dtype.kind == "i",
        )

    def sums(self, chunks: Sequence[Chunk]) -> Sums:
        """Return the sums of frames that are stored in one chunk each."""
        frames, sets = len(chunks), 1 if self._assignment.squares is None else 2
        while True:
            room = self._room
            sums, found = np.empty((frames, sets, self._assignment.bins), np.int64), np.zeros(frames, np.int64)
            pixels, errors = np.empty((frames, room), np.int32), np.zeros(frames, np.int32)
            results = ResultsRecord(
                sums=sums.ctypes.data,
                excluded=found.ctypes.data,
                pixels=pixels.ctypes.data,
                room=room,
                errors=errors.ctypes.data,
            )
            addresses = addresses_of(chunks)
            lengths = (Size * frames)(*map(len, chunks))
            functions().native_sum(
                int(self._path), ctypes.byref(self._record), addresses, lengths, frames, ctypes.byref(results)
            )
            found[errors != 0] = 0
            if (found <= room).all():
                break
            self._room = int(found.max())
        sums[errors != 0] = 0
        excluded = tuple(row[:length].copy() for row, length in zip(pixels, found, strict=True))
        return Sums(sums, excluded, tuple(ERRORS.get(int(error)) for error in errors))


def _address(array: NDArray[Any] | None) -> int | None:
    return None if array is None else array.ctypes.data
