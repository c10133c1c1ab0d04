"""Stored chunks of many frames straight to the sums of their pixels per bin, a pixel divided among several bins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpi_kernels.native.batch import Assignment, Summer
from mpi_kernels.native.binning import check
from mpi_kernels.native.grouping import grouped
from mpi_kernels.native.library import PATH, Chunk, NativePath

WEIGHT_ONE = 65535
"""The weight of a whole pixel."""
MOST_COUNTS = np.iinfo(np.int64).max // WEIGHT_ONE
"""What a frame may hold before a sum might not fit 64 bits: 1.4e14, as in 32,768 pixels of 2³² - 1 or two thousand
million pixels of 65,535."""


@dataclass(frozen=True)
class SplitSums:
    """What became of a batch of frames.

    Parameters
    ----------
    counts
        Sums of weight · value per frame and bin, shape ``(frames, bins)``; zero for a frame that has an error.
    squares
        The same with the second set of weights; None: there is none.
    excluded
        Per frame the pixels that have a bin and a value outside the limits, ascending.
    errors
        Per frame what is wrong with its chunk; None: nothing.
    """

    counts: NDArray[np.int64]
    squares: NDArray[np.int64] | None
    excluded: tuple[NDArray[np.int32], ...]
    errors: tuple[str | None, ...]


class SplitBinner:
    """Sums the weighted pixels of each bin; one for all frames of a detector. Threads may share it.

    Sums are exact as long as the magnitudes of a frame's values add up to at most `MOST_COUNTS`.

    Parameters
    ----------
    starts
        Pairs of a pixel and a bin: pixel p has those from ``starts[p]`` to before ``starts[p + 1]``, shape
        ``(pixels + 1,)``.
    bin_of
        Bin of each pair, shape ``(pairs,)``.
    weights
        Weight of each pair, in units of which `WEIGHT_ONE` are a whole pixel; a pixel's are together at most that.
    bins
        Number of bins.
    dtype
        Type of the stored elements: whole numbers of 8, 16 or 32 bits, little-endian.
    squares
        Weights of a second sum, for instance ``round(weights**2 / WEIGHT_ONE)`` for the variance; None: none.
    low, high
        Values that count: `low` ≤ value ≤ `high`; None: all.
    path
        Way through the compiled core.
    """

    def __init__(
        self,
        starts: NDArray[np.int64],
        bin_of: NDArray[np.uint32],
        weights: NDArray[np.uint16],
        *,
        bins: int,
        dtype: np.dtype[Any],
        squares: NDArray[np.uint16] | None = None,
        low: int | None = None,
        high: int | None = None,
        path: NativePath | None = PATH,
    ) -> None:
        assert path is not None  # noqa: S101
        pixels = starts.size - 1
        check(dtype, pixels=pixels, bins=bins, used=bin_of)
        sets = [weights] if squares is None else [weights, squares]
        for each in sets:
            _check_pairs(starts, bin_of, each)
        lengths = np.diff(starts)
        pixel = np.repeat(np.arange(pixels), lengths)
        assignment = Assignment(
            valid=lengths > 0,
            starts=np.ascontiguousarray(starts, np.int64),
            bin_of=np.ascontiguousarray(bin_of, np.uint32),
            weights=np.ascontiguousarray(weights, np.uint16),
            squares=None if squares is None else np.ascontiguousarray(squares, np.uint16),
            groups=grouped(pixel, bin_of, np.stack(sets), pixels=pixels, bins=bins),
            bins=bins,
        )
        self.bins, self.pixels = bins, pixels
        self._summer = Summer(assignment, dtype, low, high, path)

    def sums(self, chunks: Sequence[Chunk]) -> SplitSums:
        """Return the sums of frames that are stored in one chunk each; 16, or a multiple, are summed best."""
        result = self._summer.sums(chunks)
        squares = result.sums[:, 1] if result.sums.shape[1] == 2 else None
        return SplitSums(result.sums[:, 0], squares, result.excluded, result.errors)


def _check_pairs(
    starts: NDArray[np.integer[Any]], bin_of: NDArray[np.integer[Any]], weights: NDArray[np.integer[Any]]
) -> None:
    if starts.size == 0 or starts[0] != 0 or starts[-1] != bin_of.size or (np.diff(starts) < 0).any():
        raise ValueError(f"the pairs of pixels and bins must be 0 to {bin_of.size}, pixel by pixel")
    if weights.shape != bin_of.shape:
        raise ValueError(f"{weights.size} weights for {bin_of.size} pairs of a pixel and a bin")
    if weights.size and not 0 <= weights.min() <= weights.max() <= WEIGHT_ONE:
        raise ValueError(f"weights {weights.min()} to {weights.max()}, but a whole pixel is {WEIGHT_ONE}")
    total = np.diff(np.concatenate([[0], np.cumsum(weights, dtype=np.int64)])[starts])
    if total.size and total.max() > WEIGHT_ONE:
        raise ValueError(f"the weights of pixel {total.argmax()} are {total.max()}, more than {WEIGHT_ONE}")
