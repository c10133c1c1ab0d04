"""What SLURM doesn't take now waits, is asked about seldom, and loses neither its order nor anybody's job."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from orchestrator.back_pressure import ALONE_FIRST_S, ALONE_LONGEST_S, FIRST_S, LONGEST_S, BackPressure, Queue
from orchestrator.errors import GatewayUnavailable, StoreUnavailable
from orchestrator.provenance import Outcome, PlannedRun
from orchestrator.records import RunState, RunTag, Submission, SubmittedJob
from orchestrator.slurm.memory import Meets, MemoryGateway
from tests.unit.trip import Trip

SHORT = Queue("short", None, None, None)
LONG = Queue("long", None, None, None)
FULL = GatewayUnavailable("MaxJobCount limit", everywhere=True)
CLOSED = GatewayUnavailable("Required partition not available")


def test_a_queue_stays_closed_twice_as_long_after_each_refusal_up_to_a_limit() -> None:
    pressure, now_s, waits = BackPressure(), 0.0, []
    for _ in range(8):
        pressure.refused(SHORT, CLOSED, now_s)
        begun_s = now_s
        while pressure.obstacle(SHORT, now_s):
            now_s += 0.125
        waits.append(now_s - begun_s)
    assert waits[:3] == [FIRST_S, 2 * FIRST_S, 4 * FIRST_S]
    assert waits[-1] == LONGEST_S
    pressure.accepted(SHORT)
    assert not pressure.on_trial(SHORT)


def test_what_closes_a_queue_leaves_others_open_and_what_closes_the_cluster_none() -> None:
    pressure = BackPressure()
    pressure.refused(SHORT, CLOSED, 0.0)
    assert pressure.obstacle(SHORT, 0.1) is CLOSED
    assert pressure.obstacle(LONG, 0.1) is None
    pressure.refused(LONG, FULL, 0.1)
    assert pressure.obstacle(None, 0.2) is FULL
    pressure.accepted(LONG)
    assert pressure.obstacle(LONG, 0.2) is None
    assert pressure.obstacle(SHORT, 0.2) is CLOSED


class Limited(MemoryGateway):
    """Takes so many jobs that haven't ended, as MaxJobCount does."""

    def __init__(self, jobs_most: int) -> None:
        super().__init__()
        self.jobs_most = jobs_most

    def submit(self, submission: Submission) -> SubmittedJob:
        if sum(not job.state.ended for job in self.jobs) < self.jobs_most:
            return super().submit(submission)
        self.calls.append("submit")
        raise GatewayUnavailable("MaxJobCount limit", remedy="wait", everywhere=True)


def serve(trip: Trip) -> int:
    """Take a round; return how many jobs were made."""
    before = len(trip.gateway.jobs)
    with suppress(GatewayUnavailable):
        trip.dispatcher.submit_planned()
    return len(trip.gateway.jobs) - before


def test_a_full_cluster_is_asked_seldom_and_takes_everything_in_the_end_in_order(trip: Trip) -> None:
    gateway = Limited(5)
    passed_s = 0.0
    trip.gateway = gateway
    trip.dispatcher = replace(trip.dispatcher, gateway=gateway, clock=lambda: passed_s)
    uids = [f"c{number:02}" for number in range(20)]
    for uid in uids:
        trip.start(uid)
    trip.dispatcher.plan_waiting()
    assert serve(trip) == 5
    asked = gateway.calls.count("submit")
    for _ in range(100):  # messages come and wake the loop, SLURM is left alone
        assert serve(trip) == 0
    assert gateway.calls.count("submit") == asked
    assert {"MaxJobCount" in trip.run(uid).summary.reason for uid in uids[5:]} == {True}
    for _ in range(60):
        passed_s += 1
        serve(trip)
    assert gateway.calls.count("submit") - asked < 10
    gateway.jobs_most = 20
    passed_s += LONGEST_S
    assert serve(trip) >= 1  # on trial; the service takes the next round at once
    while serve(trip):
        pass
    assert len(gateway.jobs) == 20
    names = {run.tag.job_name: uid for uid in uids for run in trip.run(uid).attempts}
    assert [names[job.name] for job in gateway.jobs] == uids


