"""The command line as a whole: its listing, its reference page, what it imports, and what the shell completes."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator import __version__
from orchestrator.cli import ENTRIES, app
from orchestrator.cli.common import ExitCode
from orchestrator.cli.lazy import load
from tests.unit.site_with_runs import SiteWithRuns

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "commands.md"
HEAVY = {"alembic", "h5py", "hdf5plugin", "matplotlib", "mpi4py", "numpy", "pyFAI", "sqlalchemy", "stomp"}


def every_command() -> Iterator[tuple[str, Any]]:
    """Yield every command with its full name, groups' commands included."""
    for entry in ENTRIES:
        command = load(entry)
        members = getattr(command, "commands", {"": command})
        for name, member in members.items():
            yield f"{entry.name} {name}".strip(), member


COMMANDS = dict(every_command())


def parameters(command: Any) -> set[str]:
    """Return the options, and arguments in capitals, that a command's help shows."""
    shown = (parameter for parameter in command.params if not getattr(parameter, "hidden", False))
    return {
        name if name.startswith("-") else (parameter.metavar or name).strip("[]").upper()
        for parameter in shown
        for name in (*parameter.opts, *parameter.secondary_opts)
    } - {"--help"}


def documented() -> Mapping[str, set[str]]:
    """Return what the reference page says: command -> its options and arguments."""
    sections = re.split(r"^#{2,3} `orchestrator (.+)`$", PAGE.read_text(), flags=re.MULTILINE)
    rows = re.compile(r"^\| (`.+?`) +\|", re.MULTILINE)
    return {
        name: {word for row in rows.findall(text) for word in re.findall(r"`([^` ]+)[^`]*`", row)}
        for name, text in zip(sections[1::2], sections[2::2], strict=True)
    }


def test_the_reference_page_has_every_command_and_no_other() -> None:
    assert set(documented()) == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_reference_page_has_every_option_of_a_command_and_no_other(name: str) -> None:
    assert documented()[name] == parameters(COMMANDS[name])


@pytest.mark.parametrize("name", COMMANDS)
def test_the_reference_page_explains_a_command_as_its_help_does(name: str) -> None:
    sections = re.split(r"^#{2,3} `orchestrator (.+)`$", PAGE.read_text(), flags=re.MULTILINE)
    words = dict(zip(sections[1::2], sections[2::2], strict=True))[name].partition("\n|")[0].split()
    assert words == COMMANDS[name].help.split()


def test_the_reference_page_has_every_exit_code() -> None:
    assert set(re.findall(r"^\| (\d) +\|", PAGE.read_text(), re.MULTILINE)) == {str(int(code)) for code in ExitCode}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_and_its_options(name: str) -> None:
    assert COMMANDS[name].help
    assert all(getattr(parameter, "help", None) for parameter in COMMANDS[name].params)
    result = CliRunner().invoke(app, [*name.split(), "--help"])
    assert result.exit_code == 0
    assert f"orchestrator {name}" in " ".join(result.output.split())


def test_the_listing_has_every_command_with_a_sentence() -> None:
    text = " ".join(CliRunner().invoke(app, ["--help"], terminal_width=120).output.split())
    assert all(f"{entry.name} " in text and entry.summary in text for entry in ENTRIES)


@pytest.mark.parametrize("words", ["--help", "--version", "nonsense"])
def test_the_listing_imports_nothing_heavy(words: str) -> None:
    program = (
        "import sys; from orchestrator.cli import app\n"
        f"try: app([{words!r}])\n"
        "except SystemExit: pass\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    imported = set(done.stderr.splitlines()[-1].split())
    assert "typer" in imported
    assert not imported & HEAVY


def test_a_mistyped_command_is_answered_with_the_nearest_one() -> None:
    result = CliRunner().invoke(app, ["shwo"])
    assert result.exit_code == ExitCode.USAGE
    assert "Did you mean 'show'?" in result.output


def test_the_version_is_told() -> None:
    assert CliRunner().invoke(app, ["--version"]).output == f"{__version__}\n"


# -------------------------------------------------------------------------------------------------- completion


def completed(words: str, **environment: str) -> list[str]:
    """Return what bash would offer for a command line whose last word is being written."""
    number = len(words.split(" ")) - 1
    told = {"COMP_WORDS": words, "COMP_CWORD": str(number), "_ORCHESTRATOR_COMPLETE": "complete_bash"}
    result = CliRunner(env={"ORCHESTRATOR_SITE": None} | told | environment).invoke(app, prog_name="orchestrator")
    assert result.stderr == ""
    return result.stdout.split()


def test_the_shell_completes_commands() -> None:
    assert completed("orchestrator wa") == ["watch"]
    assert completed("orchestrator db ") == ["upgrade", "status", "check", "import"]


@pytest.mark.parametrize("command", ["show", "watch", "log", "cancel"])
def test_the_shell_completes_ids_of_the_sites_runs(site: SiteWithRuns, command: str) -> None:
    ids = [site.planned(uid).run_id for uid in ("c-1", "c-2")]
    assert set(completed(f"orchestrator {command} ", ORCHESTRATOR_SITE=str(site.file))) == set(ids)
    assert completed(f"orchestrator {command} --site {site.file} {ids[0][:6]}") == [ids[0]]


def test_where_no_run_can_be_looked_up_nothing_is_offered(site: SiteWithRuns) -> None:
    assert completed("orchestrator show ") == []
    site.file.write_text("not a site file")
    assert completed("orchestrator show ", ORCHESTRATOR_SITE=str(site.file)) == []
