"""``orchestrator simulate``: a detector that writes HDF5 while others read it."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from orchestrator.cli.common import JsonOption, err, out, print_json, says_errors
from orchestrator.errors import InvalidInput
from orchestrator.signals import EndSignals
from orchestrator.simulator import (
    Calibrant,
    Compression,
    GeometryOverrides,
    Layout,
    Misbehaviour,
    PixelType,
    ProgressFile,
    ReplaySettings,
    SimulationReport,
    SimulationSettings,
    SyntheticFramesSettings,
)
from orchestrator.simulator import simulate as run_simulation

_FRAMES = "Frames"
_GEOMETRY = "Geometry (default: the calibrant's, or the replayed file's)"
_WRONG = "Misbehaviour"


def _numbers(option: str, text: str, separator: str, kind: type[int] | type[float], count: int = 0) -> list[float]:
    try:
        numbers = [kind(part) for part in text.split(separator)]
    except ValueError:
        numbers = []
    if not numbers or (count and len(numbers) != count):
        example = {"x": "515x515", ",": "257.5,260" if count else "3,4,17"}[separator]
        raise InvalidInput(
            f"{option} {text}: not numbers separated by '{separator}'", remedy=f"e.g. {option} {example}"
        )
    return list(numbers)


def _geometry(
    distance_mm: float | None, pixel_um: float | None, wavelength_angstrom: float | None, beam_center: str | None
) -> GeometryOverrides:
    x_y = None if beam_center is None else _numbers("--beam-center", beam_center, ",", float, 2)
    return GeometryOverrides(
        distance_m=None if distance_mm is None else distance_mm * 1e-3,
        pixel_m=None if pixel_um is None else pixel_um * 1e-6,
        wavelength_angstrom=wavelength_angstrom,
        beam_center_px=None if x_y is None else (x_y[0], x_y[1]),
    )


def _replay(file: Path | None, dataset: str | None, geometry: GeometryOverrides) -> ReplaySettings | None:
    if file is None and dataset is None:
        return None
    if file is None:
        raise InvalidInput("--dataset: without --input", remedy="name the file to replay with --input FILE")
    if dataset is None:
        raise InvalidInput("--input: without --dataset", remedy="name the frames, e.g. --dataset /entry/data/data")
    return ReplaySettings(file=file, dataset=dataset, geometry=geometry)


def _refuse_synthetic_options(context: typer.Context) -> None:
    """With --input the file says what the frames are: an option that would have no effect is a mistake."""
    synthetic = ("calibrant", "shape", "dtype", "peak_counts", "background_counts", "ring_fwhm_px", "module_gaps")
    for name in (*synthetic, "seed", "pool"):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = "--" + name.replace("_", "-")
            raise InvalidInput(f"{option}: has no meaning with --input", remedy=f"leave out {option} or --input")


def _run(settings: SimulationSettings, progress_file: Path | None, *, show: bool) -> SimulationReport:
    # Ending the process by a signal must close the file, so that only --die-after leaves it marked as being written.
    signals = EndSignals(signal.SIGTERM)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    kept = ProgressFile(progress_file)
    with Progress(*columns, console=err, disable=not show) as bar:
        task = bar.add_task("preparing frames", total=None)

        def started(expected: int) -> None:
            kept.start(expected)
            bar.update(task, description="frames written", total=expected)

        def written(count: int) -> None:
            kept.written(count)
            bar.update(task, completed=count)

        report = run_simulation(settings, written, started, signals.sleep)
    kept.finish(report.frames_written)
    return report


@says_errors
def simulate(
    context: typer.Context,
    *,
    output: Annotated[Path, typer.Argument(help="HDF5 file to write; the master of the layout `master`.")],
    number: Annotated[
        int | None, typer.Option(help="Frames to announce (default: 200, or what the replayed file has; it loops).")
    ] = None,
    rate: Annotated[float, typer.Option(help="Frames per second; `inf`: as fast as the disk allows.")] = 20.0,
    layout: Annotated[Layout, typer.Option(help="One file, or a master over several data files.")] = Layout.SINGLE,
    frames_per_file: Annotated[int, typer.Option(help="Frames per data file of the layout `master`.")] = 100,
    preallocate: Annotated[
        bool | None,
        typer.Option(
            "--preallocate/--grow", help="Frame datasets have their size at once (default of `master`), or grow."
        ),
    ] = None,
    compression: Annotated[Compression, typer.Option(help="Filter of each chunk.")] = Compression.BITSHUFFLE_LZ4,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an older file and its data files.")] = False,
    replayed: Annotated[
        Path | None, typer.Option("--input", help="Replay a real HDF5 file.", rich_help_panel=_FRAMES)
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="The frames in it, e.g. /entry/data/data.", rich_help_panel=_FRAMES)
    ] = None,
    calibrant: Annotated[
        Calibrant, typer.Option(help="Powder whose rings are computed.", rich_help_panel=_FRAMES)
    ] = Calibrant.AGBH,
    shape: Annotated[str, typer.Option(help="Rows x columns.", rich_help_panel=_FRAMES)] = "515x515",
    dtype: Annotated[PixelType, typer.Option(help="Type of a pixel.", rich_help_panel=_FRAMES)] = PixelType.UINT32,
    peak_counts: Annotated[
        float, typer.Option(help="Expected counts on the strongest ring.", rich_help_panel=_FRAMES)
    ] = 100.0,
    background_counts: Annotated[
        float, typer.Option(help="Expected counts of the flat background.", rich_help_panel=_FRAMES)
    ] = 1.0,
    ring_fwhm_px: Annotated[float, typer.Option(help="Width of a ring, pixels.", rich_help_panel=_FRAMES)] = 4.0,
    module_gaps: Annotated[
        bool, typer.Option(help="Gaps between chips, with a pixel mask.", rich_help_panel=_FRAMES)
    ] = True,
    seed: Annotated[int, typer.Option(help="The same seed gives the same frames.", rich_help_panel=_FRAMES)] = 0,
    pool: Annotated[int, typer.Option(help="Different frames before they repeat.", rich_help_panel=_FRAMES)] = 64,
    distance_mm: Annotated[float | None, typer.Option(help="Sample to detector.", rich_help_panel=_GEOMETRY)] = None,
    pixel_um: Annotated[float | None, typer.Option(help="Pixel size.", rich_help_panel=_GEOMETRY)] = None,
    wavelength_angstrom: Annotated[
        float | None, typer.Option(help="Wavelength of the beam.", rich_help_panel=_GEOMETRY)
    ] = None,
    beam_center: Annotated[
        str | None, typer.Option(help="X,Y in pixels from the first pixel's corner.", rich_help_panel=_GEOMETRY)
    ] = None,
    stall_after: Annotated[
        int | None, typer.Option(help="Stop for a while after so many frames.", rich_help_panel=_WRONG)
    ] = None,
    stall_for: Annotated[float, typer.Option(help="How long, in seconds.", rich_help_panel=_WRONG)] = 0.0,
    die_after: Annotated[
        int | None, typer.Option(help="End without closing anything after so many frames.", rich_help_panel=_WRONG)
    ] = None,
    write_only: Annotated[
        int | None, typer.Option(help="Write fewer frames than announced, and end in order.", rich_help_panel=_WRONG)
    ] = None,
    gaps: Annotated[
        str | None, typer.Option(help="Frames never written, from 0: 3,4,17.", rich_help_panel=_WRONG)
    ] = None,
    shuffle_within: Annotated[
        int, typer.Option(help="Write out of order within blocks of so many.", rich_help_panel=_WRONG)
    ] = 1,
    progress_file: Annotated[
        Path | None, typer.Option(help="JSON with written, expected, finished; replaced as the scan goes on.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a scan of powder rings, or replay a real one, in SWMR mode while others read.

    - 200 frames in ten seconds: `orchestrator simulate scan.h5`
    - a real scan again: `orchestrator simulate again.h5 --input scan.h5 --dataset /entry/data/data --rate 5`
    - a detector that dies: `orchestrator simulate scan.h5 --die-after 50`
    """
    geometry = _geometry(distance_mm, pixel_um, wavelength_angstrom, beam_center)
    replay = _replay(replayed, dataset, geometry)
    if replay:
        _refuse_synthetic_options(context)
    rows, columns = map(int, _numbers("--shape", shape, "x", int, 2))
    settings = SimulationSettings(
        output=output,
        frames=replay
        or SyntheticFramesSettings(
            calibrant=calibrant,
            shape=(rows, columns),
            pixel_type=dtype,
            geometry=geometry,
            peak_counts=peak_counts,
            background_counts=background_counts,
            ring_fwhm_px=ring_fwhm_px,
            module_gaps=module_gaps,
            pool=pool,
            seed=seed,
        ),
        number=number,
        rate_hz=rate,
        layout=layout,
        frames_per_file=frames_per_file,
        preallocate=preallocate,
        compression=compression,
        overwrite=overwrite,
        misbehaviour=Misbehaviour(
            stall_after=stall_after,
            stall_for_s=stall_for,
            die_after=die_after,
            write_only=write_only,
            gaps=frozenset(map(int, _numbers("--gaps", gaps, ",", int))) if gaps else frozenset(),
            shuffle_within=shuffle_within,
        ),
    )
    report = _run(settings, progress_file, show=not as_json)
    if as_json:
        print_json(report)
    else:
        out.print(
            f"{report.frames_written} of {report.frames_expected} frames written to {output}"
            f" at {report.rate_hz:.1f} Hz, at most {report.latest_s * 1e3:.1f} ms late"
        )
