"""``orchestrator db``: upgrading and looking."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli.common import ExitCode
from orchestrator.cli.db import app
from orchestrator.provenance import Store, text_index
from orchestrator.provenance.schema import MIGRATIONS, revisions
from orchestrator.settings import load_settings

SITE = Path(__file__).parents[2] / "site-configs" / "embedded.toml"
KNOWN = revisions(MIGRATIONS)


def run(*words: str, code: ExitCode = ExitCode.OK, **environment: str) -> str:
    result = CliRunner(env=environment).invoke(app, list(words), terminal_width=200)
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/provenance.sqlite"


def test_status_tells_what_to_do_before_and_that_all_is_well_after(url: str) -> None:
    assert "orchestrator db upgrade" in run("status", "--url", url, code=ExitCode.INCOMPLETE)
    assert f"upgraded from empty to {KNOWN[-1]}" in run("upgrade", "--url", url)
    assert f"has schema {KNOWN[-1]} already" in run("upgrade", "--url", url)
    assert "up to date" in run("status", "--url", url)


def test_a_database_that_can_not_index_texts_says_so_and_what_to_do(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as without:
        without.setitem(text_index._NEEDED, "sqlite", "CREATE VIRTUAL TABLE run_texts USING fts55(words)")
        assert "text searches look at every run: it takes SQLite 3.34" in run("upgrade", "--url", url)
        assert "text searches look at every run: it takes SQLite 3.34" in run("status", "--url", url)
    assert "text searches" not in run("upgrade", "--url", url)
    assert "text searches" not in run("status", "--url", url)


def test_status_is_json_for_scripts(url: str) -> None:
    before = json.loads(run("status", "--json", "--url", url, code=ExitCode.INCOMPLETE))
    assert (before["revision"], before["newest"], before["pending"], before["current"]) == (
        None,
        KNOWN[-1],
        KNOWN,
        False,
    )
    run("upgrade", "--url", url)
    assert json.loads(run("status", "--json", "--url", url))["current"] is True


def test_the_database_of_a_site_file_is_upgraded(tmp_path: Path) -> None:
    for folder in ("site-configs", "jobtemplates"):
        (tmp_path / folder).mkdir()
    site = tmp_path / "site-configs" / SITE.name
    site.write_text(SITE.read_text())
    run("upgrade", "--site", str(site))
    assert "up to date" in run("status", ORCHESTRATOR_SITE=str(site))
    with Store.open(load_settings(site).database) as store:
        assert store.messages() == []
    assert list(tmp_path.rglob("*.sqlite"))


def test_one_of_site_and_url_is_needed() -> None:
    assert "--site" in run("upgrade", code=ExitCode.USAGE)


def test_a_wrong_address_or_a_lost_server_is_told_apart() -> None:
    assert "not supported" in run("status", "--url", "oracle://host/name", code=ExitCode.INVALID_INPUT)
    lost = run("upgrade", "--url", "postgresql://nobody@127.0.0.1:1/name", code=ExitCode.UNAVAILABLE)
    assert "remedy:" in lost
