"""Parameters that can't be, or can't be together, are refused by name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mpi_kernels.errors import InvalidParameters
from mpi_kernels.kernels import KERNELS
from mpi_kernels.parameters import AzimuthalParameters, read_parameters


def read(folder: Path, values: dict[str, object]) -> AzimuthalParameters:
    (folder / "parameters.json").write_text(json.dumps(values))
    return read_parameters(folder / "parameters.json", AzimuthalParameters)[0]


WRONG: dict[str, tuple[dict[str, object], str]] = {
    "wavelength 0": ({"wavelength_m": 0}, "wavelength_m: .*greater than 0"),
    "splitting unknown": ({"splitting": "some"}, "splitting: .*'no', 'bbox' or 'full'"),
    "absorption without thickness": ({"sensor_attenuation_per_m": 2400}, "give both or none"),
    "absorption without attenuation": ({"sensor_thickness_m": 450e-6}, "give both or none"),
    "negative thickness": ({"sensor_thickness_m": -1}, "sensor_thickness_m: .*greater than 0"),
    "dead time without time": ({"dead_time_s": 1e-7}, "dead_time_s: needs count_time_s"),
    "counting time 0": ({"count_time_s": 0}, "count_time_s: .*greater than 0"),
    "transmission in percent": ({"transmission": 85}, "transmission: .*less than or equal to 1"),
    "transmission 0": ({"transmission": 0}, "transmission: .*greater than 0"),
    "transmission twice": ({"transmission": 0.8, "transmission_dataset": "/entry/t"}, "give one of them"),
    "monitor twice": ({"monitor": 5, "monitor_dataset": "/entry/i0"}, "give one of them"),
    "sample of no thickness": ({"thickness_m": 0}, "thickness_m: .*greater than 0"),
    "absolute scale negative": ({"absolute_scale": -2}, "absolute_scale: .*greater than 0"),
    "nearly a name": ({"bin": 5}, r"bin: unknown, did you mean bins\?"),
    "no name": ({"something": 5}, "something: unknown$"),
    "range backward": ({"radial_range": [2, 1]}, "the lower edge must be below"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_parameters_are_refused_by_name(tmp_path: Path, case: str) -> None:
    values, problem = WRONG[case]
    with pytest.raises(InvalidParameters, match=problem):
        read(tmp_path, values)


def test_all_physics_together_is_accepted(tmp_path: Path) -> None:
    parameters = read(
        tmp_path,
        {
            "unit": "r_mm",
            "splitting": "full",
            "error_model": "azimuthal",
            "sensor_thickness_m": 450e-6,
            "sensor_attenuation_per_m": 2400,
            "dead_time_s": 1e-7,
            "dead_time_model": "paralyzable",
            "count_time_s": 0.01,
            "transmission": 1,
            "monitor_dataset": "/entry/i0",
            "thickness_m": 0.001,
            "absolute_scale": 20,
        },
    )
    assert (parameters.unit, parameters.splitting, parameters.error_model) == ("r_mm", "full", "azimuthal")


def test_without_parameters_nothing_is_split_or_scaled(tmp_path: Path) -> None:
    parameters = read(tmp_path, {})
    assert (parameters.splitting, parameters.dead_time_s, parameters.transmission) == ("no", None, None)
    assert parameters.absolute_scale == 1


# --------------------------------------------------------------------------------------- asked before a job is made


def asked(kernel: str, *sets: dict[str, object]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mpi_kernels.checking", kernel],
        input=json.dumps(sets),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("kernel", [*KERNELS, "average"])
def test_kernels_say_whether_they_take_parameters(kernel: str) -> None:
    good, wrong = asked(kernel, {}, {}), asked(kernel, {}, {"something": 1}, {"something": 1, "more": 2})
    assert (good.returncode, good.stdout, good.stderr) == (0, "", "")
    assert wrong.stdout.splitlines() == ["something: unknown", "something: unknown; more: unknown"]
    assert (wrong.returncode, wrong.stderr) == (2, "")


def test_of_what_is_no_kernel_nothing_is_said_of_parameters() -> None:
    other = asked("report", {"something": 1})
    assert (other.returncode, other.stdout) == (2, "")
    assert other.stderr.startswith("error: give one of azimuthal, projection, average")
