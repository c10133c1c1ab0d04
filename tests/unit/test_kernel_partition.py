"""Every frame falls to exactly one rank."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpi_kernels.partition import block


@given(st.lists(st.integers()), st.integers(1, 20))
def test_blocks_make_up_the_whole_in_order_and_differ_by_one_at_most(items: list[int], ranks: int) -> None:
    blocks = [block(items, ranks=ranks, rank=rank) for rank in range(ranks)]
    assert [item for part in blocks for item in part] == items
    lengths = [len(part) for part in blocks]
    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)


def test_rank_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="rank 2 is not among 2"):
        block([1], ranks=2, rank=2)


@given(st.lists(st.integers()), st.lists(st.floats(0, 1e6), min_size=1, max_size=20).filter(any))
def test_unequal_shares_make_up_the_whole_in_order(items: list[int], shares: list[float]) -> None:
    blocks = [block(items, ranks=len(shares), rank=rank, shares=shares) for rank in range(len(shares))]
    assert [item for part in blocks for item in part] == items
    for part, share in zip(blocks, shares, strict=True):
        assert abs(len(part) - len(items) * share / sum(shares)) <= 1


@pytest.mark.parametrize("shares", [[1.0], [1.0, -1.0], [0.0, 0.0]])
def test_shares_that_do_not_fit_are_refused(shares: list[float]) -> None:
    with pytest.raises(ValueError, match="don't fit 2 ranks"):
        block([1], ranks=2, rank=0, shares=shares)
