"""What numba compiles, where it is installed: the way for machines on which the package wasn't compiled.

Numba is loaded when it is first needed, because that takes long.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module, util
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mpi_kernels.splitting import Pairs

SumWholePixels: TypeAlias = Callable[
    [NDArray[Any], NDArray[Any], int, tuple[int, int]], tuple[NDArray[np.int64], NDArray[np.intp]]
]
SumSplitPixels: TypeAlias = Callable[
    [NDArray[Any], Pairs, int, tuple[int, int]], tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.intp]]
]
_SIDE_BY_SIDE = 4
"""``SIDE_BY_SIDE`` of `jit_loops`."""
_ROOM = 4096


@cache
def _loops() -> Any:
    return import_module("mpi_kernels.jit_loops")


def places_of(bin_of: NDArray[np.integer[Any]], bins: int) -> NDArray[Any]:
    """Return where each pixel's sums begin, from its bin; the smaller the numbers, the quicker they are read."""
    kind = np.uint16 if (bins + 1) * _SIDE_BY_SIDE <= np.iinfo(np.uint16).max else np.uint32
    return (bin_of * _SIDE_BY_SIDE).astype(kind)


def _sum_whole_pixels(
    counts: NDArray[Any], places: NDArray[Any], bins: int, limits: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
    """Return the sum per bin of the counts within the limits, and which pixels with a bin were left out."""
    span = np.iinfo(counts.dtype)
    low, high = max(0, limits[0]), min(limits[1], int(span.max))
    if low > high:
        return np.zeros(bins, np.int64), np.flatnonzero(places < bins * _SIDE_BY_SIDE)
    typed = (counts.dtype.type(low), counts.dtype.type(high))
    room = _ROOM
    while True:
        sums, excluded = np.zeros(bins + 1, np.int64), np.empty(room, np.intp)
        found = _loops().sum_block_by_block(counts, places, typed, sums, excluded)
        if found <= room:
            return sums[:bins], excluded[:found]
        room = found


def _sum_split_pixels(
    counts: NDArray[Any], pairs: Pairs, bins: int, limits: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.intp]]:
    """Return the sums per bin of counts times weights and times squares, in 1/65535, and which pixels were left out."""
    room = _ROOM
    while True:
        sums, excluded = np.zeros((bins, 2), np.int64), np.empty(room, np.intp)
        arrays = (pairs.starts, pairs.bin_of, pairs.weights, pairs.squares)
        found = _loops().sum_pair_by_pair(counts, arrays, limits, sums, excluded)
        if found <= room:
            return sums[:, 0], sums[:, 1], excluded[:found]
        room = found


_THERE = util.find_spec("numba") is not None
sum_whole_pixels: SumWholePixels | None = _sum_whole_pixels if _THERE else None
sum_split_pixels: SumSplitPixels | None = _sum_split_pixels if _THERE else None
"""None where numba isn't installed."""
