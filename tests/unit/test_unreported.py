"""Jobs of reruns that left no word: their runs come home, or they are told of at the run that they made again."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from orchestrator.adopting import ASIDE, COMPARED
from orchestrator.cli.description import Findings, describe
from orchestrator.errors import GatewayUnavailable, RunDirectoryUnavailable, StoreUnavailable
from orchestrator.injob import JobHere
from orchestrator.provenance import CAME_HOME, LOST, MADE, JobEvent, RunDetail, plan_to_json
from orchestrator.record_keeping import import_runs
from orchestrator.records import JobIdentity, JobPlan, RerunTag, RunState, utc_now
from orchestrator.rerunning import leave_word, user_name
from orchestrator.runs import RunDirectory
from orchestrator.unreported import (
    ACCOUNTED_EVERY,
    ACCOUNTED_SOON,
    ACCOUNTING_LAG,
    BEGIN_PATIENCE,
    LONGEST_LOOK,
    TOLD_FOR,
    WORD_PATIENCE,
    Comparison,
)
from tests.unit.reruns import Reruns

ME = user_name(os.getuid())
NOBODY = 65534


@dataclass(kw_only=True)
class Ground:
    """A site with a run, and a SLURM in which people make it again."""

    reruns: Reruns
    parent: RunDetail
    ahead: timedelta = timedelta()

    def __post_init__(self) -> None:
        self.gateway = self.reruns.trip.gateway
        self.store = self.reruns.trip.store
        self.gateway._clock = self.now
        self.comparison = self.another()

    def now(self) -> datetime:
        return utc_now() + self.ahead

    def another(self) -> Comparison:
        """Return what a service that was started now would compare with."""
        return Comparison(adopter=self.reruns.adopter, now=self.now)

    def job(self, words: str = "", *, user: str = ME, **ending: int) -> JobIdentity:
        """Have somebody make the run again; `words` say what becomes of the job at once."""
        tag = RerunTag(parent=self.parent.summary.run_id)
        job = self.gateway.hand_over(tag, user=user, working_directory=self.reruns.home)
        if words:
            self.gateway.set_state(job, "RUNNING")
            self.gateway.set_state(job, words, **ending)
        return job

    def makes(self, job: JobIdentity, **changes: object) -> JobPlan:
        """Have a job make its run's directory, and leave no word."""
        return self.reruns.made_by(here(job), self.parent, **changes)[0]

    def later(self, by: timedelta = WORD_PATIENCE) -> int:
        self.ahead += by + timedelta(seconds=1)
        return self.comparison.look()

    def lost(self) -> list[JobEvent]:
        return [event for event in self.store.run(self.parent.summary.run_id).events if event.kind == LOST]

    def told(self) -> dict[str, object]:
        (event,) = self.lost()
        assert isinstance(event.detail, dict)
        return dict(event.detail)

    def runs(self) -> list[str]:
        return [run.run_id for run in self.store.runs(parent=self.parent.summary.run_id)]

    def shown(self) -> str:
        run = self.store.run(self.parent.summary.run_id)
        sections = describe(run, Findings(sizes={}, reruns=self.runs()))
        return "\n".join(f"{label} {text}" for section in sections for label, text in section.fields)


def here(job: JobIdentity) -> JobHere:
    return JobHere(cluster=job.cluster, job_id=str(job.job_id), restarts=0)


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    reruns = Reruns(tmp_path)
    yield Ground(reruns=reruns, parent=reruns.parent())
    reruns.trip.store.close()


# ------------------------------------------------------------------------------------------------------ taken home


def test_a_run_of_which_no_word_came_comes_home_with_the_job_that_slurm_has(ground: Ground) -> None:
    job = ground.job("COMPLETED", exit_code=0)
    plan = ground.makes(job, because="more bins")
    assert ground.later() == 1
    run = ground.store.run(plan.run_id)
    assert (run.summary.job, run.summary.requester, run.summary.state) == (job, ME, RunState.PENDING)
    assert (run.summary.parent_run, run.plan.because) == (ground.parent.summary.run_id, "more bins")
    (made,) = run.events
    assert made.kind == MADE
    assert isinstance(made.detail, dict)
    assert "bins = 2000" in str(made.detail["edits"])
    assert run.made_by_hand
    assert ground.store.planned_runs() == []
    assert ground.lost() == []
    assert ground.later() == 0


