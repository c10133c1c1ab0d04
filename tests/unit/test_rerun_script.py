"""``rerun.sbatch``: its block of parameters is read as it was written, and nothing leaves its place in the script."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import InvalidInput
from orchestrator.records import ArrayPlan, CollectionStart, JobPlan, Json, Origin, Parameter, Resources
from orchestrator.rendering import render, rerun_script
from orchestrator.rendering.rerun import END_OF_PARAMETERS, read_parameters
from tests.unit.test_rendering import NASTY, RUN_ID, SHIPPED, plan_of

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,20}", fullmatch=True)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | st.integers() | FINITE | st.text() | st.sampled_from(NASTY)
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=8
)


def parameter(name: str, value: Json, origin: Origin = Origin.RECIPE) -> Parameter:
    return Parameter(name=name, value=value, origin=origin, place="here")


def written(plan: JobPlan) -> str:
    script = render(plan, 1, SHIPPED)
    return rerun_script(plan, script, root=Path("/runs"), drop=Path("/runs/.reruns"))


def with_parameters(**values: Json) -> JobPlan:
    return plan_of(parameters=tuple(parameter(name, value) for name, value in values.items()))


def block(script: str) -> str:
    """Return what bash hands over of a script: the block as the job would read it."""
    function = script[script.index("parameters() {") : script.index("\ninput=")]
    done = subprocess.run(["bash", "-c", f"{function}\nparameters"], capture_output=True, check=True)
    return done.stdout.decode()


# --------------------------------------------------------------------------------------------------- its block


@given(st.dictionaries(NAMES, VALUES, max_size=6))
def test_every_value_comes_back_as_it_was(values: dict[str, Json]) -> None:
    text = written(with_parameters(**values))
    start = text.index("\n", text.index(f"<< '{END_OF_PARAMETERS}'")) + 1
    read = read_parameters(text[start : text.index(f"\n{END_OF_PARAMETERS}\n")])
    assert json.dumps(read, sort_keys=True) == json.dumps(values, sort_keys=True)  # 1 isn't true, nor 1.0


def test_values_come_back_through_bash_too_whatever_they_say(tmp_path: Path) -> None:
    values: dict[str, Json] = {f"value_{number}": text for number, text in enumerate(NASTY)}
    values |= {"end": f"\n{END_OF_PARAMETERS}\n}}\ntouch {tmp_path}/hacked\n", "half": "\udcff", "nul": "\0"}
    assert read_parameters(block(written(with_parameters(**values)))) == values
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("name", [END_OF_PARAMETERS + "\n}\ntouch hacked\n", "a\nb", "two words", " a", "bins\n", ""])
def test_a_name_that_is_none_stays_a_comment(name: str) -> None:
    plan = plan_of(parameters=(parameter(name, 1), parameter("bins", 2)))
    assert read_parameters(block(written(plan))) == {"bins": 2}


def test_values_are_read_with_comments_blanks_and_lines_of_their_own() -> None:
    text = """
    # all of it by hand
bins=500#half as many
  unit\t=  "q_A^-1"   # not "2th # deg"

