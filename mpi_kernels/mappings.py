"""What a virtual dataset maps, as frames: which of them lie where, whole or put together from tiles. Opens no files.

Each mapping pairs two selections of equal size, in C order. Here the last two dimensions of both are taken apart into
rectangles, the leading ones into frame numbers; then frames that consist of the same tiles are brought together, so
that it doesn't matter whether a writer makes one mapping per module, per file, or per frame.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

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
    try:
        target = _axes(mapping.virtual)
        source = None if whole else _axes(mapping.source)
        frames = selected(target[:-2]).resolved(mapping.virtual.shape[:-2])
        positions = ALL if source is None else selected(source[:-2])
        rectangles = _rectangles(target[-2:], None if source is None else source[-2:])
    except ValueError as error:
        raise UnusableInput(
            f"{place}: {error}, over {path}::{mapping.dataset_name}", remedy="map rectangles of frames"
        ) from error
    for to, origin in rectangles:
        is_all = whole and len(rectangles) == 1
        yield _Part(frames, Tile(path, mapping.dataset_name, positions, to, origin, is_all))


def _axes(space: h5py.h5s.SpaceID) -> tuple[Axis, ...]:
    if space.get_select_type() == h5py.h5s.SEL_ALL:
        return tuple(Axis(0, 1, 1, size) for size in space.shape)
    if len(space.shape) < 2 or not space.is_regular_hyperslab():
        raise ValueError("an irregular mapping")
    return tuple(
        Axis(start, stride, None if count == _UNLIMITED else count, None if block == _UNLIMITED else block)
        for start, stride, count, block in zip(*space.get_regular_hyperslab(), strict=True)
    )


@lru_cache(maxsize=1024)
def _rectangles(target: tuple[Axis, ...], source: tuple[Axis, ...] | None) -> list[tuple[Rectangle, Rectangle]]:
    """Return what parts of frames a mapping fills, each with the part of the source's frames that it takes."""
    rows, columns = (_pieces(target[axis], None if source is None else source[axis]) for axis in (0, 1))
    return [
        (Rectangle(top, left, height, width), Rectangle(from_top, from_left, height, width))
        for top, from_top, height in rows
        for left, from_left, width in columns
    ]


def _pieces(target: Axis, source: Axis | None) -> list[tuple[int, int, int]]:
    """Return what rows or columns a mapping takes to where: (first in the frame, first in the source, how many)."""
    to = _runs(target)
    total = sum(length for _start, length in to)
    of = [(0, total)] if source is None else _runs(source)
    if sum(length for _start, length in of) != total:
        raise ValueError("a mapping that gives frames another shape")
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


def _runs(axis: Axis) -> list[tuple[int, int]]:
    if axis.blocks is None or axis.length is None:
        raise ValueError("a mapping that is endless within frames")
    if axis.blocks == 1 or axis.stride == axis.length:
        return [(axis.start, axis.blocks * axis.length)]
    if axis.blocks > _MOST_RUNS:
        raise ValueError("a mapping of single rows or columns")
    return [(axis.start + number * axis.stride, axis.length) for number in range(axis.blocks)]


# ------------------------------------------------------------------------------------------- rectangles to frames


@dataclass(frozen=True)
class _Run:
    """The same tile of some frames: their numbers, ascending, and for each its position and which part says so."""

    tile: Tile
    frames: Integers
    positions: Integers
    part: Integers

    @classmethod
    def of(cls, parts: Sequence[tuple[int, _Part]]) -> _Run:
        """Join parts that differ in their frames only, each with its number."""
        counts = [part.count or 0 for _number, part in parts]
        each = [part for _number, part in parts]
        frames = np.concatenate([part.frames.values(count) for part, count in zip(each, counts, strict=True)])
        positions = np.concatenate([_values(part, count) for part, count in zip(each, counts, strict=True)])
        numbers = np.repeat([number for number, _part in parts], counts)
        order = np.argsort(frames, kind="stable")
        order = order[np.append(np.diff(frames[order]) != 0, True)]  # the last word on a frame counts
        return cls(each[0].tile, frames[order], positions[order], numbers[order])

    def indices(self, frames: Integers) -> NDArray[np.intp]:
        return np.searchsorted(self.frames, frames)

    def tile_of(self, frames: Integers) -> Tile:
        """Return the tile of some of its frames."""
        positions = self.positions[self.indices(frames)]
        return replace(self.tile, positions=Coordinates(positions) if positions.ndim > 1 else listed(positions))


def _values(part: _Part, count: int) -> Integers:
    assert not isinstance(part.tile.positions, Endless)  # noqa: S101  bounded, as its frames are
    return part.tile.positions.values(count)


def _bounded(parts: Sequence[_Part]) -> Iterator[MappedFrames]:
    """Bring together the frames that consist of the same parts."""
    alike: dict[tuple[object, ...], list[tuple[int, _Part]]] = {}
    for number, part in enumerate(parts):
        tile = part.tile
        key = (tile.file, tile.dataset, tile.place, tile.origin, tile.is_all, isinstance(tile.positions, Coordinates))
        alike.setdefault(key, []).append((number, part))
    runs = [_Run.of(group) for group in alike.values()]
    if not runs:
        return
    for members, frames in _by_members([run.frames for run in runs]):
        for order, same in _by_order([runs[index] for index in members], frames):
            yield MappedFrames(listed(same), tuple(run.tile_of(same) for run in order))


def _by_members(sets: Sequence[Integers]) -> Iterator[tuple[tuple[int, ...], Integers]]:
    """Give all numbers that are in the same ones of some sets, with these sets' indices."""
    group_of = np.zeros(max(int(numbers.max(initial=-1)) for numbers in sets) + 1, np.int64)
    members: list[tuple[int, ...]] = [()]
    known: dict[tuple[int, int], int] = {}
    for index, numbers in enumerate(sets):
        before = group_of[numbers]
        for old in np.unique(before).tolist():
            new = known.setdefault((old, index), len(members))
            if new == len(members):
                members.append((*members[old], index))
            group_of[numbers[before == old]] = new
    for group, numbers in _alike(group_of):
        if group:
            yield members[group], numbers


def _by_order(runs: Sequence[_Run], frames: Integers) -> Iterator[tuple[Sequence[_Run], Integers]]:
    """Give the frames whose tiles were mapped in the same order, with the tiles in this order."""
    parts = np.stack([run.part[run.indices(frames)] for run in runs])
    orders, which = np.unique(np.argsort(parts, axis=0), axis=1, return_inverse=True)
    for index, numbers in _alike(which.ravel()):
        yield [runs[run] for run in orders[:, index]], frames[numbers]


def _alike(values: NDArray[np.integer[Any]]) -> Iterator[tuple[int, Integers]]:
    """Give each value with the indices that have it, ascending."""
    order = np.argsort(values, kind="stable")
    found, starts = np.unique(values[order], return_index=True)
    return zip(found.tolist(), np.split(order, starts[1:]), strict=True)


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
