"""What two HDF5 files have different in their content, and by how much."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.contents.digests import described
from orchestrator.contents.objects import Attribute, Item, Selection, blocks_of, items, opened
from orchestrator.contents.values import Array, as_array, canonical

_MAGNITUDES = "iufc"
"""Kinds of values that have a distance."""
_MOST_SHOWN = 60


class Verdict(StrEnum):
    """What came of a comparison."""

    IDENTICAL = "identical"
    WITHIN_TOLERANCE = "within tolerance"
    DIFFERENT = "different"


class What(StrEnum):
    """What is different."""

    MISSING = "missing"
    """One file doesn't have it."""
    KIND = "kind"
    TYPE = "dtype"
    SHAPE = "shape"
    LINK = "to"
    """Where a link, or a dataset of other files' values, leads."""
    ATTRIBUTE = "attribute"
    VALUES = "values"


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """How far the values of two datasets are apart.

    Parameters
    ----------
    elements, differing, beyond
        How many there are, how many of them differ, and how many of these by more than the tolerance.
    largest_absolute, largest_relative
        The largest |a - b|, and the largest |a - b| / max(|a|, |b|); None where no two that differ are finite numbers.
    index, relative_index
        Where these are; without them the first that differs.
    """

    elements: int
    differing: int
    beyond: int
    largest_absolute: float | None
    index: tuple[int, ...]
    largest_relative: float | None
    relative_index: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Something that two files have different."""

    path: str
    """Of the object; of an attribute with ``@name`` behind it."""
    what: What
    first: str
    second: str
    """What each file has, in words; of values those at `Deviation.index`. Empty where it is missing."""
    values: Deviation | None = None

    @property
    def tolerable(self) -> bool:
        """Whether nothing of it is beyond the tolerance."""
        return self.values is not None and self.values.beyond == 0


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What came of comparing two files."""

    differences: tuple[Difference, ...]

    @property
    def verdict(self) -> Verdict:
        """The whole in a word."""
        if not self.differences:
            return Verdict.IDENTICAL
        tolerable = all(difference.tolerable for difference in self.differences)
        return Verdict.WITHIN_TOLERANCE if tolerable else Verdict.DIFFERENT


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """Floating-point numbers may differ by `absolute` + `relative` · max(|a|, |b|); everything else not at all."""

    relative: float = 0.0
    absolute: float = 0.0


def compare(first: Path, second: Path, *, rtol: float = 0.0, atol: float = 0.0) -> Comparison:
    """Compare the content of two HDF5 files.

    They are identical when, and only when, their content digests are the same.

    Parameters
    ----------
    rtol, atol
        By how much floating-point values in datasets may differ (`Tolerance`).

    Raises
    ------
    InvalidInput
        When one can't be read, or holds values of a type that can't be compared.
    """
    tolerance = Tolerance(relative=rtol, absolute=atol)
    with opened(first) as one, opened(second) as other:
        ours, theirs = items(one), items(other)
        found = [
            difference
            for path in sorted(ours.keys() | theirs.keys())
            for difference in _of_object(path, ours.get(path), theirs.get(path), tolerance)
        ]
    return Comparison(differences=tuple(found))


def _of_object(path: str, first: Item | None, second: Item | None, tolerance: Tolerance) -> Iterator[Difference]:
    if first is None or second is None:
        there = ["" if item is None else str(item.header["kind"]) for item in (first, second)]
        yield Difference(path=path, what=What.MISSING, first=there[0], second=there[1])
        return
    yield from _of_attributes(path, first.attributes, second.attributes)
    headers = list(_of_headers(path, first.header, second.header))
    yield from headers
    if not headers and first.dataset is not None and second.dataset is not None:
        yield from _of_values(path, first, second, tolerance)


