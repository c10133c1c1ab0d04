"""Which rank takes which frames. Pure arithmetic: no MPI, no files."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def block(items: Sequence[T], *, ranks: int, rank: int, shares: Sequence[float] = ()) -> Sequence[T]:
    """Return the contiguous block of `items` that falls to `rank`; in rank order the blocks make up `items`.

    Parameters
    ----------
    shares
        How much each rank takes, in proportion. Without, blocks differ in length by at most one, the longer ones first.
    """
    if not 0 <= rank < ranks:
        raise ValueError(f"rank {rank} is not among {ranks} ranks")
    if not shares:
        base, longer = divmod(len(items), ranks)
        start = rank * base + min(rank, longer)
        return items[start : start + base + (rank < longer)]
    if len(shares) != ranks or min(shares) < 0 or not sum(shares) > 0:
        raise ValueError(f"shares {list(shares)} don't fit {ranks} ranks")
    edges = [0.0, *itertools.accumulate(shares)]
    first, last = (round(len(items) * edges[edge] / edges[-1]) for edge in (rank, rank + 1))
    return items[first:last]
