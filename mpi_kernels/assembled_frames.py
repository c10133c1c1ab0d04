"""Frames put together from tiles: those of detectors of several modules, and parts of a dataset's frames.

A frame is in the files when all its tiles are; one tile that can't be read makes the frame unreadable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpi_kernels.chunk_memory import ChunkMemory
from mpi_kernels.errors import UnusableInput
from mpi_kernels.frame_dataset import FrameDataset, Holder
from mpi_kernels.frame_digests import digest_of
from mpi_kernels.frame_numbers import ALL, Numbers
from mpi_kernels.mappings import Rectangle, Tile
from mpi_kernels.segments import Assembly


@dataclass(frozen=True)
class Part:
    """One tile of each frame: the `k`-th frame's is `origin` of frame `numbers.at(k)` of a dataset."""

    dataset: FrameDataset
    numbers: Numbers
    place: Rectangle
    origin: Rectangle

    @classmethod
    def of(cls, tile: Tile, dataset: FrameDataset) -> Part:
        """Find a tile in its dataset.

        Raises
        ------
        UnusableInput
            When the dataset isn't as the virtual dataset says.
        """
        origin, (rows, columns) = tile.origin, dataset.frame_shape
        if origin.top + origin.height > rows or origin.left + origin.width > columns:
            raise _unfitting(dataset, origin)
        if tile.is_all and (origin.height, origin.width) != dataset.frame_shape:
            raise _unfitting(dataset, origin)
        try:
            numbers = tile.positions.resolved(dataset.scan_shape)
        except ValueError as error:
            raise UnusableInput(f"{dataset.place}: {error}", remedy="correct the virtual dataset") from error
        return cls(dataset, numbers, tile.place, origin)

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the dataset's frame."""
        return self.origin == (0, 0, *self.dataset.frame_shape)

    @property
    def holders(self) -> list[Holder]:
        """The real datasets, and where the tiles lie in them."""
        return [
            holder._replace(positions=self.numbers if holder.positions is ALL else None)
            for holder in self.dataset.holders
        ]

    def count_needed(self, count: int) -> int:
        """Return how many frames the dataset must have so that `count` tiles can be there."""
        mapped = count if self.numbers.count is None else min(count, self.numbers.count)
        return self.numbers.span(0, mapped)[1] if mapped else 0

    @property
    def extent(self) -> int:
        return self.numbers.count_below(self.dataset.extent)

    def has(self, index: int) -> bool:
        return self._maps(index) and self.dataset.has(self.numbers.at(index))

    def has_later_chunk(self, index: int) -> bool:
        return self.dataset.frames_per_chunk == 1 or self.dataset.has_later_chunk(self.numbers.at(index))

    def _maps(self, index: int) -> bool:
        return self.numbers.count is None or index < self.numbers.count


def _unfitting(dataset: FrameDataset, origin: Rectangle) -> UnusableInput:
    return UnusableInput(
        f"{dataset.place}: frames {dataset.frame_shape}, of which the virtual dataset takes rows {origin.top} to "
        f"{origin.top + origin.height - 1}, columns {origin.left} to {origin.left + origin.width - 1}",
        remedy="correct the virtual dataset",
    )


class AssembledFrames(FrameDataset):
    """Frames, counted as the virtual dataset's segment counts them.

    Parameters
    ----------
    parts
        Their tiles; a later one counts where two overlap.
    assembly
        The whole. Frames that are their source's whole frames are given as they are there, whatever its type says.
    """

    def __init__(self, parts: Sequence[Part], assembly: Assembly) -> None:
        self._parts = tuple(parts)
        self._datasets = tuple({id(part.dataset): part.dataset for part in parts}.values())
        self.frame_shape, self._fill = assembly.frame_shape, assembly.fill
        self._alone = len(parts) == 1 and parts[0].is_whole and parts[0].place == (0, 0, *self.frame_shape)
        self.dtype = parts[0].dataset.dtype if self._alone else assembly.dtype
        self.place = " + ".join(dataset.place for dataset in self._datasets)
        for dataset in self._datasets:
            if not np.can_cast(dataset.dtype, self.dtype, "safe"):
                raise UnusableInput(
                    f"{dataset.place}: {dataset.dtype}, but the virtual dataset over it has {self.dtype}",
                    remedy="give the virtual dataset a type that holds the values of its sources",
                )
        self.holders = tuple(holder for part in parts for holder in part.holders)
        self.chunks = None
        self.allocated_as_written = all(dataset.allocated_as_written for dataset in self._datasets)
        self.fusable = self._alone and parts[0].dataset.fusable
        self._covered = _covers(parts, self.frame_shape)

    @property
    def live(self) -> bool:
        return any(dataset.live for dataset in self._datasets)

    @property
    def route(self) -> str:
        routes = "; ".join(dict.fromkeys(dataset.route for dataset in self._datasets))
        return routes if self._alone else f"{routes}, {len(self._parts)} tiles a frame"

    @property
    def scan_shape(self) -> tuple[int, ...]:
        return (self.extent,)

    @property
    def frames_per_chunk(self) -> int:
        return max(dataset.frames_per_chunk for dataset in self._datasets)

    @property
    def extent(self) -> int:
        return min(part.extent for part in self._parts)

    @property
    def stored_frames(self) -> int:
        return min(dataset.stored_frames for dataset in self._datasets)

    def place_of(self, position: int) -> str:
        return " + ".join(dict.fromkeys(part.dataset.place_of(part.numbers.at(position)) for part in self._parts))

    def closed_but_short(self, count: int) -> set[Path]:
        short = (part.dataset.closed_but_short(part.count_needed(count)) for part in self._parts)
        return set().union(*short)

    def refresh(self) -> None:
        for dataset in self._datasets:
            dataset.refresh()

    def has(self, position: int) -> bool:
        return all(part.has(position) for part in self._parts)

    def has_later_chunk(self, position: int) -> bool:
        return all(part.has_later_chunk(position) for part in self._parts)

    def chunk(self, position: int, memory: ChunkMemory) -> memoryview | None:
        part = self._parts[0]
        return part.dataset.chunk(part.numbers.at(position), memory) if self._alone else None

    def read(self, position: int) -> NDArray[Any] | None:
        if self._alone:
            return self._parts[0].dataset.read(self._parts[0].numbers.at(position))
        frame = np.empty(self.frame_shape, self.dtype)
        if not self._covered:
            frame[...] = self._fill
        frames: dict[tuple[int, int], NDArray[Any] | None] = {}
        for part in self._parts:
            key = id(part.dataset), part.numbers.at(position)
            if key not in frames:  # several tiles may be of the same one
                frames[key] = part.dataset.read(key[1])
            source = frames[key]
            if source is None:
                return None
            frame[part.place.slices] = source[part.origin.slices]
        return frame

    def digest(self, position: int) -> bytes | None:
        sources = dict.fromkeys((part.dataset, part.numbers.at(position)) for part in self._parts)
        digests = [dataset.digest(number) for dataset, number in sources]
        if len(digests) == 1:
            return digests[0]
        there = [digest for digest in digests if digest is not None]
        return digest_of(there) if len(there) == len(digests) else None


def _covers(parts: Sequence[Part], frame_shape: tuple[int, int]) -> bool:
    covered = np.zeros(frame_shape, bool)
    for part in parts:
        covered[part.place.slices] = True
    return bool(covered.all())
