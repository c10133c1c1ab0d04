"""The shared object: where it is, whether it fits, and which of its paths is taken.

One object serves every Python of this platform, because it knows nothing of Python. It holds the same operations
several times: for AVX-512 with GFNI, VBMI and VNNI, for AVX2, and for any processor. All give the same results. The
environment variable ``MPI_KERNELS_NATIVE`` forces one (``avx512``, ``avx2``, ``portable``) or does without all
(``off``).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from mpi_kernels.errors import InvalidParameters

VARIABLE = "MPI_KERNELS_NATIVE"
OBJECT = Path(__file__).with_name("libmpi_kernels_native.so")
INTERFACE = 3
"""``NATIVE_INTERFACE`` of ``native.h``; an object that was compiled from other sources isn't used."""

Chunk: TypeAlias = bytes | memoryview
"""A stored chunk; whoever reads many keeps their memory and hands out views."""

CHUNKS_SIDE_BY_SIDE = 16
"""``NATIVE_LANES`` of ``native.h``: so many frames are summed at a time."""

Bytes = ctypes.c_char_p
Address = ctypes.c_void_p
Size = ctypes.c_size_t


class NativePath(IntEnum):
    """The ways through the compiled core, slowest first; the numbers are those of ``enum native_path``."""

    PORTABLE = 0
    AVX2 = 1
    AVX512 = 2


class BinningRecord(ctypes.Structure):
    """``struct native_binning``."""

    _fields_ = (
        ("starts", Address),
        ("bin_of", Address),
        ("weights", Address),
        ("squares", Address),
        ("valid", Address),
        ("groups", Address),
        ("factors", Address),
        ("first_group", Address),
        ("most", Address),
        ("pixels", Size),
        ("bins", Size),
        ("element_size", Size),
        ("low", ctypes.c_int64),
        ("high", ctypes.c_int64),
        ("is_signed", ctypes.c_int32),
    )


class ResultsRecord(ctypes.Structure):
    """``struct native_results``."""

    _fields_ = (("sums", Address), ("excluded", Address), ("pixels", Address), ("room", Size), ("errors", Address))


class ProjectionRecord(ctypes.Structure):
    """``struct native_projection``."""

    _fields_ = (
        ("total", Address),
        ("squares_low", Address),
        ("squares_high", Address),
        ("excluded", Address),
        ("largest_before", Address),
        ("largest", Address),
    )


class TotalsRecord(ctypes.Structure):
    """``struct native_totals``."""

    _fields_ = (("totals", Address), ("excluded", Address), ("largest", Address), ("errors", Address))


ERRORS = {
    1: "it is shorter than its header",
    2: "its header says another size",
    3: "its header gives an impossible size of blocks",
    4: "it ends within a block",
    5: "a block of it is no LZ4 of that length",
    6: "there is no memory to decode it",
    7: "its elements are none of 1 to 16 bytes",
}
"""``enum native_error``, as the end of a sentence about a chunk."""


def load(path: Path) -> ctypes.CDLL | None:
    """Return the shared object; None where there is none, or one that doesn't fit."""
    try:
        library = ctypes.CDLL(str(path))
        if library.native_interface() != INTERFACE:
            return None
    except (OSError, AttributeError):
        return None
    library.native_decode.argtypes = (ctypes.c_int32, Bytes, Size, Size, Address, Size)
    record, results = ctypes.POINTER(BinningRecord), ctypes.POINTER(ResultsRecord)
    library.native_sum.argtypes = (ctypes.c_int32, record, ctypes.POINTER(Address), ctypes.POINTER(Size), Size, results)
    library.native_sum.restype = None
    sums, totals = ctypes.POINTER(ProjectionRecord), ctypes.POINTER(TotalsRecord)
    library.native_project.argtypes = (*library.native_sum.argtypes[:-1], sums, totals)
    library.native_project.restype = None
    return library


def available(library: ctypes.CDLL | None) -> tuple[NativePath, ...]:
    """Return the paths that this processor can take."""
    return () if library is None else tuple(path for path in NativePath if library.native_has(int(path)))


def chosen(paths: tuple[NativePath, ...], wish: str) -> NativePath | None:
    """Return the path to take: the wished one, or the best.

    Raises
    ------
    InvalidParameters
        When the wish can't be met; a silent second best would make measurements lie.
    """
    if wish == "off":
        return None
    if not wish:
        return max(paths, default=None)
    for path in paths:
        if path.name.lower() == wish:
            return path
    here = ", ".join(path.name.lower() for path in paths)
    raise InvalidParameters(
        f"{VARIABLE}={wish}: not possible here",
        remedy=f"one of: {here}, off" if here else f"only off: there is no usable {OBJECT}",
    )


LIBRARY = load(OBJECT)
PATHS = available(LIBRARY)
WISH = os.environ.get(VARIABLE, "")
try:
    PATH = chosen(PATHS, WISH)
except InvalidParameters:  # not while modules are imported: whoever runs a kernel asks first, see `check_wish`
    PATH = None
"""What is used unless a caller says otherwise; None: the core isn't there, or isn't wanted."""


def check_wish() -> None:
    """Make sure that the environment variable can be followed.

    Raises
    ------
    InvalidParameters
        When it can't.
    """
    chosen(PATHS, WISH)


def addresses_of(chunks: Sequence[Chunk]) -> ctypes.Array[ctypes.c_void_p]:
    """Return where the chunks lie; they must outlive what is done with it."""
    return (Address * len(chunks))(*(np.frombuffer(chunk, np.uint8).ctypes.data for chunk in chunks))


def functions() -> Any:
    """Return the library of which a caller knows that it is there."""
    assert LIBRARY is not None  # noqa: S101  PATH says so
    return LIBRARY
