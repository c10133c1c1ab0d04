"""Pixels to radial bins, each with a share of the pixel: whole, by bounding box, or by the pixel's outline. Pure.

A share (weight) is a whole number of 1/65535, so sums of counts times weights are whole numbers: exact, and the same
for every order, batch and number of ranks. The weights of a pixel that lies inside the axis add up to exactly 65535;
what sticks out of the axis is dropped. Masked pixels have no pairs.

The splitting is pyFAI's (Kieffer & Ashiotis, arXiv:1412.6367; Ashiotis et al., J. Appl. Cryst. 48 (2015) 510-519):

bounding box
    The pixel spreads evenly over centre ± the largest distance of a corner from the centre, on the radial axis.
full
    The pixel's outline is the quadrilateral of its corners on the plane of radial coordinate and azimuthal angle, with
    straight sides; a bin has the share of its area that lies there.

Two things differ from pyFAI. It puts what lies outside the axis into the first and last bin (bounding box), or scales
what lies inside up to a whole pixel (full). And a pixel that the beam goes through has corners all around it and no
outline on that plane: here it spreads evenly from the beam to its furthest corner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Values: TypeAlias = NDArray[np.float64]
Share: TypeAlias = Callable[[NDArray[np.intp], Values], Values]
"""Pixels of a block, and for each a position in bins: the share of the pixel that lies below it."""

WEIGHT_ONE = 65535
"""The weight of a whole pixel; the largest uint16."""

_BLOCK = 65536
"""Pixels that are split at a time, about; what is computed of them takes some 50 megabytes."""

_DIGIT = 256
"""Counts are summed in digits of this base where one sum of float64 wouldn't be exact."""


