"""Which route to SLURM a site takes."""

from __future__ import annotations

import base64
import json
import re
import sys
from pathlib import Path

import pytest

from orchestrator.errors import InvalidSettings
from orchestrator.settings import Settings, load_settings
from orchestrator.slurm import choice as choice_module
from orchestrator.slurm.choice import choose
from tests.unit.test_pyslurm import OTHER_RELEASE, package

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
    monkeypatch.delenv("SLURM_CONF", raising=False)
    monkeypatch.setattr(choice_module, "CONFIGURATIONS", (tmp_path / "slurm.conf",))
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


def expired_token() -> str:
    """Return a token's text, of which only the payload matters here."""
    payload = base64.urlsafe_b64encode(json.dumps({"sun": "root", "exp": 1}).encode()).decode().rstrip("=")
    return f"e30.{payload}.e30e30e30"


@pytest.mark.parametrize(("answers", "taken"), [(True, "cli"), (False, "rest")])
def test_expired_token_is_the_reason_that_is_given(tmp_path: Path, programs: Path, answers: bool, taken: str) -> None:
    install(programs, answers=answers)
    (tmp_path / "token").write_text(expired_token())
    choice = choose(
        site(tmp_path, "auto", f'[gateway.rest]\nurl = "http://127.0.0.1:9"\ntoken_file = "{tmp_path}/token"')
    )
    assert choice.gateway.name == taken
    assert re.search(r"rest: .*token.* expired at 1970-01-01", choice.reason)
    choice.gateway.close()


def other_pyslurm(folder: Path) -> str:
    """Write an interpreter that has a pyslurm of another release than the cluster's; return the site file's line."""
    (folder / "modules").mkdir()
    package(folder / "modules", OTHER_RELEASE)
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={folder}/modules exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return f'pyslurm_python = "{python}"\n'


@pytest.mark.parametrize("answers", [True, False])
def test_pyslurm_of_another_release_is_passed_over_with_both_releases(
    tmp_path: Path, programs: Path, answers: bool
) -> None:
    install(programs, answers=answers)
    choice = choose(site(tmp_path, "auto", other_pyslurm(tmp_path)))
    assert choice.gateway.name == "cli"
    assert "pyslurm: pyslurm 23.2.2 of SLURM 23.02 doesn't fit this cluster's SLURM 22.05.8" in choice.reason


def test_certificate_file_that_is_none_is_named(tmp_path: Path, programs: Path) -> None:
    install(programs, answers=True)
    (tmp_path / "ca.pem").write_text("nothing")
    for name in ("ca.pem", "absent.pem"):
        rest = f'[gateway.rest]\nurl = "https://127.0.0.1:9"\ntoken_command = ["echo"]\nca_file = "{tmp_path}/{name}"'
        with pytest.raises(InvalidSettings, match=name) as error:
            choose(site(tmp_path, "auto", rest))
        assert "ca_file" in error.value.remedy


@pytest.mark.parametrize("sign", ["slurm.conf", "SLURM_CONF", "slurmd"])
def test_auto_never_takes_this_machine_where_there_is_a_sign_of_slurm(
    tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch, sign: str
) -> None:
    if sign == "SLURM_CONF":
        monkeypatch.setenv("SLURM_CONF", "/elsewhere/slurm.conf")
    elif sign == "slurmd":
        (programs / "slurmd").write_text("#!/bin/sh\n")
        (programs / "slurmd").chmod(0o755)
    else:
        (tmp_path / "slurm.conf").touch()
    choice = choose(site(tmp_path, "auto"))
    assert choice.gateway.name == "cli"
    assert "scontrol can't be started" in choice.reason


def test_auto_takes_this_machine_only_where_there_is_no_slurm(tmp_path: Path, programs: Path) -> None:
    assert choose(site(tmp_path, "auto")).gateway.name == "local"
