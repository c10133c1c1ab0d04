"""Raw chunks are decoded to what HDF5 itself reads, for every compression and type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest

from mpi_kernels.decode import Filter, Pipeline, decompress
from mpi_kernels.errors import FrameUnreadable, UnusableInput
from mpi_kernels.native.library import PATH as NATIVE

COMPRESSIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "gzip": {"compression": "gzip"},
    "shuffle+gzip": {"compression": "gzip", "shuffle": True},
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
NEEDED = {"bitshuffle-lz4": needs_either, "bitshuffle-zstd": needs_dectris}
DECODED_HERE = [pytest.param(name, marks=NEEDED[name]) if name in NEEDED else name for name in COMPRESSIONS]
SHAPE = (1, 37, 41)  # not a multiple of any block size


def dataset_with(path: Path, name: str, dtype: str, options: dict[str, Any]) -> h5py.Dataset:
    frame = np.random.default_rng(1).poisson(3, SHAPE).astype(dtype)
    return h5py.File(path, "w").create_dataset(name, data=frame, chunks=SHAPE, **options)


@pytest.mark.parametrize("dtype", ["<u2", "<u4", "<i4", ">u4", "<u1", "<f4", "<u8"])
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


@pytest.mark.skipif(NATIVE is None, reason="NOT TESTED: the native core isn't here (it needs a compiler)")
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
