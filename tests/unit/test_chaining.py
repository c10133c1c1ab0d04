"""Runs that come after others: when they begin, and what becomes of them when those fail or are tried again."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Timer

import pytest

from orchestrator import injob
from orchestrator.chaining import Earlier, Go, Never, Wait, decide, decide_again, given_up
from orchestrator.demonstration import shipped
from orchestrator.errors import InvalidSettings
from orchestrator.planning import plan
from orchestrator.provenance import RunSummary
from orchestrator.records import CollectionStart, Evidence, JobIdentity, JobReport, JobState, RunState
from orchestrator.runs import RunDirectory
from orchestrator.settings import Settings, load_settings
from tests.unit.trip import Trip

NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
JOB = JobIdentity(cluster="c", job_id=7, submitted_at=NOON)
RUNNING = Earlier(run_id="r" * 36, recipe="reduce", state=RunState.RUNNING, job=JOB, intent_at=NOON)


# -------------------------------------------------------------------------------------------------------- the rule


@pytest.mark.parametrize(
    ("earlier", "verdict"),
    [
        ([], Go()),
        ([RUNNING], Go(after=(JOB,))),
        ([replace(RUNNING, state=RunState.PENDING)], Go(after=(JOB,))),
        ([replace(RUNNING, state=RunState.COMPLETE)], Go()),
        ([replace(RUNNING, state=RunState.PARTIAL, exit_code=0)], Go()),
        ([replace(RUNNING, state=RunState.COMPLETE), RUNNING], Go(after=(JOB,))),
    ],
)
def test_run_is_submitted_after_the_jobs_that_go_on(earlier: list[Earlier], verdict: Go) -> None:
    assert decide(earlier) == verdict


@pytest.mark.parametrize("state", [RunState.PLANNED, RunState.SUBMITTING])
def test_run_waits_for_one_without_a_job_even_if_an_earlier_attempt_had_one(state: RunState) -> None:
    verdict = decide([replace(RUNNING, state=state)])
    assert isinstance(verdict, Wait)
    assert "reduce" in verdict.reason


@pytest.mark.parametrize(
    "state", [RunState.FAILED, RunState.CANCELLED, RunState.REFUSED, RunState.UNKNOWN, RunState.PARTIAL, None]
)
def test_run_never_begins_after_one_that_did_not_succeed_and_says_which(state: RunState | None) -> None:
    verdict = decide([RUNNING, replace(RUNNING, state=state, exit_code=4, reason="frames are missing")])
    assert isinstance(verdict, Never)
    assert "reduce" in verdict.reason


def test_run_whose_job_was_given_up_waits_until_it_is_known_what_becomes_of_the_other() -> None:
    assert isinstance(decide_again([RUNNING], NOON + timedelta(seconds=1)), Wait)
    assert isinstance(decide_again([replace(RUNNING, state=RunState.PLANNED)], NOON + timedelta(seconds=1)), Go)
    assert isinstance(decide_again([RUNNING], NOON - timedelta(seconds=1)), Go), "the other has a new attempt"
    assert isinstance(decide_again([replace(RUNNING, state=RunState.FAILED)], NOON), Never)
    assert isinstance(decide_again([replace(RUNNING, state=RunState.COMPLETE)], NOON), Go)


@pytest.mark.parametrize(
    ("state", "reason", "exit_code", "expected"),
    [
        (JobState.CANCELLED, "DependencyNeverSatisfied", None, True),
        (JobState.PENDING, "DependencyNeverSatisfied", None, True),
        (JobState.FAILED, "NonZeroExitCode", injob.EXIT_PREDECESSOR, True),
        (JobState.FAILED, "NonZeroExitCode", 3, False),
        (JobState.CANCELLED, "Dependency", None, False),
        (JobState.PENDING, "Dependency", None, False),
    ],
)
def test_job_that_was_given_up_is_told_from_others(
    state: JobState, reason: str, exit_code: int | None, expected: bool
) -> None:
    report = JobReport(
        identity=JOB, name="", state=state, words="", evidence=Evidence.CONTROLLER, reason=reason, exit_code=exit_code
    )
    assert given_up(report) is expected


# -------------------------------------------------------------------------------------------------- the site file


def site(folder: Path, **after: object) -> Settings:
    step = {"kernel": "azimuthal", "template": "azimuthal.sbatch.j2", "match": {"beamline": "*"}}
    overrides: dict[str, object] = {f"recipes.{name}": step | {"after": names} for name, names in after.items()}
    overrides |= {
        "database": f"sqlite:///{folder}/store.sqlite",
        "runs_root": str(folder / "runs"),
        "allowed_roots": [str(folder)],
    }
    return load_settings(shipped("site-configs", "demo.toml"), overrides)  # type: ignore[arg-type]


def test_recipe_after_one_that_is_not_there_is_refused_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"recipes\.average\.after: there is no recipe 'azimutal'; did you mean"):
        site(tmp_path, average="azimutal")


def test_recipes_in_a_circle_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"recipes\.(\w)\.after: a circle: \1 after \w after \w after \1$"):
        site(tmp_path, a=["b"], b=["c"], c=["a"])


# ------------------------------------------------------------------------------------------------------- the trip


class Chain(Trip):
    """The demonstration's recipe, `average` after it, and `summary` after that."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.settings = site(self.folder, summary="average", average=["azimuthal"])
        self.dispatcher = replace(self.dispatcher, settings=self.settings)

    def run(self, recipe: str) -> RunSummary:
        (run,) = self.store.runs(recipe=recipe)
        return run

    def submit(self) -> None:
        self.dispatcher.plan_waiting()
        for _ in range(3):
            self.dispatcher.submit_planned()

    def job(self, recipe: str) -> JobIdentity:
        job = self.run(recipe).job
        assert job is not None
        return job

    def succeeds(self, recipe: str) -> None:
        run = self.run(recipe)
        progress = {"state": "finished", "expected": 3, "written": 3, "processed": 3, "failed": 0, "ended_because": "x"}
        RunDirectory(run.run_directory).attempt(run.attempts).progress.write_text(json.dumps(progress))
        self.gateway.set_state(self.job(recipe), "RUNNING")
        self.gateway.set_state(self.job(recipe), "COMPLETED", exit_code=0)

    def fails(self, recipe: str, words: str = "FAILED") -> None:
        self.gateway.set_state(self.job(recipe), "RUNNING")
        self.gateway.set_state(self.job(recipe), words, exit_code=1)

    def cycles(self) -> None:
        for _ in range(3):
            self.follower.cycle()


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    trip = Chain(tmp_path)
    trip.start()
    trip.submit()
    return trip


