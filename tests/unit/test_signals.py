"""Signals that ask a process to end: none is lost, wherever it finds the process."""

from __future__ import annotations

import os
import signal
import weakref
from collections.abc import Iterator

import pytest

from orchestrator.signals import EndSignals


@pytest.fixture
def signals() -> Iterator[EndSignals]:
    before = signal.getsignal(signal.SIGTERM)
    yield EndSignals(signal.SIGTERM)
    signal.signal(signal.SIGTERM, before)


class Thing:
    """Something that a weak reference can be made to."""


def test_signal_in_a_callback_that_swallows_exceptions_is_heard(signals: EndSignals) -> None:
    thing = Thing()
    reference = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    del thing
    assert reference() is None
    with pytest.raises(SystemExit) as ended:
        signals.sleep(0)
    assert ended.value.code == 143


def test_signal_ends_a_sleep_at_once(signals: EndSignals) -> None:
    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    with pytest.raises(SystemExit):
        signals.sleep(60)


def test_without_a_signal_the_sleep_ends_by_itself(signals: EndSignals) -> None:
    signals.sleep(-1)
    signals.sleep(0.01)
    assert signals.wait(0) is None
