"""HDF5 in: the frames of all segments, as one rank reads them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mpi_kernels.assembled_frames import AssembledFrames, Part
from mpi_kernels.chunk_memory import ChunkMemory
from mpi_kernels.errors import FrameUnreadable, NotThereYet, UnusableInput
from mpi_kernels.frame_dataset import FrameDataset
from mpi_kernels.hdf5_files import Library, Place, Virtual, settled
from mpi_kernels.joined_frames import JoinedFrames
from mpi_kernels.segments import Layout, Segment
from mpi_kernels.stored_frames import RETRY_S, VISIBLE_WITHIN_S, StoredFrames

__all__ = ["RETRY_S", "VISIBLE_WITHIN_S", "FrameDataset", "FrameSource"]


class FrameSource:
    """The frames of all segments, as one rank reads them."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._sources: dict[tuple[Path, str], FrameDataset] = {}
        self._joining: set[Place] = set()
        self._opened: dict[Segment, FrameDataset] = {}
        self._give_up_at: dict[Path, float] = {}

    def dataset(self, segment: Segment) -> FrameDataset:
        """Return the segment's frames; open what holds them when this is the first time.

        Raises
        ------
        NotThereYet
            When a file hasn't appeared.
        """
        if segment not in self._opened:
            frames = self._open(segment)
            first = next(iter(self._opened.values()), frames)
            if (frames.frame_shape, frames.dtype) != (first.frame_shape, first.dtype):
                raise UnusableInput(
                    f"{frames.place}: frames {frames.frame_shape} of {frames.dtype}, but {first.place} has "
                    f"{first.frame_shape} of {first.dtype}",
                    remedy="process them separately",
                )
            self._opened[segment] = frames
        return self._opened[segment]

    def _open(self, segment: Segment) -> FrameDataset:
        sources = {place: self._open_source(*place) for place in segment.datasets}
        if segment.assembly is None:
            return sources[segment.file, segment.dataset]
        parts = [Part.of(tile, sources[tile.file, tile.dataset]) for tile in segment.assembly.tiles]
        return AssembledFrames(parts, segment.assembly)

    def _open_source(self, file: Path, path: str) -> FrameDataset:
        if (file, path) not in self._sources:
            place = self._library.locate(file, path)
            if (virtual := self._library.virtual(place)) is not None:
                self._sources[file, path] = self._join(place, virtual)
            else:
                dataset, live = self._library.dataset(place.file, place.path), self._library.is_live(place.file)
                self._sources[file, path] = StoredFrames(dataset, place.file, live=live)
        return self._sources[file, path]

    def _join(self, place: Place, virtual: Virtual) -> FrameDataset:
        """Open what is behind a virtual dataset that is itself the source of one."""
        if place in self._joining:
            raise UnusableInput(f"{place}: a virtual dataset over itself", remedy="correct the virtual dataset")
        self._joining.add(place)
        try:
            segments = Layout(self._library, place.file, place.path).segments
            if any(segment.count is None for segment in segments):
                raise UnusableInput(f"{place}: an endless source of a virtual dataset", remedy="map its own sources")
            members = [(segment.frames.values(segment.count or 0), self._open(segment)) for segment in segments]
        finally:
            self._joining.discard(place)
        return JoinedFrames(members, f"{place}", virtual.shape[:-2])

    def look_again(self, segment: Segment) -> None:
        """See what the writers of a segment have flushed, if its files are open already.

        Raises
        ------
        UnusableInput
            When one was replaced by another file.
        """
        if segment in self._opened:
            self._opened[segment].refresh()

    def let_go_of_unfinished(self, segment: Segment) -> bool:
        """Close those of a segment's files whose writers may just be about to open them again; say if there are any.

        They are closed as far as they say, lack frames, and have just been changed. Many writers make a file, close it,
        and open it again, and a handle from in between would never see its frames.
        """
        count = segment.count
        short = set() if count is None else self.dataset(segment).closed_but_short(count)
        unfinished = {file for file in short if not settled(file)}
        for file in unfinished:
            self._let_go(file)
        return bool(unfinished)

    def _let_go(self, file: Path) -> None:
        def elsewhere(frames: FrameDataset) -> bool:
            return all(holder.file != file for holder in frames.holders)

        self._sources = {place: frames for place, frames in self._sources.items() if elsewhere(frames)}
        self._opened = {segment: frames for segment, frames in self._opened.items() if elsewhere(frames)}
        self._library.let_go(file)

    def chunk(self, segment: Segment, index: int, memory: ChunkMemory) -> memoryview | None:
        """Return the `index`-th frame of a segment as it is stored, if it is stored so (`FrameDataset.chunk`).

        Raises
        ------
        FrameUnreadable
            As `read` does.
        """
        return self._dataset_soon(segment).chunk(segment.positions.at(index), memory)

    def place(self, segment: Segment, index: int) -> str:
        """Return where the `index`-th frame of a segment lies, for messages."""
        return self.dataset(segment).place_of(segment.positions.at(index))

    def read(self, segment: Segment, index: int) -> NDArray[Any] | None:
        """Return the `index`-th frame of a segment; None when nobody wrote it, as far as can be told.

        Raises
        ------
        FrameUnreadable
            Also when the segment's file can't be opened on this rank.
        """
        return self._dataset_soon(segment).read(segment.positions.at(index))

    def digest(self, segment: Segment, index: int) -> bytes | None:
        """Return the digest of the `index`-th frame of a segment (`FrameDataset.digest`).

        Raises
        ------
        FrameUnreadable
            As `read` does.
        """
        return self._dataset_soon(segment).digest(segment.positions.at(index))

    def _dataset_soon(self, segment: Segment) -> FrameDataset:
        """Return the segment's dataset; where this node doesn't see the file yet, wait for it, once."""
        give_up = self._give_up_at.setdefault(segment.file, time.monotonic() + VISIBLE_WITHIN_S)
        while True:
            try:
                return self.dataset(segment)
            except NotThereYet as error:
                if time.monotonic() > give_up:
                    raise FrameUnreadable(f"{segment}: {error}") from error
            time.sleep(RETRY_S)