def test_all_jobs_of_a_chain_are_submitted_at_once_and_slurm_keeps_their_order(chain: Chain) -> None:
    assert [report.reason for report in chain.gateway.jobs] == ["", "Dependency", "Dependency"]
    for recipe in ("azimuthal", "average", "summary"):
        chain.succeeds(recipe)
    chain.cycles()
    assert {run.state for run in chain.store.runs()} == {RunState.COMPLETE}


def test_record_tells_what_a_run_comes_after_and_what_comes_after_it(chain: Chain) -> None:
    average = chain.run("average").run_id
    assert [one.recipe for one in chain.store.earlier_runs(average)] == ["azimuthal"]
    assert [one.recipe for one in chain.store.later_runs(average)] == ["summary"]
    plan = chain.store.run(average).plan
    assert [one.run_directory for one in plan.after] == [chain.run("azimuthal").run_directory]


def test_script_has_the_fence_look_at_the_runs_before(chain: Chain) -> None:
    script = RunDirectory(chain.run("average").run_directory).script.read_text()
    assert f"--after {chain.run('azimuthal').run_directory}" in script
    assert "--dependency" not in script


def test_failure_ends_all_that_comes_after_with_a_reason_that_names_it(chain: Chain) -> None:
    chain.fails("azimuthal")
    chain.cycles()
    assert chain.run("azimuthal").state is RunState.FAILED
    assert chain.run("average").state is RunState.CANCELLED
    assert "azimuthal" in chain.run("average").reason
    assert "failed" in chain.run("average").reason
    assert chain.run("summary").state is RunState.CANCELLED
    assert "average" in chain.run("summary").reason


def test_chain_follows_a_run_that_is_tried_again(chain: Chain) -> None:
    chain.fails("azimuthal", "NODE_FAIL")
    chain.cycles()
    assert {run.state for run in chain.store.runs()} == {RunState.PLANNED}
    chain.submit()
    assert {run.attempts for run in chain.store.runs()} == {2}
    for recipe in ("azimuthal", "average", "summary"):
        chain.succeeds(recipe)
    chain.cycles()
    assert {run.state for run in chain.store.runs()} == {RunState.COMPLETE}


