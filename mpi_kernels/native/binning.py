"""Stored chunks of many frames straight to the sums of their pixels per bin: decoding and summing in one go.

Whole numbers only, so the sums are exact and the same on every path and in any order. What doesn't fit the limits is
left out of the sums and named, as `azimuthal.Integrator` needs it to correct the norm.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpi_kernels.native.library import (
    ERRORS,
    PATH,
    BinningRecord,
    Bytes,
    NativePath,
    ResultsRecord,
    Size,
    functions,
)

PADDING = 64
"""``NATIVEPADDING`` of ``native.h``."""
_ROOM = 4096
"""Pixels outside the limits, per frame, for which there is room at first."""


@dataclass(frozen=True)
class BatchSums:
    """What became of a batch of frames.

    Parameters
    ----------
    counts
        Sums per frame and bin, shape ``(frames, bins)``; zero for a frame that has an error.
    excluded
        Per frame the pixels that have a bin and a value outside the limits, ascending.
    errors
        Per frame what is wrong with its chunk; None: nothing.
    """

    counts: NDArray[np.int64]
    excluded: tuple[NDArray[np.int32], ...]
    errors: tuple[str | None, ...]


class Binner:
    """Sums the pixels of each bin; one for all frames of a detector. Threads may share it.

    Parameters
    ----------
    bin_of
        Bin of each pixel, shape ``(pixels,)``; `bins` for pixels without one.
    bins
        Number of bins.
    dtype
        Type of the stored elements: whole numbers of 8, 16 or 32 bits, little-endian.
    low, high
        Values that count: `low` ≤ value ≤ `high`; None: all.
    path
        Way through the compiled core.
    """

    def __init__(
        self,
        bin_of: NDArray[np.integer[Any]],
        *,
        bins: int,
        dtype: np.dtype[Any],
        low: int | None = None,
        high: int | None = None,
        path: NativePath | None = PATH,
    ) -> None:
        assert path is not None  # noqa: S101
        if not fits(dtype):
            raise ValueError(f"{dtype.str} isn't summed here: whole numbers of 8, 16 or 32 bits, little-endian")
        if bin_of.size and not 0 <= bin_of.min() <= bin_of.max() <= bins:
            raise ValueError(f"bins {bin_of.min()} to {bin_of.max()}, but there are {bins}")
        if bin_of.size > np.iinfo(np.int32).max or bins > np.iinfo(np.int32).max:
            raise ValueError(f"{bin_of.size} pixels in {bins} bins are too many")
        self.bins, self.pixels, self._path, self._room = bins, bin_of.size, path, _ROOM
        self._bin_of = np.concatenate([bin_of.ravel(), np.full(PADDING, bins)]).astype(np.uint32)
        self._valid = np.append(np.packbits(bin_of.ravel() < bins, bitorder="little"), np.zeros(PADDING, np.uint8))
        span = np.iinfo(dtype)
        self._record = BinningRecord(
            bin_of=self._bin_of.ctypes.data,
            valid=self._valid.ctypes.data,
            pixels=self.pixels,
            bins=bins,
            element_size=dtype.itemsize,
            low=span.min if low is None else min(max(low, span.min), span.max + 1),
            high=span.max if high is None else max(min(high, span.max), span.min - 1),
            is_signed=dtype.kind == "i",
        )

    def sums(self, chunks: Sequence[bytes]) -> BatchSums:
        """Return the sums of frames that are stored in one chunk each; 16, or a multiple, are summed best."""
        frames = len(chunks)
        while True:
            room = self._room
            counts, found = np.empty((frames, self.bins), np.int64), np.zeros(frames, np.int64)
            pixels, errors = np.empty((frames, room), np.int32), np.zeros(frames, np.int32)
            results = ResultsRecord(
                sums=counts.ctypes.data,
                excluded=found.ctypes.data,
                pixels=pixels.ctypes.data,
                room=room,
                errors=errors.ctypes.data,
            )
            addresses = (Bytes * frames)(*chunks)
            lengths = (Size * frames)(*map(len, chunks))
            functions().native_bin(
                int(self._path), ctypes.byref(self._record), addresses, lengths, frames, ctypes.byref(results)
            )
            found[errors != 0] = 0
            if (found <= room).all():
                break
            self._room = int(found.max())
        counts[errors != 0] = 0
        excluded = tuple(row[:length].copy() for row, length in zip(pixels, found, strict=True))
        return BatchSums(counts, excluded, tuple(ERRORS.get(int(error)) for error in errors))


def fits(dtype: np.dtype[Any]) -> bool:
    """Whether frames of this type can be summed here."""
    return dtype.kind in "ui" and dtype.itemsize <= 4 and dtype.newbyteorder("<") == dtype
