"""Records as JSON and back: for the database, and for ``plan.json`` and ``collection-end.json`` in a run's directory.

`plan_from_json(plan_to_json(plan)) == plan`, and the same for the others. Missing keys mean the record's default, so
documents of earlier releases stay readable.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from orchestrator.errors import InvalidInput
from orchestrator.provenance.rows import InputIdentity, InputMoment, Validation
from orchestrator.records import (
    ArrayPlan,
    CollectionEnd,
    CollectionOutcome,
    CollectionStart,
    JobPlan,
    JobState,
    Json,
    Origin,
    Parameter,
    Predecessor,
    Resources,
    Retries,
    Retry,
    RetryRule,
)

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
    with _reading("plan"):
        values = _members(document)
        version = values.pop("plan_version", None)
        if version != PLAN_VERSION:
            raise InvalidInput(
                f"plan_version is {version!r}, this release reads {PLAN_VERSION}",
                remedy="use the release that wrote the plan, or a newer one",
            )
        values["collection"] = start_from_json(values["collection"])
        values["parameters"] = tuple(_parameter(parameter) for parameter in values["parameters"])
        values["resources"] = Resources(**_members(values["resources"]))
        if "retries" in values:
            values["retries"] = _retries(values["retries"])
        array = values.pop("array", None)
        values["array"] = None if array is None else ArrayPlan(**array | {"values": tuple(array["values"])})
        values["after"] = tuple(_predecessor(one) for one in values.get("after", ()))
        values |= {name: Path(values[name]) for name in ("run_directory", "python")}
        return JobPlan(**values)


def retry_from_json(document: Json) -> Retry:
    """Rebuild the decision for another attempt; `InvalidInput` when the document isn't one."""
    with _reading("retry"):
        values = _members(document)
        resources = Resources(**_members(values["resources"]))
        return Retry(**values | {"resources": resources, "not_before": _time(values.get("not_before"))})


def start_to_json(start: CollectionStart) -> dict[str, Json]:
    """Return a collection-start as JSON."""
    return _encoded_fields(start)


def start_from_json(document: Json) -> CollectionStart:
    """Rebuild a collection-start; `InvalidInput` when the document isn't one."""
    with _reading("collection-start"):
        values = _members(document)
        return CollectionStart(**values | {"file": Path(values["file"]), "started_at": _time(values.get("started_at"))})


def end_to_json(end: CollectionEnd) -> dict[str, Json]:
    """Return a collection-end as JSON."""
    return _encoded_fields(end)


def end_from_json(document: Json) -> CollectionEnd:
    """Rebuild a collection-end; `InvalidInput` when the document isn't one."""
    with _reading("collection-end"):
        values = _members(document)
        return CollectionEnd(
            **values | {"outcome": CollectionOutcome(values["outcome"]), "ended_at": _time(values.get("ended_at"))}
        )


def input_from_json(document: Json, at: InputMoment) -> InputIdentity:
    """Rebuild an input's identity from what a kernel tells in its progress file; `InvalidInput` when it isn't one."""
    with _reading("input's identity"):
        values = _members(document)
        return InputIdentity(**values | {name: Path(values[name]) for name in ("path", "real_path")} | {"at": at})


def validation_from_json(document: Json) -> Validation:
    """Rebuild what a validator said; `InvalidInput` when the document isn't that."""
    with _reading("validation"):
        return Validation(**_members(document))


_AS_IT_IS = {str, int, float, bool, type(None)}


def encoded(value: object) -> Json:
    """Return a record, or anything inside one, as JSON."""
    if type(value) in _AS_IT_IS:  # most of all, and every plan goes through here twice
        return value  # type: ignore[return-value]
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
    raise TypeError(f"no JSON form for {type(value).__name__}")


def _encoded_fields(record: Any) -> dict[str, Json]:
    return {item.name: encoded(getattr(record, item.name)) for item in fields(record)}


@contextmanager
def _reading(what: str) -> Iterator[None]:
    try:
        yield
    except KeyError as error:
        raise InvalidInput(f"not a {what}: {error.args[0]} is missing") from error
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"not a {what}: {error}") from error


def _predecessor(document: Json) -> Predecessor:
    values = _members(document)
    return Predecessor(**values | {"run_directory": Path(values["run_directory"])})


def _parameter(document: Json) -> Parameter:
    values = _members(document)
    value = document["value"] if isinstance(document, dict) else None  # may hold lists
    return Parameter(**values | {"origin": Origin(values["origin"]), "value": value})


def _retries(document: Json) -> Retries:
    values = _members(document)
    rules = {JobState(cause): RetryRule(**_members(rule)) for cause, rule in values["rules"].items()}
    return Retries(**values | {"rules": rules})


def _members(document: Json) -> dict[str, Any]:
    """Return an object's members, with tuples where JSON has lists, as records hold them."""
    if not isinstance(document, dict):
        raise TypeError(f"it must be a JSON object, not {type(document).__name__}")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in document.items()}


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
