"""The objects of an HDF5 file that are content, by path; what isn't is marked in the file by whoever wrote it.

Files are read here and never changed, other files are never opened, and no more of a dataset than `BLOCK_BYTES` is held
at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import h5py
import hdf5plugin  # noqa: F401  registers its filters with HDF5
import numpy as np

from orchestrator.contents.values import Array, as_array, type_name
from orchestrator.errors import InvalidInput

MARK = "circumstance"
"""Attribute of what says how, when or where a file was made: it, and all below it, is no content."""

BLOCK_BYTES = 1 << 23

# Attributes of NXroot that the NeXus standard has for the file and its writing, not for what is in it.
_OF_THE_FILE = {"file_name", "file_time", "file_update_time", "HDF5_Version", "HDF5_version", "h5py_version"}

Selection: TypeAlias = tuple[int | slice, ...]


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """A named value of an object."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...] | None
    """None where it has no value at all."""
    value: Array


@dataclass(frozen=True, kw_only=True)
class Item:
    """An object, or a link that leads elsewhere.

    Parameters
    ----------
    header
        ``kind``, and what else there is: ``dtype`` and ``shape``, or where it leads ``to``.
    dataset
        Has the values; None where there are none, or where they lie in other files.
    """

    header: Mapping[str, Any]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    dataset: h5py.Dataset | None = None


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """Open a file that nobody writes any more.

    Raises
    ------
    InvalidInput
        When it can't be opened or, while it is used, read.
    """
    try:
        # a writer that was killed has left its file marked as being written: only SWMR readers may open it
        with h5py.File(path, "r", swmr=True, locking=False) as file:
            yield file
    except (OSError, RuntimeError, KeyError) as error:  # what HDF5's errors become in h5py
        raise InvalidInput(f"{path}: {error}", remedy="check it with h5dump") from error
    except TypeError as error:
        raise InvalidInput(f"{path}: {error}") from error


def items(file: h5py.File) -> dict[str, Item]:
    """Return the content of a file by path."""
    return dict(_below(file, "/", ()))


def _below(node: h5py.Group, path: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, Item]]:
    yield path, Item(header={"kind": "group"}, attributes=_attributes(node, path))
    above = (*above, _identity(node))
    for name in node:
        yield from _member(node, name, f"{path.rstrip('/')}/{name}", above)


def _member(parent: h5py.Group, name: str, path: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, Item]]:
    link = parent.get(name, getlink=True)
    if isinstance(link, h5py.SoftLink):
        yield path, Item(header={"kind": "soft link", "to": link.path})
        return
    if isinstance(link, h5py.ExternalLink):
        yield path, Item(header={"kind": "external link", "to": [link.filename, link.path]})
        return
    node = parent[name]
    if np.any(node.attrs.get(MARK, False)):
        return
    if isinstance(node, h5py.Dataset):
        yield path, _dataset(node, path)
    elif isinstance(node, h5py.Datatype):
        header = {"kind": "type", "dtype": _named(node.dtype, path)}
        yield path, Item(header=header, attributes=_attributes(node, path))
    elif _identity(node) in above:
        yield path, Item(header={"kind": "link upwards", "to": above.index(_identity(node))})
    else:
        yield from _below(node, path, above)


def _identity(node: h5py.Group) -> tuple[int, int]:
    found = h5py.h5o.get_info(node.id)
    return found.fileno, found.addr


def _dataset(dataset: h5py.Dataset, path: str) -> Item:
    header = {"kind": "dataset", "dtype": _named(dataset.dtype, path), "shape": dataset.shape}
    elsewhere = _elsewhere(dataset)
    if elsewhere:
        header["to"] = elsewhere
    there = dataset if dataset.shape is not None and not elsewhere else None
    return Item(header=header, attributes=_attributes(dataset, path), dataset=there)


def _elsewhere(dataset: h5py.Dataset) -> list[list[Any]]:
    """Return in which other files, and where there, a dataset's values lie."""
    if dataset.is_virtual:
        sources = dataset.virtual_sources()
        return [[one.file_name, one.dset_name, _part(one.vspace), _part(one.src_space)] for one in sources]
    return [list(place) for place in dataset.external or ()]


def _part(space: h5py.h5s.SpaceID) -> Any:
    """Return which part of a dataset is selected, for JSON."""
    if space.get_select_type() == h5py.h5s.SEL_ALL:
        return "all"
    return space.get_regular_hyperslab() if space.is_regular_hyperslab() else space.get_select_bounds()


def _attributes(node: Any, path: str) -> dict[str, Attribute]:
    without = _OF_THE_FILE if path == "/" else set()
    return {name: _attribute(node, name, path) for name in node.attrs if name not in without}


def _attribute(node: Any, name: str, path: str) -> Attribute:
    held = node.attrs.get_id(name)
    _named(held.dtype, f"{path}@{name}")
    if held.get_space().get_simple_extent_type() == h5py.h5s.NULL:
        return Attribute(dtype=held.dtype, shape=None, value=np.empty(0, held.dtype))
    return Attribute(dtype=held.dtype, shape=held.shape, value=as_array(node.attrs[name], held.dtype))


def _named(dtype: np.dtype[Any], place: str) -> Any:
    try:
        return type_name(dtype)
    except TypeError as error:
        raise TypeError(f"{place}: {error}") from error


def blocks(shape: Sequence[int], itemsize: int, chunks: Sequence[int] | None = None) -> Iterator[Selection]:
    """Yield selections that together are everything, in C order, none larger than `BLOCK_BYTES` unless by one element.

    Parameters
    ----------
    chunks
        Shape of the chunks, so that each is read once where that can be.
    """
    if 0 in shape:
        return
    axis, row = len(shape), itemsize
    while axis and row * shape[axis - 1] <= BLOCK_BYTES:
        axis -= 1
        row *= shape[axis]
    if axis == 0:
        yield ()
        return
    step = max(1, BLOCK_BYTES // row)
    if chunks is not None and step > chunks[axis - 1]:
        step -= step % chunks[axis - 1]
    for lead in np.ndindex(*shape[: axis - 1]):
        for start in range(0, shape[axis - 1], step):
            yield (*lead, slice(start, start + step))


def blocks_of(dataset: h5py.Dataset) -> Iterator[tuple[Selection, Array]]:
    """Yield a dataset's values, a block at a time, and where each begins."""
    for selection in blocks(dataset.shape, dataset.dtype.itemsize, dataset.chunks):
        yield selection, as_array(dataset[selection], dataset.dtype)
