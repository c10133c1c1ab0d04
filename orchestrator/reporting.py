"""A short report of an averaged result, as the last step of a chain: a picture and a page of Markdown.

    python -m orchestrator.reporting --input average.nxs --output report.md --picture report.png
        --parameters parameters.json --progress progress.json --run-id ID

It keeps to the kernels' command line (``docs/reference/kernel-command-line.md``) as far as the service looks at it:
exit codes, one line on standard error, and the progress file, in which a pattern counts as a frame.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import h5py
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.errors import InvalidInput, OrchestratorError
from orchestrator.evidence import EXIT_INPUT
from orchestrator.pictures import Patterns, draw_pattern, read_patterns
from orchestrator.records import Json, utc_now
from orchestrator.runs import write_atomically

_DATASET = "/entry/data"
_WRONG_USE, _UNWRITABLE = 2, 5
_NOTHING: Mapping[str, Json] = MappingProxyType({})


class ReportParameters(BaseModel):
    """Parameters of a report."""

    model_config = ConfigDict(extra="forbid", frozen=True, title="report")

    title: str = Field("Averaged pattern", max_length=200, description="The report's heading.")
    peaks: int = Field(5, ge=0, le=100, description="How many local maxima are listed, the highest first.")


@dataclass(frozen=True, kw_only=True)
class _Peak:
    position: float
    intensity: float
    sigma: float | None


def report(source: Path, page: Path, picture: Path, parameters: ReportParameters, *, run_id: str) -> int:
    """Write the report of one result; return how many patterns it has.

    Raises
    ------
    InvalidInput
        When the result has no pattern.
    OSError
        When a file can't be read or written.
    """
    try:
        patterns = read_patterns(source)
    except OSError as error:  # HDF5's own errors don't name the file
        raise InvalidInput(f"{source}: {error}", remedy="give the result of a finished run") from error
    draw_pattern(patterns, picture, title=parameters.title)
    write_atomically(page, _page(source, picture, patterns, parameters, run_id))
    return len(patterns.there)


def _page(source: Path, picture: Path, patterns: Patterns, parameters: ReportParameters, run_id: str) -> str:
    pattern = patterns.intensity[patterns.there[-1]]
    finite = np.isfinite(pattern)
    with source.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    rows = {
        "result": f"`{source}`",
        "its sha256": f"`{digest}`",
        "frames averaged": _frames(source),
        "axis": f"{patterns.label}, {patterns.radial[0]:.6g} to {patterns.radial[-1]:.6g}",
        "bins": f"{finite.sum()} of {finite.size} have a value",
        "report of run": run_id or "none",
        "written": utc_now().isoformat(timespec="seconds"),
    }
    lines = [f"# {parameters.title}", "", f"![{parameters.title}]({picture.name})", "", "| | |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in rows.items()]
    peaks = highest_peaks(patterns, parameters.peaks)
    if peaks:
        lines += ["", f"| maximum at {patterns.label} | intensity | σ |", "| ---: | ---: | ---: |"]
    lines += [
        f"| {p.position:.6g} | {p.intensity:.6g} | {'' if p.sigma is None else f'{p.sigma:.2g}'} |" for p in peaks
    ]
    return "\n".join(lines) + "\n"


def _frames(source: Path) -> str:
    with h5py.File(source, "r") as file:
        frames = file.get(f"{_DATASET}/frames")
        return "not said" if frames is None else str(int(np.max(frames[()])))


def highest_peaks(patterns: Patterns, number: int) -> list[_Peak]:
    """Return local maxima of the newest pattern that stand 3 σ above both neighbours' mean, the highest first."""
    newest = patterns.there[-1]
    pattern = patterns.intensity[newest]
    sigma = None if patterns.errors is None else patterns.errors[newest]
    middle, left, right = pattern[1:-1], pattern[:-2], pattern[2:]
    with np.errstate(invalid="ignore"):
        is_peak = (middle > left) & (middle >= right)
        if sigma is not None:
            is_peak &= middle - (left + right) / 2 > 3 * sigma[1:-1]
    bins = np.flatnonzero(is_peak) + 1
    chosen = bins[np.argsort(pattern[bins])[::-1][:number]]
    return [
        _Peak(
            position=float(patterns.radial[bin_]),
            intensity=float(pattern[bin_]),
            sigma=None if sigma is None else float(sigma[bin_]),
        )
        for bin_ in chosen
    ]


# -------------------------------------------------------------------------------------------------- the command


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m orchestrator.reporting", description=__doc__.splitlines()[0])
    parser.add_argument("--schema", action="store_true", help="print the parameters' JSON Schema and leave")
    for name in ("input", "output", "picture", "parameters", "progress"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--run-id", default="")
    return parser


def _parameters(path: Path) -> ReportParameters:
    try:
        return ReportParameters.model_validate_json(path.read_text())
    except ValidationError as error:
        places = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise InvalidInput(f"{path}: {places}", remedy="python -m orchestrator.reporting --schema") from error


def _say(
    path: Path | None, state: str, patterns: int, *, message: str = "", more: Mapping[str, Json] = _NOTHING
) -> None:
    """Write the progress file, in which the service reads how the step ended."""
    if path is None:
        return
    finished = state == "finished"
    progress: dict[str, Json] = {
        "kernel": "report", "state": state, "expected": None, "written": patterns,
        "processed": patterns if finished else 0, "failed": 0, "lag_median_s": None, "lag_max_s": None,
        "ended_because": {"finished": "file finished", "failed": "error"}.get(state, ""), "message": message,
        "updated_at": utc_now().isoformat(), "ranks": 1, **more,
    }  # fmt: skip
    write_atomically(path, json.dumps(progress) + "\n")


def _input_identity(path: Path) -> Json:
    status = path.stat()
    return {
        "path": str(path.absolute()), "real_path": str(path.resolve()), "dataset": _DATASET, "size": status.st_size,
        "mtime_ns": status.st_mtime_ns, "inode": status.st_ino, "shape": None, "dtype": None, "chunks": None,
        "sources": [],
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit codes are the kernels'."""
    given = _parser().parse_args(arguments)
    if given.schema:
        sys.stdout.write(json.dumps(ReportParameters.model_json_schema(), indent=2, ensure_ascii=False) + "\n")
        return 0
    missing = [name for name in ("input", "output", "picture", "parameters") if getattr(given, name) is None]
    if missing:
        return _refuse(given.progress, f"--{missing[0]} is missing", _WRONG_USE)
    try:
        parameters = _parameters(given.parameters)
    except (OSError, InvalidInput) as error:
        return _refuse(given.progress, str(error), _WRONG_USE)
    try:
        known = {"software": {"python": sys.version.split()[0], "h5py": h5py.__version__, "numpy": np.__version__}}
        told: dict[str, Json] = {"parameters": parameters.model_dump(mode="json"), **known}
        _say(given.progress, "running", 0, more=told)
        opened = _input_identity(given.input)
        patterns = report(given.input, given.output, given.picture, parameters, run_id=given.run_id)
        told["inputs"] = {"open": opened, "end": _input_identity(given.input)}
        _say(given.progress, "finished", patterns, more=told)
    except OrchestratorError as error:
        return _refuse(given.progress, error.full_text, EXIT_INPUT)
    except OSError as error:
        ours = error.filename in {str(given.output), str(given.picture), str(given.progress)}
        return _refuse(given.progress, str(error), _UNWRITABLE if ours else EXIT_INPUT)
    return 0


def _refuse(progress: Path | None, message: str, code: int) -> int:
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    _say(progress, "failed", 0, message=message)
    return code


if __name__ == "__main__":
    sys.exit(main())
