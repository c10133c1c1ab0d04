"""``orchestrator demo``: the whole product at work, on this machine, in a minute."""

from __future__ import annotations

import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group
from rich.live import Live
from rich.text import Text

from orchestrator.cli.common import ExitCode, err, out, print_fields, says_errors, to_json
from orchestrator.cli.progress import frame_bars, lag_of
from orchestrator.cli.wording import seconds
from orchestrator.demonstration import Demonstration, Summary, View, Watch, run
from orchestrator.errors import InvalidInput
from orchestrator.runs import write_atomically


@says_errors
def demo(
    *,
    frames: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Frames to write (200, or what the replayed file has).")
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(min=0.01, metavar="HZ", help="Frames per second (20, or 2 for a replayed file)."),
    ] = None,
    ranks: Annotated[int, typer.Option(min=1, metavar="N", help="MPI ranks of the kernel.")] = 2,
    replayed: Annotated[
        Path | None,
        typer.Option("--input", metavar="FILE", exists=True, dir_okay=False, help="Replay a real HDF5 file."),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(metavar="PATH", help="The frames in it, e.g. /entry/data/data.")
    ] = None,
    embedded: Annotated[
        bool, typer.Option("--embedded", help="Without SLURM and broker: spool folder, local route, SQLite.")
    ] = False,
    directory: Annotated[
        Path | None,
        typer.Option("--dir", "--directory", metavar="DIR", help="Where everything goes (default: a new folder)."),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave stack and service running afterwards.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the summary there, for scripts.")
    ] = None,
) -> None:
    """Process a simulated (or replayed) collection live and show how it goes.

    A private SLURM and ActiveMQ are brought up, the service is started, a detector writes frames, a collection-start
    message announces them, and a SLURM job integrates them while they come. Exit code 0 only if every frame that was
    written has been processed.

    - with SLURM and a broker, as root or where they are installed: `orchestrator demo`
    - anywhere: `orchestrator demo --embedded`
    - real frames: `orchestrator demo --input scan.h5 --dataset /entry/data/data`
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
    with _display() as watch:
        summary = run(demonstration, watch)
    if json_file is not None:
        write_atomically(json_file.absolute(), to_json(asdict(summary)) + "\n")
    _print(summary, folder)
    raise typer.Exit(ExitCode.OK if summary.complete else ExitCode.INCOMPLETE)


@contextmanager
def _display() -> Iterator[Watch]:
    if not err.is_terminal:
        yield _Lines()
        return
    with Live(console=err, auto_refresh=False) as live:
        phase = ""

        def watch(view: View) -> None:
            nonlocal phase
            if view.phase != phase:
                phase = view.phase
                live.console.print(f"· {phase}")
            if view.expected is not None:
                live.update(_bars(view), refresh=True)

        yield watch


def _bars(view: View) -> Group:
    written, processed = _frames(view)
    rows = (("written", written, ""), ("processed", processed, lag_of(view.counts, written)))
    return Group(Text(_where(view)), frame_bars(rows, view.expected))


def _frames(view: View) -> tuple[int, int]:
    """Return how many frames are written, as detector or kernel knows last, and processed."""
    return (view.written, 0) if view.counts is None else (max(view.written, view.counts.written), view.counts.processed)


def _where(view: View) -> str:
    return "no run yet" if view.state is None else f"run is {view.state}{f', job {view.job}' if view.job else ''}"


class _Lines:
    """Writes a line when something has changed, and every few seconds while frames come."""

    EVERY_S = 2.0

    def __init__(self) -> None:
        self._said, self._said_at = "", 0.0

    def __call__(self, view: View) -> None:
        stage = view.phase if view.expected is None else f"{view.phase}: {_where(view)}"
        if stage == self._said and time.monotonic() - self._said_at < self.EVERY_S:
            return
        self._said, self._said_at = stage, time.monotonic()
        written, processed = _frames(view)
        lag = lag_of(view.counts, written)
        frames = f", written {written}/{view.expected}, processed {processed}{f', {lag}' if lag else ''}"
        err.print(f"· {stage}{'' if view.expected is None else frames}")


def _print(summary: Summary, folder: Path) -> None:
    print_fields(_fields(summary), label_width=20, indent=0)
    program, run, site = _program(), summary.run[:8], f"--site {shlex.quote(summary.site)}"
    out.print("\nTo look further:")
    for command in ("show", "log"):
        out.print(Text(f"  {program} {command} {run} {site}"))
    if summary.service_pid is None:
        out.print(f"\nDaemons are ended; what was recorded stays in {folder} until you remove it.")
        return
    out.print(Text(f"\nThe service goes on (--keep). To end it:\n  kill {summary.service_pid}"))
    if (stack := folder / "stack").is_dir():
        option = f"--dir {shlex.quote(str(stack))}"
        out.print(Text(f'To use its SLURM in this shell:\n  eval "$({program} stack env {option})"'))
        out.print(Text(f"To end SLURM and ActiveMQ:\n  {program} stack down {option}"))


def _program() -> str:
    """Return how this shell calls the program: script/demo runs it without its folder being on the PATH."""
    here = Path(sys.executable).with_name("orchestrator")
    if shutil.which("orchestrator") == str(here):
        return "orchestrator"
    return shlex.quote(str(here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else here))


def _fields(summary: Summary) -> Iterator[tuple[str, str]]:
    yield "run", summary.run
    if summary.slurm_job_id is not None:
        yield "job", f"{summary.slurm_job_id} through the {summary.gateway} gateway"
    yield "state", f"{summary.state}: {summary.reason}"
    written, processed = summary.frames_written, summary.frames_processed
    announced = f"{summary.frames_expected} announced, {written} written"
    yield "frames", f"{announced}, {processed} processed, {summary.frames_failed} failed"
    yield "message to job start", seconds(summary.message_to_job_start_s)
    lag = f"median {seconds(summary.lag_median_s)}, worst {seconds(summary.lag_max_s)}"
    yield "lag", f"{lag} (frames written before the job started waited for it)"
    yield "result", summary.result
    if summary.picture:
        yield "picture", summary.picture
