"""Small parts of NeXus files: groups with their class, the process that made them, texts that a file can hold."""

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


_UNITS = {"_per_m": "1/m", "_m": "m", "_s": "s", "_deg": "degree"}
"""By how the names of parameters end."""


def process(entry: h5py.Group, *, program: str, version: str, date: str, parameters: str) -> h5py.Group:
    """Write the NXprocess that made a result, with a note of the parameters in force as JSON.

    Its NXparameters, for `add_parameter`, are the group ``input``.
    """
    made = group(entry, "reduction", "NXprocess")
    given = group(made, "input", "NXparameters")
    note = group(made, "configuration", "NXnote")
    for described in (made, note):
        described["sequence_index"] = 1
        described["date"] = date
        circumstance(described["date"])
    made["program"] = note["author"] = program
    made["version"] = version
    circumstance(made["version"])
    given["parameters_json"] = parameters
    note["type"] = "application/json"
    note["description"] = "the parameters in force"
    note["data"] = given["parameters_json"]  # a link
    return made


def add_parameter(given: h5py.Group, name: str, value: object) -> None:
    """Add a parameter to an NXparameters group, with its unit where its name ends with one."""
    given[name] = readable(value) if isinstance(value, str) else value
    unit = next((unit for suffix, unit in _UNITS.items() if name.endswith(suffix)), None)
    if unit is not None and not isinstance(value, str):
        given[name].attrs["units"] = unit


def clipped(text: str) -> bytes:
    """Return as much of a text as fits into `TEXT_BYTES` bytes of UTF-8."""
    return readable(text).encode()[:TEXT_BYTES].decode("utf-8", "ignore").encode()


def readable(text: str) -> str:
    """Return `text` with escapes for what UTF-8 and HDF5 can't hold: bytes of another encoding in names and paths."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", r"\0")
