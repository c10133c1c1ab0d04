"""Where a STOMP broker is, and how we and it prove who we are.

Settings are frozen; the files they name (credentials, certificates) are read when a connection is made, so that they
can be renewed while the service runs.
"""

from __future__ import annotations

import ssl
import tomllib
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from orchestrator.errors import InvalidSettings


@dataclass(frozen=True, kw_only=True)
class TlsSettings:
    """How the broker proves itself to us, and we to it. PEM files; the key without a pass phrase."""

    ca_file: Path | None = None
    """Authorities that may sign the broker's certificate; the system's when None."""
    certificate_file: Path | None = None
    key_file: Path | None = None
    """Defaults to the certificate's file."""


@dataclass(frozen=True, kw_only=True)
class StompSettings:
    """Where the broker is and which queue is ours."""

    brokers: tuple[str, ...]
    """``host:port``, tried in turn; ``[::1]:61613`` for IPv6."""
    queue: str
    """A queue's name, or a whole STOMP destination that begins with a slash."""
    dead_letter_queue: str = ""
    """Defaults to the queue's name with ``.rejected`` added."""
    credentials_file: Path | None = None
    """TOML with ``username`` and ``password``, readable by its owner (and group) only; read at each connection."""
    tls: TlsSettings | None = None
    heartbeat_s: float = 10.0
    connect_timeout_s: float = 5.0
    receipt_timeout_s: float = 30.0
    prefetch: int = 1
    """Messages that the broker hands out before it has an acknowledgement (``activemq.prefetchSize``)."""
    reconnect_longest_s: float = 30.0

    def __post_init__(self) -> None:
        if not self.brokers:
            raise InvalidSettings("stomp: no broker is named", remedy="give at least one host:port")
        self.addresses()

    @property
    def destination(self) -> str:
        """STOMP destination of the queue."""
        return _destination(self.queue)

    @property
    def dead_letter_destination(self) -> str:
        """STOMP destination of what was rejected."""
        return _destination(self.dead_letter_queue or f"{self.queue}.rejected")

    def addresses(self) -> tuple[tuple[str, int], ...]:
        """Return host and port of each broker."""
        return tuple(parse_address(broker) for broker in self.brokers)


def read_credentials(path: Path) -> tuple[str, str]:
    """Return username and password.

    Raises
    ------
    InvalidSettings
        When the file can't be read, is open to everybody, or doesn't hold the two; its content isn't repeated.
    """
    try:
        if path.stat().st_mode & 0o007:
            raise InvalidSettings(f"{path}: everybody may read or change it", remedy=f"chmod 600 {path}")
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSettings(f"{path}: can't be read: {error}", remedy="check path, owner and mode") from error
    except tomllib.TOMLDecodeError:
        found = {}  # the parser's message may show the password
    username, password = found.get("username"), found.get("password")
    if not _is_word(username) or not _is_word(password):
        raise InvalidSettings(
            f"{path}: doesn't hold username and password", remedy='two lines of TOML: username = "…", password = "…"'
        )
    return str(username), str(password)


def tls_context(tls: TlsSettings) -> ssl.SSLContext:
    """Return the context for these settings.

    Raises
    ------
    InvalidSettings
        Naming the file that can't be used.
    """
    context = ssl.create_default_context()
    try:
        if tls.ca_file is not None:
            context = ssl.create_default_context(cafile=tls.ca_file)
        if tls.certificate_file is not None:
            context.load_cert_chain(tls.certificate_file, tls.key_file, password="")
    except OSError as error:
        files = ", ".join(str(path) for path in (tls.ca_file, tls.certificate_file, tls.key_file) if path)
        raise InvalidSettings(
            f"TLS files {files}: {error}", remedy="give PEM files that exist, and a key without a pass phrase"
        ) from error
    return context


def _destination(queue: str) -> str:
    return queue if queue.startswith("/") else f"/queue/{queue}"


def parse_address(broker: str) -> tuple[str, int]:
    """Return host and port of ``host:port``.

    Raises
    ------
    InvalidSettings
        When it isn't that.
    """
    try:
        parts = urlsplit(f"//{broker}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port:
        raise InvalidSettings(f"stomp: {broker!r} isn't host:port", remedy="write it like broker.example.org:61613")
    return host, port


def _is_word(value: object) -> bool:
    return isinstance(value, str) and value != "" and value.isprintable()
