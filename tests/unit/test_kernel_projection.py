"""Sums over frames are numpy's, exactly, whichever way the frames come in, in any order and any parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mpi_kernels.errors import UnusableInput
from mpi_kernels.native.library import PATHS, NativePath
from mpi_kernels.native.projecting import FrameTotals, Summer
from mpi_kernels.projection import Accumulation, Projector
from mpi_kernels.summing import Limits
from tests.unit.native_chunks import KINDS, TYPES, every_path, needs_core, some_frames, stored

EVERYTHING = Limits()


def whole_numbers(array: NDArray[Any]) -> NDArray[np.object_]:
    return array.astype(object)


def expected_sums(frames: NDArray[Any], valid: NDArray[np.bool_], limits: Limits) -> dict[str, NDArray[Any]]:
    """Return the sums by Python's whole numbers."""
    values = whole_numbers(frames)
    low, high = max(0, limits.low or 0), 2**40 if limits.high is None else limits.high
    measured = valid & (values >= low).astype(bool) & (values <= high).astype(bool)
    values = np.where(measured, values, 0)
    return {
        "total": values.sum(axis=0),
        "squares": (values**2).sum(axis=0),
        "largest": values.max(axis=0, initial=0),
        "counted": measured.sum(axis=0),
        "frame counts": values.sum(axis=(1, 2)),
        "frame excluded": (valid & ~measured).sum(axis=(1, 2)),
        "frame largest": values.max(axis=(1, 2), initial=0),
    }


def check(projector: Projector, totals: FrameTotals, frames: NDArray[Any], expected: dict[str, NDArray[Any]]) -> None:
    sums = projector.accumulation()
    assert sums.frames == len(frames)
    np.testing.assert_array_equal(sums.total, expected["total"])
    squares = whole_numbers(sums.squares_low) + whole_numbers(sums.squares_high) * 2**32
    np.testing.assert_array_equal(squares, expected["squares"])
    np.testing.assert_array_equal(sums.largest, expected["largest"])
    np.testing.assert_array_equal(sums.counted, expected["counted"])
    np.testing.assert_array_equal(totals.counts, expected["frame counts"])
    np.testing.assert_array_equal(totals.excluded, expected["frame excluded"])
    np.testing.assert_array_equal(totals.largest, expected["frame largest"])
    assert totals.errors == (None,) * len(frames)


def check_both(
    frames: NDArray[Any], valid: NDArray[np.bool_], limits: Limits, path: NativePath, block_elements: int = 0
) -> None:
    expected = expected_sums(frames, valid, limits)
    by_chunks = Projector(valid, limits, frames.dtype, path=path)
    check(by_chunks, by_chunks.add_chunks(stored(frames, block_elements)), frames, expected)
    by_frames = Projector(valid, limits, frames.dtype, path=None)
    check(by_frames, by_frames.add_frames(list(frames)), frames, expected)
    assert_same(by_chunks.accumulation(), by_frames.accumulation())


def assert_same(one: Accumulation, other: Accumulation) -> None:
    assert one.frames == other.frames
    for name in ("total", "squares_low", "squares_high", "largest", "counted"):
        a, b = getattr(one, name), getattr(other, name)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b, err_msg=name)


def some_mask(shape: tuple[int, ...], masked: float, seed: int = 1) -> NDArray[np.bool_]:
    return np.asarray(np.random.default_rng(seed).random(shape) >= masked)


@every_path
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_sums_are_those_of_python_whole_numbers(path: NativePath, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(TYPES))
    shape = data.draw(st.tuples(st.integers(1, 20), st.integers(1, 40), st.integers(1, 60)))
    frames = some_frames(dtype, shape, data.draw(st.sampled_from(KINDS)), data.draw(st.integers(0, 2**32)))
    span = np.iinfo(dtype)
    limit = st.none() | st.integers(-3, 300) | st.integers(int(span.min) - 1, int(span.max) + 1)
    limits = data.draw(st.just(Limits.of(frames.dtype, saturation=None)) | st.builds(Limits, limit, limit))
    valid = some_mask(shape[1:], data.draw(st.sampled_from([0, 0.1, 1])))
    check_both(frames, valid, limits, path, data.draw(st.sampled_from([0, 8, 200, 1000, 2048, 8192, 32768])))


