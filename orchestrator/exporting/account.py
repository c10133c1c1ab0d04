"""What every format asks of a run's record, looked up once and by one set of rules.

Nothing here is guessed: what the record doesn't have is None, empty, or said to be not known.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

from orchestrator.errors import InvalidInput
from orchestrator.exporting.software import OURS, Program, programs_of
from orchestrator.provenance import AttemptRecord, InputIdentity, InputMoment, OutputIdentity, RunDetail
from orchestrator.records import Json, Origin, Parameter, RunState
from orchestrator.runs import RunDirectory
from orchestrator.settings import FacilitySettings

NOT_KNOWN = "not known"
IMAGES = ("mask", "dark", "flat", "background")
FILE_PARAMETERS = (*IMAGES, "poni")
"""Parameters of kernels that name a file (``docs/reference/azimuthal.md``)."""
_UNITS = {"_per_m": "1/m", "_m": "m", "_s": "s", "_deg": "deg", "_mb": "MB", "_min": "min", "_bytes": "byte"}
_AXES = {"q_nm^-1": "1/nm", "q_A^-1": "1/angstrom", "2th_deg": "deg", "2th_rad": "rad", "r_mm": "mm"}


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """A file that a run read."""

    path: Path
    role: str
    """``frames``, ``source of frames``, or the parameter that names it."""
    dataset: str | None = None
    size: int | None = None
    """Bytes, when the run ended or, where that isn't known, when it was opened."""
    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Account:
    """One ended run, as it is told to others.

    Raises
    ------
    InvalidInput
        When the run hasn't ended: an export would say less tomorrow than it must.
    """

    detail: RunDetail
    site: str
    facility: FacilitySettings | None

    def __post_init__(self) -> None:
        if not self.detail.summary.state.ended:
            raise InvalidInput(
                f"run {self.run_id} is {self.detail.summary.state}; only a run that has ended can be exported",
                remedy=f"wait for its end: orchestrator watch {self.run_id[:8]}",
            )

    @property
    def run_id(self) -> str:
        return self.detail.summary.run_id

    @property
    def uri(self) -> str:
        """The run's name in the world."""
        return run_uri(self.run_id)

    @property
    def title(self) -> str:
        return f"{self.detail.summary.kernel} of {readable(self.detail.summary.file.name)}"

    @property
    def directory(self) -> RunDirectory:
        return RunDirectory(self.detail.summary.run_directory)

    @property
    def newest(self) -> AttemptRecord | None:
        """The attempt that made the results; None where none was made."""
        return self.detail.attempts[-1] if self.detail.attempts else None

    @property
    def succeeded(self) -> bool:
        """Whether it ended in order, with every frame or without some."""
        return self.detail.summary.state in {RunState.COMPLETE, RunState.PARTIAL}

    @property
    def started_at(self) -> datetime | None:
        """When its first job began."""
        return next((at for at in map(started_at, self.detail.attempts) if at is not None), None)

    @property
    def beginning(self) -> Mapping[str, Json]:
        """What the newest attempt's job said of itself when it began; empty when it never did."""
        begun = [event.detail for event in self.detail.events if event.kind == "begin"]
        return begun[-1] if begun and isinstance(begun[-1], dict) else {}

    @cached_property
    def programs(self) -> tuple[Program, ...]:
        """What took part, as far as it was recorded; this program at least."""
        found = () if self.newest is None else programs_of(self.newest.software)
        if any(program.key == OURS for program in found):
            return found
        return (Program(key=OURS, title=OURS, version=NOT_KNOWN, loaded=True), *found)

    @cached_property
    def parameters(self) -> Mapping[str, Parameter]:
        """The parameters in force, the kernel's defaults included where it told them; of an array all its values."""
        found = {parameter.name: parameter for parameter in self.detail.parameters}
        if (array := self.detail.plan.array) is not None:
            place = f"a task of the job array for each, recipe {self.detail.plan.recipe}"
            found[array.parameter] = Parameter(
                name=array.parameter, value=list(array.values), origin=Origin.RECIPE, place=place
            )
        return found

    def value(self, name: str) -> Json:
        """Return a parameter's value in force; None where it has none or isn't recorded."""
        parameter = self.parameters.get(name)
        return None if parameter is None else parameter.value

    def unit(self, name: str) -> str | None:
        """Return the unit of a parameter."""
        if name == "radial_range":
            return _AXES.get(str(self.value("unit")))
        return unit_of(name)

    @cached_property
    def inputs(self) -> tuple[InputFile, ...]:
        """The files that it read, each once: frames, their sources, and those that parameters name."""
        found = {item.path: item for item in reversed([*self._frame_files(), *self._parameter_files()])}
        return tuple(reversed(found.values()))

    def _frame_files(self) -> Iterator[InputFile]:
        if not self.detail.inputs:  # it never came so far as to open it
            collection = self.detail.plan.collection
            yield InputFile(path=collection.file, role="frames", dataset=collection.dataset)
        for identity in latest(self.detail.inputs):
            yield InputFile(
                path=identity.path,
                role="frames",
                dataset=identity.dataset,
                size=identity.size,
                shape=identity.shape,
                dtype=identity.dtype,
            )
            for source in identity.sources:
                yield InputFile(
                    path=Path(str(source["path"])),
                    role="source of frames",
                    dataset=_text(source.get("dataset")),
                    size=_number(source.get("size")),
                )

    def _parameter_files(self) -> Iterator[InputFile]:
        """Yield files that parameters name, as the kernel found them or, where it didn't tell, by their names."""
        told = [file for identity in latest(self.detail.inputs) for file in identity.files]
        for file in told:
            yield InputFile(
                path=Path(str(file["path"])),
                role=str(file["parameter"]),
                dataset=_text(file.get("dataset")),
                size=_number(file.get("size")),
                sha256=_text(file.get("sha256")),
            )
        for name in (name for name in FILE_PARAMETERS if name not in {file["parameter"] for file in told}):
            value = self.value(name)
            for one in value if isinstance(value, list) else [value]:  # a list for the tasks of a job array
                if isinstance(one, str):
                    named, _, dataset = one.partition("::")
                    path = Path(os.path.normpath(self.directory.path / named))
                    yield InputFile(path=path, role=name, dataset=dataset or None)

    def outputs(self) -> Sequence[OutputIdentity]:
        """Return the files that it made.

        Raises
        ------
        InvalidInput
            When one isn't there any more, or has another size than was recorded.
        """
        for output in self.detail.outputs:
            there = output.path.stat().st_size if output.path.is_file() else None
            if there != output.size:
                now = "isn't there any more" if there is None else f"has {there} bytes now"
                raise InvalidInput(
                    f"{readable(output.path)}: {now}; run {self.run_id} recorded {output.size} bytes with sha256 "
                    f"{output.sha256}",
                    remedy="restore the file, or repeat the run",
                )
        return self.detail.outputs

    @property
    def outcome(self) -> str:
        """How it ended, in a sentence."""
        summary = self.detail.summary
        return f"{summary.state}{summary.reason and ': '}{readable(summary.reason)}."

    @property
    def frames(self) -> str:
        """How many frames have a result, in words."""
        counts = self.detail.summary.counts
        if counts is None:
            return "how many frames were processed is not known"
        failed = f", {counts.failed} failed" if counts.failed else ""
        expected = "" if counts.expected is None else f"; {counts.expected} were announced"
        return f"{counts.processed} of {counts.written} written frames were processed{failed}{expected}"


