"""A run as an RO-Crate: Process Run Crate 0.5 on RO-Crate 1.1.

The crate holds the files of the run's directory; the files that it read stay where they are and are named by their
``file://`` addresses. The document is written here and not by a library (``docs/decisions/0011``).

https://w3id.org/ro/crate/1.1, https://w3id.org/ro/wfrun/process/0.5
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

from orchestrator.errors import InvalidInput
from orchestrator.exporting.account import NOT_KNOWN, Account, InputFile, readable, run_uri, unit_of
from orchestrator.exporting.software import Program
from orchestrator.provenance import OutputIdentity
from orchestrator.records import Parameter, utc_now

METADATA = "ro-crate-metadata.json"
_CONTEXT = ["https://w3id.org/ro/crate/1.1/context", "https://w3id.org/ro/terms/workflow-run/context"]
_TERMS = "https://w3id.org/ro/terms/workflow-run#"
_PROFILE = "https://w3id.org/ro/wfrun/process/0.5"
_FACILITY, _AGENT, _LICENSE = "#facility", "#requester", "#license"
_MEDIA_TYPES = {
    ".h5": "application/x-hdf5",
    ".hdf5": "application/x-hdf5",
    ".nxs": "application/x-hdf5",
    ".json": "application/json",
    ".jsonl": "application/x-ndjson",
    ".md": "text/markdown",
    ".png": "image/png",
    ".sbatch": "application/x-shellscript",
    ".j2": "text/plain",
    ".log": "text/plain",
    ".poni": "text/plain",
}
_BLOCK_BYTES = 1 << 20

Entity = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _File:
    """A file of the run as the crate names it."""

    id: str
    path: Path
    size: int
    sha256: str


def write_crate(account: Account, folder: Path, *, results_by_reference: bool) -> None:
    """Write a run's crate into an empty folder.

    Parameters
    ----------
    results_by_reference
        Leave the results where they are, and name them by their addresses.

    Raises
    ------
    InvalidInput
        When a result isn't any more what the run recorded.
    """
    recorded = {output.path: output for output in account.checked_results()}
    files = []
    for path in _files_of(account.directory.path):
        if results_by_reference and path in recorded:
            files.append(_File(id=path.as_uri(), path=path, size=recorded[path].size, sha256=recorded[path].sha256))
        else:
            files.append(_copied(path, path.relative_to(account.directory.path), folder))
    for file in files:
        if file.path in recorded and file.sha256 != recorded[file.path].sha256:
            raise InvalidInput(
                f"{readable(file.path)}: changed since the run: its sha256 is {file.sha256}, run {account.run_id} "
                f"recorded {recorded[file.path].sha256}",
                remedy="restore the file, or repeat the run",
            )
    (folder / METADATA).write_text(json.dumps(_document(account, files, utc_now()), indent=2, ensure_ascii=False))


def _files_of(directory: Path) -> Iterator[Path]:
    """Yield a run's files; links may lead to what isn't the run's, and names with a dot are unfinished."""
    for path in sorted(directory.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(directory).parts)
        if path.is_file() and not path.is_symlink() and not hidden:
            yield path


def _copied(path: Path, name: Path, folder: Path) -> _File:
    target, digest, size = folder / name, hashlib.sha256(), 0
    target.parent.mkdir(parents=True, exist_ok=True)
    with path.open("rb") as source, target.open("xb") as copy:
        while block := source.read(_BLOCK_BYTES):
            digest.update(block)
            size += copy.write(block)
    return _File(id=quote_from_bytes(bytes(name)), path=path, size=size, sha256=digest.hexdigest())


# ------------------------------------------------------------------------------------------------- the document


def _document(account: Account, files: Sequence[_File], now: datetime) -> Entity:
    inputs = [_input(item, now) for item in account.inputs]
    made = [_file(account, file, now) for file in files]
    programs = [_program(program) for program in account.programs]
    values = [*_parameters(account), *_environment(account), *_usage(account)]
    graph = [
        _descriptor(),
        _root(account, [*made, *inputs], now),
        {"@id": _PROFILE, "@type": "CreativeWork", "name": "Process Run Crate", "version": "0.5"},
        _action(account, files, inputs),
        _kernel(account),
        *programs,
        *made,
        *inputs,
        *values,
        _facility(account),
        *_requester(account),
        _license(account),
        *_other_runs(account),
        *_image(account),
    ]
    return {"@context": _CONTEXT, "@graph": [_without_nothing(entity) for entity in graph]}


