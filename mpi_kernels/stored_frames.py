"""The frames of one real dataset, as this rank reads them.

Where HDF5's filters can be undone here, stored chunks are read directly and decoded outside HDF5 (`decode`), whether
they hold one frame, several, or parts of them; everything else goes through HDF5's own pipeline. A frame is read only
if its chunks are in the file, because HDF5 returns fill values for chunks that nobody has written.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np
from numpy.typing import NDArray

from mpi_kernels.chunk_memory import ChunkMemory
from mpi_kernels.decode import Pipeline
from mpi_kernels.errors import FrameUnreadable, UnusableInput
from mpi_kernels.frame_dataset import FrameDataset, Holder
from mpi_kernels.frame_digests import Digest, digest_of, digest_of_values
from mpi_kernels.frame_numbers import ALL
from mpi_kernels.hdf5_files import identity
from mpi_kernels.witness import Offset, Witness

VISIBLE_WITHIN_S = 2.0
"""A frame that rank 0 has seen must be visible to every rank within this time."""
RETRY_S = 0.005


_MOST_OVERHEAD, _HEADERS = 64, 4096
"""What can't be compressed takes a little more than it is: LZ4 adds 1 byte to 255, bitshuffle 4 bytes to a block."""


Stored = TypeVar("Stored", bytes, memoryview)


class _MaybeUnfiltered(Exception):
    """HDF5 alone knows whether a chunk at the edge has been through its filters (``H5Pset_chunk_opts``)."""


