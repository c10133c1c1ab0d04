"""Replayed frames keep their values, dtype, geometry and mask, whichever NeXus way the source has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from orchestrator.errors import InvalidInput
from orchestrator.simulator import FRAMES, GeometryOverrides, ReplaySettings, SimulationSettings, simulate
from orchestrator.simulator.replay import ReplayedFrames

REAL = Path(__file__).parents[3] / "shared" / "data" / "nxsas-in625-775C.hdf5"


def nexus_file(path: Path, frames: Any, fields: dict[str, tuple[Any, str]]) -> Path:
    with h5py.File(path, "w") as file:
        for name, nx_class in (
            ("entry", "NXentry"),
            ("entry/instrument", "NXinstrument"),
            ("entry/instrument/beam", "NXbeam"),
            ("entry/instrument/detector", "NXdetector"),
        ):
            file.create_group(name).attrs["NX_class"] = nx_class
        file["entry/data/data"] = frames
        for name, (value, units) in fields.items():
            file[f"entry/instrument/{name}"] = value
            file[f"entry/instrument/{name}"].attrs["units"] = units
    return path


def complete() -> dict[str, tuple[Any, str]]:
    return {
        "beam/incident_energy": (12398.419843320026, "eV"),
        "detector/distance": (20.0, "cm"),
        "detector/x_pixel_size": (75.0, "um"),
        "detector/y_pixel_size": ([150.0], "microns"),
        "detector/beam_center_x": (3.0, "pixels"),
        "detector/beam_center_y": (0.3, "mm"),
    }


@pytest.mark.skipif(not REAL.exists(), reason=f"the real file {REAL.name} isn't beside the checkout")
def test_real_nxsas_file_keeps_frames_and_geometry(tmp_path: Path) -> None:
    output = tmp_path / "replay.h5"
    settings = ReplaySettings(file=REAL, dataset="/entry/data/frames")
    report = simulate(SimulationSettings(output=output, frames=settings, rate_hz=np.inf))
    assert report.frames_expected == 10
    with h5py.File(REAL) as real, h5py.File(output) as replay:
        np.testing.assert_array_equal(replay[FRAMES][...], real["entry/data/frames"][...])
        assert replay[FRAMES].dtype == np.int32
        assert replay[FRAMES].chunks == (1, 195, 487)
        detector = replay["entry/instrument/detector"]
        assert detector["distance"][()] == pytest.approx(0.5408)
        assert detector["x_pixel_size"][()] == pytest.approx(172e-6)
        assert detector["beam_center_x"][()] == pytest.approx(99.95, abs=1e-3)
        assert detector["beam_center_y"][()] == pytest.approx(-5.65, abs=1e-3)
        assert replay["entry/instrument/beam/incident_wavelength"][()] == pytest.approx(0.59040224)


def test_units_and_an_energy_are_understood(tmp_path: Path) -> None:
    path = nexus_file(tmp_path / "in.h5", np.zeros((2, 4, 5), "u2"), complete())
    with ReplayedFrames(ReplaySettings(file=path, dataset="/entry/data/data")) as frames:
        geometry = frames.geometry
    assert geometry.distance_m == pytest.approx(0.2)
    assert (geometry.x_pixel_m, geometry.y_pixel_m) == pytest.approx((75e-6, 150e-6))
    assert (geometry.beam_center_x_px, geometry.beam_center_y_px) == pytest.approx((3.0, 2.0))
    assert geometry.wavelength_angstrom == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("left_out", "named"),
    [
        ("beam/incident_energy", "wavelength"),
        ("detector/distance", "distance"),
        ("detector/y_pixel_size", "y_pixel"),
        ("detector/beam_center_x", "beam_center_x"),
    ],
)
def test_missing_geometry_is_named_and_can_be_given(tmp_path: Path, left_out: str, named: str) -> None:
    fields = complete()
    del fields[left_out]
    path = nexus_file(tmp_path / "in.h5", np.zeros((2, 4, 5), "u2"), fields)
    with pytest.raises(InvalidInput, match=named):
        ReplayedFrames(ReplaySettings(file=path, dataset="/entry/data/data"))
    given = GeometryOverrides(distance_m=1.0, pixel_m=1e-4, wavelength_angstrom=0.7, beam_center_px=(2.0, 0.0))
    with ReplayedFrames(ReplaySettings(file=path, dataset="/entry/data/data", geometry=given)) as frames:
        assert frames.geometry.distance_m == 1.0
        assert frames.geometry.beam_center_y_px == 0.0


def test_units_that_nobody_knows_count_as_missing(tmp_path: Path) -> None:
    fields = complete() | {"detector/distance": (3.0, "furlong")}
    path = nexus_file(tmp_path / "in.h5", np.zeros((2, 4, 5), "u2"), fields)
    with pytest.raises(InvalidInput, match="distance"):
        ReplayedFrames(ReplaySettings(file=path, dataset="/entry/data/data"))


def test_longer_scan_loops_and_grids_are_walked_row_by_row(tmp_path: Path) -> None:
    grid = np.arange(2 * 3 * 4 * 5, dtype="u4").reshape(2, 3, 4, 5)
    path = nexus_file(tmp_path / "in.h5", grid, complete())
    output = tmp_path / "out.h5"
    settings = ReplaySettings(file=path, dataset="/entry/data/data")
    simulate(SimulationSettings(output=output, frames=settings, number=8, rate_hz=np.inf))
    with h5py.File(output) as file:
        np.testing.assert_array_equal(file[FRAMES][...], grid.reshape(6, 4, 5)[[0, 1, 2, 3, 4, 5, 0, 1]])


def test_pixel_mask_is_carried_over(tmp_path: Path) -> None:
    mask = np.zeros((4, 5), "u4")
    mask[1, 2] = 2
    path = nexus_file(tmp_path / "in.h5", np.zeros((2, 4, 5), "u2"), complete() | {"detector/pixel_mask": (mask, "")})
    output = tmp_path / "out.h5"
    settings = ReplaySettings(file=path, dataset="/entry/data/data")
    simulate(SimulationSettings(output=output, frames=settings, rate_hz=np.inf))
    with h5py.File(output) as file:
        np.testing.assert_array_equal(file["entry/instrument/detector/pixel_mask"][...], mask)


@pytest.mark.parametrize(
    ("frames", "dataset", "says"),
    [
        (np.zeros((2, 4, 5), "u2"), "/entry/nothing", "no dataset /entry/nothing"),
        (np.zeros((2, 4, 5), "u2"), "/entry/data", "no dataset /entry/data"),
        (np.zeros((2, 4, 5), "f4"), "/entry/data/data", "float32"),
        (np.zeros(5, "u2"), "/entry/data/data", r"shape \(5,\)"),
        (np.zeros((0, 4, 5), "u2"), "/entry/data/data", "no frames"),
    ],
)
def test_dataset_that_has_no_frames_is_refused(tmp_path: Path, frames: Any, dataset: str, says: str) -> None:
    path = nexus_file(tmp_path / "in.h5", frames, complete())
    with pytest.raises(InvalidInput, match=says):
        ReplayedFrames(ReplaySettings(file=path, dataset=dataset))


def test_file_that_is_not_hdf5_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.h5"
    path.write_text("not HDF5")
    with pytest.raises(InvalidInput, match=r"in\.h5"):
        ReplayedFrames(ReplaySettings(file=path, dataset="/entry/data/data"))
