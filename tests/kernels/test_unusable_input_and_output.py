"""What can't be processed gets one line with place and remedy, and the exit code of the contract."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from .harness import (
    ENVIRONMENT,
    NEXUS_DATASET,
    kernel_command,
    progress_of,
    run_kernel,
    running_kernel,
    running_writer,
    wait_until,
)
from .writers import Spec, write

LONG_AGO_S = 3600


def aged(path: Path) -> Path:
    """Make a file look as if nobody had touched it for an hour."""
    then = time.time() - LONG_AGO_S
    os.utime(path, (then, then))
    return path


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "scan.h5"
    write(Spec(path=str(path), frames=4))
    return aged(path)


def assert_refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    lines = done.stderr.splitlines()
    assert done.returncode == code, done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]


def test_input_that_never_appears(tmp_path: Path) -> None:
    done = run_kernel(tmp_path / "none.h5", tmp_path / "r.nxs", appear_timeout=0.5)
    assert_refused(done, 3, "none.h5: no such file; waited 0.5 s for it (--appear-timeout)", "check --input")
    progress = progress_of(tmp_path / "r.nxs")
    assert progress["state"] == "failed"
    assert progress["ended_because"] == "error"
    assert "none.h5" in str(progress["message"])


def test_dataset_that_is_not_there(scan: Path, tmp_path: Path) -> None:
    done = run_kernel(scan, tmp_path / "r.nxs", dataset="/entry/instrument/detector/dada")
    assert_refused(done, 3, "scan.h5: no /entry/instrument/detector/dada", "has: beam_center_x", "h5ls -r")


@pytest.mark.parametrize(("path", "word"), [("/entry/instrument", "a group"), ("/entry/instrument/name", "shape ()")])
def test_dataset_that_holds_no_frames(scan: Path, tmp_path: Path, path: str, word: str) -> None:
    assert_refused(run_kernel(scan, tmp_path / "r.nxs", dataset=path), 3, path, word)


def test_one_dimensional_dataset(scan: Path, tmp_path: Path) -> None:
    with h5py.File(scan, "a") as file:
        file["entry/line"] = np.arange(5)
    done = run_kernel(scan, tmp_path / "r.nxs", dataset="/entry/line")
    assert_refused(done, 3, "/entry/line: shape (5,)", "(…, y, x)")


def test_file_that_is_not_hdf5(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    path.write_text("hello")
    assert_refused(run_kernel(aged(path), tmp_path / "r.nxs"), 3, "scan.h5: not an HDF5 file")


@pytest.mark.parametrize("ranks", [None, pytest.param(2, marks=pytest.mark.mpi)])
def test_truncated_file(scan: Path, tmp_path: Path, ranks: int | None) -> None:
    with scan.open("r+b") as stream:
        stream.truncate(scan.stat().st_size - 3000)
    done = run_kernel(aged(scan), tmp_path / "r.nxs", ranks=ranks)
    assert done.returncode == 3
    assert done.stderr.count("error: ") == 1
    assert "scan.h5: truncated" in done.stderr


def test_unknown_compression_filter(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    write(Spec(path=str(path), frames=2))
    with h5py.File(path, "r+") as file:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((1, 60, 80))
        plist.set_filter(499, h5py.h5z.FLAG_OPTIONAL, ())
        space = h5py.h5s.create_simple((2, 60, 80))
        h5py.h5d.create(file["entry"].id, b"odd", h5py.h5t.NATIVE_UINT32, space, plist)
    done = run_kernel(aged(path), tmp_path / "r.nxs", dataset="/entry/odd")
    assert_refused(done, 3, "/entry/odd", "HDF5 filter 499", "HDF5_PLUGIN_PATH")


def test_geometry_missing(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    write(Spec(path=str(path), frames=2, geometry=False))
    done = run_kernel(aged(path), tmp_path / "r.nxs")
    assert_refused(done, 3, "no detector geometry", "/entry/instrument/detector: no x_pixel_size", "poni")


def test_wavelength_missing_matters_only_for_q(scan: Path, tmp_path: Path) -> None:
    with h5py.File(scan, "r+") as file:
        del file["entry/instrument/beam"]
    assert_refused(run_kernel(scan, tmp_path / "r.nxs"), 3, "no wavelength", "wavelength_m")
    assert run_kernel(scan, tmp_path / "r.nxs", parameters={"unit": "2th_deg"}).returncode == 0


def test_file_left_open_by_a_writer_without_swmr(scan: Path, tmp_path: Path) -> None:
    with scan.open("r+b") as stream:  # the flag that a killed writer leaves behind
        stream.seek(11)
        stream.write(b"\x01")
    done = run_kernel(scan, tmp_path / "r.nxs", appear_timeout=0.5)
    assert_refused(done, 3, "scan.h5: open for writing, not in SWMR mode", "h5clear")


def test_mode_finished_refuses_a_live_file(tmp_path: Path) -> None:
    spec = Spec(path=str(tmp_path / "scan.h5"), close=False)
    with running_writer(spec):
        assert run_kernel(Path(spec.path), tmp_path / "a.nxs", expected=12).returncode == 0
        assert_refused(run_kernel(Path(spec.path), tmp_path / "r.nxs", mode="finished"), 3, "--mode finished was given")


def test_links_in_a_circle(scan: Path, tmp_path: Path) -> None:
    with h5py.File(scan, "r+") as file:
        file["entry/a"], file["entry/b"] = h5py.SoftLink("/entry/b"), h5py.SoftLink("/entry/a")
    assert_refused(run_kernel(scan, tmp_path / "r.nxs", dataset="/entry/a"), 3, "links", "circle")


PARAMETERS = {
    "unknown name": ({"bin": 10}, ["bin: unknown", "--schema"]),
    "wrong type": ({"bins": "many"}, ["bins: "]),
    "out of range": ({"polarization_factor": 2}, ["polarization_factor: "]),
    "unknown unit": ({"unit": "q"}, ["unit: ", "q_nm^-1"]),
    "range upside down": ({"radial_range": [2, 1]}, ["radial_range", "below"]),
    "no JSON": ("{bins: 3}", ["no JSON"]),
    "missing mask": ({"mask": "mask.npy"}, ["mask: ", "mask.npy: no such file"]),
    "mask of another shape": ({"mask": "wrong.npy"}, ["mask: wrong.npy has shape (3, 3)", "(60, 80)"]),
    "mask of another kind": ({"mask": "image.tiff"}, ["mask: image.tiff", "FILE.npy"]),
    "background frame out of range": ({"background": f"scan.h5::{NEXUS_DATASET}[9]"}, ["background: [9]", "4 frames"]),
    "mask of everything": ({"mask": "ones.npy"}, ["no pixel", "mask"]),
    "mask of words": ({"mask": "words.npy"}, ["mask: words.npy holds <U3"]),
    "background that cannot be read": ({"background": "broken.h5::data"}, ["background: ", "broken.h5::data"]),
    "background without frames": ({"background": "empty.h5::data"}, ["background: ", "empty.h5::data has no frames"]),
    "empty name": ({"poni": ""}, ["poni: "]),
    "name with a null byte": ({"mask": "a\0b"}, ["mask: "]),
    "range without end": ({"radial_range": [0, float("inf")]}, ["radial_range", "finite"]),
    "no pixel left": ({"radial_range": [500, 501]}, ["no pixel", "radial_range"]),
    "missing PONI file": ({"poni": "a.poni"}, ["poni: ", "a.poni"]),
    "PONI file without distance": ({"poni": "empty.poni"}, ["empty.poni: no distance"]),
    "no such detector": ({"detector": "/entry/nope"}, ["detector: no group /entry/nope"]),
}


@pytest.mark.parametrize("case", PARAMETERS)
def test_wrong_parameter_is_named(scan: Path, tmp_path: Path, case: str) -> None:
    parameters, words = PARAMETERS[case]
    np.save(tmp_path / "wrong.npy", np.zeros((3, 3)))
    np.save(tmp_path / "ones.npy", np.ones((60, 80)))
    np.save(tmp_path / "words.npy", np.array(["one"]))
    with h5py.File(tmp_path / "empty.h5", "w") as file:
        file.create_dataset("data", shape=(0, 60, 80), maxshape=(None, 60, 80), dtype="u4")
    with h5py.File(tmp_path / "broken.h5", "w") as file:
        data = file.create_dataset("data", shape=(60, 80), chunks=(60, 80), dtype="u4", compression="gzip")
        data.id.write_direct_chunk((0, 0), b"no gzip at all")
    (tmp_path / "image.tiff").write_bytes(b"II")
    (tmp_path / "empty.poni").write_text("# nothing\n")
    assert_refused(run_kernel(scan, tmp_path / "r.nxs", parameters=parameters), 2, *words)
    progress = progress_of(tmp_path / "r.nxs")
    assert (progress["state"], progress["ended_because"]) == ("failed", "error")
    assert all(word in str(progress["message"]) for word in words)


@pytest.mark.parametrize("ranks", [None, pytest.param(2, marks=pytest.mark.mpi)])
def test_wrong_command_line_is_said_once(tmp_path: Path, ranks: int | None) -> None:
    done = run_kernel(tmp_path / "a.h5", tmp_path / "r.nxs", ranks=ranks, expected="many")
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1
    assert "--expected" in done.stderr
    progress = progress_of(tmp_path / "r.nxs")
    assert (progress["state"], progress["ended_because"], progress["ranks"]) == ("failed", "error", ranks or 1)
    assert "--expected" in str(progress["message"])
    assert progress["parameters"] is None


@pytest.mark.parametrize("ranks", [None, pytest.param(2, marks=pytest.mark.mpi)])
def test_native_path_that_is_not_there_is_refused_in_one_line(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int | None
) -> None:
    monkeypatch.setitem(ENVIRONMENT, "MPI_KERNELS_NATIVE", "fast")
    done = run_kernel(scan, tmp_path / "r.nxs", ranks=ranks)
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1
    assert "MPI_KERNELS_NATIVE=fast: not possible here" in done.stderr
    assert "Traceback" not in done.stderr
    assert "MPI_KERNELS_NATIVE" in str(progress_of(tmp_path / "r.nxs")["message"])


def test_signal_while_waiting_for_the_input_says_so(tmp_path: Path) -> None:
    result = tmp_path / "r.nxs"
    with running_kernel(tmp_path / "none.h5", result) as process:
        wait_until(lambda: progress_of(result).get("state") == "waiting")
        process.send_signal(signal.SIGUSR1)
        process.communicate(timeout=30)
    assert process.returncode == 3
    assert "until a signal came" in str(progress_of(result)["message"])


def test_refusal_is_said_although_the_progress_file_cannot_be_written(scan: Path, tmp_path: Path) -> None:
    done = run_kernel(scan, tmp_path / "r.nxs", parameters={"bin": 1}, progress=tmp_path / "none" / "progress.json")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "bin: unknown" in done.stderr
    assert "the progress file can't be written either" in done.stderr


def test_folder_of_the_output_is_missing(scan: Path, tmp_path: Path) -> None:
    progress = tmp_path / "progress.json"
    done = run_kernel(scan, tmp_path / "r.nxs", result=tmp_path / "none" / "r.nxs", progress=progress)
    assert_refused(done, 5, "none/r.nxs", "folder")
    assert json.loads(progress.read_text())["state"] == "failed"


@pytest.mark.mpi
@pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: only root can mount a small file system to fill")
@pytest.mark.parametrize("ranks", [None, 2])
def test_full_disk_ends_the_run_with_code_5(tmp_path: Path, ranks: int | None) -> None:
    spec = Spec(path=str(tmp_path / "scan.h5"), frames=300, interval_s=0.01)
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], check=True)
    try:
        (small / "ballast").write_bytes(bytes(500_000))
        with running_writer(spec):
            options = {"result": small / "r.nxs", "parameters": {"bins": 1000}}
            done = run_kernel(Path(spec.path), tmp_path / "r.nxs", ranks=ranks, expected=300, **options)
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert done.returncode == 5, done.stderr
        assert len(errors) == 1
        assert "small/r.nxs" in errors[0]
        assert "disk's space" in errors[0]
        assert "Traceback" not in done.stderr
        assert progress_of(tmp_path / "r.nxs")["state"] == "failed"
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)


def test_older_result_is_replaced(scan: Path, tmp_path: Path) -> None:
    result = tmp_path / "r.nxs"
    result.write_text("something older")
    assert run_kernel(scan, result).returncode == 0
    with h5py.File(result) as file:
        assert file["entry/frames/processed"][0] == 4


def test_older_result_stays_whole_for_who_has_it_open(scan: Path, tmp_path: Path) -> None:
    result = tmp_path / "r.nxs"
    assert run_kernel(scan, result, parameters={"bins": 7}).returncode == 0
    with h5py.File(result, "r", swmr=True) as viewer:
        assert run_kernel(scan, result, parameters={"bins": 9}).returncode == 0
        viewer["entry/data/I"].refresh()
        assert viewer["entry/data/I"][()].shape == (4, 7)
    with h5py.File(result) as file:
        assert file["entry/data/I"].shape == (4, 9)
    assert not list(tmp_path.glob(".r.nxs*"))


def test_more_data_files_than_may_be_open_by_default(scan: Path, tmp_path: Path) -> None:
    files = 80
    master = tmp_path / "master.h5"
    with h5py.File(master, "w", libver="latest") as file:
        with h5py.File(scan) as part:
            part.copy("entry/instrument", file.require_group("entry"))
        for number in range(files):
            (tmp_path / f"part{number}.h5").symlink_to(shutil.copy(scan, tmp_path / f"copy{number}.h5"))
            file[f"entry/data/data_{number:06d}"] = h5py.ExternalLink(f"part{number}.h5", NEXUS_DATASET)
    command = kernel_command(master, tmp_path / "r.nxs", ranks=None, dataset="/entry/data")
    for limit, code in (("ulimit -S -n 64", 0), ("ulimit -n 64", 3)):
        shell = ["bash", "-c", f'{limit}; exec "$@"', "bash", *command]
        done = subprocess.run(shell, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == code, done.stderr
    assert "64 files are open, and no more are allowed (raise the hard limit" in done.stderr


def test_reason_why_a_frame_failed_is_text_however_long_its_path(tmp_path: Path) -> None:
    folder = tmp_path / ("ü" * 120)
    folder.mkdir()
    spec = Spec(path=str(folder / "scan.h5"), frames=2, compression="gzip")
    write(spec)
    with h5py.File(spec.path, "r+") as file:
        file[NEXUS_DATASET].id.write_direct_chunk((1, 0, 0), b"no gzip at all")
    assert run_kernel(Path(spec.path), tmp_path / "r.nxs").returncode == 4
    with h5py.File(tmp_path / "r.nxs") as file:
        message = file["entry/frames/message"].asstr()[1]
    assert str(tmp_path) in message
    assert message.endswith("ü")


def test_names_in_another_encoding_are_written_with_escapes(scan: Path, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"\xb5")
    folder.mkdir()
    with h5py.File(scan, "r+") as file:
        del file["entry/instrument/name"]
        file["entry/instrument"].create_dataset("name", data=b"beamline \xb5", dtype=h5py.string_dtype())
    path = shutil.copy(scan, folder / "scan.h5")
    done = run_kernel(path, tmp_path / "r.nxs")
    assert (done.returncode, done.stderr) == (0, "")
    with h5py.File(tmp_path / "r.nxs") as file:
        assert file["entry/instrument/name"].asstr()[()].startswith("beamline ")
        assert r"\udcb5/scan.h5" in file["entry/reduction/input/made_input"].asstr()[()]


def test_file_that_appears_later_is_waited_for(tmp_path: Path) -> None:
    result = tmp_path / "r.nxs"
    spec = Spec(path=str(tmp_path / "scan.h5"), frames=4)
    with running_kernel(Path(spec.path), result, appear_timeout=30) as process:
        wait_until(lambda: progress_of(result).get("state") == "waiting")
        with running_writer(spec):
            process.communicate(timeout=60)
    assert process.returncode == 0


@pytest.mark.mpi
def test_data_files_of_different_shapes_end_all_ranks(tmp_path: Path) -> None:
    write(Spec(path=str(tmp_path / "part1.h5"), frames=2))
    write(Spec(path=str(tmp_path / "part2.h5"), frames=2, shape=(60, 81)))
    master = tmp_path / "master.h5"
    with h5py.File(master, "w", libver="latest") as file:
        with h5py.File(tmp_path / "part1.h5") as part:
            part.copy("entry/instrument", file.require_group("entry"))
        for number in (1, 2):
            file[f"entry/data/data_{number:06d}"] = h5py.ExternalLink(f"part{number}.h5", NEXUS_DATASET)
    done = run_kernel(master, tmp_path / "r.nxs", ranks=2, dataset="/entry/data")
    assert done.returncode == 3
    assert done.stderr.count("error: ") == 1
    assert "frames (60, 81) of uint32, but" in done.stderr
    with h5py.File(tmp_path / "r.nxs") as file:
        assert file["entry/frames/ended_because"][0] == b"error"
        assert file["entry/frames/finished"][0] == 0


FAULT_ON_RANK_0 = """
import sys
from mpi_kernels import conductor
from mpi_kernels.__main__ import main

