"""Which route to SLURM a site takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.settings import Settings, load_settings
from orchestrator.slurm.choice import choose

SITE = """\
name = "test"
database = "sqlite:///db.sqlite"
runs_root = "runs"
allowed_roots = ["data"]
templates = "templates"

[gateway]
route = "{route}"
{rest}
[recipes.one]
match = {{ beamline = "*" }}
kernel = "sum"
template = "sum.sbatch.j2"
"""
NOBODY_THERE = '[gateway.rest]\nurl = "http://127.0.0.1:9"\ntoken_command = ["echo", "e30.e30.e30e30e30"]'
CONFIG = "ClusterName = stack\\nSLURM_VERSION = 22.05.8\\nAccountingStorageType = accounting_storage/slurmdbd"


def site(folder: Path, route: str, rest: str = "") -> Settings:
    file = folder / "site.toml"
    file.write_text(SITE.format(route=route, rest=rest))
    return load_settings(file)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder that is the PATH but for the shell's own."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    (folder / "echo").symlink_to("/bin/echo")
    return folder


def install(programs: Path, *, answers: bool) -> None:
    for name in ("sbatch", "scontrol"):
        silence = "echo 'Unable to contact slurm controller (connect failure)' >&2; exit 1"
        said = f"printf '{CONFIG}'" if answers else silence
        (programs / name).write_text(f"#!/bin/sh\n{said}\n")
        (programs / name).chmod(0o755)


@pytest.mark.parametrize("route", ["local", "cli", "rest"])
def test_named_route_is_taken_without_asking(tmp_path: Path, programs: Path, route: str) -> None:
    choice = choose(site(tmp_path, route, NOBODY_THERE))
    assert choice.gateway.name == route
    choice.gateway.close()


def test_auto_takes_the_first_that_answers_and_says_what_the_others_said(tmp_path: Path, programs: Path) -> None:
    install(programs, answers=True)
    choice = choose(site(tmp_path, "auto", NOBODY_THERE))
    assert choice.gateway.name == "cli"
    assert "cluster stack, SLURM 22.05.8" in choice.reason
    assert "rest: http://127.0.0.1:9: " in choice.reason


@pytest.mark.parametrize(("rest", "taken"), [(NOBODY_THERE, "rest"), ("", "cli")])
def test_auto_keeps_to_what_the_site_has_while_nothing_answers(
    tmp_path: Path, programs: Path, rest: str, taken: str
) -> None:
    install(programs, answers=False)
    choice = choose(site(tmp_path, "auto", rest))
    assert choice.gateway.name == taken
    assert "nothing answers at present" in choice.reason
    choice.gateway.close()


def test_auto_takes_slurmrestd_where_no_commands_are_installed(tmp_path: Path, programs: Path) -> None:
    choice = choose(site(tmp_path, "auto", NOBODY_THERE))
    assert choice.gateway.name == "rest"
    choice.gateway.close()


def test_auto_takes_this_machine_only_where_there_is_no_slurm(tmp_path: Path, programs: Path) -> None:
    assert choose(site(tmp_path, "auto")).gateway.name == "local"
