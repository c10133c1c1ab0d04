"""Runs that are tried again, from the end of one attempt to the job of the next: once, with changes, and never against
somebody's wish."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from orchestrator.dispatching import cancel
from orchestrator.following import USAGE_INTERVAL
from orchestrator.provenance import Store
from orchestrator.records import JobReport, JobState, RunState
from orchestrator.slurm.memory import Meets
from tests.unit.test_crashes import Killed, Mortal, service_steps
from tests.unit.trip import Trip

MORE = {"out-of-memory": {"times": 2, "memory_factor": 2.0, "memory_max_mb": 6000}}


@pytest.fixture
def with_memory(trip: Trip) -> Trip:
    trip.site_says(resources={"ntasks": 1, "memory_mb": 2000, "time_limit_min": 10}, retries=MORE)
    return trip


def last_job(trip: Trip) -> JobReport:
    return trip.gateway.jobs[-1]


def ends(trip: Trip, words: str, **more: int) -> None:
    """Let the newest job end, and the service see it and act."""
    trip.gateway.set_state(last_job(trip).identity, words, **more)
    trip.follower.cycle()
    trip.dispatcher.submit_planned()


def kernel_says(trip: Trip, attempt: int, processed: int, state: str = "finished", **more: object) -> None:
    told = {"state": state, "expected": 3, "written": 3, "processed": processed, "failed": 0, **more}
    trip.directory().attempt(attempt).progress.write_text(json.dumps(told))


# ----------------------------------------------------------------------------------------------- the whole trip


def test_out_of_memory_is_tried_again_with_more_until_the_limit_and_then_fails(with_memory: Trip) -> None:
    trip = with_memory
    trip.submitted()
    ends(trip, "OUT_OF_MEMORY")
    ends(trip, "OUT_OF_MEMORY")
    ends(trip, "OUT_OF_MEMORY")
    run = trip.run()
    assert run.summary.state is RunState.FAILED
    assert run.summary.reason.endswith(
        "not tried again: tried again 2 times, the most that retries.out-of-memory allows"
    )
    memory = [line for one in run.attempts for line in one.script_text.splitlines() if "--mem=" in line]
    assert memory == ["#SBATCH --mem=2000M", "#SBATCH --mem=4000M", "#SBATCH --mem=6000M"]
    assert [job.name for job in trip.gateway.jobs] == [one.tag.job_name for one in run.attempts]
    assert [one.end.cause for one in run.attempts if one.end] == 3 * [JobState.OUT_OF_MEMORY]
    assert [one.retry and one.retry.changes for one in run.attempts] == [
        None, ("memory 2000 → 4000 MB",), ("memory 4000 → 6000 MB",)
    ]  # fmt: skip
    assert run.plan.resources.memory_mb == 2000
    assert json.loads(trip.directory().plan.read_text())["resources"]["memory_mb"] == 2000
    retry = json.loads(trip.directory().attempt(3).retry.read_text())
    assert (retry["resources"]["memory_mb"], retry["because"]) == (6000, "attempt 2 ran out of memory")


def test_a_second_attempt_that_is_whole_makes_the_run_complete(trip: Trip) -> None:
    trip.submitted()
    kernel_says(trip, 1, 1, "running")
    ends(trip, "NODE_FAIL")
    trip.gateway.set_state(last_job(trip).identity, "RUNNING")
    trip.follower.cycle()
    assert trip.run().summary.state is RunState.RUNNING
    kernel_says(trip, 2, 3)
    ends(trip, "COMPLETED", exit_code=0)
    run = trip.run()
    assert run.summary.state is RunState.COMPLETE
    assert run.attempts[0].end is not None
    assert run.attempts[0].end.state is RunState.FAILED
    assert "#SBATCH --exclude=memory[1]" in run.attempts[1].script_text


def test_a_job_told_to_end_because_its_time_is_up_is_tried_again_with_more(trip: Trip) -> None:
    trip.submitted()
    job = last_job(trip)
    trip.gateway.set_state(job.identity, "RUNNING")
    trip.follower.cycle()
    kernel_says(trip, 1, 2, ended_because="terminated")
    trip.gateway._clock = trip.clock
    trip.clock.ahead = timedelta(minutes=9)
    ends(trip, "FAILED", exit_code=4)
    run = trip.run()
    assert run.attempts[0].end is not None
    assert run.attempts[0].end.state is RunState.PARTIAL
    assert "#SBATCH --time=00:15:00" in run.attempts[1].script_text


@pytest.mark.parametrize("words", ["FAILED", "DEADLINE"])
def test_what_isnt_tried_again_ends_without_a_word_about_it(trip: Trip, words: str) -> None:
    trip.submitted()
    ends(trip, words, exit_code=1)
    run = trip.run()
    assert run.summary.state is RunState.FAILED
    assert "tried" not in run.summary.reason
    assert len(trip.gateway.jobs) == 1


def test_a_vanished_job_is_tried_again_only_where_the_site_says_so_and_is_ended_before(trip: Trip) -> None:
    trip.site_says(retries={"unknown": {"times": 1}})
    job = trip.submitted()
    trip.attempt().claim.write_text(json.dumps({"job_id": str(job.job_id)}))
    trip.gateway.purge(job, accounting=True)
    trip.follower.cycle()
    trip.clock.ahead = timedelta(minutes=11)
    trip.follower.cycle()
    assert trip.gateway.calls.count("cancel") == 1
    trip.dispatcher.submit_planned()
    run = trip.run()
    assert run.attempts[0].end is not None
    assert run.attempts[0].end.state is RunState.UNKNOWN
    assert len(run.attempts) == 2


def test_the_rules_are_those_of_the_time_when_the_run_was_planned(with_memory: Trip) -> None:
    trip = with_memory
    trip.submitted()
    trip.site_says(retries={"most": 0})
    ends(trip, "OUT_OF_MEMORY")
    assert len(trip.gateway.jobs) == 2


# ---------------------------------------------------------------------------------------------- nothing is mixed


def test_what_the_first_attempt_said_isnt_said_of_the_second(trip: Trip) -> None:
    trip.submitted()
    trip.kernel_says(state="running", processed=2, inputs={"open": {"path": "/x", "real_path": "/x"}})
    trip.job_begins()
    trip.job_ends(1)
    trip.follower.cycle()
    before = trip.run()
    assert before.summary.counts is not None
    assert (len(before.inputs), len(before.outputs)) == (1, 1)
    ends(trip, "NODE_FAIL")
    # Its kernel lives on, on a node that was cut off, and writes.
    trip.kernel_says(state="running", processed=3, inputs={"end": {"path": "/x", "real_path": "/x"}})
    trip.job_ends(0, sha256="cd")
    trip.follower.cycle()
    trip.new_follower().cycle()
    after = trip.run()
    assert after.summary.state is RunState.PENDING
    assert after.summary.counts is None
    assert (len(after.inputs), len(after.outputs)) == (0, 0)
    assert [event.kind for event in after.events if event.attempt == 1].count("end") == 2


def test_usage_of_an_attempt_that_was_followed_by_another_still_comes_late(trip: Trip) -> None:
    job = trip.submitted()
    ends(trip, "NODE_FAIL")
    report = trip.gateway._records[job]
    trip.gateway._records[job] = replace(report, usage={"elapsed_s": 7})
    trip.clock.ahead = USAGE_INTERVAL
    trip.new_follower().cycle()
    first, second = trip.run().attempts
    assert first.last_report is not None
    assert first.last_report.usage == {"elapsed_s": 7}
    assert first.last_report.state is JobState.NODE_FAIL
    assert second.last_report is None or second.last_report.usage == {}


def test_a_follower_that_still_believes_in_the_former_attempt_changes_nothing(trip: Trip) -> None:
    trip.submitted()
    stale = trip.new_follower()
    stale.cycle()
    ends(trip, "NODE_FAIL")
    stale.cycle()
    run = trip.run()
    assert run.summary.state is RunState.PENDING
    assert (run.summary.attempts, len(run.attempts)) == (2, 2)
    assert [event.kind for event in run.events].count("retry") == 1


# -------------------------------------------------------------------------------------------------------- delay


def test_a_delay_is_kept_also_by_the_next_service(trip: Trip) -> None:
    trip.site_says(retries={"node-fail": {"delay_s": 3600}})
    trip.submitted()
    ends(trip, "NODE_FAIL")
    assert trip.run().summary.state is RunState.PLANNED
    other = Store.open(trip.settings.database)
    try:
        assert other.planned_runs() == []
    finally:
        other.close()
    assert len(trip.gateway.jobs) == 1


# ------------------------------------------------------------------------------------------------------ refusals


def test_a_job_that_is_refused_for_avoiding_nodes_is_submitted_without_that(trip: Trip) -> None:
    trip.submitted()
    trip.gateway.upcoming.append(Meets.REFUSAL)
    ends(trip, "NODE_FAIL")
    assert trip.run().summary.state is RunState.PLANNED
    trip.dispatcher.submit_planned()
    run = trip.run()
    assert run.summary.state is RunState.PENDING
    assert "--exclude" not in run.attempts[1].script_text
    assert run.attempts[1].retry is not None
    assert run.attempts[1].retry.changes == ()
    assert len(run.attempts) == 2


def test_a_retry_that_slurm_refuses_leaves_the_run_as_its_last_attempt_ended(with_memory: Trip) -> None:
    trip = with_memory
    trip.submitted()
    trip.gateway.upcoming.append(Meets.REFUSAL)
    ends(trip, "OUT_OF_MEMORY")
    run = trip.run()
    assert run.summary.state is RunState.FAILED
    assert "OUT_OF_MEMORY" in run.summary.reason
    assert "attempt 2 was refused: Invalid partition name" in run.summary.reason
    assert run.summary.ended_at is not None


def test_a_retry_whose_submission_fails_is_submitted_later_with_the_same_changes(with_memory: Trip) -> None:
    trip = with_memory
    trip.submitted()
    trip.gateway.upcoming.append(Meets.LOST_REQUEST)
    ends(trip, "OUT_OF_MEMORY")
    trip.clock.ahead = timedelta(seconds=91)
    trip.dispatcher.settle()
    trip.dispatcher.submit_planned()
    run = trip.run()
    assert run.summary.state is RunState.PENDING
    assert (len(run.attempts), len(trip.gateway.jobs)) == (2, 2)
    assert "#SBATCH --mem=4000M" in run.attempts[1].script_text


# ------------------------------------------------------------------------------------------------- cancellation


def run_id(trip: Trip) -> str:
    return trip.run().summary.run_id


def test_a_wish_to_cancel_wins_over_a_retry(trip: Trip) -> None:
    job = trip.submitted()
    trip.gateway.controller_up = False
    with pytest.raises(Exception, match="controller"):
        cancel(trip.store, trip.gateway, run_id(trip), by="ann")
    trip.gateway.controller_up = True
    trip.gateway.set_state(job, "NODE_FAIL")
    trip.follower.cycle()
    summary = trip.run().summary
    assert summary.state is RunState.FAILED
    assert "not tried again, because it was cancelled" in summary.reason


def test_a_run_that_waits_to_be_tried_again_is_cancelled_at_once(trip: Trip) -> None:
    job = trip.submitted()
    trip.gateway.set_state(job, "NODE_FAIL")
    trip.follower.cycle()
    trip.gateway.purge(job, accounting=True)
    assert cancel(trip.store, trip.gateway, run_id(trip), by="ann") is RunState.CANCELLED
    trip.dispatcher.submit_planned()
    assert trip.run().summary.reason == "cancelled by ann before it was tried again"
    assert trip.gateway.jobs == ()


def test_a_job_that_somebody_cancelled_isnt_tried_again(trip: Trip) -> None:
    trip.site_says(retries={cause: {"times": 5} for cause in ("failed", "unknown", "node-fail")})
    trip.gateway.cancel(trip.submitted())
    trip.follower.cycle()
    assert trip.run().summary.state is RunState.CANCELLED


# ------------------------------------------------------------------------------------------------------- crashes


def cluster_steps(trip: Trip) -> None:
    """Let each job go one state further: the first one loses its node, others complete."""
    for job in trip.gateway.jobs:
        number = int(job.name.rpartition(".")[2])
        if job.state is JobState.PENDING:
            trip.gateway.set_state(job.identity, "RUNNING")
        elif job.state is JobState.RUNNING and number == 1:
            kernel_says(trip, 1, 1, "running")
            trip.gateway.set_state(job.identity, "NODE_FAIL")
        elif job.state is JobState.RUNNING:
            kernel_says(trip, number, 3)
            trip.gateway.set_state(job.identity, "COMPLETED", exit_code=0)


def to_the_lost_node(trip: Trip) -> None:
    trip.submitted()
    cluster_steps(trip)
    trip.follower.cycle()
    cluster_steps(trip)


def the_rest(trip: Trip) -> None:
    for _ in range(3):
        service_steps(trip)
        cluster_steps(trip)
    service_steps(trip)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_service_killed_at_any_call_makes_exactly_one_more_attempt(
    new_trip: Callable[[int], Trip], *, after: bool
) -> None:
    for call in range(1, 300):
        trip = new_trip(call)
        to_the_lost_node(trip)
        countdown = [call]
        store = Mortal(trip.store, countdown, after=after)
        gateway = Mortal(trip.gateway, countdown, after=after)
        trip.dispatcher = replace(trip.dispatcher, store=store, gateway=gateway)  # type: ignore[arg-type]
        trip.follower = replace(trip.follower, store=store, gateway=gateway)  # type: ignore[arg-type]
        try:
            the_rest(trip)
            lived = True
        except Killed:
            lived = False
        trip.dispatcher, trip.follower = trip.new_dispatcher(), trip.new_follower()
        if not lived:
            service_steps(trip)
            trip.clock.ahead = timedelta(seconds=91)  # by then, what was under way is over
            the_rest(trip)
        run = trip.run()
        assert run.summary.state is RunState.COMPLETE, (call, run.summary.reason)
        assert [job.name for job in trip.gateway.jobs] == [one.tag.job_name for one in run.attempts], call
        assert len(run.attempts) == 2, call
        assert [event.kind for event in run.events].count("retry") == 1, call
        assert not trip.store.unsettled_attempts()
        trip.store.close()
        if lived:
            assert call > 20  # every call was tried
            return
    pytest.fail("the trip never ended")
