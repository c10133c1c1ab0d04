"""A recipe whose job is a job array: one run, a task for each value of a parameter."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from orchestrator import injob
from orchestrator.cli.description import Findings, describe
from orchestrator.demonstration import shipped
from orchestrator.errors import InvalidSettings
from orchestrator.evidence import claim_owner, newest_progress
from orchestrator.provenance import plan_from_json, plan_to_json
from orchestrator.records import ArrayPlan, RunState
from orchestrator.runs import AttemptDirectory, RunDirectory
from orchestrator.settings import Settings, load_settings
from tests.unit.trip import Trip

VALUES = [100, 200, 300]


def site(folder: Path, **array: object) -> Settings:
    return load_settings(
        shipped("site-configs", "demo.toml"),
        {
            "database": f"sqlite:///{folder}/store.sqlite",
            "runs_root": str(folder / "runs"),
            "allowed_roots": [str(folder)],
            "recipes.azimuthal.array": {"parameter": "bins", "values": VALUES} | array,  # type: ignore[dict-item]
        },
    )


class ArrayTrip(Trip):
    """The demonstration's recipe as an array of three."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.settings = site(self.folder, at_most=2)
        self.dispatcher = replace(self.dispatcher, settings=self.settings)

    def task_says(self, task: int, *, processed: int = 3, state: str = "finished", message: str = "") -> None:
        told = {"state": state, "expected": 3, "written": 3, "processed": processed, "failed": 0, "message": message}
        self.attempt().task(task).progress.write_text(json.dumps(told))


@pytest.fixture
def trip(tmp_path: Path) -> ArrayTrip:
    trip = ArrayTrip(tmp_path)
    trip.submitted()
    return trip


def test_more_values_than_slurm_takes_tasks_are_refused_with_their_place(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"recipes\.azimuthal\.array\.values.*1001 values; SLURM takes 1000"):
        site(tmp_path, values=list(range(1001)))
    with pytest.raises(InvalidSettings, match=r"recipes\.azimuthal\.array\.values"):
        site(tmp_path, values=[])


def test_plan_of_an_array_survives_json(trip: ArrayTrip) -> None:
    plan = trip.run().plan
    assert plan.array == ArrayPlan(parameter="bins", values=tuple(VALUES), at_most=2)
    assert plan_from_json(json.loads(json.dumps(plan_to_json(plan)))) == plan


def test_record_tells_all_values_and_where_they_were_decided(trip: ArrayTrip) -> None:
    (bins,) = [parameter for parameter in trip.run().parameters if parameter.name == "bins"]
    assert bins.value == VALUES
    assert bins.place.endswith("recipes.azimuthal.array.values")


def test_script_is_that_of_an_array_and_each_task_has_its_value_in_a_file(trip: ArrayTrip) -> None:
    directory = trip.directory()
    script = directory.script.read_text()
    assert "#SBATCH --array=0-2%2\n" in script
    assert '--task "$SLURM_ARRAY_TASK_ID"' in script
    assert [json.loads(directory.parameters_of(task).read_text())["bins"] for task in range(3)] == VALUES
    assert not directory.parameters.exists()
    assert [sorted(report.tasks) for report in trip.gateway.jobs] == [[0, 1, 2]]


def test_array_is_complete_when_all_tasks_are_and_their_frames_are_summed(trip: ArrayTrip) -> None:
    job = trip.run().summary.job
    assert job is not None
    for task in range(3):
        trip.task_says(task)
    trip.gateway.set_state(job, "RUNNING")
    trip.gateway.set_state(job, "COMPLETED", exit_code=0)
    trip.follower.cycle()
    summary = trip.run().summary
    assert summary.state is RunState.COMPLETE, summary.reason
    assert summary.counts is not None
    assert (summary.counts.expected, summary.counts.processed) == (9, 9)


def test_failing_task_fails_the_run_once_all_have_ended_and_the_reason_names_it(trip: ArrayTrip) -> None:
    job = trip.run().summary.job
    assert job is not None
    trip.task_says(0)
    trip.task_says(1, processed=0, state="failed", message="no geometry")
    trip.gateway.set_state(job, "RUNNING")
    trip.gateway.set_state(job, "FAILED", exit_code=1, task=1)
    trip.follower.cycle()
    assert trip.run().summary.state is RunState.RUNNING
    for task in (0, 2):
        trip.task_says(task)
        trip.gateway.set_state(job, "COMPLETED", exit_code=0, task=task)
    trip.follower.cycle()
    assert trip.run().summary.state is RunState.FAILED
    assert "task 1: no geometry" in trip.run().summary.reason


