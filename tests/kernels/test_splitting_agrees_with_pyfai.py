"""Split pixels give what pyFAI's split pixels give: intensities and standard deviations to 1e-5, on the same axis.

pyFAI keeps corners and weights as float32, and weights here are whole 1/65535: single weights differ by some 1e-5.
Standard deviations feel that in bins of less than 50 pixels, and by up to 1e-4 in bins of parts of a pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from pyFAI.detectors import Detector
from pyFAI.integrator.azimuthal import AzimuthalIntegrator

from mpi_kernels import splitting
from mpi_kernels.azimuthal import UPPER_EDGE
from mpi_kernels.geometry import Geometry, Poni, Unit
from mpi_kernels.splitting import WEIGHT_ONE, Pairs, azimuthal_variance, value_sums, weighted_sums

SHAPE, PIXEL_M = (180, 230), 172e-6
UNITS: list[Unit] = ["q_nm^-1", "q_A^-1", "2th_deg", "2th_rad", "r_mm"]
SETUPS = {
    "straight": Poni(0.2, 0.0153, 0.0202, 0, 0, 0, 1e-10, PIXEL_M, PIXEL_M, 3),
    "tilted": Poni(0.08, 0.012, 0.025, 0.31, -0.12, 0.7, 1e-10, PIXEL_M, PIXEL_M, 3),
    "beside the beam": Poni(0.2, -0.01, -0.02, 0, 0, 0, 1e-10, PIXEL_M, PIXEL_M, 3),
    "mirrored": Poni(0.2, 0.0153, 0.0202, 0.2, 0, 0, 1e-10, PIXEL_M, PIXEL_M, 2),
}


def pyfai_for(setup: str) -> AzimuthalIntegrator:
    poni = SETUPS[setup]
    return AzimuthalIntegrator(
        dist=poni.distance,
        poni1=poni.poni1,
        poni2=poni.poni2,
        rot1=poni.rot1,
        rot2=poni.rot2,
        rot3=poni.rot3,
        wavelength=poni.wavelength,
        detector=Detector(PIXEL_M, PIXEL_M, max_shape=SHAPE, orientation=poni.orientation),
    )


@dataclass(frozen=True)
class Case:
    """A detector, a frame with rings, and which pixels count: 95 % of them, without the one that the beam hits."""

    geometry: Geometry
    frame: np.ndarray
    valid: np.ndarray

    @classmethod
    def of(cls, setup: str) -> Case:
        random = np.random.default_rng(4)
        geometry = SETUPS[setup].geometry(SHAPE, "test")
        rings = 50 + 40 * np.sin(40 * geometry.two_theta(SHAPE) / geometry.two_theta(SHAPE).max())
        x, y, _ = np.abs(geometry.positions(SHAPE))
        valid = (random.random(SHAPE) > 0.05) & (np.hypot(x, y) > PIXEL_M)
        return cls(geometry, random.poisson(rings).astype(np.int32), valid)

    def pairs(self, splitting_of: str, unit: Unit, bins: int) -> tuple[Pairs, np.ndarray]:
        """Return pairs and edges on the axis that pyFAI takes by itself."""
        centres, corners = self.geometry.radial(SHAPE, unit), self.geometry.corner_radial(SHAPE, unit)
        if splitting_of == "bbox":
            low, high = splitting.box_limits(centres, corners)
        else:
            low, high = splitting.outline_limits(corners)
        edges = np.linspace(max(0, low[self.valid].min()), high[self.valid].max() * UPPER_EDGE, bins + 1)
        if splitting_of == "bbox":
            return splitting.bounding_box(centres, corners, self.valid, edges), edges
        return splitting.full(corners, self.geometry.corner_azimuth(SHAPE), self.valid, edges), edges


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("unit", UNITS)
def test_radial_coordinates_of_centres_and_corners_agree(setup: str, unit: Unit) -> None:
    geometry, reference = SETUPS[setup].geometry(SHAPE, "test"), pyfai_for(setup)
    np.testing.assert_allclose(geometry.radial(SHAPE, unit), reference.center_array(SHAPE, unit=unit), rtol=1e-9)
    theirs = reference.array_from_unit(SHAPE, "corner", unit, scale=True)  # float32
    corners = geometry.corner_radial(SHAPE, unit)
    ours = np.stack([corners[:-1, :-1], corners[1:, :-1], corners[1:, 1:], corners[:-1, 1:]], axis=-1)
    np.testing.assert_allclose(np.sort(ours), np.sort(theirs[..., 0]), rtol=3e-7, atol=3e-7 * ours.max())


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("transmission", [0.05, 0.5, 0.95])
def test_absorption_in_the_sensor_agrees(setup: str, transmission: float) -> None:
    thickness = 450e-6
    ours = SETUPS[setup].geometry(SHAPE, "test").sensor_absorption(SHAPE, thickness, -np.log(transmission) / thickness)
    np.testing.assert_allclose(ours, pyfai_for(setup).calc_transmission(transmission, SHAPE), rtol=1e-6)


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("method", ["bbox", "full"])
@pytest.mark.parametrize("unit", ["q_nm^-1", "2th_deg", "r_mm"])
@pytest.mark.parametrize("bins", [60, 400])
def test_split_pixels_agree(setup: str, method: str, unit: Unit, bins: int) -> None:
    case = Case.of(setup)
    pairs, edges = case.pairs(method, unit, bins)
    norm = case.geometry.relative_solid_angle(SHAPE)
    signal, variance = (weighted_sums(counts, pairs, bins) for counts in (case.frame, np.maximum(case.frame, 1)))
    weight = value_sums(norm, pairs, bins)
    result = pyfai_for(setup).integrate1d_ng(
        case.frame, bins, unit=unit, method=(method, "csr", "cython"), mask=~case.valid, error_model="poisson"
    )
    filled = result.count > 1e-3  # of a pixel
    assert filled.sum() > 0.9 * bins
    np.testing.assert_allclose((edges[1:] + edges[:-1]) / 2, result.radial, rtol=2e-7)
    np.testing.assert_allclose(value_sums(np.ones(SHAPE), pairs, bins), result.count, rtol=2e-5, atol=1e-4)
    np.testing.assert_allclose((signal[0] / WEIGHT_ONE / weight)[filled], result.intensity[filled], rtol=1e-5)
    sigma = np.sqrt(variance[1] / WEIGHT_ONE) / weight
    several = result.count > 50
    np.testing.assert_allclose(sigma[several], result.sigma[several], rtol=1e-5)
    np.testing.assert_allclose(sigma[filled], result.sigma[filled], rtol=2e-4)


@pytest.mark.parametrize("setup", SETUPS)
def test_scatter_within_bins_agrees_without_splitting(setup: str) -> None:
    bins = 60
    case, reference = Case.of(setup), pyfai_for(setup)
    result = reference.integrate1d_ng(
        case.frame, bins, unit="2th_rad", method=("no", "csr", "python"), mask=~case.valid, error_model="azimuthal"
    )
    radial = case.geometry.two_theta(SHAPE)
    edges = np.linspace(radial[case.valid].min(), radial[case.valid].max() * UPPER_EDGE, bins + 1)
    numbers = np.where(case.valid, np.searchsorted(edges, radial, "right") - 1, bins).ravel()
    pairs = splitting.whole(numbers, bins)
    norm = case.geometry.relative_solid_angle(SHAPE)
    sigma = np.sqrt(azimuthal_variance(case.frame.astype(float), norm, pairs, bins)) / value_sums(norm, pairs, bins)
    several = result.count > 1
    np.testing.assert_allclose(sigma[several], result.sigma[several], rtol=1e-5)


@pytest.mark.parametrize("method", ["bbox", "full"])
def test_scatter_within_bins_is_that_about_the_mean_over_pyfais_own_matrix(method: str) -> None:
    """pyFAI itself takes a running mean, which depends on the order; where a bin has many pixels that matters less."""
    bins, unit = 60, "q_nm^-1"
    case, reference = Case.of("tilted"), pyfai_for("tilted")
    result = reference.integrate1d_ng(
        case.frame, bins, unit=unit, method=(method, "csr", "cython"), mask=~case.valid, error_model="azimuthal"
    )
    matrix = next(engine.engine for engine in reference.engines.values() if engine.engine is not None)
    norm = case.geometry.relative_solid_angle(SHAPE)
    expected = np.zeros(bins)
    for number in range(bins):
        row = slice(matrix.indptr[number], matrix.indptr[number + 1])
        c, x, n = (
            a.astype(float) for a in (matrix.data[row], *(i.flat[matrix.indices[row]] for i in (case.frame, norm)))
        )
        expected[number] = np.sqrt((c**2 * (x - n * (c @ x) / (c @ n)) ** 2).sum()) / (c @ n)
    pairs, _ = case.pairs(method, unit, bins)
    sigma = np.sqrt(azimuthal_variance(case.frame.astype(float), norm, pairs, bins)) / value_sums(norm, pairs, bins)
    np.testing.assert_allclose(sigma, expected, rtol=1e-5)
    many = result.count > 300
    np.testing.assert_allclose(sigma[many], result.sigma[many], rtol=0.02)
