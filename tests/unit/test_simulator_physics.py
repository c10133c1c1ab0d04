"""Rings stand where the calibrants say, are as strong as the structure says, and the noise is Poisson's."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from pyFAI.calibrant import get_calibrant
from pyFAI.integrator.azimuthal import AzimuthalIntegrator

from orchestrator.errors import InvalidInput
from orchestrator.simulator import Calibrant, GeometryOverrides, PixelType, SyntheticFramesSettings
from orchestrator.simulator.frames import SyntheticFrames
from orchestrator.simulator.geometry import DetectorGeometry
from orchestrator.simulator.physics import atomic_form_factor, powder_pattern, reflections

PYFAI_NAME = {Calibrant.AGBH: "AgBh", Calibrant.LAB6: "LaB6_SRM660c"}
HISTOGRAM = ("no", "histogram", "cython")


def integrator_for(geometry: DetectorGeometry) -> AzimuthalIntegrator:
    return AzimuthalIntegrator(
        dist=geometry.distance_m,
        poni1=geometry.beam_center_y_px * geometry.y_pixel_m,
        poni2=geometry.beam_center_x_px * geometry.x_pixel_m,
        pixel1=geometry.y_pixel_m,
        pixel2=geometry.x_pixel_m,
        wavelength=geometry.wavelength_angstrom * 1e-10,
    )


@pytest.mark.parametrize("calibrant", list(Calibrant))
def test_lattice_spacings_are_those_of_pyfais_calibrant(calibrant: Calibrant) -> None:
    ours = sorted({round(r.d_angstrom, 9) for r in reflections(calibrant, d_min_angstrom=1.1)}, reverse=True)
    theirs = [d for d in get_calibrant(PYFAI_NAME[calibrant]).dspacing if d >= 1.1]
    assert ours[: len(theirs)] == pytest.approx(theirs, rel=1e-7)


def test_lab6_multiplicities_count_every_lattice_point_once() -> None:
    a = 4.156826
    inside = [hkl for hkl in product(range(-6, 7), repeat=3) if any(hkl) and np.linalg.norm(hkl) <= a / 0.8]
    assert sum(r.multiplicity for r in reflections(Calibrant.LAB6, d_min_angstrom=0.8)) == len(inside)


def test_lab6_structure_factors_are_the_sum_over_all_seven_atoms() -> None:
    half, x = 0.5, 0.20
    atoms = [("La", (0, 0, 0))]
    for sign in (x, -x):
        atoms += [("B", (sign, half, half)), ("B", (half, sign, half)), ("B", (half, half, sign))]
    for ring in reflections(Calibrant.LAB6, d_min_angstrom=1.0):
        amplitude = sum(
            atomic_form_factor(element, 1 / (2 * ring.d_angstrom)) * np.exp(2j * np.pi * np.dot(ring.hkl, position))
            for element, position in atoms
        )
        assert ring.structure_factor_squared == pytest.approx(abs(amplitude) ** 2, rel=1e-9)


@pytest.mark.parametrize(("element", "electrons"), [("La", 57), ("B", 5)])
def test_form_factor_forward_is_the_number_of_electrons(element: str, electrons: int) -> None:
    assert atomic_form_factor(element, 0.0) == pytest.approx(electrons, rel=1e-3)


@pytest.mark.parametrize("calibrant", list(Calibrant))
def test_pyfai_finds_the_rings_where_the_calibrant_says(calibrant: Calibrant) -> None:
    source = SyntheticFrames(SyntheticFramesSettings(calibrant=calibrant, module_gaps=False, background_counts=0))
    result = integrator_for(source.geometry).integrate1d(source.expected(0), 2000, unit="2th_rad", method=HISTOGRAM)
    radial_pixel = source.geometry.x_pixel_m / source.geometry.distance_m
    nearest_edge = 0.9 * 240 * radial_pixel
    checked = 0
    for d_angstrom in {r.d_angstrom for r in reflections(calibrant, d_min_angstrom=1.0)}:
        centre = 2 * np.arcsin(source.geometry.wavelength_angstrom / (2 * d_angstrom))
        window = abs(result.radial - centre) < 5 * radial_pixel
        if centre < nearest_edge:
            found = np.average(result.radial[window], weights=result.intensity[window])
            assert abs(found - centre) < 0.1 * radial_pixel
            checked += 1
    assert checked >= 4


def test_polarisation_and_solid_angle_are_what_pyfai_corrects_for() -> None:
    source = SyntheticFrames(SyntheticFramesSettings(calibrant=Calibrant.LAB6))
    pattern = powder_pattern(
        Calibrant.LAB6, source.geometry, source.shape, peak_counts=1, background_counts=1, ring_fwhm_px=4
    )
    integrator = integrator_for(source.geometry)
    corrected = pattern.background / integrator.solidAngleArray(source.shape)
    corrected /= integrator.polarization(source.shape, factor=0.99)
    two_theta, _ = source.geometry.angles(source.shape)
    first = reflections(Calibrant.LAB6, d_min_angstrom=4)[0].two_theta(source.geometry.wavelength_angstrom)
    np.testing.assert_allclose(corrected, 1 + 10 * np.exp(-3 * two_theta / first), rtol=1e-6)


def test_noise_is_poisson() -> None:
    source = SyntheticFrames(SyntheticFramesSettings(shape=(120, 130), module_gaps=False, pool=1))
    expected = source.expected(0)
    seeds = [
        SyntheticFrames(SyntheticFramesSettings(shape=(120, 130), module_gaps=False, pool=1, seed=s)) for s in range(40)
    ]
    frames = np.array([each.frame(0) for each in seeds], dtype=float)
    chi_squared = ((frames - expected) ** 2 / expected).mean()
    assert frames.mean() == pytest.approx(expected.mean(), rel=0.01)
    assert chi_squared == pytest.approx(1, abs=0.02)


def test_same_seed_gives_same_frames_and_another_seed_others() -> None:
    first, again = (SyntheticFrames(SyntheticFramesSettings(shape=(64, 60), seed=3)) for _ in range(2))
    other = SyntheticFrames(SyntheticFramesSettings(shape=(64, 60), seed=4))
    np.testing.assert_array_equal(first.frame(5), again.frame(5))
    assert (first.frame(5) != first.frame(6)).any()
    assert (first.frame(5) != other.frame(5)).any()


def test_rings_breathe_so_that_a_live_plot_moves() -> None:
    source = SyntheticFrames(SyntheticFramesSettings(shape=(128, 128), pool=40, background_counts=0))
    strong, weak = source.expected(10).sum(), source.expected(30).sum()
    assert strong / weak == pytest.approx(3)


@pytest.mark.parametrize(
    ("pixel_type", "sentinel"), [(PixelType.UINT16, 2**16 - 1), (PixelType.UINT32, 2**32 - 1), (PixelType.INT32, -1)]
)
def test_gaps_hold_the_sentinel_and_the_mask_says_no_sensor(pixel_type: PixelType, sentinel: int) -> None:
    source = SyntheticFrames(SyntheticFramesSettings(pixel_type=pixel_type, pool=1))
    frame, mask = source.frame(0), source.pixel_mask
    assert mask is not None
    assert frame.dtype == pixel_type.value
    assert (frame[mask == 1] == sentinel).all()
    assert (frame[mask == 0] != sentinel).all()
    assert np.flatnonzero(mask.all(axis=1)).tolist() == [256, 257, 258]
    assert np.count_nonzero(mask) == 2 * 3 * 515 - 9


def test_geometry_without_rings_on_the_detector_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no ring"):
        SyntheticFrames(SyntheticFramesSettings(shape=(10, 10), geometry=GeometryOverrides(distance_m=0.15)))