@every_path
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2"])
def test_every_value_of_a_small_type_is_summed_right(path: NativePath, dtype: str) -> None:
    span = np.iinfo(dtype)
    every = np.arange(span.min, span.max + 1).astype(dtype)
    frames = np.stack([np.roll(every, 7 * shift) for shift in range(17)]).reshape(17, 1, -1)
    for limits in (EVERYTHING, Limits(0, int(span.max) - 1), Limits(3, 100)):
        check_both(frames, np.ones((1, every.size), bool), limits, path)


@every_path
@pytest.mark.parametrize("dtype", ["u4", "i4"])
def test_values_at_the_borders_of_32_bits_are_summed_right(path: NativePath, dtype: str) -> None:
    span = np.iinfo(dtype)
    borders = [value + step for value in (0, 2**8, 2**15, 2**16, 2**24, 2**31, 2**32) for step in (-2, -1, 0, 1)]
    kept = [sign * value for value in borders for sign in (1, -1) if span.min <= sign * value <= span.max]
    row = np.array([*kept, span.min, span.max]).astype(dtype)
    frames = np.stack([np.roll(np.tile(row, 90), shift) for shift in range(5)]).reshape(5, 90, -1)
    for limits in (EVERYTHING, Limits(0, int(span.max) - 1), Limits(0, 65535), Limits(0, 65536)):
        check_both(frames, np.ones(frames.shape[1:], bool), limits, path)


@every_path
@pytest.mark.parametrize(
    ("dtype", "value"),
    [("u1", 1), ("u1", 127), ("u1", 128), ("u1", 255), ("u2", 256), ("u2", 65535), ("u4", 65535), ("u4", 2**32 - 1)],
)
def test_many_frames_of_one_value_never_overflow(path: NativePath, dtype: str, value: int) -> None:
    frames = np.full((300, 5, 29), value, dtype)
    check_both(frames, np.ones((5, 29), bool), EVERYTHING, path)


@every_path
def test_small_and_large_values_of_a_pixel_take_turns(path: NativePath) -> None:
    generator = np.random.default_rng(3)
    scale = generator.choice([0, 1, 100, 127, 200, 3000, 65535, 2**31], 90)
    frames = (generator.random((90, 7, 41)) * scale[:, None, None]).astype("u4")
    check_both(frames, some_mask((7, 41), 0.1), EVERYTHING, path)


@every_path
@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 40), max_size=5), seed=st.integers(0, 2**32))
def test_any_parts_in_any_order_give_the_same_bits(path: NativePath, cuts: list[int], seed: int) -> None:
    frames, valid = some_frames("u4", (40, 11, 23), "sentinels", seed), some_mask((11, 23), 0.1)
    limits = Limits.of(frames.dtype, saturation=None)
    whole = Projector(valid, limits, frames.dtype, path=path)
    whole.add_chunks(stored(frames))
    order = np.random.default_rng(seed)
    parts = np.split(order.permutation(40), sorted(cuts))
    merged = Projector(valid, limits, frames.dtype, path=path).accumulation()
    for part in parts:
        rank = Projector(valid, limits, frames.dtype, path=path)
        for half in np.array_split(part, 2):
            if order.random() < 0.5 and half.size:
                rank.add_chunks(stored(frames[half]))
            else:
                rank.add_frames(list(frames[half]))
        merged = rank.accumulation() + merged
    assert_same(merged, whole.accumulation())


@every_path
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_broken_chunks_leave_the_sums_as_if_they_had_not_been_there(path: NativePath, data: st.DataObject) -> None:
    dtype, kind = data.draw(st.sampled_from(["u2", "u4", "i4"])), data.draw(st.sampled_from(["hot", "any value"]))
    frames = some_frames(dtype, (18, 61, 71), kind, data.draw(st.integers(0, 2**32)))
    broken = data.draw(st.sets(st.integers(0, 17), min_size=1))
    chunks = stored(frames, 256)
    for index in broken:
        length = data.draw(st.integers(0, len(chunks[index]) - 1))
        chunks[index] = chunks[index][:length]
    valid, limits = some_mask((61, 71), 0.1), Limits.of(frames.dtype, saturation=None)
    first = frames[::-1]
    projector = Projector(valid, limits, frames.dtype, path=path)
    projector.add_chunks(stored(first))
    totals = projector.add_chunks(chunks)
    assert {index for index, error in enumerate(totals.errors) if error} == broken
    reference = Projector(valid, limits, frames.dtype, path=None)
    reference.add_frames(list(first))
    good = [index for index in range(18) if index not in broken]
    expected = reference.add_frames(list(frames[good]))
    assert_same(projector.accumulation(), reference.accumulation())
    np.testing.assert_array_equal(totals.counts[good], expected.counts)
    np.testing.assert_array_equal(totals.largest[good], expected.largest)
    assert not totals.counts[sorted(broken)].any()


