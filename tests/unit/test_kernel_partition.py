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
