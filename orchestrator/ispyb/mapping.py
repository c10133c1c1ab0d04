"""A run becomes ISPyB's rows. Pure.

One run is one ProcessingJob with one AutoProcProgram, however many attempts it takes: those before the newest are told
in AutoProcProgramMessages. A rerun is a run of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Literal, TypeAlias
from uuid import UUID

from sqlalchemy import Column

from orchestrator.ispyb.fitting import TextColumn
from orchestrator.ispyb.tables import ATTACHMENT, MESSAGE, PARAMETER, PROCESSING_JOB, PROGRAM
from orchestrator.provenance import RunDetail
from orchestrator.records import Json, RunState, sha256_of
from orchestrator.runs import RunDirectory
from orchestrator.settings.ispyb import ImportanceRanks

Cell: TypeAlias = "str | int | bytes | datetime | None"
Cells: TypeAlias = Mapping[str, Cell]
"""A row's values by ISPyB's names of the columns."""
TextColumns: TypeAlias = "Mapping[Column[str], TextColumn]"

AUTOMATIC = "automatic"
RUN_KEY = "orchestrator_run"
"""ProcessingJobParameter that has a run's id: by it a run is found again whose rows were written, but not their ids."""
PARENT_KEY = "orchestrator_parent_run"
MAX_IMAGE = 8_388_607
"""``startImage`` and ``endImage`` are MEDIUMINT."""

_STATUS = {RunState.COMPLETE: 1, RunState.PARTIAL: 1}
"""``processingStatus`` of runs that have ended; 0 where nothing stands here. A living run has none."""

_SEVERITY = {RunState.COMPLETE: "INFO", RunState.PARTIAL: "WARNING"}
"""Of the message that says how a run ended; ERROR where nothing stands here."""

_FILE_TYPES: Mapping[str, Literal["Result", "Log", "Graph"]] = {
    "result": "Result",
    "report": "Log",
    "picture": "Graph",
}


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What a run is in ISPyB, but for the ids that are made there."""

    job: Cells
    parameters: tuple[Cells, ...]
    images: tuple[int, int | None] | None
    """First and last image; None where nothing is known of them."""
    program: Cells
    messages: tuple[Cells, ...]
    attachments: tuple[Cells, ...]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all values."""
        return sha256_of(json.dumps(asdict(self), sort_keys=True, default=str))


