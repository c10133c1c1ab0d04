"""What two runs have different, in the order in which a person asks; pure.

In: what is known of two runs. Out: differences, each of one *aspect*, and whether it can be why their results differ.
"""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

from orchestrator.provenance import AttemptRecord, InputIdentity, InputMoment, RunDetail
from orchestrator.records import Json

_DIFF_LINES = 60
_ABSENT = "-"


class Aspect(StrEnum):
    """Of what two runs can differ."""

    PARAMETERS = "parameters"
    INPUT = "input"
    FILES = "files that parameters name"
    TEMPLATE = "template"
    CODE = "code"
    INSTALLATION = "installation"
    SCRIPT = "script"
    RESOURCES = "resources"
    PLACE = "place"
    MESSAGE = "message"


_DECISIVE = frozenset({Aspect.PARAMETERS, Aspect.INPUT, Aspect.FILES, Aspect.TEMPLATE, Aspect.CODE})
"""The ingredients of a result. Scripts, resources and nodes must not change it."""

_OF_THE_INSTALLATION = frozenset(
    {"commit", "dirty", "locks_sha256", "interpreter"}
    | {f"container.{name}" for name in ("path", "real_path", "inode", "sha256_unknown_because")}
)
"""What is said of the program beside the versions and the source of what computes."""
_SOURCE = "loaded.source_sha256"
"""The kernels' own source, by which changed code is known whatever git says."""
_IMAGE = "container.sha256"
"""The container image: where it is known of both, what its file looks like doesn't matter."""
_OF_THE_IMAGE = frozenset({"container.size", "container.mtime_ns", "container.sif_uuid"})


@dataclass(frozen=True, kw_only=True)
class RunDifference:
    """One thing that two runs have different."""

    aspect: Aspect
    name: str
    first: str
    second: str
    """What each has, in words; ``-`` where it has none. Of texts, ``second`` is what was changed in the first."""

    @property
    def decisive(self) -> bool:
        """Whether it is an ingredient of the result."""
        return self.aspect in _DECISIVE


def differences(first: RunDetail, second: RunDetail) -> tuple[RunDifference, ...]:
    """Return what two runs have different."""
    pairs = {
        Aspect.PARAMETERS: (_parameters(first), _parameters(second)),
        Aspect.INPUT: _inputs(first, second),
        Aspect.FILES: (_files(first), _files(second)),
        Aspect.CODE: (_code(first, second), _code(second, first)),
        Aspect.INSTALLATION: (_installation(first, second), _installation(second, first)),
        Aspect.RESOURCES: (_resources(first), _resources(second)),
        Aspect.PLACE: (_place(first), _place(second)),
        Aspect.MESSAGE: (_message(first), _message(second)),
    }
    texts = {
        Aspect.TEMPLATE: [_newest(run, lambda attempt: attempt.template_text) for run in (first, second)],
        Aspect.SCRIPT: [_script(run) for run in (first, second)],
    }
    found = {aspect: list(_of_members(aspect, *pair)) for aspect, pair in pairs.items()}
    found |= {aspect: list(_of_texts(aspect, *pair)) for aspect, pair in texts.items()}
    return tuple(difference for aspect in Aspect for difference in found[aspect])


def _of_members(aspect: Aspect, ours: Mapping[str, str], theirs: Mapping[str, str]) -> Iterator[RunDifference]:
    for name in dict.fromkeys((*ours, *theirs)):
        first, second = ours.get(name, _ABSENT), theirs.get(name, _ABSENT)
        if first != second:
            yield RunDifference(aspect=aspect, name=name, first=first, second=second)


def _of_texts(aspect: Aspect, first: str, second: str) -> Iterator[RunDifference]:
    if first == second:
        return
    lines = difflib.unified_diff(first.splitlines(), second.splitlines(), "first", "second", n=0, lineterm="")
    changed = list(itertools.islice(lines, 2, _DIFF_LINES + 3))
    if len(changed) > _DIFF_LINES:
        changed[-1] = "…"
    yield RunDifference(aspect=aspect, name="text", first=_lines(first), second="\n".join(changed))


def _lines(text: str) -> str:
    return f"{len(text.splitlines())} lines"


# ------------------------------------------------------------------------------------------------------- ingredients


def _parameters(run: RunDetail) -> Mapping[str, str]:
    return {one.name: _shown(one.value) for one in run.parameters}


def _inputs(first: RunDetail, second: RunDetail) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Return what the inputs were; where both are sealed, sizes and times don't matter."""
    ours, theirs = (_input(run, _last_input(run)) for run in (first, second))
    if "content" in ours and "content" in theirs:
        ours, theirs = ({name: one[name] for name in ("path", "dataset", "content")} for one in (ours, theirs))
    return ours, theirs


