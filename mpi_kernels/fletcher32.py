"""HDF5's Fletcher-32 checksum (HDF5 File Format Specification 3.0; ``H5_checksum_fletcher32`` in ``H5checksum.c``).

Two sums modulo 65535 over 16-bit words, high byte first: of the words, and of the first sums after each word.
"""

from __future__ import annotations

import numpy as np

_BYTES = 4
_BLOCK = 65536
"""Words whose products with their places are summed at a time; as float64 such sums are exact."""
_MODULUS = 65535


def without_checksum(data: bytes | memoryview) -> memoryview:
    """Return what stands before the checksum.

    Raises
    ------
    ValueError
        When it isn't that of the data.
    """
    content, stored = memoryview(data)[:-_BYTES], int.from_bytes(data[-_BYTES:], "little")
    computed = checksum(content)
    swapped = (computed & 0x00FF00FF) << 8 | (computed >> 8) & 0x00FF00FF  # what HDF5 1.6.2 and older wrote
    if len(data) < _BYTES or stored not in {computed, swapped}:
        raise ValueError("its checksum is wrong")
    return content


def checksum(data: bytes | memoryview) -> int:
    """Return the checksum of some bytes."""
    words = np.frombuffer(data, ">u2", count=len(data) // 2)
    if len(data) % 2:
        words = np.append(words, np.uint16(data[-1] << 8))
    first = second = 0
    for start in range(0, len(words), _BLOCK):
        block = words[start : start + _BLOCK].astype(np.float64)
        total = int(block.sum())
        second += len(block) * first + len(block) * total - int(block @ np.arange(len(block), dtype=np.float64))
        first += total
    return _folded(second) << 16 | _folded(first)


def _folded(total: int) -> int:
    """Return the remainder as HDF5's repeated carries give it: a multiple is 65535, and only nothing is 0."""
    return (total - 1) % _MODULUS + 1 if total else 0
