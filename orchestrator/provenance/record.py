"""The record of a run as a document: ``provenance.json``, from which the run can be understood, and the database made.

It is everything the store knows about the run (`RunDetail`), and by which version of the document. Its JSON Schema
(`record_schema`) is made from the same types that read and write it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from orchestrator.errors import InvalidInput
from orchestrator.provenance.rows import RunDetail
from orchestrator.records import Json, sha256_of

RECORD_VERSION = 1
SCHEMA_ID = f"orchestrator/run-record/{RECORD_VERSION}"


def record_of(detail: RunDetail) -> dict[str, Json]:
    """Return a run's record; the message's body is base64, because it needn't be text, and has its digest beside it."""
    document = _adapter().dump_python(detail, mode="json", exclude={"message": {"raw": {"body"}}})
    if detail.message is not None:
        raw = detail.message.raw
        document["message"]["raw"] |= {"body": base64.b64encode(raw.body).decode(), "sha256": raw.sha256}
    return {"record_version": RECORD_VERSION, **document}


def detail_of(document: Json) -> RunDetail:
    """Rebuild what the store knew from a record.

    Raises
    ------
    InvalidInput
        When the document isn't one, or one that a newer release wrote; the message names the fields.
    """
    if not isinstance(document, dict):
        raise InvalidInput(f"not a run's record: it must be a JSON object, not {type(document).__name__}")
    values: dict[str, Any] = dict(document)
    version = values.pop("record_version", None)
    if version != RECORD_VERSION:
        raise InvalidInput(
            f"record_version is {version!r}, this release reads {RECORD_VERSION}",
            remedy="use the release that wrote the record, or a newer one",
        )
    try:
        return _adapter().validate_python(_with_body(values))
    except (ValidationError, ValueError) as error:
        raise InvalidInput(f"not a run's record: {_words(error)}") from error


def record_text(detail: RunDetail) -> str:
    """Return a record as it stands in a file."""
    return json.dumps(record_of(detail), indent=1) + "\n"


def record_schema() -> dict[str, Json]:
    """Return the JSON Schema (draft 2020-12) of a record."""
    schema: dict[str, Any] = _adapter().json_schema(mode="serialization")
    schema["properties"] = {"record_version": {"const": RECORD_VERSION}, **schema["properties"]}
    schema["required"] = ["record_version", *schema["required"]]
    body = {"type": "string", "contentEncoding": "base64", "description": "The message, byte for byte."}
    digest = {"type": "string", "pattern": "^[0-9a-f]{64}$", "description": "SHA-256 of the body, in hexadecimal."}
    schema["$defs"]["RawMessage"]["properties"] |= {"body": body, "sha256": digest}
    schema["$defs"]["RawMessage"]["required"].append("sha256")
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA_ID}
    return head | schema | {"title": "Run record", "description": "Everything that is known about one run."}


@cache
def _adapter() -> TypeAdapter[RunDetail]:
    return TypeAdapter(RunDetail)


def _with_body(values: Mapping[str, Any]) -> dict[str, Any]:
    message = values.get("message")
    if not isinstance(message, dict) or not isinstance(message.get("raw"), dict):
        return dict(values)
    raw = dict(message["raw"])
    raw["body"] = base64.b64decode(str(raw.get("body", "")), validate=True)
    if raw.pop("sha256", None) != (digest := sha256_of(raw["body"])):
        raise ValueError(f"its SHA-256 is {digest}, not what sha256 says")
    return {**values, "message": message | {"raw": raw}}


def _words(error: ValueError) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:5])
    return f"message.raw.body: {error}"
