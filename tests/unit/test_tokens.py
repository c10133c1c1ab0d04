"""Tokens: from a file or a command, renewed in time, and never told to anybody."""

from __future__ import annotations

import base64
import json
import os
import sys
from pathlib import Path

import pytest

from orchestrator.errors import GatewayUnavailable, OrchestratorError, SubmitRefused
from orchestrator.slurm.tokens import CommandTokens, FileTokens, NoTokens, read_token

SECRET = "c2VjcmV0c2VjcmV0"


def a_token(**claims: object) -> str:
    head, body = (base64.urlsafe_b64encode(json.dumps(part).encode()).decode() for part in ({"alg": "x"}, claims))
    return ".".join([head.rstrip("="), body.rstrip("="), SECRET])


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_claims_are_read_from_a_bare_token_and_from_what_scontrol_prints() -> None:
    text = a_token(sun="b21", iat=100, exp=1900)
    for written in (text, f"SLURM_JWT={text}\n"):
        token = read_token(written)
        assert (token.text, token.user, token.expires_at) == (text, "b21", 1900)
        assert token.renew_at == 1840
        assert SECRET not in repr(token)


@pytest.mark.parametrize("text", ["", "secret", "a b", f"x.!!!.{SECRET}", f"x.bnVsbA.{SECRET}"])
def test_what_is_no_token_is_refused_without_telling_it(text: str) -> None:
    with pytest.raises(ValueError, match="no token") as error:
        read_token(text)
    assert SECRET not in str(error.value)


def test_file_is_read_again_when_it_changes(tmp_path: Path, clock: Clock) -> None:
    file = tmp_path / "token"
    tokens = FileTokens(file, own_user="b21", clock=clock)
    for number in (1, 2):
        file.write_text(a_token(sun="b21", exp=2000, number=number))
        os.utime(file, ns=(number, number))
        assert tokens.token("b21").text == file.read_text()


def test_expired_file_is_named_with_its_time_and_the_remedy_and_renewal_is_seen(tmp_path: Path, clock: Clock) -> None:
    file = tmp_path / "token"
    file.write_text(a_token(sun="b21", exp=999))
    tokens = FileTokens(file, own_user="b21", clock=clock)
    with pytest.raises(GatewayUnavailable, match=r"token of b21 expired at 1970-01-01 00:16:39") as error:
        tokens.token("b21")
    assert "scontrol token username=b21" in error.value.remedy
    file.write_text(a_token(sun="b21", exp=5000, more="bytes"))
    assert tokens.token("b21").expires_at == 5000


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe" + SECRET.encode(), b"not a token"])
def test_file_without_a_token_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(GatewayUnavailable, match=str(file)) as error:
        FileTokens(file, own_user="b21").token("b21")
    assert SECRET not in error.value.full_text


def test_another_user_has_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "b22.jwt").write_text(a_token(sun="b22"))
    assert FileTokens(tmp_path / "{user}.jwt", own_user="b21").token("b22").user == "b22"


@pytest.mark.parametrize("user", ["../b22", "", "-x", ".b22", "b22/x"])
def test_user_that_would_lead_elsewhere_is_refused(tmp_path: Path, user: str) -> None:
    with pytest.raises(SubmitRefused, match="no user's name"):
        FileTokens(tmp_path / "{user}.jwt", own_user="b21").token(user)


def test_without_a_placeholder_there_are_tokens_of_the_own_user_only(tmp_path: Path) -> None:
    for source in (
        FileTokens(tmp_path / "token", own_user="b21"),
        CommandTokens(["true"], own_user="b21"),
        NoTokens(own_user="b21"),
    ):
        with pytest.raises(SubmitRefused, match="no token of b22") as refusal:
            source.token("b22")
        assert "{user}" in refusal.value.remedy


def counting(folder: Path, expression: str) -> list[str]:
    """Return a command that counts its calls, and prints a token made with the number of the call as `n`."""
    program = (
        "import base64, json, sys, pathlib\n"
        f"calls = pathlib.Path({str(folder / 'calls')!r})\n"
        "n = len(calls.read_text()) + 1 if calls.exists() else 1\n"
        "calls.write_text('x' * n)\n"
        f"claims = json.dumps({expression}).encode()\n"
        f"print('SLURM_JWT=e30.' + base64.urlsafe_b64encode(claims).decode().rstrip('=') + '.{SECRET}')\n"
    )
    return [sys.executable, "-c", program, "{user}"]


def test_command_is_asked_again_before_its_token_expires(tmp_path: Path, clock: Clock) -> None:
    command = counting(tmp_path, "{'sun': sys.argv[1], 'iat': 1000 * n, 'exp': 1000 * n + 1000}")
    tokens = CommandTokens(command, own_user="b21", clock=clock)
    seen = []
    for now in (1000, 1500, 1939, 1940, 1999):
        clock.now = now
        seen.append(tokens.token("b21").expires_at)
    assert seen == [2000, 2000, 2000, 3000, 3000]
    assert tokens.token("b22").user == "b22"


def test_command_is_asked_again_after_its_token_was_rejected(tmp_path: Path) -> None:
    tokens = CommandTokens(counting(tmp_path, "{'sun': 'b21', 'n': n}"), own_user="b21")
    first = tokens.token("b21")
    assert tokens.token("b21") == first
    tokens.forget("b21")
    assert tokens.token("b21") != first


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["/nonexistent/command"], "can't be started"),
        (["sh", "-c", f"echo broken e30.e30e30e30.{SECRET} >&2; echo {SECRET}; exit 3"], "exit 3, broken"),
        (["echo", SECRET], "no token"),
        (["echo", a_token(exp=999, sun="b21")], "had expired at"),
        (["sleep", "60"], "within 0.2 s"),
    ],
)
def test_command_that_gives_no_token_is_told_without_what_it_printed(
    command: list[str], said: str, clock: Clock
) -> None:
    with pytest.raises(OrchestratorError, match=said) as error:
        CommandTokens(command, own_user="b21", timeout_s=0.2, clock=clock).token("b21")
    assert isinstance(error.value, GatewayUnavailable)
    assert SECRET not in str(error.value)
    assert error.value.remedy