def fault(*_):
    raise ZeroDivisionError("a fault that nobody foresaw")

conductor.Conductor._process_batch = fault
sys.exit(main(sys.argv[3:]))
"""


def test_unforeseen_fault_is_the_last_word_of_the_progress_file(scan: Path, tmp_path: Path) -> None:
    command = kernel_command(scan, tmp_path / "r.nxs", ranks=None)
    command[1:1] = ["-c", FAULT_ON_RANK_0]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "ZeroDivisionError: a fault that nobody foresaw" in done.stderr
    progress = progress_of(tmp_path / "r.nxs")
    assert (progress["state"], progress["ended_because"]) == ("failed", "error")
    assert "ZeroDivisionError" in str(progress["message"])


FAULT_ON_LAST_RANK = """
import sys
from mpi4py import MPI
from mpi_kernels import ranks
from mpi_kernels.__main__ import main

def fault(*_):
    raise ZeroDivisionError("a fault that nobody foresaw")

if MPI.COMM_WORLD.rank == 1:
    ranks.Share.rows = fault
sys.exit(main(sys.argv[3:]))
"""


@pytest.mark.mpi
def test_unforeseen_fault_on_one_rank_ends_the_others(scan: Path, tmp_path: Path) -> None:
    command = kernel_command(scan, tmp_path / "r.nxs", ranks=2)
    start = command.index("-m", command.index("-n"))
    command[start:start] = ["-c", FAULT_ON_LAST_RANK]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "ZeroDivisionError: a fault that nobody foresaw" in done.stderr


def test_scan_whose_data_file_never_came_is_partial_although_nobody_said_how_many_frames(tmp_path: Path) -> None:
    spec = Spec(path=str(tmp_path / "master.h5"), frames=12, files=3)
    write(spec)
    missing = sorted(path for path in tmp_path.glob("*.h5") if path != Path(spec.path))[1]
    missing.unlink()
    result = tmp_path / "result.nxs"
    done = run_kernel(Path(spec.path), result, mode="finished")
    assert done.returncode == 4, done.stderr
    with h5py.File(result) as file:
        assert np.count_nonzero(file["entry/frames/status"][...] == 1) == 8
