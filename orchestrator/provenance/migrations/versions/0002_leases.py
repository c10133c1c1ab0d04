"""Leases: work that one of several services does at a time."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

from orchestrator.provenance.columns import Name, UtcDateTime

revision = "0002"
down_revision = "0001"

_OPTIONS: dict[str, Any] = {
    f"{dialect}_{option}": value
    for dialect in ("mysql", "mariadb")
    for option, value in {"engine": "InnoDB", "charset": "utf8mb4", "collate": "utf8mb4_nopad_bin"}.items()
}


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "leases",
        sa.Column("name", Name(64), nullable=False),
        sa.Column("holder", Name(), nullable=False),
        sa.Column("until", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_leases"),
        **_OPTIONS,
    )
