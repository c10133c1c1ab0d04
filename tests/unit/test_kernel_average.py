"""The mean of patterns, and the file that it is written into."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from mpi_kernels.average import mean_pattern
from mpi_kernels.errors import ExitCode


def test_mean_is_over_the_frames_that_have_the_bin() -> None:
    intensity = np.array([[1.0, 2.0, np.nan], [3.0, np.nan, np.nan]])
    sigma = np.array([[3.0, 0.5, np.nan], [4.0, np.nan, np.nan]])
    mean = mean_pattern(intensity, sigma)
    np.testing.assert_array_equal(mean.intensity, [2.0, 2.0, np.nan])
    np.testing.assert_array_equal(mean.frames, [2, 1, 0])
    assert mean.sigma is not None
    np.testing.assert_array_equal(mean.sigma, [2.5, 0.5, np.nan])
    np.testing.assert_allclose(mean.scatter, [np.sqrt(2.0), np.nan, np.nan])


def test_error_of_the_mean_of_many_frames_agrees_with_their_scatter() -> None:
    rng = np.random.default_rng(3)
    intensity = rng.normal(100.0, 5.0, (4000, 4))
    mean = mean_pattern(intensity, np.full_like(intensity, 5.0))
    assert mean.sigma is not None
    np.testing.assert_allclose(mean.sigma, mean.scatter / np.sqrt(4000), rtol=0.05)
    np.testing.assert_allclose(mean.intensity, 100.0, atol=5 * 5.0 / np.sqrt(4000))


def write_result(path: Path, status: list[int]) -> None:
    with h5py.File(path, "w") as file:
        entry = file.create_group("entry")
        data = entry.create_group("data")
        data["radial_axis"] = np.linspace(0.1, 2, 5)
        data["radial_axis"].attrs["units"] = "1/nm"
        data["I"] = np.arange(len(status))[:, None] * np.ones(5)
        data["I_errors"] = np.ones((len(status), 5))
        entry["frames/status"] = np.array(status, np.uint8)
        entry["definition"] = "NXazint1d"


def average(folder: Path, **parameters: object) -> subprocess.CompletedProcess[str]:
    (folder / "parameters.json").write_text(json.dumps(parameters))
    command = [sys.executable, "-m", "mpi_kernels", "average", "--input", "result.nxs", "--output", "average.nxs"]
    command += ["--parameters", "parameters.json", "--progress", "progress.json", "--run-id", "r1"]
    return subprocess.run(command, cwd=folder, text=True, capture_output=True, check=False)


@pytest.mark.mpi
def test_average_of_a_range_of_frames_stands_in_a_nexus_file_with_what_made_it(tmp_path: Path) -> None:
    write_result(tmp_path / "result.nxs", [1, 1, 1, 1])
    done = average(tmp_path, first_frame=1, last_frame=2)
    assert (done.returncode, done.stderr) == (ExitCode.COMPLETE, "")
    with h5py.File(tmp_path / "average.nxs") as file:
        data = file["entry/data"]
        np.testing.assert_array_equal(data["I"], np.full(5, 1.5))
        np.testing.assert_allclose(data["I_errors"], np.full(5, np.sqrt(2) / 2))
        assert data.attrs["signal"] == "I"
        assert data["radial_axis"].attrs["units"] == "1/nm"
        assert file["entry/reduction/input/made_run_id"][()] == b"r1"
    progress = json.loads((tmp_path / "progress.json").read_text())
    assert (progress["state"], progress["written"], progress["processed"]) == ("finished", 2, 2)
    assert progress["inputs"]["end"]["shape"] == [2, 5]


@pytest.mark.mpi
def test_average_of_a_result_with_failed_frames_is_partial_and_leaves_them_out(tmp_path: Path) -> None:
    write_result(tmp_path / "result.nxs", [1, 2, 1])
    assert average(tmp_path).returncode == ExitCode.PARTIAL
    with h5py.File(tmp_path / "average.nxs") as file:
        np.testing.assert_array_equal(file["entry/data/I"], np.full(5, 1.0))
    progress = json.loads((tmp_path / "progress.json").read_text())
    assert (progress["written"], progress["processed"], progress["failed"]) == (3, 2, 1)


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("status", "parameters", "code", "said"),
    [
        ([], {}, ExitCode.UNUSABLE_INPUT, "none of its frames"),
        ([2], {}, ExitCode.UNUSABLE_INPUT, "none of its frames"),
        ([1], {"frist_frame": 1}, ExitCode.WRONG_USE, "frist_frame: unknown"),
        ([1], {"first_frame": 3, "last_frame": 2}, ExitCode.WRONG_USE, "below first_frame"),
    ],
)
def test_what_cannot_be_averaged_is_named_and_makes_no_file(
    tmp_path: Path, status: list[int], parameters: dict[str, object], code: ExitCode, said: str
) -> None:
    write_result(tmp_path / "result.nxs", status)
    done = average(tmp_path, **parameters)
    assert done.returncode == code
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "average.nxs").exists()
    assert json.loads((tmp_path / "progress.json").read_text())["state"] == "failed"


@pytest.mark.mpi
def test_file_that_is_no_result_is_refused(tmp_path: Path) -> None:
    (tmp_path / "result.nxs").write_text("no HDF5")
    done = average(tmp_path)
    assert done.returncode == ExitCode.UNUSABLE_INPUT
    assert "result.nxs" in done.stderr
