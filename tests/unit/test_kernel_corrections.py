"""Dead time is undone to the last bits, its errors are propagated; impossible numbers are named."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpi_kernels.corrections import DeadTimeModel, dead_time, largest_counts, scale

MODELS: list[DeadTimeModel] = ["nonparalyzable", "paralyzable"]
DEAD_TIME_S, TIME_S = 1e-7, 0.01


def missed(true: np.ndarray, model: DeadTimeModel) -> np.ndarray:
    """Return what a counter with dead time counts."""
    rate = true * DEAD_TIME_S / TIME_S
    return true / (1 + rate) if model == "nonparalyzable" else true * np.exp(-rate)


@pytest.mark.parametrize("model", MODELS)
@given(true=st.floats(0, 0.999 * TIME_S / DEAD_TIME_S))
def test_correction_gives_back_the_true_counts(model: DeadTimeModel, true: float) -> None:
    counts = missed(np.array([true]), model)
    corrected = dead_time(counts, counts, model=model, dead_time_s=DEAD_TIME_S, time_s=TIME_S)
    assert corrected.counts[0] == pytest.approx(true, rel=1e-9)


@pytest.mark.parametrize("model", MODELS)
def test_variance_grows_with_the_square_of_the_slope(model: DeadTimeModel) -> None:
    counts, step = np.array([10.0, 1000.0, 20000.0, 36000.0]), 0.01
    options = {"model": model, "dead_time_s": DEAD_TIME_S, "time_s": TIME_S}
    above, below = (dead_time(counts + sign * step, counts, **options).counts for sign in (1, -1))
    slope = (above - below) / (2 * step)
    corrected = dead_time(counts, np.array([1.0, 2.0, 3.0, 4.0]), **options)
    np.testing.assert_allclose(corrected.variance, slope**2 * [1, 2, 3, 4], rtol=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_counts_that_no_rate_gives_are_no_measurement(model: DeadTimeModel) -> None:
    largest = largest_counts(model, dead_time_s=DEAD_TIME_S, time_s=TIME_S)
    counts = np.array([0.0, 0.999 * largest, 1.001 * largest, 10 * largest])
    corrected = dead_time(counts, counts, model=model, dead_time_s=DEAD_TIME_S, time_s=TIME_S)
    assert np.isnan(corrected.counts).tolist() == np.isnan(corrected.variance).tolist() == [False, False, True, True]
    assert corrected.counts[0] == corrected.variance[0] == 0


def test_paralyzed_counter_at_its_largest_rate() -> None:
    largest = largest_counts("paralyzable", dead_time_s=DEAD_TIME_S, time_s=TIME_S)
    assert largest == pytest.approx(TIME_S / DEAD_TIME_S / math.e)
    counts = np.array([largest * (1 - 1e-12)])
    corrected = dead_time(counts, counts, model="paralyzable", dead_time_s=DEAD_TIME_S, time_s=TIME_S)
    assert corrected.counts[0] == pytest.approx(TIME_S / DEAD_TIME_S, rel=1e-5)
    assert corrected.variance[0] > 1e9 * counts[0]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("dtype", ["u2", "u4", "i4", "f4"])
def test_images_of_any_type_keep_their_shape_and_no_dead_time_changes_nothing(model: DeadTimeModel, dtype: str) -> None:
    counts = np.arange(12).reshape(3, 4).astype(dtype)
    corrected = dead_time(counts, counts, model=model, dead_time_s=0, time_s=1)
    assert corrected.counts.tolist() == corrected.variance.tolist() == counts.tolist()
    assert largest_counts(model, dead_time_s=0, time_s=1) == math.inf


def test_scale_is_absolute_scale_over_transmission_monitor_and_thickness() -> None:
    assert scale() == 1
    assert scale(transmission=0.5, monitor=4, thickness_m=0.001, absolute_scale=3) == pytest.approx(1500)


@pytest.mark.parametrize("name", ["transmission", "monitor", "thickness_m", "absolute_scale"])
@pytest.mark.parametrize("number", [0.0, -1.0, math.nan, math.inf])
def test_scale_names_the_number_that_is_impossible(name: str, number: float) -> None:
    with pytest.raises(ValueError, match=f"{name}: .* is not a number above 0"):
        scale(**{name: number})


@pytest.mark.parametrize(("dead_time_s", "time_s"), [(-1, 1), (math.nan, 1), (1, 0), (1, math.inf)])
def test_impossible_times_are_refused(dead_time_s: float, time_s: float) -> None:
    with pytest.raises(ValueError, match=r"time_s: .* is not a number"):
        dead_time(np.ones(1), np.ones(1), model="paralyzable", dead_time_s=dead_time_s, time_s=time_s)