def latest(inputs: Iterable[InputIdentity]) -> Sequence[InputIdentity]:
    """Return each input file as it was at the end, or where that isn't known, when it was opened."""
    found: dict[Path, InputIdentity] = {}
    for identity in sorted(inputs, key=lambda one: one.at == InputMoment.END):
        found[identity.path] = identity
    return tuple(found.values())


def _text(value: Json) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: Json) -> int | None:
    return value if isinstance(value, int) else None


def started_at(attempt: AttemptRecord) -> datetime | None:
    """Return when an attempt's job began."""
    if attempt.last_report is not None and attempt.last_report.started_at is not None:
        return attempt.last_report.started_at
    return next((event.at for event in attempt.events if event.kind == "begin"), None)


def ended_at(attempt: AttemptRecord) -> datetime | None:
    """Return when an attempt's job ended."""
    if attempt.last_report is not None and attempt.last_report.ended_at is not None:
        return attempt.last_report.ended_at
    return next((event.at for event in attempt.events if event.kind == "end"), None)


def unit_of(name: str) -> str | None:
    """Return the unit that a name ends with."""
    return next((unit for suffix, unit in _UNITS.items() if name.endswith(suffix)), None)


def run_uri(run_id: str) -> str:
    """Return the URI of a run."""
    return f"urn:uuid:{run_id}"


def readable(text: str | Path) -> str:
    """Return a text in which bytes that aren't UTF-8 stand as escapes."""
    return str(text).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
