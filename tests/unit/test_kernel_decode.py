"""Raw chunks are decoded to what HDF5 itself reads, for every compression and type."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest

from mpi_kernels.decode import Filter, Pipeline, bitshuffle_lz4_decoder, decompress
from mpi_kernels.errors import FrameUnreadable, UnusableInput
from mpi_kernels.fletcher32 import checksum
from mpi_kernels.native.library import PATH as NATIVE
from mpi_kernels.native.library import NativePath

COMPRESSIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "gzip": {"compression": "gzip"},
    "shuffle+gzip": {"compression": "gzip", "shuffle": True},
    "fletcher32": {"fletcher32": True},
    "shuffle+gzip+fletcher32": {"compression": "gzip", "shuffle": True, "fletcher32": True},
    "lz4": dict(hdf5plugin.LZ4()),
    "shuffle+lz4": {"shuffle": True, **hdf5plugin.LZ4(nbytes=1024)},
    "bitshuffle-lz4": dict(hdf5plugin.Bitshuffle()),
    "bitshuffle-zstd": dict(hdf5plugin.Bitshuffle(cname="zstd")),
}
needs_dectris = pytest.mark.skipif(
    decompress is None, reason="NOT TESTED: dectris-compression isn't installed (it needs a compiler)"
)
needs_either = pytest.mark.skipif(
    decompress is None and NATIVE is None,
    reason="NOT TESTED: neither the native core nor dectris-compression is here (they need a compiler)",
)
NEEDED = {
    "lz4": needs_dectris,
    "shuffle+lz4": needs_dectris,
    "bitshuffle-lz4": needs_either,
    "bitshuffle-zstd": needs_dectris,
}
DECODED_HERE = [pytest.param(name, marks=NEEDED[name]) if name in NEEDED else name for name in COMPRESSIONS]
NUMBERS = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")
SHAPE = (1, 37, 41)  # not a multiple of any block size


def dataset_with(path: Path, name: str, dtype: str, options: dict[str, Any]) -> h5py.Dataset:
    frame = np.random.default_rng(1).poisson(3, SHAPE).astype(dtype)
    return h5py.File(path, "w").create_dataset(name, data=frame, chunks=SHAPE, **options)


@pytest.mark.parametrize(
    "dtype", ["<u2", ">u2", "<u4", ">u4", "<u8", ">i8", "<u1", "<i1", "<i2", "<i4", "<i8", "<f4", ">f4", "<f8"]
)
@pytest.mark.parametrize("compression", DECODED_HERE)
def test_decoded_chunk_is_what_hdf5_reads(tmp_path: Path, compression: str, dtype: str) -> None:
    dataset = dataset_with(tmp_path / "a.h5", "data", dtype, COMPRESSIONS[compression])
    pipeline = Pipeline.of(dataset)
    assert pipeline.decodable
    assert pipeline.label == compression
    mask, raw = dataset.id.read_direct_chunk((0, 0, 0))
    decoded = pipeline.decode(raw, mask)
    assert decoded.dtype == dataset.dtype
    np.testing.assert_array_equal(decoded, dataset[()])
    dataset.file.close()


def test_skipped_filters_are_not_undone(tmp_path: Path) -> None:
    dataset = dataset_with(tmp_path / "a.h5", "data", "<u4", COMPRESSIONS["shuffle+gzip"])
    pipeline, plain = Pipeline.of(dataset), dataset[()]
    np.testing.assert_array_equal(pipeline.decode(plain.tobytes(), 0b11), plain)
    dataset.file.close()


@pytest.mark.parametrize("compression", DECODED_HERE)
def test_damaged_chunk_is_unreadable_and_nothing_else(tmp_path: Path, compression: str) -> None:
    dataset = dataset_with(tmp_path / "a.h5", "data", "<u4", COMPRESSIONS[compression])
    _mask, raw = dataset.id.read_direct_chunk((0, 0, 0))
    for damaged in (b"", raw[: len(raw) // 2], b"\xff" * 40):
        with pytest.raises(FrameUnreadable, match="chunk of"):
            Pipeline.of(dataset).decode(damaged, 0)
    dataset.file.close()


@pytest.mark.skipif(
    not isinstance(bitshuffle_lz4_decoder(), NativePath), reason="NOT TESTED: the native core doesn't decode here"
)
def test_native_core_says_what_is_wrong_with_a_chunk(tmp_path: Path) -> None:
    dataset = dataset_with(tmp_path / "a.h5", "data", "<u4", COMPRESSIONS["bitshuffle-lz4"])
    _mask, raw = dataset.id.read_direct_chunk((0, 0, 0))
    with pytest.raises(FrameUnreadable, match=r"is no bitshuffle-lz4 data: it ends within a block"):
        Pipeline.of(dataset).decode(raw[:-9], 0)
    dataset.file.close()


@needs_dectris
def test_without_the_native_core_dectris_decodes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = dataset_with(tmp_path / "a.h5", "data", "<u4", COMPRESSIONS["bitshuffle-lz4"])
    mask, raw = dataset.id.read_direct_chunk((0, 0, 0))
    monkeypatch.setattr("mpi_kernels.decode.NATIVE", None)
    pipeline = Pipeline.of(dataset)
    assert pipeline.decodable
    np.testing.assert_array_equal(pipeline.decode(raw, mask), dataset[()])
    dataset.file.close()


@needs_dectris
@pytest.mark.skipif(NATIVE is None, reason="NOT TESTED: the native core isn't here (it needs a compiler)")
@pytest.mark.parametrize(("path", "native"), [("PORTABLE", False), ("AVX2", True)])
def test_portable_core_leaves_whole_frames_to_dectris(monkeypatch: pytest.MonkeyPatch, path: str, native: bool) -> None:
    monkeypatch.setattr("mpi_kernels.decode.NATIVE", NativePath[path])
    assert (bitshuffle_lz4_decoder() is NativePath[path]) == native
    monkeypatch.setattr("mpi_kernels.decode.decompress", None)
    assert bitshuffle_lz4_decoder() is NativePath[path]


@pytest.mark.parametrize("length", [1, 2, 3, 256, 65537, 131072, 400001])
def test_checksum_is_the_one_that_hdf5_stores(tmp_path: Path, length: int) -> None:
    generator = np.random.default_rng(length)
    for values in (generator.integers(0, 256, length, "u1"), np.full(length, 255, "u1"), np.zeros(length, "u1")):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            raw = file.create_dataset("d", data=values, chunks=(length,), fletcher32=True).id.read_direct_chunk((0,))[1]
        assert checksum(values.tobytes()).to_bytes(4, "little") == raw[-4:]


def test_wrong_checksum_is_unreadable(tmp_path: Path) -> None:
    dataset = dataset_with(tmp_path / "a.h5", "data", "<u4", {"fletcher32": True})
    mask, raw = dataset.id.read_direct_chunk((0, 0, 0))
    damaged = bytes([raw[0] ^ 1]) + raw[1:]
    with pytest.raises(FrameUnreadable, match="its checksum is wrong"):
        Pipeline.of(dataset).decode(damaged, mask)
    np.testing.assert_array_equal(Pipeline.of(dataset).decode(raw[:-4], 1), dataset[()])
    dataset.file.close()


@pytest.mark.parametrize("skipped", range(8))
def test_each_filter_may_be_skipped_by_itself(tmp_path: Path, skipped: int) -> None:
    dataset = dataset_with(tmp_path / "a.h5", "data", "<u4", COMPRESSIONS["shuffle+gzip+fletcher32"])
    plain = dataset[()]
    stored = plain.tobytes()
    if not skipped & 1:
        stored = np.frombuffer(stored, "u1").reshape(-1, 4).T.tobytes()
    if not skipped & 2:
        stored = zlib.compress(stored)
    if not skipped & 4:
        stored += checksum(stored).to_bytes(4, "little")
    dataset.id.write_direct_chunk((0, 0, 0), stored, filter_mask=skipped)
    dataset.file.close()  # HDF5 tells whoever has just written a chunk the mask that it had before
    with h5py.File(tmp_path / "a.h5") as file:
        mask, raw = file["data"].id.read_direct_chunk((0, 0, 0))
        assert mask == skipped
        np.testing.assert_array_equal(Pipeline.of(file["data"]).decode(raw, mask), plain)
        np.testing.assert_array_equal(file["data"][()], plain)


def test_chunk_that_inflates_without_end_is_unreadable(tmp_path: Path) -> None:
    dataset = dataset_with(tmp_path / "a.h5", "data", "<u4", COMPRESSIONS["gzip"])
    with pytest.raises(FrameUnreadable, match="more than a chunk"):
        Pipeline.of(dataset).decode(zlib.compress(bytes(10_000_000)), 0)
    dataset.file.close()


def test_filter_that_only_hdf5_knows_is_left_to_it(tmp_path: Path) -> None:
    dataset = dataset_with(tmp_path / "a.h5", "data", "<u4", dict(hdf5plugin.Zstd()))
    pipeline = Pipeline.of(dataset)
    assert not pipeline.decodable
    pipeline.check_available("here")
    dataset.file.close()


def test_filter_that_nobody_knows_is_named() -> None:
    pipeline = Pipeline((Filter(499, (), "secret"),), np.dtype("u4"), SHAPE)
    with pytest.raises(UnusableInput, match=r"there: compressed with HDF5 filter 499 \(secret\)"):
        pipeline.check_available("there")
