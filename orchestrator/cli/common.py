"""What all commands share: exit codes, output for people and for scripts, and the translation of errors."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from datetime import datetime
from enum import IntEnum
from pathlib import Path
from typing import Annotated, NoReturn, ParamSpec, TypeVar

import typer
from rich.console import Console

from orchestrator.errors import InvalidInput, NotFound, OrchestratorError

P = ParamSpec("P")
R = TypeVar("R")

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
    raise TypeError(f"no JSON form for {type(value).__name__}")


def to_json(value: object) -> str:
    """Return `value` (records, times and paths included) as indented JSON."""
    return json.dumps(value, indent=2, default=_jsonable)


def print_json(value: object) -> None:
    """Write `value` to standard output as JSON, for scripts."""
    sys.stdout.write(to_json(value) + "\n")


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
    typer.Option("--site", envvar="ORCHESTRATOR_SITE", help="The site file.", exists=True, dir_okay=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts instead of text for people.")]

__all__ = ["ExitCode", "JsonOption", "err", "exit_code_of", "fail", "out", "print_json", "says_errors", "to_json"]
