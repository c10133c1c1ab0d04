"""Shares of pixels: they add up, follow the pixel, and their sums are whole numbers without rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpi_kernels import splitting
from mpi_kernels.geometry import Geometry, from_beam_centre
from mpi_kernels.splitting import (
    WEIGHT_ONE,
    Pairs,
    azimuthal_variance,
    bounding_box,
    box_limits,
    full,
    outline_limits,
    value_sums,
    weighted_sums,
    whole,
)

SHAPE = (13, 17)
METHODS = ["bbox", "full"]
centres = st.tuples(st.floats(-30, 40), st.floats(-30, 40))
numbers_of_bins = st.integers(1, 60)


def detector(centre_px: tuple[float, float], pixel_m: tuple[float, float] = (1e-3, 1e-3)) -> Geometry:
    return from_beam_centre(distance_m=0.1, pixel_m=pixel_m, centre_px=centre_px, wavelength_m=None, source="test")


def pairs_of(
    method: str, geometry: Geometry, edges: np.ndarray, valid: np.ndarray | None = None, shape: tuple[int, int] = SHAPE
) -> Pairs:
    valid = np.ones(shape, bool) if valid is None else valid
    corners = geometry.corner_radial(shape, "r_mm")
    if method == "bbox":
        return bounding_box(geometry.radial(shape, "r_mm"), corners, valid, edges)
    return full(corners, geometry.corner_azimuth(shape), valid, edges)


def limits_of(method: str, geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    corners = geometry.corner_radial(SHAPE, "r_mm")
    if method == "bbox":
        return box_limits(geometry.radial(SHAPE, "r_mm"), corners)
    low, high = outline_limits(corners)
    x, y, _ = geometry.positions(SHAPE)
    return np.where((np.abs(x) <= 0.5e-3) & (np.abs(y) <= 0.5e-3), 0, low), high  # the beam's pixel begins at the beam


def weight_of_pixels(pairs: Pairs) -> np.ndarray:
    pixel = np.repeat(np.arange(pairs.pixels), np.diff(pairs.starts))
    return np.bincount(pixel, pairs.weights, pairs.pixels).astype(int)


@pytest.mark.parametrize("method", METHODS)
@given(centre=centres, bins=numbers_of_bins)
def test_weights_of_pixels_inside_the_axis_add_up_to_one(method: str, centre: tuple[float, float], bins: int) -> None:
    pairs = pairs_of(method, detector(centre), np.linspace(0, 100, bins + 1))
    assert set(weight_of_pixels(pairs)) == {WEIGHT_ONE}
    assert pairs.weights.min() > 0
    assert pairs.bin_of.max() < bins


@pytest.mark.parametrize("method", METHODS)
@given(centre=centres, bins=numbers_of_bins, low=st.floats(0, 20), width=st.floats(0.1, 20))
def test_pixels_across_the_end_of_the_axis_count_by_what_lies_inside(
    method: str, centre: tuple[float, float], bins: int, low: float, width: float
) -> None:
    geometry = detector(centre)
    weights = weight_of_pixels(pairs_of(method, geometry, np.linspace(low, low + width, bins + 1)))
    begin, end = (limit.ravel() for limit in limits_of(method, geometry))
    within, outside = (begin > low) & (end < low + width), (end < low) | (begin > low + width)
    assert (weights[within] == WEIGHT_ONE).all()
    assert (weights[outside] == 0).all()
    assert (weights <= WEIGHT_ONE).all()


@pytest.mark.parametrize("method", METHODS)
@given(centre=centres, bins=numbers_of_bins, seed=st.integers(0, 99))
def test_mask_takes_away_the_pairs_of_masked_pixels_and_nothing_else(
    method: str, centre: tuple[float, float], bins: int, seed: int
) -> None:
    valid = np.random.default_rng(seed).random(SHAPE) > 0.4
    edges = np.linspace(1, 12, bins + 1)
    masked, open_pairs = (pairs_of(method, detector(centre), edges, mask) for mask in (valid, None))
    left = open_pairs.of(np.flatnonzero(valid))
    assert np.diff(masked.starts)[~valid.ravel()].sum() == 0
    for name in ("bin_of", "weights", "squares"):
        np.testing.assert_array_equal(getattr(masked, name), getattr(left, name))


@pytest.mark.parametrize("method", METHODS)
@given(centre=centres, shift=st.integers(1, 10))
def test_axis_that_begins_some_bins_later_numbers_bins_from_there(
    method: str, centre: tuple[float, float], shift: int
) -> None:
    """Rounding may move a weight by a unit at the most."""
    bins = 30
    early = pairs_of(method, detector(centre), np.arange(1, bins + 2, dtype=float))
    late = pairs_of(method, detector(centre), np.arange(1 + shift, bins + 2, dtype=float))
    ones = np.ones(SHAPE, int)
    np.testing.assert_allclose(
        weighted_sums(ones, late, bins - shift)[0], weighted_sums(ones, early, bins)[0][shift:], atol=ones.size
    )


@pytest.mark.parametrize("method", METHODS)
def test_detector_shifted_by_whole_pixels_has_the_same_shares(method: str) -> None:
    edges = np.linspace(2, 30, 90)
    here = pairs_of(method, detector((-4.3, -5.2)), edges)
    there = pairs_of(method, detector((-1.3, -3.2)), edges, shape=(SHAPE[0] + 3, SHAPE[1] + 2))
    same = np.arange((SHAPE[0] + 3) * (SHAPE[1] + 2)).reshape(SHAPE[0] + 3, -1)[3:, 2:].ravel()
    same = there.of(same)
    np.testing.assert_array_equal(same.starts, here.starts)
    np.testing.assert_array_equal(same.bin_of, here.bin_of)
    np.testing.assert_allclose(same.weights.astype(int), here.weights.astype(int), atol=1)


@pytest.mark.parametrize("method", METHODS)
def test_blocks_of_rows_make_no_difference(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    edges = np.linspace(0, 14, 40)
    at_once = pairs_of(method, detector((4.4, 7.9)), edges)
    monkeypatch.setattr(splitting, "_BLOCK", 40)
    in_blocks = pairs_of(method, detector((4.4, 7.9)), edges)
    for name in ("starts", "bin_of", "weights", "squares"):
        np.testing.assert_array_equal(getattr(at_once, name), getattr(in_blocks, name))


@pytest.mark.parametrize("method", METHODS)
def test_in_bins_much_wider_than_a_pixel_splitting_is_the_bin_of_the_centre(method: str) -> None:
    geometry, edges = detector((-2.0, -2.0), (1e-6, 1e-6)), np.linspace(0, 0.0404, 3)
    pairs = pairs_of(method, geometry, edges)
    numbers = np.searchsorted(edges, geometry.radial(SHAPE, "r_mm").ravel(), "right") - 1
    apart = np.abs(geometry.radial(SHAPE, "r_mm").ravel() - 0.0202) > 0.001
    unsplit = whole(numbers, 2)
    pixels = np.flatnonzero(apart)
    for name in ("starts", "bin_of", "weights", "squares"):
        np.testing.assert_array_equal(getattr(pairs.of(pixels), name), getattr(unsplit.of(pixels), name))


def test_box_spreads_evenly() -> None:
    geometry = detector((0.5, -9.5))  # one pixel from 9.5 mm (nearly) to 10.5 mm along x
    edges = np.linspace(9, 11, 9)
    pairs = pairs_of("bbox", geometry, edges, shape=(1, 1))
    (low,), (high,) = (
        limit[0] for limit in box_limits(geometry.radial((1, 1), "r_mm"), geometry.corner_radial((1, 1), "r_mm"))
    )
    expected = np.diff(np.clip((edges - low) / (high - low), 0, 1))
    np.testing.assert_allclose(weighted_sums(np.ones((1, 1), int), pairs, 8)[0] / WEIGHT_ONE, expected, atol=2e-5)


def test_outline_spreads_by_area() -> None:
    """A diamond on the plane of radius and angle: a triangle's area grows with the square."""
    corners, azimuth = np.array([[1.0, 2.0], [2.0, 3.0]]), np.array([[0.0, -0.1], [0.1, 0.0]])
    pairs = full(corners, azimuth, np.ones((1, 1), bool), np.linspace(1, 3, 5))
    expected = np.array([1, 3, 3, 1]) / 8
    np.testing.assert_allclose(pairs.weights / WEIGHT_ONE, expected, atol=2e-5)
    np.testing.assert_allclose(pairs.squares / WEIGHT_ONE, expected**2, atol=2e-5)


