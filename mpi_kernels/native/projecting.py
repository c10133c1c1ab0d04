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

from mpi_kernels.native.library import (
    ERRORS,
    PADDING,
    PATH,
    BinningRecord,
    Bytes,
    NativePath,
    ProjectionRecord,
    Size,
    TotalsRecord,
    fits,
    functions,
)


@dataclass(frozen=True)
class PixelSums:
    """Sums over frames, each of shape ``(pixels,)``: what `Summer.add` adds to."""

    total: NDArray[np.uint64]
    squares_low: NDArray[np.uint64]
    """Of the low 32 bits of each square."""
    squares_high: NDArray[np.uint64]
    """Of the high 32 bits of each square."""
    excluded: NDArray[np.uint32]
    """In how many frames a valid pixel's value was outside the limits."""
    largest: NDArray[np.uint32]

    @classmethod
    def zeros(cls, pixels: int) -> PixelSums:
        total, low, high = (np.zeros(pixels, np.uint64) for _ in range(3))
        return cls(total, low, high, np.zeros(pixels, np.uint32), np.zeros(pixels, np.uint32))
