"""An index of trigrams, so that a text that few runs have is found among a million of them.

It holds runs that have ended, and is kept by triggers, whoever writes; a run on its way to its job costs nothing. It
leads from a text to *moments*: when runs were recorded that may have it, newest first. Whether a run of such a moment
has it, its own columns say.

The index is no part of the schema: a database that can't have it answers the same, row by row. A migration that changes
what is `SEARCHED` drops it; it is made anew after the last migration.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, column, inspect, select, table, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from orchestrator.provenance.columns import LongText, UtcDateTime, storable

log = logging.getLogger(__name__)

_TABLE = "run_texts"
SEARCHED = ("run_id", "recipe", "collection_uid", "visit", "file", "reason")
"""Columns of `runs` in which texts are looked for."""

_WATCHED = ", ".join(("created_at", "ended_at", *SEARCHED))
_HAPPENING = {
    "INSERT": "NEW.ended_at IS NOT NULL",
    f"UPDATE OF {_WATCHED}": "OLD.ended_at IS NOT NULL OR NEW.ended_at IS NOT NULL",
    "DELETE": "OLD.ended_at IS NOT NULL",
}
"""What the triggers do something about."""


def make_index(connection: Connection) -> None:
    """Make the index and fill it, unless it is there; where the database can't have it, the log says why."""
    needed = _NEEDED.get(connection.dialect.name)
    if needed is None or _is_there(connection):
        return
    try:
        with connection.begin_nested():
            connection.exec_driver_sql(needed)
    except DBAPIError as error:
        log.warning("Text searches look at every run: %s", error.orig)
    else:
        for statement in _STATEMENTS[connection.dialect.name]():
            connection.exec_driver_sql(statement)


def why_none(connection: Connection) -> str:
    """Return why text searches look at every run, and what to do; nothing where they have the index."""
    return "" if _is_there(connection) else _OBSTACLES[connection.dialect.name]


def moments(session: Session, wanted: str, until: datetime, most: int) -> Iterator[datetime] | None:
    """Return when ended runs were recorded that may have a text, at or before a moment, newest first.

    Returns
    -------
    Iterator of datetime or None
        None where there is no index, or it can't tell, because the text is too short.
    """
    connection, looked_for = session.connection(), storable(wanted)
    ask, long_enough = _QUESTIONS.get(connection.dialect.name, (None, _THREE))
    if ask is None or not long_enough.search(looked_for) or not _is_there(connection):
        return None
    return ask(session, looked_for, until, most)


def _is_there(connection: Connection) -> bool:
    return inspect(connection).has_table(_TABLE)


# --------------------------------------------------------------------------------------------------------- SQLite

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_THREE = re.compile("...", re.DOTALL)
_ENOUGH = 60
"""So many trigrams of a long text are asked for."""


def _on_sqlite() -> Iterator[str]:
    """Give what fills and keeps a table of FTS5: a document for each moment, numbered by its microseconds.

    Runs have no number of their own here: SQLite's may change in a VACUUM.
    """
    yield _enter("ended_at IS NOT NULL")
    for event, condition in _HAPPENING.items():
        rows = [row for row in ("OLD", "NEW") if f"{row}." in condition]
        touched = f"ended_at IS NOT NULL AND created_at IN ({', '.join(f'{row}.created_at' for row in rows)})"
        for time, statement in (("BEFORE", _take_out(touched)), ("AFTER", _enter(touched))):
            name = f"{_TABLE}_{time}_{event.partition(' ')[0]}".lower()
            yield f"CREATE TRIGGER {name} {time} {event} ON runs WHEN {condition} BEGIN {statement}; END"


def _enter(which: str) -> str:
    return f"INSERT INTO run_texts (rowid, words) {_documents(which)}"


def _take_out(which: str) -> str:
    return f"INSERT INTO run_texts (run_texts, rowid, words) SELECT 'delete', * FROM ({_documents(which)})"  # noqa: S608


def _documents(which: str) -> str:
    """Return the question for moments, in microseconds, and the words of all ended runs of each."""
    words = " || char(10) || ".join(f"coalesce({name}, '')" for name in SEARCHED)
    return f"""
        SELECT
            strftime('%s', moment) * 1000000 + substr(moment, 21),
            (SELECT group_concat(words) FROM (
                SELECT {words} AS words FROM runs
                WHERE created_at = moment AND ended_at IS NOT NULL ORDER BY run_id
            ))
        FROM (SELECT DISTINCT created_at AS moment FROM runs WHERE {which})"""  # noqa: S608  names from above