def test_what_a_batch_could_not_send_is_given_back_under_the_same_number(trip: Trip) -> None:
    for uid in ("a", "b", "c"):
        trip.start(uid)
    trip.dispatcher.plan_waiting()
    trip.gateway.upcoming.extend([Meets.ACCEPTANCE, Meets.LOST_REQUEST])
    assert trip.dispatcher.submit_planned() == 1
    assert trip.gateway.calls.count("submit") == 2
    assert [item.tag for item in trip.store.unsettled_attempts()] == [trip.run("b").attempts[0].tag]
    third = trip.run("c")
    assert (third.summary.state, third.summary.attempts) == (RunState.PLANNED, 0)
    assert not [event for event in third.events if event.kind == "not-submitted"]
    assert trip.dispatcher.settle() == 1
    assert trip.dispatcher.submit_planned() == 1
    assert trip.run("c").attempts[0].tag == RunTag(run_id=third.summary.run_id, attempt=1)


def test_a_fault_in_one_call_gives_the_rest_of_the_batch_back(trip: Trip, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(_submission: Submission) -> SubmittedJob:
        raise ZeroDivisionError

    for uid in ("a", "b", "c"):
        trip.start(uid)
    trip.dispatcher.plan_waiting()
    with monkeypatch.context() as patch:
        patch.setattr(trip.gateway, "submit", faulty)
        with pytest.raises(ZeroDivisionError):
            trip.dispatcher.submit_planned()
    # The gateway had taken the second one too, and nobody says what became of it.
    assert [trip.run(uid).summary.state for uid in "abc"] == [RunState.SUBMITTING] * 2 + [RunState.PLANNED]
    trip.dispatcher.settle()
    trip.clock.ahead += timedelta(seconds=91)
    assert trip.dispatcher.settle() == 0
    assert trip.dispatcher.submit_planned() == 3


def test_outcomes_that_the_store_could_not_take_are_recorded_when_it_is_back(
    trip: Trip, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable(_outcomes: Sequence[Outcome]) -> None:
        raise StoreUnavailable("the database went away")

    for uid in ("a", "b"):
        trip.start(uid)
    trip.dispatcher.plan_waiting()
    with monkeypatch.context() as patch:
        patch.setattr(trip.store, "record_outcomes", unavailable)
        with pytest.raises(StoreUnavailable):
            trip.dispatcher.submit_planned()
    assert len(trip.gateway.jobs) == 2
    assert trip.dispatcher.settle() == 0
    assert trip.gateway.calls.count("find") == 0
    assert {trip.run(uid).summary.state for uid in ("a", "b")} == {RunState.PENDING}


def test_an_outcome_that_comes_late_says_nothing_of_a_later_intent(trip: Trip, monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(_outcomes: Sequence[Outcome]) -> None:
        raise StoreUnavailable("the database went away")

    trip.start()
    trip.dispatcher.plan_waiting()
    trip.gateway.upcoming.append(Meets.UNAVAILABLE)
    with monkeypatch.context() as patch:
        patch.setattr(trip.store, "record_outcomes", unavailable)
        with pytest.raises(StoreUnavailable):
            trip.dispatcher.submit_planned()
    stalled, trip.dispatcher = trip.dispatcher, trip.new_dispatcher()
    trip.dispatcher.settle()
    trip.clock.ahead = timedelta(seconds=91)
    trip.dispatcher.settle()
    trip.gateway.upcoming.append(Meets.LOST_REPLY)
    trip.dispatcher.submit_planned()
    stalled.submit_planned()  # its word is about the first intent
    assert trip.run().summary.state is RunState.SUBMITTING
    trip.dispatcher.settle()
    assert len(trip.gateway.jobs) == 1


def test_live_collections_come_before_ended_ones_and_each_oldest_first(trip: Trip) -> None:
    uids = ("ended-1", "live-1", "ended-2", "live-2")
    for uid in uids:
        trip.start(uid)
    trip.end("ended-1")
    trip.end("ended-2")
    trip.dispatcher.plan_waiting()
    assert trip.dispatcher.submit_planned() == 4
    names = {run.tag.job_name: uid for uid in uids for run in trip.run(uid).attempts}
    assert [names[job.name] for job in trip.gateway.jobs] == ["live-1", "live-2", "ended-1", "ended-2"]


def test_portions_of_the_waiting_runs_join_without_gap_or_repeat(trip: Trip) -> None:
    uids = [f"c{number}" for number in range(7)]
    for uid in uids:
        trip.start(uid)
    for uid in uids[:3]:
        trip.end(uid)
    trip.dispatcher.plan_waiting()
    seen: list[str] = []
    portion = trip.store.planned_runs(2)
    while portion:
        seen += [planned.plan.collection.uid for planned in portion]
        portion = trip.store.planned_runs(2, after=portion[-1])
    assert seen == [*uids[3:], *uids[:3]]


@pytest.mark.parametrize("jump", [timedelta(hours=20), timedelta(hours=-20)], ids=["back", "forward"])
def test_a_job_is_found_although_the_clock_was_wrong_when_it_was_submitted(trip: Trip, jump: timedelta) -> None:
    trip.clock.ahead = jump
    trip.gateway.upcoming.append(Meets.LOST_REPLY)
    trip.start()
    trip.dispatcher.plan_waiting()
    trip.dispatcher.submit_planned()
    trip.clock.ahead = timedelta(0)
    trip.dispatcher = trip.new_dispatcher()
    trip.dispatcher.settle()
    trip.clock.ahead = timedelta(seconds=91)
    trip.dispatcher.settle()
    assert trip.run().summary.state is RunState.PENDING
    assert trip.dispatcher.submit_planned() == 0
    assert len(trip.gateway.jobs) == 1


@pytest.mark.parametrize("jump", [timedelta(hours=20), timedelta(hours=-20)], ids=["forward", "back"])
def test_a_jump_of_the_clock_neither_cuts_nor_extends_the_wait_for_a_job(trip: Trip, jump: timedelta) -> None:
    passed_s = 0.0
    trip.dispatcher = replace(trip.dispatcher, clock=lambda: passed_s)
    trip.gateway.upcoming.append(Meets.LOST_REQUEST)
    trip.start()
    trip.dispatcher.plan_waiting()
    trip.dispatcher.submit_planned()
    trip.clock.ahead = jump
    passed_s = 89.0
    assert trip.dispatcher.settle() == 1
    passed_s = 92.0
    assert trip.dispatcher.settle() == 0
    assert trip.dispatcher.submit_planned() == 1


# ---------------------------------------------------------------------------------- refusals that may be for good

DOUBTFUL = GatewayUnavailable("Job violates accounting/QOS policy", doubtful=True)


class Choosy(Limited):
    """Takes so many jobs, and one never; can't tell the two apart."""

    never = ""

    def submit(self, submission: Submission) -> SubmittedJob:
        taken = sum(not job.state.ended for job in self.jobs)
        if submission.tag.run_id != self.never and taken < self.jobs_most:
            return MemoryGateway.submit(self, submission)
        self.calls.append("submit")
        raise DOUBTFUL


def serve_choosy(trip: Trip, jobs_most: int) -> tuple[Choosy, list[float]]:
    gateway, now_s = Choosy(jobs_most), [0.0]
    trip.gateway = gateway
    trip.dispatcher = replace(trip.dispatcher, gateway=gateway, clock=lambda: now_s[0])
    for number in range(20):
        trip.start(f"c{number:02}")
    trip.dispatcher.plan_waiting()
    return gateway, now_s


def test_a_run_that_may_never_be_taken_does_not_stand_in_the_way_of_others(trip: Trip) -> None:
    gateway, now_s = serve_choosy(trip, jobs_most=100)
    gateway.never = trip.run("c00").summary.run_id
    for _ in range(10):
        now_s[0] += 0.5
        serve(trip)
    assert len(gateway.jobs) == 19
    refused = trip.run("c00").summary
    assert (refused.state, "policy" in refused.reason) == (RunState.PLANNED, True)
    gateway.never = ""
    now_s[0] += ALONE_LONGEST_S
    assert serve(trip) == 1


def test_doubtful_refusals_of_many_runs_do_not_hammer_and_lose_nothing(trip: Trip) -> None:
    gateway, now_s = serve_choosy(trip, jobs_most=5)
    for _ in range(600):
        now_s[0] += 0.1
        serve(trip)
    assert len(gateway.jobs) == 5
    assert gateway.calls.count("submit") - 5 < 12
    gateway.jobs_most = 20
    for _ in range(30):
        now_s[0] += ALONE_FIRST_S
        serve(trip)
    assert len(gateway.jobs) == 20


def test_runs_of_a_closed_queue_are_read_once_and_of_one_on_trial_the_first(
    trip: Trip, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, now_s = serve_choosy(trip, jobs_most=0)
    read: list[str] = []
    planned_runs = trip.store.planned_runs

    def watched(*arguments: Any, **more: Any) -> Sequence[PlannedRun]:
        found = planned_runs(*arguments, **more)
        read.extend(run.plan.collection.uid for run in found)
        return found

    monkeypatch.setattr(trip.store, "planned_runs", watched)
    serve(trip)
    for _ in range(3):  # those that stood in a batch with the refused one are read once more
        read.clear()
        serve(trip)
    assert read == []
    now_s[0] += ALONE_FIRST_S
    serve(trip)
    assert len(read) == 1
    gateway.jobs_most = 20
    now_s[0] += ALONE_LONGEST_S
    while serve(trip):
        pass
    assert len(gateway.jobs) == 20
