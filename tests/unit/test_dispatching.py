"""From a message to a job, exactly once, whatever the answers are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from orchestrator import dispatching, planning
from orchestrator.dispatching import cancel
from orchestrator.errors import GatewayUnavailable, RunDirectoryUnavailable
from orchestrator.listening.door import Accepted, Rejected
from orchestrator.planning import Planning
from orchestrator.provenance import MessageState, PlannedRun, Store
from orchestrator.records import CollectionStart, JobReport, RunState, RunTag
from orchestrator.settings import Settings
from orchestrator.slurm.memory import Meets
from orchestrator.submitting import submitter
from tests.unit.trip import Trip


def test_a_message_becomes_one_job_with_everything_in_the_runs_directory(trip: Trip) -> None:
    trip.submitted()
    run, directory = trip.run(), trip.directory()
    assert run.summary.state is RunState.PENDING
    (job,) = trip.gateway.jobs
    assert (job.name, job.comment) == (run.attempts[0].tag.job_name, run.attempts[0].tag.comment)
    assert directory.script.read_text() == run.attempts[0].script_text
    assert directory.template.read_text() == run.attempts[0].template_text
    assert run.message is not None
    assert directory.message.read_bytes() == run.message.raw.body
    assert json.loads(directory.parameters.read_text()) == run.plan.parameter_values()
    assert trip.attempt().path.is_dir()


def test_the_same_message_again_makes_no_second_run(trip: Trip) -> None:
    trip.submitted()
    assert trip.start() == Accepted(duplicate=True)
    trip.dispatcher.plan_waiting()
    assert trip.dispatcher.submit_planned() == 0
    assert len(trip.gateway.jobs) == 1


def test_another_start_under_a_known_uid_is_rejected(trip: Trip) -> None:
    trip.submitted()
    verdict = trip.start(detector="another")
    assert isinstance(verdict, Rejected)
    assert "uid" in verdict.reason


def test_what_cannot_be_understood_is_recorded_and_rejected(trip: Trip) -> None:
    verdict = trip.receive(b"{")
    assert isinstance(verdict, Rejected)
    (record,) = trip.store.messages(state=MessageState.REJECTED)
    assert record.rejection == verdict.reason


def test_an_answer_that_was_lost_after_acceptance_is_adopted(trip: Trip) -> None:
    trip.gateway.upcoming.append(Meets.LOST_REPLY)
    trip.start()
    trip.dispatcher.plan_waiting()
    assert trip.dispatcher.submit_planned() == 0
    assert trip.run().summary.state is RunState.SUBMITTING
    assert trip.dispatcher.settle() == 0
    assert trip.dispatcher.submit_planned() == 0
    (job,) = trip.gateway.jobs
    assert trip.run().summary.job == job.identity
    assert trip.run().attempts[0].adopted


def test_a_lost_request_is_sent_again_only_once_its_absence_is_proven(trip: Trip) -> None:
    trip.gateway.upcoming.append(Meets.LOST_REQUEST)
    trip.start()
    trip.dispatcher.plan_waiting()
    trip.dispatcher.submit_planned()
    assert trip.dispatcher.settle() == 1
    assert trip.dispatcher.submit_planned() == 0
    trip.clock.ahead = timedelta(seconds=89)
    assert trip.dispatcher.settle() == 1
    trip.clock.ahead = timedelta(seconds=91)
    assert trip.dispatcher.settle() == 0
    assert trip.dispatcher.submit_planned() == 1
    assert len(trip.gateway.jobs) == 1
    assert len(trip.run().attempts) == 1


def test_a_job_accepted_after_its_absence_seemed_proven_carries_the_same_attempt(trip: Trip) -> None:
    trip.gateway.upcoming.append(Meets.LATE_ACCEPTANCE)
    trip.start()
    trip.dispatcher.plan_waiting()
    trip.dispatcher.submit_planned()
    trip.clock.ahead = timedelta(seconds=91)
    trip.dispatcher.settle()
    trip.dispatcher.submit_planned()
    trip.gateway.accept_late()
    first, second = trip.gateway.jobs
    assert first.name == second.name  # the fence in the run's directory lets one of them work


def test_of_two_jobs_found_for_one_attempt_the_first_stays(trip: Trip) -> None:
    trip.gateway.upcoming.extend([Meets.LATE_ACCEPTANCE, Meets.LOST_REPLY])
    trip.start()
    trip.dispatcher.plan_waiting()
    trip.dispatcher.submit_planned()
    trip.clock.ahead = timedelta(seconds=91)
    trip.dispatcher.settle()
    trip.dispatcher.submit_planned()
    trip.gateway.accept_late()
    assert trip.dispatcher.settle() == 0
    first, second = trip.gateway.jobs
    assert trip.run().summary.job == first.identity
    assert (first.state.ended, second.state.ended) == (False, True)


def test_while_slurm_is_down_runs_wait_under_the_same_number_and_keep_their_order(trip: Trip) -> None:
    for uid in ("a", "b", "c"):
        trip.start(uid)
    trip.dispatcher.plan_waiting()
    trip.gateway.controller_up = False
    for _ in range(3):
        with pytest.raises(GatewayUnavailable):
            trip.dispatcher.submit_planned()
    assert trip.run("a").summary.state is RunState.PLANNED
    assert "controller" in trip.run("a").summary.reason
    trip.gateway.controller_up = True
    trip.clock.ahead = timedelta(seconds=1)
    assert trip.dispatcher.submit_planned() == 3
    names = [job.name for job in trip.gateway.jobs]
    assert names == [f"run-{trip.run(uid).summary.run_id}.1" for uid in ("a", "b", "c")]


def test_a_refused_submission_ends_its_run_and_lets_the_others_go_on(trip: Trip) -> None:
    trip.gateway.upcoming.append(Meets.REFUSAL)
    trip.start("refused")
    trip.start("good")
    trip.dispatcher.plan_waiting()
    assert trip.dispatcher.submit_planned() == 1
    assert trip.run("refused").summary.state is RunState.REFUSED
    assert "partition" in trip.run("refused").summary.reason
    assert trip.run("good").summary.state is RunState.PENDING


def test_a_directory_that_cannot_be_written_holds_up_its_own_run_only(trip: Trip) -> None:
    trip.start("blocked")
    trip.start("good")
    trip.dispatcher.plan_waiting()
    blocked = trip.directory("blocked").path
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where the directory belongs")
    with pytest.raises(RunDirectoryUnavailable):
        trip.dispatcher.submit_planned()
    assert trip.run("good").summary.state is RunState.PENDING
    assert trip.run("blocked").summary.state is RunState.PLANNED
    assert str(blocked) in trip.run("blocked").summary.reason
    blocked.unlink()
    assert trip.dispatcher.submit_planned() == 1


def test_a_run_cancelled_before_it_has_a_job_gets_none(trip: Trip) -> None:
    trip.start()
    trip.dispatcher.plan_waiting()
    assert cancel(trip.store, trip.gateway, trip.run().summary.run_id, by="ann") is RunState.CANCELLED
    assert trip.dispatcher.submit_planned() == 0
    assert not trip.gateway.jobs
    assert trip.run().summary.reason == "cancelled by ann before it had a job"


def test_a_job_that_turns_up_after_its_run_was_cancelled_is_ended(trip: Trip) -> None:
    trip.gateway.upcoming.append(Meets.LOST_REPLY)
    trip.start()
    trip.dispatcher.plan_waiting()
    trip.dispatcher.submit_planned()
    cancel(trip.store, trip.gateway, trip.run().summary.run_id, by="ann")
    trip.dispatcher.settle()
    (job,) = trip.gateway.jobs
    assert job.state.ended
    assert trip.run().summary.state is RunState.CANCELLED


def test_a_file_outside_the_allowed_roots_makes_no_run(trip: Trip) -> None:
    (trip.folder / "link").symlink_to("/etc")
    trip.start(file="link/passwd")
    assert trip.dispatcher.plan_waiting() == 0
    (record,) = trip.store.messages()
    assert "leads to /etc/passwd" in record.note


def showing(planned: Sequence[PlannedRun]) -> Callable[..., Sequence[PlannedRun]]:
    """Return what stands for the store's planned runs as they were."""
    return lambda _limit, *, after=None, **_more: [] if after else planned


