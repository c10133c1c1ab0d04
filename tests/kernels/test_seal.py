"""What was read is sealed, and a frame that is another one now is named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import pytest

from .harness import ENVIRONMENT, NEXUS_DATASET, launcher_path, progress_of, run_kernel, running_writer
from .writers import Spec, write


def seal(
    scan: Path, *extra: str, ranks: int | None = None, dataset: str = NEXUS_DATASET
) -> subprocess.CompletedProcess[str]:
    launcher = [] if ranks is None else [launcher_path(), "--oversubscribe", "-n", str(ranks)]
    own = ["--input", str(scan), "--dataset", dataset, *extra]
    command = [*launcher, sys.executable, "-m", "mpi_kernels", "seal", *own]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)


WRITERS = {
    "own chunks": {},
    "modules, shared chunks": {"modules": 3, "chunks": (2, 20, 40)},
    "shared chunks, keys": {"chunks": (5, 30, 40), "preallocate": True, "keys": True},
    "data files": {"files": 3},
}


@pytest.mark.mpi
@pytest.mark.parametrize("writer", WRITERS)
def test_the_seal_of_a_live_run_is_that_of_the_finished_file(tmp_path: Path, writer: str) -> None:
    spec = Spec(path=str(tmp_path / "scan.h5"), interval_s=0.05, **WRITERS[writer])
    live = tmp_path / "live.nxs"
    with running_writer(spec) as process:
        assert run_kernel(Path(spec.path), live, ranks=2).returncode == 0
        assert process.wait(timeout=60) == 0
    told = progress_of(live)["inputs"]["seal"]  # type: ignore[index]
    assert (told["state"], told["frames"]) == ("sealed", spec.frames)
    now = seal(Path(spec.path), "--against", str(live), ranks=3)
    assert (now.returncode, now.stderr) == (0, "")
    report = json.loads(now.stdout)
    assert report["seal"] == report["against"]["seal"] == told
    assert report["against"]["same"] is True


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    write(Spec(path=str(tmp_path / "scan.h5")))
    return tmp_path / "scan.h5"


def test_a_changed_frame_and_a_missing_one_are_named(scan: Path, tmp_path: Path) -> None:
    result = tmp_path / "result.nxs"
    assert run_kernel(scan, result).returncode == 0
    shutil.copy(scan, tmp_path / "short.h5")
    with h5py.File(scan, "r+") as file:
        frames = file[NEXUS_DATASET]
        frames[4, 0, 0] += 1
        frames[5, 0, 0] += 1
        frames[9, 0, 0] += 1
    changed = seal(scan, "--against", str(result))
    assert changed.returncode == 4
    told = json.loads(changed.stdout)["against"]
    assert (told["same"], told["changed"], told["missing"]) == (False, [[4, 5], [9, 9]], [])
    with h5py.File(tmp_path / "short.h5", "r+") as file:
        file[NEXUS_DATASET].resize(10, axis=0)
    short = seal(tmp_path / "short.h5", "--against", str(result))
    assert (short.returncode, json.loads(short.stdout)["against"]["missing"]) == (4, [[10, 11]])


def test_frames_after_those_of_a_result_do_not_make_it_another(scan: Path, tmp_path: Path) -> None:
    with h5py.File(scan, "r+") as file:
        file[NEXUS_DATASET].resize(8, axis=0)
    result = tmp_path / "result.nxs"
    assert run_kernel(scan, result).returncode == 0
    with h5py.File(scan, "r+") as file:
        file[NEXUS_DATASET].resize(9, axis=0)
        file[NEXUS_DATASET][8] = 1
    done = seal(scan, "--against", str(result))
    assert (done.returncode, json.loads(done.stdout)["against"]["not_in_result"]) == (0, [[8, 8]])


def test_what_cannot_be_compared_is_refused_in_one_line(scan: Path, tmp_path: Path) -> None:
    missing = seal(tmp_path / "gone.h5")
    assert (missing.returncode, missing.stdout) == (3, "")
    assert missing.stderr.startswith(f"error: {tmp_path}/gone.h5: no such file")
    no_result = seal(scan, "--against", str(scan))
    assert (no_result.returncode, len(no_result.stderr.splitlines())) == (3, 1)
    assert "it doesn't say what it was made of" in no_result.stderr
    assert seal(scan, "--unknown").returncode == 2
