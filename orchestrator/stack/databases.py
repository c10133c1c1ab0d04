"""A private PostgreSQL and a private MariaDB, for tests and for accounting.

Both listen on 127.0.0.1 only and want a password that is made here. Nothing outside the given directory is written.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy
from sqlalchemy.exc import OperationalError

from orchestrator.errors import StackError
from orchestrator.stack import ports, processes
from orchestrator.stack.programs import find_program

USER = "orchestrator"
STARTUP_TIMEOUT_S = 60


@contextmanager
def private_postgresql(directory: Path) -> Iterator[str]:
    """Run a PostgreSQL server while the context lasts.

    Parameters
    ----------
    directory
        Where its data go; a new or empty directory.

    Yields
    ------
    str
        SQLAlchemy URL (``postgresql+psycopg://…``) of an empty database; its user may create others.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (port,) = ports.free_ports(1)
    password = secrets.token_urlsafe(18)
    command = [*_as_postgres(directory), *_postgresql_command(directory, password, port)]

    url = f"postgresql+psycopg://{USER}:{password}@{ports.LOOPBACK}:{port}/postgres"
    with _server(command, directory, url):
        yield url


def _as_postgres(directory: Path) -> list[str]:
    """Return the words before a command that make it run as the user that PostgreSQL accepts.

    The server refuses to run as root. As Debian's user ``postgres`` it keeps one capability of root's: to pass through
    folders above the directory that are closed to others (those of pytest's are).
    """
    if os.geteuid() != 0:
        return []
    try:
        account = pwd.getpwnam("postgres")
    except KeyError as unknown:
        raise StackError("there is no user postgres", remedy="install it: apt-get install postgresql") from unknown
    os.chown(directory, account.pw_uid, account.pw_gid)
    keep = "+dac_read_search"
    setpriv = find_program("setpriv")
    identity = [f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
    return [setpriv, *identity, f"--inh-caps={keep}", f"--ambient-caps={keep}", "--"]


def _postgresql_command(directory: Path, password: str, port: int) -> list[str]:
    data = directory / "data"
    secret = directory / "password"
    secret.touch(mode=0o600)
    secret.write_text(password)
    if os.geteuid() == 0:
        shutil.chown(secret, "postgres")
    initdb = [find_program("initdb"), f"--pgdata={data}", f"--username={USER}", f"--pwfile={secret}"]
    options = ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"]
    processes.run([*_as_postgres(directory), *initdb, *options])
    settings = ["fsync=off", "max_connections=100", f"listen_addresses={ports.LOOPBACK}", "unix_socket_directories="]
    return [
        find_program("postgres"),
        *("-D", str(data), "-p", str(port)),
        *(word for setting in settings for word in ("-c", setting)),
    ]


@contextmanager
def private_mariadb(directory: Path) -> Iterator[str]:
    """Run a MariaDB server while the context lasts.

    Parameters
    ----------
    directory
        Where its data go; a new or empty directory.

    Yields
    ------
    str
        SQLAlchemy URL (``mysql+pymysql://…``) of an empty database ``orchestrator``; its user may create others.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (port,) = ports.free_ports(1)
    password = secrets.token_urlsafe(18)
    install_mariadb(directory, password)
    command = mariadb_command(directory, port)
    url = mariadb_url(port, password)
    with _server(command, directory, url):
        yield url


def mariadb_url(port: int, password: str, database: str = USER) -> str:
    """Return the SQLAlchemy URL of a database of a private MariaDB."""
    return f"mysql+pymysql://{USER}:{password}@{ports.LOOPBACK}:{port}/{database}?charset=utf8mb4"


def accepts_connections(url: str) -> bool:
    """Return whether the database at this SQLAlchemy URL can be connected to now."""
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    try:
        engine.connect().close()
    except OperationalError:
        return False
    return True


def install_mariadb(directory: Path, password: str) -> None:
    """Make the system tables where they are missing, and what makes the user and the database at each start."""
    account = f"'{USER}'@'{ports.LOOPBACK}'"
    start = directory / "start.sql"
    start.touch(mode=0o600)
    start.write_text(
        f"CREATE OR REPLACE USER {account} IDENTIFIED BY '{password}';\n"
        f"GRANT ALL ON *.* TO {account} WITH GRANT OPTION;\n"
        f"CREATE DATABASE IF NOT EXISTS {USER} CHARACTER SET utf8mb4;\n"
    )
    data = directory / "data"
    if (data / "mysql").exists():
        return
    options = ["--no-defaults", f"--datadir={data}", "--skip-test-db", f"--user={_own_name()}"]
    processes.run([find_program("mariadb-install-db"), *options], timeout_s=STARTUP_TIMEOUT_S)


def mariadb_command(directory: Path, port: int) -> list[str]:
    """Return the command line of the server for what `install_mariadb` made."""
    return [
        find_program("mariadbd"),
        "--no-defaults",
        f"--user={_own_name()}",
        f"--datadir={directory / 'data'}",
        f"--init-file={directory / 'start.sql'}",
        # Relative to the data directory: names of sockets are limited to 107 bytes.
        "--socket=mariadb.sock",
        f"--port={port}",
        f"--bind-address={ports.LOOPBACK}",
        "--skip-name-resolve",
        # What slurmdbd wants.
        "--innodb-buffer-pool-size=128M",
        "--innodb-log-file-size=32M",
        "--innodb-lock-wait-timeout=900",
        "--skip-log-bin",
    ]


def _own_name() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name


@contextmanager
def _server(command: list[str], directory: Path, url: str) -> Iterator[None]:
    """Run a database server while the context lasts; yields when it accepts connections."""
    log = directory / "server.log"
    process = processes.launch(command, log=log, directory=directory)
    try:
        processes.wait_until(
            lambda: accepts_connections(url) or not processes.is_alive(process), timeout_s=STARTUP_TIMEOUT_S
        )
        if not accepts_connections(url):
            last = "\n".join(processes.tail(log))
            raise StackError(f"the database server didn't start; its last words:\n{last}", remedy=f"read {log}")
        yield
    finally:
        processes.end([process])
