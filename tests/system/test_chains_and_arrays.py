"""Recipes that follow one another, and one that is a job array, on a real SLURM."""

from __future__ import annotations

import itertools
import os
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import h5py
import numpy as np
import pytest

from orchestrator.demonstration import shipped
from orchestrator.dispatching import Dispatcher
from orchestrator.following import Follower
from orchestrator.injob import EXIT_PREDECESSOR
from orchestrator.messages import start_document
from orchestrator.provenance import RunDetail
from orchestrator.records import CollectionStart, RawMessage, RunState, Submission, SubmittedJob
from orchestrator.runs import RunDirectory
from orchestrator.slurm.cli import CliGateway
from orchestrator.stack import Stack
from tests.system.beamline import Beamline, slurm_jobs

pytestmark = [pytest.mark.stack, pytest.mark.mpi]

CHAIN = ("reduce", "average", "report")
Making = Callable[..., Beamline]


@pytest.fixture
def beamline_of(tmp_path: Path, stack: Stack) -> Iterator[Making]:
    """Return a function that starts the service with the shipped chain, and with changes to its recipes."""
    made: list[Beamline] = []

    def make(*, serving: bool = True, members: tuple[str, ...] = CHAIN, **changes: object) -> Beamline:
        recipes = tomllib.loads(shipped("site-configs", "chain.toml").read_text())["recipes"]
        recipes["reduce"] |= changes
        recipes = {name: recipes[name] for name in members}
        made.append(Beamline(tmp_path, stack, {"recipes": recipes, "defaults.appear_timeout_s": 4}))
        if serving:
            made[-1].start_service()
        return made[-1]

    yield make
    for beamline in made:
        beamline.close()


def chain_of(beamline: Beamline, uid: str) -> dict[str, RunDetail]:
    return {run.recipe: beamline.store.run(run.run_id) for run in beamline.store.runs(uid=uid)}


def wait_for_chain(
    beamline: Beamline, uid: str, *, recipes: tuple[str, ...] = CHAIN, within_s: float = 120
) -> dict[str, RunDetail]:
    deadline = time.monotonic() + within_s
    while True:
        runs = chain_of(beamline, uid)
        if set(runs) >= set(recipes) and all(runs[name].summary.state.ended for name in recipes):
            return runs
        states = {name: (run.summary.state, run.summary.reason) for name, run in runs.items()}
        assert time.monotonic() < deadline, f"{states}\n{beamline.log()}"
        time.sleep(0.3)


def assert_complete(runs: dict[str, RunDetail], beamline: Beamline) -> None:
    for recipe in CHAIN:
        summary = runs[recipe].summary
        assert summary.state is RunState.COMPLETE, (recipe, summary.reason, beamline.log())


def begun(run: RunDetail) -> int:
    return sum(event.kind == "begin" for event in run.events)


def test_the_shipped_chain_ends_with_a_report_of_the_average_of_all_frames(beamline_of: Making, stack: Stack) -> None:
    beamline = beamline_of()
    with beamline.detector("chain", "--number", "40", "--rate", "20"):
        beamline.announce("chain", 40)
        runs = wait_for_chain(beamline, "chain")
    assert_complete(runs, beamline)
    reduced, average, report = (RunDirectory(runs[name].summary.run_directory) for name in CHAIN)
    with h5py.File(reduced.result) as every, h5py.File(average.result) as mean:
        expected = np.mean(every["entry/data/I"][()], axis=0)
        np.testing.assert_allclose(mean["entry/data/I"][()], expected, rtol=1e-12)
        assert mean["entry/data/frames"][()].max() == 40
    page = report.report.read_text()
    assert "| frames averaged | 40 |" in page
    assert report.picture.read_bytes().startswith(b"\x89PNG")
    assert {output.kind for output in runs["report"].outputs} >= {"report", "picture"}
    assert all(slurm_jobs(stack).count(run.attempts[0].tag.job_name) == 1 for run in runs.values())
    # What came after began after the end of what it comes after.
    for earlier, later in itertools.pairwise(CHAIN):
        before, after = runs[earlier].attempts[-1].last_report, runs[later].attempts[-1].last_report
        assert before is not None
        assert after is not None
        assert before.ended_at is not None
        assert after.started_at is not None
        assert before.ended_at <= after.started_at


def test_when_the_first_member_fails_the_others_never_begin_and_say_why(beamline_of: Making) -> None:
    beamline = beamline_of()
    beamline.announce("absent", 5)
    runs = wait_for_chain(beamline, "absent")
    assert runs["reduce"].summary.state is RunState.FAILED
    for recipe, earlier in (("average", "reduce"), ("report", "average")):
        summary = runs[recipe].summary
        assert summary.state is RunState.CANCELLED, summary.reason
        assert f"({earlier})" in summary.reason
        assert begun(runs[recipe]) == 0
    shown = beamline.command("show", runs["average"].summary.run_id).stdout
    assert "comes after" in shown
    assert runs["report"].summary.run_id in shown


