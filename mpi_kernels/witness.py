"""Notices when HDF5 returns another frame than was asked for: the first one, or the one read before (h5py issue 2803).

`hdf5_files` keeps HDF5 from doing that; here it is noticed if it happens all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import h5py

from mpi_kernels.errors import FrameUnreadable, KernelError

Offset: TypeAlias = tuple[int, ...]
"""Where something begins in a dataset, an index along each dimension."""
Content: TypeAlias = bytes | memoryview
_PIECE = 1 << 14


class Witness:
    """Compares what is read of one chunked dataset.

    Parameters
    ----------
    dataset
        Its handle.
    place, file
        For errors, and to look into the file past HDF5.
    read
        Gives what begins at an offset, to be compared with what begins at others.
    as_stored
        Whether that is what stands in the file: one whole chunk.
    """

    def __init__(
        self, dataset: h5py.h5d.DatasetID, place: str, file: Path, read: Callable[[Offset], bytes], *, as_stored: bool
    ) -> None:
        self._id, self._place, self._file, self._read, self._as_stored = dataset, place, file, read, as_stored
        self._origin = (0,) * len(dataset.shape)
        self._chunks: Offset = dataset.get_create_plist().get_chunk()
        self._first: bytes | None = None
        self._first_unreadable = False
        self._last: tuple[Offset, Content | None] = (self._origin, None)

    def check(self, offset: Offset, content: Content, *, first_is_there: Callable[[], bool]) -> None:
        """Make sure that `content` is that of `offset`.

        Raises
        ------
        KernelError
            When two contents are equal and the file doesn't have them twice; it ends the run.
        """
        if self._first is None and not self._first_unreadable and first_is_there():
            self._read_first()
        for other, known in ((self._origin, self._first), self._last):
            if other != offset and _equal(known, content) and not self._has_both(offset, other, content):
                raise KernelError(
                    f"{self._place}: HDF5 returned what is at {other} for what is at {offset}",
                    remedy="no result of this run can be trusted; report it with the file (h5py issue 2803)",
                )
        self._last = (offset, content)

    def _read_first(self) -> None:
        try:
            self._first = self._read(self._origin)
        except FrameUnreadable:  # then nothing else can be taken for it
            self._first_unreadable = True

    def _has_both(self, offset: Offset, other: Offset, content: Content) -> bool:
        """Whether the file holds two equal contents in different places."""
        own, its = (self._chunk_of(item) for item in (offset, other))
        if own == its:
            return True
        place, its_place = (self._id.get_chunk_info_by_coord(item) for item in (own, its))
        if place.byte_offset is None or place.byte_offset == its_place.byte_offset:
            return False
        return not self._as_stored or self._stands_at(place, content)

    def _chunk_of(self, offset: Offset) -> Offset:
        return tuple(index // length * length for index, length in zip(offset, self._chunks, strict=True))

    def _stands_at(self, chunk: h5py.h5d.StoreInfo, content: Content) -> bool:
        if chunk.size != len(content):
            return False
        with self._file.open("rb") as stream:
            stream.seek(chunk.byte_offset)
            return all(stream.read(len(piece)) == piece for piece in _pieces(content))


def _equal(known: Content | None, content: Content) -> bool:
    if known is None or len(known) != len(content):
        return False
    return all(one == other for one, other in zip(_pieces(known), _pieces(content), strict=True))


def _pieces(content: Content) -> Iterator[bytes]:
    """Give it as bytes, which compare much faster than views, in pieces for which no fresh memory has to be cleared."""
    return (bytes(content[start : start + _PIECE]) for start in range(0, len(content), _PIECE))
