"""What the input was and what software took it, for the record."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

import h5py
import hdf5plugin
import mpi4py
import numpy as np
from mpi4py import MPI

from mpi_kernels.decode import bitshuffle_lz4_decoder
from mpi_kernels.frame_dataset import FrameDataset
from mpi_kernels.native.library import NativePath
from mpi_kernels.segments import Layout

_CODE = {".py", ".c", ".h", ".so"}


@dataclass(frozen=True, kw_only=True)
class FileIdentity:
    """One file that frames are read from, besides the input itself."""

    path: str
    dataset: str
    size: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True, kw_only=True)
class InputIdentity:
    """The input as it is now (``docs/reference/kernel-command-line.md``)."""

    path: str
    real_path: str
    dataset: str
    size: int
    mtime_ns: int
    inode: int
    shape: tuple[int, ...]
    dtype: str
    chunks: tuple[int, ...] | None
    sources: tuple[FileIdentity, ...]


def identify(file: Path, dataset: str, layout: Layout, first: FrameDataset) -> InputIdentity:
    """Return the identity of the input; `first` is any of its datasets of frames."""
    status = file.stat()
    return InputIdentity(
        path=str(file.absolute()),
        real_path=str(file.resolve()),
        dataset=dataset,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        inode=status.st_ino,
        shape=layout.virtual_shape or (*first.scan_shape, *first.frame_shape),
        dtype=str(first.dtype),
        chunks=None if layout.virtual_shape else first.chunks,
        sources=_sources(file, layout),
    )


def _sources(file: Path, layout: Layout) -> tuple[FileIdentity, ...]:
    found: dict[Path, FileIdentity] = {}
    itself = file.resolve()
    for source, dataset in (place for segment in layout.segments for place in segment.datasets):
        path = source.resolve()
        if path == itself or path in found:
            continue
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        found[path] = FileIdentity(
            path=str(path),
            dataset=dataset,
            size=status.st_size,
            mtime_ns=status.st_mtime_ns,
            inode=status.st_ino,
        )
    return tuple(found.values())


def software() -> dict[str, str]:
    """Return the versions in use, by part; ``decoder`` is what undoes bitshuffle-LZ4, `source_sha256` what ran here."""
    return {
        "python": sys.version.split()[0],
        "numpy": np.__version__,
        "h5py": h5py.__version__,
        "hdf5": h5py.version.hdf5_version,
        "hdf5plugin": hdf5plugin.version,
        "mpi4py": mpi4py.__version__,
        "mpi": MPI.Get_library_version().split("\n")[0].split(",")[0].rstrip("\0"),
        "decoder": _decoder(),
        "source_sha256": source_sha256(),
    }


@cache
def source_sha256() -> str:
    """Return a digest of the kernels' own code, the compiled core included: changes show without git."""
    return digest_of_code(Path(__file__).parent)


def digest_of_code(package: Path) -> str:
    """Return a digest of the names and bytes of a package's sources and compiled parts."""
    code = {path.relative_to(package).as_posix(): path for path in package.rglob("*") if path.suffix in _CODE}
    digest = hashlib.sha256()
    for name, path in sorted(code.items()):
        digest.update(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}\n".encode())
    return digest.hexdigest()


def _decoder() -> str:
    decoder = bitshuffle_lz4_decoder()
    if isinstance(decoder, NativePath):
        return f"native core ({decoder.name.lower()})"
    return "HDF5 filters" if decoder is None else f"dectris-compression {_version('dectris-compression')}"


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:  # a build that isn't registered as a package
        return "of unknown version"
