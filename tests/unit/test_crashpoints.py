"""Crash points: each is on the path, and the one asked for ends the process at the passing asked for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator import crashpoints
from orchestrator.crashpoints import CrashPoint, countdown
from orchestrator.errors import InvalidSettings

PACKAGE = Path(crashpoints.__file__).parent


def passes(wanted: str, *, times: int) -> int:
    """Pass a point in a process of its own; return how that ended."""
    program = (
        "from orchestrator.crashpoints import *\n"
        f"for _ in range({times}): reached(CrashPoint.PLANNED); reached(CrashPoint.INTENT_COMMITTED)"
    )
    environment = os.environ | {crashpoints.VARIABLE: wanted}
    return subprocess.run([sys.executable, "-c", program], env=environment, check=False).returncode


def test_the_process_dies_at_the_passing_that_was_asked_for() -> None:
    assert passes("planned:3", times=3) == -signal.SIGKILL
    assert passes("planned:4", times=3) == 0
    assert passes("planned", times=1) == -signal.SIGKILL


def test_without_the_variable_nothing_happens() -> None:
    assert countdown({}) is None


@pytest.mark.parametrize("wanted", ["plannned", "planned:0", "planned:x"])
def test_a_misspelt_point_is_refused_with_the_names_that_there_are(wanted: str) -> None:
    with pytest.raises(InvalidSettings, match=wanted):
        countdown({crashpoints.VARIABLE: wanted})


@pytest.mark.parametrize("point", list(CrashPoint))
def test_each_point_is_passed_somewhere(point: CrashPoint) -> None:
    """That the service really gets there is shown by tests/system/test_faults.py, which kills it at each of them."""
    call = f"reached(CrashPoint.{point.name})"
    assert any(call in source.read_text() for source in PACKAGE.rglob("*.py"))


def test_the_documents_list_each_point() -> None:
    page = PACKAGE.parent / "docs" / "explanation" / "exactly-once.md"
    assert [point for point in CrashPoint if f"`{point}`" not in page.read_text()] == []
