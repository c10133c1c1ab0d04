"""Records as JSON and back: for the database, and for ``plan.json`` and ``collection-end.json`` in a run's directory.

`plan_from_json(plan_to_json(plan)) == plan`, and the same for the others. Missing keys mean the record's default, so
documents of earlier releases stay readable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.errors import InvalidInput
from orchestrator.records import (
    CollectionEnd,
    CollectionOutcome,
    CollectionStart,
    JobPlan,
    Json,
    Origin,
    Parameter,
    Resources,
)

Record = TypeVar("Record")
PLAN_VERSION = 1


def plan_to_json(plan: JobPlan) -> dict[str, Json]:
    """Return a plan as it stands in ``plan.json``."""
    return {"plan_version": PLAN_VERSION, **_encoded_fields(plan)}


def plan_from_json(document: Json) -> JobPlan:
    """Rebuild a plan.

    Raises
    ------
    InvalidInput
        When the document isn't a plan, or one that a newer release wrote.
    """
    values = _object(document, "a plan")
    version = values.pop("plan_version", None)
    if version != PLAN_VERSION:
        raise InvalidInput(
            f"plan_version is {version!r}, this release reads {PLAN_VERSION}",
            remedy="use the release that wrote the plan, or a newer one",
        )
    values["collection"] = start_from_json(values.get("collection"))
    values["parameters"] = tuple(_parameter(parameter) for parameter in values.get("parameters", ()))
    values["resources"] = _built(Resources, values.get("resources"))
    for name in ("run_directory", "python"):
        values[name] = Path(values.get(name) or "")
    return _built(JobPlan, values)


def start_to_json(start: CollectionStart) -> dict[str, Json]:
    """Return a collection-start as JSON."""
    return _encoded_fields(start)


def start_from_json(document: Json) -> CollectionStart:
    """Rebuild a collection-start."""
    values = _object(document, "a collection-start")
    values["file"] = Path(values.get("file") or "")
    values["started_at"] = _time(values.get("started_at"))
    return _built(CollectionStart, values)


def end_to_json(end: CollectionEnd) -> dict[str, Json]:
    """Return a collection-end as JSON."""
    return _encoded_fields(end)


def end_from_json(document: Json) -> CollectionEnd:
    """Rebuild a collection-end."""
    values = _object(document, "a collection-end")
    values["outcome"] = CollectionOutcome(values.get("outcome", ""))
    values["ended_at"] = _time(values.get("ended_at"))
    return _built(CollectionEnd, values)


def encoded(value: object) -> Json:
    """Return a record, or anything inside one, as JSON."""
    if is_dataclass(value) and not isinstance(value, type):
        return _encoded_fields(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(key): encoded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encoded(item) for item in value]
    if isinstance(value, str | Path):  # words of enumerations too
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    raise TypeError(f"no JSON form for {type(value).__name__}")


def _encoded_fields(record: Any) -> dict[str, Json]:
    return {item.name: encoded(getattr(record, item.name)) for item in fields(record)}


def _parameter(document: Json) -> Parameter:
    values: dict[str, Any] = dict(document) if isinstance(document, dict) else {}
    values["origin"] = Origin(values.get("origin", ""))
    return _built(Parameter, values)


def _object(document: Json, what: str) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise InvalidInput(f"{what} must be a JSON object, not {type(document).__name__}")
    # Records hold tuples where JSON has lists.
    return {name: tuple(value) if isinstance(value, list) else value for name, value in document.items()}


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _built(kind: type[Record], values: Any) -> Record:
    try:
        return kind(**values)
    except TypeError as error:
        raise InvalidInput(f"not a {kind.__name__}: {error}") from error
