"""How Alembic runs the numbered files: on the connection that `orchestrator.provenance.schema` gives."""

from __future__ import annotations

from alembic import context

from orchestrator.provenance.tables import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
with context.begin_transaction():
    context.run_migrations()
