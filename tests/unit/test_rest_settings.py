"""The table [gateway.rest] of a site file."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import InvalidSettings
from orchestrator.settings import Settings, load_settings

SITE = """\
name = "test"
database = "sqlite:///db.sqlite"
runs_root = "runs"
allowed_roots = ["data"]
templates = "templates"

[gateway]
route = "rest"
{rest}
[recipes.one]
match = {{ beamline = "*" }}
kernel = "sum"
template = "sum.sbatch.j2"
submit_as = "{user}"
"""


def load(folder: Path, rest: str, user: str = "b21") -> Settings:
    file = folder / "site.toml"
    file.write_text(SITE.format(rest=f"\n[gateway.rest]\n{rest}\n" if rest else "", user=user))
    return load_settings(file)


def test_address_and_token_are_read_and_paths_count_from_the_site_file(tmp_path: Path) -> None:
    settings = load(tmp_path, 'url = "https://slurm.example.org:6820"\ntoken_file = "secrets/{user}.jwt"')
    assert settings.gateway.rest is not None
    assert settings.gateway.rest.token_file == tmp_path / "secrets" / "{user}.jwt"
    assert settings.recipes["one"].submit_as == "b21"


def test_socket_needs_no_token(tmp_path: Path) -> None:
    settings = load(tmp_path, 'socket = "/run/slurmrestd/slurmrestd.socket"')
    assert settings.gateway.rest is not None
    assert settings.gateway.rest.token_file is None


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ("", r"needs a table \[gateway.rest\]"),
        ('token_file = "t"', "either url or socket"),
        ('url = "http://a:1"\nsocket = "/s"\ntoken_file = "t"', "either url or socket"),
        ('url = "http://a:1"', "wants a token"),
        ('url = "http://a:1"\ntoken_file = "t"\ntoken_command = ["x"]', "both there"),
        ('url = "slurm.example.org:6820"\ntoken_file = "t"', "isn't an address"),
        ('url = "ftp://slurm.example.org"\ntoken_file = "t"', "isn't an address"),
        ('url = "http://user:secret@a:1"\ntoken_file = "t"', "isn't an address"),
        ('url = "http://a:1"\ntoken_file = "t"\ntoken = "eyJ"', "token"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, rest: str, said: str) -> None:
    with pytest.raises(InvalidSettings, match=said):
        load(tmp_path, rest)


@pytest.mark.parametrize("user", ["", "../root", "-x", "a b", "{user}"])
def test_user_that_is_no_name_is_refused(tmp_path: Path, user: str) -> None:
    with pytest.raises(InvalidSettings, match="submit_as"):
        load(tmp_path, 'socket = "/s"', user)
