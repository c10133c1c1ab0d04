"""A live run is repeated from its record: identical; different after anything was changed, with the culprit named."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  registers its filters with HDF5
import numpy as np
import pytest

import mpi_kernels
from orchestrator.provenance import RunDetail
from orchestrator.records import RunState
from tests.system.beamline import Beamline

pytestmark = pytest.mark.mpi

FRAMES = 20


@pytest.fixture
def beamline(tmp_path: Path) -> Iterator[Beamline]:
    """Give a beamline whose jobs import kernels from a copy of their own, with a mask in a file."""
    copy = tmp_path / "code" / "mpi_kernels"
    shutil.copytree(Path(mpi_kernels.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    mask = np.zeros((128, 128), np.uint8)
    mask[:8] = 1
    np.save(tmp_path / "mask.npy", mask)
    changes = {
        "defaults.environment.PYTHONPATH": str(copy.parent),
        "recipes.azimuthal.parameters.mask": str(tmp_path / "mask.npy"),
    }
    made = Beamline(tmp_path, None, changes)
    try:
        yield made
    finally:
        made.close()


def a_live_run(beamline: Beamline) -> RunDetail:
    beamline.start_service()
    with beamline.detector("live", "--number", str(FRAMES), "--rate", "10"):
        beamline.announce("live", FRAMES)
        detail = beamline.wait_for_end("live", within_s=90)
    beamline.wait_for("live", lambda run: bool(run.outputs))
    beamline.stop_service()
    assert detail.summary.state is RunState.COMPLETE, detail.summary.reason
    return detail


def verified(beamline: Beamline, run: RunDetail, *options: str) -> dict[str, Any]:
    """Verify a run; return what is said, having seen that the exit code fits."""
    done = beamline.command("verify", run.summary.run_id, "--json", *options)
    assert done.returncode in {0, 6}, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert (told["verdict"] == "different") == (done.returncode == 6)
    return told


def culprits(told: dict[str, Any]) -> set[tuple[str, str]]:
    return {(one["aspect"], one["name"]) for one in told["culprits"]}


def flip_a_pixel_of_the_mask(file: Path) -> None:
    mask = np.load(file)
    mask[64, 70] ^= 1
    np.save(file, mask)


def change_one_byte_of_the_input(file: Path) -> None:
    """Change one stored byte of frame 7, past HDF5."""
    with h5py.File(file, "r") as frames:
        stored = frames["entry/data/data"].id.get_chunk_info_by_coord((7, 0, 0))
        place = stored.byte_offset + stored.size - 3
    with file.open("r+b") as raw:
        raw.seek(place)
        (byte,) = raw.read(1)
        raw.seek(place)
        raw.write(bytes([byte ^ 1]))


def change_the_code(copy: Path) -> None:
    """Make the kernel multiply every intensity by a little more than it should."""
    source = copy / "azimuthal.py"
    text = source.read_text()
    line = '            columns[f"{self.group}/I"][list(good)] = pattern.intensity\n'
    assert line in text
    source.write_text(text.replace(line, line.replace("\n", " * 1.0001\n")))


def change_the_recorded_parameter(beamline: Beamline, run: RunDetail) -> None:
    """Have the record say another number of bins than the kernel was given."""
    with sqlite3.connect(beamline.directory / "provenance.sqlite") as database:
        (text,) = database.execute("SELECT plan FROM runs WHERE run_id = ?", (run.summary.run_id,)).fetchone()
        plan = json.loads(text)
        (bins,) = (one for one in plan["parameters"] if one["name"] == "bins")
        bins["value"] = 400
        changed = json.dumps(plan, sort_keys=True, separators=(",", ":"))
        database.execute("UPDATE runs SET plan = ? WHERE run_id = ?", (changed, run.summary.run_id))


def test_a_live_run_is_identical_on_other_ranks_and_different_after_each_change(beamline: Beamline) -> None:
    run = a_live_run(beamline)
    same = verified(beamline, run, "--ntasks", "3")
    assert (same["verdict"], same["culprits"]) == ("identical", [])

    mask = beamline.directory / "mask.npy"
    before = mask.read_bytes()
    flip_a_pixel_of_the_mask(mask)
    told = verified(beamline, run)
    assert told["verdict"] == "different"
    assert culprits(told) == {("files that parameters name", "mask")}
    assert "STALE" in beamline.command("show", run.summary.run_id).stdout
    mask.write_bytes(before)
    assert verified(beamline, run)["verdict"] == "identical"

    code = beamline.directory / "code" / "mpi_kernels"
    kernel = (code / "azimuthal.py").read_bytes()
    change_the_code(code)
    told = verified(beamline, run)
    assert told["verdict"] == "different"
    assert culprits(told) == {("code", "loaded.source_sha256")}
    assert verified(beamline, run, "--rtol", "1e-3")["verdict"] == "within tolerance"
    (code / "azimuthal.py").write_bytes(kernel)

    change_one_byte_of_the_input(beamline.file("live"))
    told = verified(beamline, run)
    assert told["verdict"] == "different"
    assert ("input", "content") in culprits(told)
    assert all(aspect == "input" for aspect, _ in culprits(told))

    shown = beamline.command("show", run.summary.run_id).stdout
    assert shown.count(f"{run.summary.run_id} was repeated as") == 6


def test_a_record_that_says_another_parameter_than_was_used_is_found_out(beamline: Beamline) -> None:
    run = a_live_run(beamline)
    change_the_recorded_parameter(beamline, run)
    told = verified(beamline, run)
    assert told["verdict"] == "different"
    assert culprits(told) == {("parameters", "bins")}
    (bins,) = told["culprits"]
    assert (bins["first"], bins["second"]) == ("500", "400")
