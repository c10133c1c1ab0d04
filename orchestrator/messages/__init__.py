"""Bytes in, records out: what a control system's message says, or exactly why it can't be understood.

    understand(raw) -> CollectionStart | CollectionEnd
    start_document(start), end_document(end) -> bytes      for senders
    json_schemas() -> {schema id: JSON Schema}             for people who write senders

Pure: no input or output, no clock. Strict about the fields it knows (nothing is coerced), explicit about the ones it
doesn't (their names are in the record's `ignored`). Other facilities' dialects get a module each beside `native`.
"""

from __future__ import annotations

import json

from pydantic import ValidationError

from orchestrator.errors import InvalidMessage
from orchestrator.messages.native import DOCUMENTS, END_SCHEMA, START_SCHEMA, Document, end_fields, start_fields
from orchestrator.messages.strict_json import MAX_BYTES, parse_object, show, show_name
from orchestrator.records import CollectionEnd, CollectionStart, Json, RawMessage

_MAX_PROBLEMS = 5
_MAX_IGNORED = 100


def understand(raw: RawMessage) -> CollectionStart | CollectionEnd:
    """Return what a message says.

    Raises
    ------
    InvalidMessage
        Naming the line and column where the body stops being JSON, or the field, what was found there, and the remedy.
    """
    fields = parse_object(raw.body)
    model = DOCUMENTS[_schema_id(fields)]
    return _validated(fields).record(_ignored(fields, known=_aliases(model)))


def start_document(start: CollectionStart) -> bytes:
    """Return the collection-start document that says what the record says.

    Raises
    ------
    InvalidMessage
        When the record has a value that no receiver would accept, e.g. a relative path.
    """
    return _document(start_fields(start))


def end_document(end: CollectionEnd) -> bytes:
    """Return the collection-end document that says what the record says; raises as `start_document` does."""
    return _document(end_fields(end))


def json_schemas() -> dict[str, Json]:
    """Return the JSON Schemas (draft 2020-12) of all documents that are understood, by their schema id."""
    return {schema_id: _json_schema(schema_id) for schema_id in DOCUMENTS}


def _json_schema(schema_id: str) -> dict[str, Json]:
    header: dict[str, Json] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:{schema_id.replace('/', ':')}",
    }
    return header | DOCUMENTS[schema_id].model_json_schema(by_alias=True)


def _document(fields: dict[str, Json]) -> bytes:
    _validated(fields)
    body = json.dumps(fields, indent=2, ensure_ascii=False, allow_nan=False).encode()
    parse_object(body)  # the size, and integers beyond what receivers take
    return body


def _schema_id(fields: dict[str, Json]) -> str:
    known = " or ".join(DOCUMENTS)
    if "schema" not in fields:
        raise InvalidMessage("schema: the field is missing", remedy=f'add "schema": {known}')
    found = fields["schema"]
    if not isinstance(found, str) or found not in DOCUMENTS:
        raise InvalidMessage(f"schema: {show(found)} isn't known here", remedy=f"this version understands {known}")
    return found


def _validated(fields: dict[str, Json]) -> Document:
    schema_id = _schema_id(fields)
    try:
        return DOCUMENTS[schema_id].model_validate(fields)
    except ValidationError as error:
        raise _invalid(error, schema_id) from error


def _invalid(error: ValidationError, schema_id: str) -> InvalidMessage:
    details = error.errors(include_url=False, include_context=False)
    problems = []
    for detail in details[:_MAX_PROBLEMS]:
        field = ".".join(show_name(str(part)) for part in detail["loc"] if part != "[key]")
        if detail["type"] == "missing":
            problems.append(f"{field}: the field is missing")
            continue
        wrong = detail["msg"].removeprefix("Value error, ")
        problems.append(f"{field}: {wrong[0].lower()}{wrong[1:]}, found {show(detail['input'])}")
    if len(details) > _MAX_PROBLEMS:
        problems.append(f"and {len(details) - _MAX_PROBLEMS} more")
    return InvalidMessage("; ".join(problems), remedy=_remedy(str(details[0]["loc"][0]), schema_id))


def _remedy(field: str, schema_id: str) -> str:
    fields = {info.alias or name: info for name, info in DOCUMENTS[schema_id].model_fields.items()}
    meaning = f"{field} is: {fields[field].description} " if field in fields else ""
    return f"{meaning}`orchestrator schema {schema_id}` prints all fields"


def _aliases(model: type[Document]) -> frozenset[str]:
    return frozenset(info.alias or name for name, info in model.model_fields.items())


def _ignored(fields: dict[str, Json], *, known: frozenset[str]) -> tuple[str, ...]:
    unknown = [show_name(name) for name in fields if name not in known]
    if len(unknown) > _MAX_IGNORED:
        return (*unknown[:_MAX_IGNORED], f"and {len(unknown) - _MAX_IGNORED} more")
    return tuple(unknown)


__all__ = ["END_SCHEMA", "MAX_BYTES", "START_SCHEMA", "end_document", "json_schemas", "start_document", "understand"]
