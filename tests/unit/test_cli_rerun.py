"""``orchestrator rerun``: one run again, or those of a visit; what it says before it does anything."""

from __future__ import annotations

import getpass
import json
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from orchestrator.cli.common import ExitCode
from orchestrator.provenance import Intent
from orchestrator.records import JobIdentity, Origin, Resources, RunState, RunTag, SubmittedJob
from orchestrator.rendering.rerun import read_parameters
from tests.unit.site_with_runs import NOON, SCRIPT, SiteWithRuns


@pytest.fixture
def parent(site: SiteWithRuns) -> RunTag:
    return site.complete()


def by_hand(site: SiteWithRuns, parent: RunTag, requester: str) -> str:
    """Put a run into the store that somebody has made with sbatch; return its id."""
    before = site.store.run(parent.run_id).plan
    plan = replace(before, run_id="5" * 36, parent_run=parent.run_id, requester=requester)
    tag = RunTag(run_id=plan.run_id, attempt=1)
    job = SubmittedJob(identity=JobIdentity(cluster="live", job_id=99, submitted_at=NOON), gateway="cli", adopted=True)
    later = site.store.run(parent.run_id).summary.created_at + timedelta(seconds=1)
    assert site.store.record_adopted(plan, Intent(tag=tag, script=SCRIPT), job, {"how": "sbatch"}, later)
    return plan.run_id


def test_the_new_run_has_the_parent_its_template_and_what_was_changed(site: SiteWithRuns, parent: RunTag) -> None:
    changes = ("--set", "bins=2000", "--set", "unit=2th_deg", "--set", "mask=null", "--unset", "range")
    (told,) = site.told("rerun", parent.run_id[:8], *changes, "--ntasks", "7", "--because", "peaks", "--json")
    before, again = site.store.run(parent.run_id), site.store.run(told["run_id"])
    values = {one.name: (one.value, one.origin) for one in again.plan.parameters}
    user = Origin.USER
    assert values == {"bins": (2000, user), "unit": ("2th_deg", user), "mask": (None, user)}
    assert (again.summary.state, again.summary.parent_run) == (RunState.PLANNED, parent.run_id)
    assert (again.plan.template_of, again.plan.because) == (parent.run_id, "peaks")
    assert again.summary.requester == getpass.getuser()
    assert again.plan.resources == replace(before.plan.resources, ntasks=7)
    assert again.message is not None
    assert before.message is not None
    assert (again.message.message_id, again.message.note) == (before.message.message_id, before.message.note)


def test_what_is_not_changed_keeps_who_decided_it(site: SiteWithRuns, parent: RunTag) -> None:
    (told,) = site.told("rerun", "latest", "--set", "bins=1000", "--json")
    assert site.store.run(told["run_id"]).plan.parameters == site.store.run(parent.run_id).plan.parameters
    assert "The service submits them" in site.call("rerun", parent.run_id)


def test_what_is_no_json_is_a_word(site: SiteWithRuns, parent: RunTag) -> None:
    (told,) = site.told("rerun", parent.run_id, "--set", "bins=NaN", "--set", "x=1e999", "--set", "y=1e3", "--json")
    values = site.store.run(told["run_id"]).plan.parameter_values()
    assert (values["bins"], values["x"], values["y"]) == ("NaN", "1e999", 1000.0)


def test_another_template_is_the_sites(site: SiteWithRuns, parent: RunTag) -> None:
    (told,) = site.told("rerun", parent.run_id, "--template", "projection.sbatch.j2", "--json")
    plan = site.store.run(told["run_id"]).plan
    assert (plan.template, plan.template_of) == ("projection.sbatch.j2", None)


def test_a_dry_run_says_what_would_be_done_and_does_nothing(site: SiteWithRuns, parent: RunTag) -> None:
    said = site.call("rerun", parent.run_id, "--set", "bins=7", "--dry-run")
    assert parent.run_id in said
    assert '{"bins": 7}' in said
    assert "1 runs; nothing was done." in site.said
    assert len(site.store.runs()) == 1


def test_print_gives_the_script_with_the_changes_and_records_nothing(site: SiteWithRuns, parent: RunTag) -> None:
    script = site.call("rerun", parent.run_id, "--set", "bins=7", "--print")
    assert subprocess.run(["bash", "-n"], input=script.encode(), check=False).returncode == 0
    start = script.index("\n", script.index("cat << 'END_OF_PARAMETERS'"))
    assert read_parameters(script[start : script.index("\nEND_OF_PARAMETERS\n")]) == {"bins": 7, "range": [0.1, 3.5]}
    assert f"#SBATCH --job-name=rerun-{parent.run_id}\n" in script
    assert f"\nparent={site.store.run(parent.run_id).summary.run_directory}\n" in script
    assert len(site.store.runs()) == 1


# ----------------------------------------------------------------------------------------------------- many runs


