"""Bytes in, one JSON object out, nothing guessed.

Python's parser is more lenient than the standard (RFC 8259): it takes NaN, lets the last of two equal keys win and
turns 1e999 into infinity. A control system that sends such a thing has a fault that must be seen, so all of it is
refused. This module knows nothing of collections.
"""

from __future__ import annotations

import json
import math
from typing import NoReturn

from orchestrator.errors import InvalidMessage
from orchestrator.records import Json

MAX_BYTES = 1024 * 1024
"""Largest body that is read; a start message with long metadata has some kilobytes."""

_MAX_INTEGER_DIGITS = 19
_SHOWN_CHARACTERS = 60


def parse_object(body: bytes) -> dict[str, Json]:
    """Parse a UTF-8 JSON object.

    Raises
    ------
    InvalidMessage
        Naming the byte, line and column, or key, where the text stops being an acceptable JSON object.
    """
    value = _parse(_decode(body))
    if not isinstance(value, dict):
        raise InvalidMessage(
            f"the document is {_kind(value)}, not an object", remedy='send one JSON object, {"schema": …, …}'
        )
    return value


def show(value: object) -> str:
    """Return `value` as short JSON in ASCII, for error messages."""
    if isinstance(value, dict | list):
        return f"{_kind(value)} of {len(value)}"
    text = json.dumps(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}... ({len(text)} characters)"


def show_name(name: str) -> str:
    """Return a field's name as it is if it is short and printable, else escaped and shortened."""
    return name if name.isprintable() and len(name) <= _SHOWN_CHARACTERS else show(name)


def _decode(body: bytes) -> str:
    if len(body) > MAX_BYTES:
        raise InvalidMessage(
            f"the body has more than {MAX_BYTES} bytes", remedy="leave large values out; they belong in the HDF5 file"
        )
    if not body.strip():
        raise InvalidMessage("the body is empty", remedy="send a JSON object in UTF-8")
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidMessage(
            f"byte {error.start} (0x{body[error.start]:02x}) isn't UTF-8", remedy="send the JSON text in UTF-8"
        ) from error


def _parse(text: str) -> Json:
    try:
        value: Json = json.loads(
            text,
            object_pairs_hook=_unique_keys,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
            parse_int=_short_integer,
        )
    except json.JSONDecodeError as error:
        raise InvalidMessage(
            f"not JSON: line {error.lineno} column {error.colno}: {error.msg}", remedy="send a JSON object in UTF-8"
        ) from error
    except RecursionError as error:
        raise InvalidMessage("the JSON is nested too deeply", remedy="send a flat object") from error
    return value


def _unique_keys(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found: dict[str, Json] = {}
    for key, value in pairs:
        if key in found:
            raise InvalidMessage(f"{show_name(key)}: stands twice in one object", remedy="send each field once")
        found[key] = value
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidMessage(f"{name} isn't a JSON number", remedy="send finite numbers; leave out what isn't known")


def _finite_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise InvalidMessage(f"the number {text[:40]} is too large for a double", remedy="send finite numbers")
    return number


def _short_integer(text: str) -> int:
    if len(text.lstrip("-")) > _MAX_INTEGER_DIGITS:
        raise InvalidMessage(
            f"the integer {text[:40]}... has more than {_MAX_INTEGER_DIGITS} digits",
            remedy="send such an id as a string",
        )
    return int(text)


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")
