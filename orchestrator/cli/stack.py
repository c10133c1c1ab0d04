"""``orchestrator stack``: a private SLURM, broker and database on this machine."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from orchestrator.cli.common import ExitCode, JsonOption, err, out, print_json, says_errors
from orchestrator.stack import DaemonStatus, Service, Stack
from orchestrator.stack.addresses import beyond_loopback

app = typer.Typer(
    help="A private SLURM, broker and database on this machine, for trying out and for tests.",
    no_args_is_help=True,
)

DirectoryOption = Annotated[
    Path | None,
    typer.Option(
        "--dir",
        "--directory",
        metavar="DIR",
        help="The stack's directory; several stacks may run side by side. "
        "Without it: orchestrator/stack in $XDG_STATE_HOME or ~/.local/state.",
    ),
]


@app.command()
@says_errors
def up(
    directory: DirectoryOption = None,
    nodes: Annotated[
        int | None, typer.Option(min=1, max=64, metavar="N", help="Compute nodes (slurmd): 2, or as many as before.")
    ] = None,
    services: Annotated[
        str, typer.Option("--with", metavar="LIST", help=f"Comma-separated, of: {', '.join(Service)}.")
    ] = "slurm,broker",
    json: JsonOption = False,
) -> None:
    """Bring the stack up and wait until every daemon answers.

    Running daemons are kept and dead ones started again, so it is harmless to repeat. Needs the programs that
    `script/bootstrap` installs; needs no systemd, no containers and nothing of a cluster that this machine may have.

    - two nodes and a broker: `orchestrator stack up`
    - with accounting, as most clusters have: `orchestrator stack up --with slurm,broker,accounting`
    """
    stack = Stack(directory)
    stack.up([name.strip() for name in services.split(",") if name.strip()], nodes=nodes)
    _show(stack, as_json=json)
    if (reason := beyond_loopback()) and "slurm" in services:
        err.print(f"note: {escape(reason)}: SLURM listens on all its addresses, and munge keeps strangers out")
    if not json:
        option = f" --dir {shlex.quote(str(directory))}" if directory else ""
        err.print(f'Use it in this shell:  eval "$(orchestrator stack env{escape(option)})"')


@app.command()
@says_errors
def status(directory: DirectoryOption = None, json: JsonOption = False) -> None:
    """Show each daemon, and the last lines of the log of those that are dead (exit code 6)."""
    _show(Stack(directory), as_json=json)


@app.command()
@says_errors
def env(directory: DirectoryOption = None, json: JsonOption = False) -> None:
    """Print the shell commands that point programs at the stack.

    - sbatch, squeue and the orchestrator of this shell use it: `eval "$(orchestrator stack env)"`
    """
    variables = Stack(directory).environment()
    if json:
        print_json(variables)
        return
    for name, value in variables.items():
        typer.echo(f"export {name}={shlex.quote(value)}")


@app.command()
@says_errors
def down(directory: DirectoryOption = None) -> None:
    """End the stack's jobs and daemons, and nothing else; its data and logs stay in its directory."""
    stack = Stack(directory)
    known = stack.status()
    stack.down()
    where = escape(str(stack.directory))
    out.print(f"The stack in {where} is down; its data and logs stay there." if known else f"No stack runs in {where}.")


def _show(stack: Stack, *, as_json: bool) -> None:
    daemons = stack.status()
    if as_json:
        print_json({"directory": stack.directory, "daemons": daemons})
    elif not daemons:
        out.print(f"There is no stack in {escape(str(stack.directory))}.")
    for daemon in daemons if not as_json else ():
        _show_daemon(daemon)
    if not all(daemon.alive for daemon in daemons):
        raise typer.Exit(ExitCode.INCOMPLETE)


def _show_daemon(daemon: DaemonStatus) -> None:
    state = "[green]alive[/]" if daemon.alive else "[bold red]dead [/]"
    pid = f"pid {daemon.pid or '-':<8}"
    port = f"port {daemon.port or '-'}"
    out.print(f"{daemon.name:<12} {state}  {pid} {port}")
    if not daemon.alive:
        out.print(f"    last lines of {escape(str(daemon.log))}:")
        for line in daemon.last_lines:
            out.print(f"    | {escape(line)}")