def _ask_sqlite(session: Session, wanted: str, until: datetime, most: int) -> Iterator[datetime]:
    trigrams = dict.fromkeys(wanted[at : at + 3] for at in range(min(len(wanted) - 2, _ENOUGH)))
    every = " AND ".join('"{}"'.format(trigram.replace('"', '""')) for trigram in trigrams)
    question = text(
        "SELECT rowid FROM run_texts WHERE run_texts MATCH :every AND rowid <= :until ORDER BY rowid DESC LIMIT :most"
    )
    values = {"every": every, "until": (until - _EPOCH) // timedelta(microseconds=1), "most": most}
    return (_EPOCH + timedelta(microseconds=moment) for moment in session.scalars(question, values))


# ----------------------------------------------------------------------------------------------------- PostgreSQL

_THREE_LETTERS = re.compile(r"[^\W_]{3}")
"""``pg_trgm`` knows letters and digits only."""

_TEXTS = table(_TABLE, column("created_at", UtcDateTime()), column("words", LongText()))


def _on_postgresql() -> Iterator[str]:
    """Give what makes, fills and keeps a table of words: rows of runs change too often to have the index themselves."""
    words = ", ".join(f"run.{name}" for name in SEARCHED)
    yield f"""
        CREATE FUNCTION words_of(run runs) RETURNS text STABLE LANGUAGE sql AS
        $$ SELECT concat_ws(chr(10), {words}) $$"""
    yield """
        CREATE TABLE run_texts AS
        SELECT run_id, created_at, words_of(runs) AS words FROM runs WHERE ended_at IS NOT NULL"""
    yield "ALTER TABLE run_texts ADD CONSTRAINT pk_run_texts PRIMARY KEY (run_id)"
    # Few entries wait to be sorted in: each search looks at all of those.
    yield """
        CREATE INDEX ix_run_texts_words ON run_texts
        USING gin (words gin_trgm_ops) WITH (gin_pending_list_limit = 256)"""
    yield """
        CREATE FUNCTION keep_run_texts() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF TG_OP <> 'INSERT' THEN
                DELETE FROM run_texts WHERE run_id = OLD.run_id;
            END IF;
            IF TG_OP <> 'DELETE' AND NEW.ended_at IS NOT NULL THEN
                INSERT INTO run_texts (run_id, created_at, words) VALUES (NEW.run_id, NEW.created_at, words_of(NEW));
            END IF;
            RETURN NULL;
        END $$"""
    for event, condition in _HAPPENING.items():
        yield f"""
            CREATE TRIGGER run_texts_{event.partition(" ")[0].lower()} AFTER {event} ON runs
            FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION keep_run_texts()"""


def _ask_postgresql(session: Session, wanted: str, until: datetime, most: int) -> Iterator[datetime]:
    words, moment = _TEXTS.c.words, _TEXTS.c.created_at
    question = select(moment).distinct().where(words.icontains(wanted, autoescape=True), moment <= until)
    session.execute(text("SET LOCAL enable_seqscan = off"))  # whatever it believes about the text
    found = session.scalars(question.order_by(moment.desc()).limit(most)).all()
    session.execute(text("RESET enable_seqscan"))
    return iter(found)


_NEEDED = {
    "sqlite": "CREATE VIRTUAL TABLE run_texts"
    " USING fts5(words, content='', detail=none, columnsize=0, tokenize='trigram')",
    "postgresql": "CREATE EXTENSION IF NOT EXISTS pg_trgm",
}
"""What not every database can do."""

_STATEMENTS: Mapping[str, Callable[[], Iterator[str]]] = {"sqlite": _on_sqlite, "postgresql": _on_postgresql}
_QUESTIONS: Mapping[str, tuple[Callable[[Session, str, datetime, int], Iterator[datetime]], re.Pattern[str]]] = {
    "sqlite": (_ask_sqlite, _THREE),
    "postgresql": (_ask_postgresql, _THREE_LETTERS),
}
_OBSTACLES = {
    "sqlite": "it takes SQLite 3.34 or newer with FTS5, and then `orchestrator db upgrade`",
    "postgresql": "have a superuser run CREATE EXTENSION pg_trgm in this database, and then `orchestrator db upgrade`",
    "mariadb": "MariaDB has no index for them",
}
