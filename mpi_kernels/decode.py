"""Raw chunks of an HDF5 dataset to arrays, outside the HDF5 library.

HDF5's own filter pipeline runs under a global lock and through a chunk cache; here stored bytes are decoded past it:
bitshuffle by the native core (LZ4 only) or else by dectris' decoder, if there is either, LZ4 by the latter. What this
module can't decode goes through HDF5 instead: see `Pipeline.decodable`. The filter numbers are those of HDF5
(``H5Zpublic.h``) and of The HDF Group's registry of filters.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mpi_kernels.errors import FrameUnreadable, UnusableInput
from mpi_kernels.fletcher32 import without_checksum
from mpi_kernels.native import binning, decoding
from mpi_kernels.native.library import PATH as NATIVE
from mpi_kernels.native.library import NativePath

__all__ = ["Filter", "Pipeline", "bitshuffle_lz4_decoder", "decompress"]

try:
    from dectris.compression import decompress
except ImportError:  # it has to be compiled, so it is an extra
    decompress = None

GZIP, SHUFFLE, FLETCHER32, LZ4, BITSHUFFLE = 1, 2, 3, 32004, 32008
_BITSHUFFLE_LZ4 = 2
_BITSHUFFLE_ZSTD = 3
_DECTRIS_NAMES = {"bitshuffle-lz4": "bslz4", "bitshuffle-zstd": "bszstd", "lz4": "lz4"}
_NAMES = {GZIP: "gzip", SHUFFLE: "shuffle", FLETCHER32: "fletcher32", LZ4: "lz4", BITSHUFFLE: "bitshuffle"}
_MOST_EXTRA = 64
"""Stored data may be larger than the chunk's array by what filters between them add: checksums."""


@dataclass(frozen=True)
class Filter:
    """One filter of a dataset's pipeline: its registered number and its client values."""

    number: int
    values: tuple[int, ...]
    name: str

    @property
    def label(self) -> str:
        """Name for people, e.g. ``bitshuffle-lz4``."""
        if self.number == BITSHUFFLE:
            return {_BITSHUFFLE_LZ4: "bitshuffle-lz4", _BITSHUFFLE_ZSTD: "bitshuffle-zstd"}.get(
                self._bitshuffle_codec, "bitshuffle"
            )
        return _NAMES.get(self.number, self.name or f"filter {self.number}")

    @property
    def decodable(self) -> bool:
        """Whether `Pipeline.decode` undoes this filter itself."""
        if self.number == BITSHUFFLE:
            known = decompress is not None and self._bitshuffle_codec in {_BITSHUFFLE_LZ4, _BITSHUFFLE_ZSTD}
            return known or self.known_to_core
        return self.number in {GZIP, SHUFFLE, FLETCHER32} or (self.number == LZ4 and decompress is not None)

    @property
    def known_to_core(self) -> bool:
        """Whether the native core is there and undoes this filter."""
        return NATIVE is not None and self.number == BITSHUFFLE and self._bitshuffle_codec == _BITSHUFFLE_LZ4

    @property
    def _bitshuffle_codec(self) -> int:
        # cd_values: major, minor version, element size, block size, codec (bitshuffle's bshuf_h5filter.c)
        return self.values[4] if len(self.values) > 4 else 0


