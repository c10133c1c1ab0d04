"""Stored chunks of many frames straight to the sums of their pixels per bin: decoding and summing in one go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpi_kernels.native.batch import Assignment, Summer
from mpi_kernels.native.grouping import PADDING, grouped
from mpi_kernels.native.library import PATH, Chunk, NativePath


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
    """Sums the pixels of each bin, each pixel whole; one for all frames of a detector. Threads may share it.

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
        bin_of = bin_of.ravel()
        valid = bin_of != bins
        pixel = np.flatnonzero(valid)
        used = bin_of[pixel]
        check(dtype, pixels=bin_of.size, bins=bins, used=used)
        assignment = Assignment(
            valid=valid,
            bin_of=np.concatenate([bin_of, np.full(PADDING, bins)]).astype(np.uint32),
            groups=grouped(pixel, used, np.ones((1, pixel.size), np.uint16), pixels=bin_of.size, bins=bins),
            bins=bins,
        )
        self.bins, self.pixels = bins, bin_of.size
        self._summer = Summer(assignment, dtype, low, high, path)

    def sums(self, chunks: Sequence[Chunk]) -> BatchSums:
        """Return the sums of frames that are stored in one chunk each; 16, or a multiple, are summed best."""
        result = self._summer.sums(chunks)
        return BatchSums(result.sums[:, 0], result.excluded, result.errors)


def fits(dtype: np.dtype[Any]) -> bool:
    """Whether frames of this type can be summed here."""
    return dtype.kind in "ui" and dtype.itemsize <= 4 and dtype.newbyteorder("<") == dtype


def check(dtype: np.dtype[Any], *, pixels: int, bins: int, used: NDArray[np.integer[Any]]) -> None:
    """Raise ValueError unless frames of this type can be summed in these bins, of which `used` are used."""
    if not fits(dtype):
        raise ValueError(f"{dtype.str} isn't summed here: whole numbers of 8, 16 or 32 bits, little-endian")
    if used.size and not 0 <= used.min() <= used.max() < bins:
        raise ValueError(f"bins {used.min()} to {used.max()}, but there are {bins}")
    if max(pixels, used.size, bins) > np.iinfo(np.int32).max:
        raise ValueError(f"{pixels} pixels in {bins} bins are too many")
