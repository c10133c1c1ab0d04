"""The way to the database: addresses in, transactions out. No table is named here.

A transaction is whole or it isn't there: an exception inside one, a lost connection or a killed process leaves nothing.
Whatever the database or the network does wrong becomes `StoreUnavailable` with the cause's words.
"""

from __future__ import annotations

import os
import re
import socket
import sqlite3
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from uuid import uuid4

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    DataError,
    DBAPIError,
    IntegrityError,
    NotSupportedError,
    ProgrammingError,
    SQLAlchemyError,
    StatementError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from orchestrator.crashpoints import CrashPoint, reached
from orchestrator.errors import InvalidSettings, OrchestratorError, StoreUnavailable

T = TypeVar("T")

_DRIVERS = {
    "sqlite": "sqlite+pysqlite",
    "postgresql": "postgresql+psycopg",
    "mysql": "mariadb+pymysql",
    "mariadb": "mariadb+pymysql",
}
_FAULTS = (IntegrityError, DataError, ProgrammingError, NotSupportedError)
"""What only a fault in this program can cause, with one exception:"""

_NO_PERMISSION = "42501"
"""PostgreSQL's code for a user without the rights, which its driver takes for a programming error."""

_NO_SUCH = {"42703", "42P01", 1054, 1146}
"""Codes of PostgreSQL and MariaDB for a column or table that isn't there."""

_NO_SUCH_ON_SQLITE = re.compile(r"^(no such (table|column)|table \w+ has no column)")

_LIST_LIMIT = 500

_EXAMPLES = "sqlite:////var/lib/orchestrator/provenance.sqlite, postgresql://user@host/name, mariadb://user@host/name"


def parse_url(text: str) -> URL:
    """Return a database address with the driver this program uses.

    Raises
    ------
    InvalidSettings
        When it isn't an address, or one of a database that isn't supported.
    """
    try:
        url = make_url(text)
    except ArgumentError as error:
        raise InvalidSettings(f"not a database address: {text!r}", remedy=f"write it like {_EXAMPLES}") from error
    backend = url.get_backend_name()
    if backend not in _DRIVERS:
        raise InvalidSettings(f"database {backend!r} is not supported", remedy=f"use one like {_EXAMPLES}")
    if backend == "sqlite" and url.database in {None, "", ":memory:"}:
        raise InvalidSettings("a SQLite database needs a file", remedy="write it like sqlite:////path/to/file")
    return url.set(drivername=_DRIVERS[backend])


