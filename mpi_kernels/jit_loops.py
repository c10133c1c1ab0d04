"""Loops that numba compiles; importing this module needs numba, and takes a second and a hundred megabytes."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

BLOCK = 1024
"""Pixels that are looked through for values that need care, before they are added."""
SIDE_BY_SIDE = 4
"""Neighbours, often of the same bin, are added to sums of their own and needn't wait for each other."""
_MOST = 2**32 - 1


@numba.njit(cache=True, nogil=True)
def add_quickly(counts: NDArray[Any], places: NDArray[Any], sums: NDArray[np.uint32]) -> None:
    """Add counts that need no care to sums of 32 bits, shape ``((bins + 1) * 4,)``."""
    one, two, three = np.uintp(1), np.uintp(2), np.uintp(3)
    whole = counts.size // 4
    for quad in range(whole):
        pixel = np.uintp(4 * quad)
        sums[places[pixel]] += np.uint32(counts[pixel])
        sums[places[pixel + one] + one] += np.uint32(counts[pixel + one])
        sums[places[pixel + two] + two] += np.uint32(counts[pixel + two])
        sums[places[pixel + three] + three] += np.uint32(counts[pixel + three])
    for rest in range(4 * whole, counts.size):
        sums[places[rest]] += np.uint32(counts[rest])


@numba.njit(cache=True, nogil=True)
def move(short: NDArray[np.uint32], sums: NDArray[np.int64]) -> None:
    """Move the short sums to where they have 64 bits."""
    for index in range(short.size):
        sums[index // SIDE_BY_SIDE] += np.int64(short[index])
        short[index] = 0


@numba.njit(cache=True, nogil=True)
def take_measured(counts: NDArray[Any], limits: tuple[Any, Any], measured: NDArray[Any]) -> NDArray[Any]:
    """Return the counts within the limits, and 0 in place of others, in `measured`."""
    low, high = limits
    none = measured.dtype.type(0)
    for index in range(counts.size):
        count = counts[index]
        measured[index] = count if (count >= low) & (count <= high) else none
    return measured[: counts.size]


@numba.njit(cache=True, nogil=True)
def add_large(counts: NDArray[Any], places: NDArray[Any], limits: tuple[Any, Any], sums: NDArray[np.int64]) -> None:
    """Add the counts within the limits to sums of 64 bits, shape ``(bins + 1,)``."""
    for index in range(counts.size):
        if limits[0] <= counts[index] <= limits[1]:
            sums[places[index] // SIDE_BY_SIDE] += np.int64(counts[index])


@numba.njit(cache=True, nogil=True)
def name_others(
    counts: NDArray[Any], places: NDArray[Any], limits: tuple[Any, Any], nowhere: Any, names: NDArray[np.intp]
) -> Any:
    """Return how many counts outside the limits have a bin, and note which, as far as there is room."""
    low, high = limits
    found = np.uint32(0)  # of 32 bits, so that many fit one vector
    for index in range(counts.size):
        found += np.uint32(((counts[index] < low) | (counts[index] > high)) & (places[index] < nowhere))
    noted = 0
    for index in range(counts.size if found else 0):
        if ((counts[index] < low) | (counts[index] > high)) & (places[index] < nowhere):
            if noted < names.size:
                names[noted] = index
            noted += 1
    return found


@numba.njit(cache=True, nogil=True)
def look_through(counts: NDArray[Any], limits: tuple[Any, Any]) -> tuple[Any, Any]:
    """Return the largest count within the limits, and how many aren't."""
    low, high = limits
    least = largest = counts[0]
    for index in range(counts.size):
        least, largest = min(least, counts[index]), max(largest, counts[index])
    if least >= low and largest <= high:  # mostly: and this is quicker
        return largest, np.uint32(0)
    largest, others = low, np.uint32(0)
    for index in range(counts.size):
        count = counts[index]
        measured = (count >= low) & (count <= high)
        largest = max(largest, count if measured else low)
        others += np.uint32(not measured)
    return largest, others


@numba.njit(cache=True, nogil=True)
def sum_block_by_block(
    counts: NDArray[Any],
    places: NDArray[Any],
    limits: tuple[Any, Any],
    sums: NDArray[np.int64],
    excluded: NDArray[np.intp],
) -> int:
    """Add the counts to the sums, shape ``(bins + 1,)``; return how many were left out and note which.

    `limits` are from 0 on, and of the counts' type.
    """
    short = np.zeros(sums.size * SIDE_BY_SIDE, np.uint32)
    budget = np.int64(0)  # no short sum is larger
    measured = np.empty(BLOCK, counts.dtype)
    nowhere = places.dtype.type((sums.size - 1) * SIDE_BY_SIDE)
    found = 0
    for start in range(0, counts.size, BLOCK):
        block, own = counts[start : start + BLOCK], places[start : start + BLOCK]
        largest, others = look_through(block, limits)
        if others:
            names = excluded[min(found, excluded.size) :]
            more = name_others(block, own, limits, nowhere, names)
            names[:more] += start
            found += more
        if np.int64(largest) > _MOST // BLOCK:
            add_large(block, own, limits, sums)
            continue
        if budget + np.int64(largest) * BLOCK > _MOST:
            move(short, sums)
            budget = np.int64(0)
        budget += np.int64(largest) * BLOCK
        add_quickly(take_measured(block, limits, measured) if others else block, own, short)
    move(short, sums)
    return found


@numba.njit(cache=True, nogil=True)
def sum_pair_by_pair(
    counts: NDArray[Any],
    pairs: tuple[NDArray[np.int64], NDArray[np.uint32], NDArray[np.uint16], NDArray[np.uint16]],
    limits: tuple[int, int],
    sums: NDArray[np.int64],
    excluded: NDArray[np.intp],
) -> int:
    """Add counts times weights, and times squares, to the sums, shape ``(bins, 2)``; as `sum_block_by_block`."""
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
