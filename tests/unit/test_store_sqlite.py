"""The provenance store on SQLite when things go wrong, and its schema's revisions."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import event, inspect, text

from orchestrator.errors import InvalidInput, InvalidSettings, StoreUnavailable
from orchestrator.provenance import SchemaStatus, Store
from orchestrator.provenance.database import parse_url
from orchestrator.provenance.schema import MIGRATIONS, check_schema, revisions, schema_status, upgrade_schema
from orchestrator.records import CollectionStart, RawMessage

START = CollectionStart(uid="c-1", beamline="i22", detector="d", file=Path("/a.h5"), dataset="/entry/data")
NEWEST = revisions(MIGRATIONS)[-1]
NEXT = f"{int(NEWEST) + 1:04}"
NEXT_MIGRATION = f"""
import sqlalchemy as sa
from alembic import op

revision = "{NEXT}"
down_revision = "{NEWEST}"


def upgrade():
    op.create_table("extra", sa.Column("id", sa.Integer, primary_key=True))
    op.add_column("messages", sa.Column("extra", sa.Integer))
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "provenance.sqlite"


@pytest.fixture
def url(file: Path) -> str:
    return f"sqlite:///{file}"


@pytest.fixture
def one_more_migration(tmp_path: Path) -> Path:
    folder = tmp_path / "migrations"
    shutil.copytree(MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "versions" / f"{NEXT}_more.py").write_text(NEXT_MIGRATION)
    return folder


def record(store: Store, body: bytes = b"{}") -> int:
    return store.record_message(RawMessage(body=body, source="command"), understood=START).message_id


# --------------------------------------------------------------------------------------------------------- trouble


def test_a_locked_database_is_unavailable_after_the_busy_time_and_readable_meanwhile(file: Path, url: str) -> None:
    with Store.open(url, busy_timeout_s=0.5) as store, closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        before = time.monotonic()
        with pytest.raises(StoreUnavailable, match="database is locked") as raised:
            record(store)
        assert 0.4 < time.monotonic() - before < 5
        assert "another program is writing" in raised.value.remedy
        assert store.messages() == []
        other.execute("ROLLBACK")
        assert record(store) == store.messages()[0].message_id


def test_a_writer_waits_for_another_that_is_soon_done(file: Path, url: str) -> None:
    with Store.open(url, busy_timeout_s=20) as store:
        other = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        release = threading.Timer(0.3, lambda: other.execute("ROLLBACK"))
        release.start()
        record(store)
        release.join()
        other.close()
        assert len(store.messages()) == 1


def test_a_full_disk_is_named_and_nothing_is_half_written(url: str) -> None:
    Store.open(url).close()
    with Store.connect(url) as store:
        event.listen(store.engine, "connect", lambda connection, _: connection.execute("PRAGMA max_page_count = 1"))
        with pytest.raises(StoreUnavailable, match="database or disk is full") as raised:
            record(store, b"x" * 1_000_000)
        assert raised.value.remedy == "make room on the database's disk"
    with Store.open(url) as store:
        assert store.messages() == []


def test_a_file_that_is_no_database_is_named(file: Path, url: str) -> None:
    file.write_bytes(b"neither SQLite nor empty" * 1000)
    with pytest.raises(StoreUnavailable, match=f"{file}.*not a database") as raised:
        Store.open(url)
    assert "backup" in raised.value.remedy


def test_a_place_that_can_not_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnavailable, match="file/below"):
        Store.open(f"sqlite:///{tmp_path}/file/below/provenance.sqlite")


def test_commits_are_durable_and_references_checked(url: str) -> None:
    with Store.open(url) as store, store.reading() as session:
        assert session.scalar(text("PRAGMA journal_mode")) == "wal"
        assert session.scalar(text("PRAGMA synchronous")) == 2
        assert session.scalar(text("PRAGMA foreign_keys")) == 1


