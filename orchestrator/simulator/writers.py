"""The two file layouts, behind one interface: frames go in as chunks by index, readers see them at once (SWMR).

Order of one frame, so that a reader who trusts the key can trust the frame: the chunk and its flush, then the time and
the key and their flush.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import h5py

from orchestrator.errors import InvalidInput
from orchestrator.simulator.encoding import FILTERS
from orchestrator.simulator.nexus import FINISHED, FRAMES, KEYS, LIBVER, WRITTEN_TIME, Scan, new_entry, write_skeleton
from orchestrator.simulator.settings import Layout, SimulationSettings


def create_file(path: Path) -> h5py.File:
    """Create an HDF5 file for SWMR writing; raises InvalidInput where that can't be."""
    try:
        return h5py.File(path, "w", libver=LIBVER)
    except OSError as error:
        raise InvalidInput(
            f"OUTPUT {path}: {error}", remedy="give a file in a folder that exists and can be written"
        ) from error


def _create_frames(parent: h5py.Group, scan: Scan, settings: SimulationSettings, count: int) -> h5py.Dataset:
    shape = scan.source.shape
    frames: h5py.Dataset = parent.create_dataset(
        "data",
        shape=(count if settings.preallocates else 0, *shape),
        maxshape=(None, *shape),
        chunks=(1, *shape),
        dtype=scan.source.dtype,
        **FILTERS[settings.compression],
    )
    frames.attrs["interpretation"] = "image"
    return frames


def _append(frames: h5py.Dataset, index: int, chunk: bytes) -> None:
    if index >= frames.shape[0]:
        frames.resize(index + 1, axis=0)
    frames.id.write_direct_chunk((index, 0, 0), chunk)
    frames.flush()


class DetectorWriter(ABC):
    """A detector's files while they are written. Closing without `finish` leaves the finished flag at 0."""

    def __init__(self, settings: SimulationSettings, scan: Scan) -> None:
        self.path = settings.output
        self._settings = settings
        self._scan = scan
        self._file = create_file(self.path)
        write_skeleton(self._file, scan)

    def _begin(self) -> None:
        self._keys: h5py.Dataset = self._file[KEYS]
        self._times: h5py.Dataset = self._file[WRITTEN_TIME]
        self._finished: h5py.Dataset = self._file[FINISHED]
        self._file.swmr_mode = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def write(self, index: int, chunk: bytes) -> None:
        """Write frame `index` (from 0) and make it visible."""
        written_at = time.time()
        self._write_chunk(index, chunk)
        self._times[index] = written_at
        self._times.flush()
        self._keys[index] = index + 1
        self._keys.flush()

    def finish(self) -> None:
        """Say that nothing more will come."""
        self._finished[0] = 1
        self._finished.flush()

    def close(self) -> None:
        """Close every file; readers keep theirs."""
        self._file.close()

    @property
    @abstractmethod
    def files(self) -> list[Path]:
        """Every file made so far."""

    @abstractmethod
    def _write_chunk(self, index: int, chunk: bytes) -> None: ...


class SingleFileWriter(DetectorWriter):
    """Everything in one file."""

    def __init__(self, settings: SimulationSettings, scan: Scan) -> None:
        super().__init__(settings, scan)
        self._frames = _create_frames(self._file["entry/data"], scan, settings, scan.number)
        self._begin()

    @property
    def files(self) -> list[Path]:
        return [self.path]

    def _write_chunk(self, index: int, chunk: bytes) -> None:
        _append(self._frames, index, chunk)


def data_file(master: Path, number: int) -> Path:
    """Return the name of data file `number` (from 0): ``scan_data_000001.h5`` beside ``scan_master.h5``."""
    return master.with_name(f"{master.stem.removesuffix('_master')}_data_{number + 1:06d}.h5")


class MasterWriter(DetectorWriter):
    """A master with a virtual dataset and external links; data files appear with their first frame.

    Parameters
    ----------
    indices
        The frames that will be written: a data file is closed after its last one.
    """

    def __init__(self, settings: SimulationSettings, scan: Scan, indices: Iterable[int]) -> None:
        super().__init__(settings, scan)
        self._per_file = settings.frames_per_file
        self._outstanding = Counter(index // self._per_file for index in indices)
        self._open: dict[int, h5py.Dataset] = {}
        self._files = [self.path]
        self._link_data_files()
        self._begin()

    @property
    def files(self) -> list[Path]:
        return list(self._files)

    def close(self) -> None:
        for frames in self._open.values():
            frames.file.close()
        self._open.clear()
        super().close()

    def _link_data_files(self) -> None:
        data, scan = self._file["entry/data"], self._scan
        layout = h5py.VirtualLayout(shape=(scan.number, *scan.source.shape), dtype=scan.source.dtype)
        for number, start in enumerate(range(0, scan.number, self._per_file)):
            count = self._count(number)
            name = data_file(self.path, number).name
            data[f"data_{number + 1:06d}"] = h5py.ExternalLink(name, FRAMES)
            layout[start : start + count] = h5py.VirtualSource(
                name, FRAMES, shape=(count, *scan.source.shape), dtype=scan.source.dtype
            )
        data.create_virtual_dataset("data", layout).attrs["interpretation"] = "image"

    def _count(self, number: int) -> int:
        """Return how many frames data file `number` is meant for."""
        return min(self._per_file, self._scan.number - number * self._per_file)

    def _write_chunk(self, index: int, chunk: bytes) -> None:
        number, row = divmod(index, self._per_file)
        if number not in self._open:
            self._open[number] = self._create_data_file(number)
        _append(self._open[number], row, chunk)
        self._outstanding[number] -= 1
        if not self._outstanding[number]:
            self._open.pop(number).file.close()

    def _create_data_file(self, number: int) -> h5py.Dataset:
        path = data_file(self.path, number)
        file = create_file(path)
        self._files.append(path)
        frames = _create_frames(new_entry(file)["data"], self._scan, self._settings, self._count(number))
        # Eiger's names; it counts images from 1.
        frames.attrs["image_nr_low"] = number * self._per_file + 1
        frames.attrs["image_nr_high"] = number * self._per_file + self._count(number)
        file.swmr_mode = True
        return frames


def make_room(settings: SimulationSettings) -> None:
    """Refuse to overwrite a file, or remove it and its data files when that is wanted.

    Raises
    ------
    InvalidInput
        The output exists and `overwrite` isn't set.
    """
    pattern = data_file(settings.output, 0).name.replace("000001", "[0-9]" * 6)
    old = [settings.output, *settings.output.parent.glob(pattern)] if settings.layout is Layout.MASTER else []
    for path in old or [settings.output]:
        if path.exists() and not settings.overwrite:
            raise InvalidInput(f"OUTPUT {path}: exists already", remedy="give another name, or --overwrite")
        path.unlink(missing_ok=True)


def open_writer(settings: SimulationSettings, scan: Scan, indices: Iterable[int]) -> DetectorWriter:
    """Create the files of the wanted layout, ready for frames."""
    if settings.layout is Layout.SINGLE:
        return SingleFileWriter(settings, scan)
    return MasterWriter(settings, scan, indices)