def _descriptor() -> Entity:
    return {
        "@id": METADATA,
        "@type": "CreativeWork",
        "conformsTo": {"@id": "https://w3id.org/ro/crate/1.1"},
        "about": {"@id": "./"},
    }


def _root(account: Account, parts: Iterable[Entity], now: datetime) -> Entity:
    summary = account.detail.summary
    visit = "" if summary.visit is None else f", visit {summary.visit}"
    return {
        "@id": "./",
        "@type": "Dataset",
        "conformsTo": {"@id": _PROFILE},
        "name": account.title,
        "description": f"Run {account.run_id} of recipe {summary.recipe} at beamline {summary.beamline}{visit}: "
        f"{summary.state}. {account.frames}.",
        "datePublished": _time(now),
        "license": {"@id": _license(account)["@id"]},
        "author": {"@id": _agent(account)},
        "publisher": {"@id": _FACILITY},
        "hasPart": _ids(parts),
        "mentions": {"@id": account.uri},
        "isBasedOn": _ids(_other_runs(account)),
    }


def _action(account: Account, files: Sequence[_File], inputs: Sequence[Entity]) -> Entity:
    summary = account.detail.summary
    results = {output.path for output in account.results}
    status = "Completed" if account.succeeded else "Failed"
    again = f" Attempt {summary.attempts} of the run." if summary.attempts > 1 else ""
    return {
        "@id": account.uri,
        "@type": "CreateAction",
        "name": account.title,
        "description": f"{account.outcome}{again}",
        "instrument": {"@id": _kernel_id(account)},
        "object": _ids([*inputs, *_parameters(account)]),
        "result": [{"@id": file.id} for file in files if file.path in results],
        "agent": {"@id": _agent(account)},
        "startTime": _time(account.started_at),
        "endTime": _time(summary.ended_at),
        "actionStatus": f"http://schema.org/{status}ActionStatus",
        "error": None if account.succeeded else summary.reason or str(summary.state),
        "containerImage": _ids(_image(account)),
        "environment": _ids(_environment(account)),
        "resourceUsage": _ids(_usage(account)),
    }


def _kernel_id(account: Account) -> str:
    return f"#kernel-{account.detail.summary.kernel}"


def _kernel(account: Account) -> Entity:
    ours = account.programs[0]
    return {
        "@id": _kernel_id(account),
        "@type": "SoftwareApplication",
        "name": f"kernel {account.detail.summary.kernel} of {ours.title}",
        "softwareVersion": ours.version,
        "softwareRequirements": [{"@id": _program(program)["@id"]} for program in account.programs],
    }


def _image(account: Account) -> Iterator[Entity]:
    """Yield the container image that the job ran in, where something proves or says which one it was."""
    image = {} if account.newest is None else account.newest.container
    if "sha256" in image or "stated" in image:
        yield {
            "@id": "#container-image",
            "@type": "ContainerImage",
            "additionalType": {"@id": f"{_TERMS}SIFImage"} if "sif_uuid" in image else None,
            "name": readable(str(image.get("stated") or image["path"])),
            "sha256": image.get("sha256"),
        }


def _program(program: Program) -> Entity:
    return {
        "@id": program.url or f"#software-{program.key.replace(' ', '-')}",
        "@type": "SoftwareApplication",
        "name": program.title,
        "softwareVersion": program.version,
        "url": program.url,
    }


def _file(account: Account, file: _File, now: datetime) -> Entity:
    outside = file.id.startswith("file:")
    return {
        "@id": file.id,
        "@type": "File",
        "name": readable(file.path.name),
        "description": _described(account).get(file.path),
        "encodingFormat": _media_type(file.path),
        "contentSize": str(file.size),
        "sha256": file.sha256,
        "sdDatePublished": _time(now) if outside else None,
    }


def _described(account: Account) -> Mapping[Path, str]:
    directory = account.directory
    return {
        directory.message: "The message that asked for the run, byte for byte",
        directory.plan: "What was decided: every parameter with its origin, resources, input",
        directory.parameters: "The kernel's parameter file",
        directory.script: "The batch script as submitted, byte for byte",
        directory.template: "The template text that the script was rendered from",
        directory.provenance: "All that is known about the run",
        directory.rerun: "Makes the run again, for whoever hands it to sbatch",
        directory.submitted: "The script that asked for the run, as it was handed to sbatch",
        directory.collection_end: "How the collection ended",
        **{output.path: _result(output) for output in account.results},
    }


