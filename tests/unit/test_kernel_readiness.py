"""Frames are found once each, in bounded portions, and with bounded work."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest

from mpi_kernels.frame_numbers import ALL
from mpi_kernels.hdf5_files import Library
from mpi_kernels.readiness import MOST_AT_ONCE, Keys, Readiness, SegmentWatch
from mpi_kernels.segments import Layout, Segment
from mpi_kernels.source import FrameSource
from mpi_kernels.stored_frames import StoredFrames


def stack(path: Path, frames: int, written: range, chunk: int = 1) -> None:
    with h5py.File(path, "w", libver="latest") as file:
        data = file.create_dataset("data", shape=(frames, 1, 2), chunks=(chunk, 1, 2), dtype="u1")
        for number in written:
            data[number] = 1


WRITER = """
import sys, h5py
with h5py.File(sys.argv[1], "r+", libver="latest") as file:
    file.swmr_mode = True
    print("open", flush=True)
    for line in sys.stdin:
        file["data"][int(line)] = 1
        file.flush()
        print("written", flush=True)
"""


@contextmanager
def writer_of(path: Path) -> Iterator[Callable[[int], None]]:
    """Open a file for SWMR writing in another process; give what makes it write a frame."""
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"

        def write(number: int) -> None:
            process.stdin.write(f"{number}\n")
            process.stdin.flush()
            assert process.stdout.readline() == "written\n"

        yield write
        process.stdin.close()


def readiness(library: Library, path: Path) -> Readiness:
    return Readiness(library, Layout(library, path, "/data"), FrameSource(library), None, finished=False)


def frames_of(found: Readiness, path: Path, *, full: bool = False, final: bool = False) -> list[int]:
    return [ready.frame for ready in found.poll(path, full=full, final=final)]


def test_long_stack_is_found_in_portions_each_frame_once(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    stack(path, MOST_AT_ONCE + 10, range(MOST_AT_ONCE + 10))
    library = Library()
    looks = readiness(library, path)
    assert frames_of(looks, path) == list(range(MOST_AT_ONCE))
    assert frames_of(looks, path) == list(range(MOST_AT_ONCE, MOST_AT_ONCE + 10))
    assert frames_of(looks, path, final=True) == []
    library.close()


class Counting(StoredFrames):
    """Counts how often storage is looked up."""

    looks = 0

    def has(self, position: int) -> bool:
        self.looks += 1
        return super().has(position)


def watch(library: Library, path: Path, *, live: bool) -> tuple[SegmentWatch, Counting]:
    dataset = Counting(library.dataset(path, "/data"), path, live=live)
    return SegmentWatch(0, Segment(path, "/data"), dataset, ()), dataset


def test_file_that_nobody_writes_is_searched_only_once(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    stack(path, 3000, range(0, 200, 2))
    library = Library()
    found, dataset = watch(library, path, live=False)
    assert len(list(found.poll(full=True, final=False))) == 100
    assert dataset.looks == 3000
    for final in (False, True):
        assert not list(found.poll(full=True, final=final))
    assert dataset.looks == 3000
    library.close()


def test_thousands_of_gaps_cost_a_poll_little_and_are_found_when_filled(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    stack(path, 5000, range(4999, 5000))
    library = Library("live")
    found, dataset = watch(library, path, live=True)
    assert [ready.frame for ready in found.poll(full=True, final=False)] == [4999]
    dataset.looks = 0
    assert not list(found.poll(full=False, final=False))
    assert dataset.looks <= 200
    library.close()


def test_gaps_at_both_ends_are_filled_by_ordinary_polls_and_those_between_by_full_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    stack(path, 6000, range(5999, 6000))
    with writer_of(path) as write:
        library = Library()
        found, _dataset = watch(library, path, live=True)
        assert [ready.frame for ready in found.poll(full=True, final=False)] == [5999]
        for number in (3, 3000, 5990):
            write(number)
        assert [ready.frame for ready in found.poll(full=False, final=False)] == [3, 5990]
        assert [ready.frame for ready in found.poll(full=True, final=False)] == [3000]
        library.close()


def test_full_polls_find_what_is_far_away_a_part_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    stack(path, 100_000, range(70_000, 70_002))
    with writer_of(path) as write:
        library = Library()
        found, dataset = watch(library, path, live=True)
        frames: list[int] = []
        for _ in range(20):
            dataset.looks = 0
            frames += [ready.frame for ready in found.poll(full=True, final=False)]
            assert dataset.looks < 10_000
        assert frames == [70_000, 70_001]
        assert dataset.looks < 500  # the number of chunks says that there is no other
        write(40_000)
        assert [ready.frame for ready in found.poll(full=False, final=True)] == [40_000]
        library.close()


def test_provisional_frames_come_again_at_the_end_whatever_the_portions(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    stack(path, 10, range(10), chunk=5)
    library = Library("live")
    found, _dataset = watch(library, path, live=True)
    assert [(ready.frame, ready.provisional) for ready in found.poll(full=True, final=False)] == [
        (frame, True) for frame in range(5)
    ]
    first = next(found.poll(full=True, final=True))  # and no more of it
    rest = [ready.frame for ready in found.poll(full=True, final=True)]
    assert sorted([first.frame, *rest]) == list(range(10))
    library.close()


def master_of(path: Path, sources: list[Path], frames_each: int) -> Path:
    layout = h5py.VirtualLayout(shape=(frames_each * len(sources), 1, 2), dtype="u1")
    for index, source in enumerate(sources):
        part = h5py.VirtualSource(source.name, "data", shape=(frames_each, 1, 2))
        layout[index * frames_each : (index + 1) * frames_each] = part
    with h5py.File(path, "w", libver="latest") as file:
        file.create_virtual_dataset("data", layout)
    return path


def test_short_data_file_that_was_just_closed_is_opened_when_its_writer_has_come_back(tmp_path: Path) -> None:
    """Many writers make a file, close it, and open it again: a handle from in between would never see its frames."""
    source = tmp_path / "a.h5"
    stack(source, 4, range(0))
    master = master_of(tmp_path / "master.h5", [source], 4)
    library = Library()
    looks = readiness(library, master)
    assert frames_of(looks, master, full=True) == []
    with writer_of(source) as write:
        write(2)
        assert frames_of(looks, master) == [2]
        write(0)
        assert frames_of(looks, master) == [0]
    library.close()


def test_short_data_file_is_taken_as_it_is_when_it_has_not_changed_for_a_while_or_at_the_end(tmp_path: Path) -> None:
    old, new = tmp_path / "old.h5", tmp_path / "new.h5"
    for source in (old, new):
        stack(source, 4, range(2))
    os.utime(old, (1, 1))
    master = master_of(tmp_path / "master.h5", [old, new], 4)
    library = Library()
    looks = readiness(library, master)
    assert frames_of(looks, master) == [0, 1]
    assert frames_of(looks, master, final=True) == [4, 5]
    library.close()


@pytest.mark.parametrize("shape", [(24,), (24, 1, 1), (4, 6), (2, 3, 4), (4, 6, 1)])
def test_keys_of_any_shape_are_counted_in_c_order(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 2, shape)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        keys = Keys(file.create_dataset("uid", data=values), ALL, live=False)
        for start, stop in ((0, 24), (5, 7), (7, 99), (23, 24)):
            keys.look(start, stop)
            written = [keys.has(number) for number in range(start, min(stop, 24))]
            assert written == [bool(value) for value in values.reshape(-1)[start:stop]]


SNAKE = """
import sys, h5py, numpy as np
path, lead, chunks = sys.argv[1], *(tuple(map(int, text.split(","))) for text in sys.argv[2:])
rows, columns = int(np.prod(lead[:-1])), lead[-1]
with h5py.File(path, "w", libver=("v110", "v110")) as file:
    data = file.create_dataset("data", (0, *lead[1:], 4, 5), "u4", maxshape=(None, *lead[1:], 4, 5),
                               chunks=(*chunks, 4, 5), compression="gzip")
    file.swmr_mode = True
    print("open", flush=True)
    for row in range(rows):
        before = np.unravel_index(row, lead[:-1])
        for column in range(columns) if row % 2 == 0 else reversed(range(columns)):
            sys.stdin.readline()
            data.resize(int(before[0]) + 1, axis=0)
            data[(*before, column)] = np.random.default_rng(row * columns + column).integers(1, 99, (4, 5))
            data.flush()
            print("written", flush=True)
