"""Jobs followed to their end: truthful, and unknown rather than wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from orchestrator.errors import GatewayUnavailable
from orchestrator.following import LAST_WORD_PATIENCE, LATE_PATIENCE, USAGE_INTERVAL
from orchestrator.provenance import InputMoment
from orchestrator.records import Evidence, JobIdentity, JobReport, Origin, RunState
from orchestrator.slurm.memory import Meets
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
    assert concluded(trip) is RunState.FAILED


@pytest.mark.parametrize("words", ["TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "PREEMPTED"])
def test_slurms_own_words_stand_in_the_reason(trip: Trip, words: str) -> None:
    trip.gateway.set_state(trip.submitted(), words, exit_code=0)
    trip.follower.cycle()
    end = trip.run().attempts[0].end
    assert end is not None
    assert end.state is RunState.FAILED
    assert words in end.reason


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


def vanish(trip: Trip, job: JobIdentity) -> None:
    """Let SLURM forget a job, and the follower wait for longer than its patience."""
    trip.gateway.purge(job, accounting=True)
    trip.follower.cycle()
    trip.clock.ahead += timedelta(minutes=11)
    trip.follower.cycle()


def test_a_job_that_vanished_before_it_began_is_submitted_again_under_its_number(trip: Trip) -> None:
    first = trip.submitted()
    vanish(trip, first)
    run = trip.run()
    assert run.summary.state is RunState.PLANNED
    assert "it had not begun" in run.summary.reason
    assert [event.kind for event in run.events].count("vanished") == 1
    trip.dispatcher.submit_planned()
    run = trip.run()
    assert run.summary.state is RunState.PENDING
    assert run.summary.job not in {None, first}
    assert [attempt.tag.attempt for attempt in run.attempts] == [1]
    assert trip.follower.cycle() == 1  # the patience with the first job isn't held against the second


def test_a_cluster_that_forgets_every_job_is_not_asked_for_ever(trip: Trip) -> None:
    job: JobIdentity | None = trip.submitted()
    for _ in range(4):
        assert job is not None
        vanish(trip, job)
        trip.dispatcher.submit_planned()
        job = trip.run().summary.job
    run = trip.run()
    assert run.summary.state is RunState.UNKNOWN
    assert [event.kind for event in run.events].count("vanished") == 3


def test_a_job_that_vanished_after_it_had_claimed_its_attempt_is_unknown(trip: Trip) -> None:
    job = trip.submitted()
    trip.attempt().claim.write_text("half a cl")
    vanish(trip, job)
    assert trip.run().summary.state is RunState.UNKNOWN


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
    assert trip.follower.cycle() == 1
    assert trip.run("good").summary.state is RunState.COMPLETE
    trip.clock.ahead = LAST_WORD_PATIENCE + timedelta(seconds=1)
    assert trip.follower.cycle() == 0
    assert trip.run("bad").summary.state is RunState.FAILED
    assert "not a progress file" in caplog.text


def test_what_the_kernel_tells_about_itself_joins_the_record(trip: Trip) -> None:
    trip.submitted()
    (bins,) = trip.run().parameters
    trip.kernel_says(state="running", parameters={"bins": 7, "unit": "q_nm^-1", "mask": None}, software={"hdf5": "2.0"})
    for follower in (trip.follower, trip.new_follower()):
        follower.cycle()
    run = trip.run()
    assert run.parameters[0] == bins  # what was decided stays, with who decided it
    assert [(item.name, item.value, item.origin) for item in run.parameters[1:]] == [
        ("unit", "q_nm^-1", Origin.DEFAULT),
        ("mask", None, Origin.DEFAULT),
    ]
    assert run.attempts[0].software == {"loaded": {"hdf5": "2.0"}}


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


def concluded(trip: Trip) -> RunState:
    """Let the time pass that a job's last word may take, and conclude."""
    trip.follower.cycle()
    trip.clock.ahead += LAST_WORD_PATIENCE + timedelta(seconds=1)
    assert trip.follower.cycle() == 0
    return trip.run().summary.state


