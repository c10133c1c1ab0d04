"""A run as SciCat wants a derived dataset: two documents, each as the backend's API takes it.

`dataset_document` is a ``CreateDatasetDto`` (``POST /api/v4/datasets``), `files_document` a
``CreateDatasetOrigDatablockDto`` (``POST /api/v4/datasets/{pid}/origdatablocks``), of scicat-backend-next 4.27. The
backend refuses fields that it doesn't know.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.exporting.account import NOT_KNOWN, Account, readable, unit_of
from orchestrator.exporting.result_file import read_result
from orchestrator.provenance import OutputIdentity, encoded
from orchestrator.records import Json

NO_EMAIL = "not-known@example.invalid"
"""The backend wants an address; this one can't exist (RFC 2606), and says so."""
_LOG_BYTES = 1 << 20
"""Of the end of the log; SciCat wants it well below 15 MB."""


def dataset_document(account: Account) -> dict[str, Json]:
    """Return the derived dataset."""
    summary, plan, facility = account.detail.summary, account.detail.plan, account.facility
    email = None if facility is None else facility.contact_email
    owner = None if facility is None else facility.contact or facility.name
    started = plan.collection.started_at
    keywords = (summary.kernel, summary.recipe, summary.beamline, readable(plan.collection.detector))
    document: dict[str, Json] = {
        "type": "derived",
        "datasetName": account.title,
        "description": account.outcome,
        "ownerGroup": summary.visit or NOT_KNOWN,
        "owner": owner or NOT_KNOWN,
        "contactEmail": email or NO_EMAIL,
        "sourceFolder": readable(summary.run_directory),
        "creationTime": (summary.ended_at or summary.created_at).isoformat(),
        "size": sum(output.size for output in account.results),
        "numberOfFiles": len(account.results),
        "dataFormat": "NeXus" if any(one.path.suffix == ".nxs" for one in account.results) else None,
        "license": None if facility is None else facility.license,
        "keywords": list(dict.fromkeys(keywords)),
        "inputDatasets": [item.path.as_uri() for item in account.inputs],
        "usedSoftware": [str(program) for program in account.programs],
        "jobParameters": _job_parameters(account),
        "jobLogData": _log(account),
        "scientificMetadata": dict(_scientific_metadata(account)),
        "startTime": None if started is None else started.isoformat(),
    }
    return {name: value for name, value in document.items() if value is not None}


def files_document(account: Account) -> dict[str, Json] | None:
    """Return the list of the dataset's files; None where the run made none."""
    outputs = account.checked_results()
    if not outputs:
        return None
    return {
        "size": sum(output.size for output in outputs),
        "chkAlg": "sha256",
        "dataFileList": [_data_file(output, account.directory.path) for output in outputs],
    }


def _data_file(output: OutputIdentity, folder: Path) -> Json:
    written_at = datetime.fromtimestamp(output.path.stat().st_mtime, UTC)
    path = output.path.relative_to(folder) if output.path.is_relative_to(folder) else output.path
    return {"path": readable(path), "size": output.size, "time": written_at.isoformat(), "chk": output.sha256}


def _job_parameters(account: Account) -> dict[str, Json]:
    plan, attempt = account.detail.plan, account.newest
    return {
        "run": account.run_id,
        "parentRun": plan.parent_run,
        "comesAfter": [one.run_id for one in plan.after],
        "recipe": plan.recipe,
        "kernel": plan.kernel,
        "requester": readable(plan.requester),
        "parameters": {name: parameter.value for name, parameter in account.parameters.items()},
        "resources": encoded(plan.resources),
        "script": None if attempt is None else {"sha256": attempt.script_sha256, "template": attempt.template_name},
        "job": None if attempt is None or attempt.identity is None else str(attempt.identity),
    }


def _log(account: Account) -> str | None:
    if account.newest is None:
        return None
    log = account.directory.attempt(account.newest.tag.attempt).log
    if not log.is_file():
        return None
    with log.open("rb") as stream:
        stream.seek(max(log.stat().st_size - _LOG_BYTES, 0))
        return stream.read().decode(errors="replace")


def _scientific_metadata(account: Account) -> Iterator[tuple[str, Json]]:
    """Yield facts as value and unit, from which the backend makes SI units to search by."""
    summary, collection, counts = account.detail.summary, account.detail.plan.collection, account.detail.summary.counts
    yield from (("beamline", _fact(summary.beamline)), ("detector", _fact(readable(collection.detector))))
    if counts is not None:
        for name in ("written", "processed", "failed"):
            yield f"frames_{name}", _fact(getattr(counts, name))
    for name, parameter in account.parameters.items():
        if isinstance(parameter.value, int | float) and not isinstance(parameter.value, bool):
            yield name, _fact(parameter.value, account.unit(name))
    if (wavelength := read_result(account).wavelength_angstrom) is not None:
        yield "wavelength", _fact(wavelength, "angstrom")
    for name, value in collection.metadata.items():
        yield f"collection_{name}", _fact(value, unit_of(name))


def _fact(value: Json, unit: str | None = None) -> Json:
    return {"value": value, "unit": unit or ""}
