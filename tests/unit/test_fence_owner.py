"""A run whose attempt another job has claimed than the one that is followed, and of which SLURM can't tell."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest

from orchestrator.errors import GatewayUnavailable
from orchestrator.records import RunState
from tests.unit.trip import Trip


@pytest.fixture
def trip(tmp_path: Path) -> Trip:
    """Return a trip whose job has left at its fence, with exit code 0, because job 77 has the attempt."""
    trip = Trip(tmp_path)
    job = trip.submitted()
    trip.attempt().claim.write_text(json.dumps({"cluster": "memory", "job_id": "77"}))
    trip.kernel_says(state="running", processed=1)
    trip.gateway.set_state(job, "RUNNING")
    trip.gateway.set_state(job, "COMPLETED", exit_code=0)
    return trip


def test_the_end_of_the_job_that_left_at_the_fence_is_not_the_runs(trip: Trip) -> None:
    for minutes in (0, 2, 9):
        trip.clock.ahead = timedelta(minutes=minutes)
        trip.follower.cycle()
        assert not trip.run().summary.state.ended


@pytest.mark.parametrize(("exit_code", "state"), [(0, RunState.COMPLETE), (1, RunState.FAILED)])
def test_what_the_job_that_has_the_attempt_said_of_its_end_is_believed(
    trip: Trip, exit_code: int, state: RunState
) -> None:
    trip.follower.cycle()
    trip.kernel_says()
    trip.job_ends(exit_code)
    trip.follower.cycle()
    assert trip.run().summary.state is state


def test_a_run_about_which_accounting_has_to_be_asked_holds_up_no_other(trip: Trip) -> None:
    job = trip.submitted("c2")
    trip.kernel_says("c2")
    trip.gateway.set_state(job, "RUNNING")
    trip.gateway.set_state(job, "COMPLETED", exit_code=0)
    trip.gateway.accounting_up = False
    with pytest.raises(GatewayUnavailable):
        trip.follower.cycle()
    assert trip.run("c2").summary.state is RunState.COMPLETE
    assert not trip.run("c1").summary.state.ended


def test_a_job_that_has_the_attempt_and_never_says_a_word_makes_the_run_unknown(trip: Trip) -> None:
    trip.follower.cycle()
    trip.clock.ahead = timedelta(minutes=11)
    trip.follower.cycle()
    assert trip.run().summary.state is RunState.UNKNOWN
    assert "job 77" in trip.run().summary.reason
