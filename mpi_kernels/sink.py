"""NeXus out: the result file, NXazint1d, growing in SWMR mode. Only rank 0 has one.

The file is made under another name and renamed when its structure is complete and SWMR has begun, so that a reader
never finds it half made. Values that change later (counts, flags, texts) are chunked datasets: HDF5 can't show
contiguous ones that were allocated late (HDF5 issue 5251). A frame's status is written after its row was flushed: a
reader that sees ``processed`` sees the values. Layout: ``docs/reference/result-file.md``.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mpi_kernels.errors import OutputUnwritable
from mpi_kernels.geometry import HC_KEV_ANGSTROM
from mpi_kernels.preparation import Prepared
from mpi_kernels.rows import Row, Status

_LABELS = {
    "q_nm^-1": ("q", "1/nm"),
    "q_A^-1": ("q", "1/angstrom"),
    "2th_deg": ("2theta", "degree"),
    "2th_rad": ("2theta", "rad"),
}
_CHUNK_BYTES = 65536
_TEXT = 256

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
    software: str
    started_at: datetime


class ResultFile:
    """The growing result.

    Parameters
    ----------
    path
        Its final name; an older file there is replaced.

    Raises
    ------
    OutputUnwritable
        Also from every method: no space, no permission.
    """

    def __init__(self, path: Path, prepared: Prepared, making: Making, *, expected: int | None) -> None:
        self._path = path
        temporary = path.with_name(f".{path.name}.making")
        with self._writable():
            temporary.unlink(missing_ok=True)
            self._file = h5py.File(temporary, "x", libver=("v110", "v110"))
            entry = _entry(self._file, prepared, making)
            # handles are kept: looking datasets up by name for every batch takes longer than writing them
            self._data = _datasets(_data_group(entry, prepared))
            self._frames = _datasets(_frames_group(entry, expected))
            datasets = (*self._data.values(), *self._frames.values())
            self._growing = [item for item in datasets if "per_frame" in item.attrs]
            self._file.swmr_mode = True
            self._file.flush()
            temporary.replace(path)

    def write(self, rows: Sequence[Row]) -> None:
        """Write results and make them readable; rows may come in any order and replace earlier ones."""
        if not rows:
            return
        with self._writable():
            self._grow(max(row.frame for row in rows) + 1)
            runs = list(_neighbours(rows))
            for first, run in runs:
                self._write_values("I", first, [row.intensity for row in run])
                if "I_errors" in self._data:
                    self._write_values("I_errors", first, [row.sigma for row in run])
            self._file.flush()
            now = time.time()
            for first, run in runs:
                self._frames["status"][first : first + len(run)] = [row.status for row in run]
                self._frames["processed_time"][first : first + len(run)] = now
            for row in rows:
                if row.reason:
                    self._frames["message"][row.frame] = _clipped(row.reason)

    def _write_values(self, name: str, first: int, values: Sequence[NDArray[np.float64] | None]) -> None:
        dataset = self._data[name]
        none = np.full(dataset.shape[1], np.nan)
        dataset[first : first + len(values)] = np.stack([none if value is None else value for value in values])

    def write_counts(self, *, written: int, processed: int, failed: int) -> None:
        """Write the counts and make them, and the rows' status, readable."""
        with self._writable():
            for name, value in (("written", written), ("processed", processed), ("failed", failed)):
                self._frames[name][0] = value
            self._file.flush()

    def write_reading_route(self, text: str) -> None:
        """Say how frames are read."""
        with self._writable():
            self._frames["reading_route"][0] = _clipped(text)

    def finish(self, *, finished: bool, ended_because: str) -> None:
        """Write the last words and close the file."""
        with self._writable():
            self._frames["ended_because"][0] = _clipped(ended_because)
            self._frames["end_time"][0] = _clipped(datetime.now(UTC).isoformat())
            self._frames["finished"][0] = int(finished)
            self._file.flush()
            self._file.close()

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


def _neighbours(rows: Sequence[Row]) -> Iterator[tuple[int, list[Row]]]:
    """Yield runs of rows with adjacent frames, each with its first frame: one write takes as long as one row's."""
    latest = {row.frame: row for row in rows}
    for _, run in itertools.groupby(enumerate(sorted(latest)), key=lambda item: item[1] - item[0]):
        frames = [frame for _, frame in run]
        yield frames[0], [latest[frame] for frame in frames]


def _datasets(group: h5py.Group) -> dict[str, h5py.Dataset]:
    return dict(group.items())


def _clipped(text: str) -> bytes:
    return _readable(text).encode()[:_TEXT].decode("utf-8", "ignore").encode()


