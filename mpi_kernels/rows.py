"""What became of frames: rows of the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from mpi_kernels.kernel import Array, Column


class Status(IntEnum):
    """What became of a frame."""

    MISSING = 0
    PROCESSED = 1
    FAILED = 2
    PROVISIONAL = 3
    """Processed, but it may not have been written whole: it is read again when the writer has finished."""


@dataclass(frozen=True)
class Rows:
    """The results of some frames.

    Parameters
    ----------
    frames
        Their numbers, shape ``(n,)``, in any order.
    status, computed_time
        Of each; the time in seconds since 1970.
    columns
        By `Column.path`, each of shape ``(n, *shape)``.
    messages
        Why a frame failed, by its number.
    """

    frames: NDArray[np.int64]
    status: NDArray[np.uint8]
    computed_time: NDArray[np.float64]
    columns: Mapping[str, Array]
    messages: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.frames)

    @classmethod
    def without_result(cls, frames: Sequence[int], columns: Sequence[Column], time_s: float) -> Rows:
        """Return rows of missing frames, for results to be filled in."""
        many = len(frames)
        return cls(
            np.array(frames, np.int64),
            np.full(many, Status.MISSING, np.uint8),
            np.full(many, time_s),
            {item.path: np.full((many, *item.shape), item.fill, item.dtype) for item in columns},
            {},
        )

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """Return all rows by ascending frame; of several for one frame, the last."""
        frames = np.concatenate([part.frames for part in parts])
        order = np.argsort(frames, kind="stable")
        kept = order[np.append(frames[order][1:] != frames[order][:-1], np.ones(min(1, len(order)), bool))]
        messages = {frame: text for part in parts for frame, text in part.messages.items()}
        status = np.concatenate([part.status for part in parts])[kept]
        failed = set(frames[kept][status == Status.FAILED].tolist())
        return cls(
            frames[kept],
            status,
            np.concatenate([part.computed_time for part in parts])[kept],
            {path: np.concatenate([part.columns[path] for part in parts])[kept] for path in parts[0].columns},
            {frame: text for frame, text in messages.items() if frame in failed},
        )
