"""The command line. Each module here is one command or group; this one lists them.

Exit codes, the same for every command: see `orchestrator.cli.common.ExitCode`.
"""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator import __version__
from orchestrator.cli.lazy import Entry, group_of

_LOOK = "Look what happened"
_RUN = "Process data"
_SITE = "Set up a site"
_TRY = "Try out"


def _command(panel: str, name: str, summary: str, module: str = "", attribute: str = "") -> Entry:
    return Entry(name=name, summary=summary, panel=panel, module=module or name, attribute=attribute or name)


ENTRIES = (
    _command(_LOOK, "runs", "List and filter runs."),
    _command(_LOOK, "show", "Tell everything about a run."),
    _command(_LOOK, "watch", "Follow active runs with progress bars."),
    _command(_LOOK, "log", "Print what a run's job printed."),
    _command(_LOOK, "diff", "Say what two runs have different, and their results."),
    _command(_LOOK, "lineage", "Walk from a file back to the raw data, and forward."),
    _command(_LOOK, "verify", "Repeat a run from its record and compare the results."),
    _command(_LOOK, "validate", "Check results against the NeXus standard."),
    _command(_LOOK, "export", "Write a run for archives, catalogues and papers."),
    _command(_LOOK, "messages", "List what came in, and what was refused and why."),
    _command(_RUN, "serve", "Run the service: take messages, submit jobs, follow them."),
    _command(_RUN, "plan", "Show what a message would lead to; nothing is submitted."),
    _command(_RUN, "submit", "Take one message from a file, without a broker."),
    _command(_RUN, "rerun", "Make a run again, or all of a visit."),
    _command(_RUN, "cancel", "End a run that isn't wanted any more.", module="submit"),
    _command(_SITE, "doctor", "Say what is here, what is missing, and how much speed is lost."),
    _command(_SITE, "site", "Check a site file before the service gets it.", attribute="app"),
    _command(_SITE, "db", "Create, upgrade and look at the provenance database.", attribute="app"),
    _command(_SITE, "ispyb", "Say which runs stand in ISPyB, and what keeps the others out.", attribute="app"),
    _command(_SITE, "schema", "Print the JSON Schemas of messages and kernels' parameters."),
    _command(_TRY, "demo", "Show the whole thing on this machine, in a minute."),
    _command(_TRY, "simulate", "Write HDF5 as a detector does, while others read it."),
    _command(_TRY, "stack", "Run a private SLURM, broker and database on this machine.", attribute="app"),
)

app = typer.Typer(
    name="orchestrator",
    cls=group_of(ENTRIES),
    epilog="Most commands need to know the site: `export ORCHESTRATOR_SITE=/path/site.toml` once, or give `--site`. "
    "Exit codes: 0 done, 1 fault in the program, 2 wrong command line, 3 invalid input, 4 not found, "
    "5 SLURM, broker or database out of reach, 6 done but not whole.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Real-time automatic processing of detector data on SLURM clusters, with full provenance."""


def main() -> None:
    """Run the command line."""
    app()


__all__ = ["ENTRIES", "app", "main"]
