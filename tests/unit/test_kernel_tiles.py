"""Frames that are put together from detector modules read as HDF5 itself reads the virtual dataset."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpi_kernels.chunk_memory import ChunkMemory
from mpi_kernels.errors import FrameUnreadable, NotThereYet, UnusableInput
from mpi_kernels.hdf5_files import Library
from mpi_kernels.readiness import Readiness
from mpi_kernels.segments import Layout
from mpi_kernels.source import FrameSource

FRAMES, ROWS, COLUMNS = 6, 5, 7
GAP = 2
FILL = 2**32 - 1


def values_of(number: int, lead: tuple[int, ...] = (FRAMES,)) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 1000, (*lead, ROWS, COLUMNS), dtype="u4")


def module(path: Path, number: int, lead: tuple[int, ...] = (FRAMES,), **options: object) -> Path:
    with h5py.File(path / f"module{number}.h5", "w", libver="latest") as file:
        file.create_dataset("data", data=values_of(number, lead), chunks=(*(1,) * len(lead), ROWS, COLUMNS), **options)
    return path / f"module{number}.h5"


def virtual(path: Path, layout: h5py.VirtualLayout) -> Path:
    with h5py.File(path / "master.h5", "w", libver="latest") as file:
        file.create_virtual_dataset("data", layout, fillvalue=FILL)
    return path / "master.h5"


def mapped(
    path: Path, shape: tuple[int, ...], mapping: Callable[[h5py.VirtualLayout], None], **options: object
) -> Path:
    layout = h5py.VirtualLayout(shape=shape, dtype="u4", **options)
    mapping(layout)
    return virtual(path, layout)


def source_of(number: int, lead: tuple[int, ...] = (FRAMES,), **options: object) -> h5py.VirtualSource:
    return h5py.VirtualSource(f"module{number}.h5", "data", shape=(*lead, ROWS, COLUMNS), **options)


def assert_read_as_hdf5_does(master: Path) -> list[str]:
    """Compare every frame; return the routes of the segments."""
    with h5py.File(master) as file:
        values = file["data"][()]
    return assert_read_as(master, values)


def assert_read_as(master: Path, values: np.ndarray) -> list[str]:
    expected = values.reshape(-1, *values.shape[-2:])
    seen = np.zeros(len(expected), int)
    with closing(Library()) as library:
        source, segments = FrameSource(library), Layout(library, master, "/data").segments
        for segment in segments:
            for index in reversed(range(segment.count or 0)):
                number = segment.frames.at(index)
                np.testing.assert_array_equal(source.read(segment, index), expected[number])
                seen[number] += 1
        routes = [source.dataset(segment).route for segment in segments]
    assert (seen == (expected != FILL).any(axis=(1, 2))).all()
    return routes


def four_quarters(layout: h5py.VirtualLayout, sources: list[h5py.VirtualSource]) -> None:
    for number, part in enumerate(sources):
        top, left = number // 2 * (ROWS + GAP), number % 2 * (COLUMNS + GAP)
        layout[..., top : top + ROWS, left : left + COLUMNS] = part


QUARTERS = (2 * ROWS + GAP, 2 * COLUMNS + GAP)


@pytest.mark.parametrize("options", [{}, dict(hdf5plugin.Bitshuffle()), dict(hdf5plugin.Zstd())])
@pytest.mark.parametrize("lead", [(FRAMES,), (), (2, 3), (2, 1, 3)])
def test_modules_with_gaps_between_them(tmp_path: Path, lead: tuple[int, ...], options: dict[str, object]) -> None:
    for number in range(4):
        module(tmp_path, number, lead, **options)
    sources = [source_of(number, lead) for number in range(4)]
    master = mapped(tmp_path, (*lead, *QUARTERS), lambda layout: four_quarters(layout, sources))
    (route,) = assert_read_as_hdf5_does(master)
    assert route.endswith("4 tiles a frame")


def test_one_mapping_per_frame_and_module_makes_no_more_segments(tmp_path: Path) -> None:
    for number in range(2):
        module(tmp_path, number)

    def mapping(layout: h5py.VirtualLayout) -> None:
        for frame in range(FRAMES):
            for number in range(2):
                layout[frame, :, number * COLUMNS : (number + 1) * COLUMNS] = source_of(number)[FRAMES - 1 - frame]

    assert len(assert_read_as_hdf5_does(mapped(tmp_path, (FRAMES, ROWS, 2 * COLUMNS), mapping))) == 1


def test_modules_whose_files_end_at_different_frames(tmp_path: Path) -> None:
    for number in range(4):
        module(tmp_path, number)

    def mapping(layout: h5py.VirtualLayout) -> None:
        layout[0:4, :, :COLUMNS] = source_of(0)[:4]
        layout[4:9, :, :COLUMNS] = source_of(1)[1:6]
        layout[0:6, :, COLUMNS:] = source_of(2)
        layout[6:9, :, COLUMNS:] = source_of(3)[2:5]

    assert len(assert_read_as_hdf5_does(mapped(tmp_path, (9, ROWS, 2 * COLUMNS), mapping))) == 3


def test_modules_along_a_dimension_of_the_source(tmp_path: Path) -> None:
    module(tmp_path, 0, (FRAMES, 3))

    def mapping(layout: h5py.VirtualLayout) -> None:
        for number in range(3):
            layout[:, number * ROWS : (number + 1) * ROWS] = source_of(0, (FRAMES, 3))[:, number]

    assert len(assert_read_as_hdf5_does(mapped(tmp_path, (FRAMES, 3 * ROWS, COLUMNS), mapping))) == 1


def test_chips_of_a_module_are_drawn_apart(tmp_path: Path) -> None:
    module(tmp_path, 0)

    def mapping(layout: h5py.VirtualLayout) -> None:
        part = source_of(0)
        layout[:, :2, :3], layout[:, 4:7, :3] = part[:, :2, :3], part[:, 2:, :3]
        layout[:, :2, 5:9], layout[:, 4:7, 5:9] = part[:, :2, 3:], part[:, 2:, 3:]

    (route,) = assert_read_as_hdf5_does(mapped(tmp_path, (FRAMES, 7, 9), mapping))
    assert route.endswith("4 tiles a frame")


def test_rows_of_two_modules_interleave(tmp_path: Path) -> None:
    def mapping(layout: h5py.VirtualLayout) -> None:
        for number in range(2):
            module(tmp_path, number)
            layout[:, number::2, :] = source_of(number)

    assert_read_as_hdf5_does(mapped(tmp_path, (FRAMES, 2 * ROWS, COLUMNS), mapping))


def test_where_modules_overlap_the_later_mapping_counts(tmp_path: Path) -> None:
    def mapping(layout: h5py.VirtualLayout) -> None:
        for number in range(2):
            module(tmp_path, number)
            layout[:, number : number + ROWS] = source_of(number)

    assert_read_as_hdf5_does(mapped(tmp_path, (FRAMES, ROWS + 1, COLUMNS), mapping))


def test_grid_scan_whose_rows_lie_in_a_file_each_and_come_as_a_snake(tmp_path: Path) -> None:
    def mapping(layout: h5py.VirtualLayout) -> None:
        for row in range(4):
            module(tmp_path, row, (3,))
            for column in range(3):
                layout[row, column] = source_of(row, (3,))[column if row % 2 == 0 else 2 - column]

    assert len(assert_read_as_hdf5_does(mapped(tmp_path, (4, 3, ROWS, COLUMNS), mapping))) == 4


def test_time_series_of_grids_over_a_source_of_grids(tmp_path: Path) -> None:
    module(tmp_path, 0, (4, 2, 3))

    def mapping(layout: h5py.VirtualLayout) -> None:
        layout[0:2] = source_of(0, (4, 2, 3))[1:3]

    routes = assert_read_as_hdf5_does(mapped(tmp_path, (3, 2, 3, ROWS, COLUMNS), mapping))
    assert not any("tiles" in route for route in routes)


@st.composite
def mapped_rectangles(draw: st.DrawFn, frames: int) -> tuple[tuple[slice, ...], tuple[int | slice, ...], int]:
    """Draw where in the frames what part of which source goes."""
    number = draw(st.integers(0, 2))
    height, width = draw(st.integers(1, ROWS)), draw(st.integers(1, COLUMNS))
    count = draw(st.integers(1, frames))
    lead = []
    for size in (frames, FRAMES):
        step = draw(st.integers(1, max(1, (size - 1) // max(1, count - 1))))
        start = draw(st.integers(0, size - 1 - (count - 1) * step))
        lead.append(slice(start, start + (count - 1) * step + 1, step))
    corners = [(draw(st.integers(0, 9 - height)), draw(st.integers(0, 10 - width)))]
    corners.append((draw(st.integers(0, ROWS - height)), draw(st.integers(0, COLUMNS - width))))
    to, of = ((slice(top, top + height), slice(left, left + width)) for top, left in corners)
    layer = (draw(st.integers(0, 1)),) if number == 2 else ()
    return (lead[0], *to), (lead[1], *layer, *of), number


@pytest.fixture(scope="module")
def three_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("modules")
    for number, lead in LEADS.items():
        module(path, number, lead)
    return path


LEADS = {0: (FRAMES,), 1: (FRAMES,), 2: (FRAMES, 2)}


@settings(max_examples=60)
@given(data=st.data(), frames=st.integers(1, FRAMES))
def test_any_rectangles_of_any_frames(three_modules: Path, data: st.DataObject, frames: int) -> None:
    """HDF5 itself leaves gaps unfilled where other pixels are mapped twice, so numpy is the measure."""
    drawn = data.draw(st.lists(mapped_rectangles(frames), min_size=1, max_size=8))
    expected = np.full((frames, 9, 10), FILL, "u4")
    layout = h5py.VirtualLayout(shape=expected.shape, dtype="u4")
    for to, of, number in drawn:
        layout[to] = source_of(number, LEADS[number])[of]
        expected[to] = values_of(number, LEADS[number])[of]
    assert_read_as(virtual(three_modules, layout), expected)


def test_part_of_the_frames_of_a_dataset(tmp_path: Path) -> None:
    module(tmp_path, 0)
    mapping = lambda layout: layout.__setitem__(slice(None), source_of(0)[:, 1:4, 2:6])  # noqa: E731
    assert_read_as_hdf5_does(mapped(tmp_path, (FRAMES, 3, 4), mapping))


def test_modules_behind_links_and_in_the_same_file(tmp_path: Path) -> None:
    for number in range(2):
        module(tmp_path, number)
    layout = h5py.VirtualLayout(shape=(FRAMES, ROWS, 2 * COLUMNS), dtype="u4")
    with h5py.File(tmp_path / "master.h5", "w", libver="latest") as file:
        file["near"] = np.arange(FRAMES * ROWS * COLUMNS, dtype="u4").reshape(FRAMES, ROWS, COLUMNS)
        file["far"] = h5py.ExternalLink("module1.h5", "/data")
        for number, name in enumerate(("near", "far")):
            part = h5py.VirtualSource(".", name, shape=(FRAMES, ROWS, COLUMNS))
            layout[:, :, number * COLUMNS : (number + 1) * COLUMNS] = part
        file.create_virtual_dataset("data", layout, fillvalue=FILL)
    assert_read_as_hdf5_does(tmp_path / "master.h5")


def nested(path: Path) -> Path:
    """Map whole frames and halves of a virtual dataset that joins the frames of two files."""
    for number in range(2):
        module(path, number, **hdf5plugin.Bitshuffle())
    inner = h5py.VirtualLayout(shape=(2 * FRAMES, ROWS, COLUMNS), dtype="u4")
    inner[::2], inner[1::2] = source_of(0), source_of(1)
    virtual(path, inner).rename(path / "inner.h5")
    outer = h5py.VirtualLayout(shape=(4, ROWS, COLUMNS), dtype="u4")
    outer[:3] = h5py.VirtualSource("inner.h5", "data", shape=inner.shape)[3:9:2]
    outer[3, :, :4] = h5py.VirtualSource("inner.h5", "data", shape=inner.shape)[8, :, 3:]
    return virtual(path, outer)


def test_virtual_dataset_over_virtual_datasets(tmp_path: Path) -> None:
    assert len(assert_read_as_hdf5_does(nested(tmp_path))) == 2


def test_frames_behind_two_virtual_datasets_become_ready(tmp_path: Path) -> None:
    master = nested(tmp_path)
    (tmp_path / "module1.h5").rename(tmp_path / "later")
    with closing(Library()) as library:
        found = Readiness(library, Layout(library, master, "/data"), FrameSource(library), None, finished=False)
        assert found.poll(master, full=True) == []
        (tmp_path / "later").rename(tmp_path / "module1.h5")
        assert [ready.frame for ready in found.poll(master, full=True)] == [0, 1, 2, 3]


def test_virtual_dataset_over_itself_is_refused(tmp_path: Path) -> None:
    layout = h5py.VirtualLayout(shape=(FRAMES, ROWS, COLUMNS), dtype="u4")
    layout[...] = h5py.VirtualSource("other.h5", "data", shape=(FRAMES, ROWS, COLUMNS))
    virtual(tmp_path, layout).rename(tmp_path / "circle.h5")
    layout = h5py.VirtualLayout(shape=(FRAMES, ROWS, COLUMNS), dtype="u4")
    layout[...] = h5py.VirtualSource("circle.h5", "data", shape=(FRAMES, ROWS, COLUMNS))
    virtual(tmp_path, layout).rename(tmp_path / "other.h5")
    with closing(Library()) as library:
        (segment,) = Layout(library, tmp_path / "circle.h5", "/data").segments
        with pytest.raises(UnusableInput, match="a virtual dataset over itself"):
            FrameSource(library).dataset(segment)


def test_whole_frames_can_be_taken_as_they_are_stored(tmp_path: Path) -> None:
    module(tmp_path, 0, **hdf5plugin.Bitshuffle())
    master = mapped(tmp_path, (3, ROWS, COLUMNS), lambda layout: layout.__setitem__(slice(None), source_of(0)[2:5]))
    library = Library()
    (segment,) = Layout(library, master, "/data").segments
    source = FrameSource(library)
    with h5py.File(tmp_path / "module0.h5") as file:
        raw = file["data"].id.read_direct_chunk((3, 0, 0))[1]
    assert source.chunk(segment, 1, ChunkMemory(1)) == (raw if source.dataset(segment).fusable else None)
    library.close()


# ------------------------------------------------------------------------------------------------------- what is wrong


def test_source_of_another_shape_is_refused(tmp_path: Path) -> None:
    module(tmp_path, 0)
    whole = h5py.VirtualSource("module0.h5", "data", shape=(FRAMES, ROWS, COLUMNS - 1))
    for part in (whole, h5py.VirtualSource("module0.h5", "data", shape=(FRAMES, ROWS, 9))[:, :, :9]):
        columns = part.shape[-1]
        master = mapped(tmp_path, (FRAMES, ROWS, columns), lambda layout, part=part: layout.__setitem__(..., part))
        library = Library()
        (segment,) = Layout(library, master, "/data").segments
        with pytest.raises(UnusableInput, match=r"module0.h5::/data: frames \(5, 7\), of which the virtual dataset"):
            FrameSource(library).dataset(segment)
        library.close()


def test_mapping_to_another_shape_is_refused(tmp_path: Path) -> None:
    part = h5py.VirtualSource("module0.h5", "data", shape=(FRAMES, COLUMNS, ROWS))
    master = mapped(tmp_path, (FRAMES, ROWS, COLUMNS), lambda layout: layout.__setitem__(..., part[:, :, :]))
    library = Library()
    with pytest.raises(UnusableInput, match="another shape"):
        Layout(library, master, "/data")
    library.close()


def test_source_that_the_virtual_type_does_not_hold_is_refused(tmp_path: Path) -> None:
    for number in range(4):
        module(tmp_path, number)
    layout = h5py.VirtualLayout(shape=(FRAMES, *QUARTERS), dtype="u2")
    four_quarters(layout, [source_of(number) for number in range(4)])
    with h5py.File(tmp_path / "master.h5", "w", libver="latest") as file:
        file.create_virtual_dataset("data", layout)
    library = Library()
    (segment,) = Layout(library, tmp_path / "master.h5", "/data").segments
    with pytest.raises(UnusableInput, match="uint32, but the virtual dataset over it has uint16"):
        FrameSource(library).dataset(segment)
    library.close()


def test_one_corrupt_module_makes_one_frame_unreadable(tmp_path: Path) -> None:
    for number in range(4):
        module(tmp_path, number, compression="gzip")
    with h5py.File(tmp_path / "module2.h5", "r+") as file:
        file["data"].id.write_direct_chunk((3, 0, 0), b"no gzip at all")
    sources = [source_of(number) for number in range(4)]
    master = mapped(tmp_path, (FRAMES, *QUARTERS), lambda layout: four_quarters(layout, sources))
    library = Library()
    (segment,) = Layout(library, master, "/data").segments
    source = FrameSource(library)
    with pytest.raises(FrameUnreadable, match=r"module2.h5::/data\[3\]"):
        source.read(segment, 3)
    assert source.read(segment, 4) is not None
    library.close()


def test_frames_wait_for_their_last_module(tmp_path: Path) -> None:
    sources = [source_of(number) for number in range(4)]
    master = mapped(tmp_path, (FRAMES, *QUARTERS), lambda layout: four_quarters(layout, sources))
    for number in range(3):
        module(tmp_path, number)
    library = Library()
    source = FrameSource(library)
    found = Readiness(library, Layout(library, master, "/data"), source, None, finished=False)
    assert found.poll(master, full=True) == []
    with pytest.raises(NotThereYet, match=r"module3\.h5"):
        source.dataset(found.segments[0])
    assert not found.nothing_more_to_come(master, stall_timeout_s=60)
    with h5py.File(tmp_path / "hidden", "w", libver="latest") as file:
        data = file.create_dataset("data", (FRAMES, ROWS, COLUMNS), "u4", chunks=(1, ROWS, COLUMNS))
        data[1:3] = 5
    (tmp_path / "hidden").rename(tmp_path / "module3.h5")
    assert [ready.frame for ready in found.poll(master, full=True, final=True)] == [1, 2]
    library.close()


def test_keys_beside_each_module_must_all_be_set(tmp_path: Path) -> None:
    for number, written in enumerate(([1, 1, 1, 0, 1, 1], [1, 0, 1, 1, 1, 0])):
        with h5py.File(module(tmp_path, number), "r+") as file:
            file["uid"] = written

    def mapping(layout: h5py.VirtualLayout) -> None:
        for number in range(2):
            layout[:, :, number * COLUMNS : (number + 1) * COLUMNS] = source_of(number)

    master = mapped(tmp_path, (FRAMES, ROWS, 2 * COLUMNS), mapping)
    library = Library("live")
    found = Readiness(library, Layout(library, master, "/data"), FrameSource(library), None, finished=False)
    assert [ready.frame for ready in found.poll(master, full=True)] == [0, 2, 4]
    library.close()


def test_endless_modules_are_followed(tmp_path: Path) -> None:
    def mapping(layout: h5py.VirtualLayout) -> None:
        for number in range(2):
            module(tmp_path, number)
            part = source_of(number, maxshape=(None, ROWS, COLUMNS))
            layout[: h5py.h5s.UNLIMITED, :, number * COLUMNS : (number + 1) * COLUMNS] = part[: h5py.h5s.UNLIMITED]

    master = mapped(tmp_path, (FRAMES, ROWS, 2 * COLUMNS), mapping, maxshape=(None, ROWS, 2 * COLUMNS))
    library = Library()
    (segment,) = Layout(library, master, "/data").segments
    dataset = FrameSource(library).dataset(segment)
    assert (segment.count, dataset.extent) == (None, FRAMES)
    assert dataset.route.endswith("2 tiles a frame")
    library.close()
    with h5py.File(tmp_path / "module0.h5") as left, h5py.File(tmp_path / "module1.h5") as right:
        expected = np.concatenate([left["data"][()], right["data"][()]], axis=2)
    source = FrameSource(library)
    for number in range(FRAMES):
        np.testing.assert_array_equal(source.read(segment, number), expected[number])
    library.close()


WITHOUT_END = h5py.h5s.UNLIMITED


def test_endless_modules_along_a_dimension_of_the_source(tmp_path: Path) -> None:
    module(tmp_path, 0, (FRAMES, 3))

    def mapping(layout: h5py.VirtualLayout) -> None:
        part = source_of(0, (FRAMES, 3), maxshape=(None, 3, ROWS, COLUMNS))
        for number in range(2):
            layout[:WITHOUT_END, number * ROWS : (number + 1) * ROWS] = part[:WITHOUT_END, 2 - number]

    master = mapped(tmp_path, (FRAMES, 2 * ROWS, COLUMNS), mapping, maxshape=(None, 2 * ROWS, COLUMNS))
    with closing(Library()) as library:
        (segment,) = Layout(library, master, "/data").segments
        source, values = FrameSource(library), values_of(0, (FRAMES, 3))
        assert (segment.count, source.dataset(segment).extent) == (None, FRAMES)
        for number in range(FRAMES):
            expected = np.vstack([values[number, 2], values[number, 1]])
            np.testing.assert_array_equal(source.read(segment, number), expected)


@pytest.mark.parametrize(("stride", "segments"), [(2, 2), (3, 0)])
def test_endless_modules_in_turns_must_keep_the_same_pace(tmp_path: Path, stride: int, segments: int) -> None:
    def mapping(layout: h5py.VirtualLayout) -> None:
        for file in range(2):
            for half in range(2):
                module(tmp_path, 2 * file + half)
                part = source_of(2 * file + half, maxshape=(None, ROWS, COLUMNS))[:WITHOUT_END]
                pace = stride if file else 2
                layout[file:WITHOUT_END:pace, :, half * COLUMNS : (half + 1) * COLUMNS] = part

    shape = (2 * FRAMES, ROWS, 2 * COLUMNS)
    master = mapped(tmp_path, shape, mapping, maxshape=(None, *shape[1:]))
    with closing(Library()) as library:
        if not segments:
            with pytest.raises(UnusableInput, match="different rates"):
                Layout(library, master, "/data")
            return
        source = FrameSource(library)
        for segment in Layout(library, master, "/data").segments:
            first = segment.frames.at(0)
            expected = np.concatenate([values_of(2 * first), values_of(2 * first + 1)], axis=2)
            for index in range(FRAMES):
                assert segment.frames.at(index) == first + 2 * index
                np.testing.assert_array_equal(source.read(segment, index), expected[index])
