"""The contract that every door for messages keeps.

In: bytes from outside. Out: calls of one handler, which answers with a verdict once the message stands in the database.

- A message leaves its sender's side (queue or folder) only after the handler has returned. Whatever dies in between, it
  comes again, and the handler counts it as a duplicate.
- Messages that came together may be handed over together: the handler commits them all, or none.
- While the store is unavailable, or has another release's schema, the message stays where it is; the door waits, longer
  each time, and takes no other.
- What was rejected is put aside with the reason (dead-letter queue or folder) before it leaves its place.
- A door whose other side is missing says so in its status, keeps trying, and never ends the service.

A door calls the handler from one thread of its own, with messages in the order in which they came.
"""

from __future__ import annotations

import logging
import random
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TypeAlias

from orchestrator.crashpoints import CrashPoint, reached
from orchestrator.errors import InvalidSettings, StoreUnavailable
from orchestrator.messages import MAX_BYTES
from orchestrator.records import RawMessage, utc_now

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """The message stands in the database and was understood."""

    duplicate: bool = False
    """It had stood there before."""


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """The message can't be used, for good."""

    reason: str
    recorded: bool = True
    """Whether it stands in the database; with a fault in the program it may not."""


TOGETHER_BYTES = 1024 * 1024
"""How much is handed over at once; MariaDB takes no more than 16 MiB by default (``max_allowed_packet``)."""

Verdict: TypeAlias = Accepted | Rejected

Handler: TypeAlias = Callable[[Sequence[RawMessage]], Sequence[Verdict]]
"""Returns a verdict for each message, after the commit. Raises `StoreUnavailable` or `InvalidSettings` when all of them
have to stay with their sender for now."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a door has done since it was made."""

    received: int = 0
    """Deliveries, repeated ones included."""
    accepted: int = 0
    """Duplicates included."""
    duplicates: int = 0
    rejected: int = 0
    held: int = 0
    """Times that the handler was put off because the store was unavailable."""


@dataclass(frozen=True, kw_only=True)
class DoorStatus:
    """How a door stands, for people."""

    name: str
    connected: bool
    """Whether messages can come in now."""
    detail: str
    since: datetime
    """When `connected` last changed."""
    counts: Counts = field(default_factory=Counts)


class Door(ABC):
    """One place where messages come in."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._status = DoorStatus(name=name, connected=False, detail="not started", since=utc_now())
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, handler: Handler) -> None:
        """Begin to take messages, in a thread of the door's own; returns at once, whatever the other side does.

        Starting again after `stop` is allowed; starting twice is a fault of the caller.
        """
        if self._thread is not None:
            raise RuntimeError(f"{self.name} is started already")
        self._stopping.clear()
        self._say("starting", connected=False, level=logging.INFO)
        self._thread = threading.Thread(
            target=self._keep_running, args=(handler,), name=f"door {self.name}", daemon=True
        )
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> bool:
        """Take no more messages and wait until the present one is done.

        Returns
        -------
        bool
            False when the handler is still at work after `timeout_s`; its message will come again after a restart.
        """
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                log.warning("%s: the handler is still at work after %.1f s", self.name, timeout_s)
                return False
            self._thread = None
        self._say("stopped", connected=False, level=logging.INFO)
        return True

    def status(self) -> DoorStatus:
        """Say how the door stands. May be called from any thread."""
        with self._lock:
            return self._status

    def _keep_running(self, handler: Handler) -> None:
        while not self._stopping.is_set():
            try:
                self._run(handler)
            except Exception as error:
                log.exception("%s: fault in the door", self.name)
                self._say(f"fault in the door, see the log: {type(error).__name__}: {error}", connected=False)
                self._stopping.wait(5.0)

    @abstractmethod
    def _run(self, handler: Handler) -> None:
        """Take messages until `_stopping` is set."""

    def _settle(
        self, handler: Handler, raws: Sequence[RawMessage], *, still_ours: Callable[[], bool]
    ) -> Sequence[Verdict] | None:
        """Call the handler until it answers; None when the door stops, or the messages aren't ours any more, before."""
        self._count(received=len(raws))
        reached(CrashPoint.MESSAGE_RECEIVED)
        said = ""
        for delay_s in backoff(initial_s=0.2, longest_s=15.0):
            try:
                verdicts = self._answers(handler, raws)
            except (StoreUnavailable, InvalidSettings) as error:
                self._count(held=1)
                if error.full_text != said:
                    log.warning("%s: holding %d until this is over: %s", self.name, len(raws), error.full_text)
                said = error.full_text
                if self._stopping.wait(delay_s) or not still_ours():
                    return None
                continue
            for raw, verdict in zip(raws, verdicts, strict=True):
                self._count_verdict(verdict, raw.source)
            return verdicts
        return None

    def _answers(self, handler: Handler, raws: Sequence[RawMessage]) -> Sequence[Verdict]:
        """Call the handler once; where that shows a fault in it, once for each message.

        A fault becomes a rejection: its message is put aside where people see it, and the others get their turn.
        """
        try:
            return handler(raws)
        except (StoreUnavailable, InvalidSettings):
            raise
        except Exception as error:
            if len(raws) > 1:
                return [verdict for raw in raws for verdict in self._answers(handler, [raw])]
            log.exception("%s: fault while handling a message from %s", self.name, raws[0].source)
            return [Rejected(reason=f"fault in the orchestrator: {type(error).__name__}: {error}", recorded=False)]

    def _count_verdict(self, verdict: Verdict, source: str) -> None:
        if isinstance(verdict, Rejected):
            self._count(rejected=1)
            log.warning("%s: rejected a message from %s: %s", self.name, source, " ".join(verdict.reason.split()))
        else:
            self._count(accepted=1, duplicates=int(verdict.duplicate))

    def _count(self, **more: int) -> None:
        with self._lock:
            counts = self._status.counts
            counts = replace(counts, **{name: getattr(counts, name) + number for name, number in more.items()})
            self._status = replace(self._status, counts=counts)

    def _say(self, detail: str, *, connected: bool, level: int = logging.WARNING) -> None:
        with self._lock:
            before = self._status
            since = before.since if connected == before.connected else utc_now()
            self._status = replace(before, connected=connected, detail=detail, since=since)
        if detail != before.detail:
            log.log(logging.INFO if connected else level, "%s: %s", self.name, detail)


def backoff(*, initial_s: float, longest_s: float) -> Iterator[float]:
    """Yield waiting times without end: doubling from `initial_s` to `longest_s`, each up to a quarter shorter.

    The jitter keeps services that lost the same broker or database from coming back all at once.
    """
    delay_s = initial_s
    while True:
        yield delay_s * random.uniform(0.75, 1.0)  # noqa: S311 - spreads load, keeps no secret
        delay_s = min(2 * delay_s, longest_s)


def raw_message(body: bytes, *, source: str, headers: dict[str, str], size_bytes: int) -> RawMessage:
    """Return a message for the handler; of a body that is too large anyway, only as much as proves it."""
    if size_bytes > MAX_BYTES:
        headers = headers | {"body-cut-from-bytes": str(size_bytes)}
    return RawMessage(body=body[: MAX_BYTES + 1], source=source, headers=headers)
