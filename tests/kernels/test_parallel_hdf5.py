"""Through MPI-IO frames are the same bits. Needs an h5py that is built with MPI, which its wheels aren't.

``ORCHESTRATOR_TEST_PARALLEL_HDF5_PYTHON`` names an interpreter that has one, if this one doesn't.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from .harness import ENVIRONMENT, NEXUS_DATASET, assert_same_results, launcher_path, run_kernel
from .writers import Spec, frame_of, write

PYTHON = os.environ.get("ORCHESTRATOR_TEST_PARALLEL_HDF5_PYTHON", sys.executable)

READER = """
import sys
import numpy as np
from pathlib import Path
from mpi4py import MPI
from mpi_kernels.hdf5_files import Library
from mpi_kernels.segments import Layout
from mpi_kernels.source import FrameSource

path, dataset, out = sys.argv[1:]
library = Library("finished", parallel=True)
source, frames = FrameSource(library), {}
for segment in Layout(library, Path(path), dataset).segments:
    for index in range(MPI.COMM_WORLD.rank, source.dataset(segment).extent, MPI.COMM_WORLD.size):
        frames[str(segment.frames.at(index))] = source.read(segment, index)
    assert source.dataset(segment).route.count("through MPI-IO") == 1, source.dataset(segment).route
np.savez(f"{out}/{MPI.COMM_WORLD.rank}.npz", **frames)
library.close()
"""
SPECS = {
    "one frame per chunk": {},
    "tiles of two frames": {"chunks": (2, 25, 33), "compression": "gzip"},
    "through HDF5": {"compression": "zstd", "chunks": (1, 25, 33)},
    "three data files": {"files": 3},
    "four modules": {"modules": 4, "compression": "lz4"},
}


@pytest.fixture(scope="module")
def parallel_python() -> str:
    asked = "import h5py; print(h5py.get_config().mpi)"
    done = subprocess.run([PYTHON, "-c", asked], capture_output=True, text=True, check=False)
    if done.stdout.strip() != "True":
        pytest.skip(f"NOT TESTED: the h5py of {PYTHON} is built without MPI")
    return PYTHON


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", SPECS)
def test_frames_through_mpi_io_are_the_same_bits(tmp_path: Path, parallel_python: str, name: str, ranks: int) -> None:
    spec = Spec(path=str(tmp_path / "scan.h5"), **SPECS[name])
    write(spec)
    command = [launcher_path(), "--oversubscribe", "-n", str(ranks), parallel_python, "-c", READER]
    command += [spec.path, NEXUS_DATASET, str(tmp_path)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    read = {int(number): frame for rank in range(ranks) for number, frame in np.load(tmp_path / f"{rank}.npz").items()}
    assert sorted(read) == list(range(spec.frames))
    for number, frame in read.items():
        assert frame.tobytes() == frame_of(spec, number).tobytes()


def test_whole_kernel_gives_the_same_bits_through_mpi_io(
    tmp_path: Path, parallel_python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = Spec(path=str(tmp_path / "scan.h5"))
    write(spec)
    plain, parallel = tmp_path / "plain.nxs", tmp_path / "parallel.nxs"
    assert run_kernel(Path(spec.path), plain, python=parallel_python).returncode == 0
    monkeypatch.setitem(ENVIRONMENT, "MPI_KERNELS_PARALLEL_HDF5", "1")
    done = run_kernel(Path(spec.path), parallel, ranks=2, python=parallel_python)
    assert done.returncode == 0, done.stderr
    assert_same_results(plain, parallel, besides=("frames/reading_route",))


def test_wish_for_mpi_io_that_cannot_be_met_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if h5py.get_config().mpi:
        pytest.skip("this h5py can do it")
    monkeypatch.setitem(ENVIRONMENT, "MPI_KERNELS_PARALLEL_HDF5", "1")
    done = run_kernel(tmp_path / "scan.h5", tmp_path / "result.nxs")
    assert done.returncode == 2
    assert "is built without MPI (unset it, or build h5py against a parallel HDF5" in done.stderr
