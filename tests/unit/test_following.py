"""Jobs followed to their end: truthful, and unknown rather than wrong."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from orchestrator.errors import GatewayUnavailable
from orchestrator.provenance import InputMoment
from orchestrator.records import Evidence, RunState
from tests.unit.trip import Trip


def test_a_run_goes_from_pending_to_running_to_complete(trip: Trip) -> None:
    job = trip.submitted()
    assert trip.follower.cycle() == 1
    trip.gateway.set_state(job, "RUNNING")
    trip.follower.cycle()
    assert trip.run().summary.state is RunState.RUNNING
    trip.kernel_says(state="running", processed=1)
    trip.follower.cycle()
    counts = trip.run().summary.counts
    assert counts is not None
    assert counts.processed == 1
    trip.kernel_says(ended_because="expected number reached")
    trip.job_ends(0)
    trip.gateway.set_state(job, "COMPLETED", exit_code=0)
    assert trip.follower.cycle() == 0
    run = trip.run()
    assert run.summary.state is RunState.COMPLETE
    assert run.outputs[0].sha256 == "ab"
    assert trip.follower.cycle() == 0
    assert trip.gateway.calls.count("poll") == 4


def test_all_active_jobs_cost_one_call(trip: Trip) -> None:
    for number in range(20):
        trip.submitted(f"c{number}")
    trip.gateway.calls.clear()
    trip.follower.cycle()
    assert trip.gateway.calls == ["poll"]


def test_completed_without_the_kernels_word_is_a_failure(trip: Trip) -> None:
    trip.gateway.set_state(trip.submitted(), "COMPLETED", exit_code=0)
    trip.follower.cycle()
    assert trip.run().summary.state is RunState.FAILED


@pytest.mark.parametrize("words", ["TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "PREEMPTED"])
def test_slurms_own_words_stand_in_the_reason(trip: Trip, words: str) -> None:
    trip.gateway.set_state(trip.submitted(), words, exit_code=0)
    trip.follower.cycle()
    summary = trip.run().summary
    assert summary.state is RunState.FAILED
    assert words in summary.reason


def test_a_cancelled_job_ends_its_run_as_cancelled(trip: Trip) -> None:
    trip.gateway.cancel(trip.submitted())
    trip.follower.cycle()
    assert trip.run().summary.state is RunState.CANCELLED


def test_a_job_that_left_the_controller_is_looked_up_in_accounting(trip: Trip) -> None:
    job = trip.submitted()
    trip.kernel_says()
    trip.gateway.set_state(job, "COMPLETED", exit_code=0)
    trip.gateway.purge(job)
    trip.follower.cycle()
    run = trip.run()
    assert run.summary.state is RunState.COMPLETE
    assert run.attempts[0].last_report is not None
    assert run.attempts[0].last_report.evidence is Evidence.ACCOUNTING


def test_a_job_nobody_knows_is_believed_by_its_own_end_record(trip: Trip) -> None:
    job = trip.submitted()
    trip.gateway.purge(job, accounting=True)
    trip.kernel_says()
    trip.job_ends(0)
    trip.follower.cycle()
    run = trip.run()
    assert run.summary.state is RunState.COMPLETE
    assert run.attempts[0].last_report is not None
    assert run.attempts[0].last_report.evidence is Evidence.JOB_RECORD


def test_a_job_that_vanished_without_a_word_is_unknown_and_never_a_success(trip: Trip) -> None:
    job = trip.submitted()
    trip.kernel_says()  # even a finished kernel doesn't make a success of a job that nobody saw end
    trip.gateway.purge(job, accounting=True)
    assert trip.follower.cycle() == 1
    trip.clock.ahead = timedelta(minutes=9)
    assert trip.follower.cycle() == 1
    trip.clock.ahead = timedelta(minutes=11)
    assert trip.follower.cycle() == 0
    summary = trip.run().summary
    assert summary.state is RunState.UNKNOWN
    assert "neither to the controller nor to accounting" in summary.reason


def test_accounting_that_is_down_proves_nothing(trip: Trip) -> None:
    job = trip.submitted()
    trip.gateway.purge(job, accounting=True)
    trip.gateway.accounting_up = False
    trip.follower.cycle()
    trip.clock.ahead = timedelta(minutes=30)
    assert trip.follower.cycle() == 1
    assert not trip.run().summary.state.ended


def test_while_the_controller_is_down_the_files_are_read_all_the_same(trip: Trip) -> None:
    trip.submitted()
    trip.kernel_says(state="running", processed=2)
    trip.gateway.controller_up = False
    with pytest.raises(GatewayUnavailable):
        trip.follower.cycle()
    counts = trip.run().summary.counts
    assert counts is not None
    assert counts.processed == 2


def test_a_requeued_job_stays_the_same_attempt(trip: Trip) -> None:
    job = trip.submitted()
    trip.gateway.set_state(job, "RUNNING")
    trip.follower.cycle()
    trip.gateway.requeue(job)
    trip.follower.cycle()
    run = trip.run()
    assert run.summary.state is RunState.PENDING
    assert len(run.attempts) == 1
    assert run.attempts[0].last_report is not None
    assert run.attempts[0].last_report.restarts == 1


def test_the_end_of_the_collection_reaches_the_kernel_whenever_it_came(trip: Trip) -> None:
    trip.end("early", frames=7)
    trip.submitted("early")
    trip.submitted("late")
    trip.follower.cycle()
    told = json.loads(trip.directory("early").collection_end.read_text())
    assert (told["uid"], told["outcome"], told["frames_written"]) == ("early", "finished", 7)
    assert not trip.directory("late").collection_end.exists()
    trip.end("late")
    trip.follower.cycle()
    assert trip.directory("late").collection_end.exists()


def test_a_broken_file_costs_its_own_run_only(trip: Trip, caplog: pytest.LogCaptureFixture) -> None:
    bad, good = trip.submitted("bad"), trip.submitted("good")
    trip.attempt("bad").progress.write_text("{")
    trip.kernel_says("good")
    for job in (bad, good):
        trip.gateway.set_state(job, "COMPLETED", exit_code=0)
    assert trip.follower.cycle() == 0
    assert trip.run("good").summary.state is RunState.COMPLETE
    assert trip.run("bad").summary.state is RunState.FAILED
    assert "not a progress file" in caplog.text


def test_a_service_that_starts_again_takes_in_nothing_twice(trip: Trip) -> None:
    job = trip.submitted()
    trip.job_ends(0)
    trip.kernel_says(inputs={"open": {"path": "/x.h5", "real_path": "/x.h5", "size": 5}, "end": None})
    trip.follower.cycle()
    trip.new_follower().cycle()
    trip.gateway.set_state(job, "COMPLETED", exit_code=0)
    trip.new_follower().cycle()
    run = trip.run()
    assert [event.kind for event in run.events].count("end") == 1
    assert [(item.at, item.size) for item in run.inputs] == [(InputMoment.OPEN, 5)]
    assert len(run.outputs) == 1
