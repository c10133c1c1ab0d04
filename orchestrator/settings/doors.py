"""Where messages come in: the tables ``[stomp]`` and ``[spool]`` of a site file.

Frozen. The files they name (credentials, certificates) are read when a connection is made, so that they can be renewed
while the service runs.
"""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from orchestrator.errors import InvalidSettings
from orchestrator.settings.paths import SitePath

_STRICT = ConfigDict(extra="forbid")

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class SpoolSettings:
    """Messages as files in a folder."""

    folder: SitePath
    poll_interval_s: Seconds = 0.2


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TlsSettings:
    """How the broker proves itself to us, and we to it. PEM files; the key without a pass phrase."""

    ca_file: SitePath | None = None
    """Authorities that may sign the broker's certificate; the system's when None."""
    certificate_file: SitePath | None = None
    key_file: SitePath | None = None
    """Defaults to the certificate's file."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class StompSettings:
    """Where the broker is and which queue is ours."""

    brokers: tuple[str, ...]
    """``host:port``, tried in turn; ``[::1]:61613`` for IPv6."""
    queue: str
    """A queue's name, or a whole STOMP destination that begins with a slash."""
    dead_letter_queue: str = ""
    """Defaults to the queue's name with ``.rejected`` added."""
    credentials_file: SitePath | None = None
    """TOML with ``username`` and ``password``, readable by its owner (and group) only; read at each connection."""
    tls: TlsSettings | None = None
    heartbeat_s: Seconds = 10.0
    connect_timeout_s: Seconds = 5.0
    receipt_timeout_s: Seconds = 30.0
    prefetch: Annotated[int, Field(ge=1)] = 20
    """Messages that the broker hands out before it has an acknowledgement (``activemq.prefetchSize``). What has arrived
    is committed together."""
    reconnect_longest_s: Seconds = 30.0

    def __post_init__(self) -> None:
        if not self.brokers:
            raise InvalidSettings("stomp.brokers: no broker is named", remedy="give at least one host:port")
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
        raise InvalidSettings(
            f"stomp.brokers: {broker!r} isn't host:port", remedy="write it like broker.example.org:61613"
        )
    return host, port
