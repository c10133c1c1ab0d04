"""A site file on disk becomes `Settings`, or an error that names the file, the line, the key and the remedy."""

from __future__ import annotations

import difflib
import re
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from orchestrator.errors import InvalidSettings
from orchestrator.records import Json
from orchestrator.settings.model import Settings
from orchestrator.settings.toml_places import lines_of

_NOT_IN_FILES = frozenset({"source", "overridden"})
"""Fields of `Settings` that come from how it was loaded."""


_UNKNOWN = frozenset({"extra_forbidden", "unexpected_keyword_argument"})
"""Pydantic's types of error for a key that a model or a dataclass doesn't have."""


def load_settings(path: Path, overrides: Mapping[str, Json] | None = None) -> Settings:
    """Read a site file.

    Parameters
    ----------
    path
        TOML file; relative paths in it are taken from its folder.
    overrides
        Dotted key -> value, set over what the file says; paths among them should be absolute. The settings remember
        them, so that a parameter's origin can be told.

    Raises
    ------
    InvalidSettings
        The file can't be read, isn't TOML, has an unknown or a missing key or a wrong value; names file, line and key.
    """
    path = path.absolute()
    text = _read(path)
    content = _parse(path, text)
    for key, value in (overrides or {}).items():
        _set(content, key, deepcopy(value))
    for name in sorted(_NOT_IN_FILES & set(content)):
        raise InvalidSettings(f"{_place(path, text, [name])}: unknown key '{name}'", remedy="remove it")
    try:
        return Settings.model_validate(
            content | {"source": path, "overridden": frozenset(overrides or ())}, context={"folder": path.parent}
        )
    except ValidationError as error:
        raise _translated(error, path, text) from error
    except InvalidSettings as error:
        key, _, _ = str(error).partition(":")
        raise InvalidSettings(f"{_place(path, text, key.split('.'))}: {error}", remedy=error.remedy) from error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InvalidSettings(f"{path}: there is no such site file", remedy="give one with --site FILE") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSettings(f"{path}: the site file can't be read: {error}") from error


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _syntax_error(path, text, str(error)) from error


def _syntax_error(path: Path, text: str, reason: str) -> InvalidSettings:
    """Word tomllib's error; a table that stands twice is a name that was given twice."""
    line = int(found[1]) if (found := re.search(r"at line (\d+)", reason)) else None
    place = f"{path}, line {line}" if line else str(path)
    twice = re.match(r"Cannot declare \((.*?),?\) twice", reason)
    if twice is None:
        return InvalidSettings(f"{place}: not TOML: {reason}", remedy="see https://toml.io for the format")
    key = [part.strip().strip("'\"") for part in twice[1].split(",")]
    first = next((number for number in lines_of(text, key) if number != line), "?")
    recipe = key[0] == "recipes" and len(key) == 2
    what = f"two recipes have the name '{key[1]}'" if recipe else f"[{'.'.join(key)}] stands twice"
    return InvalidSettings(f"{path}: {what}: line {first} and line {line}", remedy="rename or remove one of them")


def _set(content: dict[str, Any], dotted: str, value: Json) -> None:
    *tables, last = dotted.split(".")
    table = content
    for name in tables:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise InvalidSettings(f"override {dotted}: '{name}' is a value, not a table")
    table[last] = value


# ------------------------------------------------------------------------------------------------------ errors


def _translated(error: ValidationError, path: Path, text: str) -> InvalidSettings:
    """Word all findings in one error, each with its line; the remedy is that of the first."""
    details = error.errors(include_url=False, include_input=False)
    # A mistyped key is missing under its right name too: the unknown one comes first, with its remedy.
    details.sort(key=lambda detail: detail["type"] not in _UNKNOWN)
    findings = [_finding(detail, path, text) for detail in details]
    return InvalidSettings("\n".join(sentence for sentence, _ in findings), remedy=findings[0][1])


def _finding(detail: ErrorDetails, path: Path, text: str) -> tuple[str, str]:
    key = [str(part) for part in detail["loc"] if part != "[key]"]
    if not key and (found := re.match(r"Value error, (recipes\.[\w-]+\.\w+|ispyb\.\w+): ", detail["msg"])):
        # What doesn't fit together says itself where.
        key, detail["msg"] = found[1].split("."), detail["msg"][found.end() :]
    place, name = _place(path, text, key), ".".join(key)
    if detail["type"] in _UNKNOWN:
        known = _known_keys(key[:-1])
        near = difflib.get_close_matches(key[-1], known, n=1)
        remedy = f"did you mean '{near[0]}'?" if near else f"known keys here: {', '.join(known)}"
        return f"{place}: unknown key '{name}'", remedy
    if detail["type"] == "missing":
        return f"{place}: '{name}' is missing", f"add {key[-1]} = …; see docs/reference/site-file.md"
    reason = detail["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return f"{place}: {name}: {reason[:1].lower()}{reason[1:]}", "see docs/reference/site-file.md for what it takes"


def _place(path: Path, text: str, key: Sequence[str]) -> str:
    lines = lines_of(text, key)
    return f"{path}, line {lines[0]}" if lines else str(path)


def _known_keys(table: Sequence[str]) -> list[str]:
    """Return the keys that the table at a dotted path may have."""
    current: object = Settings
    for part in table:
        model = _model_in(current)
        # No model means a mapping from names to models.
        current = _fields(model)[part].annotation if model is not None else typing.get_args(current)[-1]
    model = _model_in(current)
    return sorted(({} if model is None else _fields(model)).keys() - _NOT_IN_FILES)


def _fields(model: type) -> Mapping[str, FieldInfo]:
    """Return a model's fields by the names that a file uses."""
    fields: Mapping[str, FieldInfo] = vars(model)["__pydantic_fields__"]
    return {field.alias or name: field for name, field in fields.items()}


def _model_in(annotation: object) -> type | None:
    if isinstance(annotation, type) and "__pydantic_fields__" in vars(annotation):
        return annotation
    if typing.get_origin(annotation) in {typing.Union, types.UnionType}:
        return next((model for option in typing.get_args(annotation) if (model := _model_in(option))), None)
    return None