def test_the_last_word_of_an_orderly_job_is_waited_for_and_never_longer_than_a_minute(trip: Trip) -> None:
    job = trip.submitted()
    trip.kernel_says(state="running", processed=2)  # what an NFS client may still show
    trip.gateway.set_state(job, "COMPLETED", exit_code=0)
    assert trip.follower.cycle() == 1
    trip.clock.ahead = timedelta(seconds=50)
    assert trip.follower.cycle() == 1
    trip.kernel_says()
    assert trip.follower.cycle() == 0
    assert trip.run().summary.state is RunState.COMPLETE


def test_a_kernel_that_never_said_its_last_word_failed(trip: Trip) -> None:
    job = trip.submitted()
    trip.kernel_says(state="running", processed=2)
    trip.gateway.set_state(job, "COMPLETED", exit_code=0)
    assert concluded(trip) is RunState.FAILED


def test_what_comes_late_is_taken_in_after_the_verdict_also_by_the_next_service(trip: Trip) -> None:
    trip.site_says(retries={"most": 0})
    job = trip.submitted()
    trip.gateway.set_state(job, "TIMEOUT", exit_code=0)
    trip.follower.cycle()
    assert trip.run().summary.state is RunState.FAILED
    trip.job_ends(143)
    trip.kernel_says(state="running", processed=2, inputs={"open": {"path": "/x", "real_path": "/x"}})
    trip.new_follower().cycle()
    run = trip.run()
    assert [event.kind for event in run.events].count("end") == 1
    assert len(run.outputs) == 1
    assert run.inputs
    assert run.summary.counts is not None
    assert run.summary.counts.processed == 2


def test_usage_that_accounting_tells_late_is_taken_in_also_by_the_next_service(trip: Trip) -> None:
    job = trip.submitted()
    trip.kernel_says()
    trip.gateway.set_state(job, "COMPLETED", exit_code=0)
    trip.follower.cycle()
    accounted = trip.gateway.account

    def with_usage(jobs: Sequence[JobIdentity]) -> Mapping[JobIdentity, JobReport]:
        return {job: replace(report, usage={"cpu_s": 7.5}) for job, report in accounted(jobs).items()}

    trip.gateway.account = with_usage  # type: ignore[method-assign]
    follower = trip.new_follower()
    follower.cycle()
    report = trip.run().attempts[0].last_report
    assert report is not None
    assert report.usage == {"cpu_s": 7.5}
    asked = trip.gateway.calls.count("account")
    follower.cycle()
    assert trip.gateway.calls.count("account") == asked


def test_an_older_start_that_lives_on_changes_neither_the_end_nor_the_outputs_nor_the_progress(trip: Trip) -> None:
    job = trip.submitted()
    trip.job_begins()
    trip.gateway.requeue(job)
    trip.job_begins(restarts=1)
    trip.kernel_says(restarts=1)
    trip.job_ends(0, restarts=1, sha256="of the second start")
    trip.kernel_says(state="running", processed=1)  # the first start, on a node that was cut off
    trip.job_ends(143, sha256="of the first start")
    trip.gateway.purge(job, accounting=True)
    trip.follower.cycle()
    run = trip.run()
    assert run.summary.state is RunState.COMPLETE
    assert [output.sha256 for output in run.outputs] == ["of the second start"]
    assert [event.kind for event in run.events].count("end") == 2
    assert run.attempts[0].last_report is not None
    assert run.attempts[0].last_report.exit_code == 0


def test_the_end_of_a_start_before_the_newest_is_not_the_jobs_end(trip: Trip) -> None:
    job = trip.submitted()
    trip.job_begins()
    trip.job_ends(143)
    trip.job_begins(restarts=1)
    trip.gateway.purge(job, accounting=True)
    assert trip.follower.cycle() == 1
    assert not trip.run().summary.state.ended


