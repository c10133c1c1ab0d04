"""``plan`` and ``site check`` as people call them."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.messages import end_document, start_document
from orchestrator.records import CollectionEnd, CollectionOutcome, CollectionStart
from orchestrator.runs import RunDirectory

ROOT = Path(__file__).parents[2]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """The embedded site in a folder of its own, with the data folder that it names."""
    for name in ("site-configs", "jobtemplates"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "runtime" / "embedded" / "data").mkdir(parents=True)
    return tmp_path / "site-configs" / "embedded.toml"


@pytest.fixture
def message(site: Path) -> Path:
    path = site.parents[1] / "start.json"
    start = CollectionStart(
        uid="uid-1", beamline="i22", detector="saxs", file=site.parents[1] / "runtime/embedded/data/scan [1].nxs",
        dataset="/entry/data", frames_expected=20, metadata={"azimuthal_bins": 321},
    )  # fmt: skip
    path.write_bytes(start_document(start))
    return path


def orchestrator(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_plan_says_what_who_and_where(site: Path, message: Path) -> None:
    code, out, _ = orchestrator("plan", message, "--site", site)
    assert code == 0
    assert "scan [1].nxs /entry/data, 20 frames" in out
    (bins,) = (line.split() for line in out.splitlines() if line.split()[:1] == ["bins"])
    assert bins == ["bins", "321", "message", "message:", "metadata.azimuthal_bins"]
    assert ", cpus_per_task 1, time_limit " in out


def test_a_message_is_taken_from_standard_input(site: Path, message: Path) -> None:
    result = CliRunner().invoke(app, ["plan", "-", "--site", str(site)], input=message.read_bytes())
    assert (result.exit_code, result.stdout) == orchestrator("plan", message, "--site", site)[:2]


def test_a_plan_as_json_holds_the_script_that_is_printed(site: Path, message: Path) -> None:
    _, out, _ = orchestrator("plan", message, "--site", site, "--json")
    _, script, _ = orchestrator("plan", message, "--site", site, "--script")
    plan = json.loads(out)["plans"][0]
    assert plan["script"] == script
    assert script.startswith("#!/bin/bash\n")
    assert plan["parameters"] == [
        {"name": "bins", "value": 321, "origin": "message", "place": "message: metadata.azimuthal_bins"}
    ]


def test_planning_writes_nothing(site: Path, message: Path) -> None:
    before = sorted(message.parent.rglob("*"))
    orchestrator("plan", message, "--site", site)
    assert sorted(message.parent.rglob("*")) == before


def test_no_matching_recipe_is_told_with_the_reason(site: Path, message: Path) -> None:
    change(site, 'beamline = "*"', 'beamline = "i23"')
    code, out, err = orchestrator("plan", message, "--site", site)
    assert code == 6
    assert "beamline is 'i22', not 'i23'" in out
    assert "no recipe matches" in err


def test_a_file_outside_the_roots_is_refused(site: Path, message: Path) -> None:
    change(site, '"../runtime/embedded/data"', '"../runtime/other"')
    code, _, err = orchestrator("plan", message, "--site", site)
    assert code == 3
    assert "outside the allowed roots" in err


def test_an_end_message_or_none_at_all_is_refused(site: Path, message: Path) -> None:
    message.write_bytes(end_document(CollectionEnd(uid="u", outcome=CollectionOutcome.FINISHED)))
    code, _, err = orchestrator("plan", message, "--site", site)
    assert (code, "collection-end" in err) == (3, True)
    message.unlink()
    assert orchestrator("plan", message, "--site", site)[0] == 4


def test_a_good_site_passes(site: Path) -> None:
    code, out, _ = orchestrator("site", "check", site)
    assert code == 0, out
    assert "wrong" not in out


def test_the_site_to_check_may_be_the_one_that_commands_use(site: Path) -> None:
    result = CliRunner(env={"ORCHESTRATOR_SITE": str(site)}).invoke(app, ["site", "check"])
    assert result.exit_code == 0, result.output


def check(site: Path) -> list[dict[str, object]]:
    code, out, _ = orchestrator("site", "check", site, "--json")
    assert code == 3
    return [finding for finding in json.loads(out) if not finding["ok"]]


def test_a_template_that_no_recipe_uses_is_checked_too(site: Path) -> None:
    (site.parents[1] / "jobtemplates" / "spare.sbatch.j2").write_text("#!/bin/bash\n{% if %}\n")
    assert [finding["subject"] for finding in check(site)] == ["template spare.sbatch.j2"]


def test_a_script_that_bash_cant_parse_is_found(site: Path) -> None:
    change(site.parents[1] / "jobtemplates" / "_launch.j2", "done", "")
    (finding,) = check(site)
    assert finding["subject"] == "recipe azimuthal"
    assert "bash can't parse the script: line " in str(finding["detail"])


def test_an_unknown_parameter_of_the_kernel_is_found(site: Path) -> None:
    change(site, "bins = 500", "bin = 500")
    (finding,) = check(site)
    assert "recipes.azimuthal.parameters.bin" in str(finding["detail"])
    assert "bins" in str(finding["remedy"])


def test_a_value_that_the_kernel_does_not_take_is_found(site: Path) -> None:
    change(site, "bins = 500", "bins = 0")
    assert orchestrator("site", "check", site)[0] == 0  # a message may have a part in it
    change(site, 'from_metadata = { bins = "azimuthal_bins" }', "")
    (finding,) = check(site)
    assert finding["subject"] == "recipe azimuthal"
    assert finding["detail"] == "kernel azimuthal: bins: Input should be greater than or equal to 1"


@pytest.mark.parametrize(
    ("line", "subject"),
    [
        (f'python = "{sys.prefix}/bin/nopython"', "python"),
        ('python = "/bin/sh"', "kernel azimuthal"),
        ('allowed_roots = ["/none/such"]', "allowed_roots /none/such"),
        ('runs_root = "/dev/null/runs"', "runs_root /dev/null/runs"),
    ],
)
def test_what_isnt_there_is_found(site: Path, line: str, subject: str) -> None:
    key = line.split(" = ", maxsplit=1)[0]
    kept = [row for row in site.read_text().splitlines() if not row.startswith(f"{key} = ")]
    site.write_text("\n".join([line, *kept]))
    assert subject in [str(finding["subject"]).removesuffix(f" {sys.prefix}/bin/nopython") for finding in check(site)]


def test_a_site_file_that_cant_be_loaded_is_one_sentence(site: Path) -> None:
    change(site, "database =", "databas =")
    code, _, err = orchestrator("site", "check", site)
    assert code == 3
    assert "unknown key 'databas'" in err
    assert "did you mean 'database'?" in err


def test_the_directory_in_a_plan_is_the_one_that_a_run_gets(site: Path, message: Path) -> None:
    plan = json.loads(orchestrator("plan", message, "--site", site, "--json")[1])["plans"][0]
    named = RunDirectory.under(
        site.parents[1] / "runtime/embedded/runs", beamline="i22", visit=None, recipe="azimuthal", uid="uid-1",
        run_id=plan["run_id"],
    )  # fmt: skip
    assert plan["run_directory"] == str(named.path)
