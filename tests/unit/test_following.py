"""Jobs followed to their end: truthful, and unknown rather than wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import event

from orchestrator.errors import GatewayUnavailable
from orchestrator.following import LAST_WORD_PATIENCE, LATE_PATIENCE, USAGE_INTERVAL
from orchestrator.following.files import WAITING_EVERY
from orchestrator.following.roster import LISTED_EVERY
from orchestrator.provenance import InputMoment
from orchestrator.records import Evidence, JobIdentity, JobReport, Origin, RunState
from orchestrator.slurm.memory import Meets, MemoryGateway
from orchestrator.slurm.parsing import is_same_job
from tests.unit.trip import Clock, Trip


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


def test_what_was_read_and_the_files_that_parameters_name_are_kept(trip: Trip) -> None:
    trip.submitted()
    identity = {"path": "/x.h5", "real_path": "/x.h5"}
    seal = {"state": "sealed", "algorithm": "sha256(xxh3-128)", "digest": "d" * 64, "frames": 200}
    mask = {"parameter": "mask", "path": "/m.npy", "sha256": "e" * 64}
    trip.kernel_says(inputs={"open": identity, "end": None, "seal": {"state": "pending"}}, files=[mask])
    trip.follower.cycle()
    trip.clock.ahead += WAITING_EVERY
    trip.kernel_says(inputs={"open": identity, "end": identity, "seal": seal}, files=[mask])
    trip.follower.cycle()
    opened, ended = trip.run().inputs
    assert (opened.seal, ended.seal) == (None, seal)
    assert opened.files == ended.files == (mask,)


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


def twice_submitted(trip: Trip) -> None:
    """Let a submission make its job after it was taken for lost and repeated."""
    trip.gateway.upcoming.append(Meets.LATE_ACCEPTANCE)
    trip.start()
    trip.dispatcher.plan_waiting()
    trip.dispatcher.submit_planned()
    trip.clock.ahead = timedelta(seconds=91)
    trip.dispatcher.settle()
    trip.dispatcher.submit_planned()
    trip.gateway.accept_late()


def test_the_job_that_has_claimed_the_attempt_is_followed(trip: Trip) -> None:
    twice_submitted(trip)
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


def test_the_job_that_has_claimed_the_attempt_is_looked_for_before_the_run_is_given_up(trip: Trip) -> None:
    twice_submitted(trip)
    forgotten, owner = (job.identity for job in trip.gateway.jobs)
    trip.attempt().claim.write_text(json.dumps({"cluster": "memory", "job_id": str(owner.job_id)}))
    trip.gateway.set_state(owner, "RUNNING")
    vanish(trip, forgotten)
    assert (trip.run().summary.state.ended, trip.run().summary.job) == (False, owner)
    trip.follower.cycle()
    assert trip.run().summary.state is RunState.RUNNING


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


# ------------------------------------------------------------------------------------- jobs that don't go on


def test_a_hopeless_wait_stands_in_the_reason_until_it_is_over(trip: Trip, caplog: pytest.LogCaptureFixture) -> None:
    job = trip.submitted()
    trip.gateway.set_state(job, "PENDING", reason="Priority")
    trip.follower.cycle()
    assert trip.run().summary.reason == ""
    trip.gateway.set_state(job, "PENDING", reason="PartitionTimeLimit")
    for _ in range(3):
        trip.follower.cycle()
    run = trip.run()
    assert run.summary.state is RunState.PENDING
    assert "for ever: it asks for more time than its partition allows (PartitionTimeLimit)" in run.summary.reason
    assert [event.kind for event in run.events].count("hindrance") == 1
    assert len([record for record in caplog.records if "for ever" in record.message]) == 1
    trip.gateway.set_state(job, "RUNNING")
    trip.new_follower().cycle()  # also by a service that wasn't there when it began
    assert trip.run().summary.reason == ""


def test_a_wait_that_is_over_leaves_the_reason_also_when_the_service_ended_just_then(trip: Trip) -> None:
    job = trip.submitted()
    trip.gateway.set_state(job, "PENDING", reason="PartitionTimeLimit")
    trip.follower.cycle()
    trip.gateway.set_state(job, "RUNNING")
    (report,) = trip.gateway.poll([job]).values()
    trip.store.record_report(trip.run().attempts[0].tag, report)  # and nothing more of that cycle
    assert trip.run().summary.reason
    trip.new_follower().cycle()
    assert trip.run().summary.reason == ""


def test_a_word_that_nobody_knows_is_said_and_keeps_its_run_open_alone(
    trip: Trip, caplog: pytest.LogCaptureFixture
) -> None:
    odd, other = trip.submitted("odd"), trip.submitted("other")
    trip.gateway.set_state(odd, "HIBERNATING")
    trip.gateway.set_state(other, "FAILED", exit_code=1)
    for _ in range(3):
        trip.follower.cycle()
    assert "'HIBERNATING', which this program doesn't know" in trip.run("odd").summary.reason
    assert not trip.run("odd").summary.state.ended
    assert trip.run("other").summary.state is RunState.FAILED
    assert len([record for record in caplog.records if "HIBERNATING" in record.message]) == 1


def test_a_suspended_job_says_so_until_it_goes_on(trip: Trip) -> None:
    job = trip.submitted()
    trip.gateway.set_state(job, "SUSPENDED")
    trip.follower.cycle()
    assert trip.run().summary.state is RunState.RUNNING
    assert "suspended" in trip.run().summary.reason
    trip.gateway.set_state(job, "RUNNING")
    trip.follower.cycle()
    assert trip.run().summary.reason == ""


def test_a_forgotten_job_says_that_accounting_cannot_be_asked(trip: Trip) -> None:
    job = trip.submitted()
    trip.kernel_says()
    trip.gateway.set_state(job, "COMPLETED", exit_code=0)
    trip.gateway.purge(job)
    trip.gateway.accounting_up = False
    trip.follower.cycle()
    assert "accounting can't be asked" in trip.run().summary.reason
    trip.gateway.accounting_up = True
    trip.follower.cycle()
    assert trip.run().summary.state is RunState.COMPLETE


# ----------------------------------------------------------------------------------- what only accounting knows


def with_accounting_of(trip: Trip, **told: object) -> None:
    """Let accounting tell more than the SLURM in memory does."""
    accounted = trip.gateway.account

    def telling(jobs: Sequence[JobIdentity]) -> Mapping[JobIdentity, JobReport]:
        return {job: replace(report, **told) for job, report in accounted(jobs).items()}  # type: ignore[arg-type]

    trip.gateway.account = telling  # type: ignore[method-assign]


def test_usage_is_asked_for_again_for_a_day_while_accounting_is_down_but_not_often(trip: Trip) -> None:
    trip.gateway.set_state(trip.submitted(), "TIMEOUT", exit_code=0)
    trip.gateway.accounting_up = False
    with_accounting_of(trip, usage={"cpu_s": 7.5})
    for minute in range(120):
        trip.clock.ahead = timedelta(minutes=minute)
        trip.follower.cycle()
    assert 10 < trip.gateway.calls.count("account") < 40
    trip.gateway.accounting_up = True
    trip.clock.ahead += timedelta(minutes=6)
    trip.follower.cycle()
    report = trip.run().attempts[0].last_report
    assert report is not None
    assert report.usage == {"cpu_s": 7.5}


def test_usage_is_given_up_a_day_after_the_end(trip: Trip) -> None:
    trip.gateway.set_state(trip.submitted(), "TIMEOUT", exit_code=0)
    trip.gateway.accounting_up = False
    trip.follower.cycle()
    trip.clock.ahead = timedelta(hours=23)
    trip.follower.cycle()
    assert trip.follower.remembered
    trip.clock.ahead = timedelta(hours=25)
    trip.follower.cycle()
    assert not trip.follower.remembered


def test_accounting_tells_who_cancelled_a_job(trip: Trip) -> None:
    job = trip.submitted()
    trip.gateway.set_state(job, "CANCELLED")
    with_accounting_of(trip, usage={"cpu_s": 1.0}, words="CANCELLED by 1000")
    trip.follower.cycle()
    report = trip.run().attempts[0].last_report
    assert report is not None
    assert (report.words, report.evidence) == ("CANCELLED by 1000", Evidence.ACCOUNTING)


def test_accounting_tells_how_the_starts_before_a_requeue_ended(trip: Trip) -> None:
    job = trip.submitted()
    trip.gateway.set_state(job, "RUNNING")
    trip.follower.cycle()
    before = trip.gateway.poll([job])[job]
    trip.gateway.requeue(job)
    with_accounting_of(trip, earlier=(replace(before, words="PREEMPTED", ended_at=trip.clock()),))
    for _ in range(3):
        trip.follower.cycle()
        trip.clock.ahead += USAGE_INTERVAL
    told = [event.detail for event in trip.run().events if event.kind == "earlier-start"]
    assert told == [{"words": "PREEMPTED", "reason": "", "nodes": "memory[1]"}]
    assert trip.gateway.calls.count("account") == 1


def test_accounting_that_has_not_heard_of_the_new_start_tells_how_the_old_one_ended(trip: Trip) -> None:
    job = trip.submitted()
    trip.gateway.set_state(job, "RUNNING")
    trip.follower.cycle()
    trip.gateway.requeue(job)
    with_accounting_of(trip, words="REQUEUED", restarts=0, nodes="memory[1]", usage={"cpu_s": 1.0})
    for _ in range(3):
        trip.follower.cycle()
        trip.clock.ahead += USAGE_INTERVAL
    run = trip.run()
    told = [event.detail for event in run.events if event.kind == "earlier-start"]
    assert told == [{"words": "REQUEUED", "reason": "BeginTime", "nodes": "memory[1]"}]
    assert trip.gateway.calls.count("account") == 1
    assert run.attempts[0].last_report is not None
    assert run.attempts[0].last_report.usage == {}


@pytest.mark.parametrize(("forgive", "state"), [(False, RunState.FAILED), (True, RunState.COMPLETE)])
def test_whether_out_of_memory_with_exit_code_0_is_a_failure_is_the_sites_policy(
    trip: Trip, forgive: bool, state: RunState
) -> None:
    trip.follower = replace(trip.follower, forgive_out_of_memory=forgive)
    job = trip.submitted()
    trip.kernel_says()
    trip.job_ends(0)
    trip.gateway.set_state(job, "OUT_OF_MEMORY", exit_code=0, signal=125)
    trip.follower.cycle()
    assert trip.run().summary.state is state
    assert "OUT_OF_MEMORY" in trip.run().summary.reason


def test_out_of_memory_is_never_forgiven_without_the_scripts_own_word(trip: Trip) -> None:
    trip.follower = replace(trip.follower, forgive_out_of_memory=True)
    job = trip.submitted()
    trip.kernel_says()
    trip.gateway.set_state(job, "OUT_OF_MEMORY", exit_code=0, signal=125)
    trip.follower.cycle()
    assert trip.run().summary.state is RunState.FAILED


def test_an_id_that_was_given_out_again_is_not_taken_for_ours(tmp_path: Path) -> None:
    clock = Clock()
    trip = Trip(tmp_path, MemoryGateway(clock=clock), clock)
    job = trip.submitted()
    trip.gateway.set_state(job, "RUNNING")
    trip.job_begins()
    trip.follower.cycle()
    trip.gateway.purge(job, accounting=True)
    trip.clock.ahead = timedelta(seconds=30)
    trip.gateway.next_id = job.job_id
    strangers = trip.submitted("other")
    assert strangers.job_id == job.job_id
    trip.kernel_says("other")
    trip.gateway.set_state(strangers, "COMPLETED", exit_code=0)
    trip.follower.cycle()
    assert trip.run("other").summary.state is RunState.COMPLETE
    assert not trip.run().summary.state.ended
    trip.clock.ahead = timedelta(minutes=11)
    trip.follower.cycle()
    assert trip.run().summary.state is RunState.UNKNOWN


class GivesIdsOutAgain(MemoryGateway):
    """Tells of whatever has an id now, where SLURM's routes can't tell two jobs apart by the submit time."""

    def poll(self, jobs: Sequence[JobIdentity]) -> Mapping[JobIdentity, JobReport]:
        now = {report.identity.job_id: report for report in self.jobs}
        found = ((job, now[job.job_id]) for job in jobs if job.job_id in now)
        return {job: replace(report, identity=job) for job, report in found if is_same_job(job, report)}


def give_id_to_a_requeued_job(trip: Trip, job: JobIdentity) -> JobIdentity:
    """Let SLURM lose its state and give a job's id to one of the run of collection ``other``."""
    trip.gateway.purge(job, accounting=True)
    trip.clock.ahead += timedelta(seconds=30)
    trip.gateway.next_id = job.job_id
    strangers = trip.submitted("other")
    trip.gateway.set_state(strangers, "RUNNING")
    trip.gateway.requeue(strangers)
    trip.gateway.set_state(strangers, "RUNNING")
    return strangers


