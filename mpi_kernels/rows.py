"""What became of a frame: one row of the result."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Status(IntEnum):
    """What became of a frame."""

    MISSING = 0
    PROCESSED = 1
    FAILED = 2


@dataclass(frozen=True)
class Row:
    """One frame's result."""

    frame: int
    status: Status
    intensity: NDArray[np.float64] | None = None
    sigma: NDArray[np.float64] | None = None
    reason: str = ""
