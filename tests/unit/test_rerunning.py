"""A ``rerun.sbatch`` that is run: what it makes, of which edits, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.injob import EXIT_CANNOT_WRITE
from orchestrator.records import Origin, Parameter
from orchestrator.rerunning import EXIT_WRONG_EDIT, HOME_FOLDER, user_name
from orchestrator.runs import RunDirectory
from tests import others
from tests.unit.reruns import IN_A_JOB, Reruns, plan_of

NOBODY = others.NOBODY.pw_uid


@pytest.fixture
def reruns(tmp_path: Path) -> Iterator[Reruns]:
    reruns = Reruns(tmp_path)
    yield reruns
    reruns.trip.store.close()


@pytest.fixture
def seen_by_all() -> Iterator[Path]:
    """Return a folder that other users may enter."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_without_edits_the_new_run_is_the_parents_with_nothing_changed(reruns: Reruns) -> None:
    parent = reruns.parent()
    made = reruns.made(RunDirectory(parent.summary.run_directory).rerun)
    plan = plan_of(made)
    expected = replace(
        parent.plan,
        run_id=plan.run_id,
        run_directory=made.path,
        parent_run=parent.summary.run_id,
        template_of=parent.summary.run_id,
        requester=user_name(os.getuid()),
        retries=plan.retries,
    )
    assert plan == expected
    assert plan.retries.most == 0  # the service can't submit as whoever made it
    assert made.path != parent.summary.run_directory
    assert made.message.read_bytes() == RunDirectory(parent.summary.run_directory).message.read_bytes()
    assert json.loads(made.result.read_text()) == parent.plan.parameter_values()
    assert f"the first template, in {made.path}" in made.attempt(1).log.read_text()
    assert made.rerun.is_file()
    assert made.submitted.read_bytes() == RunDirectory(parent.summary.run_directory).rerun.read_bytes()


def test_an_edit_is_the_users_and_the_others_keep_who_decided_them(reruns: Reruns) -> None:
    parent = reruns.parent()
    script = reruns.edited(
        parent, ("bins = ", "bins = 2000"), ("unit = ", "radial_range = [1, 2]"), ("because=", "because=why")
    )
    plan = plan_of(reruns.made(script))
    place = f"rerun of {parent.summary.run_id}"
    users = [Parameter(name=name, value=value, origin=Origin.USER, place=place)
             for name, value in (("bins", 2000), ("radial_range", [1, 2]))]  # fmt: skip
    kept = [one for one in parent.plan.parameters if one.name not in {"bins", "unit"}]
    assert sorted(plan.parameters, key=lambda one: one.name) == sorted([*users, *kept], key=lambda one: one.name)
    assert (plan.parent_run, plan.because) == (parent.summary.run_id, "why")


def test_input_and_dataset_may_be_others(reruns: Reruns) -> None:
    script = reruns.edited(reruns.parent(), ("input=", "input='/data/other one.h5'"), ("dataset=", "dataset=/raw"))
    collection = plan_of(reruns.made(script)).collection
    assert (collection.file, collection.dataset) == (Path("/data/other one.h5"), "/raw")


def test_the_template_is_the_parents_though_the_sites_has_changed(reruns: Reruns) -> None:
    parent = reruns.parent()
    (reruns.templates / "echo.sbatch.j2").write_text("#!/bin/bash\necho another\n")
    made = reruns.made(RunDirectory(parent.summary.run_directory).rerun)
    assert made.template.read_text() == parent.attempts[0].template_text


def test_a_template_of_ones_own_takes_its_place_and_may_include_the_parents(reruns: Reruns) -> None:
    own = reruns.folder / "own.sbatch.j2"
    own.write_text('#!/bin/bash\n{% include "_sbatch.j2" %}\n{% include "_begin.j2" %}\necho mine {{ plan.recipe }}\n')
    made = reruns.made(reruns.edited(reruns.parent(), ("template=", f"template={own}")))
    assert made.attempt(1).log.read_text().endswith("mine azimuthal\n")
    assert (plan_of(made).template, plan_of(made).template_of) == ("own.sbatch.j2", None)


