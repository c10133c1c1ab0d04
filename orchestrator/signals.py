"""Signals that ask a process to end, heard where it can end in order.

An exception raised by a signal's handler is lost when Python happens to run a callback of the garbage collector: h5py
has thousands a second. And `threading.Event.set` in a handler can wait for the lock that its own thread holds. So the
handler only puts the signal's number into a queue that is made for this (:class:`queue.SimpleQueue`, reentrant).
"""

from __future__ import annotations

import signal
import sys
from queue import Empty, SimpleQueue


class EndSignals:
    """The signals that ask this process to end, from now on; made in the main thread."""

    def __init__(self, *numbers: signal.Signals) -> None:
        self._heard: SimpleQueue[int] = SimpleQueue()
        for number in numbers:
            signal.signal(number, lambda number, _: self._heard.put(number))

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait for a signal, and return its number; None if there was none in `timeout_s` seconds."""
        try:
            return self._heard.get(timeout=timeout_s)
        except Empty:
            return None

    def sleep(self, seconds: float) -> None:
        """Sleep; raise SystemExit, with the code that shells give to such an end, as soon as a signal was heard."""
        number = self.wait(max(seconds, 0))
        if number is not None:
            sys.exit(128 + number)
