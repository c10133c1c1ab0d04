"""The command line. Each module here is one command or group; this one puts them together.

Exit codes, the same for every command: see `orchestrator.cli.common.ExitCode`.
"""

from __future__ import annotations

import typer

app = typer.Typer(
    name="orchestrator",
    help="Real-time automatic processing of detector data on SLURM clusters, with full provenance.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line."""
    app()


__all__ = ["app", "main"]