def test_another_runs_job_that_was_requeued_under_an_id_given_out_again_is_not_taken_for_ours(tmp_path: Path) -> None:
    clock = Clock()
    trip = Trip(tmp_path, GivesIdsOutAgain(clock=clock), clock)
    job = trip.submitted()
    trip.gateway.set_state(job, "RUNNING")
    trip.job_begins()
    trip.follower.cycle()
    strangers = give_id_to_a_requeued_job(trip, job)
    trip.follower.cycle()
    last = trip.run().attempts[0].last_report
    assert last is not None
    assert last.restarts == 0
    trip.kernel_says("other", restarts=1)
    trip.gateway.set_state(strangers, "COMPLETED", exit_code=0)
    trip.follower.cycle()
    assert trip.run("other").summary.state is RunState.COMPLETE
    assert not trip.run().summary.state.ended
    trip.clock.ahead = timedelta(minutes=11)
    trip.follower.cycle()
    assert trip.run().summary.state is RunState.UNKNOWN


def test_nor_is_it_where_ours_was_the_job_that_claimed_the_attempt(tmp_path: Path) -> None:
    clock = Clock()
    trip = Trip(tmp_path, GivesIdsOutAgain(clock=clock), clock)
    twice_submitted(trip)
    loser, owner = (job.identity for job in trip.gateway.jobs)
    trip.attempt().claim.write_text(json.dumps({"cluster": "memory", "job_id": str(owner.job_id)}))
    trip.gateway.set_state(owner, "RUNNING")
    trip.gateway.set_state(loser, "COMPLETED", exit_code=0)
    trip.follower.cycle()
    assert trip.run().summary.job == owner
    give_id_to_a_requeued_job(trip, owner)
    trip.follower.cycle()
    assert trip.run().attempts[0].last_report is None


