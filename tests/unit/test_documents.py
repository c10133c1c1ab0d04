"""The documents keep their word: links lead somewhere, commands and lock files are what they are said to be."""

from __future__ import annotations

import re
import shutil
import string
import subprocess
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from orchestrator.cli import app
from orchestrator.cli.common import ExitCode
from orchestrator.messages import understand
from orchestrator.planning import check_allowed
from orchestrator.planning import plan as plan_collection
from orchestrator.records import CollectionStart, RawMessage
from orchestrator.settings import load_settings

CHECKOUT = Path(__file__).parent.parent.parent
PAGES = sorted([*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/**/*.md")])
LOCKS = sorted((CHECKOUT / "requirements").glob("*.txt"))
README = (CHECKOUT / "README.md").read_text()

_FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)


def _name(path: Path) -> str:
    return str(path.relative_to(CHECKOUT))


def _commands() -> set[str]:
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    return set(group.commands)


def _anchors(page: Path) -> set[str]:
    headings = _HEADING.findall(_FENCED.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _dead_links(page: Path) -> list[str]:
    dead = []
    for link in _LINK.findall(_FENCED.sub("", page.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            dead.append(link)
    return dead


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_of_a_page_lead_to_something(page: Path) -> None:
    assert _dead_links(page) == []


def test_dead_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A title\n[a](#a-title) [b](#other) [c](page.md#a-title) ![d](no.png) [e](https://example.org)\n")
    assert _dead_links(page) == ["#other", "no.png"]


@pytest.mark.parametrize("folder", ["how-to", "reference", "decisions", "explanation", "tutorials"])
def test_every_page_is_in_an_index(folder: str) -> None:
    index = "".join((CHECKOUT / "docs" / name).read_text() for name in ("README.md", "decisions/README.md"))
    pages = {page.name for page in (CHECKOUT / "docs" / folder).glob("*.md")}
    assert {page for page in pages if page not in index} == set()


def test_commands_of_the_readme_are_those_of_the_program() -> None:
    named = set(re.findall(r"^\| `orchestrator ([a-z]+)`", README, re.MULTILINE))
    assert named == _commands()


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_commands_in_a_page_exist(page: Path) -> None:
    text = page.read_text()
    assert set(re.findall(r"(?:`|^    )orchestrator ([a-z]+)", text, re.MULTILINE)) - _commands() == set()
    scripts = {CHECKOUT / path for path in re.findall(r"script/[a-z]+(?:-[a-z]+)*(?![a-z./-])", text)}
    assert {_name(path) for path in scripts if not shutil.which(path)} == set()


TUTORIAL = CHECKOUT / "docs" / "tutorials" / "first-collection.md"


def _written_by_tutorial(name: str, **variables: object) -> str:
    """Return the file that the tutorial has its reader write with ``cat > NAME <<END``."""
    (text,) = re.findall(rf"^cat > {re.escape(name)} <<END\n(.*?)^END$", TUTORIAL.read_text(), re.DOTALL | re.MULTILINE)
    return string.Template(text).substitute({name: str(value) for name, value in variables.items()})


def test_the_site_and_message_of_the_tutorial_lead_to_the_plan_that_it_shows(tmp_path: Path) -> None:
    site = tmp_path / "site.toml"
    broker = {"ORCHESTRATOR_BROKER": "127.0.0.1:1", "ORCHESTRATOR_BROKER_CREDENTIALS": tmp_path / "login.toml"}
    site.write_text(_written_by_tutorial(site.name, CHECKOUT=CHECKOUT, **broker))
    body = _written_by_tutorial("start.json", PWD=tmp_path).encode()
    start = understand(RawMessage(body=body, source="tutorial"))
    assert isinstance(start, CollectionStart)
    settings = load_settings(site)
    check_allowed(start.file, settings.allowed_roots)
    (plan,) = plan_collection(start, settings).plans
    for parameter in plan.parameters:
        assert (
            f"    {parameter.name}  {parameter.value}  {parameter.origin}   {parameter.place}\n" in TUTORIAL.read_text()
        )
    assert f"runs/i99/cm1-1/{plan.recipe}-{start.uid}-*/result.nxs" in TUTORIAL.read_text()


def test_what_the_tutorial_puts_in_place_of_slurm_is_understood(tmp_path: Path) -> None:
    (instead,) = re.findall(r"^```toml\n(\[gateway\].*?)^```", TUTORIAL.read_text(), re.DOTALL | re.MULTILINE)
    with_slurm = _written_by_tutorial(
        "site.toml", CHECKOUT=CHECKOUT, ORCHESTRATOR_BROKER="x:1", ORCHESTRATOR_BROKER_CREDENTIALS="login.toml"
    )
    site = tmp_path / "site.toml"
    site.write_text(re.sub(r"\[stomp\].*?(?=\[defaults\])", instead, with_slurm, flags=re.DOTALL))
    settings = load_settings(site)
    assert (settings.gateway.route, settings.stomp) == ("local", None)
    assert settings.spool is not None


def test_exit_codes_of_the_readme_are_those_of_the_program() -> None:
    assert {int(code) for code in re.findall(r"^\| (\d) ", README, re.MULTILINE)} == {int(code) for code in ExitCode}


@pytest.mark.parametrize("lock", LOCKS, ids=_name)
def test_lock_pins_every_package_by_hash_and_names_no_address(lock: Path) -> None:
    text = lock.read_text()
    entries = re.split(r"\n(?=\S)", text.strip())
    assert [entry for entry in entries if not re.match(r"[\w.-]+==\S+", entry)] == []
    assert [entry for entry in entries if "--hash=sha256:" not in entry] == []
    assert re.findall(r"\w+://\S*|--\w*index\S*|--find-links\S*|file:\S*|^/\S*", text, re.MULTILINE) == []


def test_tests_run_with_the_versions_that_runs_have() -> None:
    run, test = (
        set(re.findall(r"^[\w.-]+==\S+", (CHECKOUT / "requirements" / name).read_text(), re.MULTILINE))
        for name in ("run.txt", "test.txt")
    )
    assert run - test == set()


@pytest.mark.parametrize("script", ["bootstrap", "check", "demo", "lock", "test"])
def test_scripts_are_whole_and_can_be_run(script: str) -> None:
    path = CHECKOUT / "script" / script
    assert shutil.which(path)
    assert subprocess.run(["bash", "-n", path], capture_output=True, check=False).stderr == b""