def test_a_run_that_another_process_has_submitted_is_not_refused_by_this_one(
    trip: Trip, monkeypatch: pytest.MonkeyPatch
) -> None:
    trip.start()
    trip.dispatcher.plan_waiting()
    seen_before = trip.store.planned_runs()
    trip.dispatcher.submit_planned()
    monkeypatch.setattr(trip.store, "planned_runs", showing(seen_before))
    other = replace(trip.dispatcher, settings=trip.settings.model_copy(update={"templates": trip.folder}))
    assert other.submit_planned() == 0
    assert trip.run().summary.state is RunState.PENDING


def test_only_who_has_the_intent_writes_the_runs_directory(trip: Trip, monkeypatch: pytest.MonkeyPatch) -> None:
    trip.start()
    trip.dispatcher.plan_waiting()
    seen_before = trip.store.planned_runs()
    trip.dispatcher.submit_planned()
    templates = trip.folder / "templates"
    shutil.copytree(trip.settings.templates, templates)
    with (templates / "azimuthal.sbatch.j2").open("a") as stream:
        stream.write("# another release\n")
    monkeypatch.setattr(trip.store, "planned_runs", showing(seen_before))
    other = replace(trip.dispatcher, settings=trip.settings.model_copy(update={"templates": templates}))
    assert other.submit_planned() == 0
    assert trip.directory().script.read_text() == trip.run().attempts[0].script_text


