"""Used files: which run read which file, and which made it, to be found by path or digest."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

from orchestrator.provenance.columns import LongText, Name, RowId
from orchestrator.records import sha256_of

revision = "0009"
down_revision = "0008"

_OPTIONS: dict[str, Any] = {
    f"{dialect}_{option}": value
    for dialect in ("mysql", "mariadb")
    for option, value in {"engine": "InnoDB", "charset": "utf8mb4", "collate": "utf8mb4_nopad_bin"}.items()
}


def upgrade() -> None:
    """Add the table, and fill it with what is known."""
    used = op.create_table(
        "used_files",
        sa.Column("id", RowId, nullable=False),
        sa.Column("run_id", Name(36), nullable=False),
        sa.Column("role", Name(), nullable=False),
        sa.Column("path", LongText(), nullable=False),
        sa.Column("path_sha256", Name(64), nullable=False),
        sa.Column("sha256", Name(64), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"], name="fk_used_files_runs"),
        sa.PrimaryKeyConstraint("id", name="pk_used_files"),
        **_OPTIONS,
    )
    for column in ("run_id", "path_sha256", "sha256"):
        op.create_index(f"ix_used_files_{column}", "used_files", [column])
    op.add_column("outputs", sa.Column("path_sha256", Name(64), nullable=True))
    op.create_index("ix_outputs_path_sha256", "outputs", ["path_sha256"])
    _fill(op.get_bind(), used)


def _fill(connection: sa.Connection, used: sa.Table) -> None:
    outputs = sa.table("outputs", sa.column("id"), sa.column("path"), sa.column("path_sha256"))
    for number, path in connection.execute(sa.select(outputs.c.id, outputs.c.path)).all():
        connection.execute(sa.update(outputs).where(outputs.c.id == number).values(path_sha256=sha256_of(path)))
    inputs = sa.table("inputs", *map(sa.column, ("run_id", "real_path", "sources", "id")))
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for run_id, path, sources in connection.execute(
        sa.select(inputs.c.run_id, inputs.c.real_path, inputs.c.sources).order_by(inputs.c.id)
    ):
        named = [("input", path), *(("source", one["path"]) for one in json.loads(sources or "[]") if "path" in one)]
        for role, file in named:
            rows[run_id, role, file] = {"run_id": run_id, "role": role, "path": file, "path_sha256": sha256_of(file)}
    if rows:
        connection.execute(sa.insert(used), list(rows.values()))
