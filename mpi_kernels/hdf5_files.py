"""HDF5 files as this process sees them: each file and each dataset is opened once.

HDF5 (1.14.6 and 2.0.0 were measured) silently reads wrong frames after a refresh when one process holds the same
dataset twice: through two handles, a link, or a virtual dataset and its source (h5py issue 2803). So links are followed
here, by name, and every dataset has exactly one handle, found by file identity and object address; nobody else in the
kernels opens HDF5 files for reading.

Whether a file is being written stands in its superblock (HDF5 File Format Specification 3.0, section II.A, "File
Consistency Flags"). Files are opened without locks, so that reading can never stop a detector from writing.
"""

from __future__ import annotations

import errno
import os
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple, TypeAlias

import h5py
import hdf5plugin  # noqa: F401  registers its filters with HDF5
import numpy as np
from mpi4py import MPI

from mpi_kernels.errors import InvalidParameters, NotThereYet, UnusableInput

PARALLEL_VARIABLE = "MPI_KERNELS_PARALLEL_HDF5"
SETTLED_S = 10.0
"""A file that nobody is writing and that hasn't changed for this long isn't waited for."""

Mode: TypeAlias = Literal["auto", "live", "finished"]

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_OPEN_FOR_WRITING, _SWMR = 0x01, 0x04
_MOST_LINKS = 32


def parallel_wanted() -> bool:
    """Whether the environment asks for MPI-IO where files are finished.

    Raises
    ------
    InvalidParameters
        When h5py can't do it.
    """
    wanted = os.environ.get(PARALLEL_VARIABLE, "") not in {"", "0"}
    if wanted and not h5py.get_config().mpi:
        raise InvalidParameters(
            f"{PARALLEL_VARIABLE} is set, but h5py {h5py.__version__} is built without MPI",
            remedy="unset it, or build h5py against a parallel HDF5 (HDF5_MPI=ON)",
        )
    return wanted


def allow_many_files() -> None:
    """Let this process open as many files as the system lets it: every data file of a scan stays open."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class WriterState(Enum):
    """What the superblock says about a writer."""

    CLOSED = "closed"
    """Nobody writes, as far as the file says (files older than superblock version 3 never say)."""
    WRITING = "open for writing, not in SWMR mode"
    SWMR = "being written in SWMR mode"


def settled(path: Path) -> bool:
    """Whether `path` exists and hasn't changed for `SETTLED_S` seconds."""
    try:
        return time.time() - path.stat().st_mtime > SETTLED_S
    except FileNotFoundError:
        return False


def writer_state(path: Path) -> WriterState:
    """Read from the superblock whether somebody is writing the file.

    Raises
    ------
    NotThereYet
        When there is no such file, or it isn't HDF5 (yet).
    UnusableInput
        When it may not be read.
    """
    try:
        with path.open("rb") as stream:
            return _state_in_superblock(stream.read(12), path)
    except FileNotFoundError as error:
        raise NotThereYet(f"{path}: no such file", remedy="check --input and the detector's writer") from error
    except OSError as error:
        if error.errno == errno.EMFILE:
            raise _too_many_files(path) from error
        raise UnusableInput(f"{path}: {error.strerror}", remedy="check the file's permissions") from error


def _state_in_superblock(head: bytes, path: Path) -> WriterState:
    if not head.startswith(_SIGNATURE):
        if h5py.is_hdf5(path):  # behind a user block, which no SWMR writer makes
            return WriterState.CLOSED
        raise NotThereYet(f"{path}: not an HDF5 file", remedy="give the detector's HDF5 file", settled=settled(path))
    version, flags = head[8], head[11] if len(head) > 11 else 0
    if version < 3 or not flags & _OPEN_FOR_WRITING:
        return WriterState.CLOSED
    return WriterState.SWMR if flags & _SWMR else WriterState.WRITING


@dataclass(frozen=True)
class Place:
    """An object in a file, links followed: the file that holds it and its path there."""

    file: Path
    path: str

    def __str__(self) -> str:
        return f"{self.file}::{self.path}"


class Mapping(NamedTuple):
    """One part of a virtual dataset and where it lies; the fields are the dataspaces' selections."""

    virtual: h5py.h5s.SpaceID
    file_name: str
    dataset_name: str
    source: h5py.h5s.SpaceID


