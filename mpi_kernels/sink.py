"""NeXus out: the result file, growing in SWMR mode. Only rank 0 has one.

The file is made under another name and renamed when its structure is complete and SWMR has begun, so that a reader
never finds it half made. Values that change later (counts, flags, texts) are chunked datasets: HDF5 can't show
contiguous ones that were allocated late (HDF5 issue 5251). A frame's status is written after its row was flushed: a
reader that sees ``processed`` sees the values. Layout: ``docs/reference/result-file.md``.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mpi_kernels.errors import OutputUnwritable
from mpi_kernels.frame_digests import DIGESTS, ROWS_AT_ONCE, Seal, sealed
from mpi_kernels.kernel import Accumulating, Array, Column, Prepared
from mpi_kernels.nexus import TEXT_BYTES, add_parameter, circumstance, clipped, group, process, readable
from mpi_kernels.rows import Rows, Status

_CHUNK_BYTES = 65536
_PICTURE_CHUNK_BYTES = 1 << 20

_MADE = "made_"
"""What begins so in the process note says how the result came about, not what it is."""

_MAKING = (
    "command_line", "run_id", "input", "dataset", "host", "boot_id", "software", "source_sha256", "fingerprint",
    "parameters_sha256",
)  # fmt: skip

_abandoned: list[ResultFile] = []
"""Results that couldn't be written. Letting go of their handles would make HDF5 try again, and complain or crash."""


@dataclass(frozen=True, kw_only=True)
class Making:
    """How the result came about, as it stands in the file."""

    program: str
    version: str
    command_line: str
    run_id: str
    input: str
    dataset: str
    ranks: int
    host: str
    boot_id: str
    """Of the machine since its last start; what was written before a later one may not have reached the disk."""
    software: str
    fingerprint: str
    """Of all that the rows depend on (`earlier`)."""
    source_sha256: str
    """Of the kernels' own code (`identity`)."""
    parameters_sha256: str
    """Of the parameter file as it was read."""
    parameters: Mapping[str, Any]
    parameters_json: str
    started_at: datetime


