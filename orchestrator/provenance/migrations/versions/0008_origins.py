"""Origins: which packages were installed where a job ran, and of which commit its templates were."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from orchestrator.provenance.columns import JsonText, Name

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add the columns; of attempts that were made before nobody knows."""
    op.add_column("attempts", sa.Column("packages_sha256", Name(64), nullable=True))
    op.add_column("attempts", sa.Column("template_origin", JsonText(), nullable=True))
