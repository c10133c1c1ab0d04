"""A TCP proxy that does to connections what networks, overloaded daemons and crashes do to them.

In: connections of a client. Out: the same bytes to and from the real server, until a fault is armed. A fault meets only
connections whose request contains the *mark* (SLURM's protocol and HTTP carry the job script as it is, PostgreSQL's its
statements), so that each one that is counted happened to what it was meant for. The proxy knows no protocol: the
request counts as received once the server answers it.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Any, Self

LOOPBACK = "127.0.0.1"
_PORTION = 2**16


class Fault(StrEnum):
    """What can happen to a connection."""

    REPLY_DROPPED = "reply dropped"
    """The server has the request and answers; the client sees the connection break instead."""
    REPLY_DELAYED = "reply delayed"
    REQUEST_DELAYED = "request delayed"
    """The server gets the request long after it was sent, also when the client has gone meanwhile."""
    REQUEST_CUT = "request cut"
    """The connection breaks when half of the request is through."""
    REFUSED = "refused"
    """Nobody listens. This meets every connection, for the mark is never sent."""


@dataclass(frozen=True, kw_only=True)
class Ambush:
    """Which connections a fault meets: a share of those with the mark, so many at most."""

    fault: Fault
    share: float = 1.0
    times: int | None = None
    delay_s: float = 0.0


class Proxy:
    """One listening port before one server; a context manager. All methods may be called from any thread.

    Parameters
    ----------
    port
        Of the server on this machine.
    mark
        What a request contains that a fault may meet; every request does where it is empty.
    seed
        Of the choice among requests where a fault meets only a share of them.
    """

    def __init__(self, port: int, *, mark: bytes = b"", seed: int = 0) -> None:
        self._server = (LOOPBACK, port)
        self._mark = mark
        self._random = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
        self._ambush: Ambush | None = None
        self._left: int | None = None
        self._loop = asyncio.new_event_loop()
        self._listener: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy of {port}", daemon=True)
        self.port = 0
        self.happened: Counter[Fault] = Counter()
        """How often each fault really met a connection."""
        self.marked = 0
        """Requests with the mark that were seen."""
        self.delays_until = 0.0
        """When the last delay that has begun ends, by `time.monotonic`."""

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def arm(self, ambush: Ambush) -> None:
        """Let a fault happen from now on."""
        self._call(self._arm(ambush))

    def heal(self) -> None:
        """Let no more faults begin; delays that have begun end in their time."""
        self._call(self._heal())

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    # -------------------------------------------------------------------------------- in the thread of the loop

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._serve, LOOPBACK, self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def _deafen(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def _arm(self, ambush: Ambush) -> None:
        self._ambush, self._left = ambush, ambush.times
        if ambush.fault is Fault.REFUSED:
            await self._deafen()

    async def _heal(self) -> None:
        self._ambush = None
        if self._listener is None:
            await self._listen()

    async def _end(self) -> None:
        await self._deafen()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        try:
            from_server, to_server = await asyncio.open_connection(*self._server)
        except OSError:
            _reset(to_client)
            return
        connection = _Connection(self._decide, self._note, self._mark)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(connection.requests(from_client, to_server))
                both.create_task(connection.replies(from_server, to_client))
        except* (_Broken, OSError):
            pass  # either side may leave at any time: what that means is what is being tested
        finally:
            _reset(to_client)
            _reset(to_server)

    def _decide(self) -> Ambush | None:
        self.marked += 1
        ambush = self._ambush
        if ambush is None or self._left == 0 or self._random.random() >= ambush.share:
            return None
        if self._left is not None:
            self._left -= 1
        self.delays_until = max(self.delays_until, time.monotonic() + ambush.delay_s)
        return ambush

    def _note(self, fault: Fault) -> None:
        self.happened[fault] += 1


class _Broken(Exception):
    """This connection is over."""


class _Connection:
    """Two directions of one connection, and the fault that meets its present request."""

    def __init__(self, decide: Callable[[], Ambush | None], note: Callable[[Fault], None], mark: bytes) -> None:
        self._decide, self._note, self._mark = decide, note, mark
        self._met: Ambush | None = None
        self._tail = b""

    async def requests(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(_PORTION):
            if self._is_marked(data):
                self._met = self._decide()
            if self._met is not None and self._met.fault is Fault.REQUEST_CUT:
                sink.write(data[: len(data) // 2])
                await sink.drain()
                self._note(Fault.REQUEST_CUT)
                raise _Broken
            if self._met is not None and self._met.fault is Fault.REQUEST_DELAYED:
                self._note(Fault.REQUEST_DELAYED)
                await asyncio.sleep(self._met.delay_s)
                self._met = None
            sink.write(data)
            await sink.drain()
        if sink.can_write_eof():
            sink.write_eof()

    async def replies(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(_PORTION):
            met = self._met
            if met is not None and met.fault is Fault.REPLY_DROPPED:
                self._note(met.fault)
                raise _Broken
            if met is not None and met.fault is Fault.REPLY_DELAYED:
                self._note(met.fault)
                await asyncio.sleep(met.delay_s)
                self._met = None
            sink.write(data)
            await sink.drain()
        raise _Broken  # the server has closed: nothing more can come of this

    def _is_marked(self, data: bytes) -> bool:
        """Whether the mark stands in this portion, or ends in it."""
        seen = self._tail + data
        self._tail = seen[-(len(self._mark) - 1) :] if len(self._mark) > 1 else b""
        return self._mark in seen


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close at once, and tell the other side that it wasn't in order unless everything was sent and read."""
    connection = writer.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0 and writer.transport.get_write_buffer_size():
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.close()