mask = null
radial_range = [
  0.5,
  4
]  # in A^-1
"""
    assert read_parameters(text) == {"bins": 500, "unit": "q_A^-1", "mask": None, "radial_range": [0.5, 4]}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("bins = 1\nbins 500", "line 2 ('bins 500'): isn't name = value"),
        ("\n\nunit = q_A^-1", "line 3 ('unit = q_A^-1'): the value of unit isn't JSON"),
        ("unit = 'q'", "the value of unit isn't JSON"),
        ("mask = None", "the value of mask isn't JSON"),
        ("mask =", "line 1 ('mask ='): the value of mask isn't JSON"),
        ("bins = 5, # five", "line 1 ('bins = 5, # five'): something stands behind the value of bins"),
        ("bins = 5 unit = 7", "something stands behind the value of bins"),
        ("a = 1\n#\na = 2", "line 3 ('a = 2'): a is there a second time"),
        ("range = [1,\n2", "line 1 ('range = [1,'): the value of range isn't JSON"),
        ("x = NaN", "NaN isn't a value"),
        ("x = -Infinity", "-Infinity isn't a value"),
        ("x = 1e999", "1e999 is too large"),
        ("x = " + "[" * 100_000, "the value of x isn't JSON"),
        ("2theta = 1", "isn't name = value"),
    ],
)
def test_a_broken_edit_is_named_with_its_line_and_the_remedy(text: str, told: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        read_parameters(text)
    assert told in str(raised.value)
    assert "write for example bins = 500" in raised.value.remedy


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        values = read_parameters(text)
    except InvalidInput:
        return
    assert all(name.isidentifier() for name in values)
    assert not any(isinstance(value, float) and not math.isfinite(value) for value in values.values())


# ---------------------------------------------------------------------------------------------------- the script


def parses(script: str) -> bool:
    return subprocess.run(["bash", "-n"], input=script.encode(), check=False).returncode == 0


def options(script: str) -> list[str]:
    return [line for line in script.splitlines() if line.startswith("#SBATCH")]


def test_it_asks_slurm_for_what_the_run_asked_for_and_has_a_name_of_its_own() -> None:
    asked = Resources(ntasks=4, cpus_per_task=2, memory_mb=500, time_limit_min=30, partition="live", account="i22")
    plan = plan_of(resources=asked)
    parents, own = options(render(plan, 1, SHIPPED).text), options(written(plan))
    its = ("job-name", "comment", "chdir", "output", "open-mode")
    taken = [line for line in parents if not any(line.startswith(f"#SBATCH --{name}=") for name in its)]
    name, comment = f"#SBATCH --job-name=rerun-{RUN_ID}", f'#SBATCH --comment="orchestrator rerun={RUN_ID}"'
    assert own == [name, comment, "#SBATCH --output=rerun-%j.log", *taken]
    assert {"#SBATCH --ntasks=4", "#SBATCH --mem=500M", "#SBATCH --partition=live", "#SBATCH --account=i22"} <= set(own)


def test_nothing_stands_before_the_options_that_sbatch_would_stop_at() -> None:
    lines = written(plan_of()).splitlines()
    last = max(number for number, line in enumerate(lines) if line.startswith("#SBATCH"))
    assert all(line.startswith("#") for line in lines[:last])


@pytest.mark.parametrize("nasty", [*(text for text in NASTY if text), f"\n{END_OF_PARAMETERS}\n", "\n#SBATCH --time=1"])
def test_nothing_that_came_from_outside_leaves_its_place(nasty: str, tmp_path: Path) -> None:
    collection = CollectionStart(
        uid=nasty, beamline="b", detector="d", file=Path(f"/data/{nasty}.h5"), dataset=f"/{nasty}"
    )
    plain = written(plan_of())
    plan = plan_of(collection=collection, recipe=nasty, run_directory=Path(f"/runs/{nasty}"))
    script = rerun_script(plan, render(plan_of(), 1, SHIPPED), root=tmp_path / nasty, drop=Path(f"/drop {nasty}"))
    assert parses(script)
    assert options(script) == options(plain)
    assert len(script.splitlines()) >= len(plain.split("\n")) - 1
    assert script.count("\n") == plain.count("\n")  # no value has a line of its own
    assigned = script[script.index("\ninput=") : script.index("# Why you run it again")]
    told = subprocess.run(
        ["bash", "-c", f'{assigned}\nprintf "%s\\0" "$input" "$dataset"'], capture_output=True, check=True, cwd=tmp_path
    )
    assert told.stdout.split(b"\0")[:2] == [str(collection.file).encode(), collection.dataset.encode()]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("modules", [(), ("openmpi/4.1", "hdf5")])
def test_bash_can_parse_it(modules: tuple[str, ...]) -> None:
    script = written(plan_of(modules=modules))
    assert parses(script)
    assert ("module load openmpi/4.1 hdf5 ||" in script) == bool(modules)


def test_of_a_job_array_it_says_which_parameter_has_a_task_each_and_that_it_needs_slurm(tmp_path: Path) -> None:
    array = ArrayPlan(parameter="bins", values=(100, 200))
    script = written(plan_of(parameters=(parameter("bins", [100, 200]),), array=array, run_directory=tmp_path))
    assert parses(script)
    assert "#SBATCH --array=0-1" in options(script)
    assert "bins = [100, 200]  # recipe; a task for each, see --array above" in script
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, env={"PATH": "/bin"})
    assert (done.returncode, done.stderr) == (2, "error: the run is a job array: hand this script to sbatch\n")


def test_who_had_decided_each_parameter_stands_behind_it() -> None:
    parameters = (parameter("bins", 1000, Origin.USER), parameter("unit", "q_A^-1", Origin.SITE))
    lines = block(written(plan_of(parameters=parameters))).splitlines()
    assert lines == ["bins = 1000      # user", 'unit = "q_A^-1"  # site']


def test_the_interpreter_is_the_runs() -> None:
    assert f"\npython={sys.executable}\n" in written(plan_of())