def test_a_rerun_can_be_made_again(reruns: Reruns) -> None:
    first = reruns.made(RunDirectory(reruns.parent().summary.run_directory).rerun)
    text = first.rerun.read_text().replace("bins = 500", "bins = 7")
    (reruns.folder / "again.sbatch").write_text(text)
    second = plan_of(reruns.made(reruns.folder / "again.sbatch"))
    assert second.parent_run == plan_of(first).run_id
    assert second.parameter_values()["bins"] == 7


def test_two_starts_without_slurm_are_two_runs(reruns: Reruns) -> None:
    script = RunDirectory(reruns.parent().summary.run_directory).rerun
    assert reruns.made(script).path != reruns.made(script).path


# --------------------------------------------------------------------------------------------- in a job of SLURM


def test_a_job_that_slurm_requeues_is_the_same_run_and_another_job_of_that_id_another_one(reruns: Reruns) -> None:
    script = RunDirectory(reruns.parent().summary.run_directory).rerun
    first = reruns.made(script, **IN_A_JOB)
    plan = first.plan.read_bytes()
    assert reruns.made(script, **IN_A_JOB, SLURM_RESTART_COUNT="1").path == first.path
    assert first.plan.read_bytes() == plan
    later = reruns.made(script, **IN_A_JOB)  # its id is the first one's: SLURM's counter began anew
    assert later.path != first.path
    other = reruns.edited(reruns.trip.run(), ("bins = ", "bins = 3"))
    requeued = reruns.made(other, **IN_A_JOB, SLURM_RESTART_COUNT="1")
    assert requeued.path not in {first.path, later.path}


def test_what_slurm_gave_the_job_is_what_the_new_run_asked_for(reruns: Reruns) -> None:
    script = RunDirectory(reruns.parent().summary.run_directory).rerun
    given = {"SLURM_NTASKS": "6", "SLURM_CPUS_PER_TASK": "3", "SLURM_MEM_PER_NODE": "700"}
    account = {"SLURM_JOB_PARTITION": "long", "SLURM_JOB_ACCOUNT": "mine", "SLURM_JOB_QOS": "low"}
    asked = plan_of(reruns.made(script, **IN_A_JOB, **given, **account)).resources
    assert (asked.ntasks, asked.cpus_per_task, asked.memory_mb) == (6, 3, 700)
    assert (asked.partition, asked.account, asked.qos) == ("long", "mine", "low")


def test_slurm_that_cannot_be_asked_is_said_and_no_obstacle(reruns: Reruns) -> None:
    script = RunDirectory(reruns.parent().summary.run_directory).rerun
    done = reruns.handed_over(script, **IN_A_JOB)
    assert done.returncode == 0
    assert "warning: SLURM couldn't be asked about this job: " in done.stderr
    (word,) = reruns.drop.glob("*.json")
    told = json.loads(word.read_text())
    assert (told["cluster"], told["job_id"], told["slurm"]) == ("memory", 77, True)


