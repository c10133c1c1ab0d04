"""The service killed before or after any call of the store or of SLURM: the next start is always right."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeAlias

import pytest

from orchestrator.records import JobState, RunState
from tests.unit.trip import Trip

INPUTS = {"open": {"path": "/x", "real_path": "/x"}}


class Killed(BaseException):
    """Not an `Exception`: nothing may catch it, as nothing catches kill -9."""


class Mortal:
    """Passes calls on, and dies at one of them."""

    def __init__(self, target: object, countdown: list[int], *, after: bool) -> None:
        self._target, self._countdown, self._after = target, countdown, after

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if not callable(value) or name.startswith("_"):
            return value

        def call(*arguments: Any, **more: Any) -> Any:
            self._countdown[0] -= 1
            dies = self._countdown[0] == 0
            if dies and not self._after:
                raise Killed
            answer = value(*arguments, **more)
            if dies:
                raise Killed
            return answer

        return call


def service_steps(trip: Trip) -> None:
    """Take each step of both loops once."""
    trip.dispatcher.plan_waiting()
    trip.dispatcher.settle()
    trip.dispatcher.submit_planned()
    trip.follower.cycle()


def cluster_steps(trip: Trip) -> None:
    """Let each job go one state further; the first to begin claims the attempt, others leave at the fence."""
    uids = {f"run-{run.run_id}.1": run.collection_uid for run in trip.store.runs()}
    for job in trip.gateway.jobs:
        uid = uids[job.name]
        claim = trip.attempt(uid).claim
        if job.state is JobState.PENDING:
            trip.gateway.set_state(job.identity, "RUNNING")
            if not claim.exists():
                claim.write_text(json.dumps({"job_id": str(job.identity.job_id)}))
                trip.job_begins(uid)
                trip.kernel_says(uid, state="running", processed=1, inputs=INPUTS)
        elif job.state is JobState.RUNNING:
            if json.loads(claim.read_text())["job_id"] == str(job.identity.job_id):
                trip.kernel_says(uid, inputs=INPUTS)
                trip.job_ends(0, uid)
            trip.gateway.set_state(job.identity, "COMPLETED", exit_code=0)


def to_slurm(trip: Trip, uids: Sequence[str]) -> None:
    for uid in uids:
        trip.start(uid)
    service_steps(trip)


def whole_trip(trip: Trip, uids: Sequence[str]) -> None:
    for uid in uids:
        trip.start(uid)
    for _ in range(2):
        service_steps(trip)
        cluster_steps(trip)
    service_steps(trip)


Going: TypeAlias = Callable[[Trip, Sequence[str]], None]


def dies_at(trip: Trip, go: Going, uids: Sequence[str], call: int, *, after: bool) -> bool:
    """Go on a trip with a service that is killed at a call; return whether it lived to the end."""
    countdown = [call]
    store = Mortal(trip.store, countdown, after=after)
    gateway = Mortal(trip.gateway, countdown, after=after)
    trip.dispatcher = replace(trip.dispatcher, store=store, gateway=gateway)  # type: ignore[arg-type]
    trip.follower = replace(trip.follower, store=store, gateway=gateway)  # type: ignore[arg-type]
    try:
        go(trip, uids)
    except Killed:
        return False
    finally:
        trip.dispatcher, trip.follower = trip.new_dispatcher(), trip.new_follower()
    return True


@pytest.mark.parametrize(
    ("go", "uids", "calls_least"),
    [(whole_trip, ["c1"], 20), (to_slurm, ["c1", "c2", "c3"], 10)],
    ids=["one message to its end", "several to SLURM"],
)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_service_killed_at_any_call_loses_and_doubles_nothing(
    new_trip: Callable[[int], Trip], go: Going, uids: Sequence[str], calls_least: int, *, after: bool
) -> None:
    for call in range(1, 200):
        trip = new_trip(call)
        if dies_at(trip, go, uids, call, after=after):
            assert call > calls_least  # every call of a whole trip was tried
            trip.store.close()
            return
        service_steps(trip)
        trip.clock.ahead = timedelta(seconds=91)  # by then, what was under way is over
        whole_trip(trip, uids)
        assert len(trip.gateway.jobs) == len(uids), call
        for uid in uids:
            assert_complete(trip, uid, call)
        assert not trip.store.unsettled_attempts()
        trip.store.close()
    pytest.fail("the trip never ended")


def assert_complete(trip: Trip, uid: str, call: int) -> None:
    """Assert that a collection's run has one job and all that this job told."""
    run = trip.run(uid)
    assert run.summary.state is RunState.COMPLETE, (call, run.summary.reason)
    assert run.summary.job in {job.identity for job in trip.gateway.jobs if job.name == run.attempts[0].tag.job_name}
    assert [event.kind for event in run.events if event.kind in {"begin", "end"}] == ["begin", "end"]
    assert (len(run.attempts), len(run.inputs), len(run.outputs)) == (1, 1, 1), call
    assert run.attempts[0].software == {"python": "3"}
