"""``orchestrator schema``: the JSON Schemas of messages and of kernels' parameters."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Annotated

import typer

from orchestrator.cli.common import JsonOption, err, out, print_json, says_errors
from orchestrator.cli.wording import REPORT, program_of
from orchestrator.errors import NotFound
from orchestrator.messages import json_schemas
from orchestrator.provenance.record import SCHEMA_ID, record_schema
from orchestrator.records import Json

KERNEL = "kernel/"
"""Before a kernel's name: the schema of its parameters."""


def _names(incomplete: str) -> list[str]:
    return [name for name in (*json_schemas(), SCHEMA_ID) if name.startswith(incomplete)]


@says_errors
def schema(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="A document's id, e.g. orchestrator/collection-start/1, or a kernel, e.g. kernel/azimuthal.",
            autocompletion=_names,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List messages that are understood, runs' records and kernels' parameters, or print the JSON Schema of one.

    The schemas are of draft 2020-12.

    - for the control software's authors: `orchestrator schema orchestrator/collection-start/1 > start.schema.json`
    - which parameters a recipe may set: `orchestrator schema kernel/azimuthal`
    - all of them, by their names: `orchestrator schema --json`
    """
    messages = json_schemas() | {SCHEMA_ID: record_schema()}
    if name in messages:
        print_json(messages[name])
        return
    kernels = {KERNEL + kernel: kernel for kernel in _kernels()}
    if name in kernels:
        print_json(_parameters(kernels[name]))
    elif name is not None:
        raise NotFound(f"there is no schema {name}", remedy=f"known ones: {', '.join((*messages, *kernels))}")
    elif as_json:
        print_json({**messages, **{id_: _parameters(kernel) for id_, kernel in kernels.items()}})
    else:
        for listed in (*messages, *kernels):
            out.print(listed)


def _kernels() -> list[str]:
    """Return the kernels of this installation; where they can't be run, a remark says so."""
    try:
        text = _ask("mpi_kernels", "--help")
    except NotFound as error:
        err.print(error.full_text, markup=False)
        return []
    return [*re.findall(r"^    (\w+)(?:\s|$)", text.partition("\noptions:")[0], re.MULTILINE), REPORT]


def _parameters(kernel: str) -> Json:
    parameters: Json = json.loads(_ask(*program_of(kernel), "--schema"))
    return parameters


def _ask(*words: str) -> str:
    """Run the kernels' own command line, as a job would: this program imports none of them."""
    command = [sys.executable, "-P", "-m", *words]
    environment = os.environ | {"COLUMNS": "100"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise NotFound(f"no kernel can be run by {sys.executable}: {last}", remedy="set it up with script/bootstrap")
    return done.stdout
