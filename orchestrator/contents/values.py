"""HDF5 values in one form: equal values give equal bytes, whatever the order of bytes, padding or kind of NaN."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


_NUMBERS = {"float16", "float32", "float64", "complex64", "complex128"}


def type_name(dtype: np.dtype[Any]) -> Any:
    """Return a type without its order of bytes and the length of texts, for JSON.

    Raises
    ------
    TypeError
        For those whose values have no form here.
    """
    if (name := _hdf5_name(dtype)) is not None:
        return name
    if dtype.names is not None:
        return {name: type_name(dtype[name]) for name in dtype.names}
    if dtype.subdtype is not None:
        return {"array of": type_name(dtype.subdtype[0]), "shape": dtype.subdtype[1]}
    if dtype.kind == "V":
        return f"opaque{dtype.itemsize}"
    if dtype.kind in "biu" or dtype.name in _NUMBERS:
        return dtype.name
    raise TypeError(f"values of type {dtype} can't be compared")


def _hdf5_name(dtype: np.dtype[Any]) -> Any:
    """Return the name of a type that HDF5 has and numpy hasn't; None for others."""
    if h5py.check_string_dtype(dtype) is not None:
        return "text"
    if h5py.check_ref_dtype(dtype) is not None:
        return "reference"
    if (member := h5py.check_vlen_dtype(dtype)) is not None:
        return {"sequence of": type_name(np.dtype(member))}
    if (words := h5py.check_enum_dtype(dtype)) is not None:
        return {dtype.name: {word: int(number) for word, number in words.items()}}
    return None


def canonical(values: Array, dtype: np.dtype[Any]) -> bytes:
    """Return values as bytes, in C order, little-endian; every NaN is the same, -0 is 0, and texts have their length.

    Of references, which are addresses within a file, only whether they lead anywhere.
    """
    if dtype.names is not None:
        return b"".join(
            canonical(as_array(element[name], dtype[name]), dtype[name])
            for element in values.ravel()
            for name in dtype.names
        )
    if dtype.subdtype is not None:
        return canonical(values, dtype.subdtype[0])
    if dtype.kind in "SO":
        return _of_any_length(values, dtype)
    if dtype.kind in "fc":
        return _floats(values, dtype)
    return np.ascontiguousarray(values, dtype.newbyteorder("<")).tobytes()


def _of_any_length(values: Array, dtype: np.dtype[Any]) -> bytes:
    if h5py.check_string_dtype(dtype) is not None:
        return b"".join(_measured(_utf8(text)) for text in values.ravel().tolist())
    if (member := h5py.check_vlen_dtype(dtype)) is not None:
        return b"".join(_measured(canonical(np.asarray(item), np.dtype(member))) for item in values.ravel())
    return bytes(map(bool, values.ravel()))


def as_array(values: Any, dtype: np.dtype[Any]) -> Array:
    """Return what h5py gives for values of a type as an array."""
    if dtype.kind == "O" and not (isinstance(values, np.ndarray) and values.dtype == dtype):
        array = np.empty((), object)  # numpy would make something else of a text or a sequence
        array[()] = values
        return array
    return np.asarray(values)


def _floats(values: Array, dtype: np.dtype[Any]) -> bytes:
    parts = np.ascontiguousarray(values, dtype.newbyteorder("<"))
    if dtype.kind == "c":
        parts = parts.view(f"<f{dtype.itemsize // 2}")
    parts = parts + parts.dtype.type(0)  # -0 becomes 0
    parts[np.isnan(parts)] = np.nan
    return bytes(parts.tobytes())


def _utf8(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")


def _measured(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


def json_bytes(value: Any) -> bytes:
    """Return a JSON value as bytes: the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain).encode()


def _plain(value: Iterable[Any]) -> Any:
    return np.asarray(value).tolist()
