"""``python -m mpi_kernels doctor``: what it says is here, what it measures, and that it notices sums that differ."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mpi_kernels import doctor, speed
from mpi_kernels.doctor import Finding, Report, State
from mpi_kernels.errors import ExitCode
from mpi_kernels.jit import sum_whole_pixels
from mpi_kernels.native.library import OBJECT, PATHS, NativePath
from mpi_kernels.speed import Speed
from tests.unit.native_chunks import needs_core

CHECKOUT = Path(__file__).parents[2]
NUMPY = speed.other_way(dectris=False, numba=False)
AVX512_FLAGS = "fpu avx2 avx512f avx512bw avx512vl gfni"


def report_of(**environment: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "mpi_kernels", "doctor", "--json"],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), "MPI_KERNELS_NATIVE": "", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (ExitCode.COMPLETE, "")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def finding(report: Mapping[str, Any], name: str) -> Mapping[str, str]:
    (found,) = (found for found in report["findings"] if found["name"] == name)
    return found


def test_report_names_every_way_its_speed_and_that_the_sums_are_identical() -> None:
    report = report_of()
    ways = {found["way"]: found for found in report["speeds"]}
    assert set(map(speed.native_way, PATHS)) | {NUMPY} <= set(ways)
    assert (sum_whole_pixels is not None) == any("numba" in way for way in ways)
    assert report["taken"] in ways
    assert all(found["same_sums"] and found["decode_fps"] > 0 and found["integrate_fps"] > 0 for found in ways.values())
    assert finding(report, "sums")["found"] == f"identical, each of {len(ways)} ways"
    assert 0 < report["of_best"] <= 1
    assert report["cores"] == len(os.sched_getaffinity(0))


def test_without_the_native_core_it_says_which_way_is_taken_and_how_much_is_lost() -> None:
    report = report_of(MPI_KERNELS_NATIVE="off")
    assert not report["taken"].startswith("native")
    assert finding(report, "native core")["state"] == "warning"
    assert finding(report, "native core")["remedy"]
    lost = finding(report, "speed")
    assert lost["state"] == "warning"
    assert report["taken"] in lost["found"]
    assert f"{(1 - report['of_best']) * 100:.0f} % less than by way of {report['best']}" in lost["found"]
    assert report["estimated"] == (not PATHS)


@needs_core
def test_a_slower_path_that_was_forced_is_named_with_the_remedy() -> None:
    found = finding(report_of(MPI_KERNELS_NATIVE="portable"), "native core")
    if max(PATHS) is NativePath.PORTABLE:
        pytest.skip("NOT TESTED: this processor has no faster path")
    assert "because of MPI_KERNELS_NATIVE=portable" in found["found"]
    assert found["remedy"] == "unset MPI_KERNELS_NATIVE"


def test_help_lists_no_kernel_of_that_name() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mpi_kernels", "--help"], capture_output=True, text=True, check=True, timeout=60
    )
    kernels, _, rest = done.stdout.partition("\noptions:")
    assert "doctor" not in kernels
    assert "doctor [--json]" in " ".join(rest.split())


def test_a_way_with_other_sums_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    possible = speed.ways

    def one_off(*arguments: Any) -> list[speed.Way]:
        found = possible(*arguments)
        sums = [(sums.copy(), excluded) for sums, excluded in found[0].integrate()]
        sums[3][0][500] += 1
        return [replace(found[0], name="wrong", integrate=lambda: sums), found[-1]]

    monkeypatch.setattr(speed, "ways", one_off)
    same = {found.way: found.same_sums for found in speed.measure(enough_s=0)}
    assert same == {"wrong": False, NUMPY: True}


# ---------------------------------------------------------------------------------------------------- the report


def a_speed(way: str, fps: float, *, same: bool = True) -> Speed:
    return Speed(way=way, decode_fps=2 * fps, integrate_fps=fps, same_sums=same)


def examined(monkeypatch: pytest.MonkeyPatch, *speeds: Speed, taken: str) -> Report:
    monkeypatch.setattr(doctor, "measure", lambda: speeds)
    monkeypatch.setattr(doctor, "way_taken", lambda: taken)
    return doctor.examine()


def of_name(report: Report, name: str) -> Finding:
    return next(found for found in report.findings if found.name == name)


def test_sums_that_differ_are_a_problem_and_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    core = speed.native_way(NativePath.AVX2)
    report = examined(monkeypatch, a_speed(core, 900, same=False), a_speed(NUMPY, 100), taken=core)
    assert of_name(report, "sums").state is State.PROBLEM
    assert core in of_name(report, "sums").found
    assert of_name(report, "sums").remedy
    assert report.exit_code is ExitCode.FAULT
    assert of_name(report, "sums").found in doctor.worded(report)


def test_what_a_core_would_bring_that_was_not_compiled_is_estimated_and_said_to_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "PATHS", ())
    monkeypatch.setattr(doctor, "PATH", None)
    monkeypatch.setattr(doctor, "LIBRARY", None)
    monkeypatch.setattr(doctor, "OBJECT", tmp_path / OBJECT.name)
    report = examined(monkeypatch, a_speed(NUMPY, 100), taken=NUMPY)
    assert report.estimated
    assert report.best == speed.native_way(max(doctor.processor_paths()))
    assert "estimated: it isn't here" in of_name(report, "speed").found
    assert "it wasn't compiled" in of_name(report, "native core").found
    assert "script/bootstrap" in of_name(report, "native core").remedy
    assert report.exit_code is ExitCode.COMPLETE


def test_reason_why_a_core_cannot_be_used_is_told(tmp_path: Path) -> None:
    assert doctor.why_no_core(tmp_path / "none.so") == "it wasn't compiled"
    (tmp_path / "text.so").write_text("no library")
    assert "it can't be loaded" in doctor.why_no_core(tmp_path / "text.so")


@pytest.mark.parametrize(
    ("flags", "best"),
    [
        (AVX512_FLAGS, NativePath.AVX512),
        (AVX512_FLAGS.replace(" gfni", ""), NativePath.AVX2),
        ("fpu sse2", NativePath.PORTABLE),
    ],
)
def test_paths_of_a_processor_are_known_without_a_compiled_core(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str, best: NativePath
) -> None:
    monkeypatch.setattr(doctor, "PATHS", ())
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: {flags}\n")
    assert max(doctor.processor_paths(tmp_path / "cpuinfo")) is best


@needs_core
def test_flags_of_this_processor_say_the_same_as_the_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PATHS", ())
    assert doctor.processor_paths() == PATHS
