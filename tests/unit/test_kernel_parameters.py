"""Parameters that can't be, or can't be together, are refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mpi_kernels.errors import InvalidParameters
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
