"""The NeXus skeleton of a detector file: everything but the frames. See ``docs/reference/simulated-detector.md``.

All objects are made before SWMR begins, since none can be added later; what changes during the scan is chunked and
allocated beforehand (a dataset allocated late in SWMR mode may be unreadable).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from orchestrator.simulator.frames import FrameSource

KEYS = "/entry/diamond_scan/keys/uniqueKeys"
FINISHED = "/entry/diamond_scan/scan_finished"
WRITTEN_TIME = "/entry/diamond_scan/frame_written_time"
FRAMES = "/entry/data/data"
LIBVER = ("v110", "v110")
"""The format of HDF5 1.10, which is what facilities can read."""
_CHUNK = 1024


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What a writer must know about the scan."""

    source: FrameSource
    number: int
    frame_time_s: float


def group(parent: h5py.Group, name: str, nx_class: str) -> h5py.Group:
    """Create a NeXus group."""
    made = parent.create_group(name)
    made.attrs["NX_class"] = nx_class
    return made


def field(parent: h5py.Group, name: str, value: object, units: str = "") -> h5py.Dataset:
    """Create a NeXus field."""
    made = parent.create_dataset(name, data=value)
    if units:
        made.attrs["units"] = units
    return made


def new_entry(file: h5py.File) -> h5py.Group:
    """Create the entry and, inside it, the NXdata group that is plotted by default."""
    file.attrs["default"] = "entry"
    entry = group(file, "entry", "NXentry")
    entry.attrs["default"] = "data"
    data = group(entry, "data", "NXdata")
    data.attrs["signal"] = "data"
    data.attrs["axes"] = [".", ".", "."]
    return entry


def write_skeleton(file: h5py.File, scan: Scan) -> None:
    """Write everything but the frames into an empty file."""
    entry = new_entry(file)
    field(entry, "title", scan.source.title)
    field(entry, "start_time", datetime.now(UTC).isoformat(timespec="milliseconds"))
    field(group(entry, "sample", "NXsample"), "name", scan.source.sample)
    instrument = group(entry, "instrument", "NXinstrument")
    field(instrument, "name", "simulated detector of the orchestrator")
    source = group(instrument, "source", "NXsource")
    for name, value in (("name", "simulated"), ("type", "Synchrotron X-ray Source"), ("probe", "x-ray")):
        field(source, name, value)
    beam = group(instrument, "beam", "NXbeam")
    field(beam, "incident_wavelength", scan.source.geometry.wavelength_angstrom, "angstrom")
    _write_detector(group(instrument, "detector", "NXdetector"), scan)
    _write_bookkeeping(group(entry, "diamond_scan", "NXcollection"), scan)


def _write_detector(detector: h5py.Group, scan: Scan) -> None:
    source, geometry = scan.source, scan.source.geometry
    field(detector, "description", "simulated area detector")
    field(detector, "type", "Pixel")
    field(detector, "distance", geometry.distance_m, "m")
    field(detector, "x_pixel_size", geometry.x_pixel_m, "m")
    field(detector, "y_pixel_size", geometry.y_pixel_m, "m")
    field(detector, "beam_center_x", geometry.beam_center_x_px, "pixel")
    field(detector, "beam_center_y", geometry.beam_center_y_px, "pixel")
    field(detector, "count_time", scan.frame_time_s, "s")
    field(detector, "frame_time", scan.frame_time_s, "s")
    if source.pixel_mask is not None:
        detector.create_dataset("pixel_mask", data=source.pixel_mask, compression="gzip", chunks=source.shape)
        field(detector, "pixel_mask_applied", np.True_)
    _write_position(detector, geometry.distance_m)


def _write_position(detector: h5py.Group, distance_m: float) -> None:
    transformations = group(detector, "transformations", "NXtransformations")
    along_beam = field(transformations, "detector_z", distance_m, "m")
    along_beam.attrs["transformation_type"] = "translation"
    along_beam.attrs["vector"] = (0.0, 0.0, 1.0)
    along_beam.attrs["depends_on"] = "."
    field(detector, "depends_on", along_beam.name)


def _write_bookkeeping(scan_group: h5py.Group, scan: Scan) -> None:
    """Diamond's names: a key per frame, 0 until it is written, and a flag that is 1 once nothing more will come."""
    field(scan_group, "scan_shape", np.array([scan.number], dtype=np.int64))
    keys = group(scan_group, "keys", "NXcollection")
    _changing(keys, "uniqueKeys", np.zeros(scan.number, dtype=np.int64))
    _changing(scan_group, "scan_finished", np.zeros(1, dtype=np.int32))
    written = _changing(scan_group, "frame_written_time", np.full(scan.number, np.nan))
    written.attrs["units"] = "s"
    written.attrs["start"] = "1970-01-01T00:00:00+00:00"
    written.attrs["long_name"] = "time just before the flush that made the frame visible; NaN: not written"


def _changing(parent: h5py.Group, name: str, initial: npt.NDArray[Any]) -> h5py.Dataset:
    """Create a dataset whose values may change in SWMR mode: chunked, every chunk allocated."""
    return parent.create_dataset(name, data=initial, chunks=(min(initial.size, _CHUNK),), maxshape=(None,))
