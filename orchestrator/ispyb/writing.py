"""Rows into ISPyB: what stands there is brought in line with what a run is, inside one transaction of the caller.

What is there is looked at first, so that writing the same again changes nothing, whoever died in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Connection, Select, Table, func, insert, select, update

from orchestrator.ispyb.mapping import RUN_KEY, Cells, Rows
from orchestrator.ispyb.tables import ATTACHMENT, MESSAGE, PARAMETER, PROCESSING_JOB, PROGRAM, SWEEP, UPDATED
from orchestrator.provenance import IspybIds

_MESSAGE_KEY = ("severity", "message")
_ATTACHMENT_KEY = ("filePath", "fileName")


@dataclass(frozen=True, kw_only=True)
class Writer:
    """Writes one run's rows."""

    connection: Connection
    there: Set[Column[Any]]
    """The columns that this ISPyB has."""

    def write(
        self, run_id: str, rows: Rows, data_collection: int, *, job: int | None = None, parent: int | None = None
    ) -> IspybIds:
        """Bring a run's rows in line; return where they are.

        Parameters
        ----------
        job
            The ProcessingJob that asked for the run in ISPyB; it and its sweeps stay as they are. None for a run whose
            ProcessingJob is ours.
        parent
            The AutoProcProgram whose result this run works on.
        """
        requested = job is not None
        if job is None:
            job = self._job_of(run_id, data_collection)
        if job is None:
            job = self._insert(PROCESSING_JOB, {"dataCollectionId": data_collection, **rows.job})
        self._append(PARAMETER, {"processingJobId": job}, rows.parameters, ("parameterKey",))
        if not requested and rows.images is not None:
            self._sweep(job, data_collection, *rows.images)
        program = self._program(job, rows.program, parent)
        self._append(MESSAGE, {"autoProcProgramId": program}, rows.messages, _MESSAGE_KEY)
        stamped = [{**row, "recordTimeStamp": func.now()} for row in rows.attachments]
        self._append(ATTACHMENT, {"autoProcProgramId": program}, stamped, _ATTACHMENT_KEY)
        return IspybIds(data_collection=data_collection, processing_job=job, program=program)

    def refuse(self, job: int, program: Cells, message: Cells) -> None:
        """Say that what a ProcessingJob asks for isn't done; nothing happens to one that has its answer."""
        if self.connection.scalar(_programs_of(job).limit(1)) is None:
            made = self._insert(
                PROGRAM, {"processingJobId": job, "processingStatus": 0, "recordTimeStamp": func.now(), **program}
            )
            self._insert(MESSAGE, {"autoProcProgramId": made, **message})

    def _job_of(self, run_id: str, data_collection: int) -> int | None:
        """Return the ProcessingJob that was made for a run; through the index over data collections."""
        jobs, parameters = PROCESSING_JOB.c, PARAMETER.c
        wanted = (
            select(jobs.processingJobId)
            .join(PARAMETER, parameters.processingJobId == jobs.processingJobId)
            .where(jobs.dataCollectionId == data_collection)
            .where(parameters.parameterKey == RUN_KEY, parameters.parameterValue == run_id)
            .order_by(jobs.processingJobId)
            .limit(1)
        )
        found: int | None = self.connection.scalar(wanted)
        return found

    def _sweep(self, job: int, data_collection: int, first: int, last: int | None) -> None:
        columns = SWEEP.c
        wanted = select(columns.processingJobImageSweepId, columns.endImage).where(columns.processingJobId == job)
        row = self.connection.execute(wanted).first()
        if row is None:
            images = {"startImage": first, "endImage": last}
            self._insert(SWEEP, {"processingJobId": job, "dataCollectionId": data_collection, **images})
        elif row.endImage != last:
            self._update(SWEEP, row.processingJobImageSweepId, {"endImage": last})

    def _program(self, job: int, cells: Cells, parent: int | None) -> int:
        changing = [column for column in PROGRAM.c if column in UPDATED and column is not PROGRAM.c.recordTimeStamp]
        wanted = _programs_of(job).add_columns(*changing).order_by(PROGRAM.c.autoProcProgramId).limit(1)
        row = self.connection.execute(wanted).mappings().first()
        now = {"recordTimeStamp": func.now()}
        if row is None:
            links = {"processingJobId": job, "parentAutoProcProgramId": parent}
            return self._insert(PROGRAM, {**cells, **links, **now})
        program: int = row[PROGRAM.c.autoProcProgramId]
        changed = {column.name: cells[column.name] for column in changing if row[column] != cells[column.name]}
        if changed:
            self._update(PROGRAM, program, {**changed, **now})
        return program

    def _append(
        self, table: Table, owner: Mapping[str, int], rows: Iterable[Mapping[str, Any]], key: Sequence[str]
    ) -> None:
        """Insert those rows that aren't there."""
        wanted = select(*(table.c[name] for name in key)).where(*(table.c[name] == at for name, at in owner.items()))
        there = {tuple(row) for row in self.connection.execute(wanted)}
        for row in rows:
            if (identity := tuple(row[name] for name in key)) not in there:
                self._insert(table, {**row, **owner})
                there.add(identity)

    def _insert(self, table: Table, cells: Mapping[str, Any]) -> int:
        known = {name: value for name, value in cells.items() if table.c[name] in self.there}
        made = self.connection.execute(insert(table).values(known))
        number: int = made.lastrowid
        return number

    def _update(self, table: Table, number: int, cells: Mapping[str, Any]) -> None:
        (key,) = table.primary_key
        self.connection.execute(update(table).where(key == number).values(cells))


def _programs_of(job: int) -> Select[int]:
    return select(PROGRAM.c.autoProcProgramId).where(PROGRAM.c.processingJobId == job)
