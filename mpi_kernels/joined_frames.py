"""The frames of a virtual dataset that is itself the source of another one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpi_kernels.chunk_memory import ChunkMemory
from mpi_kernels.errors import FrameUnreadable, UnusableInput
from mpi_kernels.frame_dataset import FrameDataset
from mpi_kernels.frame_numbers import Integers


class JoinedFrames(FrameDataset):
    """Frames of several datasets, in the order of their numbers in a virtual dataset.

    Parameters
    ----------
    members
        Datasets, each with the numbers of its frames.
    place
        File and dataset, for people.
    scan_shape
        The virtual dataset's leading dimensions.
    """

    def __init__(
        self, members: Sequence[tuple[Integers, FrameDataset]], place: str, scan_shape: tuple[int, ...]
    ) -> None:
        if not members:
            raise UnusableInput(f"{place}: a virtual dataset of nothing", remedy="map its sources")
        self.place, self._scan_shape = place, scan_shape
        self._datasets = [dataset for _numbers, dataset in members]
        first = self._datasets[0]
        self.frame_shape, self.dtype, self.chunks = first.frame_shape, first.dtype, None
        if any((dataset.frame_shape, dataset.dtype) != (self.frame_shape, self.dtype) for dataset in self._datasets):
            raise UnusableInput(
                f"{place}: its sources have frames of different kinds", remedy="process them separately"
            )
        self._member = np.full(math.prod(scan_shape), -1, np.int64)
        self._index = np.zeros_like(self._member)
        for number, (frames, _dataset) in enumerate(members):
            self._member[frames], self._index[frames] = number, np.arange(len(frames))
        self._counts = [len(frames) for frames, _dataset in members]
        self.holders = tuple(
            holder._replace(positions=None) for dataset in self._datasets for holder in dataset.holders
        )
        self.allocated_as_written = all(dataset.allocated_as_written for dataset in self._datasets)
        self.fusable = all(dataset.fusable for dataset in self._datasets)

    @property
    def live(self) -> bool:
        return any(dataset.live for dataset in self._datasets)

    @property
    def route(self) -> str:
        return "; ".join(dict.fromkeys(dataset.route for dataset in self._datasets))

    @property
    def scan_shape(self) -> tuple[int, ...]:
        return self._scan_shape

    @property
    def frames_per_chunk(self) -> int:
        return max(dataset.frames_per_chunk for dataset in self._datasets)

    @property
    def extent(self) -> int:
        return len(self._member)

    @property
    def stored_frames(self) -> int:
        return sum(dataset.stored_frames for dataset in self._datasets)

    def place_of(self, position: int) -> str:
        dataset, index = self._find(position)
        return dataset.place_of(index)

    def closed_but_short(self, count: int) -> set[Path]:  # noqa: ARG002  the members have them in any order
        members = zip(self._datasets, self._counts, strict=True)
        return set().union(*(dataset.closed_but_short(own) for dataset, own in members))

    def refresh(self) -> None:
        for dataset in self._datasets:
            dataset.refresh()

    def has(self, position: int) -> bool:
        if position >= self.extent or self._member[position] < 0:
            return False
        dataset, index = self._find(position)
        return dataset.has(index)

    def has_later_chunk(self, position: int) -> bool:
        dataset, index = self._find(position)
        return dataset.frames_per_chunk == 1 or dataset.has_later_chunk(index)

    def chunk(self, position: int, memory: ChunkMemory) -> memoryview | None:
        dataset, index = self._find(position)
        return dataset.chunk(index, memory)

    def read(self, position: int) -> NDArray[Any] | None:
        dataset, index = self._find(position)
        return dataset.read(index)

    def digest(self, position: int) -> bytes | None:
        dataset, index = self._find(position)
        return dataset.digest(index)

    def _find(self, position: int) -> tuple[FrameDataset, int]:
        if self._member[position] < 0:
            raise FrameUnreadable(f"{self.place}[{position}]: no source has it")
        return self._datasets[self._member[position]], int(self._index[position])
