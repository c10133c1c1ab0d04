"""The first tables: messages, runs, parameters, texts, attempts, job events, inputs and outputs."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

from orchestrator.provenance.columns import Body, JsonText, LongText, Name, RowId, UtcDateTime

revision = "0001"
down_revision = None

_WORD = sa.String(32)
_OPTIONS: dict[str, Any] = {
    f"{dialect}_{option}": value
    for dialect in ("mysql", "mariadb")
    for option, value in {"engine": "InnoDB", "charset": "utf8mb4", "collate": "utf8mb4_nopad_bin"}.items()
}


def upgrade() -> None:
    """Make the tables, those that others refer to first."""
    _messages()
    _texts()
    _runs()
    _attempts()
    _inputs()
    _job_events()
    _outputs()
    _parameters()


def _messages() -> None:
    op.create_table(
        "messages",
        sa.Column("id", RowId, nullable=False),
        sa.Column("identity", Name(80), nullable=False),
        sa.Column("kind", _WORD, nullable=False),
        sa.Column("state", _WORD, nullable=False),
        sa.Column("uid", Name(), nullable=True),
        sa.Column("source", LongText(), nullable=False),
        sa.Column("headers", JsonText(), nullable=False),
        sa.Column("body", Body, nullable=False),
        sa.Column("sha256", Name(64), nullable=False),
        sa.Column("content", JsonText(), nullable=True),
        sa.Column("rejection", LongText(), nullable=True),
        sa.Column("note", LongText(), nullable=False),
        sa.Column("received_at", UtcDateTime(), nullable=False),
        sa.Column("repeats", sa.Integer(), nullable=False),
        sa.Column("last_received_at", UtcDateTime(), nullable=False),
        sa.Column("handled_at", UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_messages"),
        sa.UniqueConstraint("identity", name="uq_messages_identity"),
        **_OPTIONS,
    )
    op.create_index("ix_messages_received_at", "messages", ["received_at"])
    op.create_index("ix_messages_state_id", "messages", ["state", "id"])
    op.create_index("ix_messages_uid", "messages", ["uid"])


def _texts() -> None:
    op.create_table(
        "texts",
        sa.Column("sha256", Name(64), nullable=False),
        sa.Column("content", LongText(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name="pk_texts"),
        **_OPTIONS,
    )


def _runs() -> None:
    op.create_table(
        "runs",
        sa.Column("run_id", Name(36), nullable=False),
        sa.Column("message_id", RowId, nullable=True),
        sa.Column("parent_run_id", Name(36), nullable=True),
        sa.Column("requester", Name(), nullable=False),
        sa.Column("recipe", Name(), nullable=False),
        sa.Column("kernel", Name(), nullable=False),
        sa.Column("beamline", Name(), nullable=False),
        sa.Column("visit", Name(), nullable=True),
        sa.Column("collection_uid", Name(), nullable=False),
        sa.Column("file", LongText(), nullable=False),
        sa.Column("run_directory", LongText(), nullable=False),
        sa.Column("plan", JsonText(), nullable=False),
        sa.Column("state", _WORD, nullable=False),
        sa.Column("reason", LongText(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("ended_at", UtcDateTime(), nullable=True),
        sa.Column("frames_expected", sa.BigInteger(), nullable=True),
        sa.Column("frames_written", sa.BigInteger(), nullable=True),
        sa.Column("frames_processed", sa.BigInteger(), nullable=True),
        sa.Column("frames_failed", sa.BigInteger(), nullable=True),
        sa.Column("lag_median_s", sa.Double(), nullable=True),
        sa.Column("lag_max_s", sa.Double(), nullable=True),
        sa.Column("frames_finished", sa.Boolean(), nullable=False),
        sa.Column("ended_because", LongText(), nullable=False),
        sa.Column("progress_at", UtcDateTime(), nullable=True),
        sa.ForeignKeyConstraint(["message_id"], ["messages.id"], name="fk_runs_messages"),
        sa.PrimaryKeyConstraint("run_id", name="pk_runs"),
        **_OPTIONS,
    )
    op.create_index("ix_runs_beamline_created_at", "runs", ["beamline", "created_at"])
    op.create_index("ix_runs_collection_uid", "runs", ["collection_uid"])
    op.create_index("ix_runs_created_at_run_id", "runs", ["created_at", "run_id"])
    op.create_index("ix_runs_message_id", "runs", ["message_id"])
    op.create_index("ix_runs_parent_run_id", "runs", ["parent_run_id"])
    op.create_index("ix_runs_recipe_created_at", "runs", ["recipe", "created_at"])
    op.create_index("ix_runs_state_created_at", "runs", ["state", "created_at"])
    op.create_index("ix_runs_visit_created_at", "runs", ["visit", "created_at"])


def _attempts() -> None:
    op.create_table(
        "attempts",
        sa.Column("run_id", Name(36), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("gateway", Name(64), nullable=False),
        sa.Column("stage", _WORD, nullable=False),
        sa.Column("failure", LongText(), nullable=False),
        sa.Column("script_sha256", Name(64), nullable=False),
        sa.Column("template_name", LongText(), nullable=False),
        sa.Column("template_sha256", Name(64), nullable=False),
        sa.Column("intent_at", UtcDateTime(), nullable=False),
        sa.Column("latest_intent_at", UtcDateTime(), nullable=False),
        sa.Column("cluster", Name(64), nullable=True),
        sa.Column("job_id", sa.BigInteger(), nullable=True),
        sa.Column("submitted_at", UtcDateTime(), nullable=True),
        sa.Column("adopted", sa.Boolean(), nullable=False),
        sa.Column("job_state", _WORD, nullable=True),
        sa.Column("words", LongText(), nullable=False),
        sa.Column("evidence", _WORD, nullable=True),
        sa.Column("reason", LongText(), nullable=False),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("signal", sa.Integer(), nullable=True),
        sa.Column("restarts", sa.Integer(), nullable=False),
        sa.Column("nodes", LongText(), nullable=False),
        sa.Column("started_at", UtcDateTime(), nullable=True),
        sa.Column("ended_at", UtcDateTime(), nullable=True),
        sa.Column("usage", JsonText(), nullable=False),
        sa.Column("software", JsonText(), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"], name="fk_attempts_runs"),
        sa.ForeignKeyConstraint(["script_sha256"], ["texts.sha256"], name="fk_attempts_script"),
        sa.ForeignKeyConstraint(["template_sha256"], ["texts.sha256"], name="fk_attempts_template"),
        sa.PrimaryKeyConstraint("run_id", "number", name="pk_attempts"),
        **_OPTIONS,
    )
    op.create_index("ix_attempts_cluster_job_id", "attempts", ["cluster", "job_id"])
    op.create_index("ix_attempts_script_sha256", "attempts", ["script_sha256"])
    op.create_index("ix_attempts_stage", "attempts", ["stage"])
    op.create_index("ix_attempts_template_sha256", "attempts", ["template_sha256"])


def _inputs() -> None:
    op.create_table(
        "inputs",
        sa.Column("id", RowId, nullable=False),
        sa.Column("run_id", Name(36), nullable=False),
        sa.Column("moment", _WORD, nullable=False),
        sa.Column("path", LongText(), nullable=False),
        sa.Column("real_path", LongText(), nullable=False),
        sa.Column("dataset", LongText(), nullable=True),
        sa.Column("size", sa.BigInteger(), nullable=True),
        sa.Column("mtime_ns", sa.BigInteger(), nullable=True),
        sa.Column("inode", Name(20), nullable=True),
        sa.Column("shape", JsonText(), nullable=True),
        sa.Column("dtype", LongText(), nullable=True),
        sa.Column("chunks", JsonText(), nullable=True),
        sa.Column("sources", JsonText(), nullable=False),
        sa.Column("recorded_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"], name="fk_inputs_runs"),
        sa.PrimaryKeyConstraint("id", name="pk_inputs"),
        **_OPTIONS,
    )
    op.create_index("ix_inputs_run_id", "inputs", ["run_id"])


def _job_events() -> None:
    op.create_table(
        "job_events",
        sa.Column("id", RowId, nullable=False),
        sa.Column("run_id", Name(36), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("kind", Name(64), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("recorded_at", UtcDateTime(), nullable=False),
        sa.Column("detail", JsonText(), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"], name="fk_job_events_runs"),
        sa.PrimaryKeyConstraint("id", name="pk_job_events"),
        sa.UniqueConstraint("run_id", "attempt", "kind", "sequence", name="uq_job_events_run_id_attempt_kind_sequence"),
        **_OPTIONS,
    )


def _outputs() -> None:
    op.create_table(
        "outputs",
        sa.Column("id", RowId, nullable=False),
        sa.Column("run_id", Name(36), nullable=False),
        sa.Column("path", LongText(), nullable=False),
        sa.Column("kind", Name(64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", Name(64), nullable=False),
        sa.Column("recorded_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"], name="fk_outputs_runs"),
        sa.PrimaryKeyConstraint("id", name="pk_outputs"),
        **_OPTIONS,
    )
    op.create_index("ix_outputs_run_id", "outputs", ["run_id"])
    op.create_index("ix_outputs_sha256", "outputs", ["sha256"])


def _parameters() -> None:
    op.create_table(
        "parameters",
        sa.Column("run_id", Name(36), nullable=False),
        sa.Column("name", Name(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("value", JsonText(), nullable=True),
        sa.Column("origin", _WORD, nullable=False),
        sa.Column("place", LongText(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"], name="fk_parameters_runs"),
        sa.PrimaryKeyConstraint("run_id", "name", name="pk_parameters"),
        **_OPTIONS,
    )
    op.create_index("ix_parameters_name", "parameters", ["name"])