@dataclass(frozen=True)
class Pairs:
    """Which bins each pixel counts in, and by how much: a sparse matrix by pixel.

    Parameters
    ----------
    starts
        Pixel p (row by row) has the pairs ``starts[p]`` to ``starts[p + 1]``; int64, shape ``(y·x + 1,)``.
    bin_of
        Bin of each pair; uint32.
    weights
        Share of the pixel, in 1/65535 and never 0; uint16.
    squares
        The weight's square, rounded, in 1/65535; uint16. For variances.
    """

    starts: NDArray[np.int64]
    bin_of: NDArray[np.uint32]
    weights: NDArray[np.uint16]
    squares: NDArray[np.uint16]

    @property
    def pixels(self) -> int:
        """Number of pixels, with or without a bin."""
        return len(self.starts) - 1

    def of(self, pixels: NDArray[np.intp]) -> Pairs:
        """Return the pairs of these pixels only, which become pixel 0, 1 and so on."""
        lengths = self.starts[pixels + 1] - self.starts[pixels]
        starts = _starts(lengths)
        pairs = np.arange(starts[-1]) + np.repeat(self.starts[pixels] - starts[:-1], lengths)
        return Pairs(starts, self.bin_of[pairs], self.weights[pairs], self.squares[pairs])

    def spread(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return each pair's pixel value, of values of shape ``(y·x,)``."""
        return np.repeat(values, np.diff(self.starts))


# ------------------------------------------------------------------------------------------------------- splitting


def whole(bin_of: NDArray[np.intp], bins: int) -> Pairs:
    """Return pairs that give each pixel whole to its bin, shape ``(y·x,)``; `bins` stands for none."""
    inside = bin_of < bins
    one = np.full(np.count_nonzero(inside), WEIGHT_ONE, np.uint16)
    return Pairs(_starts(inside.astype(np.int64)), bin_of[inside].astype(np.uint32), one, one)


def bounding_box(radial: Values, corners: Values, valid: NDArray[np.bool_], edges: Values) -> Pairs:
    """Return pairs that spread each pixel evenly over its bounding box.

    Parameters
    ----------
    radial
        Radial coordinate of the pixel centres, shape ``(y, x)``.
    corners
        Radial coordinate of the pixel corners, shape ``(y + 1, x + 1)``.
    valid
        False where a pixel is masked, shape ``(y, x)``.
    edges
        Of equally wide bins, shape ``(bins + 1,)``. Where they begin at 0, what a box at the beam has below 0 counts
        in the first bin.
    """

    def extent(rows: slice) -> _Extent:
        limits = box_limits(radial[rows], corners[rows.start : rows.stop + 1])
        low, high = (_positions(limit, edges).ravel() for limit in limits)
        return _Extent(low, high, _even(low, high))

    return _split(extent, valid, len(edges) - 1, from_zero=bool(edges[0] == 0))


def full(corners: Values, azimuth: Values, valid: NDArray[np.bool_], edges: Values) -> Pairs:
    """Return pairs that spread each pixel over the area of its outline.

    Parameters
    ----------
    corners, azimuth
        Radial coordinate and azimuthal angle (radians) of the pixel corners, shape ``(y + 1, x + 1)``.
    valid, edges
        As in `bounding_box`.
    """

    def extent(rows: slice) -> _Extent:
        lines = slice(rows.start, rows.stop + 1)
        sides = _four(_positions(corners[lines], edges))
        angles, around_beam = _unwrapped(_four(azimuth[lines]))
        low, high = sides.min(axis=0), sides.max(axis=0)
        low[around_beam] = _positions(np.zeros(1), edges)
        return _Extent(low, high, _outline(sides, angles, _even(low, high), around_beam | _crosses(sides, angles)))

    return _split(extent, valid, len(edges) - 1)


def box_limits(radial: Values, corners: Values) -> tuple[Values, Values]:
    """Return where each pixel's bounding box begins and ends, shapes ``(y, x)``; at the beam it may begin below 0."""
    reach = np.abs(_four(corners) - radial.ravel()).max(axis=0).reshape(radial.shape)
    return radial - reach, radial + reach


def outline_limits(corners: Values) -> tuple[Values, Values]:
    """Return where each pixel's outline begins and ends, shapes ``(y, x)``."""
    four = _four(corners)
    shape = (corners.shape[0] - 1, corners.shape[1] - 1)
    return four.min(axis=0).reshape(shape), four.max(axis=0).reshape(shape)


def _four(corners: Values) -> Values:
    """Return the corners of each pixel in the order of its outline, shape ``(4, y·x)``."""
    four = corners[:-1, :-1], corners[1:, :-1], corners[1:, 1:], corners[:-1, 1:]
    return np.stack([corner.ravel() for corner in four])


def _positions(radial: Values, edges: Values) -> Values:
    """Return radial coordinates in bins from the lower end of the axis."""
    low, high = float(edges[0]), float(edges[-1])
    return np.asarray((radial - low) / ((high - low) / (len(edges) - 1)))


def _unwrapped(azimuth: Values) -> tuple[Values, NDArray[np.bool_]]:
    """Return the corners' angles from each pixel's first corner on, and which pixels the beam goes through.

    Around the corners of all other pixels the steps from one angle to the next add up to nothing, also across ±180°.
    """
    steps = np.roll(azimuth, -1, axis=0) - azimuth
    steps -= 2 * np.pi * np.rint(steps / (2 * np.pi))
    angles = np.zeros_like(azimuth)
    np.cumsum(steps[:-1], axis=0, out=angles[1:])
    return angles, np.abs(steps.sum(axis=0)) > np.pi


def _crosses(sides: Values, angles: Values) -> NDArray[np.bool_]:
    """Return which outlines cross themselves or have no area: both diagonals have their corners on one side."""

    def turn(one: int, two: int, three: int) -> Values:
        along, across = sides[two] - sides[one], angles[two] - angles[one]
        return np.asarray(along * (angles[three] - angles[one]) - across * (sides[three] - sides[one]))

    return np.asarray((turn(0, 1, 2) * turn(0, 2, 3) <= 0) & (turn(0, 1, 3) * turn(1, 2, 3) <= 0))


def _even(low: Values, high: Values) -> Share:
    """Return the share below a position of pixels that spread evenly."""
    width = high - low

    def share(pixels: NDArray[np.intp], position: Values) -> Values:
        extent = width[pixels]
        passed = position - low[pixels]
        part = np.divide(passed, extent, out=(passed > 0).astype(np.float64), where=extent > 0)
        return np.clip(part, 0, 1)

    return share


def _outline(sides: Values, angles: Values, even: Share, without_outline: NDArray[np.bool_]) -> Share:
    """Return the share below a position of pixels with these corners, of shape ``(4, pixels)``."""
    area = _area_below(sides, angles, np.full(sides.shape[1], np.inf))
    area[without_outline] = 1

    def share(pixels: NDArray[np.intp], position: Values) -> Values:
        part = _area_below(sides[:, pixels], angles[:, pixels], position) / area[pixels]
        return np.clip(np.where(without_outline[pixels], even(pixels, position), part), 0, 1)

    return share


def _area_below(sides: Values, angles: Values, position: Values) -> Values:
    """Return the outline's area below a position, with its sign: the sum of those between the sides and the axis."""
    area = np.zeros(len(position))
    for corner in range(4):
        begin, end, angle = sides[corner], sides[corner - 3], angles[corner]
        turn = angles[corner - 3] - angle
        slope = np.divide(turn, end - begin, out=np.zeros_like(turn), where=end != begin)
        first, last = np.minimum(begin, position), np.minimum(end, position)
        area += (last - first) * (angle + slope * ((first + last) / 2 - begin))
    return area


class _Extent(NamedTuple):
    """From where to where the pixels of a block reach, in bins, and what share of them lies below a position."""

    low: Values
    high: Values
    share: Share


def _split(
    extent: Callable[[slice], _Extent], valid: NDArray[np.bool_], bins: int, *, from_zero: bool = False
) -> Pairs:
    """Return the pairs of all pixels, computed rows by rows.

    `from_zero` says that nothing can lie below the axis: what does by its box counts in the first bin.
    """
    lengths, bin_of, weights = [], [], []
    for rows in _blocks(valid.shape):
        low, high, share = extent(rows)
        pixels = np.flatnonzero(valid[rows].ravel() & (high >= 0) & (low < bins))
        first = np.maximum(low[pixels], 0).astype(np.intp)
        count = np.minimum(high[pixels], bins - 1).astype(np.intp) - first + 1
        pixel = np.repeat(pixels, count)
        number = np.arange(len(pixel)) + np.repeat(first - (np.cumsum(count) - count), count)
        below, above = share(pixel, number.astype(np.float64)), share(pixel, number + 1.0)
        if from_zero:
            below[number == 0] = 0
        # rounded where bins meet, so that the weights of a pixel add up
        weight = np.rint(above * WEIGHT_ONE) - np.rint(below * WEIGHT_ONE)
        kept = weight > 0
        lengths.append(np.bincount(pixel[kept], minlength=len(low)))
        bin_of.append(number[kept].astype(np.uint32))
        weights.append(weight[kept].astype(np.uint16))
    weight_of = np.concatenate(weights)
    squares = np.rint(weight_of.astype(np.float64) ** 2 / WEIGHT_ONE).astype(np.uint16)
    return Pairs(_starts(np.concatenate(lengths)), np.concatenate(bin_of), weight_of, squares)


def _blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Yield rows, some pixels at a time."""
    step = max(1, _BLOCK // shape[1])
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


def _starts(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


# ------------------------------------------------------------------------------------------------------------ sums


def weighted_sums(counts: NDArray[Any], pairs: Pairs, bins: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return per bin the exact sums of weight times count and of square times count, in 1/65535.

    Parameters
    ----------
    counts
        Whole numbers from 0 on, shape ``(y, x)``; 0 in pixels that are left out.

    Raises
    ------
    OverflowError
        When a sum reaches 2⁶³: more than 1.4e14 counts in one bin.
    """
    flat = counts.reshape(-1)
    return _whole_sum(flat, pairs, pairs.weights, bins), _whole_sum(flat, pairs, pairs.squares, bins)


def _whole_sum(counts: NDArray[Any], pairs: Pairs, factors: NDArray[np.uint16], bins: int) -> NDArray[np.int64]:
    if float(counts.sum(dtype=np.float64)) * WEIGHT_ONE < 2**52:  # then every sum of float64 is exact
        return _sum(pairs.spread(counts), pairs, factors, bins).astype(np.int64)
    upper = _whole_sum(counts // _DIGIT, pairs, factors, bins)
    lower = _whole_sum(counts % _DIGIT, pairs, factors, bins)
    if (upper * float(_DIGIT) + lower).max() >= 2**63:
        raise OverflowError("more counts in one bin than 64 bits can hold, times 65535")
    return upper * _DIGIT + lower


def value_sums(values: NDArray[Any], pairs: Pairs, bins: int, *, squared: bool = False) -> Values:
    """Return per bin the sum of share (or its square) times value; values of shape ``(y, x)`` that needn't be whole.

    They are added in the order of the pixels, so the result is always the same.
    """
    factors = pairs.squares if squared else pairs.weights
    return _sum(pairs.spread(values.reshape(-1)), pairs, factors, bins) / WEIGHT_ONE


def _sum(values: NDArray[Any], pairs: Pairs, factors: NDArray[np.uint16], bins: int) -> Values:
    products = values.astype(np.float64) * factors
    return np.asarray(np.bincount(pairs.bin_of, products, bins), np.float64)


def azimuthal_variance(signal: Values, norm: Values, pairs: Pairs, bins: int) -> Values:
    """Return per bin the variance of the signal's sum, from the scatter of its pixels around their mean.

    Σ w² (S - N I)² with weight w, signal S, normalisation N and mean I = Σ w S / Σ w N; √variance / Σ w N is then the
    standard deviation of I, pyFAI's error model ``azimuthal``. pyFAI's compiled engines accumulate it pixel by pixel
    around a running mean: the same where all w N of the bin are equal, dependent on the pixels' order else. This is
    the sum about the final mean.

    Parameters
    ----------
    signal, norm
        Counts less what is subtracted, and F Ω P, shape ``(y, x)``; both 0 in pixels that are left out.
    """
    total, weight = value_sums(signal, pairs, bins), value_sums(norm, pairs, bins)
    mean = np.divide(total, weight, out=np.zeros(bins), where=weight > 0)
    rest = pairs.spread(signal.reshape(-1)) - pairs.spread(norm.reshape(-1)) * mean[pairs.bin_of]
    return _sum(rest * rest, pairs, pairs.squares, bins) / WEIGHT_ONE
