"""Loops that numba compiles; importing this module needs numba, and takes a second and a hundred megabytes."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

BLOCK = 2048
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
def take_measured(counts: NDArray[Any], limits: tuple[Any, Any], measured: NDArray[Any]) -> tuple[NDArray[Any], Any]:
    """Return the counts within the limits, and 0 in place of others, in `measured`; and the largest of them."""
    low, high = limits
    none = largest = measured.dtype.type(0)
    for index in range(counts.size):
        count = counts[index]
        measured[index] = count if (count >= low) & (count <= high) else none
        largest = max(largest, measured[index])
    return measured[: counts.size], largest


@numba.njit(cache=True, nogil=True)
def add_large(counts: NDArray[Any], places: NDArray[Any], sums: NDArray[np.int64]) -> None:
    """Add counts to sums of 64 bits, shape ``(bins + 1,)``."""
    for index in range(counts.size):
        sums[places[index] // SIDE_BY_SIDE] += np.int64(counts[index])


@numba.njit(cache=True, nogil=True)
def look_through(counts: NDArray[Any], places: NDArray[Any], low: Any, nowhere: Any) -> tuple[Any, Any]:
    """Return the least and the largest of `low` and the counts that have a bin."""
    least = largest = low
    for index in range(counts.size):
        count = counts[index] if places[index] < nowhere else low
        least, largest = min(least, count), max(largest, count)
    return least, largest


@numba.njit(cache=True, nogil=True)
def name_others(
    counts: NDArray[Any],
    places: NDArray[Any],
    limits: tuple[Any, Any],
    nowhere: Any,
    names: NDArray[np.intp],
) -> int:
    """Note which counts outside the limits have a bin, as far as there is room; return how many they are."""
    low, high = limits
    found = 0
    for index in range(counts.size):
        if ((counts[index] < low) | (counts[index] > high)) & (places[index] < nowhere):
            if found < names.size:
                names[found] = index
            found += 1
    return found


@numba.njit(cache=True, nogil=True)
def sum_block_by_block(
    counts: NDArray[Any],
    places: NDArray[Any],
    limits: tuple[Any, Any],
    sums: NDArray[np.int64],
    excluded: NDArray[np.intp],
) -> int:
    """Add the counts to the sums, shape ``(bins + 1,)``; return how many were left out and note which.

    `limits` are from 0 on, and of the counts' type. Counts without a bin are added to a sum that nobody looks at, which
    may overflow; so gaps between modules cost nothing.
    """
    short = np.zeros(sums.size * SIDE_BY_SIDE, np.uint32)
    budget = np.int64(0)  # no short sum of a bin is larger
    measured = np.empty(BLOCK, counts.dtype)
    nowhere = places.dtype.type((sums.size - 1) * SIDE_BY_SIDE)
    found = 0
    for start in range(0, counts.size, BLOCK):
        block, own = counts[start : start + BLOCK], places[start : start + BLOCK]
        least, largest = look_through(block, own, limits[0], nowhere)
        if least < limits[0] or largest > limits[1]:
            names = excluded[min(found, excluded.size) :]
            more = name_others(block, own, limits, nowhere, names)
            names[:more] += start
            found += more
            block, largest = take_measured(block, limits, measured)
        if np.int64(largest) > _MOST // BLOCK:
            add_large(block, own, sums)
            continue
        if budget + np.int64(largest) * BLOCK > _MOST:
            move(short, sums)
            budget = np.int64(0)
        budget += np.int64(largest) * BLOCK
        add_quickly(block, own, short)
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
