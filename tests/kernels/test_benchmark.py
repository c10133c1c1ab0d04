"""``script/bench kernels``: it runs to its end, and what it makes of measurements is right."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import pytest

from .harness import ENVIRONMENT

BENCHMARKS = Path(__file__).parents[2] / "script" / "benchmarks"


@pytest.fixture
def module_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def named(name: str) -> ModuleType:
        return importlib.import_module(name)

    return named


def write_result(path: Path, processed_times: np.ndarray, *, status: int = 1) -> Path:
    with h5py.File(path, "w") as file:
        file["entry/frames/status"] = np.full(len(processed_times), status, np.uint8)
        file["entry/frames/processed_time"] = processed_times
        values = np.random.default_rng(0).random((len(processed_times), 5))
        file.create_dataset("entry/data/I", data=values, maxshape=(None, 5))
        file["entry/data/radial_axis"] = np.arange(5.0)
    return path


def figures_with(rates: dict[str, dict[str, list[float]]], failures: dict[str, str]) -> dict[str, object]:
    return {"frames_per_s": rates, "live": {}, "memory_mb": {}, "failures": failures}


@pytest.mark.mpi
def test_a_look_measures_kernels_decoders_and_live_lag(tmp_path: Path) -> None:
    wanted = ["uint32: azimuthal", "uint32: decode", "uint32: h5py", "uint32: LZ4", "live 100/s", "memory", "64 nodes"]
    json_file = tmp_path / "figures.json"
    command = [sys.executable, str(BENCHMARKS), "kernels", "--quick", "--json", str(json_file), "--only", *wanted]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode in {0, 1}, done.stderr  # 1: small frames don't meet the targets
    figures = json.loads(json_file.read_text())
    rates = figures["frames_per_s"]["middle uint32"]
    assert {"azimuthal", "azimuthal, 2 ranks", "decode dectris", "h5py d[i]"} <= rates.keys()
    assert all(value > 0 for values in rates.values() for value in values)
    live = figures["live"]["live 100/s, 1 rank"]
    assert live["wrong"] == 0
    assert len(live["computed_ms"]) == len(live["visible_ms"]) == live["frames"] > 0
    assert all(peak > 1 for peaks in figures["memory_mb"]["azimuthal"].values() for peak in peaks)
    assert [row["nodes"] for row in figures["nodes"]["projected"]][-1] == 64
    for text in ("azimuthal, 2 ranks / azimuthal", "from flush to computed", "limited by", "h5py d[i]"):
        assert text in done.stdout


def test_rate_leaves_out_the_beginning_and_the_end(module_named, tmp_path: Path) -> None:
    batches = np.repeat([0.0, *np.arange(10.0, 12.0, 0.1), 50.0], 10)  # slow to begin, slow to end
    result = write_result(tmp_path / "r.h5", 1.7e9 + batches)
    assert module_named("kernel_programs").frames_per_s(result) == pytest.approx(100, rel=1e-3)


def test_a_result_with_missing_frames_has_no_rate(module_named, tmp_path: Path) -> None:
    from orchestrator.errors import OrchestratorError  # noqa: PLC0415

    result = write_result(tmp_path / "r.h5", np.arange(10.0), status=2)
    with pytest.raises(OrchestratorError, match="10 of 10 frames have no result"):
        module_named("kernel_programs").frames_per_s(result)


def test_one_bit_makes_a_frame_wrong(module_named, tmp_path: Path) -> None:
    paths = [write_result(tmp_path / name, np.arange(10.0)) for name in ("a.h5", "b.h5")]
    wrong_frames = module_named("kernel_live").wrong_frames
    assert wrong_frames(*paths, 10) == 0
    with h5py.File(paths[1], "r+") as file:
        file["entry/data/I"][7, 2] = np.nextafter(file["entry/data/I"][7, 2], 2)
        file["entry/frames/status"][3] = 0
    assert wrong_frames(*paths, 10) == 1  # the status that counts is the first result's
    assert wrong_frames(*reversed(paths), 10) == 2


def test_what_could_not_be_measured_is_a_target_missed_and_what_was_not_asked_for_is_none(module_named) -> None:
    report = module_named("kernel_report")
    rates = {"middle uint32": {"decode avx2": [100.0, 90.0], "decode dectris": [80.0, 99.0], "azimuthal": [98.0, 99.0]}}
    found = {target.name: target for target in report.targets(figures_with(rates, {}))}
    (name,) = found
    assert name == "middle uint32: azimuthal / the best full-frame decode"
    assert found[name].seen == pytest.approx((0.98 + 1.1) / 2)
    assert found[name].met
    missing = report.targets(figures_with(rates, {"middle uint32: projection": "not there"}))
    assert [(target.name.split(" / ")[0], target.met) for target in missing][1:] == [
        ("middle uint32: projection", False)
    ]


def test_many_nodes_are_limited_by_the_least_of_ranks_rank_0_and_file_system(module_named) -> None:
    scaling = module_named("kernel_scaling")
    free = dict.fromkeys(
        ("broadcast_s", "gather_s", "row_s", "buffer_row_s", "write_s", "write_row_s", "poll_s", "look_s"), 1e-12
    )
    few, *_, many = scaling.projected(free, 1000.0, 1e6)
    assert few["limit"] == "integrating"
    assert few["rate"] == 1000 * few["ranks"]
    assert many["limit"] == "file system"
    assert many["rate"] == pytest.approx(scaling.FILE_SYSTEM_GB_S * 1e3)
    *_, written = scaling.projected(free | {"write_row_s": 1e-3}, 1000.0, 1e6)
    assert written["limit"] == "rank 0"
    assert written["rate"] == pytest.approx(1000, rel=1e-3)
