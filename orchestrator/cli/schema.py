"""``orchestrator schema``: the JSON Schemas of what this program reads."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli.common import JsonOption, out, print_json, says_errors
from orchestrator.errors import NotFound
from orchestrator.messages import json_schemas


def _names(incomplete: str) -> list[str]:
    return [name for name in json_schemas() if name.startswith(incomplete)]


@says_errors
def schema(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", help="A schema's id, e.g. orchestrator/collection-start/1.", autocompletion=_names
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the documents that are understood, or print the JSON Schema (draft 2020-12) of one.

    - `orchestrator schema orchestrator/collection-start/1 > collection-start.schema.json`
    - all of them, by their ids: `orchestrator schema --json`
    """
    schemas = json_schemas()
    if name is None and as_json:
        print_json(schemas)
        return
    if name is None:
        for known in schemas:
            out.print(known)
        return
    if name not in schemas:
        raise NotFound(f"there is no schema {name}", remedy=f"known ones: {', '.join(schemas)}")
    print_json(schemas[name])
