"""The argument MESSAGE of commands: a document's file, or standard input."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.errors import NotFound
from orchestrator.records import RawMessage

MessageArgument = Annotated[
    Path, typer.Argument(metavar="MESSAGE", help="A collection document in a file, or - for standard input.")
]


def read_message(path: Path) -> RawMessage:
    """Return the message in a file, or in standard input for ``-``.

    Raises
    ------
    NotFound
        When the file can't be read.
    """
    try:
        body = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise NotFound(f"{path}: {error.strerror}", remedy="give the message's JSON file, or - for input") from error
    source = "standard input" if str(path) == "-" else str(path.absolute())
    return RawMessage(body=body, source=f"command:{source}")
