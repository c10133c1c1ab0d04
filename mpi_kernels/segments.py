"""Where the frames of a dataset really lie: the dataset itself, behind links, or in the sources of a virtual dataset.

A frame's *number* counts the frames of the dataset that was asked for, in C order over all leading dimensions. A
`Segment` maps a run of such numbers onto positions in one real dataset. Virtual datasets are never read, only their
mappings (see `hdf5_files` for why).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import h5py
import numpy as np
from numpy.typing import NDArray

from mpi_kernels.errors import NotThereYet, UnusableInput
from mpi_kernels.hdf5_files import Library, Mapping, WriterState, external_file, writer_state

_UNLIMITED = h5py.h5s.UNLIMITED
_SERIES_NAME = re.compile(r"^data_\d{6}$")


@dataclass(frozen=True)
class Progression:
    """Whole numbers in blocks: `block` neighbours every `stride`; endless when `count` is None."""

    start: int = 0
    stride: int = 1
    block: int = 1
    count: int | None = None

    def at(self, index: int) -> int:
        """Return the number at `index`."""
        step, rest = divmod(index, self.block)
        return self.start + step * self.stride + rest

    def count_below(self, limit: int) -> int:
        """Return how many of the numbers are below `limit`."""
        if limit <= self.start:
            return 0
        steps, rest = divmod(limit - self.start, self.stride)
        found = steps * self.block + min(rest, self.block)
        return found if self.count is None else min(found, self.count)


@dataclass(frozen=True, eq=False)
class Listed:
    """Whole numbers one by one."""

    values: NDArray[np.int64]

    @property
    def count(self) -> int:
        return len(self.values)

    def at(self, index: int) -> int:
        """Return the number at `index`."""
        return int(self.values[index])

    def count_below(self, limit: int) -> int:  # noqa: ARG002  in any order: which ones is for the caller to see
        """Return an upper bound of how many of the numbers can be below `limit`."""
        return len(self.values)


Numbers: TypeAlias = Progression | Listed


@dataclass(frozen=True)
class Segment:
    """Frames that lie in one real dataset: the `k`-th is frame `frames.at(k)` and lies at `positions.at(k)`."""

    file: Path
    dataset: str
    frames: Numbers = Progression()
    positions: Numbers = Progression()
    frame_shape: tuple[int, int] | None = None
    """What the virtual dataset says; None when the dataset speaks for itself."""

    @property
    def count(self) -> int | None:
        """Number of frames mapped; None when the dataset may grow without end."""
        counts = [item.count for item in (self.frames, self.positions) if item.count is not None]
        return min(counts) if counts else None

    def __str__(self) -> str:
        return f"{self.file}::{self.dataset}"


class Layout:
    """All segments of the dataset that was asked for; a series of data files gains segments while it is written."""

    def __init__(self, library: Library, file: Path, dataset: str) -> None:
        self._library = library
        self._series: tuple[Path, str] | None = None
        self._names: list[str] = []  # listed once: nobody can add links to a file that is open here
        self.virtual_shape: tuple[int, ...] | None = None
        """Shape of the virtual dataset, None if the frames lie elsewhere."""
        place = library.locate(file, dataset)
        if library.group(place) is not None:
            self._series = (place.file, place.path)
            self.segments: list[Segment] = []
            self._names = self._series_names()
            if not self._names:
                raise UnusableInput(
                    f"{place}: a group without data_000001, data_000002, …", remedy="give the dataset of the frames"
                )
        elif (mappings := library.mappings(place)) is not None:
            self.segments = [_segment(mapping, place.file, f"{place}") for mapping in mappings]
            self.virtual_shape = mappings[0].virtual.shape if mappings else None
        else:
            self.segments = [Segment(place.file, place.path)]

    def is_complete(self, number: int) -> bool:
        """Whether a segment is known to have all its frames: the one after it has begun."""
        return self._series is not None and number < len(self.segments) - 1

    @property
    def open_ended(self) -> bool:
        """Whether data files that the master names are still missing."""
        return len(self.segments) < len(self._names)

    def extend(self) -> None:
        """Add the segments of a series whose files have appeared (DECTRIS masters: ``data_000001``, …).

        A file's first frame number is known when the file before it is complete.
        """
        while self.open_ended:
            group, name = self._series, self._names[len(self.segments)]
            assert group is not None  # noqa: S101  open_ended says so
            try:
                start = self._frames_so_far()
                place = self._library.locate(group[0], f"{group[1]}/{name}")
            except NotThereYet:
                return
            self.segments.append(Segment(place.file, place.path, frames=Progression(start)))

    def _series_names(self) -> list[str]:
        assert self._series is not None  # noqa: S101
        opened = self._library.file(self._series[0])
        return sorted(name for name in opened[self._series[1]] if _SERIES_NAME.match(name))

    def _frames_so_far(self) -> int:
        if not self.segments:
            return 0
        last = self.segments[-1]
        if writer_state(last.file) is not WriterState.CLOSED:
            raise NotThereYet(f"{last.file}: not complete yet")
        dataset = self._library.dataset(last.file, last.dataset)
        if self._library.is_live(last.file):
            dataset.refresh()
        return last.frames.at(int(np.prod(dataset.id.shape[:-2])))


def _segment(mapping: Mapping, file: Path, place: str) -> Segment:
    if "%" in mapping.file_name:
        raise UnusableInput(
            f"{place}: a virtual dataset over numbered files ({mapping.file_name})",
            remedy="give the data files one by one, or a virtual dataset that lists its files",
        )
    source = file if mapping.file_name == "." else external_file(file, mapping.file_name)
    frame_shape: tuple[int, int] = mapping.virtual.shape[-2:]
    frames = _leading_numbers(mapping.virtual, frame_shape, place)
    positions = _source_numbers(mapping.source, frame_shape, f"{source}::{mapping.dataset_name}")
    return Segment(source, mapping.dataset_name, frames, positions, frame_shape)


def _source_numbers(space: h5py.h5s.SpaceID, frame_shape: tuple[int, int], place: str) -> Numbers:
    """Return which frames a mapping takes from its source; HDF5 doesn't keep the source's shape, only the selection."""
    if space.get_select_type() == h5py.h5s.SEL_ALL:
        return Progression()
    if len(space.shape) > 3:
        raise UnusableInput(
            f"{place}: a part of a source with {len(space.shape) - 2} scan dimensions", remedy="map the whole source"
        )
    return _leading_numbers(space, frame_shape, place)


def _leading_numbers(space: h5py.h5s.SpaceID, frame_shape: tuple[int, int], place: str) -> Numbers:
    """Return which frames a dataspace selects, counted in C order over its leading dimensions."""
    shape = space.shape
    if space.get_select_type() == h5py.h5s.SEL_ALL:
        return Progression(count=int(np.prod(shape[:-2])))
    if not space.is_regular_hyperslab():
        raise UnusableInput(f"{place}: an irregular mapping of a virtual dataset", remedy="map whole frames")
    start, stride, count, block = space.get_regular_hyperslab()
    for axis in (-2, -1):
        if start[axis] != 0 or count[axis] * block[axis] != frame_shape[axis]:
            raise UnusableInput(
                f"{place}: a mapping of parts of frames (rows {start[-2]}…, columns {start[-1]}…)",
                remedy="only sources that hold whole frames can be followed; process the modules singly",
            )
    lead = len(shape) - 2
    if lead == 1:
        many = None if count[0] == _UNLIMITED or block[0] == _UNLIMITED else count[0] * block[0]
        length = 1 if block[0] == _UNLIMITED else block[0]
        return Progression(start[0], 1 if block[0] == _UNLIMITED else stride[0], length, many)
    if _UNLIMITED in count[:lead] + block[:lead]:
        raise UnusableInput(f"{place}: an unlimited mapping with {lead} scan dimensions", remedy="map a fixed shape")
    return Listed(_grid_numbers(shape[:lead], start[:lead], stride[:lead], count[:lead], block[:lead]))


def _grid_numbers(
    shape: tuple[int, ...],
    start: tuple[int, ...],
    stride: tuple[int, ...],
    count: tuple[int, ...],
    block: tuple[int, ...],
) -> NDArray[np.int64]:
    axes = [
        (first + np.arange(many)[:, None] * step + np.arange(length)[None, :]).ravel()
        for first, step, many, length in zip(start, stride, count, block, strict=True)
    ]
    if not axes:
        return np.zeros(1, np.int64)
    return np.ravel_multi_index(np.ix_(*axes), shape).ravel().astype(np.int64)