def test_an_attempt_that_cannot_be_settled_holds_up_no_other(trip: Trip) -> None:
    trip.gateway.upcoming.extend([Meets.LOST_REQUEST])
    trip.start("lost")
    trip.dispatcher.plan_waiting()
    trip.dispatcher.submit_planned()
    trip.gateway.upcoming.extend([Meets.LOST_REPLY])
    trip.start("there")
    trip.dispatcher.plan_waiting()
    trip.dispatcher.submit_planned()
    found = trip.gateway.find

    def without_accounting(tag: RunTag, *, since: datetime) -> tuple[JobReport, ...]:
        reports = found(tag, since=since)
        if not reports:
            raise GatewayUnavailable("accounting can't be asked")
        return reports

    trip.gateway.find = without_accounting  # type: ignore[method-assign]
    with pytest.raises(GatewayUnavailable):
        trip.dispatcher.settle()
    assert trip.run("there").summary.job is not None


def test_a_closed_partition_holds_up_its_own_runs_only(trip: Trip, monkeypatch: pytest.MonkeyPatch) -> None:
    for uid in ("closed-1", "closed-2", "open"):
        trip.start(uid)
    trip.dispatcher.plan_waiting()
    planned = {run.plan.collection.uid: run for run in trip.store.planned_runs()}
    elsewhere = planned["open"]
    resources = replace(elsewhere.plan.resources, partition="other")
    planned["open"] = replace(elsewhere, plan=replace(elsewhere.plan, resources=resources))
    trip.gateway.upcoming.append(Meets.UNAVAILABLE)
    monkeypatch.setattr(trip.store, "planned_runs", showing(list(planned.values())))
    with pytest.raises(GatewayUnavailable):
        trip.dispatcher.submit_planned()
    states = {uid: trip.run(uid).summary.state for uid in planned}
    assert states == {"closed-1": RunState.PLANNED, "closed-2": RunState.PLANNED, "open": RunState.PENDING}


def test_after_a_lost_answer_slurm_is_asked_before_anything_else_is_sent(trip: Trip) -> None:
    for uid in ("a", "b"):
        trip.start(uid)
    trip.dispatcher.plan_waiting()
    trip.gateway.upcoming.append(Meets.LOST_REPLY)
    trip.dispatcher.submit_planned()
    assert trip.gateway.calls.count("submit") == 1
    assert trip.dispatcher.settle() == 0
    assert trip.dispatcher.submit_planned() == 1


def test_what_was_said_instead_of_an_answer_stands_in_the_record_once(trip: Trip) -> None:
    trip.start()
    trip.dispatcher.plan_waiting()
    for _ in range(3):
        trip.gateway.upcoming.append(Meets.LOST_REQUEST)
        trip.dispatcher.submit_planned()
        assert trip.run().summary.reason.startswith("the socket timed out")
        trip.clock.ahead += timedelta(seconds=91)
        trip.dispatcher.settle()
        assert "the socket timed out" in trip.run().summary.reason
    assert [event.kind for event in trip.run().events].count("not-submitted") == 1


