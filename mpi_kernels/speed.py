"""How fast frames are decoded and integrated here, each way that is possible, measured on frames that are made up.

The frames are like those of an Eiger 1M: uint32, 1028 × 1062 pixels, Poisson background and rings, gaps between
modules, a few dead pixels; each one a chunk of bitshuffle-LZ4, in memory. All ways must give the same sums: that is
checked.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import h5py
import hdf5plugin
import numpy as np
from numpy.typing import NDArray

from mpi_kernels.decode import decompress
from mpi_kernels.jit import sum_whole_pixels
from mpi_kernels.native.binning import Binner
from mpi_kernels.native.decoding import decode
from mpi_kernels.native.library import PATH, PATHS, NativePath
from mpi_kernels.summing import Limits, WholePixels

SHAPE = (1028, 1062)
BINS = 1000
DTYPE = np.dtype("<u4")
ENOUGH_S = 1.5
"""Seconds of measuring, after which no further round of all ways begins."""
LEAST_ROUNDS = 3

_FRAMES = 16
_DIFFERENT = 4
_RINGS_PX = (90, 180, 270, 360, 450)
_PER_RING, _RING_WIDTH_PX, _BACKGROUND = 40.0, 4.0, 1.0
_MODULE_PX, _GAP_PX = 514, 38
_DEAD = 20

Sums = tuple[NDArray[np.int64], NDArray[np.intp]]
"""Of a frame: the sum per bin, and which pixels were left out."""


def native_way(path: NativePath) -> str:
    """Return the name of the way through the compiled core by one of its paths."""
    return f"native core ({path.name.lower()})"


def other_way(*, dectris: bool, numba: bool) -> str:
    """Return the name of a way without the compiled core."""
    return f"{'dectris-compression' if dectris else 'HDF5 filters'} + {'numba' if numba else 'numpy'}"


def way_taken() -> str:
    """Return the way that kernels take in this process."""
    if PATH is not None:
        return native_way(PATH)
    return other_way(dectris=decompress is not None, numba=sum_whole_pixels is not None)


@dataclass(frozen=True, kw_only=True)
class Speed:
    """One way, measured.

    Parameters
    ----------
    decode_fps, integrate_fps
        Medians, frames per second of one core's time: from stored chunks to frames, and from them to sums per bin.
    same_sums
        Whether its sums are those of numpy over frames that HDF5 decoded.
    """

    way: str
    decode_fps: float
    integrate_fps: float
    same_sums: bool


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way from chunks to sums; both do all frames."""

    name: str
    decode: Callable[[], object]
    integrate: Callable[[], Sequence[Sums]]


def measure(*, enough_s: float = ENOUGH_S) -> tuple[Speed, ...]:
    """Measure every way that is possible here, the fastest first.

    The ways take turns, and the time of the processor is counted: what else the machine does meanwhile meets them all,
    and none of them much.
    """
    frames = made_up_frames(_DIFFERENT, seed=4)
    with stored([frames[index % _DIFFERENT] for index in range(_FRAMES)]) as (dataset, chunks):
        found = ways(dataset, chunks)
        expected = found[-1].integrate()
        same = {way.name: _agree(way.integrate(), expected) for way in found}  # has numba compile, too
        rates = _rates(found, enough_s)
    speeds = [
        Speed(way=way.name, decode_fps=rates[way.name][0], integrate_fps=rates[way.name][1], same_sums=same[way.name])
        for way in found
    ]
    return tuple(sorted(speeds, key=lambda speed: -speed.integrate_fps))


def ways(dataset: h5py.Dataset, chunks: Sequence[bytes]) -> list[Way]:
    """Return the ways that are possible here; the last one always is, and needs nothing of ours but numpy."""
    bins, limits = bin_of_pixels(), Limits.of(DTYPE, None)
    pixels = WholePixels(bins, bins=BINS, limits=limits, dtype=DTYPE)
    found = [_native(path, bins, limits, chunks) for path in sorted(PATHS, reverse=True)]
    decoders: dict[bool, Callable[[], Iterator[NDArray[Any]]]] = {False: lambda: (frame.ravel() for frame in dataset)}
    if decompress is not None:
        decoders[True] = lambda: (np.frombuffer(decompress(chunk, "bslz4", elem_size=4), DTYPE) for chunk in chunks)
    summers: dict[bool, Callable[[NDArray[Any]], Sums]] = {False: partial(_by_numpy, pixels)}
    if sum_whole_pixels is not None:
        of_numba = bins.astype(np.uint32)
        summers[True] = lambda frame: sum_whole_pixels(frame, of_numba, BINS, limits.whole)
    for dectris in sorted(decoders, reverse=True):
        for numba in sorted(summers, reverse=True):
            name = other_way(dectris=dectris, numba=numba)
            found.append(_in_two_steps(name, decoders[dectris], summers[numba]))
    return found


