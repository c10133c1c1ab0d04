"""Endings: which runs ended since a moment, and the messages of one kind, without looking at all of them."""

from __future__ import annotations

from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Make the indexes."""
    op.create_index("ix_runs_ended_at", "runs", ["ended_at"])
    op.create_index("ix_messages_kind_id", "messages", ["kind", "id"])
