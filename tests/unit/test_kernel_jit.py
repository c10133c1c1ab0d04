"""What numba compiles gives numpy's sums, exactly, for every value of every type."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpi_kernels import jit
from mpi_kernels.splitting import Pairs, weighted_sums

pytestmark = pytest.mark.skipif(jit.sum_whole_pixels is None, reason="NOT TESTED: numba isn't installed")

TYPES = ("u1", "i1", "u2", "i2", "u4", "i4")
BINS = 13


def counts_of(dtype: str, kind: str, size: int, seed: int) -> np.ndarray:
    """Return counts of many sorts: small ones, any at all, nothing but the largest, small ones with a few outliers."""
    chance, span = np.random.default_rng(seed), np.iinfo(dtype)
    small = chance.poisson(2, size).astype(dtype)
    anything = chance.integers(span.min, span.max, size, dtype=np.int64, endpoint=True).astype(dtype)
    largest = np.full(size, span.max, dtype)
    return {
        "small": small,
        "anything": anything,
        "largest": largest,
        "outliers": np.where(chance.random(size) < 0.003, anything, small),
    }[kind]


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(TYPES),
    kind=st.sampled_from(["small", "anything", "largest", "outliers"]),
    size=st.integers(1, 9000),
    high=st.sampled_from([0, 1, 100, 2**16, 2**31 - 2, 2**32 - 1]),
    seed=st.integers(0, 99),
)
def test_whole_and_split_pixels_are_summed_as_numpy_does(
    dtype: str, kind: str, size: int, high: int, seed: int
) -> None:
    chance = np.random.default_rng(seed)
    counts = counts_of(dtype, kind, size, seed)
    good = (counts >= 0) & (counts <= high)
    measured = np.where(good, counts, 0).astype(np.int64)
    bin_of = chance.integers(0, BINS + 1, size)
    assert jit.sum_whole_pixels is not None
    sums, excluded = jit.sum_whole_pixels(counts, jit.places_of(bin_of, BINS), BINS, (0, high))
    expected = np.zeros(BINS + 1, np.int64)
    np.add.at(expected, bin_of, measured)
    assert sums.tolist() == expected[:BINS].tolist()
    assert excluded.tolist() == np.flatnonzero(~good & (bin_of < BINS)).tolist()

    lengths = chance.integers(0, 4, size)
    starts = np.append(0, np.cumsum(lengths))
    weights = chance.integers(1, 65535, starts[-1], endpoint=True).astype(np.uint16)
    pairs = Pairs(starts, chance.integers(0, BINS, starts[-1]).astype(np.uint32), weights, weights // 2)
    assert jit.sum_split_pixels is not None
    signal, squares, excluded = jit.sum_split_pixels(counts, pairs, BINS, (0, high))
    of_numpy = weighted_sums(measured, pairs, BINS)
    assert [signal.tolist(), squares.tolist()] == [part.tolist() for part in of_numpy]
    assert excluded.tolist() == np.flatnonzero(~good & (lengths > 0)).tolist()


def test_more_left_out_pixels_than_there_was_room_for_are_all_named() -> None:
    counts, bin_of = np.full(20000, 7, np.uint16), np.zeros(20000, np.intp)
    assert jit.sum_whole_pixels is not None
    sums, excluded = jit.sum_whole_pixels(counts, jit.places_of(bin_of, 1), 1, (0, 5))
    assert (sums.tolist(), excluded.tolist()) == ([0], list(range(20000)))
