"""Stored chunks for the tests of the native core, and what must come out of them, by numpy."""

from __future__ import annotations

from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
from numpy.typing import NDArray

from mpi_kernels.native.library import PATHS, NativePath

needs_core = pytest.mark.skipif(
    not PATHS, reason="NOT TESTED: the native core isn't compiled (no C compiler when the package was installed)"
)
every_path = pytest.mark.parametrize(
    "path",
    [
        pytest.param(
            path,
            id=path.name.lower(),
            marks=pytest.mark.skipif(
                path not in PATHS, reason=f"NOT TESTED: {path.name} isn't compiled or not possible"
            ),
        )
        for path in NativePath
    ],
)
TYPES = ("u1", "i1", "u2", "i2", "u4", "i4")


def stored(frames: NDArray[Any], block_elements: int = 0) -> list[bytes]:
    """Return the chunks that HDF5's own filter makes of frames, shape ``(frames, y, x)``."""
    with h5py.File("chunks", "w", driver="core", backing_store=False) as file:
        options = hdf5plugin.Bitshuffle(nelems=block_elements)
        dataset = file.create_dataset("data", data=frames, chunks=(1, *frames.shape[1:]), **options)
        return [dataset.id.read_direct_chunk((index, 0, 0))[1] for index in range(len(frames))]


def some_frames(dtype: str, shape: tuple[int, ...], kind: str, seed: int) -> NDArray[Any]:
    """Return frames as detectors make them, and as they don't."""
    generator, span = np.random.default_rng(seed), np.iinfo(dtype)
    if kind == "any value":
        return generator.integers(span.min, span.max, shape, dtype=dtype, endpoint=True)
    if kind == "zeros":
        return np.zeros(shape, dtype)
    frames = generator.poisson(1.5 if kind == "sparse" else 90, shape).clip(max=min(span.max, 2**62)).astype(dtype)
    if kind == "sentinels":
        frames[generator.random(shape) < 0.02] = span.max
        frames[generator.random(shape) < 0.02] = span.min
        frames[generator.random(shape) < 0.002] = span.max - 1
    return frames


KINDS = ("any value", "zeros", "sparse", "hot", "sentinels")


def binned(
    frame: NDArray[Any], bin_of: NDArray[Any], bins: int, low: int | None, high: int | None
) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
    """Return one frame's sums per bin, and its pixels with a bin and a value outside the limits."""
    values = frame.ravel().astype(np.int64)
    good = np.ones(values.size, bool)
    if low is not None:
        good &= values >= low
    if high is not None:
        good &= values <= high
    sums = np.zeros(bins + 1, np.int64)
    np.add.at(sums, bin_of[good], values[good])
    return sums[:bins], np.flatnonzero(~good & (bin_of < bins))