def test_a_job_that_somebody_gave_another_name_is_still_ours(trip: Trip) -> None:
    job = trip.submitted()
    trip.gateway.set_state(job, "RUNNING")
    told = trip.gateway.poll

    def renamed(jobs: Sequence[JobIdentity]) -> Mapping[JobIdentity, JobReport]:
        return {one: replace(report, name="run-to-look-at") for one, report in told(jobs).items()}

    trip.gateway.poll = renamed  # type: ignore[method-assign]
    trip.follower.cycle()
    assert trip.run().summary.state is RunState.RUNNING


def test_a_job_of_another_cluster_is_neither_lost_nor_made_again(tmp_path: Path) -> None:
    clock = Clock()
    trip = Trip(tmp_path, MemoryGateway(cluster="old", clock=clock), clock)
    trip.submitted()
    trip.gateway = MemoryGateway(cluster="new", clock=clock)
    follower = trip.new_follower()
    for minutes in (0, 11, 60):
        clock.ahead = timedelta(minutes=minutes)
        assert follower.cycle() == 1
    assert trip.run().summary.state is RunState.PENDING
    assert "one of cluster old, and the memory gateway speaks with new" in trip.run().summary.reason


@pytest.mark.parametrize("ends", [True, False])
def test_a_job_that_the_controller_lost_is_not_believed_alive_because_accounting_says_so(
    trip: Trip, ends: bool
) -> None:
    job = trip.submitted()
    trip.gateway.set_state(job, "RUNNING")
    trip.job_begins()
    trip.follower.cycle()
    trip.gateway.purge(job)  # accounting has it as RUNNING for ever
    trip.follower.cycle()
    assert not trip.run().summary.state.ended
    if ends:
        trip.kernel_says()
        trip.job_ends(0)
    trip.clock.ahead = timedelta(minutes=11)
    trip.follower.cycle()
    summary = trip.run().summary
    assert summary.state is (RunState.COMPLETE if ends else RunState.UNKNOWN)
    assert ends or "accounting still says RUNNING" in summary.reason


