"""Small parts of NeXus files: groups with their class, and texts that a file can hold."""

from __future__ import annotations

import h5py
import numpy as np

TEXT_BYTES = 256
"""Length of texts that change while the file grows."""


def group(parent: h5py.Group, name: str, nx_class: str) -> h5py.Group:
    """Return a new group of a class."""
    made = parent.create_group(name)
    made.attrs["NX_class"] = nx_class
    return made


def circumstance(node: h5py.Group | h5py.Dataset) -> None:
    """Mark what says how, when or where a result was made, not what it is: no part of its content digest.

    What reads the mark: ``docs/reference/content-digest.md``.
    """
    node.attrs["circumstance"] = np.uint8(1)


def clipped(text: str) -> bytes:
    """Return as much of a text as fits into `TEXT_BYTES` bytes of UTF-8."""
    return readable(text).encode()[:TEXT_BYTES].decode("utf-8", "ignore").encode()


def readable(text: str) -> str:
    """Return `text` with escapes for what UTF-8 and HDF5 can't hold: bytes of another encoding in names and paths."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", r"\0")