@dataclass(frozen=True, kw_only=True)
class Mapper:
    """How this site's runs stand in this ISPyB."""

    columns: TextColumns
    recipe_prefix: str
    importance: ImportanceRanks
    time_zone: tzinfo | None
    """Of ISPyB's times; None for this machine's."""

    def rows(self, run: RunDetail) -> Rows:
        """Return what a run is in ISPyB."""
        attachments, unattached = self._attachments(run)
        return Rows(
            job=self._job(run),
            parameters=tuple(self._parameters(run)),
            images=_images(run),
            program=self._program(run),
            messages=tuple(self._messages(run, unattached)),
            attachments=attachments,
        )

    def message(self, severity: str, text: str, *, description: str = "") -> Cells:
        """Return an AutoProcProgramMessage; what doesn't fit into ``message`` stands in ``description``."""
        short = self._fit(MESSAGE.c.message, text, "description")
        whole = description or ("" if short == text else text)
        return {
            "severity": severity,
            "message": short,
            "description": self._fit(MESSAGE.c.description, whole) or None,
        }

    def program_message(self, text: str) -> str:
        """Return text for ``processingMessage``."""
        return self._fit(PROGRAM.c.processingMessage, text, "its messages")

    def _job(self, run: RunDetail) -> Cells:
        summary = run.summary
        automatic = summary.requester == AUTOMATIC and summary.parent_run is None
        return {
            "displayName": self._fit(PROCESSING_JOB.c.displayName, summary.recipe),
            "comments": self._fit(PROCESSING_JOB.c.comments, _comments(run), "plan.json"),
            "recipe": self._fit(PROCESSING_JOB.c.recipe, self.recipe_prefix + summary.recipe),
            "automatic": int(automatic),
        }

    def _parameters(self, run: RunDetail) -> Iterator[Cells]:
        summary = run.summary
        values: dict[str, Json] = {RUN_KEY: summary.run_id}
        if summary.parent_run is not None:
            values[PARENT_KEY] = summary.parent_run
        values |= {parameter.name: parameter.value for parameter in run.parameters}
        for name, value in values.items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield {
                "parameterKey": self._fit(PARAMETER.c.parameterKey, name),
                "parameterValue": self._fit(PARAMETER.c.parameterValue, text, "plan.json"),
            }

    def _program(self, run: RunDetail) -> Cells:
        summary, columns = run.summary, PROGRAM.c
        report = run.attempts[-1].last_report if run.attempts else None
        said = f"{summary.state}: {summary.reason}" if summary.reason else str(summary.state)
        return {
            "processingCommandLine": self._fit(
                columns.processingCommandLine, f"sbatch {RunDirectory(summary.run_directory).script}"
            ),
            "processingPrograms": self._fit(columns.processingPrograms, f"orchestrator {summary.recipe}"),
            "processingStatus": _STATUS.get(summary.state, 0) if summary.state.ended else None,
            "processingMessage": self.program_message(said),
            "processingStartTime": self._time(None if report is None else report.started_at),
            "processingEndTime": self._time(summary.ended_at),
            "processingEnvironment": self._fit(columns.processingEnvironment, _environment(run), "plan.json"),
            "jobUuid": UUID(summary.run_id).bytes,
        }

    def _messages(self, run: RunDetail, unattached: tuple[Path, ...]) -> Iterator[Cells]:
        for attempt in run.attempts[:-1]:
            if attempt.end is not None:
                text = f"attempt {attempt.tag.attempt} {attempt.end.state}: {attempt.end.reason}"
                yield self.message("WARNING", text)
        for event in run.events:
            if event.kind == "cancel" and isinstance(event.detail, dict):
                yield self.message("INFO", f"cancelled by {event.detail.get('by')}")
        summary = run.summary
        if summary.state.ended and (summary.reason or summary.state is not RunState.COMPLETE):
            text = f"{summary.state}: {summary.reason}" if summary.reason else str(summary.state)
            yield self.message(_SEVERITY.get(summary.state, "ERROR"), text)
        for path in unattached:
            text = f"not attached, its path doesn't fit: {path}"
            yield self.message("WARNING", text, description=text)
        yield from self._invalid(run)

    def _invalid(self, run: RunDetail) -> Iterator[Cells]:
        for made in run.outputs:
            if made.validation is not None and made.validation.errors:
                errors = "\n".join(made.validation.texts)
                yield self.message("WARNING", f"{made.path.name}: {made.validation.words}", description=errors)

    def _attachments(self, run: RunDetail) -> tuple[tuple[Cells, ...], tuple[Path, ...]]:
        """Return the attachments, and files that can't be attached: half a path leads nowhere."""
        rows: list[Cells] = []
        unattached: list[Path] = []
        for file_type, path, rank in self._files(run):
            fits = self.columns[ATTACHMENT.c.filePath].holds(str(path.parent))
            if not fits or not self.columns[ATTACHMENT.c.fileName].holds(path.name):
                unattached.append(path)
                continue
            rows.append(
                {
                    "fileType": file_type,
                    "filePath": str(path.parent),
                    "fileName": path.name,
                    "importanceRank": rank,
                }
            )
        return tuple(rows), tuple(unattached)

    def _files(self, run: RunDetail) -> Iterator[tuple[str, Path, int]]:
        ranks, directory = self.importance, RunDirectory(run.summary.run_directory)
        for made in run.outputs:
            yield _FILE_TYPES.get(made.kind, "Result"), made.path, getattr(ranks, made.kind, 0)
        yield "Input", run.plan.collection.file, ranks.input
        if not run.attempts:
            return
        # These are there before the job is.
        yield "Input", directory.plan, ranks.record
        for attempt in run.attempts:
            if attempt.identity is not None:
                yield "Log", directory.attempt(attempt.tag.attempt).log, ranks.log
        if run.summary.state.ended:
            yield "Log", directory.provenance, ranks.record

    def _fit(self, column: Column[str], text: str, whole: str = "") -> str:
        return self.columns[column].fitted(text, whole)

    def _time(self, moment: datetime | None) -> datetime | None:
        """Return a time as ISPyB has it: whole seconds of local time, without a zone."""
        return None if moment is None else moment.astimezone(self.time_zone).replace(tzinfo=None, microsecond=0)


def _comments(run: RunDetail) -> str:
    summary = run.summary
    by = "" if summary.requester == AUTOMATIC else f" by {summary.requester}"
    because = f": {run.plan.because}" if run.plan.because else ""
    if summary.parent_run is not None:
        return f"rerun of run {summary.parent_run}{by}{because}"
    return f"asked for{by}{because}" if by else "automatic"


def _environment(run: RunDetail) -> str:
    asked, newest = run.plan.resources, run.attempts[-1] if run.attempts else None
    parts = [f"ntasks={asked.ntasks}", f"cpus_per_task={asked.cpus_per_task}"]
    if run.summary.nodes:
        parts.insert(0, f"nodes={run.summary.nodes}")
    if newest is not None and newest.identity is not None:
        parts.append(f"job={newest.identity}")
    return ", ".join(parts)


def _images(run: RunDetail) -> tuple[int, int | None] | None:
    counts, expected = run.summary.counts, run.plan.collection.frames_expected
    last = expected if counts is None or not run.summary.state.ended else counts.written
    if not last:
        return None
    return 1, last if last <= MAX_IMAGE else None
