"""Reading frames where something is wrong with one of them, or the file comes late."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest

from mpi_kernels import source as module
from mpi_kernels.errors import FrameUnreadable, UnusableInput
from mpi_kernels.hdf5_files import Library, Mode
from mpi_kernels.segments import Segment
from mpi_kernels.source import FrameSource
from mpi_kernels.stored_frames import StoredFrames


def five_frames(path: Path, **options: object) -> np.ndarray:
    frames = np.random.default_rng(1).poisson(4, (5, 20, 30)).astype("u4")
    with h5py.File(path, "w", libver="latest") as file:
        file.create_dataset("data", data=frames, **options)
    return frames


@pytest.mark.parametrize("chunks", [(1, 20, 30), (1, 10, 30)])
def test_undecodable_first_frame_does_not_spoil_the_others(tmp_path: Path, chunks: tuple[int, ...]) -> None:
    path = tmp_path / "a.h5"
    frames = five_frames(path, chunks=chunks, compression="gzip")
    with h5py.File(path, "r+") as file:
        file["data"].id.write_direct_chunk((0, 0, 0), b"no gzip at all")
    library = Library()
    dataset = StoredFrames(library.dataset(path, "/data"), path, live=False)
    for number in (3, 1, 4):
        np.testing.assert_array_equal(dataset.read(number), frames[number])
    with pytest.raises(FrameUnreadable, match=r"data\[0\]"):
        dataset.read(0)
    library.close()


@pytest.mark.parametrize("size", [2**63, 2**64 - 1, 2**60, 2**36, 0])
def test_chunk_that_claims_an_absurd_size_is_one_unreadable_frame(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.h5"
    frames = five_frames(path, chunks=(1, 20, 30), **hdf5plugin.Bitshuffle())
    with h5py.File(path, "r+") as file:
        mask, raw = file["data"].id.read_direct_chunk((2, 0, 0))
        file["data"].id.write_direct_chunk((2, 0, 0), size.to_bytes(8, "big") + raw[8:], mask)
    library = Library()
    dataset = StoredFrames(library.dataset(path, "/data"), path, live=False)
    with pytest.raises(FrameUnreadable, match=r"data\[2\]"):
        dataset.read(2)
    np.testing.assert_array_equal(dataset.read(3), frames[3])
    library.close()


def test_file_that_this_node_sees_later_than_rank_0_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    library = Library()
    frames = FrameSource(library)
    frame = np.ones((1, 20, 30), "u4")

    def write_later() -> None:
        time.sleep(0.3)
        with h5py.File(tmp_path / "hidden", "w", libver="latest") as file:
            file["data"] = frame
        (tmp_path / "hidden").rename(path)

    writer = threading.Thread(target=write_later)
    writer.start()
    read = frames.read(Segment(path, "/data"), 0)
    writer.join()
    np.testing.assert_array_equal(read, frame[0])
    library.close()


def test_file_that_never_comes_costs_the_wait_only_once(tmp_path: Path) -> None:
    frames = FrameSource(Library())
    began = time.monotonic()
    for number in range(20):
        with pytest.raises(FrameUnreadable, match="no such file"):
            frames.read(Segment(tmp_path / "a.h5", "/data"), number)
    assert time.monotonic() - began < 2 * module.VISIBLE_WITHIN_S


def test_path_through_a_file_is_unusable_and_no_fault(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(UnusableInput, match="Not a directory"):
        Library().file(tmp_path / "a" / "b.h5")


@pytest.mark.parametrize(
    ("options", "written", "held"),
    [
        ({"chunks": (1, 20, 30)}, 3, 3),
        ({"chunks": (1, 7, 30)}, 3, 3),
        ({"chunks": (2, 20, 30)}, 4, 4),
        ({}, 2, 5),  # contiguous storage doesn't tell
    ],
)
def test_number_of_frames_in_a_file_is_told_by_its_chunks(
    tmp_path: Path, options: dict[str, object], written: int, held: int
) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", libver="latest") as file:
        data = file.create_dataset("data", shape=(5, 20, 30), dtype="u4", **options)
        data[:written] = 1
    library = Library()
    dataset = StoredFrames(library.dataset(path, "/data"), path, live=False)
    assert [dataset.holds(count) for count in (held, held + 1)] == [True, False]
    library.close()


def test_frames_stored_outside_hdf5_are_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(range(16)))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("frames", (1, 4, 4), "u1", external=[(str(secret), 0, 16)])
    with h5py.File(tmp_path / "x.h5") as file, pytest.raises(UnusableInput, match="stored outside HDF5"):
        StoredFrames(file["frames"], tmp_path / "x.h5", live=False)


@pytest.mark.parametrize("mode", ["live", "finished"])
def test_file_that_is_replaced_while_it_is_read_is_named(tmp_path: Path, mode: Mode) -> None:
    path = tmp_path / "a.h5"
    frames = five_frames(path, chunks=(1, 20, 30))
    library = Library(mode)
    source, segment = FrameSource(library), Segment(path, "/data")
    np.testing.assert_array_equal(source.read(segment, 0), frames[0])
    source.look_again(segment)
    five_frames(tmp_path / "b.h5", chunks=(1, 20, 30))
    (tmp_path / "b.h5").rename(path)
    with pytest.raises(UnusableInput, match=r"a\.h5: replaced by another file while it was read"):
        source.look_again(segment)
    library.close()


def test_file_that_is_moved_away_is_read_on(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    frames = five_frames(path, chunks=(1, 20, 30))
    library = Library()
    source, segment = FrameSource(library), Segment(path, "/data")
    source.read(segment, 0)
    path.rename(tmp_path / "archived.h5")
    source.look_again(segment)
    np.testing.assert_array_equal(source.read(segment, 4), frames[4])
    library.close()