"""


@pytest.mark.parametrize(
    ("lead", "chunks"),
    [((4, 3), (1, 1)), ((4, 6), (1, 2)), ((4, 6), (2, 3)), ((2, 3, 4), (1, 1, 1)), ((3, 2, 4), (1, 2, 3))],
)
def test_snake_scan_that_grows_row_by_row_is_read_frame_by_frame(
    tmp_path: Path, lead: tuple[int, ...], chunks: tuple[int, ...]
) -> None:
    path, count = tmp_path / "a.h5", int(np.prod(lead))
    expected = [np.random.default_rng(number).integers(1, 99, (4, 5)) for number in range(count)]
    texts = [",".join(map(str, item)) for item in (lead, chunks)]
    command = [sys.executable, "-c", SNAKE, str(path), *texts]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        assert writer.stdout.readline() == "open\n"
        library = Library()
        source = FrameSource(library)
        found = Readiness(library, Layout(library, path, "/data"), source, None, finished=False)
        settled: list[int] = []
        for _ in range(count):
            writer.stdin.write("\n")
            writer.stdin.flush()
            assert writer.stdout.readline() == "written\n"
            for segment in found.segments:
                source.look_again(segment)
            for ready in found.poll(path):
                frame = source.read(found.segments[0], ready.index)
                assert ready.provisional == (np.prod(chunks) > 1)
                if frame is not None:
                    np.testing.assert_array_equal(frame, expected[ready.frame])
                if not ready.provisional:
                    settled.append(ready.frame)
        writer.stdin.close()
        assert writer.wait() == 0
    source.look_again(found.segments[0])
    for ready in found.poll(path, full=True, final=True):
        np.testing.assert_array_equal(source.read(found.segments[0], ready.index), expected[ready.frame])
        settled.append(ready.frame)
    assert sorted(settled) == list(range(count))
    library.close()
