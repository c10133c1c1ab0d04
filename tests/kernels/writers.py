"""Writers of detector files, as facilities have them; also a program that writes in SWMR mode while others read.

    python writers.py SPEC.json

writes what the spec says, frame by frame, in a process of its own.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np

DISTANCE_M, PIXEL_M, WAVELENGTH_M = 0.2, 1e-4, 1e-10
SATURATED = {"uint16": 2**16 - 1, "uint32": 2**32 - 1, "int32": -1}


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What to write and how."""

    path: str
    frames: int = 12
    shape: tuple[int, int] = (60, 80)
    dtype: str = "uint32"
    compression: str = "bitshuffle-lz4"
    chunks: tuple[int, ...] | None = None
    """Chunk shape; None: one frame."""
    lead: tuple[int, ...] | None = None
    """Leading dimensions of a grid scan; None: one that grows."""
    order: list[int] = field(default_factory=list)
    """Frame numbers in the order of writing; empty: all, in order. Numbers left out are gaps."""
    preallocate: bool = False
    keys: bool = False
    scan_keys: bool = False
    """Keys of the whole scan in /entry/diamond_scan/keys, instead of beside the frames."""
    finished_flag: bool = False
    files: int = 1
    """More than one: data files with interleaved frames and a master with a virtual dataset and external links."""
    files_late_s: float = 0.0
    """How long after the master the data files appear; of modules the last one."""
    modules: int = 1
    """More than one: a file for the rows of each detector module, and a master with a virtual dataset of frames."""
    interval_s: float = 0.0
    close: bool = True
    """Whether to close the file at the end, instead of staying there until killed."""
    geometry: bool = True
    seed: int = 7