def _last_input(run: RunDetail) -> InputIdentity | None:
    by_moment = {identity.at: identity for identity in run.inputs}
    return by_moment.get(InputMoment.END) or by_moment.get(InputMoment.OPEN)


def _input(run: RunDetail, identity: InputIdentity | None) -> dict[str, str]:
    planned = {"path": str(run.plan.collection.file), "dataset": run.plan.collection.dataset}
    if identity is None:
        return planned
    told = {name: getattr(identity, name) for name in ("size", "mtime_ns", "inode", "shape", "dtype", "chunks")}
    sealed = {"content": seal} if (seal := sealed_digest(identity)) else {}
    return planned | sealed | {name: _shown(value) for name, value in told.items() if value is not None}


def sealed_digest(identity: InputIdentity) -> str:
    """Return the digest of what was read of an input; no text where it isn't sealed."""
    seal: Any = identity.seal or {}
    return f"{seal.get('algorithm')}:{seal.get('digest')}" if seal.get("state") == "sealed" else ""


def _files(run: RunDetail) -> Mapping[str, str]:
    identity = _last_input(run)
    files: Sequence[Any] = () if identity is None else identity.files
    return {str(one.get("parameter")): f"{one.get('path')} (sha256 {one.get('sha256')})" for one in files}


def _code(run: RunDetail, other: RunDetail) -> Mapping[str, str]:
    known = _software(run)
    return {name: value for name, value in known.items() if name not in _beside(known, _software(other))}


def _installation(run: RunDetail, other: RunDetail) -> Mapping[str, str]:
    known = _software(run)
    return {name: value for name, value in known.items() if name in _beside(known, _software(other))}


def _software(run: RunDetail) -> Mapping[str, str]:
    return dict(_flat(_newest(run, lambda attempt: attempt.software), "")) | {"kernel": run.plan.kernel}


def _beside(ours: Mapping[str, str], theirs: Mapping[str, str]) -> frozenset[str]:
    """Return what doesn't decide.

    Where the source itself isn't known of both, the commit stands for it; and for the image's digest what its file was.
    """
    by_source, by_digest = (name in ours and name in theirs for name in (_SOURCE, _IMAGE))
    installation = _OF_THE_INSTALLATION if by_source else _OF_THE_INSTALLATION - {"commit", "dirty"}
    return installation | (_OF_THE_IMAGE if by_digest else {_IMAGE})


def _flat(value: Json, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else key)
    elif name:
        yield name, _shown(value)


# --------------------------------------------------------------------------------------------- the circumstances


def _script(run: RunDetail) -> str:
    """Return the script without what every run has of its own."""
    text: str = _newest(run, lambda attempt: attempt.script_text) or ""
    number = run.attempts[-1].tag.attempt if run.attempts else 1
    own = {
        str(run.plan.run_directory): "RUN_DIRECTORY",
        run.summary.run_id: "RUN_ID",
        f"attempt={number}": "attempt=N",
        f"attempts/{number}/": "attempts/N/",
        f"RUN_ID.{number}": "RUN_ID.N",
    }
    for before, after in own.items():
        text = text.replace(before, after)
    return text


def _resources(run: RunDetail) -> Mapping[str, str]:
    return {item.name: _shown(getattr(run.plan.resources, item.name)) for item in fields(run.plan.resources)}


def _place(run: RunDetail) -> Mapping[str, str]:
    if not run.attempts:
        return {}
    newest, report = run.attempts[-1], run.attempts[-1].last_report
    begin: Any = next((event.detail for event in newest.events if event.kind == "begin"), None) or {}
    machine = begin.get("machine") or {}
    return {
        "cluster": newest.identity.cluster if newest.identity else _ABSENT,
        "nodes": (report.nodes if report else "") or str(begin.get("host", _ABSENT)),
        "cpu": str(machine.get("cpu", _ABSENT)),
        "system": str(machine.get("system", _ABSENT)),
        "user": str(begin.get("user", _ABSENT)),
    } | {f"environment.{name}": str(value) for name, value in (begin.get("environment") or {}).items() if _counts(name)}


def _counts(name: str) -> bool:
    """Whether a variable isn't another one for each job."""
    return not name.startswith("SLURM_JOB_") and name not in {"SLURM_SUBMIT_HOST", "TMPDIR"}


def _message(run: RunDetail) -> Mapping[str, str]:
    told = {"requester": run.summary.requester, "recipe": run.plan.recipe, "collection": run.plan.collection.uid}
    return told | ({} if run.message is None else {"sha256": run.message.raw.sha256})


def _newest(run: RunDetail, member: Any) -> Any:
    empty: AttemptRecord | None = run.attempts[-1] if run.attempts else None
    return "" if empty is None else member(empty)


def _shown(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
