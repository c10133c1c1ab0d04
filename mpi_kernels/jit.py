"""What numba compiles, where it is installed: the way for machines on which the package wasn't compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mpi_kernels.splitting import Pairs

try:
    import numba
except ImportError:
    numba = None

SumWholePixels: TypeAlias = Callable[
    [NDArray[Any], NDArray[np.uint32], int, tuple[int, int]], tuple[NDArray[np.int64], NDArray[np.intp]]
]
SumSplitPixels: TypeAlias = Callable[
    [NDArray[Any], Pairs, int, tuple[int, int]], tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.intp]]
]
_BLOCK = 8192
"""Pixels that are looked through for values that need care, before they are added."""
_SIDE_BY_SIDE = 4
"""Neighbours, often of the same bin, are added to sums of their own and needn't wait for each other."""
_ROOM = 4096
_MOST = 2**32 - 1


def _add_quickly(counts: NDArray[Any], bin_of: NDArray[np.uint32], sums: NDArray[np.uint32]) -> None:
    """Add counts that need no care to sums of 32 bits, shape ``(bins + 1, 4)``."""
    whole = counts.size // 4
    for quad in range(whole):
        pixel = np.uintp(4 * quad)
        sums[bin_of[pixel], 0] += np.uint32(counts[pixel])
        sums[bin_of[pixel + np.uintp(1)], 1] += np.uint32(counts[pixel + np.uintp(1)])
        sums[bin_of[pixel + np.uintp(2)], 2] += np.uint32(counts[pixel + np.uintp(2)])
        sums[bin_of[pixel + np.uintp(3)], 3] += np.uint32(counts[pixel + np.uintp(3)])
    for rest in range(4 * whole, counts.size):
        sums[bin_of[rest], 0] += np.uint32(counts[rest])


def _move(short: NDArray[np.uint32], sums: NDArray[np.int64]) -> None:
    """Move the short sums to where they have 64 bits."""
    for index in range(sums.size):
        for side in range(_SIDE_BY_SIDE):
            sums[index] += np.int64(short[index, side])
            short[index, side] = 0


def _sum_block_by_block(
    counts: NDArray[Any],
    bin_of: NDArray[np.uint32],
    limits: tuple[int, int],
    sums: NDArray[np.int64],
    excluded: NDArray[np.intp],
) -> int:
    """Add the counts to the sums, shape ``(bins + 1,)``; return how many were left out and note which."""
    low, high = limits
    short = np.zeros((sums.size, _SIDE_BY_SIDE), np.uint32)
    budget = np.int64(0)  # no short sum is larger
    found = 0
    for start in range(0, counts.size, _BLOCK):
        block, bins = counts[start : start + _BLOCK], bin_of[start : start + _BLOCK]
        least, largest = np.int64(block.min()), np.int64(block.max())
        if least >= max(low, 0) and largest <= min(high, _MOST // _BLOCK):
            budget += largest * _BLOCK
            if budget > _MOST:
                _moved(short, sums)
                budget = largest * _BLOCK
            _quickly(block, bins, short)
            continue
        for index in range(block.size):
            value = np.int64(block[index])
            if low <= value <= high:
                sums[bins[index]] += value
            elif bins[index] < sums.size - 1:
                if found < excluded.size:
                    excluded[found] = start + index
                found += 1
    _moved(short, sums)
    return found


def _sum_whole_pixels(
    counts: NDArray[Any], bin_of: NDArray[np.uint32], bins: int, limits: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
    """Return the sum per bin of the counts within the limits, and which pixels with a bin were left out."""
    room = _ROOM
    while True:
        sums, excluded = np.zeros(bins + 1, np.int64), np.empty(room, np.intp)
        found = _block_by_block(counts, bin_of, limits, sums, excluded)
        if found <= room:
            return sums[:bins], excluded[:found]
        room = found


def _sum_pair_by_pair(
    counts: NDArray[Any],
    pairs: tuple[NDArray[np.int64], NDArray[np.uint32], NDArray[np.uint16], NDArray[np.uint16]],
    limits: tuple[int, int],
    sums: NDArray[np.int64],
    excluded: NDArray[np.intp],
) -> int:
    """Add counts times weights, and times squares, to the sums, shape ``(bins, 2)``; as `_sum_block_by_block`."""
    starts, bin_of, weights, squares = pairs
    low, high = limits
    found = 0
    for pixel in range(counts.size):
        value = np.int64(counts[pixel])
        first, last = starts[pixel], starts[pixel + 1]
        if low <= value <= high:
            if value == 0:
                continue
            for pair in range(first, last):
                sums[bin_of[pair], 0] += value * np.int64(weights[pair])
                sums[bin_of[pair], 1] += value * np.int64(squares[pair])
        elif first < last:
            if found < excluded.size:
                excluded[found] = pixel
            found += 1
    return found


def _sum_split_pixels(
    counts: NDArray[Any], pairs: Pairs, bins: int, limits: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.intp]]:
    """Return the sums per bin of counts times weights and times squares, in 1/65535, and which pixels were left out."""
    room = _ROOM
    while True:
        sums, excluded = np.zeros((bins, 2), np.int64), np.empty(room, np.intp)
        arrays = (pairs.starts, pairs.bin_of, pairs.weights, pairs.squares)
        found = _pair_by_pair(counts, arrays, limits, sums, excluded)
        if found <= room:
            return sums[:, 0], sums[:, 1], excluded[:found]
        room = found


if numba is None:
    sum_whole_pixels: SumWholePixels | None = None
    sum_split_pixels: SumSplitPixels | None = None
    """None where numba isn't installed."""
else:
    _pair_by_pair = numba.njit(_sum_pair_by_pair, cache=True, nogil=True)
    sum_split_pixels = _sum_split_pixels
    _quickly = numba.njit(_add_quickly, cache=True, nogil=True)
    _moved = numba.njit(_move, cache=True, nogil=True)
    _block_by_block = numba.njit(_sum_block_by_block, cache=True, nogil=True)
    sum_whole_pixels = _sum_whole_pixels