def _result(output: OutputIdentity) -> str:
    validity = "" if output.validation is None else f"; {output.validation.words}"
    return f"{output.kind} of the run{validity}"


def _input(item: InputFile, now: datetime) -> Entity:
    facts = [f"dataset {item.dataset}" if item.dataset else "", "" if item.shape is None else f"shape {item.shape}"]
    return {
        "@id": item.path.as_uri(),
        "@type": "File",
        "name": readable(item.path.name),
        "description": ", ".join(filter(None, [item.role, *facts, item.dtype])),
        "encodingFormat": _media_type(item.path),
        "contentSize": None if item.size is None else str(item.size),
        "sha256": item.sha256,
        "sdDatePublished": _time(now),
    }


def _media_type(path: Path) -> str:
    return _MEDIA_TYPES.get(path.suffix.lower(), "application/octet-stream")


def _value(kind: str, name: str, value: object, unit: str | None = None, description: str | None = None) -> Entity:
    plain = value if isinstance(value, bool | int | float | str) else json.dumps(value)
    return {
        "@id": f"#{kind}-{name}",
        "@type": "PropertyValue",
        "name": name,
        "value": plain,
        "unitText": unit,
        "description": description,
    }


def _parameters(account: Account) -> Iterator[Entity]:
    """Yield the parameters that have a value."""
    for name, parameter in account.parameters.items():
        if parameter.value is not None:
            yield _value("parameter", name, parameter.value, account.unit(name), _origin(parameter))


def _origin(parameter: Parameter) -> str:
    return f"decided by {parameter.origin}: {readable(parameter.place)}"


def _environment(account: Account) -> Iterator[Entity]:
    found = account.beginning.get("environment")
    for name, value in found.items() if isinstance(found, dict) else ():
        yield _value("environment", name, value)


def _usage(account: Account) -> Iterator[Entity]:
    report = None if account.newest is None else account.newest.last_report
    for name, value in {} if report is None else report.usage.items():
        yield _value("usage", name, value, unit_of(name))


def _facility(account: Account) -> Entity:
    facility = account.facility
    return {
        "@id": _FACILITY,
        "@type": "Organization",
        "name": account.site if facility is None else facility.name,
        "url": None if facility is None else facility.url,
    }


def _agent(account: Account) -> str:
    return _FACILITY if account.detail.summary.requester == "automatic" else _AGENT


def _requester(account: Account) -> Iterator[Entity]:
    """Yield who asked; a run that nobody asked for is the facility's."""
    if _agent(account) == _AGENT:
        name = account.detail.summary.requester
        yield {"@id": _AGENT, "@type": "Person", "name": name, "affiliation": {"@id": _FACILITY}}


def _license(account: Account) -> Entity:
    text = NOT_KNOWN if account.facility is None else account.facility.license or NOT_KNOWN
    address = text.startswith(("http://", "https://"))
    about = "The site file doesn't state a license of processed data." if text == NOT_KNOWN else "Of processed data."
    return {"@id": text if address else _LICENSE, "@type": "CreativeWork", "name": text, "description": about}


def _other_runs(account: Account) -> Iterator[Entity]:
    """Yield the runs that this one repeats or comes after; their crates call them by the same addresses."""
    plan = account.detail.plan
    others = [(one.run_id, f"run of recipe {one.recipe}, after which this one came") for one in plan.after]
    if plan.parent_run is not None:
        because = plan.because and f", because: {readable(plan.because)}"
        others.insert(0, (plan.parent_run, f"the run that this one repeats{because}"))
    for run_id, about in others:
        yield {"@id": run_uri(run_id), "@type": "CreativeWork", "name": f"run {run_id}", "description": about}


def _ids(entities: Iterable[Entity]) -> list[Entity]:
    return [{"@id": entity["@id"]} for entity in entities]


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="milliseconds")


def _without_nothing(entity: Entity) -> Entity:
    """Leave out what isn't known, and write a list of one thing as that thing, as RO-Crate wants it."""
    compact = {
        name: value[0] if isinstance(value, list) and len(value) == 1 else value for name, value in entity.items()
    }
    return {name: value for name, value in compact.items() if value is not None and value != []}
