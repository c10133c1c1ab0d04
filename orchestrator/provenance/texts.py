"""Texts that many runs share, scripts, templates and lists of packages: each is stored once, by its digest."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from sqlalchemy import Insert
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.orm import Session

from orchestrator.provenance.columns import storable
from orchestrator.provenance.tables import TextRow
from orchestrator.records import sha256_of


def keep_texts(session: Session, texts: Iterable[str]) -> None:
    """Store texts, by their digests, unless they are there; others may do so at the same moment."""
    by_digest = {sha256_of(text): text for text in texts}
    if not by_digest:
        return
    rows = [{"sha256": sha256, "content": storable(by_digest[sha256])} for sha256 in sorted(by_digest)]
    session.connection().execute(_kept(session.get_bind().dialect.name), rows)


@cache
def _kept(dialect: str) -> Insert:
    if dialect == "sqlite":
        return sqlite.insert(TextRow).on_conflict_do_nothing()
    if dialect == "postgresql":
        return postgresql.insert(TextRow).on_conflict_do_nothing()
    insert = mysql.insert(TextRow)
    return insert.on_duplicate_key_update(sha256=insert.inserted.sha256)
