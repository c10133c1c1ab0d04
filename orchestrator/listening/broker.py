"""One connection to one STOMP 1.2 broker: connect, subscribe, send with receipts, acknowledge, close.

In: settings and an address. Out: frames, or `DoorUnavailable` as soon as the connection can't be trusted any more; a
session is never repaired, its user makes another one. stomp.py's own threads read and beat; nothing is handled in them.
"""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from stomp.exception import StompException
from stomp.protocol import Protocol12
from stomp.transport import Transport

from orchestrator.errors import DoorUnavailable
from orchestrator.listening.credentials import read_credentials, tls_context
from orchestrator.settings import StompSettings

_CLOSED = "the connection was closed"


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """A message the broker handed out, not yet acknowledged."""

    body: bytes
    headers: dict[str, str]


class BrokerSession:
    """One connection from its beginning to its end; use it from one thread."""

    def __init__(self, settings: StompSettings, address: tuple[str, int]) -> None:
        host, port = address
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._host_and_port = address
        self._settings = settings
        self._transport = _Transport(
            [address],
            prefer_localhost=False,
            try_loopback_connect=False,
            reconnect_attempts_max=1,
            reconnect_sleep_initial=0.0,
            timeout=settings.connect_timeout_s,
            auto_decode=False,
        )
        beat_ms = round(settings.heartbeat_s * 1000)
        self._protocol = Protocol12(self._transport, heartbeats=(beat_ms, beat_ms))
        self._transport.set_listener("session", _Ears(self))
        self._changed = threading.Condition()
        self._connected = False
        self._ended = ""
        self._receipts: set[str] = set()
        self._inbox: deque[Delivery] = deque()

    def open(self) -> None:
        """Connect and log in.

        Raises
        ------
        DoorUnavailable
            Naming the address and what stands against it.
        InvalidSettings
            When the files for TLS or the credentials can't be used.
        """
        context = self._prepare_tls()
        username, password = None, None
        if self._settings.credentials_file is not None:
            username, password = read_credentials(self._settings.credentials_file)
        try:
            self._transport.start()
            self._protocol.connect(username, password)
            self._wait(lambda: self._connected, self._settings.connect_timeout_s, "to the login")
        except (StompException, OSError) as error:
            raise self._unavailable(_obstacle(self._host_and_port, self._settings, context)) from error
        except DoorUnavailable as error:
            if self._ended != _CLOSED:
                raise  # the broker has said why
            raise self._unavailable(_obstacle(self._host_and_port, self._settings, context)) from error

    def subscribe(self) -> None:
        """Begin to receive from the queue; each message has to be acknowledged by itself."""
        headers = {"activemq.prefetchSize": str(self._settings.prefetch)}
        self._with_receipt(
            lambda receipt: self._protocol.subscribe(
                self._settings.destination, id="1", ack="client-individual", headers=headers | {"receipt": receipt}
            )
        )

    def next(self, timeout_s: float, *, most_bytes: int = 0) -> Sequence[Delivery]:
        """Return what has arrived: one message, and more as long as they have no more than `most_bytes` together.

        After `timeout_s` without any the sequence is empty.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._inbox or self._ended, timeout_s)
            self._raise_if_ended()
            taken: list[Delivery] = []
            size_bytes = 0
            while self._inbox and (not taken or size_bytes + len(self._inbox[0].body) <= most_bytes):
                taken.append(self._inbox.popleft())
                size_bytes += len(taken[-1].body)
            return taken

    def send(self, destination: str, body: bytes, headers: dict[str, str]) -> None:
        """Send a persistent message; the broker has it safely when this returns."""
        headers = {"persistent": "true", "content-length": str(len(body))} | headers
        self._with_receipt(
            lambda receipt: self._protocol.send(destination, body, headers=headers | {"receipt": receipt})
        )

    def acknowledge(self, delivery: Delivery) -> None:
        """Let the broker forget a message.

        No receipt is awaited: an acknowledgement that is lost only means that the message comes again. (Brokers keep
        small frames back while TCP owes them an acknowledgement, so that each receipt would take 40 ms; ActiveMQ
        does so unless its connector says ``transport.tcpNoDelay=true``.) `close` waits for all that went before.
        """
        self._say(lambda: self._protocol.ack(delivery.headers["ack"]))

    @property
    def alive(self) -> bool:
        """Whether the connection still stands, so that its messages are ours."""
        return self._connected and not self._ended

    def close(self) -> None:
        """Say goodbye if somebody listens, and let go of the socket. Unacknowledged messages go back to the queue."""
        if self.alive:
            with suppress(DoorUnavailable):
                self._with_receipt(
                    lambda receipt: self._protocol.send_frame("DISCONNECT", {"receipt": receipt}), timeout_s=2.0
                )
        self._transport.disconnect_socket()

    def _prepare_tls(self) -> ssl.SSLContext | None:
        tls = self._settings.tls
        if tls is None:
            return None
        context = tls_context(tls)  # stomp.py tries for ever when a file is missing
        self._transport.set_ssl(
            for_hosts=[self._host_and_port],
            ca_certs=str(tls.ca_file) if tls.ca_file else None,
            cert_file=str(tls.certificate_file) if tls.certificate_file else None,
            key_file=str(tls.key_file) if tls.key_file else None,
            password="",
        )
        return context

    def _with_receipt(self, send: Callable[[str], None], timeout_s: float | None = None) -> None:
        receipt = str(uuid.uuid4())
        self._say(lambda: send(receipt))
        self._wait(lambda: receipt in self._receipts, timeout_s or self._settings.receipt_timeout_s, "with a receipt")
        self._receipts.discard(receipt)

    def _say(self, send: Callable[[], None]) -> None:
        try:
            send()
        except (StompException, OSError, AttributeError) as error:  # AttributeError: stomp.py closed it meanwhile
            raise self._unavailable(self._ended or str(error)) from error

    def _wait(self, arrived: Callable[[], bool], timeout_s: float, what: str) -> None:
        with self._changed:
            self._changed.wait_for(lambda: arrived() or self._ended, timeout_s)
            if not arrived():
                self._raise_if_ended()
                raise self._unavailable(f"the broker didn't answer {what} within {timeout_s:g} s")

    def _raise_if_ended(self) -> None:
        if self._ended:
            raise self._unavailable(self._ended)

    def _unavailable(self, why: str) -> DoorUnavailable:
        return DoorUnavailable(
            f"broker {self.address}: {why}", remedy="check the address, TLS and credentials in the site file"
        )

    # Called by _Ears in stomp.py's threads.

    def heard_connected(self) -> None:
        with self._changed:
            self._connected = True
            self._changed.notify_all()

    def heard_receipt(self, receipt: str) -> None:
        with self._changed:
            self._receipts.add(receipt)
            self._changed.notify_all()

    def heard_message(self, delivery: Delivery) -> None:
        with self._changed:
            self._inbox.append(delivery)
            self._changed.notify_all()

    def heard_end(self, why: str) -> None:
        with self._changed:
            self._ended = self._ended or why
            self._changed.notify_all()


class _Ears:
    """What stomp.py calls; it only passes on what it hears, so that heart-beats are never late."""

    def __init__(self, session: BrokerSession) -> None:
        self._session = session

    def on_connected(self, _frame: Any) -> None:
        self._session.heard_connected()

    def on_message(self, frame: Any) -> None:
        self._session.heard_message(Delivery(body=frame.body or b"", headers=dict(frame.headers)))

    def on_receipt(self, frame: Any) -> None:
        self._session.heard_receipt(frame.headers["receipt-id"])

    def on_error(self, frame: Any) -> None:
        said = frame.headers.get("message") or (frame.body or b"").decode(errors="replace")
        self._session.heard_end(f"it reports an error: {' '.join(said.split())[:300]}")

    def on_disconnected(self) -> None:
        self._session.heard_end(_CLOSED)

    def on_heartbeat_timeout(self) -> None:
        self._session.heard_end("no heart-beat came")


class _Transport(Transport):  # type: ignore[misc]  # stomp.py has no types
    """stomp.py's transport, which overlooks the end of a TLS connection and may block for good when it closes one.

    It sends each frame at once: one that waited for TCP's acknowledgement of the one before would come 40 ms late.
    """

    def attempt_connection(self) -> None:
        super().attempt_connection()
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def receive(self) -> bytes | None:
        try:
            received: bytes | None = super().receive()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except OSError:
            self.running = False
            raise
        if received == b"":
            self.running = False  # ends stomp.py's loop, which takes this for "nothing yet" on TLS, and spins
        return received

    def disconnect_socket(self) -> None:
        self.running = False
        if self.socket is not None:
            # Not unwrap(): it waits for the other side's farewell. The reading thread sees the end and cleans up.
            with suppress(OSError):
                socket.socket.shutdown(self.socket, socket.SHUT_RDWR)


def _obstacle(address: tuple[str, int], settings: StompSettings, context: ssl.SSLContext | None) -> str:
    """Try the connection once more by hand to learn why it failed, which stomp.py only logs."""
    try:
        with socket.create_connection(address, settings.connect_timeout_s) as plain:
            if context is not None:
                with context.wrap_socket(plain, server_hostname=address[0]) as secured:
                    # In TLS 1.3 a server refuses our certificate after the handshake; one that is content is silent.
                    secured.settimeout(1.0)
                    with suppress(TimeoutError):
                        secured.recv(1)
    except OSError as error:
        return error.strerror or str(error)
    return "the connection broke off"


class _Discreet(logging.Filter):
    """Drops CONNECT frames from stomp.py's debug log, whose own mask misses them, and failures that are raised here."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return "passcode" not in message and not message.startswith("could not connect")


logging.getLogger("stomp.py").addFilter(_Discreet())
