"""``orchestrator demo``: the whole product at work, on this machine, in a minute."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from orchestrator.cli.common import ExitCode, err, out, says_errors, to_json
from orchestrator.demonstration import Demonstration, Summary, View, Watch, run
from orchestrator.errors import InvalidInput
from orchestrator.runs import write_atomically


@says_errors
def demo(
    *,
    frames: Annotated[
        int | None, typer.Option(min=1, help="Frames to write (200, or what the replayed file has).")
    ] = None,
    rate: Annotated[float, typer.Option(min=0.01, help="Frames per second.")] = 20.0,
    ranks: Annotated[int, typer.Option(min=1, help="MPI ranks of the kernel.")] = 2,
    replayed: Annotated[
        Path | None, typer.Option("--input", exists=True, dir_okay=False, help="Replay a real HDF5 file.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="The frames in it, e.g. /entry/data/data.")] = None,
    embedded: Annotated[
        bool, typer.Option("--embedded", help="Without SLURM and broker: spool folder, local route, SQLite.")
    ] = False,
    directory: Annotated[Path | None, typer.Option(help="Where everything goes (default: a new folder).")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave stack and service running afterwards.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the summary there, for machines.")] = None,
) -> None:
    """Process a simulated (or replayed) collection live and show how it goes.

    A private SLURM and ActiveMQ are brought up, the service is started, a detector writes frames, a collection-start
    message announces them, and a SLURM job integrates them while they come. Exit code 0 only if every frame that was
    written has been processed.
    """
    if (replayed is None) != (dataset is None):
        raise InvalidInput("--input and --dataset go together", remedy="give both, or none for simulated frames")
    folder = (directory or Path(tempfile.mkdtemp(prefix="orchestrator-demo-"))).absolute()
    demonstration = Demonstration(
        directory=folder,
        frames=frames,
        rate_hz=rate,
        ranks=ranks,
        embedded=embedded,
        input=replayed.absolute() if replayed else None,
        input_dataset=dataset,
        keep=keep,
    )
    out.print(f"Everything goes into {folder}" + (" (embedded: no SLURM, no broker)" if embedded else ""))
    with _bars() as watch:
        summary = run(demonstration, watch)
    if json_file is not None:
        write_atomically(json_file.absolute(), to_json(asdict(summary)) + "\n")
    _print(summary, keep=keep, folder=folder)
    raise typer.Exit(ExitCode.OK if summary.complete else ExitCode.INCOMPLETE)


@contextmanager
def _bars() -> Iterator[Watch]:
    columns = (
        TextColumn("{task.description:<30}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err) as progress:
        phase = ""
        written = progress.add_task("frames written", total=None, visible=False, note="")
        processed = progress.add_task("frames processed", total=None, visible=False, note="")

        def watch(view: View) -> None:
            nonlocal phase
            note = f"job {view.job} {view.state}" if view.job else str(view.state or "")
            if view.phase != phase or (not progress.console.is_terminal and view.expected is None):
                phase = view.phase
                progress.console.print(f"· {phase}")
            if view.expected is None:
                return
            progress.update(written, total=view.expected, completed=view.written, visible=True)
            counts = view.counts
            done = 0 if counts is None else counts.processed
            if counts is not None and counts.lag_median_s is not None:
                note += f", lag {counts.lag_median_s * 1e3:.0f} ms, {view.written - done} behind"
            progress.update(processed, total=view.expected, completed=done, visible=True, note=note)

        yield watch


def _print(summary: Summary, *, keep: bool, folder: Path) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    job = "" if summary.slurm_job_id is None else f"job {summary.slurm_job_id} through the {summary.gateway} gateway"
    frames = (
        f"{summary.frames_expected} announced, {summary.frames_written} written, "
        f"{summary.frames_processed} processed, {summary.frames_failed} failed"
    )
    rows = {
        "run": summary.run,
        "job": job,
        "state": f"{summary.state}: {summary.reason}",
        "frames": frames,
        "message to job start": _seconds(summary.message_to_job_start_s),
        "lag": f"median {_seconds(summary.lag_median_s)}, worst {_seconds(summary.lag_max_s)} (frames written before "
        "the job started waited for it)",
        "result": summary.result,
        "picture": summary.picture or "",
    }
    for name, value in rows.items():
        table.add_row(f"[bold]{name}[/]", value)
    out.print(table)
    site = f"--site {shlex.quote(summary.site)}"
    program = "orchestrator"
    out.print("\nTo look further:")
    for command in (f"{program} show {summary.run[:8]} {site}", f"{program} log {summary.run[:8]} {site}"):
        out.print(f"  {command}")
    if keep:
        stack = shlex.quote(str(folder / "stack"))
        out.print(f"\nStack and service go on (--keep). To end the stack: {program} stack down --dir {stack}")
    else:
        out.print(f"\nDaemons are ended; what was recorded stays in {folder} until you remove it.")


def _seconds(value: float | None) -> str:
    return "unknown" if value is None else f"{value * 1e3:.0f} ms" if value < 1 else f"{value:.2f} s"