@dataclass(frozen=True)
class Virtual:
    """A virtual dataset: its own shape and type, what it maps, and what its elements are that it doesn't map."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    fill: np.generic
    mappings: Sequence[Mapping]


class Library:
    """The HDF5 files and datasets this process has open, each of them once.

    Parameters
    ----------
    mode
        ``auto`` decides per file by its superblock; ``live`` insists on SWMR, ``finished`` on a file nobody writes.
    parallel
        Whether files that nobody writes are read through MPI-IO (`parallel_wanted`); the values are the same. All ranks
        of a communicator would have to open such files together, but here each opens what it needs when it needs it: so
        each has a communicator of its own.
    """

    def __init__(self, mode: Mode = "auto", *, parallel: bool = False) -> None:
        self._mode, self._parallel = mode, parallel
        self._files: dict[tuple[int, int], h5py.File] = {}
        self._live: dict[tuple[int, int], bool] = {}
        self._datasets: dict[tuple[tuple[int, int], int], h5py.Dataset] = {}

    def close(self) -> None:
        """Close everything."""
        self._datasets.clear()
        for file in self._files.values():
            file.close()
        self._files.clear()
        self._live.clear()

    def let_go(self, path: Path) -> None:
        """Close one file and its datasets."""
        key = identity(path)
        self._datasets = {place: dataset for place, dataset in self._datasets.items() if place[0] != key}
        self._live.pop(key, None)
        if (file := self._files.pop(key, None)) is not None:
            file.close()

    def file(self, path: Path) -> h5py.File:
        """Return the open file; open it when this is the first time.

        Raises
        ------
        NotThereYet
            No such file, not HDF5 (yet), truncated, or open for writing but not in SWMR mode.
        """
        try:
            key = identity(path)
        except FileNotFoundError as error:
            raise NotThereYet(f"{path}: no such file", remedy="check --input and the detector's writer") from error
        except OSError as error:
            raise UnusableInput(f"{path}: {error.strerror}", remedy="check the path and its permissions") from error
        if key not in self._files:
            live = self._opens_live(path)
            self._files[key] = _open(path, swmr=live, parallel=self._parallel)
            self._live[key] = live
        return self._files[key]

    def _opens_live(self, path: Path) -> bool:
        state = writer_state(path)
        if self._mode == "finished" and state is not WriterState.CLOSED:
            raise UnusableInput(f"{path}: {state.value}, but --mode finished was given", remedy="use --mode auto")
        if state is WriterState.WRITING:
            raise NotThereYet(
                f"{path}: {state.value}, so nobody else can read it",
                remedy="have the writer start SWMR mode; if it died, run h5clear -s on the file",
            )
        return state is WriterState.SWMR or (self._mode == "live" and _has_swmr_superblock(path))

    def is_live(self, path: Path) -> bool:
        """Whether the file was opened in SWMR mode."""
        self.file(path)
        return self._live[identity(path)]

    def locate(self, file: Path, path: str, *, links_left: int = _MOST_LINKS) -> Place:
        """Follow soft and external links to the object's own place.

        Raises
        ------
        NotThereYet
            When a part of the path, or a file behind a link, isn't there.
        UnusableInput
            When links go in a circle.
        """
        if links_left == 0:
            raise UnusableInput(f"{file}::{path}: more than {_MOST_LINKS} links", remedy="the links go in a circle")
        here = PurePosixPath("/")
        parts = [part for part in path.split("/") if part and part != "."]
        for depth, name in enumerate(parts):
            link = self._link(file, here, name, wanted=path)
            rest = "/".join(parts[depth + 1 :])
            if isinstance(link, h5py.ExternalLink):
                target = external_file(file, link.filename)
                return self.locate(target, f"{link.path}/{rest}", links_left=links_left - 1)
            if isinstance(link, h5py.SoftLink):
                return self.locate(file, f"{here / link.path}/{rest}", links_left=links_left - 1)
            here /= name
        return Place(file, str(here))

    def _link(self, file: Path, group: PurePosixPath, name: str, *, wanted: str) -> object:
        node = self.group(Place(file, str(group)))
        if node is None or (link := node.get(name, getlink=True)) is None:
            siblings = ", ".join(sorted(node)[:12]) if node is not None else "no group"
            raise NotThereYet(
                f"{file}: no {wanted} ({group} has: {siblings or 'nothing'})",
                remedy="check the path with h5ls -r",
                settled=self.is_live(file) or settled(file),
            )
        return link

    def group(self, place: Place) -> h5py.Group | None:
        """Return the group at `place`, None if it is a dataset."""
        opened = self.file(place.file)
        if place.path != "/" and opened.get(place.path, getclass=True) is not h5py.Group:
            return None
        return opened[place.path]

    def virtual(self, place: Place) -> Virtual | None:
        """Return what a virtual dataset maps, None if the dataset is a real one.

        The virtual dataset is closed again at once: while it is open, HDF5 may hold its sources open behind our back.
        """
        if (identity(place.file), self.dataset_address(place)) in self._datasets:
            return None  # it is open, so it is a real one, and isn't opened a second time
        opened = self.file(place.file)
        dataset = h5py.Dataset(h5py.h5d.open(opened.id, place.path.encode()))
        plist = dataset.id.get_create_plist()
        if plist.get_layout() != h5py.h5d.VIRTUAL:
            return None
        mappings = [
            Mapping(
                plist.get_virtual_vspace(index),
                plist.get_virtual_filename(index),
                plist.get_virtual_dsetname(index),
                plist.get_virtual_srcspace(index),
            )
            for index in range(plist.get_virtual_count())
        ]
        # asked for the shape of one without end, HDF5 would open its sources
        shape = mappings[0].virtual.shape if mappings else ()
        return Virtual(shape, dataset.dtype, dataset.fillvalue, mappings)

    def dataset(self, file: Path, path: str) -> h5py.Dataset:
        """Return the one handle of a dataset, links followed.

        Raises
        ------
        NotThereYet
            When it isn't there.
        UnusableInput
            When it is something else than a dataset.
        """
        place = self.locate(file, path)
        key = (identity(place.file), self.dataset_address(place))
        if key not in self._datasets:
            if self.virtual(place) is not None:
                raise UnusableInput(f"{place}: a virtual dataset", remedy="give the dataset that holds the values")
            self._datasets[key] = self.file(place.file)[place.path]
        return self._datasets[key]

    def dataset_address(self, place: Place) -> int:
        """Return the address of the dataset's header in its file, without opening the dataset.

        Raises
        ------
        UnusableInput
            When it is something else than a dataset.
        """
        if self.group(place) is not None:
            raise UnusableInput(f"{place}: a group, not a dataset", remedy="give the dataset's full path")
        parent, _, name = place.path.rpartition("/")
        group = self.file(place.file)[parent or "/"]  # the links' proxy doesn't keep it open
        address: int = group.id.links.get_info(name.encode()).u
        return address


def identity(path: Path) -> tuple[int, int]:
    """Return what tells a file from all others, whatever its path: device and inode."""
    status = path.stat()
    return status.st_dev, status.st_ino


def external_file(file: Path, name: str) -> Path:
    """Return the path of a file that is named inside another file."""
    # relative names are looked up beside the file that has the link, as HDF5 does after its own prefixes
    return Path(name) if Path(name).is_absolute() else file.parent / name


def _has_swmr_superblock(path: Path) -> bool:
    with path.open("rb") as stream:
        head = stream.read(9)
    return len(head) == 9 and head[8] >= 3


def _too_many_files(path: Path) -> UnusableInput:
    limit, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return UnusableInput(
        f"{path}: {limit} files are open, and no more are allowed", remedy="raise the hard limit (ulimit -Hn)"
    )


def _open(path: Path, *, swmr: bool, parallel: bool) -> h5py.File:
    try:
        if parallel and not swmr:
            return h5py.File(path, "r", driver="mpio", comm=MPI.COMM_SELF)
        return h5py.File(path, "r", swmr=swmr, locking=False)
    except OSError as error:
        text = str(error)
        if error.errno == errno.EMFILE:
            raise _too_many_files(path) from error
        what = "truncated" if "truncated" in text else "can't be opened as HDF5"
        raise NotThereYet(
            f"{path}: {what}: {text}", remedy="copy or write the file again", settled=settled(path)
        ) from error
