"""Mean and variance are those of exact fractions, and the pixels that are flagged are those that were broken."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mpi_kernels.pixel_statistics import PixelFlag, local_median, pixel_statistics, variance
from mpi_kernels.projection import Accumulation, Projector
from mpi_kernels.summing import Limits
from tests.unit.native_chunks import KINDS, TYPES, some_frames


def sums_of(frames: NDArray[Any], valid: NDArray[np.bool_] | None = None) -> Accumulation:
    valid = np.ones(frames.shape[1:], bool) if valid is None else valid
    projector = Projector(valid, Limits.of(frames.dtype, saturation=None), frames.dtype)
    projector.add_frames(list(frames))
    return projector.accumulation()


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_mean_and_variance_are_those_of_exact_fractions(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(TYPES))
    frames = some_frames(dtype, (data.draw(st.integers(1, 9)), 4, 5), data.draw(st.sampled_from(KINDS)), 1)
    limits = Limits.of(frames.dtype, saturation=None)
    result = pixel_statistics(sums_of(frames))
    for place in np.ndindex(4, 5):
        values = [Fraction(int(v)) for v in frames[(slice(None), *place)] if limits.low <= int(v) <= limits.high]  # type: ignore[operator]
        if not values:
            assert np.isnan(result.mean[place])
        if len(values) < 2:
            assert np.isnan(result.variance[place])
            continue
        mean = sum(values) / len(values)
        assert result.mean[place] == float(mean)
        exact = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
        assert result.variance[place] == pytest.approx(float(exact), rel=1e-15)


def test_large_values_that_hardly_vary_have_their_small_variance() -> None:
    frames = np.full((1000, 1, 2), 2**32 - 10, "u4")
    frames[0] += 1
    exact = Fraction(999, 1000 * 999)
    np.testing.assert_allclose(variance(sums_of(frames)), float(exact), rtol=1e-15)


def test_local_median_leaves_out_pixels_without_a_value() -> None:
    generator = np.random.default_rng(0)
    image = generator.random((40, 30))
    image[generator.random(image.shape) < 0.4] = np.nan
    image[:9, :9] = np.nan
    found = local_median(image, 5)
    for y, x in np.ndindex(*image.shape):
        around = image[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3]
        expected = np.nanmedian(around) if np.isfinite(around).any() else np.nan
        np.testing.assert_equal(found[y, x], expected)


def test_local_median_is_the_same_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(0).random((23, 30))
    whole = local_median(image, 3)
    monkeypatch.setattr("mpi_kernels.pixel_statistics._SORTED", 1000)
    np.testing.assert_array_equal(local_median(image, 3), whole)


def test_dead_and_hot_pixels_are_flagged_and_no_others() -> None:
    generator = np.random.default_rng(5)
    y, x = np.mgrid[:200, :150]
    radius = np.hypot(y - 90, x - 70)
    expected = 0.5 + 20 * np.exp(-(((radius - 50) / 4) ** 2))  # a powder ring
    frames = generator.poisson(expected, (200, 200, 150)).astype("u2")
    valid = generator.random((200, 150)) > 0.05
    dead, hot = generator.random((2, 200, 150)) < 0.002
    hot &= ~dead
    frames[:, dead] = 0
    frames[:, hot] = generator.poisson(500, (200, int(hot.sum())))
    flags = pixel_statistics(sums_of(frames, valid)).pixel_mask
    assert flags.dtype == np.uint32
    np.testing.assert_array_equal(flags & PixelFlag.DEAD > 0, dead & valid)
    np.testing.assert_array_equal(flags & PixelFlag.NOISY > 0, hot & valid)
    assert not (flags & ~np.uint32(18)).any()


def test_nothing_is_dead_where_nothing_was_to_be_expected() -> None:
    sparse = np.random.default_rng(1).poisson(0.01, (50, 40, 40)).astype("u2")
    assert not pixel_statistics(sums_of(sparse)).pixel_mask.any()
    assert not pixel_statistics(sums_of(np.zeros((50, 40, 40), "u2"))).pixel_mask.any()


def test_a_hot_pixel_in_the_dark_is_flagged() -> None:
    frames = np.zeros((50, 20, 20), "u2")
    frames[:, 3, 4] = 1
    assert np.argwhere(pixel_statistics(sums_of(frames)).pixel_mask).tolist() == [[3, 4]]


def test_pixel_that_never_counts_has_no_mean_and_no_flag() -> None:
    frames = np.full((5, 8, 8), 50, "u2")
    frames[:, 2, 2] = 65535
    result = pixel_statistics(sums_of(frames))
    assert np.isnan(result.mean[2, 2])
    assert not result.pixel_mask.any()