def test_outline_across_180_degrees_is_that_of_the_same_pixel_elsewhere() -> None:
    corners = np.array([[1.0, 1.9], [1.3, 2.4]])
    azimuth = np.array([[0.02, -0.1], [0.2, 0.05]])
    valid, edges = np.ones((1, 1), bool), np.linspace(0, 3, 11)
    here = full(corners, azimuth, valid, edges)
    turned = (azimuth + np.pi + np.pi) % (2 * np.pi) - np.pi
    there = full(corners, turned, valid, edges)
    assert np.ptp(turned) > 6
    np.testing.assert_allclose(here.weights.astype(int), there.weights.astype(int), atol=1)


def test_pixel_of_the_beam_spreads_from_the_beam_to_its_furthest_corner() -> None:
    geometry = detector((0.4, 0.5))
    pairs = pairs_of("full", geometry, np.linspace(0, 1, 11), shape=(1, 1))
    furthest = np.hypot(0.6, 0.5)
    expected = np.diff(np.clip(np.linspace(0, 1, 11) / furthest, 0, 1))
    np.testing.assert_allclose(weighted_sums(np.ones((1, 1), int), pairs, 10)[0] / WEIGHT_ONE, expected, atol=2e-5)


@pytest.mark.parametrize("corner", [(4.0, 7.0), (4.5, 7.0), (4.5, 7.5)])
@pytest.mark.parametrize("method", METHODS)
def test_beam_on_a_corner_an_edge_or_a_centre_loses_no_pixel(method: str, corner: tuple[float, float]) -> None:
    assert set(weight_of_pixels(pairs_of(method, detector(corner), np.linspace(0, 20, 400)))) == {WEIGHT_ONE}