def test_of_two_jobs_found_the_one_that_has_claimed_the_attempt_stays(trip: Trip) -> None:
    trip.gateway.upcoming.extend([Meets.LATE_ACCEPTANCE, Meets.LOST_REPLY])
    trip.start()
    trip.dispatcher.plan_waiting()
    trip.dispatcher.submit_planned()
    trip.clock.ahead = timedelta(seconds=91)
    trip.dispatcher.settle()
    trip.dispatcher.submit_planned()
    trip.gateway.accept_late()
    first, second = trip.gateway.jobs
    trip.attempt().claim.write_text(json.dumps({"cluster": "memory", "job_id": str(second.identity.job_id)}))
    trip.dispatcher.settle()
    first, second = trip.gateway.jobs
    assert trip.run().summary.job == second.identity
    assert (first.state.ended, second.state.ended) == (True, False)


def test_a_needless_job_that_cannot_be_ended_now_is_ended_later(trip: Trip, monkeypatch: pytest.MonkeyPatch) -> None:
    trip.gateway.upcoming.append(Meets.LOST_REPLY)
    trip.start()
    trip.dispatcher.plan_waiting()
    trip.dispatcher.submit_planned()
    cancel(trip.store, trip.gateway, trip.run().summary.run_id, by="ann")

    def unavailable(_job: object) -> None:
        raise GatewayUnavailable("the controller went away")

    with monkeypatch.context() as patch:
        patch.setattr(trip.gateway, "cancel", unavailable)
        with pytest.raises(GatewayUnavailable):
            trip.dispatcher.settle()
    trip.dispatcher.settle()
    assert all(job.state.ended for job in trip.gateway.jobs)


def test_a_job_made_while_its_run_is_being_cancelled_is_ended(trip: Trip, monkeypatch: pytest.MonkeyPatch) -> None:
    trip.start()
    trip.dispatcher.plan_waiting()
    record_event = trip.store.record_event

    def meanwhile(*arguments: Any, **more: Any) -> bool:
        trip.dispatcher.submit_planned()
        return record_event(*arguments, **more)

    monkeypatch.setattr(trip.store, "record_event", meanwhile)
    cancel(trip.store, trip.gateway, trip.run().summary.run_id, by="ann")
    (job,) = trip.gateway.jobs
    assert job.state.ended


def test_a_fault_in_one_message_holds_up_no_other(trip: Trip, monkeypatch: pytest.MonkeyPatch) -> None:
    def plan(start: CollectionStart, settings: Settings) -> Planning:
        if start.uid == "bad":
            raise ZeroDivisionError
        return planning.plan(start, settings)

    monkeypatch.setattr(dispatching, "plan", plan)
    trip.start("bad")
    trip.start("good")
    with pytest.raises(ZeroDivisionError):
        trip.dispatcher.plan_waiting()
    assert trip.run("good").summary.state is RunState.PLANNED


def test_two_services_on_one_database_double_nothing(trip: Trip) -> None:
    uids = [f"c{number}" for number in range(12)]
    for uid in uids:
        trip.start(uid)

    def serve(_: int) -> None:
        with Store.open(trip.settings.database) as store:
            dispatcher = replace(trip.dispatcher, store=store)
            for _round in range(2):
                dispatcher.plan_waiting()
                dispatcher.settle()
                dispatcher.submit_planned()

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(serve, range(3)))
    assert len(trip.gateway.jobs) == len(uids)
    jobs = {job.name: job.identity for job in trip.gateway.jobs}
    for uid in uids:
        run = trip.run(uid)
        assert run.summary.state is RunState.PENDING
        assert run.summary.job == jobs[run.attempts[0].tag.job_name]
        assert trip.directory(uid).script.read_text() == run.attempts[0].script_text


def test_more_runs_than_one_round_takes_cannot_hide_those_behind_them(
    trip: Trip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submitter, "ROUND", 2)
    for uid in ("blocked-1", "blocked-2", "blocked-3", "good-1", "good-2", "good-3"):
        trip.start(uid)
    trip.dispatcher.plan_waiting()
    for number in (1, 2, 3):
        path = trip.directory(f"blocked-{number}").path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a file where the directory belongs")
    for _ in range(2):
        with pytest.raises(RunDirectoryUnavailable):
            trip.dispatcher.submit_planned()
    assert [trip.run(f"good-{number}").summary.state for number in (1, 2, 3)] == [RunState.PENDING] * 3
