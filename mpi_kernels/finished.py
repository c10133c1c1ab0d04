"""The *finished* flag that some writers keep in the file: a scalar that becomes non-zero when everything is written."""

from __future__ import annotations

from pathlib import Path

import h5py

from mpi_kernels.errors import KernelError, UnusableInput
from mpi_kernels.hdf5_files import Library

_NAMES = ("finished", "_finished_", "scan_finished")
_DEPTH = 4


class FinishedFlag:
    """A dataset of one whole number; non-zero means that the writer has written all frames."""

    def __init__(self, dataset: h5py.Dataset, *, live: bool) -> None:
        self._dataset, self._live = dataset, live

    @classmethod
    def find(cls, library: Library, file: Path, path: str | None) -> FinishedFlag | None:
        """Take the dataset at `path`, or look for one by its usual names (``/entry/diamond_scan/scan_finished``, …).

        Raises
        ------
        UnusableInput
            When `path` isn't such a flag. One that was found but can't be used is passed over.
        """
        if path is not None:
            return cls._at(library, file, path)
        found = _search(library.file(file), _DEPTH)
        if found is None:
            return None
        try:
            return cls._at(library, file, found)
        except KernelError:  # something else by that name; the writer's end shows in other ways
            return None

    @classmethod
    def _at(cls, library: Library, file: Path, path: str) -> FinishedFlag:
        dataset = library.dataset(file, path)
        if dataset.size != 1 or dataset.dtype.kind not in "uib":
            raise UnusableInput(
                f"{file}::{path}: {dataset.dtype} of shape {dataset.shape} is no finished flag",
                remedy="give --finished-dataset a dataset of one whole number",
            )
        return cls(dataset, live=library.is_live(library.locate(file, path).file))

    def is_set(self) -> bool:
        """Whether the writer says that it has written everything."""
        if self._live:
            self._dataset.refresh()
        return bool(self._dataset[()].any())


def _search(group: h5py.Group, depth: int) -> str | None:
    """Return the path of the first dataset with one of the usual names; other files aren't opened."""
    names = [name for name in group if isinstance(group.get(name, getlink=True), h5py.HardLink)]
    for name in names:
        if name in _NAMES and group.get(name, getclass=True) is h5py.Dataset:
            return f"{group.name.rstrip('/')}/{name}"
    for name in names if depth > 1 else ():
        if group.get(name, getclass=True) is h5py.Group and (found := _search(group[name], depth - 1)) is not None:
            return found
    return None