@dataclass(frozen=True)
class Pipeline:
    """What stands between a stored chunk and its array.

    Parameters
    ----------
    filters
        In the order in which the writer applied them.
    dtype
        Type of the stored elements, byte order included.
    shape
        Shape of a chunk.
    """

    filters: tuple[Filter, ...]
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, dataset: h5py.Dataset) -> Pipeline:
        """Read the pipeline of a chunked dataset."""
        plist = dataset.id.get_create_plist()
        entries = (plist.get_filter(index) for index in range(plist.get_nfilters()))
        filters = tuple(Filter(number, tuple(values), name.decode()) for number, _flags, values, name in entries)
        return cls(filters, dataset.dtype, dataset.chunks)

    @property
    def label(self) -> str:
        """Compression for people, e.g. ``shuffle+gzip``; ``none`` without filters."""
        return "+".join(item.label for item in self.filters) or "none"

    @property
    def decodable(self) -> bool:
        """Whether `decode` can undo every filter."""
        return self.dtype.kind in "uif" and all(item.decodable for item in self.filters)

    @property
    def fusable(self) -> bool:
        """Whether the native core takes the chunks as they are: bitshuffle-LZ4 alone, of whole numbers it can sum."""
        return len(self.filters) == 1 and self.filters[0].known_to_core and binning.fits(self.dtype)

    def check_available(self, place: str) -> None:
        """Make sure that HDF5 knows every filter.

        Raises
        ------
        UnusableInput
            Naming the first filter that neither HDF5 nor hdf5plugin has.
        """
        for item in self.filters:
            if not item.decodable and not h5py.h5z.filter_avail(item.number):
                raise UnusableInput(
                    f"{place}: compressed with HDF5 filter {item.number} ({item.name or 'no name'}), unknown here",
                    remedy="install the plug-in and set HDF5_PLUGIN_PATH, or have the detector write bitshuffle-LZ4",
                )

    def may_be_unfiltered(self, raw: bytes, filter_mask: int) -> bool:
        """Whether a chunk is as long as its array although no filter is said to have been skipped."""
        return bool(self.filters) and not filter_mask and len(raw) == self._bytes

    def decode(self, raw: bytes, filter_mask: int) -> NDArray[Any]:
        """Return the chunk's array, `shape`, possibly read-only.

        Parameters
        ----------
        raw
            Stored bytes.
        filter_mask
            Bit `i` set: filter `i` was skipped when this chunk was written.

        Raises
        ------
        FrameUnreadable
            When the bytes aren't what the pipeline says.
        """
        data: bytes | memoryview = raw
        try:
            for index in reversed(range(len(self.filters))):
                if not filter_mask & (1 << index):
                    data = self._undo(self.filters[index], data)
            return np.frombuffer(data, dtype=self.dtype).reshape(self.shape)
        except (zlib.error, ValueError, RuntimeError, OSError, MemoryError, SystemError) as error:
            # the last two: dectris' decoder believes whatever size a damaged chunk begins with
            raise FrameUnreadable(f"chunk of {len(raw)} bytes is no {self.label} data: {error}") from error

    def _undo(self, item: Filter, data: bytes | memoryview) -> bytes | memoryview:
        size = self.dtype.itemsize
        if item.number == GZIP:
            return _gunzip(data, self._bytes + _MOST_EXTRA)
        if item.number == SHUFFLE:
            return _unshuffle(np.frombuffer(data, np.uint8), size)
        if item.number == FLETCHER32:
            return without_checksum(data)
        if (claimed := int.from_bytes(data[:8], "big")) > self._bytes + _MOST_EXTRA:
            raise ValueError(f"it says that it is of {claimed} bytes")
        if item.known_to_core and bitshuffle_lz4_decoder() is not decompress:
            return decoding.decode(bytes(data), size).data
        decoded: bytes = decompress(bytes(data), _DECTRIS_NAMES[item.label], elem_size=size)
        return decoded

    @cached_property
    def _bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def bitshuffle_lz4_decoder() -> object:
    """Return what undoes bitshuffle-LZ4: the native core's path, `decompress`, or None for HDF5's own filter.

    Without the processor's vector instructions dectris' decoder is the faster one.
    """
    if NATIVE is None or (NATIVE is NativePath.PORTABLE and decompress is not None):
        return decompress
    return NATIVE


def _gunzip(data: bytes | memoryview, most_bytes: int) -> bytes:
    stream = zlib.decompressobj()
    decoded = stream.decompress(data, most_bytes)  # of a damaged chunk no more than it can have
    if not stream.eof:
        raise ValueError("it ends early, or holds more than a chunk")
    return decoded


def _unshuffle(data: NDArray[np.uint8], element_size: int) -> bytes:
    """Undo HDF5's byte shuffle: all first bytes, all second bytes, …, then the rest that fills no element."""
    whole = len(data) // element_size * element_size
    return data[:whole].reshape(element_size, -1).T.tobytes() + data[whole:].tobytes()
