"""The simulated detector seen from another process, while it writes and after it misbehaved."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401 - importing it registers the filter
import numpy as np
import numpy.typing as npt
import pytest

from orchestrator.simulator import (
    DEATH_EXIT_CODE,
    FINISHED,
    FRAMES,
    KEYS,
    WRITTEN_TIME,
    SimulationSettings,
    SyntheticFramesSettings,
    open_frames,
)

COMMAND = "import typer; from orchestrator.cli.simulate import simulate; typer.run(simulate)"
FRAMES_SETTINGS = SyntheticFramesSettings(shape=(270, 280), pool=11)
LAYOUTS = pytest.mark.parametrize(
    "layout", [["single"], ["master", "--frames-per-file", "7"]], ids=["single", "master"]
)


@contextmanager
def detector(output: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", COMMAND, str(output), "--shape", "270x280", "--pool", "11", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.002)


def open_live(path: Path, writer: subprocess.Popen[bytes]) -> h5py.File:
    opened: list[h5py.File] = []

    def attempt() -> bool:
        try:
            opened.append(h5py.File(path, "r", swmr=True))
        except OSError:  # not there yet, or SWMR hasn't begun
            assert not writer.poll(), writer.communicate()[0].decode()
            return False
        return True

    wait_until(attempt, f"{path.name} to be readable")
    return opened[0]


def refreshed(dataset: h5py.Dataset) -> npt.NDArray[np.generic]:
    dataset.refresh()
    values: npt.NDArray[np.generic] = dataset[...]
    return values


def follow(path: Path, writer: subprocess.Popen[bytes]) -> tuple[dict[int, npt.NDArray[np.generic]], int]:
    """Read each frame once its key is there; return them, and how many had been read before the scan was finished."""
    seen: dict[int, npt.NDArray[np.generic]] = {}
    seen_live = 0
    with open_live(path, writer) as file:
        frames, keys, finished = file[FRAMES], file[KEYS], file[FINISHED]

        def take() -> bool:
            nonlocal seen_live
            over = bool(refreshed(finished)[0])
            new = [int(i) for i in np.flatnonzero(refreshed(keys)) if int(i) not in seen]
            if new:
                frames.refresh()
            seen.update({index: frames[index] for index in new})
            seen_live = seen_live if over else len(seen)
            return over and not new

        wait_until(take, "the scan to finish")
    return seen, seen_live


def truth(index: int) -> npt.NDArray[np.generic]:
    with open_frames(SimulationSettings(output=Path("unused"), frames=FRAMES_SETTINGS)) as source:
        return source.frame(index % source.distinct)


@LAYOUTS
def test_reader_in_another_process_sees_every_frame_as_it_was_made(tmp_path: Path, layout: list[str]) -> None:
    output = tmp_path / "scan_master.h5"
    with detector(output, "--layout", *layout, "--number", "40", "--rate", "50") as process:
        seen, seen_live = follow(output, process)
        assert process.wait(30) == 0
    assert sorted(seen) == list(range(40))
    assert seen_live >= 20, "the reader must have followed the scan, not read a finished file"
    for index, frame in seen.items():
        np.testing.assert_array_equal(frame, truth(index))


@LAYOUTS
def test_reader_that_trusts_keys_is_right_with_gaps_and_frames_out_of_order(tmp_path: Path, layout: list[str]) -> None:
    output = tmp_path / "scan_master.h5"
    options = ["--gaps", "0,3,14,15,16,17,18,19,20", "--shuffle-within", "10", "--number", "40", "--rate", "80"]
    with detector(output, "--layout", *layout, *options) as process:
        seen, _ = follow(output, process)
        assert process.wait(30) == 0
    assert sorted(seen) == sorted(set(range(40)) - {0, 3, *range(14, 21)})
    for index, frame in seen.items():
        np.testing.assert_array_equal(frame, truth(index))


def test_virtual_frames_ahead_of_the_scan_read_as_zeros_and_later_as_they_are(tmp_path: Path) -> None:
    output = tmp_path / "scan_master.h5"
    options = ["--layout", "master", "--frames-per-file", "5", "--number", "20", "--rate", "20"]
    with detector(output, *options) as process, open_live(output, process) as file:
        frames = file[FRAMES]
        assert not frames[19].any()
        assert not frames[4].any()
        assert process.wait(30) == 0
        frames.refresh()
        for index in (4, 19):
            np.testing.assert_array_equal(frames[index], truth(index))


def test_data_files_appear_as_the_scan_goes_on(tmp_path: Path) -> None:
    output = tmp_path / "scan_master.h5"
    options = ["--layout", "master", "--frames-per-file", "4", "--number", "12", "--rate", "40"]
    with detector(output, *options) as process, open_live(output, process) as file:
        keys = file[KEYS]
        wait_until(lambda: bool(refreshed(keys)[0]), "the first frame")
        assert (tmp_path / "scan_data_000001.h5").exists()
        assert not (tmp_path / "scan_data_000003.h5").exists()
        assert process.wait(30) == 0
    assert (tmp_path / "scan_data_000003.h5").exists()


def test_rate_does_not_drift_and_a_stall_is_as_long_as_told(tmp_path: Path) -> None:
    output = tmp_path / "scan.h5"
    options = ["--number", "100", "--rate", "100", "--stall-after", "60", "--stall-for", "0.7"]
    with detector(output, *options) as process:
        assert process.wait(30) == 0
    with h5py.File(output) as file:
        times = file[WRITTEN_TIME][...]
    assert times[-1] - times[0] == pytest.approx(0.99 + 0.7, abs=0.15)
    assert times[60] - times[59] == pytest.approx(0.71, abs=0.15)
    assert abs(times[-1] - time.time()) < 60


@LAYOUTS
def test_killed_writer_leaves_its_frames_and_its_mark(tmp_path: Path, layout: list[str]) -> None:
    output = tmp_path / "scan_master.h5"
    with detector(output, "--layout", *layout, "--number", "30", "--rate", "inf", "--die-after", "10") as process:
        assert process.wait(30) == DEATH_EXIT_CODE
    with pytest.raises(OSError, match=r"(?i)swmr|consistency|already open"):
        h5py.File(output, "r")
    with h5py.File(output, "r", swmr=True) as file:
        assert np.flatnonzero(file[KEYS][...]).tolist() == list(range(10))
        assert file[FINISHED][0] == 0
        for index in range(10):
            np.testing.assert_array_equal(file[FRAMES][index], truth(index))


@LAYOUTS
def test_terminated_writer_closes_its_files_without_calling_them_finished(tmp_path: Path, layout: list[str]) -> None:
    output = tmp_path / "scan_master.h5"
    with detector(output, "--layout", *layout, "--number", "1000", "--rate", "50") as process:
        with open_live(output, process) as file:
            keys = file[KEYS]
            wait_until(lambda: np.count_nonzero(refreshed(keys)) >= 3, "three frames")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
    with h5py.File(output, "r") as file:
        assert file[FINISHED][0] == 0
        written = np.count_nonzero(file[KEYS][...])
        assert 3 <= written < 1000
        np.testing.assert_array_equal(file[FRAMES][written - 1], truth(int(written) - 1))


def test_progress_file_follows_the_scan(tmp_path: Path) -> None:
    progress = tmp_path / "progress.json"
    states: set[str] = set()

    def look() -> bool:
        if progress.exists():
            states.add(progress.read_text())
        return any('"finished": true' in state for state in states)

    with detector(tmp_path / "s.h5", "--number", "60", "--rate", "60", "--progress-file", str(progress)) as process:
        wait_until(look, "the progress file to say that the scan is finished")
        assert process.wait(30) == 0
    assert len(states) >= 3
    assert '{"written": 60, "expected": 60, "finished": true}\n' in states


def test_hundreds_of_frames_a_second_are_no_trouble(tmp_path: Path) -> None:
    """It manages thousands on an idle core; the bound leaves room for a busy machine."""
    output = tmp_path / "scan.h5"
    with detector(output, "--shape", "515x515", "--number", "400", "--rate", "inf") as process:
        assert process.wait(60) == 0
    with h5py.File(output) as file:
        times = file[WRITTEN_TIME][...]
    assert 399 / (times[-1] - times[0]) > 200
