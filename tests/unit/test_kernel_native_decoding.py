"""The native core decodes every chunk to what was stored, on each path, and takes nothing that is none."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpi_kernels.errors import InvalidParameters
from mpi_kernels.native.decoding import decode
from mpi_kernels.native.library import OBJECT, PATHS, NativePath, available, chosen, load
from tests.unit.native_chunks import KINDS, TYPES, every_path, needs_core, some_frames, stored

SHAPES = [(1, 1), (1, 7), (1, 8), (3, 5), (37, 41), (64, 64), (101, 103), (1, 16391)]


@every_path
@pytest.mark.parametrize("dtype", [*TYPES, "f4", "u8", "f8"])
@pytest.mark.parametrize("shape", SHAPES)
def test_decoded_bytes_are_those_that_hdf5_stored(path: NativePath, dtype: str, shape: tuple[int, int]) -> None:
    for kind in KINDS if dtype in TYPES else KINDS[:1]:
        frame = some_frames(dtype if dtype in TYPES else "u4", (1, *shape), kind, 3).astype(dtype)
        assert decode(stored(frame)[0], frame.itemsize, path=path).tobytes() == frame.tobytes(), kind


@every_path
@settings(max_examples=150, deadline=None)
@given(
    dtype=st.sampled_from([*TYPES, "u8"]),
    shape=st.tuples(st.integers(1, 80), st.integers(1, 120)),
    kind=st.sampled_from(KINDS),
    block_elements=st.sampled_from([0, 8, 16, 64, 200, 512, 1000, 4096, 8192, 32768]),
    seed=st.integers(0, 2**32),
)
def test_any_shape_type_and_size_of_blocks_is_decoded(
    path: NativePath, *, dtype: str, shape: tuple[int, int], kind: str, block_elements: int, seed: int
) -> None:
    frame = some_frames(dtype, (1, *shape), kind, seed)
    assert decode(stored(frame, block_elements)[0], frame.itemsize, path=path).tobytes() == frame.tobytes()


@dataclass
class Block:
    """An LZ4 block made sequence by sequence, and what it decodes to (LZ4 block format description)."""

    packed: bytearray = field(default_factory=bytearray)
    plain: bytearray = field(default_factory=bytearray)

    def add(self, literals: bytes, offset: int = 0, match: int = 0) -> None:
        self.packed.append(min(len(literals), 15) << 4 | (min(match - 4, 15) if match else 0))
        self.packed += self._more(len(literals)) + literals
        self.plain += literals
        if match:
            self.packed += struct.pack("<H", offset) + self._more(match - 4)
            for _ in range(match):
                self.plain.append(self.plain[-offset])

    @staticmethod
    def _more(length: int) -> bytes:
        return b"" if length < 15 else b"\xff" * ((length - 15) // 255) + bytes([(length - 15) % 255])

    def chunk(self) -> bytes:
        return struct.pack(">QII", len(self.plain), len(self.plain), len(self.packed)) + self.packed


def untransposed(planes: bytes | bytearray) -> bytes:
    bits = np.unpackbits(np.frombuffer(planes, np.uint8), bitorder="little").reshape(8, -1)
    return np.packbits(bits.T, bitorder="little").tobytes()


def some_block(seed: int) -> Block:
    source, block = random.Random(seed), Block()  # noqa: S311
    while len(block.plain) < 1500:
        literals = source.choice([bytes, source.randbytes])(source.choice([0, 1, 5, 13, 14, 15, 16, 31, 47, 280]))
        if not block.plain and not literals:
            continue
        span = len(block.plain) + len(literals)
        offset = source.choice([1, 1, 1, source.randint(1, min(span, 40)), source.randint(1, span)])
        block.add(literals, offset, source.choice([4, 5, 17, 18, 19, 20, 33, 64, 65, 97, 300, 700]))
    block.add(source.randbytes(5 + -(len(block.plain) + 5) % 8))
    return block


@every_path
def test_every_kind_of_lz4_sequence_is_decoded(path: NativePath) -> None:
    for seed in range(500):
        block = some_block(seed)
        assert decode(block.chunk(), 1, path=path).tobytes() == untransposed(block.plain), seed


@every_path
def test_blocks_after_one_another_leave_nothing_behind(path: NativePath) -> None:
    """The buffer is used again and remembers where it is zero: dense and empty blocks in every order."""
    generator = np.random.default_rng(5)
    blocks = np.zeros((64, 2048), np.uint32)
    for block in blocks:
        if generator.random() < 0.7:
            count = generator.integers(0, 2049)
            block[:count] = generator.integers(0, 2 ** generator.integers(1, 33), count)
    frame = blocks.reshape(1, 64, 2048)
    assert decode(stored(frame)[0], 4, path=path).tobytes() == frame.tobytes()


DAMAGES = {
    "nothing": lambda chunk: chunk[:0],
    "less than a header": lambda chunk: chunk[:11],
    "header only": lambda chunk: chunk[:12],
    "half": lambda chunk: chunk[: len(chunk) // 2],
    "last byte missing": lambda chunk: chunk[:-1],
    "size too large": lambda chunk: struct.pack(">Q", 2**63) + chunk[8:],
    "size of a part of an element": lambda chunk: struct.pack(">Q", 4001) + chunk[8:],
    "blocks of a part of eight elements": lambda chunk: chunk[:8] + struct.pack(">I", 36) + chunk[12:],
    "block longer than the chunk": lambda chunk: chunk[:12] + struct.pack(">I", 2**32 - 1) + chunk[16:],
    "block without bytes": lambda chunk: chunk[:12] + struct.pack(">I", 0) + chunk[16:],
    "noise": lambda chunk: chunk[:16] + np.random.default_rng(1).bytes(len(chunk) - 16),
}


@every_path
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_chunk_is_refused_with_a_sentence(path: NativePath, damage: str) -> None:
    chunk = stored(some_frames("u4", (1, 25, 41), "hot", 1))[0]
    with pytest.raises(ValueError, match=r"^(it|its header|a block of it) .+"):
        decode(DAMAGES[damage](chunk), 4, path=path)


@every_path
@pytest.mark.parametrize("element_size", [0, 17, 2**40])
def test_elements_of_impossible_size_are_refused(path: NativePath, element_size: int) -> None:
    with pytest.raises(ValueError, match="elements are none of 1 to 16 bytes"):
        decode(stored(some_frames("u4", (1, 25, 41), "hot", 1))[0], element_size, path=path)


@every_path
def test_match_that_reaches_before_the_block_is_refused(path: NativePath) -> None:
    block = Block(packed=bytearray(b"\x10a\x02\x00\x50bcdef"), plain=bytearray(16))
    with pytest.raises(ValueError, match="no LZ4"):
        decode(block.chunk(), 1, path=path)


def test_library_that_is_missing_or_another_one_is_not_used(tmp_path: Path) -> None:
    assert load(tmp_path / "missing.so") is None
    (tmp_path / "damaged.so").write_bytes(b"\x7fELF and no more")
    assert load(tmp_path / "damaged.so") is None
    assert load(Path("libc.so.6")) is None
    assert available(None) == ()


def test_wish_for_a_path_is_met_or_refused() -> None:
    both = (NativePath.PORTABLE, NativePath.AVX2)
    assert chosen(both, "") is NativePath.AVX2
    assert chosen(both, "portable") is NativePath.PORTABLE
    assert chosen(both, "off") is None
    assert chosen((), "") is None
    with pytest.raises(InvalidParameters, match="MPI_KERNELS_NATIVE=avx512: not possible here") as refused:
        chosen(both, "avx512")
    assert refused.value.remedy == "one of: portable, avx2, off"
    with pytest.raises(InvalidParameters):
        chosen((), "portable")


@needs_core
def test_portable_path_is_always_there() -> None:
    assert OBJECT.exists()
    assert NativePath.PORTABLE in PATHS
