"""Tokens (JWT) for slurmrestd: where they come from, and when they must be renewed.

In: a file that somebody else renews, or a command that prints a token. Out: the token of one user, still valid. A token
is a secret: it stands in no message, log line or `repr` of this module. Signatures aren't checked here, only SLURM has
the key; the claims ``exp`` and ``sun`` (SLURM's user name) are read so that errors can be named and told apart. Source:
https://slurm.schedmd.com/jwt.html and RFC 7519.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock

from orchestrator.errors import GatewayUnavailable, SubmitRefused

USER_PLACEHOLDER = "{user}"
"""In a file's path or a command's word: the user whose token is wanted."""
_TOKEN = re.compile(r"[\w-]+\.[\w-]{8,}\.[\w-]{8,}")
_RENEW_BEFORE_S = 60.0
_RENEW_SHARE = 0.1
"""A token is renewed this share of its life before it expires, or `_RENEW_BEFORE_S` before where that is later."""


@dataclass(frozen=True, kw_only=True)
class Token:
    """A token and what it says about itself."""

    text: str = field(repr=False)
    user: str | None = None
    """Claim ``sun``; None where the token carries another claim for its user."""
    issued_at: float | None = None
    expires_at: float | None = None
    """Seconds since 1970; None where it never expires."""

    @property
    def renew_at(self) -> float | None:
        """When a new one should be had, seconds since 1970."""
        if self.expires_at is None:
            return None
        life_s = self.expires_at - (self.issued_at or self.expires_at)
        return self.expires_at - min(_RENEW_BEFORE_S, _RENEW_SHARE * life_s)

    def expires_within(self, seconds: float) -> bool:
        """Whether it has expired, or will so soon."""
        return self.expires_at is not None and self.expires_at <= time.time() + seconds


def read_token(text: str) -> Token:
    """Read a token as ``scontrol token`` prints it (``SLURM_JWT=…``) or bare.

    Raises
    ------
    ValueError
        When it isn't one; the text of the error doesn't have it.
    """
    words = text.split()
    bare = words[0].removeprefix("SLURM_JWT=") if len(words) == 1 else ""
    parts = bare.split(".")
    if len(parts) != 3 or not bare.isascii():
        raise ValueError(f"{len(text)} characters in {len(words)} words that are no token (JWT)")
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError):
        raise ValueError("its second part can't be decoded, so it is no token (JWT)") from None
    if not isinstance(claims, Mapping):
        raise ValueError("its claims are no JSON object, so it is no token (JWT)")  # noqa: TRY004 - one kind of error
    user = claims.get("sun") or claims.get("username")
    return Token(
        text=bare,
        user=user if isinstance(user, str) else None,
        issued_at=_number(claims.get("iat")),
        expires_at=_number(claims.get("exp")),
    )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


class TokenSource(ABC):
    """Gives tokens. Methods may be called from several threads at the same time."""

    @abstractmethod
    def token(self, user: str) -> Token | None:
        """Return a token of `user`; None where none is needed.

        Raises
        ------
        GatewayUnavailable
            When there is none at present; the message says why, and never has the token.
        SubmitRefused
            When this source has tokens of the service's own user only.
        """

    @abstractmethod
    def forget(self, user: str) -> None:
        """Take no token for `user` from memory: the one before wasn't accepted."""


class NoTokens(TokenSource):
    """For a socket of slurmrestd that asks the kernel who is calling (``rest_auth/local``)."""

    def __init__(self, *, own_user: str) -> None:
        self._own_user = own_user

    def token(self, user: str) -> Token | None:
        if user != self._own_user:
            raise _only_own(user, "without tokens")
        return None

    def forget(self, user: str) -> None:
        """There is nothing to forget."""


