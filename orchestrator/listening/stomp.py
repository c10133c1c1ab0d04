"""Messages from a STOMP broker (ActiveMQ is the reference).

In: a queue. Out: calls of the handler with what has arrived; then an acknowledgement of each. What was rejected is
first sent to the dead-letter queue, and the broker's receipt for it awaited. A message is never NACKed: ActiveMQ would
put it into its own dead-letter queue. Unacknowledged messages come again by themselves when the connection ends.

A dead-letter queue that can't be written holds up nobody: after some tries the database alone has the message.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import monotonic

from orchestrator.crashpoints import CrashPoint, reached
from orchestrator.errors import DoorUnavailable, InvalidSettings
from orchestrator.listening.broker import BrokerSession, Delivery
from orchestrator.listening.door import TOGETHER_BYTES, Door, Handler, Rejected, backoff, raw_message
from orchestrator.records import RawMessage, sha256_of
from orchestrator.settings import StompSettings, TlsSettings

log = logging.getLogger(__name__)

_SETTLED_AFTER_S = 10.0
_MAX_REASON = 2000
_LOOK_FOR_STOP_S = 0.2
_TRIES_TO_PUT_ASIDE = 3


class StompDoor(Door):
    """Takes messages from a queue."""

    def __init__(self, settings: StompSettings, *, name: str = "stomp") -> None:
        super().__init__(name)
        self._settings = settings
        self._not_put_aside: dict[str, int] = {}
        """How often the dead-letter queue didn't take a message, by its digest."""

    def _run(self, handler: Handler) -> None:
        while not self._stopping.is_set():
            for delay_s in backoff(initial_s=0.5, longest_s=self._settings.reconnect_longest_s):
                began = monotonic()
                self._try_each_broker(handler)
                if monotonic() - began > _SETTLED_AFTER_S:
                    break  # it worked for a while: the next try comes soon
                if self._stopping.wait(delay_s):
                    return

    def _try_each_broker(self, handler: Handler) -> None:
        problems: list[str] = []
        for address in self._settings.addresses():
            if self._stopping.is_set():
                return
            try:
                with _session(self._settings, address) as session:
                    session.subscribe()
                    self._say(f"subscribed to {self._settings.destination} at {session.address}", connected=True)
                    self._consume(handler, session)
            except (DoorUnavailable, InvalidSettings) as error:
                if self.status().connected:
                    self._say(f"{error}; connecting again", connected=False)
                    return
                problems.append(error.full_text)
        if problems:
            self._say(f"{'; '.join(problems)}; trying again", connected=False)

    def _consume(self, handler: Handler, session: BrokerSession) -> None:
        while not self._stopping.is_set():
            deliveries = session.next(_LOOK_FOR_STOP_S, most_bytes=TOGETHER_BYTES)
            if deliveries:
                self._take(handler, session, deliveries)

    def _take(self, handler: Handler, session: BrokerSession, deliveries: Sequence[Delivery]) -> None:
        raws = [self._raw(delivery) for delivery in deliveries]
        verdicts = self._settle(handler, raws, still_ours=lambda: session.alive)
        if verdicts is None:
            return
        # A dead-letter queue that refuses ends the connection: the others are acknowledged before.
        for delivery, verdict in sorted(
            zip(deliveries, verdicts, strict=True), key=lambda pair: isinstance(pair[1], Rejected)
        ):
            if isinstance(verdict, Rejected):
                self._put_aside(session, delivery, verdict)
            reached(CrashPoint.BEFORE_ACKNOWLEDGEMENT)
            session.acknowledge(delivery)
            reached(CrashPoint.ACKNOWLEDGED)

    def _put_aside(self, session: BrokerSession, delivery: Delivery, verdict: Rejected) -> None:
        headers = self._dead_letter_headers(delivery, verdict)
        tried = self._not_put_aside.get(headers["sha256"], 0)
        if verdict.recorded and tried >= _TRIES_TO_PUT_ASIDE:
            log.error(
                "%s: %s can't be written: the message with SHA-256 %s stands in the database only, see "
                "`orchestrator messages`", self.name, self._settings.dead_letter_destination, headers["sha256"],
            )  # fmt: skip
        else:
            self._not_put_aside[headers["sha256"]] = tried + 1
            session.send(self._settings.dead_letter_destination, delivery.body, headers)
        del self._not_put_aside[headers["sha256"]]

    def _raw(self, delivery: Delivery) -> RawMessage:
        source = f"stomp:{self._settings.queue}"
        return raw_message(delivery.body, source=source, headers=delivery.headers, size_bytes=len(delivery.body))

    def _dead_letter_headers(self, delivery: Delivery, verdict: Rejected) -> dict[str, str]:
        return {
            "reason": " ".join(verdict.reason.split())[:_MAX_REASON],
            "original-destination": delivery.headers.get("destination", self._settings.destination),
            "original-message-id": delivery.headers.get("message-id", ""),
            "sha256": sha256_of(delivery.body),
        }


def publish(
    settings: StompSettings, body: bytes, *, destination: str | None = None, headers: Mapping[str, str] | None = None
) -> None:
    """Send one persistent message to the queue (or another destination); the broker has it when this returns.

    The brokers are tried in turn. After an error the message may still be there, and calling again may send it twice;
    listeners know a repeated message by its content.

    Raises
    ------
    DoorUnavailable
        When no broker took it; the message names each and why.
    InvalidSettings
        When the files for TLS or the credentials can't be used.
    """
    problems = []
    for address in settings.addresses():
        try:
            with _session(settings, address) as session:
                all_headers = {"content-type": "application/json"} | dict(headers or {})
                session.send(destination or settings.destination, body, all_headers)
                return
        except DoorUnavailable as error:
            problems.append(error)
    raise DoorUnavailable("; ".join(map(str, problems)), remedy=problems[-1].remedy) from problems[-1]


@contextmanager
def _session(settings: StompSettings, address: tuple[str, int]) -> Iterator[BrokerSession]:
    session = BrokerSession(settings, address)
    try:
        session.open()
        yield session
    finally:
        session.close()


__all__ = ["StompDoor", "StompSettings", "TlsSettings", "publish"]
