"""How two runs compare, for people: the common part of ``orchestrator diff`` and ``orchestrator verify``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

import typer
from rich.text import Text

from orchestrator.cli.common import out, print_fields
from orchestrator.contents import Difference
from orchestrator.differences import Aspect, RunDifference
from orchestrator.verifying import ResultComparison, Verification

MOST_SHOWN = 12
"""Differences of one result; `--json` gives all."""

RelativeOption = Annotated[
    float, typer.Option("--rtol", min=0, help="By which part of themselves floating-point results may differ.")
]
AbsoluteOption = Annotated[float, typer.Option("--atol", min=0, help="By how much floating-point results may differ.")]


def as_document(verification: Verification) -> dict[str, object]:
    """Return a comparison for scripts."""
    return {
        "verdict": verification.verdict,
        "first": verification.first,
        "second": verification.second,
        "results": verification.results,
        "culprits": verification.culprits,
        "differences": verification.differences,
    }


def print_results(results: Sequence[ResultComparison]) -> None:
    """Say how the results compare."""
    for result in results:
        out.print(
            Text.assemble((f"{result.name}: ", "bold"), result.verdict, f"; {result.obstacle}" * bool(result.obstacle))
        )
        found = result.comparison.differences if result.comparison else ()
        print_fields(((one.path, _words(one)) for one in found[:MOST_SHOWN]), label_width=24)
        if len(found) > MOST_SHOWN:
            out.print(f"  … and {len(found) - MOST_SHOWN} more; --json gives all")


def print_differences(differences: Sequence[RunDifference]) -> None:
    """Say what the runs have different, aspect by aspect."""
    for aspect in Aspect:
        found = [one for one in differences if one.aspect is aspect]
        if found:
            out.print(Text(f"\n{aspect.capitalize()}", style="bold underline"))
            width = max(len(one.name) for one in found)
            print_fields(((one.name, _pair(one)) for one in found), label_width=width)


def _pair(one: RunDifference) -> str:
    return one.second if one.name == "text" else f"{one.first} → {one.second}"


def _words(one: Difference) -> str:
    if one.values is None:
        return f"{one.what}: {one.first or 'not there'} → {one.second or 'not there'}"
    return "; ".join(_deviation(one))


def _deviation(one: Difference) -> Iterator[str]:
    values = one.values
    assert values is not None  # noqa: S101  the caller has looked
    yield f"{values.differing} of {values.elements} values differ"
    place = list(values.index)
    if values.largest_absolute is not None:
        yield f"most by {values.largest_absolute:.3g} at {place}"
    if values.largest_relative is not None:
        yield f"in relation most by {values.largest_relative:.3g} at {list(values.relative_index)}"
    yield f"{one.first} → {one.second} at {place}"
