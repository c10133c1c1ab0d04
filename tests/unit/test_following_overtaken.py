"""Jobs that ended in the seconds that a killed controller forgot: their own word counts, and they aren't done again."""

from __future__ import annotations

from datetime import timedelta

import pytest

from orchestrator.records import Evidence, RunState
from tests.unit.trip import Trip

HELD = "launch failed requeued held"


def followed(trip: Trip) -> RunState:
    trip.follower.cycle()
    state: RunState = trip.run().summary.state
    return state


def ended(trip: Trip, code: int, *, interrupted: bool = False) -> None:
    trip.job_begins()
    trip.kernel_says()
    trip.job_ends(code, interrupted=interrupted)


@pytest.mark.parametrize("words", ["TIMEOUT", "NODE_FAIL", "PREEMPTED", "CANCELLED by 0"])
def test_a_job_that_had_done_its_work_is_not_failed_by_a_controller_that_forgot_its_end(trip: Trip, words: str) -> None:
    job = trip.submitted()
    ended(trip, 0)
    trip.gateway.set_state(job, words, exit_code=0)
    assert followed(trip) is RunState.COMPLETE
    (attempt,) = trip.run().attempts
    assert attempt.last_report is not None
    assert attempt.last_report.evidence is Evidence.JOB_RECORD
    assert words in [event.detail["words"] for event in trip.run().events if event.kind == "overruled"]


def test_a_job_that_ended_with_a_fault_of_its_own_did_not_run_out_of_time_afterwards(trip: Trip) -> None:
    job = trip.submitted()
    ended(trip, 7)
    trip.gateway.set_state(job, "TIMEOUT", exit_code=0)
    assert followed(trip) is RunState.FAILED
    assert "exit code 7" in trip.run().summary.reason


@pytest.mark.parametrize(("words", "interrupted"), [("TIMEOUT", True), ("NODE_FAIL", False), ("CANCELLED", False)])
def test_a_job_that_failed_because_slurm_ended_it_is_judged_by_slurms_word(
    trip: Trip, words: str, interrupted: bool
) -> None:
    job = trip.submitted()
    ended(trip, 1, interrupted=interrupted)
    trip.gateway.set_state(job, words, exit_code=0)
    trip.follower.cycle()
    end = trip.run().attempts[0].end
    assert end is not None
    assert "1" not in end.reason.split(";")[0]


@pytest.mark.parametrize(("code", "state"), [(0, RunState.COMPLETE), (7, RunState.FAILED)])
def test_a_job_that_is_held_because_its_node_knew_it_already_is_over(trip: Trip, code: int, state: RunState) -> None:
    job = trip.submitted()
    ended(trip, code)
    trip.gateway.requeue(job)
    trip.gateway.set_state(job, "PENDING", reason=HELD)
    trip.follower.cycle()
    assert followed(trip) is state
    assert trip.gateway.jobs[0].words.startswith("CANCELLED")


def test_the_end_of_a_held_job_may_come_after_it_is_held(trip: Trip) -> None:
    job = trip.submitted()
    trip.gateway.requeue(job)
    trip.gateway.set_state(job, "PENDING", reason=HELD)
    assert followed(trip) is RunState.PENDING
    ended(trip, 0)
    trip.follower.cycle()
    assert followed(trip) is RunState.COMPLETE


@pytest.mark.parametrize("reason", ["BeginTime", HELD])
def test_a_job_that_was_told_to_end_before_it_was_requeued_is_still_to_be_done(trip: Trip, reason: str) -> None:
    job = trip.submitted()
    ended(trip, 4, interrupted=True)
    trip.gateway.requeue(job)
    trip.gateway.set_state(job, "PENDING", reason=reason)
    assert followed(trip) is RunState.PENDING


def test_a_job_that_slurm_goes_on_to_call_running_is_over_when_it_said_so_long_ago(trip: Trip) -> None:
    job = trip.submitted()
    trip.gateway.set_state(job, "RUNNING")
    ended(trip, 0)
    assert followed(trip) is RunState.RUNNING
    trip.clock.ahead += timedelta(minutes=9)
    assert followed(trip) is RunState.RUNNING
    trip.clock.ahead += timedelta(minutes=2)
    assert followed(trip) is RunState.COMPLETE
    assert trip.gateway.jobs[0].words == "RUNNING"  # it may still be reading what it made


def test_a_job_that_is_held_a_while_after_it_was_requeued_is_over_too(trip: Trip) -> None:
    job = trip.submitted()
    ended(trip, 7)
    trip.gateway.requeue(job)
    trip.follower.cycle()
    assert followed(trip) is RunState.PENDING
    trip.gateway.set_state(job, "PENDING", reason=HELD)
    assert followed(trip) is RunState.FAILED