def test_the_newest_run_of_each_chosen_collection_is_made_again_oldest_first(site: SiteWithRuns) -> None:
    site.complete("c-1")
    second = site.complete("c-1", job_id=43)  # the first one again
    third = site.complete("c-2", job_id=44)
    site.complete("c-3", job_id=45, visit="cm2-2")
    site.complete("c-4", job_id=46, recipe="projection")
    words = ("rerun", "--recipe", "azimuthal", "--where", "visit=cm1-1", "--where", "state=complete")
    told = site.told(*words, "--set", "poni=/new.poni", "--dry-run", "--json")
    assert [one["parent"] for one in told] == [second.run_id, third.run_id]
    assert {json.dumps(one["changes"]) for one in told} == {'{"poni": "/new.poni"}'}
    made = site.told(*words, "--set", "poni=/new.poni", "--json")
    assert [one["parent_run"] for one in made] == [second.run_id, third.run_id]


def test_a_run_that_another_user_made_by_hand_is_not_run_as_this_one(site: SiteWithRuns, parent: RunTag) -> None:
    run_id = by_hand(site, parent, "mallory")
    site.call("rerun", run_id, code=ExitCode.INVALID_INPUT)
    said = " ".join(site.said.split())
    assert "was made by mallory with sbatch" in said
    assert f"or make run {parent.run_id} again" in said
    told = site.told("rerun", "--recipe", "azimuthal", "--dry-run", "--json")
    assert [one["parent"] for one in told] == [parent.run_id]


def test_a_run_that_one_has_made_by_hand_may_be_made_again(site: SiteWithRuns, parent: RunTag) -> None:
    run_id = by_hand(site, parent, getpass.getuser())
    (told,) = site.told("rerun", run_id, "--json")
    assert told["parent_run"] == run_id


# ------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ((), ExitCode.USAGE, "give a run, or --recipe and --where"),
        (("latest", "--recipe", "azimuthal"), ExitCode.USAGE, "give a run, or --recipe and --where"),
        (("--recipe", "azimuthal", "--print"), ExitCode.USAGE, "--print is for one run"),
        (("latest", "--set", "bins"), ExitCode.INVALID_INPUT, "--set bins: isn't NAME=VALUE"),
        (("latest", "--set", "2=3"), ExitCode.INVALID_INPUT, "--set 2=3: isn't NAME=VALUE"),
        (("latest", "--set", "range=[1,"), ExitCode.INVALID_INPUT, "the value isn't JSON"),
        (("latest", "--unset", "nothing"), ExitCode.INVALID_INPUT, "--unset nothing: run"),
        (("--recipe", "azimuthal", "--where", "weather=bad"), ExitCode.INVALID_INPUT, "the keys are beamline"),
        (("--recipe", "azimuthal", "--where", "state=well"), ExitCode.INVALID_INPUT, "one of planned, submitting"),
        (("--recipe", "azimuthal", "--where", "since=soon"), ExitCode.USAGE, "soon"),
        (("--recipe", "unknown"), ExitCode.NOT_FOUND, "no run is chosen by these conditions"),
        (("ffff",), ExitCode.NOT_FOUND, "ffff"),
    ],
)
def test_mistakes_are_named_and_nothing_is_recorded(
    site: SiteWithRuns, parent: RunTag, words: tuple[str, ...], code: ExitCode, told: str
) -> None:
    site.call("rerun", *words, code=code)
    assert told in " ".join(site.said.split())
    assert len(site.store.runs()) == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--set", "binz=5"), "kernel azimuthal: binz: unknown, did you mean bins?"),
        (("--set", "bins=0", "--print"), "kernel azimuthal: bins: Input should be greater than or equal to 1"),
    ],
)
def test_what_the_kernel_does_not_take_is_refused_before_there_is_a_job(
    site: SiteWithRuns, words: tuple[str, ...], told: str
) -> None:
    site.submitted(python=Path(sys.executable))
    site.call("rerun", "latest", "--unset", "range", *words, code=ExitCode.INVALID_INPUT)
    assert told in " ".join(site.said.split())
    assert len(site.store.runs()) == 1
    (again,) = site.told("rerun", "latest", "--unset", "range", "--set", "bins=5", "--json")
    assert again["state"] == "planned"


def test_a_run_without_a_script_has_none_to_print(site: SiteWithRuns) -> None:
    tag = site.planned()
    site.call("rerun", tag.run_id, "--print", code=ExitCode.NOT_FOUND)
    assert "has no script: no attempt was made" in " ".join(site.said.split())


def test_resources_but_the_ranks_are_the_parents(site: SiteWithRuns) -> None:
    tag = site.complete(resources=Resources(ntasks=3, memory_mb=9))
    (told,) = site.told("rerun", tag.run_id, "--json")
    assert site.store.run(told["run_id"]).plan.resources == Resources(ntasks=3, memory_mb=9)
