"""How a kernel stands with its frames, and the progress file that says so."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from mpi_kernels.errors import KernelError, OutputUnwritable
from mpi_kernels.frame_digests import PENDING, Seal
from mpi_kernels.identity import InputIdentity
from mpi_kernels.kernel import NamedFile
from mpi_kernels.rows import Status

INTERVAL_S = 0.2
_UNSEEN, _SEEN, _SETTLED = 0, 1, 2
_LAG_STEP, _SHORTEST_LAG_S = 0.01, 1e-6


class Tally:
    """Which frames were seen and what became of them; one byte a frame."""

    def __init__(self, expected: int | None) -> None:
        self.expected = expected
        self.lags = Lags()
        self.highest = -1
        """Number of the highest frame seen; -1 before the first."""
        self._marks = bytearray()
        self._counts = Counter[int]()

    def see(self, frame: int) -> bool:
        """Note that a frame can be read; return whether that is news."""
        if frame >= len(self._marks):
            self._marks.extend(bytes(frame + 1))
        if self._marks[frame] != _UNSEEN:
            return False
        self._mark(frame, _SEEN)
        self.highest = max(self.highest, frame)
        return True

    def forget(self, frame: int) -> None:
        """Take back that a frame was seen."""
        self._mark(frame, _UNSEEN)

    def settle(self, frame: int, status: int) -> None:
        """Note what became of a frame, a `Status`; later words replace earlier ones."""
        self._mark(frame, _SETTLED + status)

    def _mark(self, frame: int, mark: int) -> None:
        self._counts[self._marks[frame]] -= 1
        self._counts[mark] += 1
        self._marks[frame] = mark

    @property
    def written(self) -> int:
        return self._counts[_SEEN] + self.processed + self.failed

    @property
    def processed(self) -> int:
        return self._counts[_SETTLED + Status.PROCESSED] + self._counts[_SETTLED + Status.PROVISIONAL]

    @property
    def failed(self) -> int:
        return self._counts[_SETTLED + Status.FAILED]


class Lags:
    """Times from a frame's being visible to its result's being readable: counted, in steps of 1 %, and not kept."""

    def __init__(self) -> None:
        self._counts = Counter[int]()
        self.max_s: float | None = None

    def add(self, lags_s: Iterable[float]) -> None:
        """Note the times of some frames."""
        for lag_s in lags_s:
            self._counts[round(math.log(max(lag_s, _SHORTEST_LAG_S)) / _LAG_STEP)] += 1
            self.max_s = lag_s if self.max_s is None else max(self.max_s, lag_s)

    @property
    def median_s(self) -> float | None:
        """The median, to half a step; None when there are no times."""
        if self.max_s is None:
            return None
        left = (self._counts.total() + 1) // 2
        for step in sorted(self._counts):
            left -= self._counts[step]
            if left <= 0:
                return min(math.exp(step * _LAG_STEP), self.max_s)
        raise AssertionError("the counts add up to their total")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What changes in the progress file (``docs/reference/kernel-command-line.md``)."""

    kernel: str
    state: str
    expected: int | None
    written: int
    processed: int
    failed: int
    lag_median_s: float | None
    lag_max_s: float | None
    ended_because: str
    message: str
    updated_at: str
    ranks: int


class ProgressFile:
    """Writes the progress file; without a path it does nothing.

    Parameters
    ----------
    settled
        What is known from the beginning: ``parameters``, ``parameters_sha256``, ``software``; null where it is missing.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        kernel: str,
        ranks: int,
        settled: Mapping[str, object],
    ) -> None:
        self._path, self._kernel, self._ranks = path, kernel, ranks
        self._settled = {"parameters": None, "parameters_sha256": None, "files": [], **settled}
        self._inputs: dict[str, InputIdentity | Seal | None] = {"open": None, "end": None, "seal": PENDING}
        self._constant = ""
        self._join_constant_part()
        self._written_at = -INTERVAL_S

    def note_input(self, moment: str, identity: InputIdentity) -> None:
        """Note what the input is at ``open`` or ``end``."""
        self._inputs[moment] = identity
        self._join_constant_part()

    def note_seal(self, seal: Seal) -> None:
        """Note what was read of the input."""
        self._inputs["seal"] = seal
        self._join_constant_part()

    def note_files(self, files: Sequence[NamedFile]) -> None:
        """Note the files that parameters name."""
        self._settled["files"] = [asdict(file) for file in files]
        self._join_constant_part()

    def _join_constant_part(self) -> None:
        # thousands of data files make a megabyte of it: too much to put together for every write
        inputs = {moment: identity and asdict(identity) for moment, identity in self._inputs.items()}
        self._constant = json.dumps({"inputs": inputs, **self._settled})[1:]

    def write(self, state: str, tally: Tally, *, ended_because: str = "", message: str = "", now: bool = False) -> None:
        """Replace the file, unless that was done less than 0.2 s ago and `now` isn't set.

        Raises
        ------
        OutputUnwritable
        """
        if self._path is None or (not now and time.monotonic() - self._written_at < INTERVAL_S):
            return
        progress = Progress(
            kernel=self._kernel,
            state=state,
            expected=tally.expected,
            written=tally.written,
            processed=tally.processed,
            failed=tally.failed,
            lag_median_s=tally.lags.median_s,
            lag_max_s=tally.lags.max_s,
            ended_because=ended_because,
            message=message,
            updated_at=datetime.now(UTC).isoformat(),
            ranks=self._ranks,
        )
        _replace(self._path, f"{json.dumps(asdict(progress))[:-1]}, {self._constant}")
        self._written_at = time.monotonic()

    def write_last_word(self, tally: Tally, error: KernelError) -> None:
        """Say that the run failed; when not even that can be written, say so on standard error."""
        try:
            self.write("failed", tally, ended_because="error", message=error.one_line, now=True)
        except OutputUnwritable as second:  # the first error is the one that counts
            sys.stderr.write(f"the progress file can't be written either: {second.one_line}\n")


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text + "\n")
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):  # half a file isn't left behind
            temporary.unlink(missing_ok=True)
        raise OutputUnwritable(
            f"{path}: {error.strerror}", remedy="check --progress, its folder and disk space"
        ) from error
