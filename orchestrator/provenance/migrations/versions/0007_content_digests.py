"""Digests of what is in results, of what was read of inputs, and of the files that parameters name."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from orchestrator.provenance.columns import JsonText, Name

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add the columns; of runs that were made before nobody knows."""
    op.add_column("outputs", sa.Column("content_sha256", Name(64), nullable=True))
    op.create_index("ix_outputs_content_sha256", "outputs", ["content_sha256"])
    for name in ("seal", "files"):
        op.add_column("inputs", sa.Column(name, JsonText(), nullable=True))
