"""Projection over all frames is numpy's, exactly; live, offline, interrupted, and on any number of ranks."""

from __future__ import annotations

import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from mpi_kernels.errors import ExitCode

from .harness import (
    ENVIRONMENT,
    NEXUS_DATASET,
    assert_same_results,
    run_kernel,
    running_kernel,
    running_writer,
    wait_until,
    write_in_own_process,
)
from .test_interruption import kill
from .writers import SATURATED, Spec, frame_of


def assert_is_the_projection_of(result: Path, spec: Spec, numbers: list[int]) -> None:
    frames = np.stack([frame_of(spec, number) for number in numbers]).astype(np.int64)
    good = frames != np.array(SATURATED[spec.dtype]).astype(spec.dtype)
    counted, total = good.sum(axis=0), np.where(good, frames, 0).sum(axis=0)
    with h5py.File(result) as file:
        data, totals = file["entry/data"], file["entry/totals"]
        assert data["frames"][0] == len(numbers)
        np.testing.assert_array_equal(data["sum"][...], total)
        np.testing.assert_array_equal(data["counted"][...], counted)
        np.testing.assert_array_equal(data["largest"][...], np.where(good, frames, 0).max(axis=0))
        with np.errstate(invalid="ignore", divide="ignore"):
            np.testing.assert_array_equal(data["mean"][...], total / counted)
        variance = np.ma.masked_array(frames, ~good).var(axis=0, ddof=1).filled(np.nan)
        variance[counted < 2] = np.nan
        np.testing.assert_allclose(data["variance"][...], variance, rtol=1e-12)
        np.testing.assert_array_equal(totals["total"][...][numbers], np.where(good, frames, 0).sum(axis=(1, 2)))
        np.testing.assert_array_equal(totals["excluded"][...][numbers], (~good).sum(axis=(1, 2)))
        np.testing.assert_array_equal(totals["largest"][...][numbers], np.where(good, frames, 0).max(axis=(1, 2)))


@pytest.mark.mpi
@pytest.mark.parametrize("dtype", ["uint16", "uint32", "int32"])
@pytest.mark.parametrize("native", ["", "off"])
def test_projection_is_exact_live_and_offline_on_any_number_of_ranks(
    tmp_path: Path, dtype: str, native: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENVIRONMENT, "MPI_KERNELS_NATIVE", native)
    spec = Spec(path=str(tmp_path / "scan.h5"), frames=40, dtype=dtype, keys=True, interval_s=0.02)
    live = tmp_path / "live.nxs"
    with (
        running_writer(spec),
        running_kernel(Path(spec.path), live, kernel="projection", ranks=2, expected=40) as process,
    ):
        _, stderr = process.communicate(timeout=120)
    assert (process.returncode, stderr) == (ExitCode.COMPLETE, "")
    assert_is_the_projection_of(live, spec, list(range(40)))
    for ranks in (None, 4):
        offline = tmp_path / f"{ranks}.nxs"
        done = run_kernel(Path(spec.path), offline, kernel="projection", ranks=ranks, expected=40)
        assert done.returncode == ExitCode.COMPLETE, done.stderr
        assert_same_results(live, offline)


@pytest.mark.mpi
def test_killed_projection_goes_on_from_its_checkpoint_to_the_same_bits(tmp_path: Path) -> None:
    spec = Spec(path=str(tmp_path / "scan.h5"), frames=1800, keys=True, interval_s=0.01)
    result, checkpoint = tmp_path / "result.nxs", tmp_path / "result.nxs.checkpoint"
    with running_writer(spec):
        for _ in range(2):
            before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
            with running_kernel(
                Path(spec.path), result, kernel="projection", ranks=2, expected=1800, resume=True
            ) as process:
                wait_until(lambda before=before: checkpoint.exists() and checkpoint.stat().st_mtime_ns > before)
                time.sleep(0.3)
                kill(process)
        with running_kernel(
            Path(spec.path), result, kernel="projection", ranks=2, expected=1800, resume=True
        ) as process:
            _, stderr = process.communicate(timeout=120)
    assert process.returncode == ExitCode.COMPLETE, stderr
    assert "taken up with" in stderr
    assert_is_the_projection_of(result, spec, list(range(1800)))
    assert not checkpoint.exists()


def test_damaged_chunk_adds_nothing_to_the_projection(tmp_path: Path) -> None:
    spec = Spec(path=str(tmp_path / "scan.h5"), frames=30)
    write_in_own_process(spec)
    with h5py.File(spec.path, "r+") as file:
        dataset = file[NEXUS_DATASET]
        _, raw = dataset.id.read_direct_chunk((17, 0, 0))
        dataset.id.write_direct_chunk((17, 0, 0), raw[: len(raw) * 2 // 3])
    result = tmp_path / "result.nxs"
    done = run_kernel(Path(spec.path), result, kernel="projection")
    assert done.returncode == ExitCode.PARTIAL
    with h5py.File(result) as file:
        assert file["entry/frames/status"][17] == 2
        assert b"[17]: " in file["entry/frames/message"][17]
    assert_is_the_projection_of(result, spec, [number for number in range(30) if number != 17])


def test_frames_of_floats_are_refused_with_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        file[NEXUS_DATASET] = np.ones((3, 20, 30), "f4")
    done = run_kernel(path, tmp_path / "result.nxs", kernel="projection")
    assert done.returncode == ExitCode.UNUSABLE_INPUT
    assert done.stderr.startswith("error: frames of float32 can't be summed exactly (project frames of whole numbers")


def test_dead_and_hot_pixels_are_told(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    frames = np.random.default_rng(3).poisson(5, (50, 40, 50)).astype("u4")
    frames[:, 10, 12], frames[:, 30, 7] = 0, 900
    with h5py.File(path, "w") as file:
        file.create_dataset(NEXUS_DATASET, data=frames, chunks=(1, 40, 50))
    result = tmp_path / "result.nxs"
    assert run_kernel(path, result, kernel="projection").returncode == ExitCode.COMPLETE
    with h5py.File(result) as file:
        mask = file["entry/data/pixel_mask"][...]
    assert {tuple(place): mask[tuple(place)] for place in np.argwhere(mask)} == {(10, 12): 2, (30, 7): 16}
