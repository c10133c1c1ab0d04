"""What a virtual dataset maps, as frames: which of them lie where, whole or put together from tiles. Opens no files.

Each mapping pairs two selections of equal size, in C order. Here the last two dimensions of both are taken apart into
rectangles, the leading ones into frame numbers; then frames that consist of the same tiles are brought together, so
that it doesn't matter whether a writer makes one mapping per module, per file, or per frame.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from mpi_kernels.errors import UnusableInput
from mpi_kernels.frame_numbers import (
    ALL,
    Axis,
    Coordinates,
    Endless,
    Integers,
    Numbers,
    Positions,
    Progression,
    listed,
    selected,
)
from mpi_kernels.hdf5_files import Mapping, Virtual, external_file

_UNLIMITED = h5py.h5s.UNLIMITED
_MOST_RUNS = 64
"""A mapping that cuts a frame's rows or columns into more pieces isn't one of detector modules."""


class Rectangle(NamedTuple):
    """A part of a frame, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """What selects it from a frame."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


@dataclass(frozen=True, eq=False)
class Tile:
    """A part of each of some frames, and the frames of a real dataset that hold it.

    `place` is the part of the frame, `origin` that of the dataset's frames; `is_all` says that these have no more.
    """

    file: Path
    dataset: str
    positions: Positions
    place: Rectangle
    origin: Rectangle
    is_all: bool


@dataclass(frozen=True, eq=False)
class MappedFrames:
    """Frames that consist of the same tiles; the `k`-th is `frames.at(k)`, and at the `k`-th position of each tile."""

    frames: Numbers
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class _Part:
    frames: Numbers
    tile: Tile

    @property
    def count(self) -> int | None:
        counts = [item.count for item in (self.frames, self.tile.positions) if item.count is not None]
        return min(counts) if counts else None


def mapped_frames(virtual: Virtual, file: Path, place: str) -> list[MappedFrames]:
    """Return the frames of a virtual dataset in `file`, lowest first; `place` is named in errors.

    Raises
    ------
    UnusableInput
        When the mappings aren't of whole frames or rectangular parts of them.
    """
    parts = [part for mapping in virtual.mappings for part in _parts(mapping, file, place)]
    endless = [part for part in parts if part.count is None]
    found = [*_bounded([part for part in parts if part.count is not None]), *_endless(endless)]
    if endless and len(found) > 1 and not _are_apart(found, virtual.shape[-2:]):
        raise UnusableInput(
            f"{place}: endless mappings of parts of frames that go on at different rates",
            remedy="map all modules in the same way",
        )
    return sorted(found, key=lambda item: item.frames.at(0))


# ------------------------------------------------------------------------------------------- a mapping to rectangles


def _parts(mapping: Mapping, file: Path, place: str) -> Iterator[_Part]:
    if "%" in mapping.file_name:
        raise UnusableInput(
            f"{place}: a virtual dataset over numbered files ({mapping.file_name})",
            remedy="give the data files one by one, or a virtual dataset that lists its files",
        )
    path = file if mapping.file_name == "." else external_file(file, mapping.file_name)
    whole = mapping.source.get_select_type() == h5py.h5s.SEL_ALL
    target = _axes(mapping.virtual, place)
    source = None if whole else _axes(mapping.source, place)
    try:
        frames = selected(target[:-2]).resolved(mapping.virtual.shape[:-2])
        positions = ALL if source is None else selected(source[:-2])
    except ValueError as error:
        raise UnusableInput(f"{place}: {error}", remedy="map whole rows of the scan") from error
    rows, columns = (
        _pieces(target[axis], None if source is None else source[axis], f"{place}, {path}::{mapping.dataset_name}")
        for axis in (-2, -1)
    )
    alone = len(rows) == len(columns) == 1
    for top, from_top, height in rows:
        for left, from_left, width in columns:
            to, origin = Rectangle(top, left, height, width), Rectangle(from_top, from_left, height, width)
            yield _Part(frames, Tile(path, mapping.dataset_name, positions, to, origin, is_all=whole and alone))


def _axes(space: h5py.h5s.SpaceID, place: str) -> list[Axis]:
    if space.get_select_type() == h5py.h5s.SEL_ALL:
        return [Axis(0, 1, 1, size) for size in space.shape]
    if len(space.shape) < 2 or not space.is_regular_hyperslab():
        raise UnusableInput(f"{place}: an irregular mapping of a virtual dataset", remedy="map rectangles of frames")
    return [
        Axis(start, stride, None if count == _UNLIMITED else count, None if block == _UNLIMITED else block)
        for start, stride, count, block in zip(*space.get_regular_hyperslab(), strict=True)
    ]


def _pieces(target: Axis, source: Axis | None, place: str) -> list[tuple[int, int, int]]:
    """Return what rows or columns a mapping takes to where: (first in the frame, first in the source, how many)."""
    to = _runs(target, place)
    total = sum(length for _start, length in to)
    of = [(0, total)] if source is None else _runs(source, place)
    if sum(length for _start, length in of) != total:
        raise UnusableInput(
            f"{place}: a mapping that gives frames another shape", remedy="map rectangles to rectangles"
        )
    cuts = sorted({0, *_ends(to), *_ends(of)})
    return [(_at(to, cut), _at(of, cut), end - cut) for cut, end in itertools.pairwise(cuts)]


def _ends(runs: Sequence[tuple[int, int]]) -> Iterator[int]:
    return itertools.accumulate(length for _start, length in runs)


def _at(runs: Sequence[tuple[int, int]], offset: int) -> int:
    """Return the row or column that is the `offset`-th of all runs."""
    for start, length in runs:
        if offset < length:
            return start + offset
        offset -= length
    raise AssertionError("offsets are cut from the same runs")


def _runs(axis: Axis, place: str) -> list[tuple[int, int]]:
    if axis.blocks is None or axis.length is None:
        raise UnusableInput(f"{place}: a mapping that is endless within frames", remedy="map rectangles of frames")
    if axis.blocks == 1 or axis.stride == axis.length:
        return [(axis.start, axis.blocks * axis.length)]
    if axis.blocks > _MOST_RUNS:
        raise UnusableInput(f"{place}: a mapping of single rows or columns", remedy="map rectangles of frames")
    return [(axis.start + number * axis.stride, axis.length) for number in range(axis.blocks)]


# ------------------------------------------------------------------------------------------- rectangles to frames


def _bounded(parts: Sequence[_Part]) -> list[MappedFrames]:
    """Bring together the frames that consist of the same parts."""
    merged = _merged(parts)
    if not merged:
        return []
    numbers = [part.frames.values(part.count or 0) for part in merged]
    consists_of = np.zeros(max(int(frames.max(initial=-1)) for frames in numbers) + 1, np.int64)
    members: list[tuple[int, ...]] = [()]
    known: dict[tuple[int, int], int] = {}
    for index, frames in enumerate(numbers):
        before = consists_of[frames]
        for old in np.unique(before).tolist():
            new = known.setdefault((old, index), len(members))
            if new == len(members):
                members.append((*members[old], index))
            consists_of[frames[before == old]] = new
    order = np.argsort(consists_of, kind="stable")
    kinds, starts = np.unique(consists_of[order], return_index=True)
    groups = zip(kinds.tolist(), np.split(order, starts[1:]), strict=True)
    return [
        MappedFrames(
            listed(frames), tuple(_at_frames(merged[index], numbers[index], frames) for index in members[kind])
        )
        for kind, frames in groups
        if kind
    ]


def _merged(parts: Sequence[_Part]) -> list[_Part]:
    """Make one part of those that differ in their frames only."""
    alike: dict[tuple[object, ...], list[_Part]] = {}
    for part in parts:
        tile = part.tile
        key = (tile.file, tile.dataset, tile.place, tile.origin, tile.is_all, isinstance(tile.positions, Coordinates))
        alike.setdefault(key, []).append(part)
    return [group[0] if len(group) == 1 else _joined(group) for group in alike.values()]


def _joined(parts: Sequence[_Part]) -> _Part:
    frames = np.concatenate([part.frames.values(part.count or 0) for part in parts])
    order = np.argsort(frames, kind="stable")
    order = order[np.append(np.diff(frames[order]) != 0, True)]  # of several words on a frame the last one counts
    positions = np.concatenate([_values(part.tile.positions, part.count or 0) for part in parts])[order]
    kind = Coordinates if isinstance(parts[0].tile.positions, Coordinates) else listed
    return _Part(listed(frames[order]), replace(parts[0].tile, positions=kind(positions)))


def _values(positions: Positions, count: int) -> Integers:
    assert not isinstance(positions, Endless)  # noqa: S101  bounded, as its frames are
    return positions.values(count)


def _at_frames(part: _Part, numbers: Integers, frames: Integers) -> Tile:
    """Return a part's tile for some of its frames only."""
    if len(frames) == len(numbers):
        return part.tile
    chosen = _values(part.tile.positions, len(numbers))[np.searchsorted(numbers, frames)]
    kind = Coordinates if isinstance(part.tile.positions, Coordinates) else listed
    return replace(part.tile, positions=kind(chosen))


def _endless(parts: Sequence[_Part]) -> list[MappedFrames]:
    tiles: dict[Numbers, list[Tile]] = {}
    for part in parts:
        tiles.setdefault(part.frames, []).append(part.tile)
    return [MappedFrames(frames, tuple(group)) for frames, group in tiles.items()]


def _are_apart(groups: Sequence[MappedFrames], frame_shape: tuple[int, ...]) -> bool:
    """Whether no frame is in two groups, as far as that can be told; frames that lie whole can't be torn apart."""
    if all(len(group.tiles) == 1 and group.tiles[0].place == (0, 0, *frame_shape) for group in groups):
        return True
    turns = [group.frames for group in groups]
    if not all(isinstance(turn, Progression) and turn.count is None for turn in turns):
        return False
    strides = {turn.stride for turn in turns if isinstance(turn, Progression)}
    taken = [
        turn.at(index) % min(strides) for turn in turns if isinstance(turn, Progression) for index in range(turn.block)
    ]
    return len(strides) == 1 and len(set(taken)) == len(taken)
