"""Frames to the bytes of their HDF5 chunk, so that writing one is a plain append of bytes.

The filter pipeline itself does it, on a file in memory: whatever HDF5 would have stored is what is returned.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import TracebackType
from typing import Any, Self

import h5py
import hdf5plugin

from orchestrator.simulator.frames import Frame, FrameSource
from orchestrator.simulator.settings import Compression

_KEPT_BYTES = 512 * 2**20

FILTERS: Mapping[Compression, Mapping[str, Any]] = {
    Compression.BITSHUFFLE_LZ4: dict(hdf5plugin.Bitshuffle(cname="lz4")),
    Compression.GZIP: {"compression": "gzip", "compression_opts": 4},
    Compression.NONE: {},
}


class FrameEncoder:
    """Compresses the frames of a source, each once, and keeps them (up to 512 MiB before compression)."""

    def __init__(self, source: FrameSource, compression: Compression) -> None:
        self._source = source
        self._file = h5py.File("encoder", "w", driver="core", backing_store=False)
        self._chunk = self._file.create_dataset(
            "chunk", shape=source.shape, chunks=source.shape, dtype=source.dtype, **FILTERS[compression]
        )
        frame_bytes = source.shape[0] * source.shape[1] * source.dtype.itemsize
        self._encoded = lru_cache(maxsize=max(1, _KEPT_BYTES // frame_bytes))(self._encode)
        self.keeps = max(1, _KEPT_BYTES // frame_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def encoded(self, index: int) -> bytes:
        """Return the chunk of scan frame `index`."""
        return self._encoded(index % self._source.distinct)

    def prepare(self, number: int) -> None:
        """Encode what a scan of `number` frames will need, as far as it can be kept."""
        for index in range(min(number, self._source.distinct, self.keeps)):
            self.encoded(index)

    def _encode(self, number: int) -> bytes:
        frame: Frame = self._source.frame(number)
        self._chunk[...] = frame
        self._chunk.flush()
        _, chunk = self._chunk.id.read_direct_chunk((0, 0))
        return bytes(chunk)
