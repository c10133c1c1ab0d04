"""Examinations: how valid results are, and in which runs something hasn't been looked at yet."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from orchestrator.provenance.columns import JsonText

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Add the columns; runs of before are examined when somebody asks (`orchestrator validate`)."""
    op.add_column("outputs", sa.Column("validation", JsonText(), nullable=True))
    op.add_column("runs", sa.Column("examination_due", sa.Boolean(), nullable=True))
    op.create_index("ix_runs_examination_due_ended_at", "runs", ["examination_due", "ended_at"])
