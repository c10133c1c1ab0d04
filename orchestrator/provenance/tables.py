"""The tables. What each column means is told in ``docs/reference/database.md``.

Nothing outside this package sees these classes: the store hands out the frozen records of
`orchestrator.provenance.rows`.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar

from sqlalchemy import BigInteger, Enum, ForeignKey, ForeignKeyConstraint, Index, MetaData, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from orchestrator.provenance.columns import Body, JsonText, LongText, Name, RowId, UtcDateTime
from orchestrator.provenance.rows import AttemptStage, InputMoment, MessageKind, MessageState
from orchestrator.records import Evidence, JobState, Json, Origin, RunState

UID_LIMIT = 255
"""Longest collection uid, in characters."""

# Byte-wise comparison on MariaDB as on the others: its default takes "A" for "a", and "a" for "a ".
_OPTIONS = {
    f"{dialect}_{option}": value
    for dialect in ("mysql", "mariadb")
    for option, value in {"engine": "InnoDB", "charset": "utf8mb4", "collate": "utf8mb4_nopad_bin"}.items()
}


def _word(kind: type[StrEnum]) -> Enum:
    return Enum(kind, native_enum=False, length=32, values_callable=lambda words: [word.value for word in words])


class Base(DeclarativeBase):
    """What all tables share."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: UtcDateTime(),
        str: LongText(),
        bytes: Body,
        RunState: _word(RunState),
        JobState: _word(JobState),
        Evidence: _word(Evidence),
        Origin: _word(Origin),
        MessageKind: _word(MessageKind),
        MessageState: _word(MessageState),
        AttemptStage: _word(AttemptStage),
        InputMoment: _word(InputMoment),
    }
    __table_args__: Any = _OPTIONS


class MessageRow(Base):
    """A message as it came, and what was made of it."""

    __tablename__ = "messages"
    __table_args__ = (
        Index(None, "state", "id"),
        Index(None, "kind", "id"),
        Index(None, "uid"),
        Index(None, "received_at"),
        _OPTIONS,
    )

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    identity: Mapped[str] = mapped_column(Name(80), unique=True)
    kind: Mapped[MessageKind]
    state: Mapped[MessageState]
    uid: Mapped[str | None] = mapped_column(Name(UID_LIMIT))
    source: Mapped[str]
    headers: Mapped[Json] = mapped_column(JsonText)
    body: Mapped[bytes]
    sha256: Mapped[str] = mapped_column(Name(64))
    content: Mapped[Json] = mapped_column(JsonText, nullable=True)
    rejection: Mapped[str | None]
    note: Mapped[str]
    received_at: Mapped[datetime]
    repeats: Mapped[int]
    last_received_at: Mapped[datetime]
    handled_at: Mapped[datetime | None]


class RunRow(Base):
    """One run: a plan, and where it stands."""

    __tablename__ = "runs"
    __table_args__ = (
        Index(None, "created_at", "run_id"),
        Index(None, "ended_at"),
        Index(None, "state", "created_at"),
        Index(None, "beamline", "created_at"),
        Index(None, "visit", "created_at"),
        Index(None, "recipe", "created_at"),
        Index(None, "collection_uid"),
        Index(None, "parent_run_id"),
        Index(None, "message_id"),
        Index(None, "record_due", "run_id"),
        Index(None, "examination_due", "ended_at"),
        _OPTIONS,
    )

    run_id: Mapped[str] = mapped_column(Name(36), primary_key=True)
    message_id: Mapped[int | None] = mapped_column(RowId, ForeignKey("messages.id"))
    # No foreign key: a scientist's rerun may come home before, or without, its parent.
    parent_run_id: Mapped[str | None] = mapped_column(Name(36))
    requester: Mapped[str] = mapped_column(Name())
    recipe: Mapped[str] = mapped_column(Name())
    kernel: Mapped[str] = mapped_column(Name())
    beamline: Mapped[str] = mapped_column(Name())
    visit: Mapped[str | None] = mapped_column(Name())
    collection_uid: Mapped[str] = mapped_column(Name(UID_LIMIT))
    file: Mapped[str]
    run_directory: Mapped[str]
    plan: Mapped[Json] = mapped_column(JsonText, deferred=True)
    state: Mapped[RunState]
    reason: Mapped[str]
    attempts: Mapped[int]
    created_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    frames_expected: Mapped[int | None] = mapped_column(BigInteger)
    frames_written: Mapped[int | None] = mapped_column(BigInteger)
    frames_processed: Mapped[int | None] = mapped_column(BigInteger)
    frames_failed: Mapped[int | None] = mapped_column(BigInteger)
    lag_median_s: Mapped[float | None]
    lag_max_s: Mapped[float | None]
    frames_finished: Mapped[bool]
    ended_because: Mapped[str]
    progress_at: Mapped[datetime | None]
    retry: Mapped[Json] = mapped_column(JsonText, nullable=True)
    not_before: Mapped[datetime | None]
    changes: Mapped[int] = mapped_column(BigInteger, server_default="0", default=0)
    record_due: Mapped[bool | None]
    examination_due: Mapped[bool | None]