class Database:
    """Connections of one process to one database; threads share it."""

    session_type: ClassVar[type[Session]] = Session
    """What changes the database."""

    def __init__(self, url: URL, *, busy_timeout_s: float) -> None:
        self.url = url
        self.holder = f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex}"
        """This process's name in the database: machine, process and a number that is drawn."""
        self._engine = _engine(url, busy_timeout_s)
        self._writer = self._engine.execution_options(begin="IMMEDIATE")
        # SQLite has one writer at a time, and lets others look again after pauses; a thread that waits here goes on at
        # once.
        self._turn = threading.Lock() if url.get_backend_name() == "sqlite" else nullcontext()

    @property
    def engine(self) -> Engine:
        """For migrations and for looking at the schema."""
        return self._engine

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Look at the database; what is changed inside isn't kept."""
        with (
            self.errors_named(),
            self._schema_differences_named(),
            Session(self._engine, expire_on_commit=False) as session,
        ):
            yield session

    @contextmanager
    def snapshot(self) -> Iterator[Session]:
        """Look at the database as it is at one moment, however many questions are asked."""
        with self.reading() as session:
            if self.url.get_backend_name() != "sqlite":  # which does so anyway
                session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """Change the database: all of it, durably, when the block ends; nothing when it raises."""
        with (
            self._turn,
            self.errors_named(),
            self._schema_differences_named(),
            self.session_type(self._writer, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session
            session.flush()
            reached(CrashPoint.BEFORE_COMMIT)
        reached(CrashPoint.AFTER_COMMIT)

    @contextmanager
    def connected(self) -> Iterator[Connection]:
        """Give a bare connection inside a writing transaction, for migrations."""
        with self.errors_named(), self._writer.begin() as connection:
            yield connection

    @contextmanager
    def errors_named(self) -> Iterator[None]:
        """Turn what the database or the network did wrong into `StoreUnavailable`; faults pass as they are."""
        try:
            yield
        except _FAULTS as error:
            if getattr(error.orig, "sqlstate", None) != _NO_PERMISSION:
                raise
            raise self._unavailable(error) from error
        except (DatabaseError, DBAPIError, PoolTimeout) as error:
            raise self._unavailable(error) from error
        except StatementError as error:
            if isinstance(error.orig, OrchestratorError):  # a column type refused a value
                raise error.orig from error
            raise

    @contextmanager
    def _schema_differences_named(self) -> Iterator[None]:
        """Turn a table or column that isn't there into `InvalidSettings`: no waiting helps, an upgrade does."""
        try:
            yield
        except DBAPIError as error:
            if not _is_schema_difference(error):
                raise
            raise InvalidSettings(
                f"{self._address} hasn't this release's schema: {_words(error)}",
                remedy="run `orchestrator db upgrade`, and see that all programs on it are of one release",
            ) from error

    @property
    def _address(self) -> str:
        return f"database {self.url.render_as_string(hide_password=True)}"

    def _unavailable(self, error: SQLAlchemyError) -> StoreUnavailable:
        words = _words(error)
        return StoreUnavailable(f"{self._address}: {words}", remedy=_remedy(words))

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()


def _words(error: SQLAlchemyError) -> str:
    cause = getattr(error, "orig", None) or error
    return (" ".join(str(part) for part in cause.args) or type(cause).__name__).strip()


def _is_schema_difference(error: DBAPIError) -> bool:
    codes = {getattr(error.orig, "sqlstate", None), next(iter(getattr(error.orig, "args", ())), None)}
    return not codes.isdisjoint(_NO_SUCH) or _NO_SUCH_ON_SQLITE.search(_words(error)) is not None


def _remedy(words: str) -> str:
    if "full" in words:
        return "make room on the database's disk"
    if "readonly" in words or "unable to open" in words or "denied" in words or "authentication" in words:
        return "check the address, the user and the permissions"
    if "malformed" in words or "not a database" in words:
        return "correct the address, or restore the file from a backup"
    if "lock" in words:
        return "another program is writing: try again; on SQLite end the other one"
    return "check that the database is running and can be reached from here"


def _engine(url: URL, busy_timeout_s: float) -> Engine:
    backend = url.get_backend_name()
    if backend == "sqlite":
        engine = create_engine(url, connect_args={"timeout": busy_timeout_s})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    return create_engine(
        url,
        connect_args=(_postgresql_arguments if backend == "postgresql" else _mariadb_arguments)(busy_timeout_s),
        isolation_level="READ COMMITTED",
        pool_pre_ping=True,
        pool_size=8,
        max_overflow=24,
    )


def _postgresql_arguments(busy_timeout_s: float) -> dict[str, Any]:
    waiting = f"-c lock_timeout={max(1, round(busy_timeout_s * 1000))}"
    silence = {"keepalives_idle": 15, "keepalives_interval": 5, "tcp_user_timeout": 30_000}
    return {"connect_timeout": 10, "options": waiting, **silence}


def _mariadb_arguments(busy_timeout_s: float) -> dict[str, Any]:
    waiting = max(1, round(busy_timeout_s))
    # Without strict mode the server would cut values that don't fit.
    session = f"SET SESSION sql_mode = 'TRADITIONAL', SESSION innodb_lock_wait_timeout = {waiting}"
    silence = {"read_timeout": 60 + waiting, "write_timeout": 60}
    return {"connect_timeout": 10, "init_command": session, **silence}


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    # The driver's own idea of when to begin would let a reader turn into a writer, which can't wait for a lock.
    connection.isolation_level = None
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_sqlite(connection: Connection) -> None:
    mode = connection.get_execution_options().get("begin", "DEFERRED")
    connection.exec_driver_sql(f"BEGIN {mode}")


def batched(values: Collection[T], most: int = _LIST_LIMIT) -> Iterator[Sequence[T]]:
    """Return values in lots of at most so many; without a number, as many as every database takes in one question."""
    ordered = list(values)
    return (ordered[begin : begin + most] for begin in range(0, len(ordered), most))


def sqlite_file(url: URL) -> Path | None:
    """Return the file of a SQLite database, None for a server's."""
    return Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None
