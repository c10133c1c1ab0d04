"""Checks one file against the NeXus standard, with nexusformat; a process of its own, because files break programs.

    python -m orchestrator.nexus_validator FILE

On standard output: one JSON object with ``validator``, ``definitions``, ``application``, ``errors``, ``warnings`` and
``texts``; or with ``obstacle``, why nothing was checked. A file is held against the application definition that its
first entry names (NXazint1d, say), and all its groups and fields against the base classes; errors and warnings are
those of both. Its frames aren't read. Nothing of this program is imported here: the process is there in 0.3 seconds.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import resource
import signal
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

MOST_TEXTS = 20
LONGEST_TEXT = 300

_MEMORY_BYTES = 4 << 30
_NICENESS = 10
_PLACE = re.compile(r"(?:Group|Field|Link|NX\w+): (.*)")
"""A line of the validator's output that says what the next ones are about: a path, or the class of a missing group."""


class _Errors(logging.Handler):
    """Keeps the first errors, each with the place in the file that it is about."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self._place = ""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage().strip()
        if record.levelno == logging.CRITICAL:  # the validator's headings come as such
            heading = _PLACE.fullmatch(text)
            self._place = heading[1] if heading else self._place
        elif record.levelno == logging.ERROR and len(self.texts) < MOST_TEXTS:
            self.texts.append(f"{self._place}: {text}"[:LONGEST_TEXT] if self._place else text[:LONGEST_TEXT])


def check(path: Path) -> dict[str, Any]:
    """Check a file; errors and warnings are counted, the first errors told."""
    try:
        from nexusformat.nexus import NeXusError, nxopen  # noqa: PLC0415  an optional dependency
        from nexusformat.nexus import validate as nexus  # noqa: PLC0415
        from nexusformat.nexus.utils import get_definitions  # noqa: PLC0415
    except ImportError as error:
        return {"obstacle": f"there is no validator: {error}"}
    said = _Errors()
    nexus.logger.handlers[:] = [said]
    try:
        with nxopen(path) as root:
            entries = root.NXentry
            application = str(entries[0]["definition"].nxvalue) if entries and "definition" in entries[0] else None
        counts = [nexus.validate_file(path)]
        if application is not None:
            counts.append(nexus.validate_application(path))
    except (NeXusError, OSError) as error:
        return {"obstacle": f"the validator can't read it: {error}"}
    if None in counts:
        return {"obstacle": f"the validator gave up: {said.texts[-1] if said.texts else 'it says no reason'}"}
    if not entries:
        said.texts.insert(0, "/: there is no NXentry")
    version = get_definitions() / "NXDL_VERSION"
    return {
        "validator": f"nexusformat {metadata.version('nexusformat')}",
        "definitions": version.read_text().strip() if version.is_file() else str(version.parent),
        "application": application,
        "errors": sum(errors for _, errors in counts) + (not entries),
        "warnings": sum(warnings for warnings, _ in counts),
        "texts": said.texts,
    }


def main(arguments: list[str]) -> int:
    """Check the file and print what came of it."""
    for told_to_end in (signal.SIGINT, signal.SIGTERM):  # meant for the service: it isn't the file that is to blame
        signal.signal(told_to_end, signal.SIG_IGN)
    os.nice(_NICENESS)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    with contextlib.redirect_stdout(sys.stderr):
        found = check(Path(arguments[0]))
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
