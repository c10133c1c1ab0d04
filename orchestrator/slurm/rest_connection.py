"""The way to slurmrestd: HTTP, HTTPS or its unix socket, over connections that are kept open.

In: method, path and document. Out: status and document, or the error that says whether the request can have had an
effect. A request is sent once: when a kept connection turns out to be dead only after something was sent on it, nobody
knows whether slurmrestd has read it, and that is said (`OutcomeUnknown`); it is never quietly sent again.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, TypeAlias
from urllib.parse import quote, urlencode

import httpx

from orchestrator.errors import GatewayUnavailable, InvalidSettings, OutcomeUnknown
from orchestrator.records import Json
from orchestrator.slurm.rest_documents import RestError, errors
from orchestrator.slurm.tokens import Token, TokenSource

Query: TypeAlias = Sequence[tuple[str, str]]
"""Names and values; a name may come several times."""
CONNECTIONS_MAX: Final = 8
"""More calls than this at the same time wait for one another."""
KEPT_IDLE_S: Final = 60.0
_TRUST: Final = "name in gateway.rest.ca_file what signed the server's certificate, and the host by its own name in url"
_ON_SOCKET: Final = "http://localhost"


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer of slurmrestd."""

    status: int
    document: Json
    """None where the answer is no JSON."""
    plain: str = ""
    """The answer's text where it is no JSON."""
    errors: tuple[RestError, ...] = field(default=())
    token: Token | None = None
    """What went with the request."""

    @property
    def ok(self) -> bool:
        """Whether the request was dealt with. slurmrestd can have remarks all the same."""
        return self.status == 200 and self.document is not None


class Connection:
    """Kept connections to one slurmrestd, for calls from several threads.

    Parameters
    ----------
    url
        ``http://host:port`` or ``https://host:port``; with `socket` left out.
    socket
        Path of its unix socket.
    tokens
        Whose token goes with a call.
    ca_file
        Certificates to trust for HTTPS, instead of the system's.
    """

    def __init__(
        self, *, url: str | None, socket: Path | None, tokens: TokenSource, ca_file: Path | None = None
    ) -> None:
        self.address = str(socket) if socket is not None else (url or "").rstrip("/")
        self._tokens = tokens
        limits = httpx.Limits(
            max_connections=CONNECTIONS_MAX,
            max_keepalive_connections=CONNECTIONS_MAX,
            keepalive_expiry=KEPT_IDLE_S,
        )
        trust = _trusted(ca_file) if self.address.startswith("https:") else False
        self._client = httpx.Client(
            base_url=_ON_SOCKET if socket is not None else self.address,
            # A submission is never repeated, neither here (retries) nor where a proxy of the environment sends it.
            transport=httpx.HTTPTransport(
                uds=None if socket is None else str(socket), retries=0, limits=limits, verify=trust
            ),
            trust_env=False,
            follow_redirects=False,
            headers={"Accept": "application/json", "User-Agent": "orchestrator"},
        )

    def call(
        self,
        method: str,
        path: str,
        *,
        user: str,
        timeout_s: float,
        query: Query = (),
        body: Json = None,
    ) -> Reply:
        """Send a request as `user`, once, and return the answer, whatever it says.

        Raises
        ------
        GatewayUnavailable
            When nothing was sent.
        OutcomeUnknown
            When something was sent and no whole answer came back.
        """
        token = self._tokens.token(user)
        request = self._client.build_request(
            method,
            # Commas too: slurmrestd can't read them bare in a query.
            path if not query else f"{path}?{urlencode(query, quote_via=quote, safe='')}",
            headers=_headers(user, token),
            content=None if body is None else json.dumps(body, ensure_ascii=False).encode(),
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, 10.0)),
        )
        try:
            reply = self._client.send(request)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol) as error:
            remedy = _TRUST if "CERTIFICATE_VERIFY_FAILED" in str(error) else "see that slurmrestd runs"
            raise GatewayUnavailable(f"{self.address}: {_said(error)}", remedy=remedy, everywhere=True) from error
        except httpx.HTTPError as error:
            raise OutcomeUnknown(
                f"{self.address}: {_said(error, timeout_s)}", remedy="look for the job by its tag"
            ) from error
        return replace(_read(reply), token=token)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _headers(user: str, token: Token | None) -> dict[str, str]:
    headers = {"Content-Type": "application/json"}
    return headers if token is None else headers | {"X-SLURM-USER-NAME": user, "X-SLURM-USER-TOKEN": token.text}


def _trusted(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # ssl.SSLError is one
        why = error.strerror or "it is no certificate"
        raise InvalidSettings(f"{ca_file}: {why}", remedy="correct gateway.rest.ca_file: a file in PEM form") from error


def _read(reply: httpx.Response) -> Reply:
    try:
        document: Json = json.loads(reply.content)
    except ValueError:
        return Reply(status=reply.status_code, document=None, plain=reply.text)
    if not isinstance(document, dict):
        return Reply(status=reply.status_code, document=None, plain=reply.text)
    return Reply(status=reply.status_code, document=document, errors=tuple(errors(document)))


def _said(error: httpx.HTTPError | httpx.UnsupportedProtocol, timeout_s: float | None = None) -> str:
    if isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout) and timeout_s is not None:
        return f"timed out, no answer within {timeout_s:g} s"
    if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError):
        return f"the connection ended before the answer was there ({str(error) or 'reset'})"
    return str(error) or type(error).__name__