class TestArrays:
    """The tasks of a job array make one run."""

    @pytest.fixture
    def reruns(self, tmp_path: Path) -> Iterator[Reruns]:
        template = 'echo "$SLURM_ARRAY_TASK_ID" >> {{ paths.run }}/tasks.txt\n'
        recipe = {"template": "tasks.sbatch.j2", "array": {"parameter": "bins", "values": [100, 200]}, "parameters": {}}
        reruns = Reruns(tmp_path, recipe=recipe)
        text = '#!/bin/bash\n{% include "_sbatch.j2" %}\n{% include "_begin.j2" %}\n' + template
        (reruns.templates / "tasks.sbatch.j2").write_text(text)
        yield reruns
        reruns.trip.store.close()

    def task(self, number: int, *, of: int = 2) -> dict[str, str]:
        job = IN_A_JOB | {"SLURM_JOB_ID": str(77 + number), "SLURM_ARRAY_JOB_ID": "77"}
        return job | {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_TASK_COUNT": str(of)}

    def test_each_task_finds_the_run_and_its_own_value(self, reruns: Reruns) -> None:
        script = reruns.edited(reruns.parent(), ("bins = ", "bins = [10, 20]"))
        runs = {reruns.made(script, **self.task(number)).path for number in (0, 1)}
        (path,) = runs
        made = RunDirectory(path)
        assert (path / "tasks.txt").read_text() == "0\n1\n"
        assert [json.loads(made.parameters_of(task).read_text())["bins"] for task in (0, 1)] == [10, 20]

    def test_values_and_tasks_that_do_not_fit_are_refused_with_the_remedy(self, reruns: Reruns) -> None:
        script = reruns.edited(reruns.parent(), ("bins = ", "bins = [10, 20, 30]"))
        done = reruns.handed_over(script, **self.task(0))
        assert done.returncode == EXIT_WRONG_EDIT
        assert "parameter bins has 3 values, and the job array has 2 tasks" in done.stderr
        assert "remedy: write #SBATCH --array=0-2" in done.stderr

    def test_an_array_without_values_is_refused(self, reruns: Reruns) -> None:
        done = reruns.handed_over(reruns.edited(reruns.parent(), ("bins = ", "bins = 5")), **self.task(0))
        assert done.returncode == EXIT_WRONG_EDIT
        assert "parameter bins isn't a list of values" in done.stderr


# ---------------------------------------------------------------------------------------------------- what is refused


def refused(reruns: Reruns, script: Path, code: int, **environment: str) -> str:
    done = reruns.handed_over(script, **environment)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert "Traceback" not in done.stderr
    assert list(reruns.drop.glob("*.json")) == []
    return done.stderr


def test_a_broken_edit_makes_nothing_and_is_named(reruns: Reruns) -> None:
    parent = reruns.parent()
    said = refused(reruns, reruns.edited(parent, ("bins = ", "bins = many")), EXIT_WRONG_EDIT)
    assert "line 1 ('bins = many'): the value of bins isn't JSON" in said
    assert "remedy: write for example bins = 500" in said
    assert [path.name for path in parent.summary.run_directory.parent.iterdir()] == [parent.summary.run_directory.name]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("binz = 5", "kernel azimuthal: binz: unknown, did you mean bins?"),
        ("bins = 0", "kernel azimuthal: bins: Input should be greater than or equal to 1"),
    ],
)
def test_an_edit_that_the_kernel_does_not_take_makes_nothing_and_is_named(reruns: Reruns, line: str, told: str) -> None:
    parent = reruns.parent()
    said = refused(reruns, reruns.edited(parent, ("bins = ", line)), EXIT_WRONG_EDIT)
    assert told in said
    assert "remedy: `orchestrator schema kernel/azimuthal` has what it takes" in said
    assert [path.name for path in parent.summary.run_directory.parent.iterdir()] == [parent.summary.run_directory.name]


def test_a_directory_that_was_moved_is_named_with_the_remedy(reruns: Reruns) -> None:
    parent = reruns.parent()
    script = reruns.edited(parent)
    moved = reruns.folder / "moved"
    shutil.move(parent.summary.run_directory, moved)
    said = refused(reruns, script, EXIT_WRONG_EDIT)
    assert f"{parent.summary.run_directory}/plan.json" in said
    assert "remedy: if the run's directory was moved, correct parent= in the script" in said
    made = plan_of(reruns.made(reruns.copied(script, ("parent=", f"parent={moved}"))))
    assert made.parent_run == parent.summary.run_id


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "plan.json: Expecting"),
        ('{"plan_version": 2}', "plan.json: plan_version is 2, this release reads 1"),
        ("[]", "plan.json: not a plan"),
        ("\x00", "plan.json: "),
    ],
)
def test_a_parents_record_that_cannot_be_used_is_named(reruns: Reruns, content: str, told: str) -> None:
    parent = RunDirectory(reruns.parent().summary.run_directory)
    parent.plan.write_text(content)
    said = refused(reruns, parent.rerun, EXIT_WRONG_EDIT)
    assert told in said
    assert "remedy: " in said


