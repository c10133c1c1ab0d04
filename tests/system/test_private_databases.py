"""The private database servers that other tests stand on."""

from __future__ import annotations

import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import sqlalchemy

from orchestrator.stack import databases, ports

pytestmark = pytest.mark.stack

SERVERS = pytest.mark.parametrize("server", [databases.private_postgresql, databases.private_mariadb])
Server = Callable[[Path], AbstractContextManager[str]]


@SERVERS
def test_keeps_what_is_written_and_is_gone_afterwards(server: Server, tmp_path: Path) -> None:
    with server(tmp_path / "db") as url:
        engine = sqlalchemy.create_engine(url)
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("CREATE TABLE t (word VARCHAR(20))"))
            connection.execute(sqlalchemy.text("INSERT INTO t VALUES ('Ångström')"))
        with engine.connect() as connection:
            assert connection.execute(sqlalchemy.text("SELECT word FROM t")).scalar_one() == "Ångström"
        engine.dispose()
        port = sqlalchemy.make_url(url).port
        assert port is not None
    assert not ports.answers(port)


@SERVERS
def test_refuses_strangers(server: Server, tmp_path: Path) -> None:
    with server(tmp_path / "db") as url:
        engine = sqlalchemy.create_engine(sqlalchemy.make_url(url).set(password="guessed"))
        with pytest.raises(sqlalchemy.exc.OperationalError, match=r"(?i)access denied|password authentication failed"):
            engine.connect()
        engine.dispose()


@SERVERS
def test_secrets_are_readable_by_the_owner_only(server: Server, tmp_path: Path) -> None:
    with server(tmp_path / "db") as url:
        password = sqlalchemy.make_url(url).password
        holders = [path for path in (tmp_path / "db").iterdir() if path.is_file() and password in path.read_text()]
        assert holders
        assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in holders)