def test_chain_goes_on_when_its_first_member_succeeds_on_a_second_attempt(beamline_of: Making) -> None:
    beamline = beamline_of(retries={"failed": {"times": 1, "exit_codes": [3], "delay_s": 3}})
    beamline.announce("late", 5)
    deadline = time.monotonic() + 60
    while (
        not (runs := chain_of(beamline, "late"))
        or runs["reduce"].summary.state is not RunState.PLANNED
        or not (runs["reduce"].attempts)
    ):
        assert time.monotonic() < deadline, beamline.log()
        time.sleep(0.1)
    with beamline.detector("late", "--number", "5", "--rate", "inf") as detector:
        detector.wait(60)
    runs = wait_for_chain(beamline, "late")
    assert_complete(runs, beamline)
    assert len(runs["reduce"].attempts) == 2
    assert [begun(runs[recipe]) for recipe in CHAIN] == [2, 1, 1]


class Forgetful(CliGateway):
    """A SLURM that has forgotten every job that another one is to come after, as it does MinJobAge after their end."""

    def submit(self, submission: Submission) -> SubmittedJob:
        gone = tuple(replace(job, job_id=job.job_id + 500_000) for job in submission.after)
        return super().submit(replace(submission, after=gone))


def test_job_that_slurm_lets_run_after_a_failed_one_that_it_forgot_leaves_at_its_fence(
    beamline_of: Making, stack: Stack
) -> None:
    beamline = beamline_of(serving=False)
    gateway = Forgetful(environment={**os.environ, **stack.environment()})
    dispatcher = Dispatcher(store=beamline.store, gateway=gateway, settings=beamline.settings)
    follower = Follower(store=beamline.store, gateway=gateway, vanish_after=timedelta(minutes=10))
    start = CollectionStart(
        uid="forgotten", beamline="b", detector="d", file=beamline.file("forgotten"), dataset="/d", frames_expected=5
    )
    dispatcher.receive([RawMessage(body=start_document(start), source="test")])
    dispatcher.plan_waiting()
    deadline = time.monotonic() + 200
    while not (runs := chain_of(beamline, "forgotten")) or any(not run.summary.state.ended for run in runs.values()):
        dispatcher.submit_planned()
        follower.cycle()
        assert time.monotonic() < deadline, {name: run.summary.reason for name, run in runs.items()}
        time.sleep(1)
    assert runs["reduce"].summary.state is RunState.FAILED
    average = runs["average"]
    assert average.summary.state is RunState.CANCELLED
    assert "(reduce)" in average.summary.reason
    report = average.attempts[-1].last_report
    assert report is not None
    assert report.exit_code == EXIT_PREDECESSOR, "SLURM let it run"
    assert begun(average) == 0


def test_chain_goes_on_while_the_service_is_down(beamline_of: Making, stack: Stack) -> None:
    beamline = beamline_of()
    with beamline.detector("alone", "--number", "100", "--rate", "20"):
        beamline.announce("alone", 100)
        deadline = time.monotonic() + 60
        while not (runs := chain_of(beamline, "alone")) or any(run.summary.job is None for run in runs.values()):
            assert time.monotonic() < deadline, beamline.log()
            time.sleep(0.1)
        beamline.kill_service()
        report = RunDirectory(runs["report"].summary.run_directory)
        while not report.report.exists():
            assert time.monotonic() < deadline + 60, slurm_jobs(stack)
            time.sleep(0.5)
    beamline.start_service()
    assert_complete(wait_for_chain(beamline, "alone"), beamline)


def test_array_of_three_ends_complete_with_a_result_for_each_value(beamline_of: Making, stack: Stack) -> None:
    bins = [50, 100, 200]
    beamline = beamline_of(members=("reduce",), array={"parameter": "bins", "values": bins, "at_most": 2})
    with beamline.detector("array", "--number", "20", "--rate", "inf") as detector:
        detector.wait(60)
    beamline.announce("array", 20)
    runs = wait_for_chain(beamline, "array", recipes=("reduce",))
    run = runs["reduce"]
    assert run.summary.state is RunState.COMPLETE, (run.summary.reason, beamline.log())
    assert run.summary.counts is not None
    assert run.summary.counts.processed == 60
    directory = RunDirectory(run.summary.run_directory)
    totals = []
    for task, number in enumerate(bins):
        with h5py.File(directory.result_of(task)) as result:
            assert result["entry/data/I"].shape == (20, number)
            data = result["entry/data"]
            totals.append(np.nansum(data["I"][0] * data["norm"][()]))
    np.testing.assert_allclose(totals, totals[0], rtol=1e-9)  # the same counts, sorted into other bins
    made = {output.path for output in run.outputs if output.kind == "result"}
    assert made == {directory.result_of(task) for task in range(3)}
    assert begun(run) == 3
    assert slurm_jobs(stack).count(run.attempts[0].tag.job_name) == 3
    shown = beamline.command("show", run.summary.run_id).stdout
    assert "bins = 200; finished, 20 of 20" in shown


def test_array_without_slurm_runs_its_tasks_one_after_another(tmp_path: Path) -> None:
    array = {"parameter": "bins", "values": [50, 100]}
    beamline = Beamline(tmp_path, None, {"recipes.azimuthal.array": array})
    try:
        beamline.start_service()
        with beamline.detector("local", "--number", "5", "--rate", "inf") as detector:
            detector.wait(60)
        beamline.announce("local", 5)
        run = beamline.wait_for_end("local", within_s=120)
        assert run.summary.state is RunState.COMPLETE, (run.summary.reason, beamline.log())
        directory = RunDirectory(run.summary.run_directory)
        made = {output.path for output in run.outputs if output.kind == "result"}
        assert made == {directory.result_of(task) for task in range(2)}
    finally:
        beamline.close()
