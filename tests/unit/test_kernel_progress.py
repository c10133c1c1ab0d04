"""How a kernel stands with its frames, in little memory however many they are."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from mpi_kernels.errors import OutputUnwritable
from mpi_kernels.progress import Lags, ProgressFile, Tally
from mpi_kernels.rows import Status


def test_frames_are_counted_by_what_became_of_them_last() -> None:
    tally = Tally(expected=9)
    assert [tally.see(frame) for frame in (4, 0, 4, 2)] == [True, True, False, True]
    assert (tally.written, tally.processed, tally.failed, tally.highest) == (3, 0, 0, 4)
    tally.settle(4, Status.PROCESSED)
    tally.settle(0, Status.FAILED)
    tally.settle(2, Status.PROCESSED)
    assert (tally.written, tally.processed, tally.failed) == (3, 2, 1)
    tally.settle(2, Status.MISSING)  # it was provisional, and turned out to be nothing but fill values
    assert (tally.written, tally.processed, tally.failed) == (2, 1, 1)


def test_a_million_frames_take_a_few_megabytes() -> None:
    tracemalloc.start()
    tally = Tally(expected=None)
    for frame in range(1_000_000):
        tally.see(frame)
        tally.settle(frame, Status.PROCESSED)
    tally.lags.add(1e-3 * (1 + frame % 1000) for frame in range(100_000))
    _now, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert tally.processed == 1_000_000
    assert most < 5_000_000


def test_median_lag_is_right_to_a_percent_and_the_longest_exactly() -> None:
    random = np.random.default_rng(2)
    for size in (1, 2, 3, 1001):
        times = random.lognormal(-5, 2, size)
        lags = Lags()
        lags.add(times)
        assert lags.max_s == times.max()
        assert lags.median_s == pytest.approx(np.sort(times)[(size - 1) // 2], rel=0.01)


def test_without_live_frames_there_is_no_lag() -> None:
    assert (Lags().median_s, Lags().max_s) == (None, None)


def progress_file(path: Path) -> ProgressFile:
    return ProgressFile(
        path, kernel="azimuthal", ranks=1, settled={"parameters": {"bins": 3}, "software": {"python": "3"}}
    )


def test_file_is_one_json_object_with_all_its_parts(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    progress_file(path).write("running", Tally(expected=None))
    content = json.loads(path.read_text())
    assert content["state"] == "running"
    assert content["parameters"] == {"bins": 3}
    assert content["inputs"] == {
        "open": None,
        "end": None,
        "seal": {"state": "pending", "algorithm": "sha256(xxh3-128)", "digest": None, "frames": 0},
    }
    assert [item.name for item in tmp_path.iterdir()] == ["progress.json"]


def test_what_cannot_be_put_in_place_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    path.mkdir()  # so that the rename fails, after everything was written
    with pytest.raises(OutputUnwritable, match=r"progress\.json"):
        progress_file(path).write("running", Tally(expected=None))
    assert [item.name for item in tmp_path.iterdir()] == ["progress.json"]