def test_a_job_that_runs_comes_home_when_its_word_is_overdue(ground: Ground) -> None:
    job = ground.job("RUNNING")
    plan = ground.makes(job)
    assert ground.later(WORD_PATIENCE) == 0
    assert ground.runs() == []
    assert ground.later(BEGIN_PATIENCE) == 1
    assert ground.runs() == [plan.run_id]


def test_word_that_comes_in_time_leaves_nothing_to_be_found(ground: Ground) -> None:
    job = ground.job("COMPLETED", exit_code=0)
    plan, request = ground.reruns.made_by(here(job), ground.parent)
    assert ground.comparison.look() == 0
    leave_word(plan, here(job), request)
    assert ground.reruns.adopter.adopt_all() == 1
    assert ground.later() == 0
    assert (ground.runs(), ground.lost()) == ([plan.run_id], [])


def test_a_word_that_comes_afterwards_makes_no_second_run(ground: Ground) -> None:
    job = ground.job("COMPLETED", exit_code=0)
    plan, request = ground.reruns.made_by(here(job), ground.parent)
    assert ground.later() == 1
    leave_word(plan, here(job), request)
    assert ground.reruns.adopter.adopt_all() == 0
    assert list(request.drop.glob("*.json")) == []
    assert ground.runs() == [plan.run_id]


