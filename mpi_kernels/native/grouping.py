"""Which pixels count into which bin, sorted as the compiled core adds them: by segment and bin, in groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PADDING = 64
"""``NATIVE_PADDING`` of ``native.h``."""
SEGMENT = 2048
"""``NATIVE_SEGMENT``: pixels that are sorted by bin together."""
GROUP = 4
"""``NATIVE_GROUP``: pixels that are added together."""
LARGEST_FACTOR = int(np.iinfo(np.int16).max)

_RECORD = np.dtype([("bin", "<u4"), ("place", "<u2", GROUP)])


@dataclass(frozen=True)
class Groups:
    """The arrays of ``struct native_binning`` that name pixels by group.

    Parameters
    ----------
    records
        ``struct native_group``, shape ``(groups,)``.
    factors
        What their pixels are multiplied with, int16, shape ``(groups, sets, GROUP)``.
    first
        First group of each segment, and the number of groups, int64, shape ``(segments + 1,)``.
    most
        Largest sum of factors that a bin has in a segment, uint32, shape ``(segments,)``.
    """

    records: NDArray[Any]
    factors: NDArray[np.int16]
    first: NDArray[np.int64]
    most: NDArray[np.uint32]


def grouped(
    pixel: NDArray[np.integer[Any]],
    bin_of: NDArray[np.integer[Any]],
    factors: NDArray[np.integer[Any]],
    *,
    pixels: int,
    bins: int,
) -> Groups:
    """Return the groups of pairs of a pixel and a bin.

    Parameters
    ----------
    pixel, bin_of
        Of each pair, pixels ascending, shape ``(pairs,)``.
    factors
        Of each pair, shape ``(sets, pairs)``, 0 to 65535. A pair with a larger one than `LARGEST_FACTOR` is taken as
        several.
    pixels, bins
        How many there are; the last ``pixels % 8`` pixels are in no group.
    """
    planar = pixels // 8 * 8
    segments = -(-planar // SEGMENT)
    chosen = np.flatnonzero((pixel < planar) & factors.any(axis=0))
    chosen, factors = _divided(chosen, factors[:, chosen])
    segment, within = np.divmod(pixel[chosen].astype(np.int64), SEGMENT)
    key = segment * bins + bin_of[chosen]
    order = np.argsort(key, kind="stable")
    key, within, factors = key[order], within[order], factors[:, order]

    starts = np.flatnonzero(np.diff(key, prepend=-1))
    lengths = np.diff(starts, append=key.size)
    groups = -(-lengths // GROUP)
    ends = np.cumsum(groups)
    slot = np.arange(key.size) + np.repeat((ends - groups) * GROUP - starts, lengths)
    count = int(groups.sum())

    records = np.zeros(count, _RECORD)
    records["bin"] = np.repeat(key[starts] % bins, groups)
    places = np.full(count * GROUP, SEGMENT, np.uint16)
    places[slot] = within // 64 * 64 + within % 16 * 4 + within // 16 % 4
    records["place"] = places.reshape(count, GROUP)
    spread = np.zeros((len(factors), count * GROUP), np.int16)
    spread[:, slot] = factors
    first = np.concatenate([[0], np.cumsum(np.bincount(key[starts] // bins, groups, segments))])
    most = np.zeros(segments, np.uint32)
    if starts.size:
        np.maximum.at(most, key[starts] // bins, np.add.reduceat(factors, starts, axis=1).max(axis=0).astype(np.uint32))
    return Groups(
        records,
        np.ascontiguousarray(spread.reshape(len(factors), count, GROUP).swapaxes(0, 1)),
        first.astype(np.int64),
        most,
    )


def _divided(chosen: NDArray[np.intp], factors: NDArray[np.integer[Any]]) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Return the pairs so often that no factor is too large, and the parts of their factors."""
    parts = np.maximum(-(-factors.max(axis=0, initial=0).astype(np.int64) // LARGEST_FACTOR), 1)
    number = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
    all_of_it, share = np.repeat(factors.astype(np.int64), parts, axis=1), np.repeat(parts, parts)
    return np.repeat(chosen, parts), all_of_it * (number + 1) // share - all_of_it * number // share
