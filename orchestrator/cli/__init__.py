"""The command line. Each module here is one command or group; this one puts them together.

Exit codes, the same for every command: see `orchestrator.cli.common.ExitCode`.
"""

from __future__ import annotations

import typer

from orchestrator.cli import db, demo, messages, plan, schema, serve, simulate, site, stack, submit

app = typer.Typer(
    name="orchestrator",
    help="Real-time automatic processing of detector data on SLURM clusters, with full provenance.",
    epilog="Exit codes: 0 done, 1 fault in the program, 2 wrong command line, 3 invalid input, 4 not found, "
    "5 SLURM, broker or database out of reach, 6 done but not whole.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
for command in (
    demo.demo,
    serve.serve,
    plan.plan,
    submit.submit,
    messages.messages,
    submit.cancel,
    simulate.simulate,
    schema.schema,
):
    app.command()(command)
app.add_typer(site.app, name="site")
app.add_typer(stack.app, name="stack")
app.add_typer(db.app, name="db")


def main() -> None:
    """Run the command line."""
    app()


__all__ = ["app", "main"]