def test_a_template_that_is_not_there_is_named(reruns: Reruns) -> None:
    said = refused(reruns, reruns.edited(reruns.parent(), ("template=", "template=/no/own.j2")), EXIT_WRONG_EDIT)
    assert "/no/own.j2: " in said
    assert "correct template= in the script" in said


def test_a_template_with_a_mistake_is_named(reruns: Reruns) -> None:
    own = reruns.folder / "own.sbatch.j2"
    own.write_text("#!/bin/bash\n{{ nothing }}\n")
    said = refused(reruns, reruns.edited(reruns.parent(), ("template=", f"template={own}")), EXIT_WRONG_EDIT)
    assert "own.sbatch.j2, line 2" in said


@pytest.mark.parametrize("line", ["input=", "dataset=", "root="])
def test_a_name_that_is_not_utf8_is_refused_with_the_remedy(reruns: Reruns, line: str) -> None:
    script = reruns.edited(reruns.parent(), (line, f"{line}'{reruns.folder}/name'"))
    script.write_bytes(script.read_bytes().replace(b"/name'", b"/\xff\xe9'"))
    said = refused(reruns, script, EXIT_WRONG_EDIT)
    assert f"{line} in the script: " in said
    assert "remedy: rename it, or give a link to it whose name is UTF-8" in said


def test_a_script_from_a_pipe_is_refused(reruns: Reruns) -> None:
    parent = reruns.parent()
    script = reruns.edited(parent)
    piped = reruns.folder / "piped.sh"
    piped.write_text(f"cat {script} | bash\n")
    assert "hand it to bash or sbatch as a file" in refused(reruns, piped, EXIT_WRONG_EDIT)


def test_where_nobody_may_write_the_run_goes_home(reruns: Reruns) -> None:
    full = reruns.folder / "a file"
    full.touch()
    made = reruns.made(reruns.edited(reruns.parent(), ("root=", f"root='{full}/runs'")))
    assert made.path.is_relative_to(reruns.home / HOME_FOLDER)


def test_a_home_that_cannot_be_written_either_is_named(reruns: Reruns) -> None:
    script = reruns.edited(reruns.parent(), ("root=", "root=/dev/null/runs"))
    said = refused(reruns, script, EXIT_CANNOT_WRITE, HOME="/proc/nowhere")
    assert "/proc/nowhere" in said
    assert "remedy: correct root= in the script" in said


def test_a_drop_folder_that_is_not_there_is_said_and_no_obstacle(reruns: Reruns) -> None:
    parent = reruns.parent()
    shutil.rmtree(reruns.drop)
    done = reruns.handed_over(RunDirectory(parent.summary.run_directory).rerun)
    assert done.returncode == 0
    assert (
        f"warning: {reruns.drop}: No such file or directory: no word for the service; it looks for this job"
        in done.stderr
    )


def test_a_user_who_may_only_read_makes_a_run_of_his_own(seen_by_all: Path) -> None:
    reruns = Reruns(seen_by_all, python=others.python_for_nobody(seen_by_all))
    try:
        os.chown(reruns.home, NOBODY, NOBODY)
        parent = reruns.parent()
        made = reruns.made(RunDirectory(parent.summary.run_directory).rerun, user=NOBODY)
        assert made.path.is_relative_to(reruns.home / HOME_FOLDER)
        assert {path.stat().st_uid for path in (made.path, made.plan, made.result, made.submitted)} == {NOBODY}
        assert reruns.adopter.adopt_all() == 1
        run = reruns.trip.store.run(plan_of(made).run_id)
        assert run.summary.requester == user_name(NOBODY)
    finally:
        reruns.trip.store.close()
