"""Where the frames of a dataset really lie: the dataset itself, behind links, or in the sources of a virtual dataset.

A frame's *number* counts the frames of the dataset that was asked for, in C order over all leading dimensions. A
`Segment` maps a run of such numbers onto positions in one real dataset. Virtual datasets are never read, only their
mappings (see `hdf5_files` for why).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpi_kernels.errors import NotThereYet, UnusableInput
from mpi_kernels.frame_numbers import ALL, Numbers, Progression
from mpi_kernels.hdf5_files import Library, Virtual, WriterState, writer_state
from mpi_kernels.mappings import MappedFrames, Tile, mapped_frames

_SERIES_NAME = re.compile(r"^data_\d{6}$")


@dataclass(frozen=True, eq=False)
class Assembly:
    """How frames are put together.

    Parameters
    ----------
    tiles
        The parts; a later one counts where two overlap.
    frame_shape, dtype
        Shape and type of the whole.
    fill
        What is in pixels that no tile has.
    """

    tiles: tuple[Tile, ...]
    frame_shape: tuple[int, int]
    dtype: np.dtype[np.generic]
    fill: np.generic


@dataclass(frozen=True, eq=False)
class Segment:
    """Frames that lie in the same place: the `k`-th is frame `frames.at(k)` of the dataset that was asked for.

    Parameters
    ----------
    file, dataset
        The real dataset that holds them; of several the first.
    frames
        Their numbers.
    positions
        Where they lie in the dataset; of assembled frames each tile says that for itself, and these just count.
    assembly
        How a virtual dataset puts them together; None: they are the dataset's own.
    """

    file: Path
    dataset: str
    frames: Numbers = ALL
    positions: Numbers = ALL
    assembly: Assembly | None = None

    @property
    def count(self) -> int | None:
        """Number of frames mapped; None when the dataset may grow without end."""
        counts = [item.count for item in (self.frames, self.positions) if item.count is not None]
        return min(counts) if counts else None

    @property
    def datasets(self) -> tuple[tuple[Path, str], ...]:
        """All real datasets that hold these frames: their files and paths."""
        if self.assembly is None:
            return ((self.file, self.dataset),)
        return tuple(dict.fromkeys((tile.file, tile.dataset) for tile in self.assembly.tiles))

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
        elif (virtual := library.virtual(place)) is not None:
            mapped = mapped_frames(virtual, place.file, f"{place}")
            self.segments = [_segment(item, virtual) for item in mapped]
            self.virtual_shape = virtual.shape
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


def _segment(mapped: MappedFrames, virtual: Virtual) -> Segment:
    first = mapped.tiles[0]
    height, width = virtual.shape[-2:]
    assembly = Assembly(mapped.tiles, (height, width), virtual.dtype, virtual.fill)
    return Segment(first.file, first.dataset, mapped.frames, assembly=assembly)
