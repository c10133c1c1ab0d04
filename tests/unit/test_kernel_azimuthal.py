"""Sums over bins: exact whole numbers, markers left out, for every type of count."""

from __future__ import annotations

import numpy as np
import pytest

from mpi_kernels.azimuthal import ErrorModel, Integrator, PixelImages, Sums
from mpi_kernels.summing import Limits

SHAPE, BINS = (40, 50), 7


def images(*, offset: bool = False) -> PixelImages:
    random = np.random.default_rng(3)
    valid = random.random(SHAPE) > 0.1
    return PixelImages(
        radial=random.random(SHAPE) * 10,
        valid=valid,
        norm=np.where(valid, random.random(SHAPE) + 0.5, 0),
        offset=np.where(valid, random.random(SHAPE), 0) if offset else None,
        offset_variance=np.where(valid, random.random(SHAPE), 0) if offset else None,
    )


def integrator(of: PixelImages, dtype: str, error_model: ErrorModel = "poisson", **limits: float) -> Integrator:
    known = Limits.of(np.dtype(dtype), limits.get("saturation"), limits.get("underload"))
    return Integrator(of, bins=BINS, radial_range=(0, 9), limits=known, dtype=np.dtype(dtype), error_model=error_model)


def one_by_one(of: PixelImages, frame: np.ndarray, good: np.ndarray) -> list[int]:
    """Sum with Python's whole numbers, which have no limit."""
    sums = [0] * BINS
    width = 9 / BINS
    for radial, count, use in zip(of.radial.flat, frame.flat, (good & of.valid).flat, strict=True):
        if use and radial < 9:
            sums[min(int(radial / width), BINS - 1)] += int(count)
    return sums


def counts(dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a frame near the upper end of its type, with markers, and where it holds measurements."""
    kind = np.dtype(dtype)
    top = min(int(np.iinfo(kind).max), 2**45)
    frame = np.random.default_rng(5).integers(top // 2, top - 1, SHAPE).astype(kind)
    marker = -1 if kind.kind == "i" else np.iinfo(kind).max
    frame[::7, ::5] = marker
    return frame, frame != np.array(marker).astype(kind)


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", ">u2", ">u4", ">i4"])
def test_counts_near_the_upper_end_of_their_type_are_summed_exactly(dtype: str) -> None:
    frame, good = counts(dtype)
    sums = integrator(images(), dtype).sums(frame)
    assert sums.signal.tolist() == one_by_one(images(), frame, good)
    assert sums.variance is not None
    assert sums.variance.tolist() == sums.signal.tolist()


@pytest.mark.parametrize("dtype", ["u2", "u4", "i4", "f4"])
@pytest.mark.parametrize("value", [0, 1, 200])
def test_limits_are_the_same_for_every_type(dtype: str, value: int) -> None:
    frame = np.full(SHAPE, value, dtype)
    frame[3] = 50
    sums = integrator(images(), dtype, saturation=100.5, underload=0.5).sums(frame)
    good = (frame >= 0.5) & (frame <= 100.5)
    assert sums.signal.tolist() == one_by_one(images(), frame, good)


def test_nan_and_infinite_pixels_are_left_out_of_counts_norm_and_variance() -> None:
    frame = np.random.default_rng(1).random(SHAPE).astype("f4")
    broken = frame.copy()
    broken[5:9, 3:30] = np.nan
    broken[12, :10], broken[13, :10] = np.inf, -np.inf
    left = np.isfinite(broken)
    of = images(offset=True)
    without = PixelImages(of.radial, of.valid & left, of.norm * left, of.offset * left, of.offset_variance * left)
    expected = integrator(without, "f4").sums(np.where(left, broken, 0).astype("f4"))
    found = integrator(of, "f4").sums(broken)
    for name in ("signal", "norm", "variance"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-12)


def test_bin_whose_pixels_are_all_bad_in_one_frame_has_no_value_in_that_frame_only() -> None:
    of = images(offset=True)
    integrate = integrator(of, "u4")
    frame = np.full(SHAPE, 5, "u4")
    broken = frame.copy()
    broken[(of.radial >= 9 / BINS) & (of.radial < 18 / BINS)] = 2**32 - 1
    with np.errstate(all="raise"):
        pattern = integrate.integrate(broken)
    assert np.flatnonzero(np.isnan(pattern.intensity)).tolist() == [1]
    assert pattern.sigma is not None
    assert np.flatnonzero(np.isnan(pattern.sigma)).tolist() == [1]
    assert np.isfinite(integrate.integrate(frame).intensity).all()


@pytest.mark.parametrize("dtype", ["u2", "u4", "u8", "i4", "f4", ">u4"])
@pytest.mark.parametrize("error_model", ["poisson", "pyfai", "none"])
@pytest.mark.parametrize("offset", [False, True])
def test_sums_are_bit_for_bit_those_of_float64_arithmetic_pixel_by_pixel(
    dtype: str, error_model: ErrorModel, offset: bool
) -> None:
    of = images(offset=offset)
    random = np.random.default_rng(8)
    for _ in range(3):  # one after the other: nothing of a frame stays behind
        frame = random.poisson(3, SHAPE).astype(dtype)
        marker = {"u": np.iinfo(frame.dtype).max if frame.dtype.kind == "u" else 0, "i": -1, "f": np.nan}
        frame[random.random(SHAPE) < 0.02] = marker[frame.dtype.kind]
        found = integrator(of, dtype, error_model).sums(frame)
        expected = plainly(of, frame, error_model)
        for name in ("signal", "norm", "variance"):
            mine, theirs = getattr(found, name), getattr(expected, name)
            assert (mine is None) == (theirs is None), name
            assert mine is None or mine.tobytes() == theirs.tobytes(), name


def plainly(of: PixelImages, frame: np.ndarray, error_model: ErrorModel) -> Sums:
    """Sum in float64 over all pixels, then take off what the bad ones had put in."""
    edges = np.linspace(0, 9, BINS + 1)
    inside = of.valid & (of.radial >= 0) & (of.radial < edges[-1])
    bins = np.where(inside, np.minimum((of.radial / (9 / BINS)).astype(int), BINS - 1), BINS).ravel()
    bad = (np.isnan(frame) | (frame < 0)) if frame.dtype.kind in "if" else frame == np.iinfo(frame.dtype).max
    bad = bad.ravel() & (bins < BINS)

    def binned(values: np.ndarray, where: np.ndarray | slice = slice(None)) -> np.ndarray:
        return np.bincount(bins[where], values.ravel()[where], BINS + 1)[:BINS]

    def without_bad(values: np.ndarray | None) -> np.ndarray | float:
        return 0.0 if values is None else binned(values) - binned(values, np.flatnonzero(bad))

    measured = np.where(bad.reshape(SHAPE), 0, frame).astype(float)
    signal = binned(measured) - without_bad(of.offset)
    if error_model == "none":
        return Sums(signal, np.asarray(without_bad(of.norm)), None)
    variance = measured if error_model == "poisson" else np.where(bad.reshape(SHAPE), 0, np.maximum(measured, 1))
    return Sums(signal, np.asarray(without_bad(of.norm)), binned(variance) + without_bad(of.offset_variance))