# --------------------------------------------------------------------------------------------- many active jobs


def statements(trip: Trip) -> int:
    """Let a cycle pass; return how many statements it sent to the database."""
    sent: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        sent.append(statement)

    event.listen(trip.store.engine, "before_cursor_execute", note)
    try:
        trip.follower.cycle()
    finally:
        event.remove(trip.store.engine, "before_cursor_execute", note)
    return len(sent)


def test_a_cycle_in_which_nothing_changed_costs_the_database_the_same_whatever_is_active(trip: Trip) -> None:
    trip.submitted("first")
    trip.follower.cycle()
    alone = statements(trip)
    for number in range(20):
        trip.gateway.set_state(trip.submitted(f"c{number}"), "RUNNING")
        trip.kernel_says(f"c{number}", state="running", processed=1)
    assert statements(trip) > 20
    assert statements(trip) == alone


def test_what_happens_while_answers_are_lost_is_seen_with_the_next_one(trip: Trip) -> None:
    began, ended, waits = (trip.submitted(uid) for uid in ("began", "ended", "waits"))
    trip.follower.cycle()
    trip.gateway.controller_up = False
    trip.gateway.set_state(began, "RUNNING")
    trip.gateway.set_state(ended, "FAILED", exit_code=1)
    trip.kernel_says("began", state="running", processed=2)
    for _ in range(2):
        with pytest.raises(GatewayUnavailable):
            trip.follower.cycle()
    counts = trip.run("began").summary.counts
    assert counts is not None
    assert counts.processed == 2  # files need no controller
    trip.gateway.controller_up = True
    trip.follower.cycle()
    states = {uid: trip.run(uid).summary.state for uid in ("began", "ended", "waits")}
    assert states == {"began": RunState.RUNNING, "ended": RunState.FAILED, "waits": RunState.PENDING}
    assert waits in trip.gateway.poll([waits])


