"""Promises, and whether what was seen meets them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class Target:
    """One of the promises, and what was seen; NaN where it should have been measured and couldn't be."""

    name: str
    seen: float
    wanted: str
    met: bool


def at_least(name: str, seen: float, wanted: float) -> Target:
    """Return a target that is met from `wanted` upward."""
    return Target(name=name, seen=seen, wanted=f"at least {wanted:g}", met=seen >= wanted)


def at_most(name: str, seen: float, wanted: float) -> Target:
    """Return a target that is met up to `wanted`."""
    return Target(name=name, seen=seen, wanted=f"at most {wanted:g}", met=seen <= wanted)


def below(name: str, seen: float, wanted: float) -> Target:
    """Return a target that is met below `wanted`."""
    return Target(name=name, seen=seen, wanted=f"below {wanted:g}", met=seen < wanted)


def table_of(targets: Iterable[Target]) -> Table:
    """Return the table that says which are met."""
    table = Table("target", "seen", "wanted", "met")
    for target in targets:
        seen = "not measured" if math.isnan(target.seen) else f"{target.seen:.2f}"
        table.add_row(target.name, seen, target.wanted, "yes" if target.met else "NO")
    return table
