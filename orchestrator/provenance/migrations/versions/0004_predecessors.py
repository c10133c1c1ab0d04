"""Chains: which runs a run comes after."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

from orchestrator.provenance.columns import Name

revision = "0004"
down_revision = "0003"

_OPTIONS: dict[str, Any] = {
    f"{dialect}_{option}": value
    for dialect in ("mysql", "mariadb")
    for option, value in {"engine": "InnoDB", "charset": "utf8mb4", "collate": "utf8mb4_nopad_bin"}.items()
}


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "predecessors",
        sa.Column("run_id", Name(36), nullable=False),
        sa.Column("predecessor_id", Name(36), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"], name="fk_predecessors_runs"),
        sa.PrimaryKeyConstraint("run_id", "predecessor_id", name="pk_predecessors"),
        **_OPTIONS,
    )
    op.create_index("ix_predecessors_predecessor_id", "predecessors", ["predecessor_id"])
