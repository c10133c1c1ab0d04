"""HDF5 reads other frames than asked for when one process opens a dataset twice (h5py issue 2803).

The kernels make that impossible, and would notice.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest

from mpi_kernels.errors import FrameUnreadable, KernelError
from mpi_kernels.hdf5_files import Library
from mpi_kernels.segments import Layout
from mpi_kernels.source import FrameSource
from mpi_kernels.stored_frames import StoredFrames

from .harness import NEXUS_DATASET, assert_same_results, run_kernel
from .writers import Spec, frame_of, write

DIRECT, SLICED = {"compression": "gzip"}, {"compression": "gzip", "chunks": (1, 25, 40)}


def other_names(scan: Path) -> list[tuple[Path, str]]:
    """Give the dataset of a scan all kinds of other names; return them with its own."""
    with h5py.File(scan, "r+") as file:
        file["entry/soft"] = h5py.SoftLink(NEXUS_DATASET)
        file["entry/relative"] = h5py.SoftLink("instrument/detector/data")
    master = scan.with_name("master.h5")
    with h5py.File(master, "w", libver="latest") as file:
        file["entry/external"] = h5py.ExternalLink(scan.name, "/entry/soft")
        file["entry/group"] = h5py.ExternalLink(str(scan), "/entry/instrument")
    linked = scan.with_name("linked.h5")
    linked.symlink_to(scan)
    return [
        (scan, NEXUS_DATASET),
        (scan, "/entry/data/data"),
        (scan, "entry//data/./data"),
        (scan, "/entry/soft"),
        (scan, "/entry/relative"),
        (master, "/entry/external"),
        (master, "/entry/group/detector/data"),
        (linked, NEXUS_DATASET),
        (scan.parent / "." / scan.name, NEXUS_DATASET),
    ]


@pytest.mark.parametrize("storage", [DIRECT, SLICED])
def test_a_dataset_has_one_handle_whatever_its_name(tmp_path: Path, storage: dict[str, object]) -> None:
    spec = Spec(path=str(tmp_path / "scan.h5"), **storage)
    write(spec)
    names = other_names(Path(spec.path))
    library = Library("live")
    handles = [library.dataset(file, path) for file, path in names]
    assert all(handle is handles[0] for handle in handles)
    frames = StoredFrames(handles[0], Path(spec.path), live=True)
    for _ in range(3):
        frames.refresh()
        for number in range(spec.frames):
            np.testing.assert_array_equal(frames.read(number), frame_of(spec, number))
    library.close()


def test_virtual_dataset_is_never_open_beside_its_sources(tmp_path: Path) -> None:
    spec = Spec(path=str(tmp_path / "scan.h5"), files=3)
    write(spec)
    library = Library("live")
    layout = Layout(library, Path(spec.path), NEXUS_DATASET)
    source = FrameSource(library)
    for _ in range(3):
        for segment in layout.segments:
            source.look_again(segment)
            for index in range(4):
                frame = source.read(segment, index)
                np.testing.assert_array_equal(frame, frame_of(spec, segment.frames.at(index)))
        library.virtual(library.locate(Path(spec.path), NEXUS_DATASET))
    open_datasets = h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_DATASET)
    assert open_datasets == len(layout.segments)
    library.close()


GROWING = """
import sys, time, h5py, numpy as np
from pathlib import Path
path, frames, chunks = Path(sys.argv[1]), int(sys.argv[2]), tuple(map(int, sys.argv[3].split(",")))
layout = h5py.VirtualLayout(shape=(frames, 24, 32), dtype="u4")
layout[:] = h5py.VirtualSource(".", "/data", shape=(frames, 24, 32))
halves = h5py.VirtualLayout(shape=(frames, 24, 32), dtype="u4")
for part in (slice(0, 12), slice(12, 24)):
    halves[:, part] = h5py.VirtualSource(".", "/data", shape=(frames, 24, 32))[:, part]
with h5py.File(path, "w", libver=("v110", "v110")) as file:
    data = file.create_dataset("data", (0, 24, 32), "u4", maxshape=(None, 24, 32), chunks=chunks, compression="gzip")
    file["same"], file["soft"], file["there"] = data, h5py.SoftLink("/data"), h5py.ExternalLink(path.name, "/data")
    file.create_virtual_dataset("virtual", layout)
    file.create_virtual_dataset("halves", halves)
    file.swmr_mode = True
    print("open", flush=True)
    for number in range(frames):
        data.resize(number + 1, axis=0)
        data[number] = np.random.default_rng(number).integers(0, 2**32, (24, 32), "u4")
        data.flush()
        time.sleep(0.01)
