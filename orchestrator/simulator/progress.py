"""A file that says how far the simulated detector is, for whoever runs it as a subprocess."""

from __future__ import annotations

import json
import time
from pathlib import Path

from orchestrator.errors import InvalidInput
from orchestrator.runs import write_atomically

_LEAST_INTERVAL_S = 0.2


class ProgressFile:
    """Keeps ``{"written": n, "expected": n, "finished": bool}`` in a file, replaced at most every 0.2 s."""

    def __init__(self, path: Path | None) -> None:
        if path is not None and not path.parent.is_dir():
            raise InvalidInput(f"--progress-file {path}: no folder {path.parent}", remedy="make the folder first")
        self._path = path
        self._expected = 0
        self._next = 0.0

    def start(self, expected: int) -> None:
        """Say how many frames are announced; nothing is written yet."""
        self._expected = expected
        self._replace(0, finished=False)

    def written(self, count: int) -> None:
        """Say how many frames are written."""
        if time.monotonic() >= self._next:
            self._replace(count, finished=False)

    def finish(self, count: int) -> None:
        """Say that nothing more will come."""
        self._replace(count, finished=True)

    def _replace(self, count: int, *, finished: bool) -> None:
        if self._path is None:
            return
        state = {"written": count, "expected": self._expected, "finished": finished}
        write_atomically(self._path, json.dumps(state) + "\n")
        self._next = time.monotonic() + _LEAST_INTERVAL_S
