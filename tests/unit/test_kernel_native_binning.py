"""The native core's sums per bin are numpy's, exactly, for every value of every type, on each path."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mpi_kernels.azimuthal import Integrator, PixelImages, bin_numbers
from mpi_kernels.native.binning import Binner, fits
from mpi_kernels.native.library import PATHS, NativePath
from mpi_kernels.summing import Limits
from tests.unit.native_chunks import KINDS, TYPES, binned, every_path, needs_core, some_frames, stored


def check(frames: NDArray[Any], bin_of: NDArray[Any], bins: int, path: NativePath, **options: Any) -> None:
    low, high, block_elements = (options.get(name) for name in ("low", "high", "block_elements"))
    binner = Binner(bin_of, bins=bins, dtype=frames.dtype, low=low, high=high, path=path)
    result = binner.sums(stored(frames, block_elements or 0))
    assert result.errors == (None,) * len(frames)
    for frame, counts, excluded in zip(frames, result.counts, result.excluded, strict=True):
        sums, outside = binned(frame, bin_of, bins, low, high)
        np.testing.assert_array_equal(counts, sums)
        np.testing.assert_array_equal(excluded, outside)


def some_bins(pixels: int, bins: int, masked: float, seed: int = 1) -> NDArray[np.intp]:
    generator = np.random.default_rng(seed)
    return np.where(generator.random(pixels) < masked, bins, generator.integers(0, bins, pixels))


@every_path
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_sums_and_excluded_pixels_are_those_of_numpy(path: NativePath, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(TYPES))
    shape = data.draw(st.tuples(st.integers(1, 35), st.integers(1, 60), st.integers(1, 90)))
    frames = some_frames(dtype, shape, data.draw(st.sampled_from(KINDS)), data.draw(st.integers(0, 2**32)))
    span, bins = np.iinfo(dtype), data.draw(st.integers(1, 40))
    limit = st.none() | st.integers(-3, 300) | st.integers(int(span.min) - 1, int(span.max) + 1)
    check(
        frames,
        some_bins(shape[1] * shape[2], bins, data.draw(st.sampled_from([0, 0.1, 1]))),
        bins,
        path,
        low=data.draw(limit),
        high=data.draw(limit),
        block_elements=data.draw(st.sampled_from([0, 8, 200, 1000, 2048, 8192, 16384, 32768])),
    )


@every_path
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2"])
def test_every_value_of_a_small_type_is_summed_right(path: NativePath, dtype: str) -> None:
    span = np.iinfo(dtype)
    every = np.arange(span.min, span.max + 1).astype(dtype)
    frames = np.stack([np.roll(every, 7 * shift) for shift in range(17)]).reshape(17, 1, -1)
    bin_of = np.arange(every.size)  # one pixel each, so no value can hide behind another
    for limits in ({}, {"low": 0, "high": int(span.max) - 1}, {"low": 3, "high": 100}):
        check(frames, bin_of, every.size, path, **limits)


@every_path
@pytest.mark.parametrize("dtype", ["u4", "i4"])
def test_values_at_the_borders_of_32_bits_are_summed_right(path: NativePath, dtype: str) -> None:
    span = np.iinfo(dtype)
    borders = [value + step for value in (0, 2**8, 2**15, 2**16, 2**24, 2**31, 2**32) for step in (-2, -1, 0, 1)]
    kept = [sign * value for value in borders for sign in (1, -1) if span.min <= sign * value <= span.max]
    row = np.array([*kept, span.min, span.max]).astype(dtype)
    frames = np.stack([np.roll(np.tile(row, 90), shift) for shift in range(5)]).reshape(5, 90, -1)
    bin_of = np.arange(frames[0].size) % 97
    for limits in ({}, {"low": 0, "high": int(span.max) - 1}, {"low": 0, "high": 65535}, {"low": 0, "high": 65536}):
        check(frames, bin_of, 97, path, **limits)


@every_path
@pytest.mark.parametrize("count", [1, 3, 16])
@pytest.mark.parametrize(("dtype", "value"), [("u1", 255), ("u2", 65535), ("u4", 65535), ("u4", 2**32 - 1)])
def test_one_bin_takes_a_whole_saturated_frame(path: NativePath, dtype: str, value: int, count: int) -> None:
    frames = np.full((count, 600, 500), value, dtype)  # 300,000 pixels: beyond 32 bits from 16 bits on
    check(frames, np.zeros(300_000, np.intp), 1, path)


@every_path
@pytest.mark.parametrize("count", [1, 2, 3, 4, 15, 16, 17, 33])
def test_any_number_of_frames_is_summed_alike(path: NativePath, count: int) -> None:
    frames = some_frames("u2", (count, 70, 90), "sentinels", 8)
    check(frames, some_bins(6300, 50, 0.1), 50, path, low=0, high=65534)


@every_path
def test_more_excluded_pixels_than_expected_are_all_named(path: NativePath) -> None:
    check(np.full((3, 100, 200), 7, "u4"), some_bins(20_000, 9, 0.5), 9, path, low=8)


@every_path
def test_limits_that_no_value_can_meet_exclude_all(path: NativePath) -> None:
    frames = some_frames("u1", (2, 9, 30), "sentinels", 1)
    for limits in ({"low": 256}, {"high": -1}, {"low": 10, "high": 9}):
        check(frames, some_bins(270, 5, 0.2), 5, path, **limits)


@every_path
def test_damaged_chunk_is_named_and_the_others_are_right(path: NativePath) -> None:
    frames, bin_of = some_frames("u4", (18, 60, 70), "hot", 2), some_bins(4200, 30, 0.1)
    chunks = stored(frames)
    chunks[0], chunks[5], chunks[9], chunks[17] = b"", chunks[5][:-1], chunks[9][:200] + chunks[9][190:], b"\xff" * 40
    result = Binner(bin_of, bins=30, dtype=frames.dtype, path=path).sums(chunks)
    broken = {0, 5, 9, 17}
    assert {index for index, error in enumerate(result.errors) if error} == broken
    assert result.errors[0] == "it is shorter than its header"
    for index, frame in enumerate(frames):
        expected = np.zeros(30) if index in broken else binned(frame, bin_of, 30, None, None)[0]
        np.testing.assert_array_equal(result.counts[index], expected)
        assert result.excluded[index].size == 0


@every_path
def test_chunk_of_another_frame_size_is_refused(path: NativePath) -> None:
    binner = Binner(some_bins(100, 5, 0), bins=5, dtype=np.dtype("u2"), path=path)
    assert binner.sums(stored(np.zeros((1, 10, 11), "u2"))).errors == ("its header says another size",)


@every_path
def test_frames_with_blocks_of_different_sizes_are_summed_together(path: NativePath) -> None:
    frames, bin_of = some_frames("u4", (6, 60, 70), "hot", 2), some_bins(4200, 30, 0.1)
    chunks = [stored(frames[i : i + 1], size)[0] for i, size in enumerate([0, 0, 64, 0, 32768, 32768])]
    result = Binner(bin_of, bins=30, dtype=frames.dtype, path=path).sums(chunks)
    for frame, counts in zip(frames, result.counts, strict=True):
        np.testing.assert_array_equal(counts, binned(frame, bin_of, 30, None, None)[0])


@needs_core
@pytest.mark.parametrize("dtype", TYPES)
def test_sums_are_those_of_the_integrator(dtype: str) -> None:
    frames = some_frames(dtype, (5, 50, 60), "sentinels", 4)
    radial = np.hypot(*np.mgrid[-20:30, -25:35]).astype(float)
    images = PixelImages(radial, np.random.default_rng(0).random(radial.shape) > 0.1, np.ones(radial.shape))
    limits = Limits.of(frames.dtype, saturation=100)
    integrator = Integrator(images, bins=40, radial_range=None, limits=limits, dtype=frames.dtype, error_model="none")
    assert isinstance(limits.low, int)
    assert isinstance(limits.high, int)
    bin_of = bin_numbers(images, integrator.edges)
    binner = Binner(bin_of, bins=40, dtype=frames.dtype, low=limits.low, high=limits.high, path=max(PATHS))
    result = binner.sums(stored(frames))
    for frame, counts, excluded in zip(frames, result.counts, result.excluded, strict=True):
        sums = integrator.sums(frame)
        np.testing.assert_array_equal(counts, sums.signal)
        left = np.bincount(bin_of, minlength=41)[:40] - np.bincount(bin_of[excluded], minlength=41)[:40]
        np.testing.assert_array_equal(left, sums.norm)


def test_what_cannot_be_summed_is_refused() -> None:
    assert [name for name in (*TYPES, ">u2", "u8", "f4", ">u1") if fits(np.dtype(name))] == [*TYPES, ">u1"]
    path = NativePath.PORTABLE
    with pytest.raises(ValueError, match="isn't summed here"):
        Binner(np.zeros(4, np.intp), bins=1, dtype=np.dtype("f4"), path=path)
    with pytest.raises(ValueError, match="bins 0 to 2, but there are 1"):
        Binner(np.array([0, 2]), bins=1, dtype=np.dtype("u4"), path=path)