class FileTokens(TokenSource):
    """A file that holds a token and is renewed by somebody else; it is read again when it changes.

    Parameters
    ----------
    file
        Its path, in which ``{user}`` stands for the user's name.
    own_user
        The service's own user at SLURM; without ``{user}`` in the path the only one.
    """

    def __init__(self, file: Path, *, own_user: str, clock: Callable[[], float] = time.time) -> None:
        self._file = file
        self._own_user = own_user
        self._clock = clock
        self._lock = Lock()
        self._kept: dict[str, tuple[Token, tuple[int, int, int]]] = {}

    def token(self, user: str) -> Token:
        if user != self._own_user and USER_PLACEHOLDER not in str(self._file):
            raise _only_own(user, f"gateway.rest.token_file without {USER_PLACEHOLDER}")
        path = Path(str(self._file).replace(USER_PLACEHOLDER, _checked(user)))
        with self._lock:
            token = self._read(user, path)
        if token.expires_at is not None and token.expires_at <= self._clock():
            raise GatewayUnavailable(
                f"{path}: the token of {user} expired at {_when(token.expires_at)}",
                remedy=f"write a new one: scontrol token username={user} lifespan=… > {path}; it is read at once",
            )
        return token

    def forget(self, user: str) -> None:
        with self._lock:
            self._kept.pop(user, None)

    def _read(self, user: str, path: Path) -> Token:
        remedy = f"write one, readable by the service only: scontrol token username={user} lifespan=… > {path}"
        try:
            found = path.stat()
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
            kept = self._kept.get(user)
            if kept is not None and kept[1] == stamp:
                return kept[0]
            token = read_token(path.read_text())
        except OSError as error:
            raise GatewayUnavailable(f"{path}: the token can't be read: {error.strerror}", remedy=remedy) from error
        except ValueError as error:
            raise GatewayUnavailable(f"{path}: {_without_content(error)}", remedy=remedy) from None
        self._kept[user] = (token, stamp)
        return token


class CommandTokens(TokenSource):
    """A command that prints a token. It is run without a shell, and again before the token expires.

    Parameters
    ----------
    command
        Program and arguments, in which ``{user}`` stands for the user's name.
    own_user
        The service's own user at SLURM; without ``{user}`` in the command the only one.
    timeout_s
        How long the command may take.
    """

    def __init__(
        self, command: Sequence[str], *, own_user: str, timeout_s: float = 30.0, clock: Callable[[], float] = time.time
    ) -> None:
        self._command = tuple(command)
        self._own_user = own_user
        self._timeout_s = timeout_s
        self._clock = clock
        self._lock = Lock()
        self._kept: dict[str, Token] = {}

    def token(self, user: str) -> Token:
        if user != self._own_user and not any(USER_PLACEHOLDER in word for word in self._command):
            raise _only_own(user, f"gateway.rest.token_command without {USER_PLACEHOLDER}")
        with self._lock:
            kept = self._kept.get(user)
            if kept is None or (kept.renew_at is not None and kept.renew_at <= self._clock()):
                self._kept[user] = kept = self._ask(user)
            return kept

    def forget(self, user: str) -> None:
        with self._lock:
            self._kept.pop(user, None)

    def _ask(self, user: str) -> Token:
        words = [word.replace(USER_PLACEHOLDER, _checked(user)) for word in self._command]
        name, remedy = words[0], f"try it as the service's user: {' '.join(words)}"
        try:
            done = subprocess.run(
                words, capture_output=True, timeout=self._timeout_s, check=False, stdin=subprocess.DEVNULL
            )
        except subprocess.TimeoutExpired:
            said = f"{name} gave no token of {user} within {self._timeout_s:g} s"
            raise GatewayUnavailable(said, remedy=remedy) from None
        except OSError as error:
            raise GatewayUnavailable(f"{name} can't be started: {error.strerror}", remedy=remedy) from error
        if done.returncode != 0:
            # What it wrote to its standard output may be half a token.
            said = _TOKEN.sub("…", done.stderr.decode(errors="replace")).strip()[:500] or "without a word"
            raise GatewayUnavailable(f"{name} gave no token of {user}: exit {done.returncode}, {said}", remedy=remedy)
        try:
            token = read_token(done.stdout.decode(errors="replace"))
        except ValueError as error:
            raise GatewayUnavailable(f"{name} printed {_without_content(error)}", remedy=remedy) from None
        if token.expires_at is not None and token.expires_at <= self._clock():
            said = f"{name} gave a token of {user} that had expired at {_when(token.expires_at)}"
            raise GatewayUnavailable(said, remedy="see that both clocks agree, and that it makes a new one each time")
        return token


def _checked(user: str) -> str:
    """Return a user's name; one that would lead elsewhere in a path or a command is refused."""
    if not user or user.startswith(("-", ".")) or any(not (sign.isalnum() or sign in "_.-@") for sign in user):
        raise SubmitRefused(f"{user!a} is no user's name", remedy="correct submit_as")
    return user


def _only_own(user: str, how: str) -> SubmitRefused:
    return SubmitRefused(
        f"there is no token of {user}: {how} the service's own user is the only one",
        remedy=f"write {USER_PLACEHOLDER} into gateway.rest.token_file or token_command, or leave out submit_as",
    )


def _without_content(error: ValueError) -> str:
    # A UnicodeDecodeError quotes what it couldn't decode.
    return "what is no text" if isinstance(error, UnicodeDecodeError) else str(error)


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
