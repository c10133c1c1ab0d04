"""What all commands share: exit codes, output for people and for scripts, and the translation of errors.

Every command imports this module, so it imports nothing heavy: the store is opened by those who need it.
"""

from __future__ import annotations

import functools
import json
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, is_dataclass
from datetime import datetime
from enum import IntEnum
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, NoReturn, ParamSpec, TypeVar

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from orchestrator.errors import InvalidInput, NotFound, OrchestratorError

P = ParamSpec("P")
R = TypeVar("R")

ENOUGH = 24
"""Columns of a terminal that are enough for a sentence to be wrapped in."""

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


class ExitCode(IntEnum):
    """What a command's exit code says."""

    OK = 0
    FAULT = 1
    """A fault in the program; a traceback stands above."""
    USAGE = 2
    """The command line is wrong."""
    INVALID_INPUT = 3
    """A message, site file, template or data file is wrong; the message names the place."""
    NOT_FOUND = 4
    """What was asked for isn't there."""
    UNAVAILABLE = 5
    """SLURM, the broker or the database can't be reached now; the same command may work later."""
    INCOMPLETE = 6
    """It worked, but the outcome isn't whole: a partial or failed run, a dead daemon."""


def _jsonable(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, set | frozenset | tuple):
        return list(value)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    raise TypeError(f"no JSON form for {type(value).__name__}")


def to_json(value: object) -> str:
    """Return `value` (records, times and paths included) as indented JSON."""
    return json.dumps(value, indent=2, default=_jsonable)


def print_json(value: object) -> None:
    """Write `value` to standard output as JSON, for scripts."""
    sys.stdout.write(to_json(value) + "\n")


def print_fields(fields: Iterable[tuple[str, str]], *, label_width: int = 12, indent: int = 2) -> None:
    """Write labelled values below each other.

    On a terminal long sentences are wrapped beside their label; paths and ids are never broken, so that they can be
    copied. Elsewhere each value is one line.
    """
    start = indent + label_width + 2
    for label, value in fields:
        lines = value.splitlines() or [""]
        if out.is_terminal:
            width = max(out.width - start, 30)
            lines = [part for line in lines for part in _wrapped(line, width)]
        head = Text.assemble(" " * indent, (label.ljust(label_width), "bold"), "  ", lines[0])
        out.print(head)
        for line in lines[1:]:
            out.print(Text(" " * start + line))


def _wrapped(line: str, width: int) -> list[str]:
    return textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False) or [""]


def print_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], *, cut: bool = False, notes: Sequence[str] = ()
) -> None:
    """Write rows in columns, every value whole.

    On a terminal a last column that doesn't fit is wrapped, or stands below its row where there is hardly any room;
    with `cut` it is cut instead. `notes` has a sentence for each row that stands below it, where it isn't empty.
    """
    widths = [max(map(cell_len, column)) for column in zip(headings, *rows, strict=True)]
    margin = sum(widths[:-1]) + 2 * len(widths[:-1])
    room = out.width - margin if out.is_terminal else widths[-1]
    for row, note in zip_longest((headings, *rows), ("", *notes), fillvalue=""):
        first = "".join(
            cell + " " * (width - cell_len(cell) + 2) for cell, width in zip(row[:-1], widths, strict=False)
        )
        for line in _with_last(first, row[-1], room, min(widths[-1], ENOUGH), cut=cut):
            out.print(Text(line.rstrip(), style="bold" if row is headings else ""))
        for line in _wrapped(note, out.width - 4) if note else ():
            out.print(Text(f"    {line}"))


def _with_last(first: str, last: str, room: int, enough: int, *, cut: bool) -> list[str]:
    """Return the lines of a row whose last cell may not fit into the room that is left."""
    if cut:
        return [first + (last if cell_len(last) <= room else last[: max(room - 1, 0)] + "…")]
    if room < enough:
        return [first, *(f"    {line}" for line in _wrapped(last, out.width - 4) if line)]
    lines = _wrapped(last, max(room, 1))
    return [first + lines[0], *(" " * cell_len(first) + line for line in lines[1:])]


def exit_code_of(error: OrchestratorError) -> ExitCode:
    """Return the exit code that tells this kind of error from the others."""
    if error.transient:
        return ExitCode.UNAVAILABLE
    if isinstance(error, NotFound):
        return ExitCode.NOT_FOUND
    if isinstance(error, InvalidInput):
        return ExitCode.INVALID_INPUT
    return ExitCode.INCOMPLETE


def fail(error: OrchestratorError) -> NoReturn:
    """Say what is wrong and what to do about it, and leave with the error's exit code."""
    err.print(f"[bold red]error:[/] {_plain(str(error))}")
    if error.remedy:
        err.print(f"[bold]remedy:[/] {_plain(error.remedy)}")
    raise typer.Exit(exit_code_of(error)) from error


def _plain(text: str) -> str:
    return text.replace("[", "\\[")


def says_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Wrap a command so that foreseen errors become a sentence and an exit code; faults keep their traceback."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except OrchestratorError as error:
            fail(error)

    return wrapped


SiteOption = Annotated[
    Path,
    typer.Option(
        "--site", metavar="FILE", envvar="ORCHESTRATOR_SITE", help="The site file.", exists=True, dir_okay=False
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts instead of text for people.")]

__all__ = [
    "ExitCode", "JsonOption", "SiteOption", "err", "exit_code_of", "fail", "out", "print_fields",
    "print_json", "print_table", "says_errors", "to_json",
]  # fmt: skip
