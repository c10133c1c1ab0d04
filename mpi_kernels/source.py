"""HDF5 in: the frames of one real dataset, as this rank reads them.

Where one chunk is exactly one frame and its compression is known, the stored bytes are read directly and decoded
outside HDF5 (`decode`); everything else goes through HDF5's own pipeline. A frame is read only if its chunk is in the
file, because HDF5 returns fill values for chunks that nobody has written.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mpi_kernels.decode import Pipeline
from mpi_kernels.errors import FrameUnreadable, KernelError, NotThereYet, UnusableInput
from mpi_kernels.hdf5_files import Library
from mpi_kernels.segments import Segment

VISIBLE_WITHIN_S = 2.0
"""A frame that rank 0 has seen must be visible to every rank within this time."""
RETRY_S = 0.005
"""Between two looks for what must become visible."""


class FrameDataset:
    """A dataset ``(…, y, x)`` of frames, counted in C order over its leading dimensions.

    Parameters
    ----------
    dataset
        The process's one handle of a real (not virtual) dataset.
    live
        Whether its file was opened in SWMR mode.
    """

    def __init__(self, dataset: h5py.Dataset, file: Path, *, live: bool) -> None:
        self.place = f"{file}::{dataset.name}"
        self.live = live
        self._id = dataset.id
        self._dataset = dataset
        self._file = file
        if len(self._id.shape) < 2 or self._id.dtype.kind not in "uif":
            raise UnusableInput(
                f"{self.place}: shape {self._id.shape} of {self._id.dtype}, but frames need (…, y, x) of numbers",
                remedy="give the dataset of the detector's frames",
            )
        if dataset.external:
            raise UnusableInput(
                f"{self.place}: its values are stored outside HDF5, in {dataset.external[0][0]}",
                remedy="give a dataset whose frames are stored in HDF5 files; any file could be read this way",
            )
        self.frame_shape: tuple[int, int] = self._id.shape[-2:]
        self.dtype: np.dtype[np.generic] = self._id.dtype
        self.chunks: tuple[int, ...] | None = dataset.chunks
        self._lead: tuple[int, ...] = self._id.shape[:-2]
        self._pipeline = None if self.chunks is None else Pipeline.of(dataset)
        if self._pipeline is not None:
            self._pipeline.check_available(self.place)
        self.direct = self._pipeline is not None and self._pipeline.decodable and self._one_frame_per_chunk()
        self.fusable = self.direct and self._pipeline is not None and self._pipeline.fusable
        """Whether kernels may take the stored chunks themselves (`chunk`)."""
        early = self._id.get_create_plist().get_alloc_time() == h5py.h5d.ALLOC_TIME_EARLY
        self.allocated_as_written = self.chunks is not None and not early
        """Whether the file gains storage frame by frame, so that storage tells which frames were written."""
        self._any_chunk = False
        self._first: bytes | None = None
        self._first_unreadable = False
        self._last: tuple[int, bytes | None] = (-1, None)

    @property
    def route(self) -> str:
        """How frames are read, for the result's process note."""
        if self._pipeline is None:
            return "HDF5 pipeline (not chunked)"
        if self.direct:
            return f"direct chunk read ({self._pipeline.label})"
        return f"HDF5 pipeline ({self._pipeline.label}, chunks {self.chunks})"

    @property
    def frames_per_chunk(self) -> int:
        """Frames that share one chunk; 1 when not chunked."""
        return 1 if self.chunks is None else math.prod(self.chunks[:-2])

    @property
    def extent(self) -> int:
        """Frames the present shape has room for; not all need to be written."""
        return math.prod(self._lead)

    @property
    def scan_shape(self) -> tuple[int, ...]:
        """The leading dimensions."""
        return self._lead

    def refresh(self) -> None:
        """See what the writer has flushed. Nothing to do for finished files."""
        if not self.live:
            return
        try:
            self._dataset.refresh()  # the handle's, so that h5py forgets the shape as well
        except (OSError, RuntimeError) as error:
            raise UnusableInput(
                f"{self.place}: can't be read any more: {error}", remedy="see whether the file was damaged or replaced"
            ) from error
        lead = self._id.shape[:-2]
        for axis in range(1, len(lead)):
            if lead[axis] != self._lead[axis] and math.prod(self._lead[:axis]) > 1:
                raise UnusableInput(
                    f"{self.place}: scan shape changed from {self._lead} to {lead}, which renumbers frames",
                    remedy="process the file again when it is finished",
                )
        self._lead = lead

    def holds(self, count: int) -> bool:
        """Whether as many frames are in the file, wherever they lie; quick, however many they are."""
        return self.extent >= count <= self.stored_frames

    @property
    def stored_frames(self) -> int:
        """An upper bound of how many frames are in the file, by the number of its chunks."""
        if self.chunks is None or not self.allocated_as_written:
            return self.extent
        tiles = math.prod(-(-size // length) for size, length in zip(self.frame_shape, self.chunks[-2:], strict=True))
        stored: int = self._id.get_num_chunks() * self.frames_per_chunk // tiles
        return stored

    def has(self, position: int) -> bool:
        """Whether every chunk of a frame is in the file."""
        if position >= self.extent:
            return False
        if not self.allocated_as_written:
            return True
        if not self._any_chunk:  # HDF5 answers nonsense about chunks before there is one
            self._any_chunk = self._id.get_num_chunks() > 0
        return self._any_chunk and all(self._has_chunk(offset) for offset in self._chunk_offsets(position))

    def chunk(self, position: int) -> bytes | None:
        """Return one frame as it is stored: one chunk of bitshuffle-LZ4; None if this one isn't stored so.

        Raises
        ------
        FrameUnreadable
            When it isn't in the file.
        """
        if not self.fusable:
            return None
        self._wait_for(position)
        mask, raw = self._stored(position)
        self._check_is_own(position, raw)
        return None if mask else raw

    def read(self, position: int) -> NDArray[Any] | None:
        """Return one frame, shape ``(y, x)``, possibly read-only.

        None for a frame of nothing but fill values that shares its chunk with others: nobody wrote it, as far as can
        be told.

        Raises
        ------
        FrameUnreadable
            When it isn't in the file or can't be decoded.
        """
        self._wait_for(position)
        frame = self._read_direct(position) if self.direct else self._read_sliced(position)
        if self.frames_per_chunk > 1 and np.all(frame == self._dataset.fillvalue):
            return None
        return frame

    def _read_direct(self, position: int) -> NDArray[Any]:
        assert self._pipeline is not None  # noqa: S101  direct says so
        mask, raw = self._stored(position)
        self._check_is_own(position, raw)
        try:
            return self._pipeline.decode(raw, mask).reshape(self.frame_shape)
        except FrameUnreadable as error:
            raise FrameUnreadable(f"{self.place}[{position}]: {error}") from error

    def _read_sliced(self, position: int) -> NDArray[Any]:
        frame = self._sliced(position)
        self._check_is_own(position, frame.tobytes())
        return frame

    def _stored(self, position: int) -> tuple[int, bytes]:
        try:
            mask, raw = self._id.read_direct_chunk((*self._coordinates(position), 0, 0))
        except (OSError, RuntimeError, MemoryError) as error:
            raise FrameUnreadable(f"{self.place}[{position}]: {error}") from error
        return mask, raw

    def _sliced(self, position: int) -> NDArray[Any]:
        try:
            return np.asarray(self._dataset[self._coordinates(position)])
        except (OSError, RuntimeError) as error:
            raise FrameUnreadable(f"{self.place}[{position}]: {error}") from error

    def _check_is_own(self, position: int, content: bytes) -> None:
        """Make sure that HDF5 hasn't returned another frame: the first one, or the one read before.

        `hdf5_files` keeps HDF5 from doing that; here it is noticed if it happens all the same.

        Raises
        ------
        KernelError
            When two frames are equal and the file doesn't have them twice; it ends the run.
        """
        if self.chunks is None:
            return
        if self._first is None and not self._first_unreadable and self.has(0):
            self._read_first()
        for other, known in ((0, self._first), self._last):
            if other != position and known == content and not self._has_both(position, other, content):
                raise KernelError(
                    f"{self.place}: HDF5 returned frame {other} for frame {position}",
                    remedy="no result of this run can be trusted; report it with the file (h5py issue 2803)",
                )
        self._last = (position, content)

    def _read_first(self) -> None:
        try:
            self._first = self._stored(0)[1] if self.direct else self._sliced(0).tobytes()
        except FrameUnreadable:  # then no other frame can be taken for it
            self._first_unreadable = True

    def _has_both(self, position: int, other: int, content: bytes) -> bool:
        """Whether the file holds two equal frames in different places."""
        own, its = (next(iter(self._chunk_offsets(item))) for item in (position, other))
        if own == its:
            return True
        place, its_place = (self._id.get_chunk_info_by_coord(offset) for offset in (own, its))
        if place.byte_offset is None or place.byte_offset == its_place.byte_offset:
            return False
        return not self.direct or _bytes_at(self._file, place) == content

    def _wait_for(self, position: int) -> None:
        give_up = time.monotonic() + VISIBLE_WITHIN_S
        while not self.has(position):
            if not self.live or time.monotonic() > give_up:
                raise FrameUnreadable(f"{self.place}[{position}]: no data in the file")
            time.sleep(RETRY_S)
            self.refresh()

    def _coordinates(self, position: int) -> tuple[int, ...]:
        return tuple(int(index) for index in np.unravel_index(position, self._lead)) if self._lead else ()

    def _one_frame_per_chunk(self) -> bool:
        return self.frames_per_chunk == 1 and self.chunks is not None and self.chunks[-2:] == self.frame_shape

    def _chunk_offsets(self, position: int) -> itertools.product[tuple[int, ...]]:
        assert self.chunks is not None  # noqa: S101
        pairs = zip(self._coordinates(position), self.chunks, strict=False)
        lead = [(index // length * length,) for index, length in pairs]
        tiles = [range(0, size, length) for size, length in zip(self.frame_shape, self.chunks[-2:], strict=True)]
        return itertools.product(*lead, *tiles)

    def _has_chunk(self, offset: tuple[int, ...]) -> bool:
        # Asking into a buffer of no bytes looks the chunk up and reads nothing: ValueError says how large it is.
        try:
            self._id.read_direct_chunk(offset, out=bytearray(0))
        except ValueError:
            return True
        except RuntimeError:
            return False
        return True


class FrameSource:
    """The frames of all segments, as one rank reads them."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._opened: dict[tuple[Path, str], FrameDataset] = {}
        self._give_up_at: dict[Path, float] = {}

    def dataset(self, segment: Segment) -> FrameDataset:
        """Return the segment's dataset; open it when this is the first time.

        Raises
        ------
        NotThereYet
            When its file hasn't appeared.
        """
        key = (segment.file, segment.dataset)
        if key not in self._opened:
            dataset = self._library.dataset(segment.file, segment.dataset)
            place = self._library.locate(segment.file, segment.dataset)
            frames = FrameDataset(dataset, place.file, live=self._library.is_live(place.file))
            first = next(iter(self._opened.values()), frames)
            if segment.frame_shape not in {None, frames.frame_shape}:
                raise UnusableInput(
                    f"{frames.place}: frames {frames.frame_shape}, of which the virtual dataset takes a part "
                    f"{segment.frame_shape}",
                    remedy="give the source itself; parts are cut out with a mask",
                )
            if (frames.frame_shape, frames.dtype) != (first.frame_shape, first.dtype):
                raise UnusableInput(
                    f"{frames.place}: frames {frames.frame_shape} of {frames.dtype}, but {first.place} has "
                    f"{first.frame_shape} of {first.dtype}",
                    remedy="process them separately",
                )
            self._opened[key] = frames
        return self._opened[key]

    def look_again(self, segment: Segment) -> None:
        """See what the writer of a segment has flushed, if its file is open already."""
        if (segment.file, segment.dataset) in self._opened:
            self._opened[segment.file, segment.dataset].refresh()

    def let_go(self, segment: Segment) -> None:
        """Close a segment's file, to be opened anew when somebody asks for it again."""
        self._opened = {key: frames for key, frames in self._opened.items() if key[0] != segment.file}
        self._library.let_go(segment.file)

    def chunk(self, segment: Segment, index: int) -> bytes | None:
        """Return the `index`-th frame of a segment as it is stored, if it is one chunk of bitshuffle-LZ4.

        Raises
        ------
        FrameUnreadable
            As `read` does.
        """
        return self._dataset_soon(segment).chunk(segment.positions.at(index))

    def place(self, segment: Segment, index: int) -> str:
        """Return where the `index`-th frame of a segment lies, for messages."""
        return f"{self.dataset(segment).place}[{segment.positions.at(index)}]"

    def read(self, segment: Segment, index: int) -> NDArray[Any] | None:
        """Return the `index`-th frame of a segment; None when nobody wrote it, as far as can be told.

        Raises
        ------
        FrameUnreadable
            Also when the segment's file can't be opened on this rank.
        """
        return self._dataset_soon(segment).read(segment.positions.at(index))

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


def _bytes_at(file: Path, chunk: h5py.h5d.StoreInfo) -> bytes:
    with file.open("rb") as stream:
        return os.pread(stream.fileno(), chunk.size, chunk.byte_offset)
