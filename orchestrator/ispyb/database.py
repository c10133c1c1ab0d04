"""The connection to ISPyB: its own, with its own patience. What goes wrong is said by what helps against it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import URL, Connection, Engine, create_engine, func, make_url, select
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from orchestrator.errors import InvalidSettings, IspybUnavailable, OrchestratorError

_DRIVER = "mariadb+pymysql"

_RIGHTS = {1044, 1045, 1142, 1143, 1290, 1370, 1836}
"""Codes of MariaDB and MySQL for a user, or a server, that may not do this."""

_ABOUT_THE_ROWS = {1048, 1062, 1205, 1213, 1264, 1265, 1292, 1366, 1406, 1451, 1452}
"""Codes for what is wrong with, or in the way of, these rows only."""


class RowsRefused(OrchestratorError):
    """ISPyB didn't take these rows; others it may."""

    transient = True


class IspybDatabase:
    """One ISPyB."""

    def __init__(self, url: str, *, timeout_s: float) -> None:
        self.url = _parsed(url)
        self._timeout_s = timeout_s
        self._engine = _engine(self.url, timeout_s)

    @property
    def address(self) -> str:
        """Where it is, without the password."""
        return f"ISPyB {self.url.render_as_string(hide_password=True)}"

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Give a connection: all that is done inside is there when the block ends, or nothing is.

        Raises
        ------
        IspybUnavailable
            When it can't be reached, is too slow, or is read-only for this program.
        RowsRefused
            When it is about what was to be written.
        """
        with self._connected() as connection:
            yield connection
            connection.commit()

    @contextmanager
    def alone(self, name: str) -> Iterator[Connection]:
        """Give a connection as `transaction` does, to one program at a time for each `name` of up to 51 characters.

        This is what keeps two services from writing one run twice, should both think that they are to.
        """
        lock = f"orchestrator/{name}"
        with self._connected() as connection:
            if connection.scalar(select(func.get_lock(lock, self._timeout_s))) != 1:
                raise RowsRefused(f"{self.address}: another program holds the lock {lock}", remedy="it is tried again")
            try:
                yield connection
                connection.commit()
            finally:
                if not connection.invalidated:
                    connection.rollback()
                    connection.scalar(select(func.release_lock(lock)))

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        try:
            with self._engine.connect() as connection:
                yield connection
        except (SQLAlchemyError, PoolTimeout) as error:
            raise self._named(error) from error

    def close(self) -> None:
        """Close the connection."""
        self._engine.dispose()

    def _named(self, error: SQLAlchemyError) -> OrchestratorError:
        cause = getattr(error, "orig", None) or error
        words = " ".join(str(part) for part in cause.args) or type(cause).__name__
        code = cause.args[0] if cause.args else None
        about_rows = isinstance(error, DBAPIError) and not error.connection_invalidated and code in _ABOUT_THE_ROWS
        if about_rows:
            return RowsRefused(f"{self.address}: {words}", remedy="it is tried again later")
        remedy = "see that it runs and can be reached from here"
        if code in _RIGHTS:
            remedy = "see what `orchestrator ispyb check` says about the rights"
        return IspybUnavailable(f"{self.address}: {words}", remedy=f"{remedy}; nothing is lost meanwhile")


def _parsed(text: str) -> URL:
    example = "mariadb://user:${ISPYB_PASSWORD}@host/ispyb"
    try:
        url = make_url(text)
    except ArgumentError as error:
        raise InvalidSettings("ispyb.url: not a database address", remedy=f"write it like {example}") from error
    if url.get_backend_name() not in {"mariadb", "mysql"} or not url.database:
        raise InvalidSettings(
            f"ispyb.url: {url.render_as_string(hide_password=True)!r} isn't a MariaDB or MySQL database",
            remedy=f"write it like {example}",
        )
    return url.set(drivername=_DRIVER)


def _engine(url: URL, timeout_s: float) -> Engine:
    whole_s = max(1, round(timeout_s))
    # Without strict mode the server would cut values that don't fit.
    session = (
        f"SET SESSION sql_mode = 'TRADITIONAL', SESSION innodb_lock_wait_timeout = {whole_s}, "
        f"SESSION lock_wait_timeout = {whole_s}"
    )
    return create_engine(
        url,
        connect_args={
            "connect_timeout": whole_s,
            "read_timeout": 2 * whole_s,  # it says by itself that a lock isn't to be had
            "write_timeout": whole_s,
            "init_command": session,
        },
        isolation_level="READ COMMITTED",
        pool_pre_ping=True,
        pool_size=1,
        max_overflow=0,
    )