def test_run_whose_predecessor_was_refused_is_cancelled_without_a_job(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    chain.start()
    chain.dispatcher.plan_waiting()
    chain.store.record_refused_run(chain.run("azimuthal").run_id, "no such template")
    chain.submit()
    assert chain.gateway.jobs == ()
    assert chain.run("average").state is RunState.CANCELLED
    assert "no such template" in chain.run("average").reason


def test_run_after_one_that_is_complete_is_submitted_without_a_dependency(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    chain.start()
    chain.dispatcher.plan_waiting()
    chain.store.finish_run(chain.run("azimuthal").run_id, RunState.COMPLETE, "")
    chain.submit()
    assert [report.reason for report in chain.gateway.jobs] == ["", "Dependency"]


def test_job_for_which_slurm_forgot_the_dependency_leaves_at_its_fence_and_the_run_says_why(chain: Chain) -> None:
    """The race: the other's job failed and was purged before sbatch came, which then lets this one run."""
    chain.fails("azimuthal")
    second = chain.job("average")
    chain.gateway.purge(chain.job("azimuthal"))
    chain.gateway.set_state(second, "PENDING")
    chain.gateway.set_state(second, "RUNNING")
    chain.gateway.set_state(second, "FAILED", exit_code=injob.EXIT_PREDECESSOR)
    chain.cycles()
    assert chain.run("average").state is RunState.CANCELLED
    assert "azimuthal" in chain.run("average").reason


def test_job_that_finds_no_record_of_a_success_before_it_is_not_made_again_for_ever(chain: Chain) -> None:
    """There was no room on the disk for the end of the run before: no fence will ever let this one in."""
    chain.succeeds("azimuthal")
    for _ in range(3):
        if chain.run("average").state.ended:
            break
        chain.gateway.set_state(chain.job("average"), "RUNNING")
        chain.gateway.set_state(chain.job("average"), "FAILED", exit_code=injob.EXIT_PREDECESSOR)
        chain.cycles()
        chain.submit()
    assert chain.run("average").state is RunState.CANCELLED
    assert "no record" in chain.run("average").reason
    assert chain.run("average").attempts == 1


def test_recipe_after_one_that_does_not_want_the_collection_is_not_chosen_and_says_why(tmp_path: Path) -> None:
    settings = site(tmp_path, average="azimuthal")
    off = settings.recipes["azimuthal"].model_copy(update={"enabled": False})
    settings = settings.model_copy(update={"recipes": {**settings.recipes, "azimuthal": off}})
    start = CollectionStart(uid="u", beamline="b", detector="d", file=tmp_path / "x.h5", dataset="/d")
    planning = plan(start, settings)
    assert planning.plans == ()
    assert "comes after 'azimuthal', which isn't chosen" in planning.reason


# ------------------------------------------------------------------------------------------------------ the fence


def ended(run: RunDirectory, attempt: int, exit_code: int) -> None:
    here = run.attempt(attempt)
    here.path.mkdir(parents=True, exist_ok=True)
    job = injob.JobHere(cluster="c", job_id="1", restarts=0)
    injob.append_event(here, "end", job, {"exit_code": exit_code})


@pytest.mark.parametrize(("codes", "expected"), [((0,), 0), ((3, 0), 0), ((0, 3), 76), ((), 76)])
def test_fence_lets_in_only_after_the_newest_job_of_the_other_run_ended_with_0(
    tmp_path: Path, codes: tuple[int, ...], expected: int
) -> None:
    before = RunDirectory(tmp_path / "before")
    for number, code in enumerate(codes, start=1):
        ended(before, number, code)
    own = tmp_path / "own"
    assert injob.begin(own, "r", 1, after=[before.path], patience_s=0.0) == expected
    assert RunDirectory(own).attempt(1).claim.exists() is (expected == 0)


def test_fence_waits_for_words_that_are_seen_late(tmp_path: Path) -> None:
    before = RunDirectory(tmp_path / "before")
    timer = Timer(0.3, ended, (before, 1, 0))
    timer.start()
    assert injob.begin(tmp_path / "own", "r", 1, after=[before.path], patience_s=20.0) == 0
    timer.join()