def test_names_that_are_too_long_are_refused_and_not_a_fault(url: str) -> None:
    with Store.open(url) as store, pytest.raises(InvalidInput, match="has 300 characters, the database takes 255"):
        store.runs(beamline="x" * 300)


# --------------------------------------------------------------------------------------------------------- address


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("provenance.sqlite", "not a database address"),
        ("oracle://host/name", "'oracle' is not supported"),
        ("sqlite://", "needs a file"),
        ("sqlite:///:memory:", "needs a file"),
    ],
)
def test_an_address_that_can_not_be_used_is_refused_with_an_example(address: str, words: str) -> None:
    with pytest.raises(InvalidSettings, match=words) as raised:
        parse_url(address)
    assert "sqlite:////" in raised.value.remedy


@pytest.mark.parametrize(
    ("address", "driver"),
    [
        ("postgresql://user@host/name", "postgresql+psycopg"),
        ("mysql+pymysql://user@host/name", "mariadb+pymysql"),
        ("mariadb://user@host/name", "mariadb+pymysql"),
        ("sqlite:////tmp/x", "sqlite+pysqlite"),
    ],
)
def test_the_driver_need_not_be_named(address: str, driver: str) -> None:
    assert parse_url(address).drivername == driver


# ---------------------------------------------------------------------------------------------------------- schema


def test_a_missing_file_is_made_with_its_folders(tmp_path: Path) -> None:
    with Store.open(f"sqlite:///{tmp_path}/a/b/provenance.sqlite") as store:
        assert store.schema_status().current


def test_asking_for_the_status_makes_no_file(file: Path, url: str) -> None:
    with Store.connect(url) as store:
        status = store.schema_status()
    assert (status.revision, status.current, status.known) == (None, False, True)
    assert not file.exists()


def test_a_filled_database_is_brought_forward_with_all_it_holds(url: str, one_more_migration: Path) -> None:
    with Store.open(url) as store:
        record(store)
        before = store.messages()
        assert schema_status(store, migrations=one_more_migration).pending == (NEXT,)
        assert upgrade_schema(store, migrations=one_more_migration).revision == NEWEST
        assert schema_status(store, migrations=one_more_migration).current
        assert store.messages() == before
    with pytest.raises(InvalidSettings, match=f"has schema {NEXT}, newer than this release's {NEWEST}"):
        Store.open(url)


def test_a_migration_that_fails_leaves_the_database_as_it_was(url: str, one_more_migration: Path) -> None:
    broken = NEXT_MIGRATION + '    op.execute("DROP TABLE nowhere")\n'
    (one_more_migration / "versions" / f"{NEXT}_more.py").write_text(broken)
    with Store.open(url) as store:
        with pytest.raises(StoreUnavailable, match="nowhere"):
            upgrade_schema(store, migrations=one_more_migration)
        assert "extra" not in inspect(store.engine).get_table_names()
        assert store.schema_status().current


def test_an_older_schema_is_refused_with_the_command_that_helps() -> None:
    older = SchemaStatus(address="sqlite:///x", revision="0001", newest="0002", pending=("0002",), known=True)
    with pytest.raises(InvalidSettings, match="has schema 0001, this release needs 0002") as raised:
        check_schema(older)
    assert "orchestrator db upgrade" in raised.value.remedy


def test_the_files_of_the_migrations_are_named_after_their_revisions() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    scripts = [*ScriptDirectory.from_config(config).walk_revisions()][::-1]
    assert [script.revision for script in scripts] == revisions(MIGRATIONS)
    assert all(Path(script.path).name.startswith(f"{script.revision}_") for script in scripts)


def test_a_store_that_is_up_to_date_opens_without_the_migration_library(url: str) -> None:
    Store.open(url).close()
    program = (
        "import sys; from orchestrator.provenance import Store\n"
        "Store.open(sys.argv[1]).close(); sys.exit('alembic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program, url], check=False).returncode == 0