@every_path
def test_what_is_wrong_with_a_chunk_is_named(path: NativePath) -> None:
    frames = some_frames("u4", (5, 60, 70), "hot", 2)
    chunks = [*stored(frames), stored(np.zeros((1, 60, 71), "u4"))[0]]
    chunks[1], chunks[3] = b"", chunks[3][:-1]
    projector = Projector(np.ones((60, 70), bool), EVERYTHING, frames.dtype, path=path)
    assert projector.add_chunks(chunks).errors == (
        None,
        "it is shorter than its header",
        None,
        "it ends within a block",
        None,
        "its header says another size",
    )
    np.testing.assert_array_equal(projector.accumulation().total, frames[[0, 2, 4]].sum(axis=0))


@every_path
def test_a_damaged_block_in_the_middle_takes_nothing_with_it(path: NativePath) -> None:
    frames = some_frames("u4", (9, 60, 70), "hot", 2)
    chunks = stored(frames)
    middle = len(chunks[4]) // 2
    chunks[4] = chunks[4][:middle] + chunks[4][middle - 10 :]
    projector = Projector(np.ones((60, 70), bool), EVERYTHING, frames.dtype, path=path)
    errors = projector.add_chunks(chunks).errors
    assert [index for index, error in enumerate(errors) if error] == [4]
    assert projector.accumulation().frames == 8
    np.testing.assert_array_equal(projector.accumulation().total, np.delete(frames, 4, 0).sum(axis=0))
    np.testing.assert_array_equal(projector.accumulation().largest, np.delete(frames, 4, 0).max(axis=0))


@every_path
def test_frames_with_blocks_of_different_sizes_are_summed_together(path: NativePath) -> None:
    frames = some_frames("u4", (6, 61, 71), "hot", 2)
    chunks = [stored(frames[i : i + 1], size)[0] for i, size in enumerate([0, 0, 64, 0, 32768, 32768])]
    valid = some_mask((61, 71), 0.1)
    projector = Projector(valid, EVERYTHING, frames.dtype, path=path)
    check(projector, projector.add_chunks(chunks), frames, expected_sums(frames, valid, EVERYTHING))


@needs_core
def test_an_accumulation_stays_as_it_was() -> None:
    frames = some_frames("u2", (4, 9, 13), "sentinels", 1)
    projector = Projector(np.ones((9, 13), bool), EVERYTHING, frames.dtype, path=max(PATHS))
    projector.add_chunks(stored(frames[:2]))
    before = projector.accumulation()
    projector.add_chunks(stored(frames[2:]))
    again = Projector(np.ones((9, 13), bool), EVERYTHING, frames.dtype, path=None)
    again.add_frames(list(frames[:2]))
    assert_same(before, again.accumulation())


def test_no_frames_are_no_change() -> None:
    projector = Projector(np.ones((2, 3), bool), EVERYTHING, np.dtype("u2"))
    assert projector.add_frames([]).counts.size == 0
    assert not projector.takes_chunks or projector.add_chunks([]).counts.size == 0
    assert projector.accumulation().frames == 0
    assert not projector.accumulation().counted.any()


def test_big_endian_frames_are_summed_as_arrays() -> None:
    frames = some_frames("u4", (3, 5, 7), "any value", 4)
    projector = Projector(np.ones((5, 7), bool), EVERYTHING, np.dtype(">u4"))
    assert not projector.takes_chunks
    totals = projector.add_frames(list(frames.astype(">u4")))
    check(projector, totals, frames, expected_sums(frames, np.ones((5, 7), bool), EVERYTHING))


@pytest.mark.parametrize("dtype", ["f4", "f8", "u8", "i8"])
def test_values_without_exact_sums_are_refused(dtype: str) -> None:
    with pytest.raises(UnusableInput, match="can't be summed exactly"):
        Projector(np.ones((2, 3), bool), EVERYTHING, np.dtype(dtype))


def test_summer_refuses_what_the_core_cannot_sum() -> None:
    with pytest.raises(ValueError, match="isn't summed here"):
        Summer(np.ones(4, bool), dtype=np.dtype("f4"), low=0, high=1, path=NativePath.PORTABLE)
    with pytest.raises(ValueError, match="only from 0 on"):
        Summer(np.ones(4, bool), dtype=np.dtype("i4"), low=-1, high=1, path=NativePath.PORTABLE)
