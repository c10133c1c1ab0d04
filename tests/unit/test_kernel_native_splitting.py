"""The native core's weighted sums per bin are numpy's, exactly, for every value of every type, on each path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mpi_kernels.native.library import NativePath
from mpi_kernels.native.splitting import MOST_COUNTS, WEIGHT_ONE, SplitBinner
from tests.unit.native_chunks import KINDS, TYPES, every_path, some_frames, stored


@dataclass(frozen=True)
class Split:
    """Pairs of pixels and bins, and their weights."""

    starts: NDArray[np.int64]
    bin_of: NDArray[np.uint32]
    weights: NDArray[np.uint16]
    squares: NDArray[np.uint16] | None
    bins: int

    def binner(self, dtype: np.dtype[Any], path: NativePath, low: int | None, high: int | None) -> SplitBinner:
        return SplitBinner(
            self.starts, self.bin_of, self.weights,
            squares=self.squares, bins=self.bins, dtype=dtype, low=low, high=high, path=path,
        )  # fmt: skip

    def sums(self, frame: NDArray[Any], good: NDArray[np.bool_], weights: NDArray[np.uint16]) -> NDArray[np.int64]:
        values = np.where(good, frame.ravel().astype(np.int64), 0)
        sums = np.zeros(self.bins, np.int64)
        np.add.at(sums, self.bin_of, np.repeat(values, np.diff(self.starts)) * weights)
        return sums


def split_between(pixels: int, bins: int, most: int, masked: float, *, squares: bool, seed: int = 1) -> Split:
    """Divide each pixel among up to `most` bins; many are left whole, or nearly, and some weights are 0."""
    generator = np.random.default_rng(seed)
    pairs = np.where(generator.random(pixels) < masked, 0, generator.integers(1, most + 1, pixels))
    starts = np.concatenate([[0], np.cumsum(pairs)])
    pixel = np.repeat(np.arange(pixels), pairs)
    share = generator.random(pixel.size) ** 3
    total = np.bincount(pixel, share, pixels)
    weights = np.floor(share / total[pixel] * WEIGHT_ONE).astype(np.uint16)
    square = np.rint(weights.astype(float) ** 2 / WEIGHT_ONE).astype(np.uint16)
    return Split(
        starts, generator.integers(0, bins, pixel.size).astype(np.uint32), weights, square if squares else None, bins
    )


def check(frames: NDArray[Any], split: Split, path: NativePath, **options: Any) -> None:
    low, high = options.get("low"), options.get("high")
    result = split.binner(frames.dtype, path, low, high).sums(stored(frames, options.get("block_elements") or 0))
    assert result.errors == (None,) * len(frames)
    for index, frame in enumerate(frames):
        values = frame.ravel().astype(np.int64)
        good = (values >= (values.min() if low is None else low)) & (values <= (values.max() if high is None else high))
        np.testing.assert_array_equal(result.counts[index], split.sums(frame, good, split.weights))
        np.testing.assert_array_equal(result.excluded[index], np.flatnonzero(~good & (np.diff(split.starts) > 0)))
        if split.squares is not None:
            assert result.squares is not None
            np.testing.assert_array_equal(result.squares[index], split.sums(frame, good, split.squares))
    assert (result.squares is None) == (split.squares is None)


@every_path
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_sums_and_excluded_pixels_are_those_of_numpy(path: NativePath, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(TYPES))
    shape = data.draw(st.tuples(st.integers(1, 35), st.integers(1, 60), st.integers(1, 90)))
    frames = some_frames(dtype, shape, data.draw(st.sampled_from(KINDS)), data.draw(st.integers(0, 2**32)))
    span = np.iinfo(dtype)
    limit = st.none() | st.integers(-3, 300) | st.integers(int(span.min) - 1, int(span.max) + 1)
    split = split_between(
        shape[1] * shape[2],
        data.draw(st.integers(1, 40)),
        data.draw(st.integers(1, 4)),
        data.draw(st.sampled_from([0, 0.1, 1])),
        squares=data.draw(st.booleans()),
    )
    block_elements = data.draw(st.sampled_from([0, 8, 200, 1000, 2048, 8192, 16384, 32768]))
    check(frames, split, path, low=data.draw(limit), high=data.draw(limit), block_elements=block_elements)


@every_path
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2"])
def test_every_value_of_a_small_type_is_summed_right(path: NativePath, dtype: str) -> None:
    span = np.iinfo(dtype)
    every = np.arange(span.min, span.max + 1).astype(dtype)
    frames = np.stack([np.roll(every, 7 * shift) for shift in range(17)]).reshape(17, 1, -1)
    one_each = Split(  # so no value can hide behind another
        np.arange(every.size + 1), np.arange(every.size, dtype=np.uint32),
        (np.arange(every.size) * 7919 % (WEIGHT_ONE + 1)).astype(np.uint16),
        (np.arange(every.size) * 104729 % (WEIGHT_ONE + 1)).astype(np.uint16), every.size,
    )  # fmt: skip
    for limits in ({}, {"low": 0, "high": int(span.max) - 1}, {"low": 3, "high": 100}):
        check(frames, one_each, path, **limits)


@every_path
@pytest.mark.parametrize("value", [1, 255, 256, 32767])
def test_every_weight_is_multiplied_right(path: NativePath, value: int) -> None:
    every = np.arange(WEIGHT_ONE + 1)
    split = Split(
        np.arange(2**16 + 1), every.astype(np.uint32), every.astype(np.uint16), every[::-1].astype(np.uint16), 2**16
    )
    check(np.full((4, 256, 256), value, "u2"), split, path)


@every_path
@pytest.mark.parametrize("dtype", ["u4", "i4"])
def test_values_at_the_borders_of_32_bits_are_summed_right(path: NativePath, dtype: str) -> None:
    span = np.iinfo(dtype)
    borders = [value + step for value in (0, 2**8, 2**15, 2**16, 2**24, 2**31, 2**32) for step in (-2, -1, 0, 1)]
    kept = [sign * value for value in borders for sign in (1, -1) if span.min <= sign * value <= span.max]
    row = np.array([*kept, span.min, span.max]).astype(dtype)
    frames = np.stack([np.roll(np.tile(row, 90), shift) for shift in range(5)]).reshape(5, 90, -1)
    split = split_between(frames[0].size, 97, 3, 0.1, squares=True)
    for limits in ({}, {"low": 0, "high": int(span.max) - 1}, {"low": 0, "high": 65535}, {"low": 0, "high": 65536}):
        check(frames, split, path, **limits)


@every_path
@pytest.mark.parametrize("count", [1, 3, 16])
@pytest.mark.parametrize(
    ("dtype", "value"), [("u1", 255), ("i1", -128), ("u2", 32767), ("u2", 32768), ("u2", 65535), ("u4", 2**28)]
)
def test_one_bin_takes_a_whole_saturated_frame(path: NativePath, dtype: str, value: int, count: int) -> None:
    whole = np.full(300_000, WEIGHT_ONE, np.uint16)
    split = Split(np.arange(300_001), np.zeros(300_000, np.uint32), whole, whole, 1)
    check(np.full((count, 600, 500), value, dtype), split, path)


@every_path
@pytest.mark.parametrize("values", [(20, 255, 20), (255, 2000, 32767), (1, 70_000, 3)])
def test_dark_and_bright_parts_of_a_frame_come_together(path: NativePath, values: tuple[int, ...]) -> None:
    frames = np.repeat(np.array(values, "u4"), 90).reshape(1, 270, 1) + np.arange(17, dtype="u4").reshape(17, 1, 1)
    frames = np.repeat(frames, 251, axis=2)  # 33 segments of three kinds, and sums of 32 and of 64 bits
    for bins in (3, 1000):
        check(frames, split_between(270 * 251, bins, 3, 0.05, squares=True), path)


@every_path
@pytest.mark.parametrize("count", [1, 2, 3, 4, 15, 16, 17, 33])
def test_any_number_of_frames_is_summed_alike(path: NativePath, count: int) -> None:
    frames = some_frames("u2", (count, 70, 90), "sentinels", 8)
    check(frames, split_between(6300, 50, 3, 0.1, squares=True), path, low=0, high=65534)


@every_path
def test_more_excluded_pixels_than_expected_are_all_named(path: NativePath) -> None:
    check(np.full((3, 100, 200), 7, "u4"), split_between(20_000, 9, 2, 0.5, squares=False), path, low=8)


@every_path
def test_damaged_chunk_is_named_and_the_others_are_right(path: NativePath) -> None:
    frames, split = some_frames("u4", (18, 60, 70), "hot", 2), split_between(4200, 30, 3, 0.1, squares=True)
    chunks = stored(frames)
    chunks[0], chunks[5], chunks[9], chunks[17] = b"", chunks[5][:-1], chunks[9][:200] + chunks[9][190:], b"\xff" * 40
    result = split.binner(frames.dtype, path, None, None).sums(chunks)
    broken = {0, 5, 9, 17}
    assert {index for index, error in enumerate(result.errors) if error} == broken
    assert split.squares is not None
    assert result.squares is not None
    for index, frame in enumerate(frames):
        good = np.full(4200, index not in broken)
        np.testing.assert_array_equal(result.counts[index], split.sums(frame, good, split.weights))
        np.testing.assert_array_equal(result.squares[index], split.sums(frame, good, split.squares))
        assert result.excluded[index].size == 0


@every_path
def test_frames_with_blocks_of_different_sizes_are_summed_together(path: NativePath) -> None:
    frames, split = some_frames("u4", (6, 60, 70), "hot", 2), split_between(4200, 30, 3, 0.1, squares=True)
    chunks = [stored(frames[i : i + 1], size)[0] for i, size in enumerate([0, 0, 64, 0, 32768, 32768])]
    result = split.binner(frames.dtype, path, None, None).sums(chunks)
    for frame, counts in zip(frames, result.counts, strict=True):
        np.testing.assert_array_equal(counts, split.sums(frame, np.ones(4200, bool), split.weights))


def test_as_many_counts_as_promised_fit() -> None:
    assert np.iinfo(np.int64).max >= MOST_COUNTS * WEIGHT_ONE
    assert np.iinfo(np.int64).max < (MOST_COUNTS + 1) * (WEIGHT_ONE + 1)  # and not many more


def test_what_cannot_be_summed_is_refused() -> None:
    def binner(starts: list[int], bins: list[int], weights: list[int], dtype: str = "u4") -> SplitBinner:
        arrays = np.array(starts), np.array(bins, np.uint32), np.array(weights, np.uint16)
        return SplitBinner(*arrays, bins=2, dtype=np.dtype(dtype), path=NativePath.PORTABLE)

    binner([0, 1, 1, 3], [0, 0, 1], [65535, 30000, 35535])
    with pytest.raises(ValueError, match="isn't summed here"):
        binner([0, 1], [0], [1], "f4")
    with pytest.raises(ValueError, match="bins 0 to 2, but there are 2"):
        binner([0, 2], [0, 2], [1, 1])
    with pytest.raises(ValueError, match="2 weights for 1 pairs"):
        binner([0, 1], [0], [1, 1])
    for starts in ([], [0], [0, 2], [1, 1], [0, 2, 1]):
        with pytest.raises(ValueError, match="pixel by pixel"):
            binner(starts, [0], [1])
    with pytest.raises(ValueError, match="the weights of pixel 1 are 65536, more than 65535"):
        binner([0, 1, 3], [0, 0, 1], [65535, 30000, 35536])
