"""Retries: how each attempt ended and why, and what the next one is to get."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from orchestrator.provenance.columns import JsonText, LongText, UtcDateTime

revision = "0003"
down_revision = "0002"

_WORD = sa.String(32)


def upgrade() -> None:
    """Add the columns; attempts that ended before have none of this."""
    for column in (
        sa.Column("retry", JsonText(), nullable=True),
        sa.Column("cause", _WORD, nullable=True),
        sa.Column("outcome", _WORD, nullable=True),
        sa.Column("outcome_reason", LongText(), nullable=True),
        sa.Column("concluded_at", UtcDateTime(), nullable=True),
    ):
        op.add_column("attempts", column)
    op.create_index("ix_attempts_concluded_at", "attempts", ["concluded_at"])
    op.add_column("runs", sa.Column("retry", JsonText(), nullable=True))
    op.add_column("runs", sa.Column("not_before", UtcDateTime(), nullable=True))
