"""The service killed before or after any call of the store or of SLURM: the next start is always right."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.provenance import Store
from orchestrator.records import JobState, RunState
from tests.unit.trip import Trip


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
    for job in trip.gateway.jobs:
        if job.state is JobState.PENDING:
            trip.gateway.set_state(job.identity, "RUNNING")
            if not trip.attempt().claim.exists():
                trip.attempt().claim.write_text(json.dumps({"job_id": str(job.identity.job_id)}))
                trip.job_begins()
                trip.kernel_says(state="running", processed=1, inputs={"open": {"path": "/x", "real_path": "/x"}})
        elif job.state is JobState.RUNNING:
            if json.loads(trip.attempt().claim.read_text())["job_id"] == str(job.identity.job_id):
                trip.kernel_says(inputs={"open": {"path": "/x", "real_path": "/x"}})
                trip.job_ends(0)
            trip.gateway.set_state(job.identity, "COMPLETED", exit_code=0)


def whole_trip(trip: Trip) -> None:
    trip.start()
    for _ in range(2):
        service_steps(trip)
        cluster_steps(trip)
    service_steps(trip)


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "store.sqlite"
    Store.open(f"sqlite:///{path}").close()
    return path


@pytest.fixture
def new_trip(tmp_path: Path, empty_store: Path) -> Callable[[int], Trip]:
    def make(number: int) -> Trip:
        folder = tmp_path / str(number)
        folder.mkdir()
        shutil.copy(empty_store, folder / "store.sqlite")
        return Trip(folder)

    return make


def dies_at(trip: Trip, call: int, *, after: bool) -> bool:
    """Go through a trip with a service that is killed at a call; return whether it lived to the end."""
    countdown = [call]
    store = Mortal(trip.store, countdown, after=after)
    gateway = Mortal(trip.gateway, countdown, after=after)
    dispatcher, follower = trip.dispatcher, trip.follower
    trip.dispatcher = replace(dispatcher, store=store, gateway=gateway)  # type: ignore[arg-type]
    trip.follower = replace(follower, store=store, gateway=gateway)  # type: ignore[arg-type]
    try:
        whole_trip(trip)
    except Killed:
        return False
    finally:
        trip.dispatcher, trip.follower = dispatcher, trip.new_follower()
    return True


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_service_killed_at_any_call_loses_and_doubles_nothing(
    new_trip: Callable[[int], Trip], *, after: bool
) -> None:
    for call in range(1, 200):
        trip = new_trip(call)
        if dies_at(trip, call, after=after):
            assert call > 20  # every call of a whole trip was tried
            trip.store.close()
            return
        trip.clock.ahead = timedelta(seconds=91)  # by then, what was under way is over
        whole_trip(trip)
        run = trip.run()
        assert run.summary.state is RunState.COMPLETE, (call, run.summary.reason)
        assert len(trip.gateway.jobs) == 1, call
        assert run.summary.job == trip.gateway.jobs[0].identity
        assert [event.kind for event in run.events if event.kind in {"begin", "end"}] == ["begin", "end"]
        assert (len(run.attempts), len(run.inputs), len(run.outputs)) == (1, 1, 1), call
        assert run.attempts[0].software == {"python": "3"}
        assert not trip.store.unsettled_attempts()
        trip.store.close()
    pytest.fail("the trip never ended")