def _of_headers(path: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[Difference]:
    for what in (What.KIND, What.TYPE, What.SHAPE, What.LINK):
        ours, theirs = first.get(what), second.get(what)
        if ours != theirs:
            yield Difference(path=path, what=what, first=_short(ours), second=_short(theirs))
            if what is What.KIND:
                return


def _of_attributes(path: str, first: Mapping[str, Attribute], second: Mapping[str, Attribute]) -> Iterator[Difference]:
    for name in sorted(first.keys() | second.keys()):
        ours, theirs = first.get(name), second.get(name)
        if ours is None or theirs is None or described(ours) != described(theirs):
            what = What.MISSING if ours is None or theirs is None else What.ATTRIBUTE
            words = ["" if one is None else _short(one.value.tolist()) for one in (ours, theirs)]
            yield Difference(path=f"{path}@{name}", what=what, first=words[0], second=words[1])


def _short(value: object) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"


def _of_values(path: str, first: Item, second: Item, tolerance: Tolerance) -> Iterator[Difference]:
    ours, theirs = first.dataset, second.dataset
    assert ours is not None  # noqa: S101  the caller has looked
    assert theirs is not None  # noqa: S101
    tally = _Tally(ours.dtype, tolerance)
    for selection, block in blocks_of(ours):
        tally.add(selection, block, as_array(theirs[selection], theirs.dtype))
    if tally.differing:
        words = [_short(np.asarray(dataset[tally.deviation.index]).item()) for dataset in (ours, theirs)]
        yield Difference(path=path, what=What.VALUES, first=words[0], second=words[1], values=tally.deviation)


@dataclass
class _Tally:
    """What differs in the blocks of two datasets so far."""

    dtype: np.dtype[Any]
    tolerance: Tolerance
    elements: int = 0
    differing: int = 0
    beyond: int = 0
    absolute: tuple[float, tuple[int, ...]] | None = None
    relative: tuple[float, tuple[int, ...]] | None = None
    first: tuple[int, ...] = field(default_factory=tuple)

    @property
    def deviation(self) -> Deviation:
        absolute, relative = (found or (None, self.first) for found in (self.absolute, self.relative))
        return Deviation(
            elements=self.elements,
            differing=self.differing,
            beyond=self.beyond,
            largest_absolute=absolute[0],
            index=absolute[1],
            largest_relative=relative[0],
            relative_index=relative[1],
        )

    def add(self, selection: Selection, ours: Array, theirs: Array) -> None:
        """Take in a block of each."""
        self.elements += ours.size
        differ = np.flatnonzero(_differ(ours.ravel(), theirs.ravel(), self.dtype))
        if not differ.size:
            return

        def place(number: int) -> tuple[int, ...]:
            return _place(selection, ours.shape, int(differ[number]))

        if not self.differing:
            self.first = place(0)
        self.differing += differ.size
        if self.dtype.kind not in _MAGNITUDES:
            self.beyond += differ.size
            return
        distance, largest = _distances(ours.ravel()[differ], theirs.ravel()[differ])
        allowed = self.tolerance.absolute + self.tolerance.relative * largest
        tolerable = np.isfinite(distance) & (distance <= allowed) & (self.dtype.kind in "fc")
        self.beyond += int(np.count_nonzero(~tolerable))
        self.absolute = _larger(self.absolute, distance, place)
        with np.errstate(invalid="ignore"):  # infinity over infinity
            self.relative = _larger(self.relative, distance / largest, place)


def _differ(ours: Array, theirs: Array, dtype: np.dtype[Any]) -> NDArray[np.bool_]:
    if dtype.kind == "c":
        return _differ(ours.real, theirs.real, ours.real.dtype) | _differ(ours.imag, theirs.imag, ours.real.dtype)
    if dtype.kind == "f":
        return np.asarray((ours != theirs) & ~(np.isnan(ours) & np.isnan(theirs)))
    if dtype.kind in "iub":
        return np.asarray(ours != theirs)
    return np.array(
        [canonical(a, dtype) != canonical(b, dtype) for a, b in zip(*map(_apart, (ours, theirs)), strict=True)]
    )


def _apart(values: Array) -> Iterator[Array]:
    return (values[index : index + 1] for index in range(values.size))


def _distances(ours: Array, theirs: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return |a - b| and max(|a|, |b|) of values that differ; the first is infinite or NaN where one is no number."""
    if ours.dtype.kind in "iu":
        # the difference of the larger and the smaller is right in the type without sign, where it may be too large
        unsigned = np.dtype(f"u{ours.dtype.itemsize}")
        higher, lower = np.maximum(ours, theirs), np.minimum(ours, theirs)
        distance = (higher.astype(unsigned) - lower.astype(unsigned)).astype(np.float64)
    else:
        with np.errstate(invalid="ignore", over="ignore"):
            wide = np.complex128 if ours.dtype.kind == "c" else np.float64
            distance = np.abs(ours.astype(wide) - theirs.astype(wide))
    largest = np.maximum(np.abs(ours.astype(complex)), np.abs(theirs.astype(complex)))
    return distance, largest


def _larger(held: Any, values: NDArray[np.float64], place: Any) -> Any:
    """Return the largest finite value and where it is, or what was held if that is no less."""
    finite = np.where(np.isfinite(values), values, -1.0)
    number = int(np.argmax(finite))
    if finite[number] < 0 or (held is not None and held[0] >= finite[number]):
        return held
    return float(finite[number]), place(number)


def _place(selection: Selection, shape: tuple[int, ...], number: int) -> tuple[int, ...]:
    """Return the index in a dataset of an element of one of its blocks."""
    within = [int(index) for index in np.unravel_index(number, shape)]
    if not selection:
        return tuple(within)
    *lead, part = selection
    assert isinstance(part, slice)  # noqa: S101  `blocks` makes them so
    return (*(int(index) for index in lead), part.start + within[0], *within[1:])  # type: ignore[arg-type]
