"""A writer writes modules of frames as fast as it can, and each of thousands of frames is compared while it does."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from mpi_kernels.hdf5_files import Library
from mpi_kernels.readiness import Readiness, Ready
from mpi_kernels.segments import Layout
from mpi_kernels.source import FrameSource

SIDE, MODULES = 32, 4
WRITER = """
import sys, h5py, hdf5plugin, numpy as np
from pathlib import Path
folder, frames, chunks = Path(sys.argv[1]), int(sys.argv[2]), tuple(map(int, sys.argv[3].split(",")))
layout = h5py.VirtualLayout((frames, 64, 64), "u4")
files = []
for module in range(4):
    top, left = module // 2 * 32, module % 2 * 32
    layout[:, top : top + 32, left : left + 32] = h5py.VirtualSource(f"{module}.h5", "data", (frames, 32, 32))
    file = h5py.File(folder / f"{module}.h5", "w", libver=("v110", "v110"))
    file.create_dataset("data", (0, 32, 32), "u4", maxshape=(None, 32, 32), chunks=chunks, **hdf5plugin.Bitshuffle())
    file.swmr_mode = True
    files.append(file)
with h5py.File(folder / "master.h5", "w", libver="latest") as file:
    file.create_virtual_dataset("data", layout)
print("open", flush=True)
pixels = np.arange(32 * 32, dtype="u4").reshape(32, 32)
for number in range(frames):
    for module, file in enumerate(files):
        file["data"].resize(number + 1, axis=0)
        file["data"][number] = pixels + (number * 4 + module) * 1000 + 1
        if number % 5 == 4:
            file["data"].flush()
for file in files:
    file.close()
"""


def frame_of(number: int) -> np.ndarray:
    pixels = np.arange(SIDE * SIDE, dtype="u4").reshape(SIDE, SIDE)
    first, second, third, fourth = (pixels + (number * MODULES + module) * 1000 + 1 for module in range(MODULES))
    return np.block([[first, second], [third, fourth]])


def assert_right(frame: np.ndarray, ready: Ready) -> None:
    expected = frame_of(ready.frame)
    if ready.provisional:  # a module that nobody has written yet, in a chunk that is there
        expected = np.where(frame == 0, 0, expected)
    np.testing.assert_array_equal(frame, expected, err_msg=f"{ready}")


@pytest.mark.parametrize(("frames", "chunks"), [(2000, (1, SIDE, SIDE)), (1000, (8, SIDE, SIDE)), (300, (1, 10, 20))])
def test_every_frame_is_its_own(tmp_path: Path, frames: int, chunks: tuple[int, ...]) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path), str(frames), ",".join(map(str, chunks))]
    master, settled = tmp_path / "master.h5", set[int]()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer, closing(Library()) as library:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "open\n"
        source = FrameSource(library)
        readiness = Readiness(library, Layout(library, master, "/data"), source, None, finished=False)
        (segment,) = readiness.segments
        found, read_live = [], 0
        while (writing := writer.poll() is None) or found or len(settled) < frames:
            found = readiness.poll(master, full=not writing, final=not writing)
            source.look_again(segment)
            for ready in found:
                frame = source.read(segment, ready.index)
                if frame is not None:
                    assert_right(frame, ready)
                    settled |= set() if ready.provisional else {ready.frame}
                    read_live += writing
    assert settled == set(range(frames))
    assert read_live > frames / 10