def test_array_of_which_slurm_forgot_the_failed_task_is_not_complete(trip: ArrayTrip) -> None:
    """A controller forgets tasks one by one, so that only the good ones may be left to be seen."""
    job = trip.run().summary.job
    assert job is not None
    for task in (0, 2):
        trip.task_says(task)
    trip.task_says(1, processed=0, state="failed", message="no geometry")
    trip.gateway.set_state(job, "RUNNING")
    trip.gateway.set_state(job, "COMPLETED", exit_code=0)
    trip.follower.cycle()
    assert trip.run().summary.state is RunState.FAILED


def test_word_of_every_task_arrives_once(trip: ArrayTrip) -> None:
    job = injob.JobHere(cluster="memory", job_id="1", restarts=0)
    for task in range(3):
        injob.append_event(trip.attempt().task(task), "end", job, {"exit_code": 0})
    for follower in (trip.follower, trip.new_follower()):
        follower.cycle()
    told = [event.detail["task"] for event in trip.run().events if event.kind == "end"]  # type: ignore[index, call-overload]
    assert sorted(told) == [0, 1, 2]


def test_tasks_are_shown_with_value_state_frames_and_digest(trip: ArrayTrip) -> None:
    trip.task_says(0)
    job = injob.JobHere(cluster="memory", job_id="1", restarts=0)
    output = {"kind": "result", "path": str(trip.directory().result_of(0)), "size": 5, "sha256": "ab12"}
    injob.append_event(trip.attempt().task(0), "outputs", job, {"outputs": [output]})
    trip.follower.cycle()
    progress = {0: newest_progress(trip.attempt().task(0)), 1: None}
    sections = {
        section.title: dict(section.fields) for section in describe(trip.run(), Findings(sizes={}, tasks=progress))
    }
    tasks = sections["Tasks"]
    assert "bins = 100; finished, 3 of 3" in tasks["task 0"]
    assert "result-0.nxs, sha256 ab12" in tasks["task 0"]
    assert tasks["task 1"] == "bins = 200; not begun"


def test_each_task_claims_its_own_part_of_the_attempt_and_no_other_job_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    assert [injob.begin(tmp_path, "r", 1, task=task) for task in (0, 1)] == [0, 0]
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "9")
    assert injob.begin(tmp_path, "r", 1, task=1) == injob.EXIT_TAKEN
    assert claim_owner(RunDirectory(tmp_path).attempt(1)) == "7"


def test_of_two_arrays_of_one_attempt_the_second_does_nothing_not_even_tasks_that_the_first_has_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    assert injob.begin(tmp_path, "r", 1, task=0) == 0
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "9")
    assert injob.begin(tmp_path, "r", 1, task=1) == injob.EXIT_TAKEN
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    assert injob.begin(tmp_path, "r", 1, task=1) == 0
    assert claim_owner(RunDirectory(tmp_path).attempt(1)) == "7"


def test_array_that_has_begun_and_vanished_is_not_made_again(trip: ArrayTrip, monkeypatch: pytest.MonkeyPatch) -> None:
    job = trip.run().summary.job
    assert job is not None
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", str(job.job_id))
    assert injob.begin(trip.directory().path, trip.run().summary.run_id, 1, task=1) == 0
    trip.gateway.purge(job, accounting=True)
    trip.follower.cycle()
    trip.clock.ahead = timedelta(minutes=11)
    trip.follower.cycle()
    assert trip.run().summary.state is RunState.UNKNOWN


def test_run_after_an_array_begins_when_all_tasks_ended_with_0(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    job = injob.JobHere(cluster="c", job_id="1", restarts=0)
    for task in (0, 1):
        run.attempt(1).task(task).path.mkdir(parents=True)
    injob.append_event(run.attempt(1).task(0), "end", job, {"exit_code": 0})
    assert not injob.succeeded(run)
    injob.append_event(run.attempt(1).task(1), "end", job, {"exit_code": 0})
    assert injob.succeeded(run)


def test_array_whose_tasks_have_not_all_begun_has_not_finished(tmp_path: Path) -> None:
    here = AttemptDirectory(tmp_path)
    for task in (0, 1):
        here.task(task).path.mkdir(parents=True)
    assert newest_progress(here) is None
    told = {"state": "finished", "expected": 4, "written": 4, "processed": 4, "failed": 0}
    here.task(0).progress.write_text(json.dumps(told))
    progress = newest_progress(here)
    assert progress is not None
    assert (progress.state, progress.counts.expected, progress.counts.finished) == ("running", 8, False)
