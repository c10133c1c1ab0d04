"""Files are processed while another process writes them, and the result is that of the finished file, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from mpi_kernels.readiness import MOST_AT_ONCE

from .harness import (
    NEXUS_DATASET,
    assert_rows_are_the_frames,
    assert_same_results,
    progress_of,
    ranks_of,
    run_kernel,
    running_kernel,
    running_writer,
    wait_until,
    write_in_own_process,
)
from .writers import Spec, Stack, add_geometry, frame_of

WRITERS = {
    "one frame per chunk": {},
    "uint16, no compression": {"dtype": "uint16", "compression": "none"},
    "int32, shuffle and gzip": {"dtype": "int32", "compression": "shuffle-gzip"},
    "zstd, through HDF5": {"compression": "zstd"},
    "bitshuffle with zstd": {"compression": "bitshuffle-zstd"},
    "tiles of a frame": {"compression": "gzip", "chunks": (1, 25, 33)},
    "several frames per chunk": {"compression": "gzip", "chunks": (5, 60, 80)},
    "several frames per chunk with keys": {"chunks": (5, 30, 40), "preallocate": True, "keys": True},
    "allocated beforehand, with keys": {"preallocate": True, "keys": True, "finished_flag": True},
    "allocated beforehand, no keys": {"preallocate": True},
    "grid scan": {"lead": (3, 4)},
    "grid scan with keys": {"lead": (3, 4), "keys": True},
    "three data files and a master": {"files": 3},
    "keys of the whole scan": {"scan_keys": True, "chunks": (5, 30, 40), "preallocate": True},
    "three data files and keys of the whole scan": {"scan_keys": True, "files": 3, "preallocate": True},
    "tiles, LZ4": {"compression": "lz4", "chunks": (1, 25, 33)},
    "time series of a grid, several frames per chunk": {"lead": (2, 2, 3), "chunks": (1, 2, 2, 60, 80)},
    "four modules": {"modules": 4},
    "three modules, one late, chunks of two frames": {"modules": 3, "files_late_s": 0.5, "chunks": (2, 20, 40)},
    "two modules with keys, allocated beforehand": {"modules": 2, "keys": True, "preallocate": True},
    "data files later than the master": {"files": 3, "files_late_s": 1.0, "keys": True},
}


@pytest.mark.mpi
@pytest.mark.parametrize("writer", WRITERS)
def test_live_result_equals_offline_result_bit_for_bit(tmp_path: Path, writer: str) -> None:
    spec = Spec(path=str(tmp_path / "scan.h5"), interval_s=0.08, **WRITERS[writer])
    live, offline = tmp_path / "live.nxs", tmp_path / "offline.nxs"
    with running_writer(spec) as process:
        done = run_kernel(Path(spec.path), live, ranks=2)
        assert process.wait(timeout=60) == 0
    assert (done.returncode, done.stderr) == (0, "")
    assert progress_of(live)["ended_because"] == "file finished"
    assert run_kernel(Path(spec.path), offline, mode="finished").returncode == 0
    assert_rows_are_the_frames(offline, spec, list(range(spec.frames)))
    assert_same_results(live, offline)


@pytest.mark.mpi
def test_one_two_and_four_ranks_give_the_same_bits_live(tmp_path: Path) -> None:
    results = [tmp_path / f"{ranks}.nxs" for ranks in (1, 2, 4)]
    for ranks, result in zip((1, 2, 4), results, strict=True):
        spec = Spec(path=str(tmp_path / f"scan-{ranks}.h5"), frames=40, interval_s=0.02)
        with running_writer(spec):
            done = run_kernel(Path(spec.path), result, ranks=ranks, expected=40)
        assert (done.returncode, done.stderr) == (0, "")
        assert_rows_are_the_frames(result, spec, list(range(40)))
    assert_same_results(results[0], results[1])
    assert_same_results(results[0], results[2])


@pytest.mark.mpi
@pytest.mark.parametrize("keys", [True, False])
def test_frames_out_of_order_and_gaps_get_their_own_rows(tmp_path: Path, keys: bool) -> None:
    order = [3, 0, 1, 7, 2, 11, 9, 5]
    spec = Spec(path=str(tmp_path / "scan.h5"), order=order, keys=keys, preallocate=True, interval_s=0.05)
    live, offline = tmp_path / "live.nxs", tmp_path / "offline.nxs"
    with running_writer(spec):
        done = run_kernel(Path(spec.path), live, ranks=2)
    assert done.returncode == 4  # frames are missing, and the exit code says so
    assert_rows_are_the_frames(live, spec, order)
    assert run_kernel(Path(spec.path), offline).returncode == 4
    assert_same_results(live, offline)
    with h5py.File(live) as file:
        assert file["entry/frames/written"][0] == file["entry/frames/processed"][0] == len(order)


@pytest.mark.mpi
def test_result_can_be_read_while_it_grows(tmp_path: Path) -> None:
    spec = Spec(path=str(tmp_path / "scan.h5"), frames=40, interval_s=0.05)
    result = tmp_path / "live.nxs"
    seen: list[int] = []
    with running_writer(spec), running_kernel(Path(spec.path), result, ranks=2, expected=40) as process:
        wait_until(result.exists)
        with h5py.File(result, "r", swmr=True) as file:
            status, intensity = file["entry/frames/status"], file["entry/data/I"]
            while process.poll() is None:
                status.refresh()
                intensity.refresh()
                processed = np.flatnonzero(status[()] == 1)
                assert not np.isnan(intensity[()][processed]).all(axis=1).any()
                seen.append(len(processed))
        assert process.returncode == 0
    assert len(set(seen)) > 5  # it did grow
    with h5py.File(result) as file:
        assert file["entry/frames/finished"][0] == 1


@pytest.mark.mpi
def test_lag_is_milliseconds_when_frames_come_slowly(tmp_path: Path) -> None:
    spec = Spec(path=str(tmp_path / "scan.h5"), frames=40, interval_s=0.05)
    result = tmp_path / "live.nxs"
    with running_writer(spec):
        run_kernel(Path(spec.path), result, ranks=2, expected=40)
    progress = progress_of(result)
    assert 0 < progress["lag_median_s"] < 0.25  # a loaded machine; the documents give the measured values
    assert progress["lag_median_s"] <= progress["lag_max_s"]
    assert progress["ranks"] == 2


def test_file_that_is_made_closed_and_opened_again_is_waited_for(tmp_path: Path) -> None:
    whole = Spec(path=str(tmp_path / "scan.h5"))
    with h5py.File(whole.path, "w", libver=("v110", "v110")) as file:
        Stack(add_geometry(file, whole), whole, 0)
    result = tmp_path / "result.nxs"
    with running_kernel(Path(whole.path), result, expected=12) as process:
        wait_until(lambda: progress_of(result).get("state") == "waiting")
        time.sleep(1)
        with h5py.File(whole.path, "r+", libver=("v110", "v110")) as file:
            data = file["entry/instrument/detector/data"]
            file.swmr_mode = True
            for number in range(12):
                data.resize(number + 1, axis=0)
                data[number] = frame_of(whole, number)
                data.flush()
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert_rows_are_the_frames(result, whole, list(range(12)))


def test_closed_file_that_is_short_ends_as_partial_without_waiting_for_the_stall(tmp_path: Path) -> None:
    spec = Spec(path=str(tmp_path / "scan.h5"))
    write_in_own_process(spec)
    os.utime(spec.path, (1, 1))
    result = tmp_path / "result.nxs"
    assert run_kernel(Path(spec.path), result, expected=20).returncode == 4
    assert progress_of(result)["ended_because"] == "file finished"


def end_file(path: Path, outcome: str, frames: int | None) -> Path:
    path.write_text(json.dumps({"uid": "u", "outcome": outcome, "frames_written": frames, "ended_at": None}))
    return path


@pytest.mark.mpi
@pytest.mark.parametrize("files", [1, 3])
def test_file_that_is_swapped_ends_the_run_and_what_was_processed_stands(tmp_path: Path, files: int) -> None:
    other = Spec(path=str(tmp_path / "other.h5"), seed=8)
    write_in_own_process(other)
    spec = Spec(path=str(tmp_path / "scan.h5"), frames=400, interval_s=0.02, files=files)
    swapped, result = tmp_path / ("scan.h5" if files == 1 else "scan_1.h5"), tmp_path / "result.nxs"
    with running_writer(spec), running_kernel(Path(spec.path), result, ranks=2) as process:
        wait_until(lambda: int(progress_of(result).get("processed", 0)) >= 9)
        Path(other.path).rename(swapped)
        _out, error = process.communicate(timeout=60)
    assert process.returncode == 3
    assert f"{swapped}: replaced by another file while it was read" in error
    assert error.count("error: ") == 1
    with h5py.File(result) as file:
        assert file["entry/frames/ended_because"][0] == b"error"
        done = np.flatnonzero(file["entry/frames/status"][()] == 1).tolist()
    assert len(done) >= 9
    assert_rows_are_the_frames(result, spec, done)


def test_module_file_that_is_missing_costs_its_frames_and_no_others(tmp_path: Path) -> None:
    spec = Spec(path=str(tmp_path / "scan.h5"), modules=2)
    write_in_own_process(spec)
    with h5py.File(tmp_path / "scan_1.h5") as file:
        values = file["data"][()]
    later = tmp_path / "scan_2.h5"
    for path, part in ((tmp_path / "scan_1.h5", values[:8]), (later, values[8:])):
        path.unlink(missing_ok=True)
        with h5py.File(path, "w", libver=("v110", "v110")) as file:
            file.create_dataset("data", data=part, chunks=(1, *part.shape[1:]))
    layout = h5py.VirtualLayout(shape=(12, 60, 80), dtype="u4")
    layout[:, :30] = h5py.VirtualSource("scan_0.h5", "data", shape=(12, 30, 80))
    layout[:8, 30:] = h5py.VirtualSource("scan_1.h5", "data", shape=(8, 30, 80))
    layout[8:, 30:] = h5py.VirtualSource("scan_2.h5", "data", shape=(4, 30, 80))
    with h5py.File(spec.path, "r+") as file:
        del file[NEXUS_DATASET]
        file["entry/instrument/detector"].create_virtual_dataset("data", layout)
    later.unlink()
    result = tmp_path / "result.nxs"
    assert run_kernel(Path(spec.path), result, expected=12, stall_timeout=1).returncode == 4
    assert_rows_are_the_frames(result, spec, list(range(8)))
    assert progress_of(result)["failed"] == 0


@pytest.mark.mpi
def test_corrupt_chunk_of_one_module_is_one_failed_frame(tmp_path: Path) -> None:
    spec = Spec(path=str(tmp_path / "scan.h5"), modules=3, compression="gzip")
    write_in_own_process(spec)
    with h5py.File(tmp_path / "scan_1.h5", "r+") as file:
        file["data"].id.write_direct_chunk((4, 0, 0), b"no gzip at all")
    result = tmp_path / "result.nxs"
    assert run_kernel(Path(spec.path), result, ranks=2).returncode == 4
    with h5py.File(result) as file:
        assert list(np.flatnonzero(file["entry/frames/status"][()] == 2)) == [4]
        assert b"scan_1.h5::/data[4]: chunk of 14 bytes is no gzip data" in file["entry/frames/message"][4]
        assert file["entry/frames/processed"][0] == 11


ENDINGS = {
    "expected number": ({}, {"expected": 12}, 0, "expected number reached"),
    "finished flag": ({"finished_flag": True}, {}, 0, "file finished"),
    "stall": ({}, {"stall_timeout": 1.5}, 0, "no growth for 1.5 s"),
    "stall short of the number": ({}, {"stall_timeout": 1.5, "expected": 20}, 4, "no growth for 1.5 s"),
    "collection finished": ({}, {"end_file": ("finished", 12)}, 0, "collection ended"),
    "collection aborted": ({}, {"end_file": ("aborted", 12), "expected": 50}, 4, "collection ended"),
    "collection failed, number unknown": ({}, {"end_file": ("failed", None)}, 0, "collection ended"),
    "collection aborted short of its own number": ({}, {"end_file": ("aborted", 14)}, 4, "collection ended"),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_end_is_recognised_and_named(tmp_path: Path, ending: str) -> None:
    how, options, code, reason = ENDINGS[ending]
    spec = Spec(path=str(tmp_path / "scan.h5"), close=False, **how)
    options = dict(options)
    if "end_file" in options:
        options["end_file"] = end_file(tmp_path / "collection-end.json", *options["end_file"])
    result = tmp_path / "result.nxs"
    with running_writer(spec):  # stays there with the file open
        done = run_kernel(Path(spec.path), result, **options)
    assert (done.returncode, done.stderr) == (code, "")
    progress = progress_of(result)
    assert (progress["state"], progress["ended_because"]) == ("finished", reason)
    assert (progress["written"], progress["processed"], progress["failed"]) == (12, 12, 0)
    with h5py.File(result) as file:
        assert file["entry/frames/ended_because"][0].decode() == reason
        assert file["entry/frames/finished"][0] == 1


def test_frames_beyond_the_announced_number_are_processed_if_they_are_there(tmp_path: Path) -> None:
    spec = Spec(path=str(tmp_path / "scan.h5"))
    write_in_own_process(spec)
    result = tmp_path / "result.nxs"
    assert run_kernel(Path(spec.path), result, expected=5).returncode == 0
    assert progress_of(result)["ended_because"] == "expected number reached"
    assert_rows_are_the_frames(result, spec, list(range(12)))


def test_stack_that_is_found_in_several_portions_is_processed_whole(tmp_path: Path) -> None:
    frames = 2 * MOST_AT_ONCE + 5
    path, result = tmp_path / "scan.h5", tmp_path / "result.nxs"
    spec = Spec(path=str(path), shape=(3, 4))
    with h5py.File(path, "w", libver="latest") as file:
        detector = add_geometry(file, spec)
        data = detector.create_dataset("data", shape=(frames, 3, 4), chunks=(1, 3, 4), dtype="u4")
        for number in range(frames):
            data.id.write_direct_chunk((number, 0, 0), np.full((3, 4), number, "u4").tobytes())
    assert run_kernel(path, result, expected=frames, parameters={"bins": 1, "solid_angle": False}).returncode == 0
    with h5py.File(result) as file:
        np.testing.assert_array_equal(file["entry/data/I"][:, 0], np.arange(frames))


def test_file_of_a_killed_writer_is_processed_to_where_it_got(tmp_path: Path) -> None:
    spec = Spec(path=str(tmp_path / "scan.h5"), close=False)
    first, second = tmp_path / "first.nxs", tmp_path / "second.nxs"
    with running_writer(spec) as process:
        assert run_kernel(Path(spec.path), first, expected=12).returncode == 0
        process.kill()
    assert run_kernel(Path(spec.path), second, stall_timeout=1).returncode == 0
    assert_same_results(first, second, besides=("frames/expected",))


@pytest.mark.mpi
@pytest.mark.parametrize("ranks", [None, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signal_ends_in_order_as_partial(tmp_path: Path, ranks: int | None, number: signal.Signals) -> None:
    spec = Spec(path=str(tmp_path / "scan.h5"), frames=400, interval_s=0.05)
    result = tmp_path / "result.nxs"
    with running_writer(spec), running_kernel(Path(spec.path), result, ranks=ranks, expected=400) as process:
        wait_until(lambda: int(progress_of(result).get("processed", 0)) >= 5)
        process.send_signal(number)
        process.communicate(timeout=30)
    if ranks is None or number is signal.SIGUSR1:
        assert process.returncode == 4  # on SIGTERM mpirun says in its own way that it was terminated
    progress = progress_of(result)
    assert (progress["state"], progress["ended_because"]) == ("finished", "terminated")
    with h5py.File(result) as file:
        assert file["entry/frames/finished"][0] == 0
        assert file["entry/frames/ended_because"][0] == b"terminated"
        done = int(file["entry/frames/processed"][0])
    assert done == progress["processed"] >= 5
    assert_rows_are_the_frames(result, spec, list(range(done)))


@pytest.mark.mpi
def test_signal_to_any_rank_ends_the_run_in_order(tmp_path: Path) -> None:
    spec = Spec(path=str(tmp_path / "scan.h5"), frames=400, interval_s=0.05)
    result = tmp_path / "result.nxs"
    with running_writer(spec), running_kernel(Path(spec.path), result, ranks=2, expected=400) as process:
        wait_until(lambda: int(progress_of(result).get("processed", 0)) >= 5)
        os.kill(ranks_of(process)[1], signal.SIGUSR1)
        process.communicate(timeout=30)
    assert process.returncode == 4
    assert progress_of(result)["ended_because"] == "terminated"


def test_identity_of_the_input_is_told_at_open_and_at_end(tmp_path: Path) -> None:
    spec = Spec(path=str(tmp_path / "scan.h5"), files=3, interval_s=0.4)
    result = tmp_path / "result.nxs"
    with running_writer(spec):
        assert run_kernel(Path(spec.path), result).returncode == 0
    inputs = progress_of(result)["inputs"]
    status = Path(spec.path).stat()
    end = inputs["end"]
    assert (end["path"], end["size"], end["inode"]) == (spec.path, status.st_size, status.st_ino)
    assert (end["dataset"], end["shape"], end["dtype"], end["chunks"]) == (NEXUS_DATASET, [12, 60, 80], "uint32", None)
    assert [Path(source["path"]).name for source in end["sources"]] == ["scan_0.h5", "scan_1.h5", "scan_2.h5"]
    assert end["sources"][0]["size"] > inputs["open"]["sources"][0]["size"]


@pytest.mark.mpi
def test_undecodable_frame_is_counted_as_failed_and_the_rest_goes_on(tmp_path: Path) -> None:
    spec = Spec(path=str(tmp_path / "scan.h5"), compression="gzip")
    write_in_own_process(spec)
    with h5py.File(spec.path, "r+") as file:
        file["entry/instrument/detector/data"].id.write_direct_chunk((4, 0, 0), b"no gzip at all")
    for ranks in (1, 2):
        result = tmp_path / f"{ranks}.nxs"
        assert run_kernel(Path(spec.path), result, ranks=ranks).returncode == 4
        with h5py.File(result) as file:
            frames = file["entry/frames"]
            assert list(np.flatnonzero(frames["status"][()] == 2)) == [4]
            assert b"[4]: chunk of 14 bytes is no gzip data" in frames["message"][4]
            assert (frames["processed"][0], frames["failed"][0]) == (11, 1)
            assert np.isnan(file["entry/data/I"][4]).all()
    assert_same_results(tmp_path / "1.nxs", tmp_path / "2.nxs")


def test_chunk_stored_without_its_filters_is_read_as_it_is(tmp_path: Path) -> None:
    spec = Spec(path=str(tmp_path / "scan.h5"), compression="gzip")
    write_in_own_process(spec)
    with h5py.File(spec.path, "r+") as file:
        dataset = file["entry/instrument/detector/data"]
        dataset.id.write_direct_chunk((4, 0, 0), dataset[4].tobytes(), filter_mask=1)
    result = tmp_path / "result.nxs"
    assert run_kernel(Path(spec.path), result).returncode == 0
    assert_rows_are_the_frames(result, spec, list(range(12)))