def _readable(text: str) -> str:
    """Return `text` with escapes for what UTF-8 and HDF5 can't hold: bytes of another encoding in names and paths."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", r"\0")


def _group(parent: h5py.Group, name: str, nx_class: str) -> h5py.Group:
    group = parent.create_group(name)
    group.attrs["NX_class"] = nx_class
    return group


def _entry(file: h5py.File, prepared: Prepared, making: Making) -> h5py.Group:
    file.attrs["default"] = "entry"
    file.attrs["creator"] = making.program
    entry = _group(file, "entry", "NXentry")
    entry.attrs["default"] = "data"
    entry["definition"] = "NXazint1d"
    entry["title"] = _readable(f"azimuthal integration of {making.input}::{making.dataset}")
    entry["start_time"] = making.started_at.isoformat()
    entry["solid_angle_applied"] = np.bool_(prepared.parameters.solid_angle)
    entry["polarization_applied"] = np.bool_(prepared.parameters.polarization_factor is not None)
    entry["normalization_applied"] = np.bool_(True)
    entry["monitor_applied"] = np.bool_(False)
    _instrument(entry, prepared)
    _reduction(entry, prepared, making)
    return entry


def _instrument(entry: h5py.Group, prepared: Prepared) -> None:
    names, wavelength_m = prepared.names, prepared.geometry.wavelength_m
    instrument = _group(entry, "instrument", "NXinstrument")
    instrument["name"] = _readable(names.instrument) or "not stated"
    source = _group(instrument, "source", "NXsource")
    source["name"] = _readable(names.source) or "not stated"
    source["type"] = _readable(names.source_type) or "not stated"
    source["probe"] = _readable(names.probe) or "not stated"
    if wavelength_m is not None:
        monochromator = _group(instrument, "monochromator", "NXmonochromator")
        angstrom = wavelength_m * 1e10
        for name, value, units in (("wavelength", angstrom, "angstrom"), ("energy", HC_KEV_ANGSTROM / angstrom, "keV")):
            monochromator[name] = value
            monochromator[name].attrs["units"] = units


def _reduction(entry: h5py.Group, prepared: Prepared, making: Making) -> None:
    process = _group(entry, "reduction", "NXprocess")
    process["program"] = making.program
    process["version"] = making.version
    process["date"] = making.started_at.isoformat()
    process["reference"] = "docs/reference/azimuthal.md; Ashiotis et al., J. Appl. Cryst. 48 (2015) 510-519"
    process["note"] = (
        "no pixel splitting; I is the sum of corrected counts over the sum of normalisations per bin; "
        "azimuth and geometry in the laboratory frame x horizontal, z along the beam, origin at the sample"
    )
    given = _group(process, "input", "NXparameters")
    for name, value in prepared.parameters.model_dump().items():
        given[name] = "none" if value is None else value
    given["parameters_json"] = prepared.parameters.model_dump_json()
    for name in ("command_line", "run_id", "input", "dataset", "host", "software"):
        given[f"made_{name}"] = _readable(getattr(making, name))
    given["made_ranks"] = making.ranks
    given["masked_pixels"] = prepared.masked_pixels
    given["geometry_json"] = _geometry_json(prepared)


def _geometry_json(prepared: Prepared) -> str:
    geometry = prepared.geometry
    return json.dumps(
        {
            "source": geometry.source,
            "origin_m": geometry.origin_m.tolist(),
            "fast_m": geometry.fast_m.tolist(),
            "slow_m": geometry.slow_m.tolist(),
            "wavelength_m": geometry.wavelength_m,
        }
    )


def _data_group(entry: h5py.Group, prepared: Prepared) -> h5py.Group:
    integrator = prepared.integrator
    data = _group(entry, "data", "NXdata")
    data.attrs["signal"] = "I"
    data.attrs["axes"] = [".", "radial_axis"]
    data.attrs["interpretation"] = "spectrum"
    data.attrs["radial_axis_indices"] = 1
    names = [("I", "intensity")]
    if prepared.parameters.error_model != "none":
        names.append(("I_errors", "estimated intensity error"))
    for name, long_name in names:
        dataset = _per_frame(data, name, np.float64, np.nan, width=integrator.bins)
        dataset.attrs["long_name"] = long_name
        dataset.attrs["units"] = "arbitrary units"
        dataset.attrs["interpretation"] = "spectrum"
    label, units = _LABELS[prepared.parameters.unit]
    norm_label = "effective number of pixels contributing to the corresponding bin"
    for name, values, long_name, unit in (
        ("radial_axis", integrator.centres, label, units),
        ("radial_axis_edges", integrator.edges, f"{label} bin edges", units),
        ("norm", integrator.norm, norm_label, "arbitrary units"),
    ):
        data[name] = values
        data[name].attrs["long_name"] = long_name
        data[name].attrs["units"] = unit
    return data


def _frames_group(entry: h5py.Group, expected: int | None) -> h5py.Group:
    frames = _group(entry, "frames", "NXcollection")
    status = _per_frame(frames, "status", np.uint8, Status.MISSING)
    status.attrs["meaning"] = ", ".join(f"{item.value} {item.name.lower()}" for item in Status)
    _per_frame(frames, "frame_index", np.int64, -1)
    times = _per_frame(frames, "processed_time", np.float64, np.nan)
    times.attrs["units"] = "s"
    times.attrs["start"] = "1970-01-01T00:00:00+00:00"
    text = h5py.string_dtype("utf-8", _TEXT)
    _per_frame(frames, "message", text, None)
    _changing(frames, "expected", -1 if expected is None else expected)
    for name in ("written", "processed", "failed"):
        _changing(frames, name, 0)
    _changing(frames, "finished", 0)
    for name in ("ended_because", "end_time", "reading_route"):
        frames.create_dataset(name, shape=(1,), maxshape=(None,), chunks=(1,), dtype=text, data=[b""])
    return frames


def _changing(group: h5py.Group, name: str, value: int) -> None:
    group.create_dataset(name, data=[value], maxshape=(None,), chunks=(1,), dtype=np.int64)


def _per_frame(group: h5py.Group, name: str, dtype: Any, fill: Any, width: int | None = None) -> h5py.Dataset:
    row_bytes = np.dtype(dtype).itemsize * (width or 1)
    rows = max(1, min(1024, _CHUNK_BYTES // row_bytes))
    inner = () if width is None else (width,)
    dataset = group.create_dataset(
        name, shape=(0, *inner), maxshape=(None, *inner), chunks=(rows, *inner), dtype=dtype, fillvalue=fill
    )
    dataset.attrs["per_frame"] = 1
    return dataset