class StoredFrames(FrameDataset):
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
        self._live = live
        self._id = dataset.id
        self._dataset = dataset
        self._file, self._file_identity = file, _identity(file)
        self.holders = (Holder(file, dataset.name, ALL),)
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
        self.frame_shape = self._id.shape[-2:]
        self.dtype = self._id.dtype
        self.chunks = dataset.chunks
        self._lead: tuple[int, ...] = self._id.shape[:-2]
        self._pipeline = None if self.chunks is None else Pipeline.of(dataset)
        if self._pipeline is not None:
            self._pipeline.check_available(self.place)
        self.direct = self._pipeline is not None and self._pipeline.decodable
        self._chunk_is_frame = self.chunks == (*(1,) * len(self._lead), *self.frame_shape)
        self.fusable = self._chunk_is_frame and self._pipeline is not None and self._pipeline.fusable
        frame_bytes = math.prod(self.frame_shape) * self.dtype.itemsize
        self._largest_chunk = frame_bytes + frame_bytes // _MOST_OVERHEAD + _HEADERS
        early = self._id.get_create_plist().get_alloc_time() == h5py.h5d.ALLOC_TIME_EARLY
        self.allocated_as_written = self.chunks is not None and not early
        self._fill = dataset.fillvalue
        self._any_chunk = False
        self._box: tuple[Offset, NDArray[Any]] | None = None
        """The frames that shared a chunk with the last one read, shape ``(…, y, x)``, and where they begin."""
        self._consumed: Digest | None = None
        """Of the stored bytes since the last frame was begun; None where HDF5 has read them."""
        self._digest: tuple[int, bytes] | None = None
        """Position and digest of the frame that was read last."""
        self._witness: Witness | None = None
        if self.chunks is not None:
            read = self._stored_content if self.direct else self._sliced_content
            self._witness = Witness(self._id, self.place, file, read, as_stored=self.direct)

    @property
    def live(self) -> bool:
        return self._live

    @property
    def route(self) -> str:
        through = ", through MPI-IO" if self._dataset.file.driver == "mpio" else ""
        if self._pipeline is None:
            return f"HDF5 pipeline (not chunked){through}"
        how = "direct chunk read" if self.direct else "HDF5 pipeline"
        shape = "" if self._chunk_is_frame else f", chunks {self.chunks}"
        return f"{how} ({self._pipeline.label}{shape}){through}"

    @property
    def frames_per_chunk(self) -> int:
        return 1 if self.chunks is None else math.prod(self.chunks[:-2])

    @property
    def extent(self) -> int:
        return math.prod(self._lead)

    @property
    def scan_shape(self) -> tuple[int, ...]:
        return self._lead

    def place_of(self, position: int) -> str:
        return f"{self.place}[{position}]"

    def closed_but_short(self, count: int) -> set[Path]:
        return set() if self.live or self.holds(count) else {self._file}

    def refresh(self) -> None:
        self._check_not_replaced()
        if not self.live:
            return
        self._box = self._digest = None  # the writer may have added frames to its chunks
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

    def _check_not_replaced(self) -> None:
        now = _identity(self._file)
        if now is not None and self._file_identity not in {None, now}:
            raise UnusableInput(
                f"{self._file}: replaced by another file while it was read",
                remedy="the frames so far are those of the first one; process the new one by itself",
            )

    @property
    def stored_frames(self) -> int:
        if self.chunks is None or not self.allocated_as_written:
            return self.extent
        tiles = math.prod(-(-size // length) for size, length in zip(self.frame_shape, self.chunks[-2:], strict=True))
        stored: int = self._id.get_num_chunks() * self.frames_per_chunk // tiles
        return stored

    def has(self, position: int) -> bool:
        if position >= self.extent:
            return False
        if not self.allocated_as_written:
            return True
        if not self._any_chunk:  # HDF5 answers nonsense about chunks before there is one
            self._any_chunk = self._id.get_num_chunks() > 0
        return self._any_chunk and all(self._has_chunk(offset) for offset in self._chunk_offsets(position))

    def has_later_chunk(self, position: int) -> bool:
        later = self._frame_after_chunk(position)
        return later is not None and self.has(later)

    def chunk(self, position: int, memory: ChunkMemory) -> memoryview | None:
        if not self.fusable:
            return None
        try:
            mask, raw = self._chunk_of(position, partial(self._read_into, memory))
        except FrameUnreadable as error:
            raise FrameUnreadable(f"{self.place_of(position)}: {error}") from error
        if mask:
            return None
        self._digest = (position, digest_of([raw]))
        return raw

    def _chunk_of(self, position: int, read: Callable[[Offset], tuple[int, Stored]]) -> tuple[int, Stored]:
        """Return a frame's chunk, its mask and bytes; whether it is there is looked up only when it seems not to be."""
        if position >= self.extent or not self._any_chunk:
            self._wait_for(position)
        offset = (*self._coordinates(position), 0, 0)
        try:
            mask, raw = read(offset)
        except FrameUnreadable:
            self._wait_for(position)
            mask, raw = read(offset)
        if self._witness is not None:
            self._witness.check(offset, raw, first_is_there=lambda: self.has(0))
        return mask, raw

    def _read_into(self, memory: ChunkMemory, offset: Offset) -> tuple[int, memoryview]:
        try:
            mask, raw = self._id.read_direct_chunk(offset, out=memory.next(self._largest_chunk))
        except (OSError, RuntimeError, MemoryError, ValueError) as error:
            raise FrameUnreadable(str(error)) from error
        return mask, raw

    def read(self, position: int) -> NDArray[Any] | None:
        self._digest, self._consumed = None, Digest() if self.direct and self._has_own_chunks else None
        try:
            if self._chunk_is_frame and self.direct:
                assert self._pipeline is not None  # noqa: S101  direct says so
                mask, raw = self._chunk_of(position, self._stored_unseen)
                return self._pipeline.decode(raw, mask).reshape(self.frame_shape)
            self._wait_for(position)
            frame = self._frame(self._coordinates(position))
            if self.frames_per_chunk > 1 and self._is_fill(frame):
                return None
            self._digest = (position, self._digest_of(position, frame))
        except FrameUnreadable as error:
            raise FrameUnreadable(f"{self.place_of(position)}: {error}") from error
        return frame

    def digest(self, position: int) -> bytes | None:
        if self._digest is not None and self._digest[0] == position:
            return self._digest[1]
        if self._has_own_chunks:
            return self._digest_of_chunks(position)
        self.read(position)
        return None if self._digest is None else self._digest[1]

    # -------------------------------------------------------------------------------------------------------- digests

    @property
    def _has_own_chunks(self) -> bool:
        return self.chunks is not None and self.frames_per_chunk == 1

    def _digest_of(self, position: int, frame: NDArray[Any]) -> bytes:
        """Return the digest of the frame that has just been read."""
        if not self._has_own_chunks:
            return digest_of_values(frame)
        return self._digest_of_chunks(position) if self._consumed is None else self._consumed.digest()

    def _digest_of_chunks(self, position: int) -> bytes:
        return digest_of(self._stored_content(offset) for offset in self._chunk_offsets(position))

    # -------------------------------------------------------------------------------------------------------- reading

    def _frame(self, coordinates: Offset) -> NDArray[Any]:
        if self.frames_per_chunk == 1:
            frames = self._read_box(coordinates)
            return frames.reshape(self.frame_shape)
        assert self.chunks is not None  # noqa: S101  frames share them
        start = tuple(index // length * length for index, length in zip(coordinates, self.chunks, strict=False))
        if self._box is None or self._box[0] != start:
            self._box = None  # its memory isn't held while the next is read
            self._box = (start, self._read_box(start))
        frame: NDArray[Any] = self._box[1][tuple(np.subtract(coordinates, start))]
        return frame

    def _read_box(self, start: Offset) -> NDArray[Any]:
        """Return all frames of the chunks whose first frame is `start`, shape ``(…, y, x)``."""
        if not self.direct:
            return self._sliced(start)
        try:
            return self._decoded_box(start)
        except _MaybeUnfiltered:
            self._consumed = None
            return self._sliced_unseen(start)

    def _decoded_box(self, start: Offset) -> NDArray[Any]:
        assert self.chunks is not None  # noqa: S101  direct says so
        if self.chunks[-2:] == self.frame_shape:
            return self._decoded((*start, 0, 0))
        frames = np.empty((*self.chunks[:-2], *self.frame_shape), self.dtype)
        for top, left in self._tiles():
            tile = self._decoded((*start, top, left))
            place = frames[..., top : top + tile.shape[-2], left : left + tile.shape[-1]]
            place[...] = tile[..., : place.shape[-2], : place.shape[-1]]  # chunks reach over the edge
        return frames

    def _decoded(self, offset: Offset) -> NDArray[Any]:
        assert self._pipeline is not None  # noqa: S101  direct says so
        mask, raw = self._stored(offset)
        if self._pipeline.may_be_unfiltered(raw, mask) and self._reaches_over_edge(offset):
            raise _MaybeUnfiltered
        return self._pipeline.decode(raw, mask)

    def _reaches_over_edge(self, offset: Offset) -> bool:
        assert self.chunks is not None  # noqa: S101
        shape = (*self._lead, *self.frame_shape)
        return any(start + length > size for start, length, size in zip(offset, self.chunks, shape, strict=True))

    def _stored(self, offset: Offset) -> tuple[int, bytes]:
        mask, raw = self._stored_unseen(offset)
        if self._consumed is not None:
            self._consumed.update(raw)
        if self._witness is not None:
            self._witness.check(offset, raw, first_is_there=lambda: self.has(0))
        return mask, raw

    def _stored_unseen(self, offset: Offset) -> tuple[int, bytes]:
        try:
            mask, raw = self._id.read_direct_chunk(offset)
        except (OSError, RuntimeError, MemoryError) as error:
            raise FrameUnreadable(str(error)) from error
        return mask, raw

    def _stored_content(self, offset: Offset) -> bytes:
        return self._stored_unseen(offset)[1]

    def _sliced(self, start: Offset) -> NDArray[Any]:
        frames = self._sliced_unseen(start)
        if self._witness is not None:
            self._witness.check((*start, 0, 0), frames.tobytes(), first_is_there=lambda: self.has(0))
        return frames

    def _sliced_unseen(self, start: Offset) -> NDArray[Any]:
        lengths = self.chunks or (1,) * len(start)
        box = tuple(slice(index, index + length) for index, length in zip(start, lengths, strict=False))
        try:
            return np.asarray(self._dataset[box])
        except (OSError, RuntimeError) as error:
            raise FrameUnreadable(str(error)) from error

    def _sliced_content(self, offset: Offset) -> bytes:
        return self._sliced_unseen(offset[:-2]).tobytes()

    def _is_fill(self, frame: NDArray[Any]) -> bool:
        if self.dtype.kind == "f" and np.isnan(self._fill):
            return bool(np.isnan(frame).all())
        return bool((frame == self._fill).all())

    # --------------------------------------------------------------------------------------------------- what is there

    def _wait_for(self, position: int) -> None:
        give_up = time.monotonic() + VISIBLE_WITHIN_S
        while not self.has(position):
            if not self.live or time.monotonic() > give_up:
                raise FrameUnreadable("no data in the file")
            time.sleep(RETRY_S)
            self.refresh()

    def _coordinates(self, position: int) -> Offset:
        if len(self._lead) == 1:
            return (position,)
        return tuple(int(index) for index in np.unravel_index(position, self._lead)) if self._lead else ()

    def _frame_after_chunk(self, position: int) -> int | None:
        """Return the first frame that begins a chunk and comes after all that share this one's, in C order."""
        assert self.chunks is not None  # noqa: S101  frames share them
        coordinates, lengths = self._coordinates(position), self.chunks[: len(self._lead)]
        deep = next((axis for axis, length in enumerate(lengths) if length > 1), len(lengths) - 1)
        for axis in range(deep, -1, -1):
            index = (coordinates[axis] // lengths[axis] + 1) * lengths[axis]
            if index < self._lead[axis]:
                return int(
                    np.ravel_multi_index((*coordinates[:axis], index, *[0] * (len(lengths) - axis - 1)), self._lead)
                )
        return None

    def _tiles(self) -> Iterator[tuple[int, int]]:
        """Give where chunks begin in a frame."""
        assert self.chunks is not None  # noqa: S101
        rows, columns = (
            range(0, size, length) for size, length in zip(self.frame_shape, self.chunks[-2:], strict=True)
        )
        return itertools.product(rows, columns)

    def _chunk_offsets(self, position: int) -> Iterator[Offset]:
        assert self.chunks is not None  # noqa: S101
        pairs = zip(self._coordinates(position), self.chunks, strict=False)
        start = tuple(index // length * length for index, length in pairs)
        return ((*start, top, left) for top, left in self._tiles())

    def _has_chunk(self, offset: Offset) -> bool:
        # Asking into a buffer of no bytes looks the chunk up and reads nothing: ValueError says how large it is.
        try:
            self._id.read_direct_chunk(offset, out=bytearray(0))
        except ValueError:
            return True
        except RuntimeError:
            return False
        return True


def _identity(file: Path) -> tuple[int, int] | None:
    """Return what tells a file from others; None when it isn't at its place: deleted or moved, it can be read on."""
    try:
        return identity(file)
    except OSError:
        return None
