"""The part of ISPyB's schema that is used, as SQLAlchemy tables: the columns, and what is done with each.

A site may grant no more than `rights` says. Nothing is ever deleted and no table is ever made. ISPyB's own names are
kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import Any

from sqlalchemy import BINARY, Column, DateTime, Integer, MetaData, String, Table

_metadata = MetaData()

ADMIN_VAR = Table("AdminVar", _metadata, Column("name", String), Column("value", String))

DATA_COLLECTION = Table(
    "DataCollection",
    _metadata,
    Column("dataCollectionId", Integer, primary_key=True),
    Column("imageDirectory", String),
    Column("fileTemplate", String),
    Column("numberOfImages", Integer),
    Column("imageContainerSubPath", String),
)
PROCESSING_JOB = Table(
    "ProcessingJob",
    _metadata,
    Column("processingJobId", Integer, primary_key=True),
    Column("recordTimestamp", DateTime),
    Column("dataCollectionId", Integer),
    Column("displayName", String),
    Column("comments", String),
    Column("recipe", String),
    Column("automatic", Integer),
)
PARAMETER = Table(
    "ProcessingJobParameter",
    _metadata,
    Column("processingJobParameterId", Integer, primary_key=True),
    Column("processingJobId", Integer),
    Column("parameterKey", String),
    Column("parameterValue", String),
)
SWEEP = Table(
    "ProcessingJobImageSweep",
    _metadata,
    Column("processingJobImageSweepId", Integer, primary_key=True),
    Column("processingJobId", Integer),
    Column("dataCollectionId", Integer),
    Column("startImage", Integer),
    Column("endImage", Integer),
)
PROGRAM = Table(
    "AutoProcProgram",
    _metadata,
    Column("autoProcProgramId", Integer, primary_key=True),
    Column("processingJobId", Integer),
    Column("processingCommandLine", String),
    Column("processingPrograms", String),
    Column("processingStatus", Integer),
    Column("processingMessage", String),
    Column("processingStartTime", DateTime),
    Column("processingEndTime", DateTime),
    Column("processingEnvironment", String),
    Column("recordTimeStamp", DateTime),
    Column("parentAutoProcProgramId", Integer),
    Column("jobUuid", BINARY(16)),
)
MESSAGE = Table(
    "AutoProcProgramMessage",
    _metadata,
    Column("autoProcProgramMessageId", Integer, primary_key=True),
    Column("autoProcProgramId", Integer),
    Column("severity", String),
    Column("message", String),
    Column("description", String),
)
ATTACHMENT = Table(
    "AutoProcProgramAttachment",
    _metadata,
    Column("autoProcProgramAttachmentId", Integer, primary_key=True),
    Column("autoProcProgramId", Integer),
    Column("fileType", String),
    Column("fileName", String),
    Column("filePath", String),
    Column("recordTimeStamp", DateTime),
    Column("importanceRank", Integer),
)

OPTIONAL = frozenset({PROGRAM.c.parentAutoProcProgramId, PROGRAM.c.jobUuid, ATTACHMENT.c.importanceRank})
"""Columns that older schemas don't have, and that a site needn't grant: they are left out then."""

USED = (DATA_COLLECTION, PROCESSING_JOB, PARAMETER, SWEEP, PROGRAM, MESSAGE, ATTACHMENT)
"""All tables but `ADMIN_VAR`, which is read only where the site file wants certain versions."""

UPDATED = frozenset(
    {
        SWEEP.c.endImage,
        PROGRAM.c.processingStatus,
        PROGRAM.c.processingMessage,
        PROGRAM.c.processingStartTime,
        PROGRAM.c.processingEndTime,
        PROGRAM.c.processingEnvironment,
        PROGRAM.c.recordTimeStamp,
    }
)
"""Columns whose values change; all others are written once."""

_ONLY_READ = frozenset({*DATA_COLLECTION.c, PROCESSING_JOB.c.recordTimestamp})


def rights(column: Column[Any]) -> Set[str]:
    """Return what a column's user has to be granted."""
    wanted = {"SELECT"}
    if column not in _ONLY_READ and not column.primary_key and column.table is not ADMIN_VAR:
        wanted.add("INSERT")
    return wanted | ({"UPDATE"} if column in UPDATED else set())


def grants(database: str, account: str) -> Iterator[str]:
    """Yield the statements that give an account all rights that are needed, and no others."""
    for table in (ADMIN_VAR, *USED):
        columns: dict[str, list[str]] = {}
        for column in table.c:
            for right in sorted(rights(column)):
                columns.setdefault(right, []).append(column.name)
        wanted = ", ".join(f"{right} ({', '.join(names)})" for right, names in columns.items())
        yield f"GRANT {wanted} ON {database}.{table.name} TO {account};"
