"""Named points on the way from a message to a record, at which the service can be made to die as by ``kill -9``.

For the proof that nothing is lost or doubled, whatever dies: the environment variable ``ORCHESTRATOR_CRASH_AT`` names a
point and how often it is passed before the process kills itself there (``intent-committed:3``). Without the variable a
point costs one comparison.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping
from enum import StrEnum

from orchestrator.errors import InvalidSettings

VARIABLE = "ORCHESTRATOR_CRASH_AT"


class CrashPoint(StrEnum):
    """Every step of the path, in its order."""

    MESSAGE_RECEIVED = "message-received"
    """A door has it; nothing stands in the database."""
    BEFORE_COMMIT = "before-commit"
    """Any writing transaction, complete but not committed."""
    AFTER_COMMIT = "after-commit"
    """Any writing transaction, committed; whoever asked for it doesn't know yet."""
    PLANNED = "planned"
    """The message's runs stand in the database."""
    BEFORE_ACKNOWLEDGEMENT = "before-acknowledgement"
    """The message stands in the database; the door's other side doesn't know."""
    ACKNOWLEDGED = "acknowledged"
    INTENT_COMMITTED = "intent-committed"
    DIRECTORY_WRITTEN = "directory-written"
    """Everything is ready; SLURM has heard nothing."""
    JOB_ACCEPTED = "job-accepted"
    """SLURM has given a job id; nothing says so in the database."""
    OUTCOME_RECORDED = "outcome-recorded"
    JOB_FOUND = "job-found"
    """The job of a submission whose answer was lost was found; it isn't adopted yet."""
    ADOPTED = "adopted"
    BEFORE_CONCLUSION = "before-conclusion"
    """The job has ended and its files were read; its run hasn't ended."""
    CONCLUDED = "concluded"


class _Countdown:
    """Counts the passings of one point down to the last."""

    def __init__(self, point: CrashPoint, passings: int) -> None:
        self._point, self._left = point, passings
        self._lock = threading.Lock()

    def passed(self, point: CrashPoint) -> None:
        if point is not self._point:
            return
        with self._lock:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def countdown(environment: Mapping[str, str]) -> _Countdown | None:
    """Return what the environment asks for; None where it asks for nothing.

    Raises
    ------
    InvalidSettings
        When there is no such point, or no such number.
    """
    wanted = environment.get(VARIABLE, "")
    if not wanted:
        return None
    name, _, number = wanted.partition(":")
    try:
        point, passings = CrashPoint(name), int(number or "1")
    except ValueError as error:
        raise InvalidSettings(
            f"{VARIABLE}={wanted}: {error}", remedy=f"one of {', '.join(CrashPoint)}, with :N for the N-th passing"
        ) from error
    if passings < 1:
        raise InvalidSettings(f"{VARIABLE}={wanted}: passings count from 1", remedy="write :1 for the first")
    return _Countdown(point, passings)


_armed = countdown(os.environ)


def reached(point: CrashPoint) -> None:
    """Say that a point is passed; the process ends here if that was asked for."""
    if _armed is not None:
        _armed.passed(point)
