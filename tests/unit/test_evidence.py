"""Conclusions about runs: truthful, and never a success without evidence."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.evidence import (
    KernelProgress,
    conclude,
    newest_progress,
    read_events,
    read_progress,
    with_memory_note,
)
from orchestrator.records import Evidence, FrameCounts, JobIdentity, JobReport, JobState, RunState
from orchestrator.runs import AttemptDirectory

SUBMITTED = datetime(2026, 11, 22, tzinfo=UTC)


def report(
    state: JobState, *, exit_code: int | None = 0, evidence: Evidence = Evidence.CONTROLLER, **more: object
) -> JobReport:
    return JobReport(
        identity=JobIdentity(cluster="c", job_id=7, submitted_at=SUBMITTED),
        name="run-x.1",
        state=state,
        words=state.name,
        evidence=evidence,
        exit_code=exit_code,
        **more,  # type: ignore[arg-type]
    )


def progress(
    *, written: int = 10, processed: int = 10, failed: int = 0, expected: int | None = 10, state: str = "finished"
) -> KernelProgress:
    counts = FrameCounts(
        expected=expected, written=written, processed=processed, failed=failed, finished=state == "finished"
    )
    return KernelProgress(counts=counts, state=state, message="")


def test_a_job_that_ended_in_order_with_every_frame_is_complete() -> None:
    assert conclude(report(JobState.COMPLETED), progress()).state is RunState.COMPLETE


@pytest.mark.parametrize(
    ("last_word", "state"),
    [
        (None, RunState.FAILED),
        (progress(state="running"), RunState.FAILED),
        (progress(processed=9), RunState.PARTIAL),
        (progress(processed=9, failed=1), RunState.PARTIAL),
        (progress(written=8, processed=8), RunState.PARTIAL),
        (progress(expected=None), RunState.COMPLETE),
    ],
)
def test_exit_code_0_alone_is_not_a_success(last_word: KernelProgress | None, state: RunState) -> None:
    assert conclude(report(JobState.COMPLETED), last_word).state is state


@given(
    state=st.sampled_from([state for state in JobState if state.ended and state is not JobState.COMPLETED]),
    exit_code=st.sampled_from([None, 0, 1, 3, 4]),
)
def test_no_other_ending_of_a_job_is_ever_complete(state: JobState, exit_code: int | None) -> None:
    assert conclude(report(state, exit_code=exit_code), progress()).state is not RunState.COMPLETE


def test_a_partial_exit_says_which_frames_are_missing() -> None:
    conclusion = conclude(report(JobState.FAILED, exit_code=4), progress(written=8, processed=7, failed=1))
    assert conclusion.state is RunState.PARTIAL
    assert conclusion.reason == "7 of 8 written frames processed, 10 were announced, 1 failed"


def test_a_failure_names_slurms_words_the_exit_code_and_the_kernels_message() -> None:
    said = KernelProgress(counts=progress().counts, state="failed", message="/x.h5: no dataset /entry/data")
    conclusion = conclude(
        report(JobState.FAILED, exit_code=3, evidence=Evidence.ACCOUNTING, reason="NonZeroExitCode"), said
    )
    assert conclusion.reason == (
        "the job ended as FAILED (NonZeroExitCode), exit code 3: the input can't be used, says accounting; "
        "/x.h5: no dataset /entry/data"
    )


def test_progress_is_read_and_its_absence_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    assert read_progress(path) is None
    path.write_text(json.dumps({"state": "running", "expected": None, "written": 3, "processed": 2, "failed": 0}))
    read = read_progress(path)
    assert read is not None
    assert (read.counts.expected, read.counts.written, read.counts.finished) == (None, 3, False)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"state": "running"}', '{"state":"x","expected":1,"written":"y","processed":1,"failed":0}'],
)
def test_a_broken_progress_file_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "progress.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"progress\.json: not a progress file"):
        read_progress(path)


def test_a_line_that_is_still_being_written_is_left_for_the_next_time(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    line = json.dumps({"kind": "begin", "at": SUBMITTED.isoformat(), "job": {"job_id": "7"}, "detail": {"host": "n1"}})
    path.write_text(f"{line}\n{line[:20]}")
    (event,) = read_events(path)
    assert (event.sequence, event.kind, event.at, event.detail["host"]) == (0, "begin", SUBMITTED, "n1")


@pytest.mark.parametrize(
    "line", ["{}", "[", '{"kind": 1, "at": "2026-11-22T00:00:00Z", "job": {}, "detail": {}}', "\0"]
)
def test_a_line_that_is_no_event_is_kept_as_unreadable_and_hides_no_other(tmp_path: Path, line: str) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(f"{line}\n")
    assert read_events(path) == ()  # its content may be on its way
    good = json.dumps({"kind": "end", "at": SUBMITTED.isoformat(), "job": {"restarts": 2}, "detail": {}})
    path.write_text(f"{line}\n{good}\n")
    bad, end = read_events(path)
    assert (bad.sequence, bad.kind, bad.detail["line"]) == (0, "unreadable", line)
    assert (end.sequence, end.kind, end.restarts) == (1, "end", 2)


def test_the_progress_of_the_newest_start_counts(tmp_path: Path) -> None:
    directory = AttemptDirectory(tmp_path)
    assert newest_progress(directory) is None
    for restarts in (0, 2, 10):
        told = {"state": "running", "expected": None, "written": restarts, "processed": 0, "failed": 0}
        directory.progress_of(restarts).write_text(json.dumps(told))
    newest = newest_progress(directory)
    assert newest is not None
    assert newest.counts.written == 10


CAPTURED = (Path(__file__).parent / "slurm_texts" / "memory-notes.txt").read_text()
LOGS = [case.split("\n", 1) for case in CAPTURED.split("## ") if case]


@pytest.mark.parametrize(("case", "log"), LOGS, ids=[case for case, _ in LOGS])
def test_a_memory_kill_is_known_by_slurms_note_in_the_log(tmp_path: Path, case: str, log: str) -> None:
    (tmp_path / "job.log").write_text(log)
    failed = report(JobState.FAILED, signal=9, reason="JobLaunchFailure")
    told = with_memory_note(failed, tmp_path / "job.log")
    if case.startswith("none"):
        assert told is failed
    else:
        assert (told.state, told.words) == (JobState.OUT_OF_MEMORY, "FAILED")
        conclusion = conclude(told, progress())
        assert conclusion.state is RunState.FAILED
        assert conclusion.reason.startswith("the job ended as FAILED: it used more memory than it had asked for (")


@pytest.mark.parametrize(
    ("state", "exit_code"),
    [(JobState.CANCELLED, 0), (JobState.COMPLETED, 0), (JobState.FAILED, 4), (JobState.FAILED, 3)],
)
def test_a_note_about_memory_changes_nothing_but_an_unexplained_failure(
    tmp_path: Path, state: JobState, exit_code: int
) -> None:
    (tmp_path / "job.log").write_text("slurmstepd: error: Exceeded job memory limit\n")
    other = report(state, exit_code=exit_code)
    assert with_memory_note(other, tmp_path / "job.log") is other
    assert with_memory_note(report(JobState.FAILED), tmp_path / "no such file").state is JobState.FAILED


def test_out_of_memory_is_forgiven_only_where_every_frame_is_accounted_for() -> None:
    killed = report(JobState.OUT_OF_MEMORY, signal=125, reason="OutOfMemory")
    assert conclude(killed, progress()).reason == (
        "the job ended as OUT_OF_MEMORY: it used more memory than it had asked for (OutOfMemory); "
        "10 of 10 written frames processed"
    )
    assert conclude(killed, progress()).state is RunState.FAILED
    assert conclude(killed, progress(), forgiven=True).state is RunState.COMPLETE
    assert "OUT_OF_MEMORY" in conclude(killed, progress(), forgiven=True).reason
    for last_word in (None, progress(processed=9), progress(state="running")):
        assert conclude(killed, last_word, forgiven=True).state is RunState.FAILED
    assert conclude(report(JobState.TIMEOUT), progress(), forgiven=True).state is RunState.FAILED
