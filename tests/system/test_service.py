"""The service on a real SLURM and a real broker: whatever dies, one complete run, one job, one record."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import pytest

from orchestrator.provenance import InputMoment
from orchestrator.records import RunState
from orchestrator.runs import RunDirectory
from orchestrator.stack import Stack
from tests.system.beamline import Beamline, processed, slurm_jobs

pytestmark = [pytest.mark.stack, pytest.mark.mpi]


@pytest.fixture
def beamline(tmp_path: Path, stack: Stack) -> Iterator[Beamline]:
    beamline = Beamline(tmp_path, stack)
    beamline.start_service()
    yield beamline
    beamline.close()


def assert_whole(beamline: Beamline, stack: Stack, uid: str, frames: int) -> None:
    """One run, complete; one record of one attempt; one SLURM job of its name; a result with every frame."""
    detail = beamline.wait_for_end(uid, within_s=90)
    summary = detail.summary
    assert summary.state is RunState.COMPLETE, (summary.reason, beamline.log())
    assert summary.counts is not None
    assert (summary.counts.written, summary.counts.processed, summary.counts.failed) == (frames, frames, 0)
    assert len(detail.attempts) == 1
    assert slurm_jobs(stack).count(detail.attempts[0].tag.job_name) == 1
    with h5py.File(RunDirectory(summary.run_directory).result) as result:
        assert (result["entry/frames/status"][()] == 1).sum() == frames


def test_a_service_killed_while_a_job_runs_takes_up_where_it_was(beamline: Beamline, stack: Stack) -> None:
    with beamline.detector("killed", "--number", "200", "--rate", "20"):
        beamline.announce("killed", 200)
        beamline.wait_for("killed", processed(20))
        beamline.kill_service()
        time.sleep(3)
        beamline.start_service()
        assert_whole(beamline, stack, "killed", 200)


def test_a_service_killed_with_messages_waiting_loses_and_doubles_none(beamline: Beamline, stack: Stack) -> None:
    uids = [f"burst-{number}" for number in range(4)]
    for uid in uids:
        with beamline.detector(uid, "--number", "5", "--rate", "inf") as detector:
            detector.wait(60)
    for uid in uids:
        beamline.announce(uid, 5)
    beamline.kill_service()
    for uid in uids:  # a sender that isn't sure sends again
        beamline.announce(uid, 5)
    beamline.start_service()
    for uid in uids:
        assert_whole(beamline, stack, uid, 5)


@pytest.mark.parametrize("daemon", ["broker", "slurmctld"])
def test_half_a_minute_without_a_daemon_loses_nothing(beamline: Beamline, stack: Stack, daemon: str) -> None:
    uid = f"without-{daemon}"
    with beamline.detector(uid, "--number", "400", "--rate", "10"):
        beamline.announce(uid, 400)
        beamline.wait_for(uid, processed(20))
        stack.stop(daemon)
        time.sleep(30)
        stack.start(daemon)
        assert_whole(beamline, stack, uid, 400)


def test_a_collection_announced_while_slurm_is_down_is_processed_once_it_is_up(
    beamline: Beamline, stack: Stack
) -> None:
    with beamline.detector("early", "--number", "20", "--rate", "inf") as detector:
        detector.wait(60)
    stack.stop("slurmctld")
    try:
        beamline.announce("early", 20)
        waiting = beamline.wait_for("early", lambda detail: detail.summary.reason != "", within_s=90)
        assert waiting.summary.state is RunState.PLANNED
        assert "controller" in waiting.summary.reason
    finally:
        stack.start("slurmctld")
    assert_whole(beamline, stack, "early", 20)


def test_the_record_says_what_the_input_was_at_open_and_at_end(beamline: Beamline, stack: Stack) -> None:
    with beamline.detector("inputs", "--number", "30", "--rate", "20"):
        beamline.announce("inputs", 30)
        assert_whole(beamline, stack, "inputs", 30)
    detail = beamline.run("inputs")
    assert detail is not None
    at_open, at_end = sorted(detail.inputs, key=lambda item: item.at is InputMoment.END)
    assert (at_open.at, at_end.at) == (InputMoment.OPEN, InputMoment.END)
    assert at_open.path == beamline.file("inputs")
    assert (at_end.shape, at_end.dtype) == ((30, 128, 128), "uint32")
    assert at_open.size is not None
    assert at_end.size is not None
    assert at_open.size < at_end.size
