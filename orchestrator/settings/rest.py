"""How slurmrestd is reached, and with whose token: the table ``[gateway.rest]`` of a site file.

Frozen. Token files are read when a call is made, so that they can be renewed while the service runs.
"""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from orchestrator.errors import InvalidSettings
from orchestrator.settings.doors import Seconds
from orchestrator.settings.paths import SitePath

UserName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.@-]*$", max_length=64)]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class RestSettings:
    """Where slurmrestd listens and who calls it."""

    url: str | None = None
    """``https://host:port`` or ``http://host:port``."""
    socket: SitePath | None = None
    """Its unix socket, instead of `url`."""
    user: UserName | None = None
    """The service's user at SLURM; the one it runs as when left out."""
    token_file: SitePath | None = None
    """Holds a token (JWT), bare or as ``scontrol token`` prints it; ``{user}`` stands for the user's name."""
    token_command: tuple[str, ...] = ()
    """Program and arguments that print a token; run without a shell; ``{user}`` stands for the user's name."""
    ca_file: SitePath | None = None
    """Authorities that may sign slurmrestd's certificate; the system's when left out."""
    cluster: str | None = None
    """Name of the cluster, checked where slurmrestd tells it (SLURM 23.11 and later), believed where it doesn't."""
    query_timeout_s: Seconds = 60.0

    def __post_init__(self) -> None:
        if (self.url is None) == (self.socket is None):
            raise InvalidSettings(
                "gateway.rest: there must be either url or socket",
                remedy='write url = "https://host:6820", or socket = "/run/slurmrestd/slurmrestd.socket"',
            )
        if self.url is not None and not _is_address(self.url):
            raise InvalidSettings(
                f"gateway.rest.url: {self.url!r} isn't an address", remedy="write it like https://host:6820"
            )
        if self.token_file is not None and self.token_command:
            raise InvalidSettings("gateway.rest: token_file and token_command are both there", remedy="leave one out")
        if self.url is not None and self.token_file is None and not self.token_command:
            raise InvalidSettings(
                "gateway.rest: slurmrestd at a url wants a token", remedy="add token_file or token_command"
            )


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        known = parts.port is None or parts.port > 0
    except ValueError:
        return False
    bare = not (parts.username or parts.password or parts.query or parts.fragment) and parts.path in {"", "/"}
    return parts.scheme in {"http", "https"} and bool(parts.hostname) and known and bare
