"""When a kernel stops waiting for frames, and why. Pure but for reading the collection-end file."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

from mpi_kernels.errors import UnusableInput

GRACE_S = 2.0
"""After a collection was said to have ended short of its number, frames in flight get this long."""


@dataclass(frozen=True)
class CollectionEnd:
    """What ``collection-end.json`` says."""

    outcome: str
    frames_written: int | None

    @classmethod
    def read(cls, path: Path | None) -> CollectionEnd | None:
        """Read the file; None while it isn't there.

        Raises
        ------
        UnusableInput
            When it isn't what the orchestrator writes, and isn't just being written.
        """
        if path is None:
            return None
        try:
            content = json.loads(path.read_text())
            frames = content["frames_written"]
            return cls(str(content["outcome"]), None if frames is None else int(frames))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            if _changed_within(path, GRACE_S):  # somebody is still writing it
                return None
            raise UnusableInput(f"{path}: no collection-end document: {error!r}", remedy="check --end-file") from error


def _changed_within(path: Path, seconds: float) -> bool:
    try:
        return time.time() - path.stat().st_mtime < seconds
    except OSError:
        return False


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What rank 0 knows at one moment."""

    written: int
    idle_s: float
    """Time since the last new frame (since the start, if there was none)."""
    end: CollectionEnd | None
    end_seen_for_s: float
    writer_finished: bool
    """The finished flag is set, or every file was closed by its writer and none is to come."""
    terminated: bool


@dataclass(frozen=True, kw_only=True)
class EndRules:
    """What the command line says about the end."""

    expected: int | None
    stall_timeout_s: float

    def reason(self, situation: Situation) -> str:
        """Return why no more frames are waited for, in the contract's words; empty to go on."""
        if situation.terminated:
            return "terminated"
        if self.expected is not None and situation.written >= self.expected:
            return "expected number reached"
        if situation.end is not None and self._collection_ended(situation, situation.end):
            return "collection ended"
        if situation.writer_finished:
            return "file finished"
        if situation.idle_s >= self.stall_timeout_s:
            return f"no growth for {self.stall_timeout_s:g} s"
        return ""

    @staticmethod
    def _collection_ended(situation: Situation, end: CollectionEnd) -> bool:
        if end.frames_written is not None and situation.written >= end.frames_written:
            return True
        if end.outcome == "finished" and end.frames_written is not None:
            return False  # its frames will still come
        return min(situation.idle_s, situation.end_seen_for_s) >= GRACE_S
