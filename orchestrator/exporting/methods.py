"""A run as a paragraph for a paper: Markdown, with the references that belong to what was done.

It says what the record says, and nothing else. What isn't recorded is left out, or said not to be.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from orchestrator.exporting.account import Account, readable
from orchestrator.exporting.azimuthal_methods import azimuthal_sentences
from orchestrator.exporting.references import Citations
from orchestrator.exporting.result_file import ResultFacts, read_result
from orchestrator.records import RunState

_Sentences = Callable[[Account, ResultFacts, Citations], Iterator[str]]


def methods_text(account: Account) -> str:
    """Return the paragraph, the references, and a table of all parameters."""
    cite, facts = Citations(), read_result(account)
    told = [*_about_frames(account)]
    if _has_results(account):
        told += _BY_KERNEL.get(account.detail.summary.kernel, _no_sentences)(account, facts, cite)
        told += _about_programs(account, facts, cite)
    lines = ["# Methods", "", " ".join(told), ""]
    if references := cite.listed():
        lines += ["## References", "", *references, ""]
    lines += [*_parameters(account), *_record(account)]
    return "\n".join(lines)


def _has_results(account: Account) -> bool:
    """Whether anything was done of which it can be told how."""
    counts = account.detail.summary.counts
    return counts is not None and counts.processed > 0


def _about_frames(account: Account) -> Iterator[str]:
    summary, collection = account.detail.summary, account.detail.plan.collection
    visit = "" if summary.visit is None else f", visit {summary.visit}"
    yield (
        f"Frames of the detector {readable(collection.detector)} (beamline {summary.beamline}{visit}; "
        f"`{readable(summary.file.name)}`) were processed with the kernel `{summary.kernel}`."
    )
    yield f"{account.frames[0].upper()}{account.frames[1:]}."
    if (array := account.detail.plan.array) is not None:
        values = ", ".join(map(str, array.values))
        yield f"This was done for each of these values of `{array.parameter}`, in results of their own: {values}."
    if summary.state is not RunState.COMPLETE:
        yield f"The run is {summary.state}: {readable(summary.reason)}."


def _no_sentences(_account: Account, _facts: ResultFacts, _cite: Citations) -> Iterator[str]:
    yield from ()


def _projection_sentences(account: Account, _facts: ResultFacts, cite: Citations) -> Iterator[str]:
    yield "Sum, mean, maximum and variance over the frames were computed for each pixel from exact sums."
    if (factor := account.value("hot_factor")) is not None:
        yield (
            f"Pixels were flagged as dead or hot by comparison with the median of their surroundings (window of "
            f"{account.value('window')} pixels, factor {factor}, {account.value('deviations')} standard deviations of "
            f"Anscombe-transformed counts {cite('anscombe')})."
        )


def _average_sentences(account: Account, _facts: ResultFacts, _cite: Citations) -> Iterator[str]:
    last = account.value("last_frame")
    until = "the last one" if last is None else f"number {last}"
    yield f"The patterns of frame number {account.value('first_frame') or 0} to {until} were averaged bin by bin."


_BY_KERNEL: dict[str, _Sentences] = {
    "azimuthal": azimuthal_sentences,
    "projection": _projection_sentences,
    "average": _average_sentences,
}


def _about_programs(account: Account, facts: ResultFacts, cite: Citations) -> Iterator[str]:
    used = [program for program in account.programs if program.loaded]
    names = [f"{one} {cite(one.reference)}" if one.reference else str(one) for one in used]
    yield f"Programs: {', '.join(names)}."
    if any(output.path.suffix == ".nxs" for output in account.detail.outputs):
        yield f"Results were written as NeXus {cite('nexus')}."
    if facts.reading_route is not None and "bitshuffle" in facts.reading_route:
        yield f"Frames were stored with bitshuffle compression {cite('bitshuffle')}."
    attempt, resources = account.newest, account.detail.plan.resources
    if attempt is not None and attempt.identity is not None and attempt.gateway != "local":
        tasks = f"{resources.ntasks} task{'s' if resources.ntasks > 1 else ''}"
        yield f"The job ran under SLURM {cite('slurm')} ({tasks} asked for)."


def _parameters(account: Account) -> Iterator[str]:
    if not account.parameters:
        return
    yield from ("## Parameters in force", "", "| parameter | value | unit | decided by |", "| --- | --- | --- | --- |")
    for name, parameter in account.parameters.items():
        value = "none" if parameter.value is None else readable(json.dumps(parameter.value, ensure_ascii=False))
        cells = (f"`{name}`", value.replace("|", r"\|"), account.unit(name) or "", parameter.origin)
        yield f"| {' | '.join(cells)} |"
    yield ""


def _record(account: Account) -> Iterator[str]:
    yield from ("## Record", "", f"- run `{account.run_id}`")
    if account.newest is not None:
        yield f"- batch script: sha256 `{account.newest.script_sha256}`"
    for item in account.inputs:
        yield f"- {item.role}: `{readable(item.path)}`"
    for output in account.detail.outputs:
        yield f"- {output.kind}: `{readable(output.path)}`, sha256 `{output.sha256}`"
    yield ""
