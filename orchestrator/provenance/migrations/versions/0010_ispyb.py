"""ISPyB: what has been mirrored there, and what is still to be."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

from orchestrator.provenance.columns import LongText, Name, UtcDateTime

revision = "0010"
down_revision = "0009"

_OPTIONS: dict[str, Any] = {
    f"{dialect}_{option}": value
    for dialect in ("mysql", "mariadb")
    for option, value in {"engine": "InnoDB", "charset": "utf8mb4", "collate": "utf8mb4_nopad_bin"}.items()
}


def upgrade() -> None:
    """Make the table; runs of before aren't entered."""
    op.create_table(
        "ispyb_runs",
        sa.Column("run_id", Name(36), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("due_at", UtcDateTime(), nullable=True),
        sa.Column("state", sa.String(32), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("fingerprint", Name(64), nullable=True),
        sa.Column("data_collection_id", sa.BigInteger(), nullable=True),
        sa.Column("processing_job_id", sa.BigInteger(), nullable=True),
        sa.Column("program_id", sa.BigInteger(), nullable=True),
        sa.Column("requested", sa.Boolean(), nullable=False),
        sa.Column("obstacle", LongText(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("waiting_since", UtcDateTime(), nullable=True),
        sa.Column("mirrored_at", UtcDateTime(), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"], name="fk_ispyb_runs_runs"),
        sa.PrimaryKeyConstraint("run_id", name="pk_ispyb_runs"),
        **_OPTIONS,
    )
    for column in ("created_at", "due_at", "waiting_since", "data_collection_id", "processing_job_id"):
        op.create_index(f"ix_ispyb_runs_{column}", "ispyb_runs", [column])
