"""A job that is killed and started again takes up where its result ends, and the final bits are the same."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from mpi_kernels.errors import ExitCode

from .harness import assert_same_results, progress_of, ranks_of, run_kernel, running_kernel, running_writer, wait_until
from .writers import Spec

KILLS = int(os.environ.get("MPI_KERNELS_TEST_KILLS", "6"))
"""How often the job is killed; more for those who want to be sure."""


def finished_rows(result: Path) -> int:
    """Return how many rows a result has, as any reader sees it; 0 while there is none."""
    try:
        with h5py.File(result, "r", swmr=True) as file:
            return int(np.count_nonzero(file["entry/frames/status"][...] == 1))
    except OSError:
        return 0


def kill(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.mpi
@pytest.mark.parametrize("ranks", [None, 2])
def test_job_killed_at_random_moments_gives_the_same_bits_in_the_end(tmp_path: Path, ranks: int | None) -> None:
    moments = np.random.default_rng(11)
    spec = Spec(path=str(tmp_path / "scan.h5"), frames=KILLS * 250, keys=True, interval_s=0.01)
    live, offline = tmp_path / "live.nxs", tmp_path / "offline.nxs"
    added = []
    with running_writer(spec):
        wait_until(lambda: Path(spec.path).exists(), timeout_s=60)
        for number in range(KILLS):
            before = finished_rows(live)
            with running_kernel(Path(spec.path), live, ranks=ranks, expected=spec.frames, resume=True) as process:
                if number % 3:  # every third is killed at any moment, also while it starts
                    wait_until(lambda before=before: finished_rows(live) > before)
                time.sleep(moments.random())
                kill(process)
            added.append(finished_rows(live) - before)
        with running_kernel(Path(spec.path), live, ranks=ranks, expected=spec.frames, resume=True) as process:
            _, stderr = process.communicate(timeout=120 + 3 * KILLS)
    assert process.returncode == ExitCode.COMPLETE, stderr
    assert "taken up with" in stderr
    assert min(added) >= 0, "a result never has fewer rows than before"
    assert run_kernel(Path(spec.path), offline, mode="finished").returncode == ExitCode.COMPLETE
    assert_same_results(live, offline, besides=("frames/expected", "frames/written"))


def test_rows_that_are_there_are_not_made_again(tmp_path: Path) -> None:
    spec = Spec(path=str(tmp_path / "scan.h5"), frames=20)
    result = written(spec, tmp_path / "result.nxs")
    with h5py.File(result, "r+") as file:
        file["entry/data/I"][7] = 123.0  # no frame gives this
        file["entry/frames/status"][9] = 0
        file["entry/data/I"][9] = np.nan
    done = run_kernel(Path(spec.path), result, resume=True)
    assert (done.returncode, done.stderr) == (ExitCode.COMPLETE, f"{result}: taken up with 19 frames\n")
    with h5py.File(result) as file:
        assert (file["entry/data/I"][7] == 123.0).all()
        assert np.isfinite(file["entry/data/I"][9]).any()
        assert (file["entry/frames/status"][...] == 1).all()
        assert file["entry/frames/processed"][0] == 20


def test_without_resume_everything_is_made_anew(tmp_path: Path) -> None:
    spec = Spec(path=str(tmp_path / "scan.h5"), frames=8)
    result = written(spec, tmp_path / "result.nxs")
    with h5py.File(result, "r+") as file:
        file["entry/data/I"][3] = 123.0
    assert run_kernel(Path(spec.path), result).returncode == ExitCode.COMPLETE
    with h5py.File(result) as file:
        assert not (file["entry/data/I"][3] == 123.0).any()


@pytest.mark.parametrize("other", ["parameters", "data", "mask", "broken"])
def test_result_of_something_else_is_not_taken_up(tmp_path: Path, other: str) -> None:
    spec = Spec(path=str(tmp_path / "scan.h5"), frames=8)
    np.save(tmp_path / "mask.npy", np.zeros(spec.shape, np.uint8))
    options: dict[str, object] = {"parameters": {"mask": "mask.npy"}}
    result = written(spec, tmp_path / "result.nxs", **options)
    if other == "parameters":
        options = {"parameters": {"mask": "mask.npy", "error_model": "none"}}
    elif other == "data":
        Path(spec.path).unlink()
        (tmp_path / "filler").touch()  # or the new file could get the old one's number
        written_file(Spec(path=spec.path, frames=8, seed=99))
    elif other == "mask":
        np.save(tmp_path / "mask.npy", np.arange(np.prod(spec.shape)).reshape(spec.shape) % 3 == 0)
    else:
        result.write_bytes(result.read_bytes()[:2000])
    done = run_kernel(Path(spec.path), result, resume=True, **options)
    assert done.returncode == ExitCode.COMPLETE
    assert "begun anew, because of the result there" in done.stderr
    fresh = tmp_path / "fresh.nxs"
    assert run_kernel(Path(spec.path), fresh, **options).returncode == ExitCode.COMPLETE
    assert_same_results(result, fresh)
    assert progress_of(result)["processed"] == 8


def written_file(spec: Spec) -> None:
    with running_writer(spec) as process:
        assert process.wait(timeout=60) == 0


def written(spec: Spec, result: Path, **options: object) -> Path:
    """Write a file, and return the result of processing it."""
    written_file(spec)
    assert run_kernel(Path(spec.path), result, **dict(options)).returncode == ExitCode.COMPLETE
    return result


@pytest.mark.mpi
@pytest.mark.parametrize("victim", [0, 1])
def test_killed_rank_ends_the_whole_job_at_once_and_leaves_a_result_that_can_be_taken_up(
    tmp_path: Path, victim: int
) -> None:
    spec = Spec(path=str(tmp_path / "scan.h5"), frames=600, keys=True, interval_s=0.02)
    result = tmp_path / "result.nxs"
    with running_writer(spec) as writer:
        with running_kernel(Path(spec.path), result, ranks=2, expected=600) as process:
            wait_until(lambda: finished_rows(result) > 20)
            os.kill(ranks_of(process)[victim], signal.SIGKILL)
            began = time.monotonic()
            process.communicate(timeout=60)
            assert time.monotonic() - began < 20
        assert process.returncode != 0
        rows = finished_rows(result)
        assert rows > 20
        done = run_kernel(Path(spec.path), result, ranks=2, expected=600, resume=True)
        assert writer.wait(timeout=60) == 0
    assert (done.returncode, f"taken up with {rows} frames" in done.stderr) == (ExitCode.COMPLETE, True), done.stderr
