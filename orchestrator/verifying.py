"""Whether two runs made the same, and if not, which ingredient is to blame.

In: what is known of two runs, and their results. Out: a `Verification`. Results whose content digests are equal aren't
read; of others it is told where they differ, and by how much.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.contents import Comparison, Verdict, compare
from orchestrator.differences import Aspect, RunDifference, differences
from orchestrator.errors import InvalidInput
from orchestrator.injob import file_sha256
from orchestrator.provenance import OutputIdentity, RunDetail

_TOLD_IN_RESULT = "/entry/reduction/input/"
"""Below it a result tells the parameters that the kernel really used."""
_SEVERITY = (Verdict.IDENTICAL, Verdict.WITHIN_TOLERANCE, Verdict.DIFFERENT)


@dataclass(frozen=True, kw_only=True)
class ResultComparison:
    """One result of each of two runs."""

    name: str
    """Relative to the runs' directories."""
    verdict: Verdict
    comparison: Comparison | None = None
    """None where the content digests were enough, or the files couldn't be compared."""
    obstacle: str = ""
    """Why not."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What came of comparing two runs and their results."""

    first: str
    second: str
    """Ids of the runs."""
    results: tuple[ResultComparison, ...]
    differences: tuple[RunDifference, ...]
    parameters: frozenset[str] = frozenset()
    """Names of all parameters of the two."""

    @property
    def verdict(self) -> Verdict:
        """The worst of all results'; runs without a result have nothing in common."""
        if not self.results:
            return Verdict.DIFFERENT
        return max((result.verdict for result in self.results), key=_SEVERITY.index)

    @property
    def culprits(self) -> tuple[RunDifference, ...]:
        """The recorded ingredients that differ, where the results do."""
        if self.verdict is Verdict.IDENTICAL:
            return ()
        recorded = [difference for difference in self.differences if difference.decisive]
        unnamed = self.parameters - {difference.name for difference in recorded}
        return (*recorded, *(one for one in _told_in_results(self.results) if one.name in unnamed))


def verified(first: RunDetail, second: RunDetail, *, rtol: float = 0.0, atol: float = 0.0) -> Verification:
    """Compare two runs and their results.

    Parameters
    ----------
    rtol, atol
        By how much floating-point values may differ; see `contents.compare`.
    """
    ours, theirs = _results(first), _results(second)
    pairs = [(name, ours.get(name), theirs.get(name)) for name in dict.fromkeys((*ours, *theirs))]
    return Verification(
        first=first.summary.run_id,
        second=second.summary.run_id,
        results=tuple(_compared(name, one, other, rtol, atol) for name, one, other in pairs),
        differences=differences(first, second),
        parameters=frozenset(one.name for run in (first, second) for one in run.parameters),
    )


def _results(run: RunDetail) -> dict[str, OutputIdentity]:
    """Return a run's HDF5 results by their names in its directory."""
    made = [output for output in run.outputs if output.kind == "result"]
    return {output.path.name: output for output in made}


def _compared(
    name: str, first: OutputIdentity | None, second: OutputIdentity | None, rtol: float, atol: float
) -> ResultComparison:
    if first is None or second is None:
        which = "first" if first is None else "second"
        return ResultComparison(name=name, verdict=Verdict.DIFFERENT, obstacle=f"the {which} run hasn't made it")
    if first.content_sha256 is not None and first.content_sha256 == second.content_sha256:
        return ResultComparison(name=name, verdict=Verdict.IDENTICAL)
    if obstacle := next((text for output in (first, second) if (text := _changed(output))), ""):
        return ResultComparison(name=name, verdict=Verdict.DIFFERENT, obstacle=obstacle)
    try:
        comparison = compare(first.path, second.path, rtol=rtol, atol=atol)
    except InvalidInput as error:
        return ResultComparison(name=name, verdict=Verdict.DIFFERENT, obstacle=error.full_text)
    return ResultComparison(name=name, verdict=comparison.verdict, comparison=comparison)


def _changed(output: OutputIdentity) -> str:
    """Say why a result that is there can't stand for what the run made; no text when it can."""
    path: Path = output.path
    if not path.is_file():
        return f"{path} is gone; its recorded digest isn't the other's"
    if file_sha256(path) != output.sha256:
        return f"{path} isn't what the run made: it was changed since; the recorded digest isn't the other's either"
    return ""


def _told_in_results(results: tuple[ResultComparison, ...]) -> Iterator[RunDifference]:
    """Give what the kernels say of parameters and what they led to, and that differs, whatever was planned."""
    for result in results:
        for one in result.comparison.differences if result.comparison else ():
            name = one.path.removeprefix(_TOLD_IN_RESULT)
            if name != one.path:
                yield RunDifference(aspect=Aspect.PARAMETERS, name=name, first=one.first, second=one.second)
