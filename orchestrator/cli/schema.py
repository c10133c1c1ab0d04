"""``orchestrator schema``: the JSON Schemas of what this program reads."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli.common import out, print_json, says_errors
from orchestrator.errors import NotFound
from orchestrator.messages import json_schemas


@says_errors
def schema(
    name: Annotated[str | None, typer.Argument(help="Schema id, e.g. orchestrator/collection-start/1.")] = None,
) -> None:
    """List the documents that are understood, or print the JSON Schema (draft 2020-12) of one."""
    schemas = json_schemas()
    if name is None:
        for known in schemas:
            out.print(known)
        return
    if name not in schemas:
        raise NotFound(f"there is no schema {name}", remedy=f"known ones: {', '.join(schemas)}")
    print_json(schemas[name])
