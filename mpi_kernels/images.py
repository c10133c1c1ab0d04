"""Masks, darks, flats and backgrounds: one image from ``.npy``, ``.edf`` or a dataset of an HDF5 file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mpi_kernels.errors import InvalidParameters, KernelError
from mpi_kernels.hdf5_files import Library

_EDF_TYPES = {
    "signedbyte": "i1",
    "unsignedbyte": "u1",
    "signedshort": "i2",
    "unsignedshort": "u2",
    "signedinteger": "i4",
    "unsignedinteger": "u4",
    "signedlong": "i4",
    "unsignedlong": "u4",
    "signed64": "i8",
    "unsigned64": "u8",
    "floatvalue": "f4",
    "float": "f4",
    "doublevalue": "f8",
    "double": "f8",
}


@dataclass(frozen=True)
class LoadedImage:
    """An image, and how many frames it is the mean of."""

    values: NDArray[Any]
    frames: int


def load_image(library: Library, text: str, base: Path, shape: tuple[int, int], parameter: str) -> LoadedImage:
    """Load an image of the detector's shape.

    Parameters
    ----------
    text
        ``FILE.npy``, ``FILE.edf``, or ``FILE.h5::/path``, the latter with ``[INDEX]`` or ``[mean]`` for stacks.
    base
        Folder that relative paths count from.
    parameter
        Named in errors.

    Raises
    ------
    InvalidParameters
        Naming parameter, file and what is wrong.
    """
    name, separator, inside = text.partition("::")
    path = base / name
    if not path.is_file():
        raise InvalidParameters(
            f"{parameter}: {path}: no such file", remedy="relative paths count from the parameter file"
        )
    if separator:
        image = _from_hdf5(library, path, inside, parameter)
    elif path.suffix == ".npy":
        image = LoadedImage(_from_npy(path, parameter), 1)
    elif path.suffix == ".edf":
        image = LoadedImage(read_edf(path), 1)
    else:
        raise InvalidParameters(f"{parameter}: {text}", remedy="give FILE.npy, FILE.edf or FILE.h5::/path")
    if image.values.dtype.kind not in "buif":
        raise InvalidParameters(f"{parameter}: {text} holds {image.values.dtype}", remedy="give an image of numbers")
    if image.values.shape != shape:
        raise InvalidParameters(
            f"{parameter}: {text} has shape {image.values.shape}, the frames have {shape}",
            remedy="give an image of the same detector and binning",
        )
    return image


def _from_npy(path: Path, parameter: str) -> NDArray[Any]:
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (ValueError, OSError, EOFError) as error:
        raise InvalidParameters(f"{parameter}: {path}: {error}", remedy="save it with numpy.save") from error


def _from_hdf5(library: Library, path: Path, inside: str, parameter: str) -> LoadedImage:
    name, _, choice = inside.removesuffix("]").partition("[")
    try:
        dataset = library.dataset(path, name)
    except KernelError as error:
        raise InvalidParameters(f"{parameter}: {error}", remedy=error.remedy) from error
    try:
        return _of_dataset(dataset, f"{path}::{name}", choice, parameter)
    except (OSError, RuntimeError) as error:
        raise InvalidParameters(f"{parameter}: {path}::{name}: {error}", remedy="check it with h5dump") from error


def _of_dataset(dataset: h5py.Dataset, place: str, choice: str, parameter: str) -> LoadedImage:
    stack = dataset.shape[:-2]
    if 0 in stack:
        raise InvalidParameters(f"{parameter}: {place} has no frames (shape {dataset.shape})")
    if not stack or (choice in {"", "mean"} and np.prod(stack) == 1):
        return LoadedImage(dataset[()].reshape(dataset.shape[-2:]), 1)
    if choice in {"", "mean"}:
        return _mean(dataset, stack)
    if not choice.isdecimal() or int(choice) >= np.prod(stack):
        raise InvalidParameters(f"{parameter}: [{choice}] isn't one of the {np.prod(stack)} frames of {place}")
    index = tuple(int(part) for part in np.unravel_index(int(choice), stack))
    return LoadedImage(dataset[index], 1)


def _mean(dataset: h5py.Dataset, stack: tuple[int, ...]) -> LoadedImage:
    """Return the mean over a stack; a pixel that is no measurement in one frame is none in the mean (NaN)."""
    total = np.zeros(dataset.shape[-2:])
    for index in np.ndindex(*stack):
        frame = dataset[index]
        total += np.where(is_measurement(frame), frame, np.nan)
    frames = int(np.prod(stack))
    return LoadedImage(total / frames, frames)


def is_measurement(image: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which pixels hold a number and no marker (largest unsigned value, negative signed one, NaN)."""
    if image.dtype.kind == "u":
        return np.asarray(image != np.iinfo(image.dtype).max)
    if image.dtype.kind == "i":
        return np.asarray(image >= 0)
    return np.asarray(np.isfinite(image))


def read_edf(path: Path) -> NDArray[Any]:
    """Read the first image of an ESRF data format file (uncompressed).

    The header is text between braces, padded to whole blocks of 512 bytes.
    """
    content = path.read_bytes()
    end = content.find(b"}")
    if not content.lstrip().startswith(b"{") or end < 0:
        raise InvalidParameters(f"{path}: not an EDF file", remedy="give FILE.npy or an uncompressed .edf")
    fields = dict(re.findall(r"(\w+)\s*=\s*([^;]*?)\s*;", content[:end].decode("latin-1")))
    fields = {name.lower(): value for name, value in fields.items()}
    try:
        order = "<" if fields.get("byteorder", "LowByteFirst").lower() == "lowbytefirst" else ">"
        dtype = np.dtype(order + _EDF_TYPES[fields["datatype"].lower()])
        shape = (int(fields["dim_2"]), int(fields["dim_1"]))
        start = -(-(end + 1) // 512) * 512
        return np.frombuffer(content, dtype, count=shape[0] * shape[1], offset=start).reshape(shape)
    except (KeyError, ValueError) as error:
        raise InvalidParameters(f"{path}: not an EDF image: {error}", remedy="give FILE.npy instead") from error
