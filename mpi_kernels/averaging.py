"""A finished result of azimuthal integration to the average of its frames: file in, file out, on one rank.

In: a NeXus result whose patterns stand in an NXdata group. Out: a NeXus file with their mean, and the progress file as
all kernels write it. The output appears under its name when it is whole.
"""

from __future__ import annotations

import hashlib
import socket
import sys
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from mpi_kernels import __version__
from mpi_kernels.average import Mean, mean_pattern
from mpi_kernels.errors import ExitCode, KernelError, OutputUnwritable, UnusableInput
from mpi_kernels.hdf5_files import Library
from mpi_kernels.identity import InputIdentity, software, source_sha256
from mpi_kernels.nexus import circumstance, process
from mpi_kernels.parameters import AverageParameters
from mpi_kernels.progress import ProgressFile, Tally
from mpi_kernels.rows import Status

_AXES = ("radial_axis", "radial_axis_edges")
_FROM_ENTRY = (
    "definition", "instrument", "solid_angle_applied", "polarization_applied", "normalization_applied",
    "monitor_applied",
)  # fmt: skip
_REFERENCE = "reduction/reference"
"""How the patterns were made, which NXazint1d wants of their mean, too."""


@dataclass(frozen=True, kw_only=True)
class AverageRequest:
    """What the command line asks for."""

    input: Path
    dataset: str
    """The NXdata group of the patterns."""
    output: Path
    parameters: AverageParameters
    parameters_sha256: str
    """Of the file as it was read."""
    progress: Path | None = None
    run_id: str = ""
    command_line: str = ""


@dataclass(frozen=True)
class _Patterns:
    """Rows of a result, from `first` on."""

    first: int
    intensity: NDArray[np.float64]
    sigma: NDArray[np.float64] | None
    status: NDArray[np.uint8]


def run_average(request: AverageRequest) -> ExitCode:
    """Average one result; the exit code is as of all kernels: partial when a frame has no pattern."""
    tally = Tally(None)
    progress = ProgressFile(
        request.progress,
        kernel="average",
        ranks=1,
        settled={
            "parameters": request.parameters.model_dump(mode="json"),
            "parameters_sha256": request.parameters_sha256,
            "software": software(),
        },
    )
    try:
        return _average(request, tally, progress)
    except KernelError as error:
        sys.stderr.write(f"error: {error.one_line}\n")
        progress.write_last_word(tally, error)
        return error.exit_code


def _average(request: AverageRequest, tally: Tally, progress: ProgressFile) -> ExitCode:
    progress.write("running", tally, now=True)
    try:
        with closing(Library("finished")) as library:
            source = library.file(request.input)
            patterns = _read(source, request)
            progress.note_input("open", _identity(request, patterns))
            done = patterns.status == Status.PROCESSED
            if not done.any():
                raise UnusableInput(f"{request.input}: none of its frames has a pattern", remedy="see why it hasn't")
            mean = mean_pattern(patterns.intensity[done], None if patterns.sigma is None else patterns.sigma[done])
            _write(source, mean, request)
    except OSError as error:
        raise UnusableInput(f"{request.input}: {error}", remedy="give the result of a finished run") from error
    for frame, status in enumerate(patterns.status, start=patterns.first):
        if status != Status.MISSING:
            tally.see(frame)
            tally.settle(frame, int(status))
    progress.note_input("end", _identity(request, patterns))
    progress.write("finished", tally, ended_because="file finished", now=True)
    return ExitCode.COMPLETE if done.all() else ExitCode.PARTIAL


def _read(source: h5py.File, request: AverageRequest) -> _Patterns:
    group, parameters = source.get(request.dataset), request.parameters
    if not isinstance(group, h5py.Group) or "I" not in group or "radial_axis" not in group:
        raise UnusableInput(
            f"{request.input}::{request.dataset}: no patterns I over a radial_axis",
            remedy="give the result of azimuthal integration",
        )
    if group["I"].ndim != 2:
        raise UnusableInput(
            f"{request.input}::{request.dataset}/I: {group['I'].ndim} dimensions, not (frames, bins)",
            remedy="give the result of azimuthal integration",
        )
    rows = slice(parameters.first_frame, None if parameters.last_frame is None else parameters.last_frame + 1)
    intensity: NDArray[np.float64] = group["I"][rows]
    frames = group.parent.get("frames")
    if frames is not None and "status" in frames:
        status = frames["status"][rows]
    else:
        status = np.where(np.isfinite(intensity).any(axis=1), Status.PROCESSED, Status.MISSING).astype(np.uint8)
    sigma = group["I_errors"][rows] if "I_errors" in group else None
    return _Patterns(parameters.first_frame, intensity, sigma, status)


def _identity(request: AverageRequest, patterns: _Patterns) -> InputIdentity:
    status = request.input.stat()
    return InputIdentity(
        path=str(request.input.absolute()),
        real_path=str(request.input.resolve()),
        dataset=request.dataset,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        inode=status.st_ino,
        shape=patterns.intensity.shape,
        dtype=str(patterns.intensity.dtype),
        chunks=None,
        sources=(),
    )


def _write(source: h5py.File, mean: Mean, request: AverageRequest) -> None:
    temporary = request.output.with_name(f".{request.output.name}.making")
    try:
        with h5py.File(temporary, "w", libver=("v110", "v110")) as file:
            _fill(file, source, mean, request)
        temporary.replace(request.output)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OutputUnwritable(f"{request.output}: {error}", remedy="check --output, its folder, disk space") from error


def _fill(file: h5py.File, source: h5py.File, mean: Mean, request: AverageRequest) -> None:
    origin = source[request.dataset]
    file.attrs.update({"default": "entry", "creator": "mpi_kernels average"})
    entry = file.create_group("entry")
    entry.attrs.update({"NX_class": "NXentry", "default": "data"})
    for name in _FROM_ENTRY:
        if name in origin.parent:
            source.copy(origin.parent[name], entry)
    entry["title"] = f"average of {int(mean.frames.max())} frames of {request.input}"
    circumstance(entry["title"])
    data = entry.create_group("data")
    data.attrs.update({"NX_class": "NXdata", "signal": "I", "axes": ["radial_axis"], "interpretation": "spectrum"})
    for name in _AXES:
        if name in origin:
            source.copy(origin[name], data)
    values = {"I": mean.intensity, "I_errors": mean.sigma, "scatter": mean.scatter, "frames": mean.frames}
    for name, value in values.items():
        if value is not None:
            data[name] = value
    data["I"].attrs.update({"units": "arbitrary units", "long_name": "mean intensity"})
    data["scatter"].attrs["long_name"] = "standard deviation of the frames around the mean"
    _note(entry, request)
    if _REFERENCE in origin.parent:
        source.copy(origin.parent[_REFERENCE], entry["reduction"])


def _note(entry: h5py.Group, request: AverageRequest) -> None:
    made = process(
        entry,
        program="mpi_kernels average",
        version=__version__,
        date=datetime.now(UTC).isoformat(),
        parameters=request.parameters.model_dump_json(),
    )
    made["note"] = "mean over frames, each bin over those that have it; errors are √Σσ² / n"
    with request.input.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    notes = {
        "made_command_line": request.command_line,
        "made_parameters_sha256": request.parameters_sha256,
        "made_source_sha256": source_sha256(),
        "made_run_id": request.run_id,
        "made_input": str(request.input.resolve()),
        "made_input_sha256": digest,
        "made_dataset": request.dataset,
        "made_host": socket.gethostname(),
    }
    for name, value in notes.items():
        made["input"][name] = value
        if name.startswith("made_"):
            circumstance(made["input"][name])
