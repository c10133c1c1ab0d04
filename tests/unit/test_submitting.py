"""Planned runs become jobs: calls that come late, words that come late, faults, and jobs that nobody wants."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from orchestrator.dispatching import cancel
from orchestrator.errors import StoreUnavailable, SubmitRefused
from orchestrator.provenance import Outcome, PlannedRun, Store
from orchestrator.records import BatchScript, JobIdentity, JobPlan, RunState, SubmittedJob
from orchestrator.slurm.memory import Meets
from orchestrator.submitting import preparing
from tests.unit.trip import Trip


@pytest.fixture
def trip(tmp_path: Path) -> Trip:
    return Trip(tmp_path)


def test_a_call_that_would_come_long_after_its_intent_is_not_made(trip: Trip, monkeypatch: pytest.MonkeyPatch) -> None:
    write = preparing.write_directory

    def slowly(planned: PlannedRun, script: BatchScript, *, rerun: str) -> Sequence[Path]:
        trip.clock.ahead += timedelta(seconds=200)  # the machine was suspended, or the file system hung
        return write(planned, script, rerun=rerun)

    trip.start()
    trip.dispatcher.plan_waiting()
    with monkeypatch.context() as patch:
        patch.setattr(preparing, "write_directory", slowly)
        assert trip.dispatcher.submit_planned() == 0
    assert trip.run().summary.state is RunState.PLANNED
    assert trip.dispatcher.submit_planned() == 1
    assert len(trip.gateway.jobs) == 1


def test_late_word_of_a_directory_that_was_not_written_says_nothing_of_a_later_intent(
    trip: Trip, monkeypatch: pytest.MonkeyPatch
) -> None:
    trip.start()
    trip.dispatcher.plan_waiting()
    folder = trip.directory().path
    folder.parent.mkdir(parents=True)
    folder.write_text("a file where the directory belongs")

    def unavailable(_store: Store, _outcomes: Sequence[Outcome]) -> None:
        raise StoreUnavailable("the connection broke")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "record_outcomes", unavailable)
        with pytest.raises(StoreUnavailable):
            trip.dispatcher.submit_planned()
    folder.unlink()
    other = trip.new_dispatcher()
    other.settle()
    trip.clock.ahead = timedelta(seconds=91)
    other.settle()
    trip.gateway.upcoming.append(Meets.LATE_ACCEPTANCE)
    other.submit_planned()
    assert trip.run().summary.state is RunState.SUBMITTING
    trip.dispatcher.settle()
    assert trip.run().summary.state is RunState.SUBMITTING


def test_a_fault_in_one_run_holds_up_no_other(trip: Trip, monkeypatch: pytest.MonkeyPatch) -> None:
    render = preparing.render

    def faulty(plan: JobPlan, attempt: int, templates: Path) -> BatchScript:
        if plan.collection.uid == "bad":
            raise ZeroDivisionError
        return render(plan, attempt, templates)

    trip.start("bad")
    trip.start("good")
    trip.dispatcher.plan_waiting()
    monkeypatch.setattr(preparing, "render", faulty)
    with pytest.raises(ZeroDivisionError):
        trip.dispatcher.submit_planned()
    assert trip.run("good").summary.state is RunState.PENDING
    assert trip.run("bad").summary.state is RunState.PLANNED


def _cancelled_meanwhile(trip: Trip, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a run cancelled while SLURM takes its job."""
    submit = trip.gateway.submit

    def meanwhile(submission: object) -> SubmittedJob:
        job = submit(submission)  # type: ignore[arg-type]
        cancel(trip.store, trip.gateway, trip.run().summary.run_id, by="ann")
        return job

    monkeypatch.setattr(trip.gateway, "submit", meanwhile)


def test_a_needless_job_that_can_never_be_ended_holds_up_no_other_run(
    trip: Trip, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_job: JobIdentity) -> None:
        raise SubmitRefused("there is no token of ann")

    trip.start("c1")
    trip.dispatcher.plan_waiting()
    with monkeypatch.context() as patch:
        _cancelled_meanwhile(trip, patch)
        patch.setattr(trip.gateway, "cancel", refused)
        trip.dispatcher.submit_planned()
    monkeypatch.setattr(trip.gateway, "cancel", refused)
    trip.start("c2")
    trip.dispatcher.plan_waiting()
    trip.dispatcher.submit_planned()
    assert trip.run("c2").summary.state is RunState.PENDING


class Killed(BaseException):
    """As nothing catches kill -9."""


def test_a_needless_job_is_ended_after_a_restart_too(trip: Trip, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(_job: JobIdentity) -> None:
        raise Killed

    trip.start()
    trip.dispatcher.plan_waiting()
    with monkeypatch.context() as patch:
        _cancelled_meanwhile(trip, patch)
        patch.setattr(trip.gateway, "cancel", killed)
        with pytest.raises(Killed):
            trip.dispatcher.submit_planned()
    trip.dispatcher = trip.new_dispatcher()
    trip.dispatcher.settle()
    trip.dispatcher.submit_planned()
    assert all(job.state.ended for job in trip.gateway.jobs)