class ResultFile:
    """The growing result.

    Parameters
    ----------
    path
        Its final name; an older file there is replaced.
    earlier
        Rows of an earlier run, which it begins with.

    Raises
    ------
    OutputUnwritable
        Also from every method: no space, no permission.
    """

    def __init__(
        self, path: Path, prepared: Prepared, making: Making, *, expected: int | None, earlier: Iterable[Rows] = ()
    ) -> None:
        self._path = path
        temporary = path.with_name(f".{path.name}.making")
        with self._writable():
            temporary.unlink(missing_ok=True)
            self._file = h5py.File(temporary, "x", libver=("v110", "v110"))
            entry = _entry(self._file, prepared, making)
            # handles are kept: looking datasets up by name for every batch takes longer than writing them
            self._frames = _frames_group(entry, expected)
            self._columns = {item.path: _growing(entry, item) for item in (*prepared.reduction.columns, DIGESTS)}
            self._pictures = _picture_datasets(entry, prepared)
            self._growing = [*self._columns.values(), *(self._frames[name] for name in _PER_FRAME)]
            for rows in earlier:
                self._write_rows(rows)
            self._file.swmr_mode = True
            self._file.flush()
            temporary.replace(path)

    def write(self, rows: Rows) -> None:
        """Write results and make them readable; `rows` are in the order of their frames and replace earlier ones."""
        if len(rows):
            with self._writable():
                self._write_rows(rows)

    def _write_rows(self, rows: Rows) -> None:
        self._grow(int(rows.frames[-1]) + 1)
        runs = list(neighbours(rows))
        for path, dataset in self._columns.items():
            for place, own in runs:
                dataset[place] = rows.columns[path][own]
        self._file.flush()
        now = time.time()
        for place, own in runs:
            self._frames["status"][place] = rows.status[own]
            self._frames["computed_time"][place] = rows.computed_time[own]
            self._frames["processed_time"][place] = now
        for frame, text in rows.messages.items():
            self._frames["message"][frame] = clipped(text)

    def write_counts(self, *, written: int, processed: int, failed: int) -> None:
        """Write the counts and make them, and the rows' status, readable."""
        with self._writable():
            for name, value in (("written", written), ("processed", processed), ("failed", failed)):
                self._frames[name][0] = value
            self._file.flush()

    def write_pictures(self, pictures: Mapping[str, Array]) -> None:
        """Replace what was gathered over all frames, and make it readable."""
        with self._writable():
            for path, values in pictures.items():
                self._pictures[path][...] = values
            self._file.flush()

    def write_reading_route(self, text: str) -> None:
        """Say how frames are read."""
        with self._writable():
            self._frames["reading_route"][0] = clipped(text)

    def finish(self, *, finished: bool, ended_because: str) -> Seal:
        """Write the last words, close the file, and return the seal over the frames that have results."""
        with self._writable():
            seal = sealed(self._digests())
            self._frames["input_seal"][0] = clipped(f"{seal.algorithm} {seal.digest} of {seal.frames} frames")
            self._frames["ended_because"][0] = clipped(ended_because)
            self._frames["end_time"][0] = clipped(datetime.now(UTC).isoformat())
            self._frames["finished"][0] = int(finished)
            self._file.flush()
            self._file.close()
        return seal

    def _digests(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
        """Yield numbers and digests of the frames that have results, some at a time."""
        status, digests = self._frames["status"], self._columns[DIGESTS.path]
        for start in range(0, len(status), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            done = np.flatnonzero(status[rows] == Status.PROCESSED)
            yield start + done, digests[rows][done]

    def _grow(self, rows: int) -> None:
        held = self._frames["status"].shape[0]
        if rows <= held:
            return
        for dataset in self._growing:
            dataset.resize(rows, axis=0)
        self._frames["frame_index"][held:rows] = np.arange(held, rows)

    @contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, ValueError) as error:  # HDF5 raises each of these when a write fails
            _abandoned.append(self)
            raise OutputUnwritable(
                f"{self._path}: {error}", remedy="check the folder, its permissions and the disk's space"
            ) from error


def neighbours(rows: Rows) -> Iterator[tuple[slice, slice]]:
    """Yield runs of adjacent frames, where they belong and where they are: one write takes as long as one row's."""
    breaks = np.flatnonzero(np.diff(rows.frames) != 1) + 1
    edges = [0, *breaks.tolist(), len(rows)]
    for first, last in itertools.pairwise(edges):
        frame = int(rows.frames[first])
        yield slice(frame, frame + last - first), slice(first, last)


def _entry(file: h5py.File, prepared: Prepared, making: Making) -> h5py.Group:
    file.attrs["default"] = "entry"
    file.attrs["creator"] = making.program
    entry = group(file, "entry", "NXentry")
    entry.attrs["default"] = "data"
    if prepared.definition:
        entry["definition"] = prepared.definition
    entry["title"] = readable(f"{prepared.title} of {making.input}::{making.dataset}")
    entry["start_time"] = making.started_at.isoformat()
    for name in ("title", "start_time"):
        circumstance(entry[name])
    _process(entry, prepared, making)
    prepared.describe(entry)
    return entry


def _process(entry: h5py.Group, prepared: Prepared, making: Making) -> None:
    made = process(
        entry,
        program=making.program,
        version=making.version,
        date=making.started_at.isoformat(),
        parameters=making.parameters_json,
    )
    made["reference"] = prepared.reference
    made["note"] = prepared.note
    given = made["input"]
    for name, value in making.parameters.items():
        add_parameter(given, name, "none" if value is None else json.dumps(value) if isinstance(value, dict) else value)
    for name in _MAKING:
        given[f"{_MADE}{name}"] = readable(getattr(making, name))
    given[f"{_MADE}files_json"] = json.dumps([asdict(file) for file in prepared.files])
    given[f"{_MADE}ranks"] = making.ranks
    for name, value in prepared.notes.items():
        add_parameter(given, name, value)
    named = {"parameters_json", *(file.parameter for file in prepared.files)}
    for name in given:
        if name.startswith(_MADE) or name in named:
            circumstance(given[name])


_PER_FRAME = ("status", "frame_index", "computed_time", "processed_time", "message")
# messages name files, and what was announced isn't in the frames
_CIRCUMSTANCES = (
    "computed_time", "processed_time", "message", "expected", "ended_because", "end_time", "reading_route",
)  # fmt: skip


def _frames_group(entry: h5py.Group, expected: int | None) -> dict[str, h5py.Dataset]:
    frames = group(entry, "frames", "NXcollection")
    text = h5py.string_dtype("utf-8", TEXT_BYTES)
    status = _per_frame(frames, "status", np.uint8, Status.MISSING)
    status.attrs["meaning"] = ", ".join(f"{item.value} {item.name.lower()}" for item in Status)
    _per_frame(frames, "frame_index", np.int64, -1)
    for name in ("computed_time", "processed_time"):
        times = _per_frame(frames, name, np.float64, np.nan)
        times.attrs["units"] = "s"
        times.attrs["start"] = "1970-01-01T00:00:00+00:00"
    _per_frame(frames, "message", text, None)
    _changing(frames, "expected", -1 if expected is None else expected)
    for name in ("written", "processed", "failed"):
        _changing(frames, name, 0)
    _changing(frames, "finished", 0)
    for name in ("ended_because", "end_time", "reading_route", "input_seal"):
        frames.create_dataset(name, shape=(1,), maxshape=(None,), chunks=(1,), dtype=text, data=[b""])
    for name in _CIRCUMSTANCES:
        circumstance(frames[name])
    return dict(frames.items())


def _changing(parent: h5py.Group, name: str, value: int) -> None:
    parent.create_dataset(name, data=[value], maxshape=(None,), chunks=(1,), dtype=np.int64)


def _growing(entry: h5py.Group, column: Column) -> h5py.Dataset:
    dataset = _per_frame(entry[column.group], column.name, column.dtype, column.fill, column.shape)
    dataset.attrs.update(column.attributes)
    return dataset


def _per_frame(parent: h5py.Group, name: str, dtype: Any, fill: Any, shape: tuple[int, ...] = ()) -> h5py.Dataset:
    row_bytes = np.dtype(dtype).itemsize * int(np.prod(shape, dtype=int))
    rows = max(1, min(1024, _CHUNK_BYTES // row_bytes))
    return parent.create_dataset(
        name, shape=(0, *shape), maxshape=(None, *shape), chunks=(rows, *shape), dtype=dtype, fillvalue=fill
    )


def _picture_datasets(entry: h5py.Group, prepared: Prepared) -> dict[str, h5py.Dataset]:
    if not isinstance(prepared.reduction, Accumulating):
        return {}
    pictures = prepared.reduction.pictures(final=False)
    return {path: _picture(entry, path, values, prepared.attributes.get(path, {})) for path, values in pictures.items()}


def _picture(entry: h5py.Group, path: str, values: Array, attributes: Mapping[str, str]) -> h5py.Dataset:
    # chunked, because what changes in a contiguous dataset isn't seen by all readers
    rows = max(1, min(values.shape[0], _PICTURE_CHUNK_BYTES // values[0].nbytes))
    parent, _, name = path.rpartition("/")
    chunks = (rows, *values.shape[1:])
    dataset = entry[parent].create_dataset(name, data=values, chunks=chunks)
    dataset.attrs.update(attributes)
    return dataset
