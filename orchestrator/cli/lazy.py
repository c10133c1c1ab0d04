"""Commands that are imported when they are called: ``orchestrator --help`` needs no HDF5, database or plotting library.

A command in a listing is a name and a sentence; the module behind it is imported once somebody gives that command,
asks for its help or has the shell complete it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One command, or group of commands, in the listing."""

    name: str
    summary: str
    panel: str
    module: str
    """Below `orchestrator.cli`."""
    attribute: str
    """A function, or the `typer.Typer` of a group."""


class LazyCommand(TyperCommand):
    """Stands in the listing for a command whose module hasn't been imported."""

    def __init__(self, entry: Entry) -> None:
        super().__init__(entry.name, help=entry.summary, short_help=entry.summary, rich_help_panel=entry.panel)
        self.entry = entry

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Import the command and go on with it: everything that happens to a command begins here."""
        return load(self.entry).make_context(*args, **kwargs)


def load(entry: Entry) -> Any:
    """Import a command's module and return the command."""
    found = getattr(import_module(f"orchestrator.cli.{entry.module}"), entry.attribute)
    parent = typer.Typer(add_completion=False, rich_markup_mode="markdown")
    if isinstance(found, typer.Typer):
        parent.add_typer(found, name=entry.name)
    else:
        parent.command(entry.name)(found)
    return typer.main.get_group(parent).commands[entry.name]


def group_of(entries: Sequence[Entry]) -> type[TyperGroup]:
    """Return a class of groups that has these commands, in this order."""

    class LazyGroup(TyperGroup):
        def __init__(self, **attributes: Any) -> None:
            super().__init__(**attributes)
            for entry in entries:
                self.add_command(LazyCommand(entry))

    return LazyGroup
