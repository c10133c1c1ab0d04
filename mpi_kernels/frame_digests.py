"""Digests of what was read: one of each frame as it is stored, and the seal over all of them.

Only arithmetic on bytes that others have read. Why XXH3, and what the digests prove: ``docs/decisions/0009``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from mpi_kernels.kernel import Array, Column

ALGORITHM = "sha256(xxh3-128)"
DIGESTS = Column(
    group="frames", name="input_digest", shape=(16,), dtype=np.uint8, fill=0, attributes={"algorithm": "xxh3-128"}
)
"""Stand in the result beside each frame's own row."""

ROWS_AT_ONCE = 65536


@dataclass(frozen=True, kw_only=True)
class Seal:
    """What was read of an input, in a few bytes.

    Parameters
    ----------
    digest
        SHA-256, in hexadecimal, over the number (64 bits, little-endian) and the digest of each frame, in the frames'
        order; None while frames are still to come.
    frames
        How many there are.
    """

    state: Literal["pending", "sealed"]
    algorithm: str = ALGORITHM
    digest: str | None = None
    frames: int = 0


PENDING = Seal(state="pending")


Digest = xxhash.xxh3_128
"""Takes a frame's bytes part by part."""


def digest_of(parts: Iterable[bytes | memoryview]) -> bytes:
    """Return the digest of bytes that lie in several parts, one after the other."""
    digest = Digest()
    for part in parts:
        digest.update(part)
    return digest.digest()


def digest_of_values(frame: Array) -> bytes:
    """Return the digest of a frame's values as they lie in memory, in C order."""
    return digest_of([np.ascontiguousarray(frame).view(np.uint8).data])


def sealed(rows: Iterable[tuple[NDArray[np.int64], NDArray[np.uint8]]]) -> Seal:
    """Return the seal over frames.

    Parameters
    ----------
    rows
        Numbers of frames, ascending over all, with their digests, shape ``(n, 16)``.
    """
    digest, count = hashlib.sha256(), 0
    for frames, digests in rows:
        count += len(frames)
        numbers = np.ascontiguousarray(frames, "<i8").view(np.uint8).reshape(-1, 8)
        digest.update(np.ascontiguousarray(np.concatenate([numbers, digests], axis=1)).data)
    return Seal(state="sealed", digest=digest.hexdigest(), frames=count)
