"""How a kernel stands with its frames, and the progress file that says so."""

from __future__ import annotations

import json
import os
import sys
import time
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from mpi_kernels.errors import KernelError, OutputUnwritable
from mpi_kernels.identity import InputIdentity
from mpi_kernels.rows import Status

INTERVAL_S = 0.2


class Tally:
    """Which frames were seen and what became of them."""

    def __init__(self, expected: int | None) -> None:
        self.expected = expected
        self._status: dict[int, Status | None] = {}
        self._counts: Counter[Status | None] = Counter()
        self._lags_s = array("d")

    def see(self, frame: int) -> bool:
        """Note that a frame can be read; return whether that is news."""
        if frame in self._status:
            return False
        self._status[frame] = None
        self._counts[None] += 1
        return True

    def settle(self, frame: int, status: Status) -> None:
        """Note what became of a frame; later words replace earlier ones."""
        self._counts[self._status[frame]] -= 1
        self._counts[status] += 1
        self._status[frame] = status

    def add_lags(self, lags_s: Iterable[float]) -> None:
        """Note how long frames took from being visible to their results being readable."""
        self._lags_s.extend(lags_s)

    @property
    def written(self) -> int:
        return len(self._status) - self._counts[Status.MISSING]

    @property
    def processed(self) -> int:
        return self._counts[Status.PROCESSED]

    @property
    def failed(self) -> int:
        return self._counts[Status.FAILED]

    @property
    def highest(self) -> int:
        """Number of the highest frame seen; -1 before the first."""
        return max(self._status, default=-1)

    @property
    def lag_median_s(self) -> float | None:
        return float(np.median(self._lags_s)) if self._lags_s else None

    @property
    def lag_max_s(self) -> float | None:
        return max(self._lags_s, default=None)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The progress file's content (``docs/reference/kernel-command-line.md``)."""

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
    inputs: dict[str, InputIdentity | None]
    parameters: Mapping[str, object] | None
    software: Mapping[str, str]


class ProgressFile:
    """Writes the progress file; without a path it does nothing."""

    def __init__(
        self,
        path: Path | None,
        *,
        kernel: str,
        ranks: int,
        parameters: Mapping[str, object] | None,
        software: Mapping[str, str],
    ) -> None:
        self._path, self._kernel, self._ranks = path, kernel, ranks
        self._parameters, self._software = parameters, software
        self._written_at = -INTERVAL_S
        self.inputs: dict[str, InputIdentity | None] = {"open": None, "end": None}

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
            lag_median_s=tally.lag_median_s,
            lag_max_s=tally.lag_max_s,
            ended_because=ended_because,
            message=message,
            updated_at=datetime.now(UTC).isoformat(),
            ranks=self._ranks,
            inputs=self.inputs,
            parameters=self._parameters,
            software=self._software,
        )
        _replace(self._path, json.dumps(asdict(progress)))
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
        raise OutputUnwritable(
            f"{path}: {error.strerror}", remedy="check --progress, its folder and disk space"
        ) from error
