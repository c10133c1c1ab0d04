"""Which rank takes which frames. Pure arithmetic: no MPI, no files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def block(items: Sequence[T], *, ranks: int, rank: int) -> Sequence[T]:
    """Return the contiguous block of `items` that falls to `rank`.

    Blocks differ in length by at most one, the longer ones come first, and in rank order they make up `items`.
    """
    if not 0 <= rank < ranks:
        raise ValueError(f"rank {rank} is not among {ranks} ranks")
    base, longer = divmod(len(items), ranks)
    start = rank * base + min(rank, longer)
    return items[start : start + base + (rank < longer)]
