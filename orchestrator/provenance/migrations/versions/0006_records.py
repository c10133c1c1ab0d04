"""Records: which runs' own directories haven't the newest record yet."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the columns; the record of every run that has ended is due."""
    op.add_column("runs", sa.Column("changes", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("runs", sa.Column("record_due", sa.Boolean(), nullable=True))
    op.execute("UPDATE runs SET record_due = (ended_at IS NOT NULL)")
    op.create_index("ix_runs_record_due_run_id", "runs", ["record_due", "run_id"])