"""


@contextmanager
def second_name(path: Path, kind: str) -> Iterator[Path]:
    """Give a file a second name."""
    other = path.with_name("other.h5")
    if kind == "bind mount":
        if os.geteuid() != 0:
            pytest.skip("NOT TESTED: only root can make bind mounts")
        other.touch()
        subprocess.run(["mount", "--bind", str(path), str(other)], check=True)
    elif kind == "hard link":
        other.hardlink_to(path)
    else:
        other.symlink_to(path)
    try:
        yield other
    finally:
        if kind == "bind mount":
            subprocess.run(["umount", "--lazy", str(other)], check=True)


@pytest.mark.parametrize("kind", ["symbolic link", "hard link", "bind mount"])
@pytest.mark.parametrize("chunks", [(1, 24, 32), (1, 10, 32), (4, 24, 32)])
def test_growing_file_under_many_names_gives_each_frame_as_itself(
    tmp_path: Path, kind: str, chunks: tuple[int, ...]
) -> None:
    frames, path = 150, tmp_path / "scan.h5"
    command = [sys.executable, "-c", GROWING, str(path), str(frames), ",".join(map(str, chunks))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "open\n"
        with second_name(path, kind) as other:
            library = Library("live")
            source, names = FrameSource(library), ("/data", "/same", "/soft", "/there", "/virtual", "/halves")
            layouts = [Layout(library, file, name) for file in (path, other) for name in names]
            segments = [segment for layout in layouts for segment in layout.segments]
            writing, read, read_live = True, 0, 0
            while writing or read < frames:
                writing = writer.poll() is None
                for segment in segments:
                    source.look_again(segment)
                there = sum(source.dataset(segments[0]).has(number) for number in range(frames))
                whole = there // chunks[0] * chunks[0] - chunks[0] if writing else frames
                for number in range(read, whole):
                    expected = np.random.default_rng(number).integers(0, 2**32, (24, 32), "u4")
                    for segment in segments:
                        np.testing.assert_array_equal(source.read(segment, number), expected)
                read = max(read, whole)
                read_live = read if writing else read_live
            assert read_live > frames / 3
            assert h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_DATASET) == 1
            library.close()


@pytest.mark.parametrize("storage", [DIRECT, SLICED])
def test_wrong_frames_from_hdf5_would_end_the_run(tmp_path: Path, storage: dict[str, object]) -> None:
    """The fault itself, made by opening the dataset behind the library's back.

    Where an HDF5 version doesn't have the fault, the frames must be right.
    """
    spec = Spec(path=str(tmp_path / "scan.h5"), **storage)
    write(spec)
    library = Library("live")
    frames = StoredFrames(library.dataset(Path(spec.path), NEXUS_DATASET), Path(spec.path), live=True)
    frames.read(3)
    with h5py.File(spec.path, "r", swmr=True, locking=False) as behind_our_back:
        second = behind_our_back[NEXUS_DATASET]
        second[0]
        for dataset in (frames, second):
            dataset.refresh()
        for number in (7, 2, 9):
            try:
                frame = frames.read(number)
            except FrameUnreadable:
                continue  # HDF5 noticed by itself
            except KernelError as error:
                assert f"HDF5 returned what is at (0, 0, 0) for what is at ({number}, 0, 0)" in str(error)  # noqa: PT017  either outcome is right
            else:
                np.testing.assert_array_equal(frame, frame_of(spec, number))
    library.close()


def test_equal_frames_in_a_file_are_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "same.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file.create_dataset("data", data=np.ones((5, 8, 9), "u4"), chunks=(1, 8, 9), compression="gzip")
    library = Library()
    frames = StoredFrames(library.dataset(path, "/data"), path, live=False)
    for number in (0, 1, 4, 4, 2):
        assert (frames.read(number) == 1).all()
    library.close()


@pytest.mark.mpi
def test_background_may_come_from_the_very_dataset_that_is_processed(tmp_path: Path) -> None:
    spec = Spec(path=str(tmp_path / "scan.h5"))
    write(spec)
    shutil.copy(spec.path, tmp_path / "copy.h5")
    results = []
    for name in ("scan.h5", "copy.h5"):
        results.append(tmp_path / f"{name}.nxs")
        parameters = {"background": f"{name}::{NEXUS_DATASET}[0]", "background_scale": 0.5}
        done = run_kernel(Path(spec.path), results[-1], ranks=2, parameters=parameters, mode="live")
        assert (done.returncode, done.stderr) == (0, "")
    assert_same_results(*results)
