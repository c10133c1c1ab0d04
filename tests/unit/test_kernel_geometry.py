"""Detector geometry from NeXus files in all their forms, and from PONI files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mpi_kernels.errors import InvalidParameters, UnusableInput
from mpi_kernels.geometry import Geometry, from_beam_centre, parse_poni
from mpi_kernels.hdf5_files import Library
from mpi_kernels.nexus_geometry import DetectorFacts, read_detector

SHAPE = (50, 60)
WANTED = from_beam_centre(
    distance_m=0.25, pixel_m=(75e-6, 75e-6), centre_px=(20.5, 31.0), wavelength_m=1.2e-10, source=""
)


def add(group: h5py.Group, name: str, value: Any, units: str | None = None, **attributes: Any) -> h5py.Dataset:
    dataset = group.create_dataset(name, data=value)
    if units is not None:
        dataset.attrs["units"] = units
    for key, item in attributes.items():
        dataset.attrs[key] = item
    return dataset


def group_in(parent: h5py.Group, name: str, nx_class: str) -> h5py.Group:
    group = parent.require_group(name)
    group.attrs["NX_class"] = nx_class
    return group


def facts_of(path: Path, dataset: str = "/entry/data/data", detector: str | None = None) -> DetectorFacts:
    library = Library()
    try:
        return read_detector(library, path, dataset, detector)
    finally:
        library.close()


def assert_same(geometry: Geometry | None, wanted: Geometry = WANTED) -> None:
    assert geometry is not None
    for name in ("origin_m", "fast_m", "slow_m"):
        np.testing.assert_allclose(getattr(geometry, name), getattr(wanted, name), atol=1e-12)
    assert geometry.wavelength_m == pytest.approx(wanted.wavelength_m)


FORMS: dict[str, dict[str, tuple[float, str | None]]] = {
    "pixels, metres": {
        "distance": (0.25, "m"),
        "x_pixel_size": (75e-6, "m"),
        "y_pixel_size": (75e-6, "m"),
        "beam_center_x": (31.0, "pixel"),
        "beam_center_y": (20.5, "pixels"),
    },
    "no units": {
        "distance": (0.25, None),
        "x_pixel_size": (75e-6, None),
        "y_pixel_size": (75e-6, None),
        "beam_center_x": (31.0, None),
        "beam_center_y": (20.5, None),
    },
    "lengths": {
        "distance": (250, "mm"),
        "x_pixel_size": (75, "um"),
        "y_pixel_size": (0.075, "mm"),
        "beam_center_x": (31 * 0.075, "mm"),
        "beam_center_y": (20.5 * 75, "microns"),
    },
}
BEAMS: dict[str, tuple[str, str, float, str]] = {
    "NXbeam wavelength": ("NXbeam", "incident_wavelength", 1.2, "angstrom"),
    "NXbeam energy": ("NXbeam", "incident_energy", 12398.419843320026 / 1.2, "eV"),
    "NXmonochromator wavelength": ("NXmonochromator", "wavelength", 0.12, "nm"),
    "NXmonochromator energy": ("NXmonochromator", "energy", 12.398419843320026 / 1.2, "keV"),
}


def write_detector(path: Path, form: str, beam: str) -> None:
    with h5py.File(path, "w", libver="latest") as file:
        instrument = group_in(group_in(file, "entry", "NXentry"), "instrument", "NXinstrument")
        detector = group_in(instrument, "detector", "NXdetector")
        for name, (value, units) in FORMS[form].items():
            add(detector, name, value, units)
        nx_class, name, value, units = BEAMS[beam]
        add(group_in(instrument, "beam", nx_class), name, [value], units)


@pytest.mark.parametrize("form", FORMS)
def test_beam_centre_form_with_any_units(tmp_path: Path, form: str) -> None:
    write_detector(tmp_path / "a.h5", form, "NXbeam wavelength")
    assert_same(facts_of(tmp_path / "a.h5").geometry)


@pytest.mark.parametrize("beam", BEAMS)
def test_wavelength_from_beam_or_monochromator(tmp_path: Path, beam: str) -> None:
    write_detector(tmp_path / "a.h5", "lengths", beam)
    assert_same(facts_of(tmp_path / "a.h5").geometry)


def test_unknown_units_are_refused(tmp_path: Path) -> None:
    write_detector(tmp_path / "a.h5", "lengths", "NXbeam wavelength")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["entry/instrument/detector/distance"].attrs["units"] = "furlong"
    facts = facts_of(tmp_path / "a.h5")
    assert facts.geometry is None
    assert "units 'furlong'" in facts.geometry_problem


def test_distance_that_changes_during_the_scan_is_refused(tmp_path: Path) -> None:
    write_detector(tmp_path / "a.h5", "lengths", "NXbeam wavelength")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file["entry/instrument/detector/distance"]
        add(file["entry/instrument/detector"], "distance", [0.1, 0.2], "m")
    assert "changes during the scan" in facts_of(tmp_path / "a.h5").geometry_problem


def test_several_detectors_need_a_choice_unless_one_holds_the_frames(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_detector(path, "lengths", "NXbeam wavelength")
    with h5py.File(path, "r+") as file:
        file.copy("entry/instrument/detector", file["entry/instrument"], name="other")
        add(file["entry/instrument/other"], "data", np.zeros((1, *SHAPE)))
        file["entry/data/data"] = file["entry/instrument/other/data"]
        file["entry/data/strange"] = np.zeros((1, *SHAPE))
    assert facts_of(path).group == "/entry/instrument/other"
    assert facts_of(path, "/entry/data/strange", "/entry/instrument/detector").group == "/entry/instrument/detector"
    with pytest.raises(InvalidParameters, match="several NXdetector groups"):
        facts_of(path, "/entry/data/strange")


def test_distance_by_a_chain_of_translations(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_detector(path, "lengths", "NXbeam wavelength")
    with h5py.File(path, "r+") as file:
        detector = file["entry/instrument/detector"]
        del detector["distance"]
        moves = group_in(detector, "transformations", "NXtransformations")
        along = {"transformation_type": "translation", "vector": [0, 0, 1]}
        add(moves, "stage", 200, "mm", depends_on=".", **along)
        add(moves, "arm", 0.04, "m", depends_on="stage", offset=[0, 0, 1.0], offset_units="cm", **along)
        detector["depends_on"] = "transformations/arm"
    assert_same(facts_of(path).geometry)


def test_module_directions_on_a_turned_arm(tmp_path: Path) -> None:
    """A detector 0.25 m down a two-theta arm that is turned by 30° about the vertical."""
    path, angle = tmp_path / "a.h5", np.radians(30)
    write_detector(path, "lengths", "NXbeam wavelength")
    with h5py.File(path, "r+") as file:
        detector = file["entry/instrument/detector"]
        moves = group_in(detector, "transformations", "NXtransformations")
        add(moves, "arm", 30.0, "deg", transformation_type="rotation", vector=[0, 1, 0], depends_on=".")
        add(moves, "out", 250.0, "mm", transformation_type="translation", vector=[0, 0, 1], depends_on="arm")
        module = group_in(detector, "module", "NXdetector_module")
        chain = {"transformation_type": "translation", "depends_on": f"{moves.name}/out"}
        add(module, "module_offset", 1.0, "mm", vector=[1, 0, 0], **chain)
        offset = {"transformation_type": "translation", "depends_on": f"{module.name}/module_offset"}
        add(module, "fast_pixel_direction", 75e-6, "m", vector=[-1, 0, 0], **offset)
        add(module, "slow_pixel_direction", 75e-6, "m", vector=[0, -1, 0], **offset)
    turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    geometry = facts_of(path).geometry
    assert geometry is not None
    first_centre = geometry.positions(SHAPE)[:, 0, 0]
    np.testing.assert_allclose(first_centre, turn @ [0.001, 0, 0.25], atol=1e-12)
    np.testing.assert_allclose(geometry.fast_m, turn @ [-75e-6, 0, 0], atol=1e-15)
    np.testing.assert_allclose(geometry.slow_m, [0, -75e-6, 0], atol=1e-15)


def test_two_theta_and_solid_angle_of_a_known_pixel() -> None:
    geometry = from_beam_centre(
        distance_m=1.0, pixel_m=(2.0, 2.0), centre_px=(0.5, 0.0), wavelength_m=1e-10, source="test"
    )  # the first pixel's centre lies 1 m to the side at 1 m
    shape = (1, 1)
    assert geometry.two_theta(shape)[0, 0] == pytest.approx(np.pi / 4)
    assert geometry.azimuth(shape)[0, 0] == 0
    assert geometry.relative_solid_angle(shape)[0, 0] == pytest.approx(2**-1.5)
    assert geometry.polarisation(shape, 1.0)[0, 0] == pytest.approx(0.5)  # in the plane: cos² 2θ
    assert geometry.polarisation(shape, -1.0)[0, 0] == pytest.approx(1.0)  # across it: all
    q = 4 * np.pi / 1e-10 * np.sin(np.pi / 8)
    assert geometry.radial(shape, "q_nm^-1")[0, 0] == pytest.approx(q * 1e-9)
    assert geometry.radial(shape, "q_A^-1")[0, 0] == pytest.approx(q * 1e-10)
    assert geometry.radial(shape, "2th_deg")[0, 0] == pytest.approx(45)


def test_old_poni_files_and_repeated_blocks_are_read() -> None:
    text = "# 2012\nPixelSize1: 1e-4\nPixelSize2: 2e-4\nDistance: 0.1\nPoni1: 0.01\nPoni2: 0.02\nRot1: 0.1\n"
    poni = parse_poni(text + "# refined later\nDistance: 0.2\n", "a.poni")
    assert (poni.distance, poni.pixel1, poni.pixel2, poni.wavelength, poni.orientation) == (0.2, 1e-4, 2e-4, None, 0)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("Poni1: 0\nPoni2: 0\n", "no distance"),
        ("Distance: far\nPoni1: 0\nPoni2: 0\n", "'far' is no number"),
        ("Distance: 1\nPoni1: 0\nPoni2: 0\nDetector_config: {\n", "no JSON"),
    ],
)
def test_broken_poni_file_is_named(text: str, problem: str) -> None:
    with pytest.raises(InvalidParameters, match=problem):
        parse_poni(text, "a.poni")


def test_poni_file_without_pixel_size_or_with_unknown_orientation_is_refused() -> None:
    poni = parse_poni("Distance: 1\nPoni1: 0\nPoni2: 0\n", "a.poni")
    with pytest.raises(InvalidParameters, match="pixel_size_m"):
        raise_with_remedy(poni, SHAPE)
    odd = parse_poni(
        'Distance: 1\nPoni1: 0\nPoni2: 0\nDetector_config: {"pixel1": 1, "pixel2": 1, "orientation": 7}', "a"
    )
    with pytest.raises(InvalidParameters, match="orientation 7"):
        odd.geometry(SHAPE, "a")


def raise_with_remedy(poni: Any, shape: tuple[int, int]) -> None:
    try:
        poni.geometry(shape, "a.poni")
    except InvalidParameters as error:
        raise InvalidParameters(error.one_line) from error


def test_q_without_wavelength_is_refused() -> None:
    geometry = Geometry(WANTED.origin_m, WANTED.fast_m, WANTED.slow_m, None, "a.poni")
    with pytest.raises(UnusableInput, match=r"a\.poni: no wavelength"):
        geometry.radial(SHAPE, "q_nm^-1")
    assert geometry.radial(SHAPE, "2th_rad").shape == SHAPE


def test_corners_lie_around_the_centres_and_r_is_the_distance_from_the_beam() -> None:
    geometry = from_beam_centre(
        distance_m=0.2, pixel_m=(2e-3, 1e-3), centre_px=(1.5, 0.5), wavelength_m=1e-10, source="test"
    )
    corners = geometry.corners((3, 2))
    assert corners.shape == (3, 4, 3)
    mean = (corners[:, :-1, :-1] + corners[:, 1:, :-1] + corners[:, 1:, 1:] + corners[:, :-1, 1:]) / 4
    np.testing.assert_allclose(mean, geometry.positions((3, 2)), atol=1e-15)
    np.testing.assert_allclose(geometry.radial((3, 2), "r_mm"), [[2, np.sqrt(5)], [0, 1], [2, np.sqrt(5)]], atol=1e-12)
    assert geometry.corner_radial((3, 2), "r_mm")[0, 0] == pytest.approx(np.hypot(3, 0.5))
    assert geometry.corner_azimuth((3, 2))[0, 0] == pytest.approx(np.arctan2(-3, -0.5))
    q = 4 * np.pi / 0.1 * np.sin(np.arctan(np.hypot(3, 0.5) / 200) / 2)
    assert geometry.corner_radial((3, 2), "q_nm^-1")[0, 0] == pytest.approx(q)


def test_sensor_absorbs_more_of_photons_that_come_obliquely() -> None:
    geometry = from_beam_centre(
        distance_m=1.0, pixel_m=(2.0, 2.0), centre_px=(0.5, 0.0), wavelength_m=None, source="test"
    )  # at 45°
    thin, thick = (geometry.sensor_absorption((1, 1), 1e-3, attenuation)[0, 0] for attenuation in (1e-6, 1e6))
    assert thin == pytest.approx(np.sqrt(2))
    assert thick == 1
    expected = (1 - np.exp(-np.sqrt(2))) / (1 - np.exp(-1))
    assert geometry.sensor_absorption((1, 1), 1e-3, 1e3)[0, 0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"wavelength_m": 0.0}, "a wavelength of 0 m"),
        ({"wavelength_m": -1e-10}, "a wavelength of -1e-10 m"),
        ({"wavelength_m": np.inf}, "a wavelength of inf m"),
        ({"origin_m": np.array([0.0, np.nan, 0.2])}, "first pixel's corner is at"),
        ({"fast_m": np.zeros(3)}, "its pixels have no area"),
        ({"slow_m": np.array([1e-4, 0.0, 0.0])}, "its pixels have no area"),
        ({"origin_m": np.array([-0.01, -0.01, 0.0])}, "the plane of the detector goes through the sample"),
    ],
)
def test_geometry_that_cannot_be_is_refused_with_a_remedy(change: dict[str, Any], problem: str) -> None:
    good = Geometry(
        origin_m=np.array([-0.01, -0.01, 0.2]),
        fast_m=np.array([1e-4, 0.0, 0.0]),
        slow_m=np.array([0.0, 1e-4, 0.0]),
        wavelength_m=1e-10,
        source="scan.nxs",
    )
    good.check()
    with pytest.raises(UnusableInput, match=f"scan.nxs: .*{problem}") as refused:
        replace(good, **change).check()
    assert refused.value.remedy