def frame_of(spec: Spec, number: int) -> np.ndarray:
    """Return a frame: a ring with Poisson noise, a gap of marker values, different for every number."""
    ny, nx = spec.shape
    y, x = np.mgrid[:ny, :nx]
    radius = np.hypot(y - ny / 2 + 0.5, x - nx / 2 + 0.5)
    expected = 20 + number + 50 * np.exp(-((radius - 20) ** 2) / 18)
    frame = np.random.default_rng([spec.seed, number]).poisson(expected).astype(spec.dtype)
    marker = SATURATED[spec.dtype]
    frame[ny // 2, :] = marker
    frame[number % ny, number % nx] = marker
    return frame


def filters(name: str) -> dict[str, Any]:
    return {
        "none": {},
        "gzip": {"compression": "gzip", "compression_opts": 1},
        "shuffle-gzip": {"compression": "gzip", "shuffle": True},
        "bitshuffle-lz4": dict(hdf5plugin.Bitshuffle()),
        "bitshuffle-zstd": dict(hdf5plugin.Bitshuffle(cname="zstd")),
        "zstd": dict(hdf5plugin.Zstd()),
        "lz4": dict(hdf5plugin.LZ4()),
    }[name]


def add_geometry(file: h5py.File, spec: Spec) -> h5py.Group:
    """Add an entry with NXdetector and NXbeam; return the NXdetector."""
    entry = file.require_group("entry")
    entry.attrs["NX_class"] = "NXentry"
    instrument = entry.require_group("instrument")
    instrument.attrs["NX_class"] = "NXinstrument"
    instrument["name"] = "test beamline"
    detector = instrument.require_group("detector")
    detector.attrs["NX_class"] = "NXdetector"
    if not spec.geometry:
        return detector
    beam = instrument.require_group("beam")
    beam.attrs["NX_class"] = "NXbeam"
    for group, name, value, units in (
        (detector, "distance", DISTANCE_M * 1e3, "mm"),
        (detector, "x_pixel_size", PIXEL_M, "m"),
        (detector, "y_pixel_size", PIXEL_M * 1e6, "um"),
        (detector, "beam_center_x", spec.shape[1] / 2, "pixel"),
        (detector, "beam_center_y", spec.shape[0] / 2, "pixel"),
        (beam, "incident_wavelength", WAVELENGTH_M * 1e10, "angstrom"),
    ):
        group[name] = value
        group[name].attrs["units"] = units
    return detector


class Stack:
    """A dataset of frames that is being written, with its keys."""

    def __init__(self, group: h5py.Group, spec: Spec, frames: int, rows: slice = slice(None)) -> None:
        self.spec, self.rows = spec, rows
        shape = (len(range(*rows.indices(spec.shape[0]))), spec.shape[1])
        lead = spec.lead or (frames if spec.preallocate else 0,)
        chunks = tuple(spec.chunks) if spec.chunks else (1,) * len(lead) + shape
        self.data = group.create_dataset(
            "data",
            shape=(*lead, *shape),
            maxshape=(None, *lead[1:], *shape),
            chunks=chunks,
            dtype=spec.dtype,
            **filters(spec.compression),
        )
        self.keys: h5py.Dataset | None = None
        if spec.keys:
            self.keys = group.create_dataset("uid", shape=lead, maxshape=(None, *lead[1:]), dtype="i8", chunks=True)

    def write(self, position: int, number: int) -> None:
        if not self.spec.lead and position >= self.data.shape[0]:
            for dataset in filter(None, (self.data, self.keys)):
                dataset.resize(position + 1, axis=0)
        index = np.unravel_index(position, self.data.shape[:-2])
        self.data[index] = frame_of(self.spec, number)[self.rows]
        self.data.flush()
        if self.keys is not None:
            self.keys[index] = number + 1
            self.keys.flush()


def write(spec: Spec) -> None:
    """Write the files of a spec, in SWMR mode."""
    if spec.modules > 1:
        _write_modules(spec)
    elif spec.files > 1:
        _write_many(spec)
    else:
        _write_one(spec)


def _numbers(spec: Spec) -> list[int]:
    return spec.order or list(range(spec.frames))


def _write_one(spec: Spec) -> None:
    file = h5py.File(spec.path, "w", libver=("v110", "v110"))
    detector = add_geometry(file, spec)
    stack = Stack(detector, spec, spec.frames)
    scan_keys = add_scan_keys(file, spec)
    data = file["entry"].create_group("data")
    data.attrs["NX_class"] = "NXdata"
    data["data"] = detector["data"]
    flag = None
    if spec.finished_flag:
        flag = file["entry"].create_dataset("finished", data=[0], maxshape=(None,), chunks=(1,))
    file.swmr_mode = True
    for number in _numbers(spec):
        stack.write(number, number)
        set_key(scan_keys, number)
        time.sleep(spec.interval_s)
    if flag is not None:
        flag[0] = 1
    file.flush()
    _end(spec, [file])


def _write_many(spec: Spec) -> None:
    """Frame n lies in file n mod files, at n div files."""
    paths = [Path(spec.path).with_name(f"{Path(spec.path).stem}_{index}.h5") for index in range(spec.files)]
    master = _write_master(spec, paths)
    scan_keys = master.get("entry/diamond_scan/keys/frames")
    time.sleep(spec.files_late_s)
    opened, stacks = [master], []
    for path in paths:
        file = h5py.File(path, "w", libver=("v110", "v110"))
        stacks.append(Stack(file, spec, -(-spec.frames // spec.files)))
        file.swmr_mode = True
        opened.append(file)
    for number in _numbers(spec):
        stacks[number % spec.files].write(number // spec.files, number)
        set_key(scan_keys, number)
        time.sleep(spec.interval_s)
    _end(spec, opened)


def _write_master(spec: Spec, paths: list[Path]) -> h5py.File:
    master = h5py.File(spec.path, "w", libver=("v110", "v110"))
    detector = add_geometry(master, spec)
    layout = h5py.VirtualLayout(shape=(spec.frames, *spec.shape), dtype=spec.dtype)
    for index, path in enumerate(paths):
        count = len(range(index, spec.frames, spec.files))
        source = h5py.VirtualSource(path.name, "data", shape=(count, *spec.shape))
        layout[index :: spec.files] = source
        detector[f"link_{index}"] = h5py.ExternalLink(path.name, "/data")
    detector.create_virtual_dataset("data", layout)
    add_scan_keys(master, spec)
    master.swmr_mode = True
    return master


def _write_modules(spec: Spec) -> None:
    """Write the rows of each module to a file of its own."""
    edges = np.linspace(0, spec.shape[0], spec.modules + 1).astype(int)
    rows = [slice(int(start), int(stop)) for start, stop in itertools.pairwise(edges)]
    paths = [Path(spec.path).with_name(f"{Path(spec.path).stem}_{index}.h5") for index in range(spec.modules)]
    opened = [_write_module_master(spec, paths, rows)]
    stacks = []
    for path, part in zip(paths, rows, strict=True):
        if path == paths[-1]:
            time.sleep(spec.files_late_s)
        file = h5py.File(path, "w", libver=("v110", "v110"))
        stacks.append(Stack(file, spec, spec.frames, part))
        file.swmr_mode = True
        opened.append(file)
    for number in _numbers(spec):
        for stack in stacks:
            stack.write(number, number)
            time.sleep(spec.interval_s / spec.modules)
    _end(spec, opened)


def _write_module_master(spec: Spec, paths: list[Path], rows: list[slice]) -> h5py.File:
    master = h5py.File(spec.path, "w", libver=("v110", "v110"))
    detector = add_geometry(master, spec)
    layout = h5py.VirtualLayout(shape=(spec.frames, *spec.shape), dtype=spec.dtype)
    for path, part in zip(paths, rows, strict=True):
        layout[:, part] = h5py.VirtualSource(
            path.name, "data", shape=(spec.frames, part.stop - part.start, spec.shape[1])
        )
    detector.create_virtual_dataset("data", layout)
    master.swmr_mode = True
    return master


def add_scan_keys(file: h5py.File, spec: Spec) -> h5py.Dataset | None:
    if not spec.scan_keys:
        return None
    return file.create_dataset(
        "entry/diamond_scan/keys/frames", shape=(spec.frames,), maxshape=(None,), chunks=(spec.frames,), dtype="i8"
    )


def set_key(keys: h5py.Dataset | None, number: int) -> None:
    if keys is not None:
        keys[number] = number + 1
        keys.flush()


def _end(spec: Spec, files: list[h5py.File]) -> None:
    if not spec.close:
        time.sleep(600)
    for file in files:
        file.close()


def save_spec(spec: Spec, path: Path) -> Path:
    path.write_text(json.dumps(asdict(spec)))
    return path


if __name__ == "__main__":
    write(Spec(**json.loads(Path(sys.argv[1]).read_text())))
