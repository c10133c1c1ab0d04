"""A chunk of bitshuffle-LZ4 to the bytes of its frame."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpi_kernels.native.library import ERRORS, PATH, NativePath, functions

_HEADER_BYTES = 12
_MOST_EXPANSION = 255
"""No LZ4 sequence makes more bytes of one; a chunk that promises more is damaged, and nothing is reserved for it."""


def decode(chunk: bytes, element_size: int, *, path: NativePath | None = PATH) -> NDArray[np.uint8]:
    """Return the decoded bytes of a chunk as HDF5's filter 32008 stores it, shape ``(bytes,)``.

    Parameters
    ----------
    chunk
        Stored bytes.
    element_size
        Bytes of an element, 1 to 16.
    path
        Way through the compiled core.

    Raises
    ------
    ValueError
        When the bytes are no such chunk.
    """
    assert path is not None  # noqa: S101
    size = int.from_bytes(chunk[:8], "big")
    if len(chunk) < _HEADER_BYTES:
        raise ValueError(ERRORS[1])
    if size > _MOST_EXPANSION * len(chunk):
        raise ValueError(ERRORS[2])
    out = np.empty(size, np.uint8)
    error = functions().native_decode(int(path), chunk, len(chunk), element_size, out.ctypes.data, size)
    if error:
        raise ValueError(ERRORS[error])
    return out