class PredecessorRow(Base):
    """A run that another one comes after."""

    __tablename__ = "predecessors"
    __table_args__ = (Index(None, "predecessor_id"), _OPTIONS)

    run_id: Mapped[str] = mapped_column(Name(36), ForeignKey("runs.run_id"), primary_key=True)
    # No foreign key: what was asked for by itself may come after a run that isn't here.
    predecessor_id: Mapped[str] = mapped_column(Name(36), primary_key=True)
    position: Mapped[int]


class ParameterRow(Base):
    """One value handed to a run's kernel, and who decided it."""

    __tablename__ = "parameters"
    __table_args__ = (Index(None, "name"), _OPTIONS)

    run_id: Mapped[str] = mapped_column(Name(36), ForeignKey("runs.run_id"), primary_key=True)
    name: Mapped[str] = mapped_column(Name(), primary_key=True)
    position: Mapped[int]
    value: Mapped[Json] = mapped_column(JsonText, nullable=True)
    origin: Mapped[Origin]
    place: Mapped[str]


class TextRow(Base):
    """A script or template, stored once however many runs share it."""

    __tablename__ = "texts"

    sha256: Mapped[str] = mapped_column(Name(64), primary_key=True)
    content: Mapped[str]


class AttemptRow(Base):
    """One trip to SLURM, and the last that was heard of its job."""

    __tablename__ = "attempts"
    __table_args__ = (
        Index(None, "stage"),
        Index(None, "cluster", "job_id"),
        Index(None, "concluded_at"),
        Index(None, "script_sha256"),
        Index(None, "template_sha256"),
        ForeignKeyConstraint(["script_sha256"], ["texts.sha256"], name="fk_attempts_script"),
        ForeignKeyConstraint(["template_sha256"], ["texts.sha256"], name="fk_attempts_template"),
        _OPTIONS,
    )

    run_id: Mapped[str] = mapped_column(Name(36), ForeignKey("runs.run_id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    gateway: Mapped[str] = mapped_column(Name(64))
    holder: Mapped[str | None] = mapped_column(Name())
    stage: Mapped[AttemptStage]
    failure: Mapped[str] = mapped_column(default="")
    script_sha256: Mapped[str] = mapped_column(Name(64))
    template_name: Mapped[str]
    template_sha256: Mapped[str] = mapped_column(Name(64))
    template_origin: Mapped[Json] = mapped_column(JsonText, nullable=True)
    packages_sha256: Mapped[str | None] = mapped_column(Name(64))
    intent_at: Mapped[datetime]
    latest_intent_at: Mapped[datetime]
    cluster: Mapped[str | None] = mapped_column(Name(64))
    job_id: Mapped[int | None] = mapped_column(BigInteger)
    submitted_at: Mapped[datetime | None]
    adopted: Mapped[bool]
    job_state: Mapped[JobState | None]
    words: Mapped[str]
    evidence: Mapped[Evidence | None]
    reason: Mapped[str]
    exit_code: Mapped[int | None]
    signal: Mapped[int | None]
    restarts: Mapped[int]
    nodes: Mapped[str]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    usage: Mapped[Json] = mapped_column(JsonText)
    software: Mapped[Json] = mapped_column(JsonText, nullable=True, deferred=True)
    retry: Mapped[Json] = mapped_column(JsonText, nullable=True)
    cause: Mapped[JobState | None]
    outcome: Mapped[RunState | None]
    outcome_reason: Mapped[str | None]
    concluded_at: Mapped[datetime | None]


class JobEventRow(Base):
    """Something that happened to a job, in the order it became known."""

    __tablename__ = "job_events"
    __table_args__ = (UniqueConstraint("run_id", "attempt", "kind", "sequence"), _OPTIONS)

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    run_id: Mapped[str] = mapped_column(Name(36), ForeignKey("runs.run_id"))
    attempt: Mapped[int]
    kind: Mapped[str] = mapped_column(Name(64))
    sequence: Mapped[int] = mapped_column(BigInteger)
    at: Mapped[datetime]
    recorded_at: Mapped[datetime]
    detail: Mapped[Json] = mapped_column(JsonText, nullable=True)


class InputRow(Base):
    """What an input file was when it was opened, or when the run ended."""

    __tablename__ = "inputs"
    __table_args__ = (Index(None, "run_id"), _OPTIONS)

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    run_id: Mapped[str] = mapped_column(Name(36), ForeignKey("runs.run_id"))
    moment: Mapped[InputMoment]
    path: Mapped[str]
    real_path: Mapped[str]
    dataset: Mapped[str | None]
    size: Mapped[int | None] = mapped_column(BigInteger)
    mtime_ns: Mapped[int | None] = mapped_column(BigInteger)
    # Text: file systems use all 64 bits, signed columns have 63.
    inode: Mapped[str | None] = mapped_column(Name(20))
    shape: Mapped[Json] = mapped_column(JsonText, nullable=True)
    dtype: Mapped[str | None]
    chunks: Mapped[Json] = mapped_column(JsonText, nullable=True)
    sources: Mapped[Json] = mapped_column(JsonText)
    seal: Mapped[Json] = mapped_column(JsonText, nullable=True)
    files: Mapped[Json] = mapped_column(JsonText, nullable=True)
    recorded_at: Mapped[datetime]


class OutputRow(Base):
    """A file that a run made."""

    __tablename__ = "outputs"
    __table_args__ = (
        Index(None, "run_id"),
        Index(None, "path_sha256"),
        Index(None, "sha256"),
        Index(None, "content_sha256"),
        _OPTIONS,
    )

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    run_id: Mapped[str] = mapped_column(Name(36), ForeignKey("runs.run_id"))
    path: Mapped[str]
    path_sha256: Mapped[str | None] = mapped_column(Name(64))
    kind: Mapped[str] = mapped_column(Name(64))
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(Name(64))
    content_sha256: Mapped[str | None] = mapped_column(Name(64))
    validation: Mapped[Json] = mapped_column(JsonText, nullable=True)
    recorded_at: Mapped[datetime]


class UsedFileRow(Base):
    """A file that a run read: the input, its sources, and what parameters name."""

    __tablename__ = "used_files"
    __table_args__ = (Index(None, "run_id"), Index(None, "path_sha256"), Index(None, "sha256"), _OPTIONS)

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    run_id: Mapped[str] = mapped_column(Name(36), ForeignKey("runs.run_id"))
    role: Mapped[str] = mapped_column(Name())
    path: Mapped[str]
    path_sha256: Mapped[str] = mapped_column(Name(64))
    sha256: Mapped[str | None] = mapped_column(Name(64))


class LeaseRow(Base):
    """Work that one of several services does at a time, and whose it is until when, by the database's clock."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(Name(64), primary_key=True)
    holder: Mapped[str] = mapped_column(Name())
    until: Mapped[datetime]


class IspybRunRow(Base):
    """What of a run stands in ISPyB, and when it is to be looked at next."""

    __tablename__ = "ispyb_runs"
    __table_args__ = (
        Index(None, "created_at"),
        Index(None, "due_at"),
        Index(None, "waiting_since"),
        Index(None, "data_collection_id"),
        Index(None, "processing_job_id"),
        _OPTIONS,
    )

    run_id: Mapped[str] = mapped_column(Name(36), ForeignKey("runs.run_id"), primary_key=True)
    created_at: Mapped[datetime]
    due_at: Mapped[datetime | None]
    state: Mapped[RunState | None]
    attempt: Mapped[int]
    fingerprint: Mapped[str | None] = mapped_column(Name(64))
    data_collection_id: Mapped[int | None] = mapped_column(BigInteger)
    processing_job_id: Mapped[int | None] = mapped_column(BigInteger)
    program_id: Mapped[int | None] = mapped_column(BigInteger)
    requested: Mapped[bool]
    obstacle: Mapped[str]
    failures: Mapped[int]
    waiting_since: Mapped[datetime | None]
    mirrored_at: Mapped[datetime | None]
