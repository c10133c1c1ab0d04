"""Which frames: whole numbers that count them in C order over the leading dimensions of a dataset. Pure arithmetic.

A virtual dataset says by selections which of its frames are which of a source's. Selections of one leading dimension
are numbers at once; those of several are numbers only where the dataset's shape is known, which HDF5 doesn't keep of
sources: they are `resolved` when the source is open.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Integers: TypeAlias = NDArray[np.int64]


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

    def span(self, first: int, last: int) -> tuple[int, int]:
        """Return the lowest number between two indices, the second excluded, and one above the highest."""
        return self.at(first), self.at(last - 1) + 1

    def values(self, count: int) -> Integers:
        """Return the first `count` numbers."""
        steps, rests = np.divmod(np.arange(count), self.block)
        return np.asarray(self.start + steps * self.stride + rests, np.int64)

    def resolved(self, lead: Sequence[int]) -> Progression:  # noqa: ARG002  they are numbers already
        """Return the numbers in a dataset of the leading dimensions `lead`."""
        return self


ALL = Progression()
"""Every frame there is."""


@dataclass(frozen=True, eq=False)
class Listed:
    """Whole numbers one by one, in any order."""

    numbers: Integers

    @property
    def count(self) -> int:
        return len(self.numbers)

    @cached_property
    def _ascending(self) -> bool:
        return bool((np.diff(self.numbers) > 0).all())

    def at(self, index: int) -> int:
        """Return the number at `index`."""
        return int(self.numbers[index])

    def count_below(self, limit: int) -> int:
        """Return how many of the numbers are below `limit`; of numbers that don't ascend, how many can be."""
        return int(np.searchsorted(self.numbers, limit)) if self._ascending else len(self.numbers)

    def span(self, first: int, last: int) -> tuple[int, int]:
        """Return the lowest number between two indices, the second excluded, and one above the highest."""
        chosen = self.numbers[first:last]
        return int(chosen.min()), int(chosen.max()) + 1

    def values(self, count: int) -> Integers:
        """Return the first `count` numbers."""
        return self.numbers[:count]

    def resolved(self, lead: Sequence[int]) -> Listed:  # noqa: ARG002
        """Return the numbers in a dataset of the leading dimensions `lead`."""
        return self


Numbers: TypeAlias = Progression | Listed


class Axis(NamedTuple):
    """What a regular selection takes along one dimension: so many `blocks`, each of `length`, every `stride`.

    The last two fields are None when it goes on without end.
    """

    start: int
    stride: int
    blocks: int | None
    length: int | None


@dataclass(frozen=True, eq=False)
class Coordinates:
    """Frames by their indices along several leading dimensions, shape ``(frames, dimensions)``."""

    indices: Integers

    @property
    def count(self) -> int:
        return len(self.indices)

    def values(self, count: int) -> Integers:
        """Return the first `count` frames' indices."""
        return self.indices[:count]

    def resolved(self, lead: Sequence[int]) -> Numbers:
        """Return the numbers in a dataset of the leading dimensions `lead`.

        Raises
        ------
        ValueError
            When it doesn't have them.
        """
        if len(lead) != self.indices.shape[1] or (self.indices[:, 1:] >= np.asarray(lead[1:])).any():
            raise ValueError(f"frames outside a scan of shape {tuple(lead)}")
        return listed(self.indices @ _strides(lead))


def _strides(lead: Sequence[int]) -> Integers:
    """Return how far apart neighbours are along each dimension; that the first one may still grow plays no part."""
    return np.asarray([math.prod(lead[axis + 1 :]) for axis in range(len(lead))], np.int64)


@dataclass(frozen=True)
class Endless:
    """A selection over several leading dimensions that is endless along the first."""

    axes: tuple[Axis, ...]
    count: None = None

    def resolved(self, lead: Sequence[int]) -> Numbers:
        """Return the numbers in a dataset of the leading dimensions `lead`.

        Raises
        ------
        ValueError
            When they aren't blocks at equal distances.
        """
        first, rest = self.axes[0], Coordinates(grid(((Axis(0, 1, 1, 1)), *self.axes[1:])))
        inside = rest.resolved(lead)
        every = 1 if first.length is None or first.stride == first.length else first.stride
        if (every > 1 and first.length != 1) or not isinstance(inside, Progression) or inside.stride > 1:
            raise ValueError("an endless selection that isn't one block of each row of the scan")
        row = math.prod(lead[1:])
        return Progression(first.start * row + inside.start, every * row, inside.count or 1)


Positions: TypeAlias = Numbers | Coordinates | Endless


def selected(axes: Sequence[Axis]) -> Positions:
    """Return the frames that a selection over the leading dimensions takes, in C order."""
    if not axes:
        return Progression(count=1)
    if len(axes) == 1:
        start, stride, blocks, length = axes[0]
        if length is None:
            return Progression(start)
        return Progression(start, stride, length, None if blocks is None else blocks * length)
    if axes[0].blocks is None or axes[0].length is None:
        return Endless(tuple(axes))
    return Coordinates(grid(axes))


def grid(axes: Sequence[Axis]) -> Integers:
    """Return the indices of all that a bounded selection takes, in C order, shape ``(frames, dimensions)``."""
    along = [_indices(axis) for axis in axes]
    return np.stack(np.meshgrid(*along, indexing="ij"), axis=-1).reshape(-1, len(axes))


def _indices(axis: Axis) -> Integers:
    if axis.blocks is None or axis.length is None:
        raise ValueError("a selection that is endless, but not along the first dimension of the scan")
    starts, rests = np.arange(axis.blocks, dtype=np.int64), np.arange(axis.length, dtype=np.int64)
    return (axis.start + starts[:, None] * axis.stride + rests).ravel()


def listed(numbers: NDArray[Any]) -> Numbers:
    """Return the same numbers, as a progression where they are one."""
    if len(numbers) == 1:
        return Progression(int(numbers[0]), count=1)
    steps = np.diff(numbers)
    if len(numbers) and steps[0] > 0 and (steps == steps[0]).all():
        return Progression(int(numbers[0]), int(steps[0]), 1, len(numbers))
    return Listed(numbers)
