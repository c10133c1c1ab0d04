"""Holders: which service is submitting an attempt, so that others leave it to it while it lives."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from orchestrator.provenance.columns import Name

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the column; of attempts that were made before nobody knows."""
    op.add_column("attempts", sa.Column("holder", Name(), nullable=True))