def test_the_job_that_has_claimed_the_attempt_is_followed(trip: Trip) -> None:
    trip.gateway.upcoming.append(Meets.LATE_ACCEPTANCE)
    trip.start()
    trip.dispatcher.plan_waiting()
    trip.dispatcher.submit_planned()
    trip.clock.ahead = timedelta(seconds=91)
    trip.dispatcher.settle()
    trip.dispatcher.submit_planned()
    trip.gateway.accept_late()
    loser, owner = (job.identity for job in trip.gateway.jobs)
    assert trip.run().summary.job == loser
    trip.attempt().claim.write_text(json.dumps({"cluster": "memory", "job_id": str(owner.job_id)}))
    trip.gateway.set_state(owner, "RUNNING")
    trip.gateway.set_state(loser, "COMPLETED", exit_code=0)
    trip.kernel_says(state="running", processed=1)
    assert trip.follower.cycle() == 1
    assert trip.run().summary.job == owner
    trip.follower.cycle()
    assert trip.run().summary.state is RunState.RUNNING
    trip.kernel_says()
    trip.gateway.set_state(owner, "COMPLETED", exit_code=0)
    assert trip.follower.cycle() == 0
    assert trip.run().summary.state is RunState.COMPLETE


@pytest.mark.parametrize(
    "told",
    [
        {"inputs": {"open": {"no": "path"}}},
        {"inputs": {"never": {}}},
        {"inputs": []},
        {"expected": "many"},
        {"lag_max_s": "long"},
        {"processed": 10**30},
    ],
)
def test_whatever_stands_in_a_progress_file_costs_its_own_run_only(
    trip: Trip, told: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = trip.submitted("bad"), trip.submitted("good")
    trip.kernel_says("bad", **told)
    trip.kernel_says("good")
    for job in (bad, good):
        trip.gateway.set_state(job, "RUNNING")
    for _ in range(3):
        trip.follower.cycle()
    assert trip.run("good").summary.state is RunState.RUNNING
    assert trip.run("good").summary.counts is not None
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1  # said once, not in every cycle


def test_a_broken_line_among_the_events_is_kept_and_hides_nothing(trip: Trip) -> None:
    job = trip.submitted()
    with trip.attempt().events.open("a") as stream:
        stream.write('{"kind": "beg\n{"kind": "x", "at": "2026-11-22T00:00:00", "job": {}, "detail": {}}\n')
    trip.job_ends(0)
    trip.kernel_says()
    trip.gateway.set_state(job, "COMPLETED", exit_code=0)
    trip.follower.cycle()
    run = trip.run()
    assert run.summary.state is RunState.COMPLETE
    kinds = [event.kind for event in run.events if event.kind != "state"]
    assert kinds == ["unreadable", "unreadable", "end", "outputs"]


def test_the_follower_remembers_nothing_of_runs_that_are_over(trip: Trip) -> None:
    job = trip.submitted()
    trip.job_ends(0)
    trip.kernel_says(inputs={"open": {"path": "/x", "real_path": "/x"}})
    trip.gateway.set_state(job, "COMPLETED", exit_code=0)
    trip.follower.cycle()
    trip.clock.ahead = LATE_PATIENCE + timedelta(seconds=1)
    trip.follower.cycle()
    trip.follower.cycle()
    assert not trip.follower.remembered


def test_accounting_that_tells_no_usage_is_not_asked_in_every_cycle(trip: Trip) -> None:
    trip.gateway.set_state(trip.submitted(), "TIMEOUT", exit_code=0)
    for _ in range(5):
        trip.follower.cycle()
    assert trip.gateway.calls.count("account") == 1
    trip.clock.ahead = USAGE_INTERVAL
    trip.follower.cycle()
    assert trip.gateway.calls.count("account") == 2