def _native(path: NativePath, bins: NDArray[np.intp], limits: Limits, chunks: Sequence[bytes]) -> Way:
    low, high = limits.whole
    binner = Binner(bins, bins=BINS, dtype=DTYPE, low=low, high=high, path=path)

    def integrate() -> Sequence[Sums]:
        sums = binner.sums(chunks)
        return [(counts, excluded.astype(np.intp)) for counts, excluded in zip(sums.counts, sums.excluded, strict=True)]

    def decode_all() -> None:
        for chunk in chunks:
            decode(chunk, DTYPE.itemsize, path=path)

    return Way(name=native_way(path), decode=decode_all, integrate=integrate)


def _in_two_steps(
    name: str, frames: Callable[[], Iterator[NDArray[Any]]], summed: Callable[[NDArray[Any]], Sums]
) -> Way:
    def decode_all() -> None:
        for _ in frames():
            pass

    return Way(name=name, decode=decode_all, integrate=lambda: [summed(frame) for frame in frames()])


def _by_numpy(pixels: WholePixels, frame: NDArray[Any]) -> Sums:
    counts = pixels.by_numpy(frame)
    return counts.signal.astype(np.int64), counts.excluded


def _agree(found: Sequence[Sums], expected: Sequence[Sums]) -> bool:
    return all(
        np.array_equal(sums, other_sums) and np.array_equal(excluded, other_excluded)
        for (sums, excluded), (other_sums, other_excluded) in zip(found, expected, strict=True)
    )


def _rates(found: Sequence[Way], enough_s: float) -> Mapping[str, tuple[float, float]]:
    """Return for each way the medians of frames decoded and integrated per second."""
    taken_s: dict[str, tuple[list[float], list[float]]] = {way.name: ([], []) for way in found}
    began_s, rounds = time.monotonic(), 0
    while rounds < LEAST_ROUNDS or time.monotonic() - began_s < enough_s:
        for way in found:
            decoding, integrating = taken_s[way.name]
            decoding.append(_seconds_of(way.decode))
            integrating.append(_seconds_of(way.integrate))
        rounds += 1
    return {
        name: (_FRAMES / statistics.median(decoding), _FRAMES / statistics.median(integrating))
        for name, (decoding, integrating) in taken_s.items()
    }


def _seconds_of(action: Callable[[], object]) -> float:
    began_s = time.thread_time()
    action()
    return time.thread_time() - began_s


def made_up_frames(number: int, *, seed: int) -> NDArray[np.uint32]:
    """Return frames of shape ``(number, y, x)``; the largest value marks the gaps and the dead pixels."""
    generator, radius = np.random.default_rng(seed), _radius_px()
    expected = np.full(SHAPE, _BACKGROUND)
    for ring in _RINGS_PX:
        expected += _PER_RING * np.exp(-(((radius - ring) / _RING_WIDTH_PX) ** 2) / 2)
    frames = generator.poisson(expected, (number, *SHAPE)).astype(DTYPE)
    frames[:, _gaps()] = np.iinfo(DTYPE).max
    frames.reshape(number, -1)[:, generator.integers(0, radius.size, _DEAD)] = np.iinfo(DTYPE).max
    return frames


def bin_of_pixels() -> NDArray[np.intp]:
    """Return the bin of each pixel by its distance from the middle, shape ``(y·x,)``; gaps have none."""
    radius = _radius_px()
    bins: NDArray[np.intp] = (radius * (BINS / (radius.max() + 1))).astype(np.intp)
    bins[_gaps()] = BINS
    return bins.ravel()


def _radius_px() -> NDArray[np.float64]:
    rows, columns = np.ogrid[: SHAPE[0], : SHAPE[1]]
    return np.asarray(np.hypot(rows - SHAPE[0] / 2, columns - SHAPE[1] / 2), np.float64)


def _gaps() -> NDArray[np.bool_]:
    rows = np.arange(SHAPE[0]) % (_MODULE_PX + _GAP_PX) >= _MODULE_PX
    return np.broadcast_to(rows[:, None], SHAPE)


@contextmanager
def stored(frames: Sequence[NDArray[Any]]) -> Iterator[tuple[h5py.Dataset, list[bytes]]]:
    """Give a dataset in memory that has each frame as a chunk of bitshuffle-LZ4, and the chunks themselves.

    It keeps no decoded chunk, so that reading a frame means decoding it.
    """
    with h5py.File("frames", "w", driver="core", backing_store=False, rdcc_nbytes=0) as file:
        shape = (len(frames), *SHAPE)
        dataset = file.create_dataset("data", shape, DTYPE, chunks=(1, *SHAPE), **hdf5plugin.Bitshuffle())
        for index, frame in enumerate(frames):
            dataset[index] = frame
        yield dataset, [dataset.id.read_direct_chunk((index, 0, 0))[1] for index in range(len(frames))]