def test_a_job_that_began_ended_and_was_purged_between_two_cycles_is_not_lost(trip: Trip) -> None:
    job = trip.submitted()
    trip.follower.cycle()
    trip.follower.cycle()
    trip.job_ends(0)
    trip.kernel_says()
    trip.gateway.set_state(job, "COMPLETED", exit_code=0)
    trip.gateway.purge(job)
    assert trip.follower.cycle() == 0
    run = trip.run()
    assert run.summary.state is RunState.COMPLETE
    assert len(run.outputs) == 1


def test_one_report_that_cannot_be_recorded_costs_its_own_run_only(
    trip: Trip, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = [trip.submitted(f"c{number}") for number in range(30)]
    for job in jobs:
        trip.gateway.set_state(job, "RUNNING")
    told = trip.gateway.poll(jobs)
    bad = replace(told[jobs[7]], restarts=10**30)  # no database takes it
    trip.gateway.poll = lambda asked: {job: bad if job == jobs[7] else told[job] for job in asked}  # type: ignore[method-assign]
    for _ in range(3):
        assert trip.follower.cycle() == 30
    states = {number: trip.run(f"c{number}").summary.state for number in range(30)}
    assert states == dict.fromkeys(range(30), RunState.RUNNING) | {7: RunState.PENDING}
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1
    assert trip.run("c7").summary.run_id in errors[0].message


def test_a_run_that_comes_while_another_goes_is_followed_after_a_while(trip: Trip) -> None:
    trip.submitted("goes")
    trip.follower.cycle()
    trip.store.finish_run(trip.run("goes").summary.run_id, RunState.CANCELLED, "by somebody")
    trip.gateway.set_state(trip.submitted("comes"), "RUNNING")
    trip.clock.ahead += LISTED_EVERY
    assert trip.follower.cycle() == 1
    assert trip.run("comes").summary.state is RunState.RUNNING


def test_the_progress_of_a_job_that_claimed_the_attempt_of_one_that_waits_is_seen(trip: Trip) -> None:
    trip.submitted()
    trip.follower.cycle()
    trip.kernel_says(state="running", processed=2)
    trip.clock.ahead += WAITING_EVERY
    trip.follower.cycle()
    counts = trip.run().summary.counts
    assert counts is not None
    assert counts.processed == 2


def test_an_end_that_cannot_be_told_to_the_kernel_is_told_when_it_can(trip: Trip) -> None:
    trip.submitted()
    trip.follower.cycle()
    trip.end()
    away = trip.directory().path.with_name("away")
    trip.directory().path.rename(away)
    trip.follower.cycle()
    away.rename(trip.directory().path)
    trip.follower.cycle()
    assert trip.directory().collection_end.exists()
