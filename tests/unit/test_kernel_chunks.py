"""Frames are read whole and in their place, however the scan is shaped and whatever its chunks hold of it."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpi_kernels.decode import Pipeline, bitshuffle_lz4_decoder, decompress
from mpi_kernels.errors import FrameUnreadable
from mpi_kernels.hdf5_files import Library
from mpi_kernels.stored_frames import StoredFrames

ROWS, COLUMNS = 7, 11
COMPRESSIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "shuffle+gzip": {"compression": "gzip", "shuffle": True},
    "bitshuffle-lz4": dict(hdf5plugin.Bitshuffle()),
    "lz4": dict(hdf5plugin.LZ4()),
    "fletcher32": {"fletcher32": True},
    "scaleoffset": {"scaleoffset": 0},
    "szip": {"compression": "szip"},
    "blosc": dict(hdf5plugin.Blosc()),
    "blosc2": dict(hdf5plugin.Blosc2()),
    "zstd": dict(hdf5plugin.Zstd()),
}
THROUGH_HDF5 = {"scaleoffset", "szip", "blosc", "blosc2", "zstd"}
THROUGH_HDF5 |= {"lz4"} if decompress is None else set()
THROUGH_HDF5 |= {"bitshuffle-lz4"} if bitshuffle_lz4_decoder() is None else set()


@contextmanager
def frames_of(path: Path, values: np.ndarray, **options: Any) -> Iterator[StoredFrames]:
    with h5py.File(path, "w", libver="latest") as file:
        file.create_dataset("data", data=values, **options)
    library = Library()
    yield StoredFrames(library.dataset(path, "/data"), path, live=False)
    library.close()


def some_values(lead: tuple[int, ...], dtype: str = "u4") -> np.ndarray:
    return np.random.default_rng(3).integers(1, 100, (*lead, ROWS, COLUMNS)).astype(dtype)


def assert_all_read(frames: StoredFrames, values: np.ndarray) -> None:
    expected = values.reshape(-1, ROWS, COLUMNS)
    for number in [*range(len(expected)), *reversed(range(len(expected)))]:
        frame = frames.read(number)
        assert frame.dtype == values.dtype
        np.testing.assert_array_equal(frame, expected[number])


@settings(max_examples=60)
@given(data=st.data(), compression=st.sampled_from(["none", "shuffle+gzip", "bitshuffle-lz4", "zstd"]))
def test_any_scan_in_any_chunks(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, compression: str
) -> None:
    lead = tuple(data.draw(st.lists(st.integers(1, 4), max_size=3)))
    shape = (*lead, ROWS, COLUMNS)
    chunks = tuple(data.draw(st.integers(1, size)) for size in shape)
    values = some_values(lead)
    path = tmp_path_factory.mktemp("any") / "a.h5"
    with frames_of(path, values, chunks=chunks, **COMPRESSIONS[compression]) as frames:
        assert (frames.extent, frames.scan_shape) == (len(values.reshape(-1, ROWS, COLUMNS)), lead)
        assert_all_read(frames, values)


@pytest.mark.parametrize("chunks", [(1, ROWS, COLUMNS), (2, ROWS, COLUMNS), (1, 4, 5), (3, 4, COLUMNS)])
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_every_filter_through_either_way(tmp_path: Path, compression: str, chunks: tuple[int, ...]) -> None:
    values = some_values((5,))
    with frames_of(tmp_path / "a.h5", values, chunks=chunks, **COMPRESSIONS[compression]) as frames:
        assert frames.route.startswith("HDF5 pipeline" if compression in THROUGH_HDF5 else "direct chunk read")
        assert ("chunks" in frames.route) == (chunks != (1, ROWS, COLUMNS))
        assert_all_read(frames, values)


@pytest.mark.parametrize("compression", ["none", "shuffle+gzip", "bitshuffle-lz4", "blosc"])
@pytest.mark.parametrize("dtype", [f"{order}{kind}" for order in "<>" for kind in ("u1", "i2", "u4", "i8", "f4", "f8")])
def test_numbers_of_every_kind_through_either_way(tmp_path: Path, compression: str, dtype: str) -> None:
    values = some_values((3,), dtype)
    with frames_of(tmp_path / "a.h5", values, chunks=(2, 4, 5), **COMPRESSIONS[compression]) as frames:
        assert_all_read(frames, values)


@pytest.mark.parametrize("lead", [(), (1,), (2, 3)])
def test_frames_without_chunks(tmp_path: Path, lead: tuple[int, ...]) -> None:
    values = some_values(lead)
    with frames_of(tmp_path / "a.h5", values) as frames:
        assert frames.route == "HDF5 pipeline (not chunked)"
        assert_all_read(frames, values)


@pytest.mark.parametrize("chunks", [(4, ROWS, COLUMNS), (4, 4, 5), (1, 4, 5)])
def test_each_chunk_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunks: tuple[int, ...]) -> None:
    decoded: list[int] = []
    decode = Pipeline.decode

    def counted(self: Pipeline, raw: bytes, mask: int) -> np.ndarray:
        decoded.append(len(raw))
        return decode(self, raw, mask)

    monkeypatch.setattr(Pipeline, "decode", counted)
    values = some_values((8,))
    with frames_of(tmp_path / "a.h5", values, chunks=chunks, compression="gzip") as frames:
        for number in range(8):
            np.testing.assert_array_equal(frames.read(number), values[number])
        assert len(decoded) == frames._id.get_num_chunks()


def test_one_corrupt_chunk_spoils_its_own_frames_only(tmp_path: Path) -> None:
    values = some_values((6,))
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("data", data=values, chunks=(2, 4, 5), compression="gzip")
        data.id.write_direct_chunk((2, 4, 5), b"no gzip at all")
    library = Library()
    frames = StoredFrames(library.dataset(path, "/data"), path, live=False)
    for number in range(6):
        if number in {2, 3}:
            with pytest.raises(FrameUnreadable, match=rf"data\[{number}\]: chunk of 14 bytes"):
                frames.read(number)
        else:
            np.testing.assert_array_equal(frames.read(number), values[number])
    library.close()


def leave_edges_unfiltered(plist: h5py.h5p.PropDCID) -> None:
    """Set ``H5D_CHUNK_DONT_FILTER_PARTIAL_CHUNKS``, for which h5py has no word."""
    shared = list(Path(h5py.__file__).parents[1].glob("h5py.libs/libhdf5-*.so*"))
    if not shared:
        pytest.skip("NOT TESTED: this h5py doesn't bring an HDF5 of its own")
    library = ctypes.CDLL(str(shared[0]))
    library.H5Pset_chunk_opts.argtypes = (ctypes.c_int64, ctypes.c_uint)
    assert library.H5Pset_chunk_opts(plist.id, 2) == 0


@pytest.mark.parametrize("chunks", [(1, 4, 5), (2, 4, 5), (2, ROWS, COLUMNS)])
@pytest.mark.parametrize("gzip", [False, True])
def test_chunks_at_the_edge_may_be_stored_without_their_filters(
    tmp_path: Path, chunks: tuple[int, ...], gzip: bool
) -> None:
    values, path = some_values((5,)), tmp_path / "a.h5"
    with h5py.File(path, "w", libver="latest") as file:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk(chunks)
        plist.set_shuffle()
        if gzip:
            plist.set_deflate(1)
        leave_edges_unfiltered(plist)
        space = h5py.h5s.create_simple(values.shape)
        h5py.Dataset(h5py.h5d.create(file.id, b"data", h5py.h5t.NATIVE_UINT32, space, plist))[...] = values
    library = Library()
    assert_all_read(StoredFrames(library.dataset(path, "/data"), path, live=False), values)
    library.close()


@pytest.mark.parametrize("fill", [0, 7, np.nan])
def test_frame_that_nobody_wrote_beside_one_in_its_chunk_is_none(tmp_path: Path, fill: float) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("data", (4, ROWS, COLUMNS), "f4", chunks=(2, ROWS, COLUMNS), fillvalue=fill)
        data[0] = 1
    library = Library()
    frames = StoredFrames(library.dataset(path, "/data"), path, live=False)
    assert frames.read(0) is not None
    assert frames.read(1) is None
    with pytest.raises(FrameUnreadable, match=r"\[2\]: no data"):
        frames.read(2)
    library.close()


@given(data=st.data())
@settings(max_examples=40)
def test_a_later_chunk_has_only_later_frames(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    lead = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    chunks = tuple(data.draw(st.integers(1, size)) for size in lead)
    path = tmp_path_factory.mktemp("later") / "a.h5"
    with frames_of(path, np.zeros((*lead, 1, 1), "u1"), chunks=(*chunks, 1, 1)) as frames:
        numbers = np.arange(frames.extent).reshape(lead)
        for coordinates in itertools.product(*map(range, lead)):
            box = tuple(slice(i // c * c, (i // c + 1) * c) for i, c in zip(coordinates, chunks, strict=True))
            later = frames._frame_after_chunk(int(numbers[coordinates]))
            if later is None:
                assert coordinates[0] // chunks[0] == (lead[0] - 1) // chunks[0]  # in the last of the chunks
            else:
                assert later > numbers[box].max()
                assert all(i % c == 0 for i, c in zip(np.unravel_index(later, lead), chunks, strict=True))
