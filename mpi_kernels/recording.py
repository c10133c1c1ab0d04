"""Results on their way into the file: kept for a moment, written together, and taken up again after an interruption.

Writing a row alone costs as much as writing a hundred, so rows wait, but never longer than a reader may notice. What a
kernel gathers over all frames is brought together from time to time, and saved with the frames that are in it.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from mpi_kernels.checkpoint import Checkpoint, Gathered
from mpi_kernels.earlier import Earlier
from mpi_kernels.frame_digests import DIGESTS, Seal
from mpi_kernels.hdf5_files import Library
from mpi_kernels.kernel import Accumulating, Array, Prepared
from mpi_kernels.progress import Tally
from mpi_kernels.readiness import Ready
from mpi_kernels.request import Request
from mpi_kernels.rows import Rows, Status
from mpi_kernels.sink import Making, ResultFile

WRITE_EVERY_S = 0.04
"""A row waits this long at the most, and not at all when the last ones were written so long ago."""
_MOST_BYTES = 1 << 25
"""Rows that wait don't take more than this."""
_COLLECT_EVERY_S = 2.0
_COLLECT_COSTS = 20
"""Bringing together takes no more than one part in so many of the time."""


class Recorder:
    """Rank 0's way from rows to the result.

    Parameters
    ----------
    tally
        Is told what became of each frame when that is readable.
    """

    def __init__(self, request: Request, prepared: Prepared, making: Making, tally: Tally) -> None:
        self._tally = tally
        self._waiting: list[Rows] = []
        self._written_at = 0.0
        self._seen_at: dict[int, float] = {}
        reduction = prepared.reduction
        self._gathered = copy.deepcopy(reduction) if isinstance(reduction, Accumulating) else None
        self._checkpoint = Checkpoint(request.output, making.fingerprint)
        self._included = np.zeros(0, bool)
        self._collected_at, self._collecting_took, self._is_collected = time.monotonic(), 0.0, True
        library = Library()
        earlier = self._earlier(library, request, prepared, making)
        self._done = np.zeros(0, bool) if earlier is None else earlier.done
        rows = () if earlier is None else earlier.rows(self._done)
        self.result = ResultFile(request.output, prepared, making, expected=request.expected, earlier=rows)
        library.close()

    def _earlier(self, library: Library, request: Request, prepared: Prepared, making: Making) -> Earlier | None:
        if not request.resume:
            self._checkpoint.remove()
            return None
        columns = (*prepared.reduction.columns, DIGESTS)
        found = Earlier.find(library, request.output, making.fingerprint, columns)
        if isinstance(found, str):
            if found:
                sys.stderr.write(f"{request.output}: begun anew, because of the result there {found}\n")
            return None
        if self._gathered is not None and not self._take_up(found):
            sys.stderr.write(f"{request.output}: begun anew, because its checkpoint is missing or doesn't fit\n")
            return None
        sys.stderr.write(f"{request.output}: taken up with {np.count_nonzero(found.done)} frames\n")
        return found

    def _take_up(self, earlier: Earlier) -> bool:
        """Take what an earlier run has gathered; rows of frames that aren't in it are made again."""
        assert self._gathered is not None  # noqa: S101
        held = self._checkpoint.read()
        if held is None:
            return False
        frames = np.flatnonzero(held.frames)
        if (frames >= len(earlier.done)).any() or not earlier.done[frames].all():
            return False  # their rows can't be made without adding them once more
        earlier.done[:] = False
        earlier.done[frames] = True
        self._gathered.add(held.parts)
        self._included = held.frames
        return True

    def see(self, ready: Ready, at: float) -> bool:
        """Note that a frame can be read, `at` seconds of the monotonic clock; return whether it is to be processed."""
        news = self._tally.see(ready.frame)
        if ready.frame < len(self._done) and self._done[ready.frame]:
            if news:
                self._tally.settle(ready.frame, Status.PROCESSED)
            return False
        if self._gathered is not None and (ready.provisional or not news):
            if ready.provisional and news:
                self._tally.forget(ready.frame)  # it comes again when the writer has finished
            return False
        if news and ready.live:
            self._seen_at[ready.frame] = at
        return True

    def take(self, rows: Rows) -> None:
        """Take the rows of a batch."""
        self._waiting.append(rows)
        if self._gathered is not None:
            self._include(rows.frames[rows.status == Status.PROCESSED])

    def _include(self, frames: NDArray[np.int64]) -> None:
        if frames.size:
            self._is_collected = False
            if (missing := int(frames.max()) + 1 - len(self._included)) > 0:
                self._included = np.append(self._included, np.zeros(missing + len(self._included), bool))
            self._included[frames] = True

    def write(self, *, now: bool = False) -> bool:
        """Write what waits, when it is time or there is much of it; return whether anything was written."""
        if not self._waiting:
            return False
        if not now and time.monotonic() - self._written_at < WRITE_EVERY_S and self._bytes < _MOST_BYTES:
            return False
        self._written_at = time.monotonic()
        rows, self._waiting = Rows.joined(self._waiting), []
        self.result.write(rows)
        for frame, status in zip(rows.frames.tolist(), rows.status.tolist(), strict=True):
            self._tally.settle(frame, status)
        tally = self._tally
        self.result.write_counts(written=tally.written, processed=tally.processed, failed=tally.failed)
        done = time.monotonic()
        tally.lags.add(done - self._seen_at.pop(frame) for frame in rows.frames.tolist() if frame in self._seen_at)
        return True

    @property
    def _bytes(self) -> int:
        return sum(values.nbytes for rows in self._waiting for values in rows.columns.values())

    @property
    def collecting_is_due(self) -> bool:
        """Whether what the ranks have gathered should be brought together."""
        pause = max(_COLLECT_EVERY_S, _COLLECT_COSTS * self._collecting_took)
        return not self._is_collected and time.monotonic() - self._collected_at > pause

    @property
    def is_collected(self) -> bool:
        """Whether everything gathered was brought together."""
        return self._is_collected

    def collect(self, parts: Mapping[str, Array]) -> None:
        """Take what the ranks have gathered since the last time, show it, and save it."""
        assert self._gathered is not None  # noqa: S101  else nothing is gathered
        began = time.monotonic()
        self.write(now=True)  # a frame that is in the checkpoint must have its row
        self._gathered.add(parts)
        self.result.write_pictures(self._gathered.pictures(final=False))
        self._checkpoint.write(Gathered(self._gathered.parts(), self._included))
        self._is_collected, self._collected_at = True, time.monotonic()
        self._collecting_took = self._collected_at - began

    def finish(self, *, finished: bool, ended_because: str) -> Seal:
        """Write the rest and the last words, close the file, and return the seal over what was read."""
        self.write(now=True)
        if self._gathered is not None:
            self.result.write_pictures(self._gathered.pictures(final=True))
        seal = self.result.finish(finished=finished, ended_because=ended_because)
        if finished:
            self._checkpoint.remove()
        return seal