def test_a_run_at_its_owners_home_is_found(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = pwd_entry(ground.reruns.home)
    monkeypatch.setattr("orchestrator.unreported.pwd.getpwnam", lambda name: entry if name == ME else None)
    job = ground.job("COMPLETED", exit_code=0)
    plan = ground.makes(job, root=ground.reruns.home / "orchestrator-reruns")
    assert ground.later() == 1
    assert ground.runs() == [plan.run_id]


@dataclass(frozen=True)
class pwd_entry:  # noqa: N801 - stands for one of pwd's
    pw_dir: Path


def test_a_run_elsewhere_is_found_by_what_its_job_printed(ground: Ground) -> None:
    job = ground.job("FAILED", exit_code=1)
    plan = ground.makes(job, root=ground.reruns.folder / "scratch")
    printed = ground.reruns.home / f"rerun-{job.job_id}.log"
    printed.write_text(f"loading\nThe new run is in {plan.run_directory}; what its job prints is in attempts/1/job.log")
    assert ground.later() == 1
    assert ground.runs() == [plan.run_id]


def test_what_another_users_file_says_is_not_followed(ground: Ground) -> None:
    as_root()
    job = ground.job("FAILED", exit_code=1)
    plan = ground.makes(job, root=ground.reruns.folder / "scratch")
    printed = ground.reruns.home / f"rerun-{job.job_id}.log"
    printed.write_text(f"The new run is in {plan.run_directory}; what its job prints is in attempts/1/job.log there.")
    os.chown(printed, NOBODY, NOBODY)
    assert ground.later() == 0
    assert ground.told()["log"] == str(printed)


def test_what_slurm_says_counts_of_a_requeued_job_too(ground: Ground) -> None:
    job = ground.job("RUNNING")
    plan = ground.makes(job)
    ground.later(BEGIN_PATIENCE)
    ground.gateway.requeue(job)  # SLURM moves its submit time forward
    renewed = replace(job, submitted_at=job.submitted_at + timedelta(minutes=3))
    ground.gateway._controller[renewed] = replace(ground.gateway._controller.pop(job), identity=renewed)
    ground.gateway._reruns[renewed] = ground.gateway._reruns[job]
    ground.gateway.set_state(renewed, "COMPLETED", exit_code=0)
    assert ground.later() == 0
    assert (ground.runs(), ground.lost()) == ([plan.run_id], [])


# ---------------------------------------------------------------------------------------------------------- told of


def test_refused_edits_are_told_of_at_the_parent(ground: Ground) -> None:
    job = ground.job("FAILED", exit_code=2)
    assert ground.later() == 0
    told = ground.told()
    assert (told["cluster"], told["job_id"], told["user"]) == (job.cluster, job.job_id, ME)
    assert (told["state"], told["exit_code"]) == ("failed", 2)
    assert "an edit in its script is wrong" in str(told["because"])
    assert f"rerun-{job.job_id}.log says more" in str(told["remedy"])
    assert ground.runs() == []
    shown = ground.shown()
    assert f"rerun no run of it is known: job {job} of {ME}, FAILED, exit code 2, " in shown
    assert "it was made again, and no run of that is known: job" in shown


@pytest.mark.parametrize(
    ("words", "ending", "because"),
    [
        ("FAILED", {"exit_code": 69}, "a module couldn't be loaded"),
        ("FAILED", {"exit_code": 74}, "the new run's directory couldn't be written"),
        ("NODE_FAIL", {}, "it left no word, and its run's directory isn't where it would be"),
        ("FAILED", {"exit_code": 2, "signal": 9}, "it left no word"),
    ],
)
def test_how_a_job_ended_says_why_no_run_is_known(
    ground: Ground, words: str, ending: dict[str, int], because: str
) -> None:
    ground.job(words, **ending)
    ground.later()
    assert because in str(ground.told()["because"])


def test_a_job_that_never_began_is_told_of_when_it_is_given_up(ground: Ground) -> None:
    job = ground.job()
    for _ in range(3):
        assert ground.later(timedelta(hours=2)) == 0
        assert ground.lost() == []
    ground.gateway.cancel(job)
    ground.later()
    told = ground.told()
    assert (told["because"], told["words"]) == ("it never began", "CANCELLED by 0")
    assert told["remedy"] == "hand rerun.sbatch to sbatch again"


def test_a_job_is_told_of_once_and_its_end_takes_the_place_of_what_was_told_before(ground: Ground) -> None:
    job = ground.job("RUNNING")
    ground.later(BEGIN_PATIENCE)
    assert ground.told()["words"] == "RUNNING"
    ground.gateway.set_state(job, "TIMEOUT", exit_code=0, signal=15)
    for comparison in (ground.comparison, ground.another(), ground.another()):
        ground.ahead += WORD_PATIENCE * 2
        comparison.look()
    assert (ground.told()["words"], ground.told()["signal"]) == ("TIMEOUT", 15)


def test_what_was_told_stands_a_while_and_then_its_run_is_looked_for_again(ground: Ground) -> None:
    job = ground.job("FAILED", exit_code=1)
    ground.later()
    plan = ground.makes(job)  # seen late, over NFS
    assert ground.later(timedelta(minutes=1)) == 0
    assert ground.later(TOLD_FOR) == 1
    assert ground.told()[CAME_HOME] == plan.run_id


def test_a_word_after_all_says_so_at_the_parent(ground: Ground) -> None:
    job = ground.job("FAILED", exit_code=1)
    plan, request = ground.reruns.made_by(here(job), ground.parent, root=ground.reruns.folder / "scratch")
    ground.later()
    assert CAME_HOME not in ground.told()
    leave_word(plan, here(job), request)
    assert ground.reruns.adopter.adopt_all() == 1
    assert ground.told()[CAME_HOME] == plan.run_id
    ground.later()
    assert ground.told()[CAME_HOME] == plan.run_id
    shown = ground.shown()
    assert "no run of it is known" not in shown
    assert f"made it again as run {plan.run_id}" in shown


def test_a_directory_that_is_imported_says_so_too(ground: Ground) -> None:
    job = ground.job("FAILED", exit_code=1)
    scratch = ground.reruns.folder / "scratch"
    plan = ground.makes(job, root=scratch)
    claim = RunDirectory(plan.run_directory).attempt(1).claim
    claim.parent.mkdir(parents=True, exist_ok=True)
    owner = {"cluster": job.cluster, "job_id": str(job.job_id), "restarts": 0}
    claim.write_text(json.dumps(owner | {"claimed_at": utc_now().isoformat()}))
    ground.later()
    *_, done = import_runs(ground.store, scratch, owner=os.getuid())
    assert done.new == [plan.run_id]
    assert ground.told()[CAME_HOME] == plan.run_id


def test_files_that_are_not_the_jobs_owners_are_not_taken(ground: Ground) -> None:
    as_root()
    job = ground.job("COMPLETED", exit_code=0)
    plan = ground.makes(job)
    script = RunDirectory(plan.run_directory).script
    os.chown(script, NOBODY, NOBODY)
    ground.later()
    assert ground.runs() == []
    assert f"{script}: is nobody's, and the job, or the word for it, is {ME}'s" in str(ground.told()["because"])


def test_a_directory_that_is_only_begun_is_named(ground: Ground) -> None:
    job = ground.job("NODE_FAIL")
    submitted = RunDirectory(ground.makes(job).run_directory).submitted
    submitted.unlink()  # it is written last
    ground.later()
    assert f"{submitted}: " in str(ground.told()["because"])


def test_a_plan_of_another_parent_is_not_taken(ground: Ground) -> None:
    job = ground.job("COMPLETED", exit_code=0)
    plan = ground.makes(job)
    other = replace(plan, parent_run="00000000-0000-4000-8000-000000000000")
    RunDirectory(plan.run_directory).plan.write_text(json.dumps(plan_to_json(other)))
    ground.later()
    assert ground.runs() == []
    assert "isn't a plan to make run" in str(ground.told()["because"])


def test_a_word_that_was_put_aside_is_told_of_with_the_same_reason(ground: Ground) -> None:
    job = ground.job("COMPLETED", exit_code=0)
    plan, request = ground.reruns.made_by(here(job), ground.parent)
    leave_word(plan, here(job), request)
    RunDirectory(plan.run_directory).template.unlink()
    ground.reruns.adopter.adopt_all()
    (reason,) = (request.drop / ASIDE).glob("*.reason")
    ground.later()
    assert str(ground.told()["because"]) in reason.read_text()


def test_a_job_whose_parent_is_not_here_is_logged_once(ground: Ground, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="orchestrator.unreported")
    tag = RerunTag(parent="00000000-0000-4000-8000-000000000000")
    job = ground.gateway.hand_over(tag, user=ME, working_directory=ground.reruns.home)
    ground.gateway.set_state(job, "FAILED", exit_code=1)
    for _ in range(3):
        assert ground.later() == 0
    assert caplog.text.count("which isn't here") == 1
    assert ground.lost() == []


# ----------------------------------------------------------------------------------------- which place is asked when


def asked(ground: Ground, place: str = "accounted_reruns") -> int:
    return ground.gateway.calls.count(place)


def test_accounting_is_asked_at_first_and_then_seldom(ground: Ground) -> None:
    ground.comparison.look()
    for _ in range(20):
        ground.later(timedelta(minutes=1))
    assert (asked(ground), asked(ground, "queued_reruns")) == (1, 21)
    ground.later(ACCOUNTED_EVERY)
    assert asked(ground) == 2


def test_a_job_that_left_the_controller_between_two_looks_is_asked_for(ground: Ground) -> None:
    ground.comparison.look()
    job = ground.job("RUNNING")
    plan = ground.makes(job)
    ground.later()
    ground.gateway.set_state(job, "COMPLETED", exit_code=0)
    ground.gateway.purge(job)
    assert ground.later(ACCOUNTED_SOON) == 1
    assert ground.runs() == [plan.run_id]


def test_a_job_that_came_and_went_while_no_service_ran_is_found_by_the_next(ground: Ground) -> None:
    ground.comparison.look()
    job = ground.job("FAILED", exit_code=2)
    ground.gateway.purge(job)
    ground.ahead += timedelta(days=3)
    ground.another().look()
    assert ground.told()["job_id"] == job.job_id


def test_how_far_back_is_looked_has_an_end(ground: Ground) -> None:
    ground.comparison.look()
    job = ground.job("FAILED", exit_code=2)
    ground.gateway.purge(job)
    ground.ahead += LONGEST_LOOK + timedelta(hours=1)
    ground.another().look()
    assert ground.lost() == []


@pytest.mark.parametrize("text", ["yesterday", "", "2999-01-01T00:00:00+00:00"])
def test_a_note_that_cannot_be_meant_hides_no_job(ground: Ground, text: str) -> None:
    ground.comparison.look()
    (ground.reruns.drop / COMPARED / "until").write_text(text)
    job = ground.job("FAILED", exit_code=2)
    ground.gateway.purge(job)
    ground.ahead += timedelta(minutes=10)
    ground.another().look()
    assert ground.told()["job_id"] == job.job_id


def test_without_a_drop_folder_jobs_are_found_and_the_obstacle_is_told(ground: Ground) -> None:
    job = ground.job("COMPLETED", exit_code=0)
    plan = ground.makes(job)
    drop = ground.reruns.drop
    drop.rename(drop.with_name("away"))
    drop.touch()
    ground.ahead += WORD_PATIENCE * 2
    with pytest.raises(RunDirectoryUnavailable, match=r"\.reruns"):
        ground.comparison.look()
    assert ground.runs() == [plan.run_id]
    assert ground.later() == 0
    assert asked(ground) == 1


def test_accounting_that_gives_no_answer_holds_up_no_job_of_the_controller_and_is_asked_again_soon(
    ground: Ground,
) -> None:
    plan = ground.makes(ground.job("COMPLETED", exit_code=0))
    ground.gateway.accounting_up = False
    ground.ahead += WORD_PATIENCE * 2
    with pytest.raises(GatewayUnavailable):
        ground.comparison.look()
    assert ground.runs() == [plan.run_id]
    assert ground.later(timedelta(minutes=1)) == 0
    ground.gateway.accounting_up = True
    ground.later(ACCOUNTED_SOON)
    assert asked(ground) == 2


def test_a_job_that_nobody_knows_any_more_is_told_of_with_what_was_last_heard(ground: Ground) -> None:
    job = ground.job("RUNNING")
    ground.later()
    ground.gateway.purge(job, accounting=True)
    ground.later(ACCOUNTING_LAG)
    assert (ground.told()["words"], ground.told()["because"]) == (
        "RUNNING", "it left no word, and SLURM doesn't know it any more",
    )  # fmt: skip
    assert ground.later(ACCOUNTING_LAG) == 0


def test_a_fault_with_one_job_is_logged_and_holds_up_no_other(ground: Ground, caplog: pytest.LogCaptureFixture) -> None:
    bad, good = (ground.job("COMPLETED", exit_code=0) for _ in range(2))
    plans = [ground.makes(job) for job in (bad, good)]
    document = plan_to_json(plans[0]) | {"recipe": {"not": "a name"}}
    RunDirectory(plans[0].run_directory).plan.write_text(json.dumps(document))
    assert ground.later() == 1
    assert ground.runs() == [plans[1].run_id]
    assert f"job {bad} of {ME}, which made run {ground.parent.summary.run_id} again, can't be dealt with" in caplog.text
    assert ground.lost() == []
    ground.gateway.purge(bad)
    ground.later(timedelta(minutes=30))
    assert asked(ground) == 1


def test_a_store_that_is_away_is_told_and_the_job_is_found_afterwards(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = ground.makes(ground.job("COMPLETED", exit_code=0))
    with monkeypatch.context() as patch:
        patch.setattr(type(ground.store), "record_adopted", lambda *_: unavailable())
        with pytest.raises(StoreUnavailable):
            ground.later()
    assert ground.later() == 1
    assert ground.runs() == [plan.run_id]


def unavailable() -> None:
    raise StoreUnavailable("locked")


def as_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: only root can give files to another user")
