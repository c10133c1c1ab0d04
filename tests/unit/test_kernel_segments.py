"""Where the frames of a dataset really lie."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpi_kernels.errors import NotThereYet, UnusableInput
from mpi_kernels.frame_numbers import Progression
from mpi_kernels.hdf5_files import Library
from mpi_kernels.segments import Layout


@given(st.integers(0, 9), st.integers(1, 5), st.integers(0, 6), st.integers(0, 60))
def test_count_below_counts_what_at_gives(start: int, block: int, gap: int, limit: int) -> None:
    numbers = Progression(start, block + gap, block)
    assert numbers.count_below(limit) == sum(numbers.at(index) < limit for index in range(100))


def test_bounded_progression_has_no_more_than_its_count() -> None:
    assert Progression(0, 3, 1, count=4).count_below(1000) == 4


def layout_of(path: Path, shape: tuple[int, ...], mapping: object) -> list[tuple[str, list[int], list[int]]]:
    """Make a virtual dataset and return (file, frame numbers, positions) of its segments."""
    layout = h5py.VirtualLayout(shape=shape, dtype="u4")
    mapping(layout)  # type: ignore[operator]
    with h5py.File(path, "w", libver="latest") as file:
        file.create_virtual_dataset("data", layout)
    library = Library()
    segments = Layout(library, path, "/data").segments
    library.close()
    found = []
    for segment in segments:
        (tile,) = segment.assembly.tiles
        indices = range(segment.count or 0)
        frames, positions = ([numbers.at(i) for i in indices] for numbers in (segment.frames, tile.positions))
        found.append((segment.file.name, frames, positions))
    return found


def test_interleaved_sources_are_followed(tmp_path: Path) -> None:
    def mapping(layout: h5py.VirtualLayout) -> None:
        layout[0::2] = h5py.VirtualSource("a.h5", "d", shape=(3, 4, 5))
        layout[1::2] = h5py.VirtualSource("b.h5", "d", shape=(3, 4, 5))

    assert layout_of(tmp_path / "v.h5", (6, 4, 5), mapping) == [
        ("a.h5", [0, 2, 4], [0, 1, 2]),
        ("b.h5", [1, 3, 5], [0, 1, 2]),
    ]


def test_blocks_of_frames_and_parts_of_sources_are_followed(tmp_path: Path) -> None:
    def mapping(layout: h5py.VirtualLayout) -> None:
        layout[0:2] = h5py.VirtualSource("a.h5", "d", shape=(9, 4, 5))[7:9]
        layout[2:4] = h5py.VirtualSource("b.h5", "d", shape=(9, 4, 5))[1:7:3]

    assert layout_of(tmp_path / "v.h5", (4, 4, 5), mapping) == [
        ("a.h5", [0, 1], [7, 8]),
        ("b.h5", [2, 3], [1, 4]),
    ]


def test_grid_scan_counts_in_c_order(tmp_path: Path) -> None:
    def mapping(layout: h5py.VirtualLayout) -> None:
        layout[:, 0] = h5py.VirtualSource("a.h5", "d", shape=(3, 4, 5))
        layout[:, 1] = h5py.VirtualSource("b.h5", "d", shape=(3, 4, 5))

    assert layout_of(tmp_path / "v.h5", (3, 2, 4, 5), mapping) == [
        ("a.h5", [0, 2, 4], [0, 1, 2]),
        ("b.h5", [1, 3, 5], [0, 1, 2]),
    ]


def test_single_frames_make_up_a_stack(tmp_path: Path) -> None:
    def mapping(layout: h5py.VirtualLayout) -> None:
        for number in range(3):
            layout[number] = h5py.VirtualSource(f"{number}.h5", "d", shape=(4, 5))

    found = layout_of(tmp_path / "v.h5", (3, 4, 5), mapping)
    assert found == [(f"{number}.h5", [number], [0]) for number in range(3)]


def test_growing_virtual_dataset_is_followed_without_end(tmp_path: Path) -> None:
    layout = h5py.VirtualLayout(shape=(2, 4, 5), dtype="u4", maxshape=(None, 4, 5))
    source = h5py.VirtualSource("a.h5", "d", shape=(2, 4, 5), maxshape=(None, 4, 5))
    layout[: h5py.h5s.UNLIMITED] = source[: h5py.h5s.UNLIMITED]
    with h5py.File(tmp_path / "v.h5", "w", libver="latest") as file:
        file.create_virtual_dataset("data", layout)
    library = Library()
    (segment,) = Layout(library, tmp_path / "v.h5", "/data").segments
    library.close()
    assert segment.count is None
    assert [segment.frames.at(index) for index in (0, 1, 1000)] == [0, 1, 1000]
    (tile,) = segment.assembly.tiles
    assert [tile.positions.at(index) for index in (0, 1, 1000)] == [0, 1, 1000]


def test_group_without_data_files_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w", libver="latest") as file:
        file["entry/other"] = np.zeros(3)
    library = Library()
    with pytest.raises(UnusableInput, match="data_000001"):
        Layout(library, tmp_path / "a.h5", "/entry")
    library.close()


def test_file_behind_a_link_may_still_come(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w", libver="latest") as file:
        file["data"] = h5py.ExternalLink("later.h5", "/data")
    library = Library()
    with pytest.raises(NotThereYet, match=r"later\.h5: no such file"):
        Layout(library, tmp_path / "a.h5", "/data")
    library.close()
