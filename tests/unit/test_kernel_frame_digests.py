"""A frame's digest is of what is stored, and doesn't depend on how it is read; the seal is over all frames."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest
import xxhash
from numpy.typing import NDArray

from mpi_kernels import decode
from mpi_kernels.chunk_memory import ChunkMemory
from mpi_kernels.frame_digests import digest_of, sealed
from mpi_kernels.hdf5_files import Library
from mpi_kernels.stored_frames import StoredFrames

SHAPE = (20, 30)
FRAMES = np.random.default_rng(3).poisson(3, (6, *SHAPE)).astype("u2")
STORED = {
    "one chunk": {"chunks": (1, *SHAPE), **hdf5plugin.Bitshuffle()},
    "one chunk, plain": {"chunks": (1, *SHAPE)},
    "one chunk, through HDF5": {"chunks": (1, *SHAPE), **hdf5plugin.Blosc()},
    "tiles": {"chunks": (1, 7, 11), "compression": "gzip"},
}
SHARED = {
    "chunks of several frames": {"chunks": (4, *SHAPE), **hdf5plugin.Bitshuffle()},
    "chunks of several frames, tiles, big-endian": {"chunks": (2, 7, 11), "dtype": ">u2"},
    "chunks of several frames, through HDF5": {"chunks": (4, *SHAPE), **hdf5plugin.Blosc()},
    "not chunked": {},
}


def write(path: Path, **options: object) -> Path:
    with h5py.File(path, "w", libver="latest") as file:
        file.create_dataset("data", data=FRAMES, **options)
    return path


@pytest.fixture
def library() -> Iterator[Library]:
    with closing(Library()) as library:
        yield library


def frames_of(library: Library, path: Path) -> StoredFrames:
    return StoredFrames(library.dataset(path, "/data"), path, live=False)


def chunks_of(path: Path, frame: int) -> bytes:
    """Return the stored bytes of a frame, by h5py alone."""
    with h5py.File(path, locking=False) as file:
        dataset = file["data"].id
        infos = [dataset.get_chunk_info(index) for index in range(dataset.get_num_chunks())]
        offsets = sorted(info.chunk_offset for info in infos if info.chunk_offset[0] == frame)
        return b"".join(dataset.read_direct_chunk(offset)[1] for offset in offsets)


@pytest.mark.parametrize("kind", STORED)
def test_a_frame_with_chunks_of_its_own_has_the_digest_of_their_bytes(
    library: Library, tmp_path: Path, kind: str
) -> None:
    path = write(tmp_path / "scan.h5", **STORED[kind])
    frames = frames_of(library, path)
    for number in (3, 0):
        expected = xxhash.xxh3_128_digest(chunks_of(path, number))
        assert frames.digest(number) == expected  # without reading
        np.testing.assert_array_equal(frames.read(number), FRAMES[number])
        assert frames.digest(number) == expected
        if frames.chunk(number, ChunkMemory(1)) is not None:
            assert frames.digest(number) == expected


@pytest.mark.parametrize("kind", SHARED)
def test_a_frame_without_chunks_of_its_own_has_the_digest_of_its_values(
    library: Library, tmp_path: Path, kind: str
) -> None:
    options = SHARED[kind]
    frames = frames_of(library, write(tmp_path / "scan.h5", **options))
    values = FRAMES.astype(str(options.get("dtype", "u2")))
    for number in (3, 0, 5):
        assert frames.digest(number) == xxhash.xxh3_128_digest(values[number].tobytes())


@pytest.mark.parametrize("kind", [*STORED, *SHARED])
def test_digests_are_the_same_without_any_decoder(
    library: Library, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "scan.h5", **STORED.get(kind, SHARED.get(kind, {})))
    before = [frames_of(library, path).digest(number) for number in range(6)]
    monkeypatch.setattr(decode.Pipeline, "decodable", False)
    frames = frames_of(library, path)
    assert not frames.direct
    for number in range(6):
        frames.read(number)
        assert frames.digest(number) == before[number]


def test_a_frame_of_fill_values_in_a_shared_chunk_has_no_digest(library: Library, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file.create_dataset("data", (4, *SHAPE), "u2", chunks=(2, *SHAPE))[0] = FRAMES[0]
    frames = frames_of(library, tmp_path / "scan.h5")
    assert frames.digest(0) is not None
    assert frames.digest(1) is None


def test_the_seal_is_over_numbers_and_digests_however_they_come() -> None:
    numbers = np.array([0, 1, 4], np.int64)
    digests = np.stack([np.frombuffer(digest_of([bytes([number])]), np.uint8) for number in range(3)])

    def seal(numbers: NDArray[np.int64], digests: NDArray[np.uint8]) -> str | None:
        return sealed([(numbers, digests)]).digest

    whole = sealed([(numbers, digests)])
    assert (whole.state, whole.frames) == ("sealed", 3)
    assert sealed([(numbers[:1], digests[:1]), (numbers[1:], digests[1:])]) == whole
    others = (seal(numbers[:2], digests[:2]), seal(numbers + 1, digests), seal(numbers, digests[::-1]))
    assert len({whole.digest, *others}) == 4
