"""When a kernel stops waiting, and what it calls that."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from mpi_kernels.ending import GRACE_S, CollectionEnd, EndRules, Situation
from mpi_kernels.errors import UnusableInput

RULES = EndRules(expected=None, stall_timeout_s=300)
WAITING = Situation(written=5, idle_s=1, end=None, end_seen_for_s=0, writer_finished=False, terminated=False)


def test_goes_on_while_nothing_says_otherwise() -> None:
    assert RULES.reason(WAITING) == ""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"terminated": True}, "terminated"),
        ({"writer_finished": True}, "file finished"),
        ({"idle_s": 300}, "no growth for 300 s"),
        ({"end": CollectionEnd("finished", 5)}, "collection ended"),
        ({"end": CollectionEnd("aborted", 5)}, "collection ended"),
    ],
)
def test_each_reason_alone_is_enough(change: dict[str, object], reason: str) -> None:
    assert RULES.reason(replace(WAITING, **change)) == reason


def test_announced_number_ends_it_when_reached_and_not_before() -> None:
    rules = EndRules(expected=6, stall_timeout_s=300)
    assert rules.reason(WAITING) == ""
    assert rules.reason(replace(WAITING, written=6)) == "expected number reached"


def test_frames_of_a_finished_collection_are_waited_for() -> None:
    short = replace(WAITING, end=CollectionEnd("finished", 9), end_seen_for_s=60, idle_s=60)
    assert RULES.reason(short) == ""


@pytest.mark.parametrize(
    "end", [CollectionEnd("aborted", 9), CollectionEnd("failed", None), CollectionEnd("finished", None)]
)
def test_collection_that_ended_otherwise_gets_a_short_grace(end: CollectionEnd) -> None:
    short = replace(WAITING, end=end, end_seen_for_s=60, idle_s=GRACE_S / 2)
    assert RULES.reason(short) == ""
    assert RULES.reason(replace(short, idle_s=GRACE_S)) == "collection ended"


def test_end_file_that_is_not_there_says_nothing(tmp_path: Path) -> None:
    assert CollectionEnd.read(None) is None
    assert CollectionEnd.read(tmp_path / "none.json") is None


@pytest.mark.parametrize("content", ["{", "[]", '{"outcome": "finished"}', '{"outcome": "a", "frames_written": "x"}'])
def test_broken_end_file_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "collection-end.json"
    path.write_text(content)
    os.utime(path, (1, 1))
    with pytest.raises(UnusableInput, match=r"collection-end\.json"):
        CollectionEnd.read(path)


def test_end_file_that_is_just_being_written_says_nothing_yet(tmp_path: Path) -> None:
    path = tmp_path / "collection-end.json"
    path.write_text('{"uid": "u", "outco')
    assert CollectionEnd.read(path) is None
