"""The schema's revision: which one a database has, which one this release needs, and the way there.

The numbered files in ``migrations/versions/`` run in order, under a lock, so that two programs that start at once don't
both do it. There is no way back: a backup is. Alembic, which takes its time to import, is needed only where a migration
is to be run.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from sqlalchemy import Connection, inspect, text

from orchestrator.errors import InvalidSettings, StoreUnavailable
from orchestrator.provenance.database import Database, sqlite_file
from orchestrator.provenance.text_index import make_index, why_none

log = logging.getLogger(__name__)

MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK_NAME = "orchestrator schema"
_LOCK_KEY = 7_262_002_311
_LOCK_WAIT_S = 60


@dataclass(frozen=True, kw_only=True)
class SchemaStatus:
    """Where a database's schema stands."""

    address: str
    """Without the password."""
    revision: str | None
    """None for an empty database."""
    newest: str
    """What this release needs."""
    pending: tuple[str, ...]
    """Migrations to run, in order."""
    known: bool
    """False when the revision is of a newer release."""
    searches: str = ""
    """Why text searches look at every run, and what to do; empty when they have an index, or nothing is there yet."""

    @property
    def current(self) -> bool:
        return self.revision == self.newest


def schema_status(database: Database, *, migrations: Path = MIGRATIONS) -> SchemaStatus:
    """Look where the schema stands.

    Raises
    ------
    StoreUnavailable
        When the database can't be asked.
    """
    file = sqlite_file(database.url)
    if file is not None and not file.exists():  # asking would make it
        return _status(database, None, migrations)
    with database.errors_named(), database.engine.connect() as connection:
        status = _status(database, _revision(connection), migrations)
        return replace(status, searches=why_none(connection)) if status.current else status


def upgrade_schema(database: Database, *, migrations: Path = MIGRATIONS) -> SchemaStatus:
    """Bring the schema to this release's revision, and make the index of texts; what is there already stays.

    Returns
    -------
    SchemaStatus
        How it stood before.

    Raises
    ------
    StoreUnavailable
        When the database can't be reached or is locked for long.
    InvalidSettings
        When it belongs to a newer release, or to another program.
    """
    _make_parent(database)
    with database.connected() as connection, _migrating(connection):
        revision = _revision(connection)
        before = _status(database, revision, migrations)
        _refuse_foreign(before, connection)
        if not before.current:
            _migrate(connection, migrations)
            log.info("Database %s upgraded from %s to %s", before.address, revision or "nothing", before.newest)
        make_index(connection)
    return before


def check_schema(status: SchemaStatus) -> None:
    """Refuse a database whose schema isn't this release's.

    Raises
    ------
    InvalidSettings
        With the remedy.
    """
    if status.current:
        return
    if not status.known:
        raise InvalidSettings(
            f"database {status.address} has schema {status.revision}, newer than this release's {status.newest}",
            remedy="use the release that upgraded it, or a newer one",
        )
    stands = f"has schema {status.revision}" if status.revision else "is empty"
    raise InvalidSettings(
        f"database {status.address} {stands}, this release needs {status.newest}",
        remedy="run `orchestrator db upgrade`, after a backup",
    )


def revisions(migrations: Path) -> list[str]:
    """Return the revisions that this release knows, oldest first: the files' names begin with them."""
    return sorted(path.name.partition("_")[0] for path in (migrations / "versions").glob("[0-9]*_*.py"))


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return revision


def _migrate(connection: Connection, migrations: Path) -> None:
    from alembic import command  # noqa: PLC0415 - costs every command a quarter of a second
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _status(database: Database, revision: str | None, migrations: Path) -> SchemaStatus:
    order = revisions(migrations)
    known = revision is None or revision in order
    done = order.index(revision) + 1 if revision in order else 0
    return SchemaStatus(
        address=database.url.render_as_string(hide_password=True),
        revision=revision,
        newest=order[-1],
        pending=tuple(order[done:]) if known else (),
        known=known,
    )


def _refuse_foreign(status: SchemaStatus, connection: Connection) -> None:
    if not status.known:
        check_schema(status)
    if status.revision is None and (tables := inspect(connection).get_table_names()):
        raise InvalidSettings(
            f"database {status.address} holds another program's tables ({', '.join(sorted(tables)[:3])}, …)",
            remedy="give the orchestrator a database of its own",
        )


def _make_parent(database: Database) -> None:
    file = sqlite_file(database.url)
    if file is None:
        return
    try:
        file.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreUnavailable(f"database {file}: {error}", remedy="check the path and its permissions") from error


@contextmanager
def _migrating(connection: Connection) -> Iterator[None]:
    """Hold a lock that other migrating programs wait for; SQLite's writing transaction is one already."""
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_WAIT_S}s'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
        yield
    elif connection.dialect.name == "mariadb":
        name = {"name": _LOCK_NAME, "wait": _LOCK_WAIT_S}
        if connection.scalar(text("SELECT GET_LOCK(CONCAT(:name, DATABASE()), :wait)"), name) != 1:
            raise StoreUnavailable("another program is migrating the database", remedy="try again when it is done")
        try:
            yield
        finally:
            connection.execute(text("SELECT RELEASE_LOCK(CONCAT(:name, DATABASE()))"), {"name": _LOCK_NAME})
    else:
        yield
