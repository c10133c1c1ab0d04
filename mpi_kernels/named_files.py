"""The files that parameters name, masks and calibrations: which they are, and the digests of their bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from pydantic import BaseModel

from mpi_kernels.hdf5_files import WriterState, writer_state
from mpi_kernels.kernel import NamedFile


def named_files(parameters: BaseModel, names: Sequence[str], base: Path) -> tuple[NamedFile, ...]:
    """Return the files that some of the parameters name, as they are now.

    Parameters
    ----------
    names
        Of the parameters that may name a file, or a dataset in one.
    base
        Folder that relative paths count from.
    """
    digest = cache(_sha256)  # several parameters may name one file
    given = [(name, getattr(parameters, name)) for name in names]
    return tuple(_named_file(name, text, base, digest) for name, text in given if text is not None)


def _named_file(name: str, text: str, base: Path, digest: Callable[[Path], str]) -> NamedFile:
    path, dataset = base / text, None
    if not path.is_file():
        file, _, dataset = text.partition("::")
        path = base / file
    status = path.stat()
    grows = dataset is not None and writer_state(path) is not WriterState.CLOSED
    return NamedFile(
        parameter=name,
        path=str(path.absolute()),
        real_path=str(path.resolve()),
        dataset=dataset,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        sha256=None if grows else digest(path),
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
