"""Runs that are made again through the service: what is planned, what is rendered, and how many have jobs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from orchestrator.errors import InvalidInput
from orchestrator.planning import repeated
from orchestrator.provenance import RunDetail
from orchestrator.records import ArrayPlan, JobPlan, Json, Origin, Parameter, Resources, RunState
from orchestrator.runs import RunDirectory
from tests.unit.reruns import Reruns


@pytest.fixture
def reruns(tmp_path: Path) -> Iterator[Reruns]:
    reruns = Reruns(tmp_path)
    yield reruns
    reruns.trip.store.close()


@pytest.fixture
def parent(reruns: Reruns) -> RunDetail:
    return reruns.parent()


def again(parent: JobPlan, parameters: dict[str, Json] | None = None, **changes: object) -> JobPlan:
    wanted = parent.parameter_values() if parameters is None else parameters
    plain = {"run_id": str(uuid4()), "root": Path("/runs"), "requester": "ann", "because": "why"}
    return repeated(parent, wanted, **plain | changes)  # type: ignore[arg-type]


def test_what_is_not_changed_is_the_parents(parent: RunDetail) -> None:
    before = replace(parent.plan, submit_as="gda", requester="automatic")
    plan = again(before)
    own = {"run_id", "run_directory", "requester", "parent_run", "template_of", "because"}
    assert {name: value for name, value in vars(plan).items() if name not in own} == {
        name: value for name, value in vars(before).items() if name not in own
    }
    assert (plan.parent_run, plan.template_of) == (before.run_id, before.run_id)
    assert (plan.requester, plan.because) == ("ann", "why")
    assert plan.run_directory.is_relative_to("/runs")
    assert plan.run_id[:8] in plan.run_directory.name


def test_a_value_that_is_another_is_the_users_and_kinds_are_told_apart(parent: RunDetail) -> None:
    before = replace(
        parent.plan,
        parameters=tuple(Parameter(name=name, value=value, origin=Origin.SITE, place="site")
                         for name, value in (("a", 1), ("b", [1, {"x": 2, "y": 3}]), ("c", None), ("d", 0))),
    )  # fmt: skip
    plan = again(before, {"a": True, "b": [1, {"y": 3, "x": 2}], "d": 0.0, "new": None})
    place = f"rerun of {before.run_id}"
    assert [(one.name, one.origin, one.place) for one in plan.parameters] == [
        ("a", Origin.USER, place), ("b", Origin.SITE, "site"), ("d", Origin.USER, place), ("new", Origin.USER, place),
    ]  # fmt: skip


def test_file_dataset_template_and_resources_may_be_others(parent: RunDetail) -> None:
    asked = Resources(ntasks=9)
    plan = again(parent.plan, file=Path("/other.h5"), dataset="/raw", template="other.sbatch.j2", resources=asked)
    assert (plan.collection.file, plan.collection.dataset, plan.resources) == (Path("/other.h5"), "/raw", asked)
    assert (plan.template, plan.template_of) == ("other.sbatch.j2", None)


def test_an_array_has_a_task_for_each_value_that_it_has_now(parent: RunDetail) -> None:
    before = replace(parent.plan, array=ArrayPlan(parameter="bins", values=(1, 2), at_most=3))
    plan = again(before, {"bins": [5, 6, 7]})
    assert plan.array == ArrayPlan(parameter="bins", values=(5, 6, 7), at_most=3)
    for wrong in ({}, {"bins": 5}, {"bins": []}):
        with pytest.raises(InvalidInput, match="parameter bins isn't a list of values"):
            again(before, wrong)


# ----------------------------------------------------------------------------------------------------- submitted


def planned(reruns: Reruns, parent: RunDetail, **changes: object) -> str:
    plan = again(parent.plan, root=reruns.trip.settings.runs_root, **changes)
    reruns.trip.store.record_runs(parent.message.message_id if parent.message else None, [plan], note="", handled=False)
    return plan.run_id


def test_the_parents_template_is_rendered_though_the_sites_has_changed(reruns: Reruns, parent: RunDetail) -> None:
    (reruns.templates / "echo.sbatch.j2").write_text("#!/bin/bash\necho another\n")
    (reruns.templates / "_begin.j2").unlink()
    run_id = planned(reruns, parent)
    assert reruns.trip.dispatcher.submit_planned() == 1
    run = reruns.trip.store.run(run_id)
    assert run.attempts[0].template_text == parent.attempts[0].template_text
    assert "the first template" in run.attempts[0].script_text
    assert run_id in run.attempts[0].script_text
    assert "rerun.sbatch" in {path.name for path in run.summary.run_directory.iterdir()}


def test_another_template_is_the_sites_as_it_is_now(reruns: Reruns, parent: RunDetail) -> None:
    (reruns.templates / "other.sbatch.j2").write_text('#!/bin/bash\n{% include "_sbatch.j2" %}\necho another\n')
    run_id = planned(reruns, parent, template="other.sbatch.j2")
    reruns.trip.dispatcher.submit_planned()
    assert reruns.trip.store.run(run_id).attempts[0].script_text.endswith("echo another\n")


def test_a_parent_that_never_had_a_script_refuses_the_rerun_with_the_remedy(reruns: Reruns, parent: RunDetail) -> None:
    reruns.trip.start("c2")
    reruns.trip.dispatcher.plan_waiting()
    never = reruns.trip.run("c2")
    run_id = planned(reruns, never)
    reruns.trip.store.record_refused_run(never.summary.run_id, "no")
    reruns.trip.dispatcher.submit_planned()
    summary = reruns.trip.store.run(run_id).summary
    assert summary.state is RunState.REFUSED
    assert f"run {never.summary.run_id} has no template" in summary.reason
    assert "say which with --template" in summary.reason


def test_a_parent_that_is_not_in_the_database_refuses_the_rerun_with_the_remedy(
    reruns: Reruns, parent: RunDetail
) -> None:
    unknown = "11111111-1111-4111-8111-111111111111"
    plan = replace(again(parent.plan, root=reruns.folder), parent_run=unknown, template_of=unknown)
    reruns.trip.store.record_runs(None, [plan], note="")
    reruns.trip.dispatcher.submit_planned()
    summary = reruns.trip.store.run(plan.run_id).summary
    assert summary.state is RunState.REFUSED
    assert f"there is no run '{unknown}': its template was to be rendered" in summary.reason
    assert "`orchestrator db import` its directory" in summary.reason


def test_so_many_reruns_have_jobs_as_the_site_says_and_others_go_before_them(reruns: Reruns, parent: RunDetail) -> None:
    trip = reruns.trip
    reruns_settings = trip.settings.reruns.model_copy(update={"at_most": 2})
    trip.dispatcher = replace(
        trip.new_dispatcher(), settings=trip.settings.model_copy(update={"reruns": reruns_settings})
    )
    ids = [planned(reruns, parent) for _ in range(5)]
    trip.start("live")
    trip.dispatcher.plan_waiting()
    assert trip.dispatcher.submit_planned() == 3
    states = [trip.store.run(run_id).summary for run_id in ids]
    assert sorted(run.state for run in states) == [RunState.PENDING] * 2 + [RunState.PLANNED] * 3
    waiting = "waiting: 2 runs that are made again have jobs ([reruns] at_most)"
    assert {run.reason for run in states if run.state is RunState.PLANNED} == {waiting}
    assert trip.run("live").summary.state is RunState.PENDING
    assert trip.dispatcher.submit_planned() == 0
    first = next(run for run in states if run.state is RunState.PENDING)
    trip.store.finish_run(first.run_id, RunState.COMPLETE, "")
    assert trip.dispatcher.submit_planned() == 1
    assert RunDirectory(first.run_directory).rerun.exists()