def test_pixel_of_no_width_counts_whole() -> None:
    """Radial coordinates may all be the same, as far as float64 goes."""
    radial, corners, azimuth = np.full((2, 2), 3.5), np.full((3, 3), 3.5), np.zeros((3, 3))
    valid, edges = np.ones((2, 2), bool), np.linspace(0, 10, 11)
    for pairs in (bounding_box(radial, corners, valid, edges), full(corners, azimuth, valid, edges)):
        assert pairs.bin_of.tolist() == [3] * 4
        assert pairs.weights.tolist() == pairs.squares.tolist() == [WEIGHT_ONE] * 4


def test_no_pixel_on_the_axis_or_none_valid_gives_no_pairs() -> None:
    for valid, edges in ((np.zeros(SHAPE, bool), np.linspace(0, 5, 6)), (None, np.linspace(1000, 2000, 6))):
        for method in METHODS:
            pairs = pairs_of(method, detector((5, 5)), edges, valid)
            assert len(pairs.bin_of) == 0
            assert pairs.pixels == SHAPE[0] * SHAPE[1]
            assert weighted_sums(np.ones(SHAPE, int), pairs, 5)[0].tolist() == [0] * 5


def one_by_one(counts: np.ndarray, pairs: Pairs, factors: np.ndarray, bins: int) -> list[int]:
    """Sum with Python's whole numbers, which have no limit."""
    sums = [0] * bins
    for pixel, count in enumerate(counts.ravel().tolist()):
        for pair in range(pairs.starts[pixel], pairs.starts[pixel + 1]):
            sums[pairs.bin_of[pair]] += int(count) * int(factors[pair])
    return sums


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "u8", "i4", ">u4"])
@settings(max_examples=20)
@given(seed=st.integers(0, 999), top=st.sampled_from([2, 255, 65535, 2**31 - 1, 2**44]))
def test_sums_are_exact(method: str, dtype: str, seed: int, top: int) -> None:
    bins = 9
    pairs = pairs_of(method, detector((6.3, 2.2)), np.linspace(0, 12, bins + 1))
    kind = np.dtype(dtype)
    top = min(top, int(np.iinfo(kind).max), 2**63 // WEIGHT_ONE // (SHAPE[0] * SHAPE[1]))
    counts = np.random.default_rng(seed).integers(top // 2, top, SHAPE, endpoint=True).astype(kind)
    signal, variance = weighted_sums(counts, pairs, bins)
    assert signal.dtype == variance.dtype == np.int64
    assert signal.tolist() == one_by_one(counts, pairs, pairs.weights, bins)
    assert variance.tolist() == one_by_one(counts, pairs, pairs.squares, bins)


def test_sums_beyond_64_bits_are_refused() -> None:
    pairs = whole(np.zeros(4, np.intp), 1)
    assert weighted_sums(np.full((2, 2), 2**45, "u8"), pairs, 1)[0].tolist() == [4 * 2**45 * WEIGHT_ONE]
    with pytest.raises(OverflowError, match="more counts in one bin"):
        weighted_sums(np.full((2, 2), 2**46, "u8"), pairs, 1)


def test_unsplit_pairs_sum_each_pixel_once() -> None:
    numbers, bins = np.array([2, 0, 3, 0, 1, 3]), 3
    pairs = whole(numbers, bins)
    counts = np.array([[1, 2, 4], [8, 16, 32]])
    signal, variance = weighted_sums(counts, pairs, bins)
    assert (signal // WEIGHT_ONE).tolist() == (variance // WEIGHT_ONE).tolist() == [10, 16, 1]
    assert value_sums(counts / 2, pairs, bins).tolist() == [5, 8, 0.5]


@given(scale=st.floats(0.1, 1e6), seed=st.integers(0, 99))
def test_scatter_within_a_bin_scales_with_the_counts_and_vanishes_where_they_follow_the_norm(
    scale: float, seed: int
) -> None:
    random, bins = np.random.default_rng(seed), 6
    pairs = pairs_of("full", detector((6.3, 2.2)), np.linspace(0, 18, bins + 1))
    norm, signal = random.random(SHAPE) + 0.5, random.random(SHAPE)
    once = azimuthal_variance(signal, norm, pairs, bins)
    np.testing.assert_allclose(azimuthal_variance(scale * signal, norm, pairs, bins), scale**2 * once, rtol=1e-9)
    np.testing.assert_allclose(azimuthal_variance(scale * norm, norm, pairs, bins), 0, atol=1e-20 * scale**2)


def test_scatter_within_a_bin_is_the_standard_error_of_its_mean() -> None:
    random = np.random.default_rng(2)
    values, numbers = random.normal(100, 7, (40, 40)), np.repeat([0, 1], 800)
    pairs = whole(numbers, 3)
    variance = azimuthal_variance(values, np.ones_like(values), pairs, 3)
    for number in (0, 1):
        of_bin = values.ravel()[numbers == number]
        assert np.sqrt(variance[number]) / of_bin.size == pytest.approx(of_bin.std() / np.sqrt(of_bin.size))
    assert variance[2] == 0


def test_left_out_pixels_neither_scatter_nor_count() -> None:
    random, bins = np.random.default_rng(7), 6
    good = random.random(SHAPE) > 0.2
    signal, norm = random.poisson(9, SHAPE) * good, (random.random(SHAPE) + 0.5) * good
    edges = np.linspace(0, 18, bins + 1)
    arguments: list[Any] = [signal.astype(float), norm]
    np.testing.assert_allclose(
        azimuthal_variance(*arguments, pairs_of("bbox", detector((6.3, 2.2)), edges), bins),
        azimuthal_variance(*arguments, pairs_of("bbox", detector((6.3, 2.2)), edges, good), bins),
        rtol=1e-12,
    )
