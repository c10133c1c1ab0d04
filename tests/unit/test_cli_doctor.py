"""``orchestrator doctor``: each check by itself, what holds up no other, and the exit code."""

from __future__ import annotations

import json
import os
import threading
from typing import Any

import pytest

from orchestrator.cli.checks import Check, Finding, State, carry_out, slurm_release
from orchestrator.cli.common import ExitCode
from orchestrator.errors import StoreUnavailable
from tests.unit.site_with_runs import SiteWithRuns

KERNELS = {
    "software": {"python": "3.11.2", "numpy": "2.4.6"},
    "findings": [{"name": "native core", "state": "ok", "found": "avx2 is taken", "remedy": ""}],
    "speeds": [{"way": "native core (avx2)", "decode_fps": 2000.0, "integrate_fps": 1600.0, "same_sums": True}],
    "taken": "native core (avx2)",
}
"""What matters here of what the kernels say of themselves."""


def interpreter(site: SiteWithRuns, said: str, code: int = 0) -> None:
    """Have the site's jobs run under a program that says this, whatever it is asked."""
    python = site.folder / "python"
    python.write_text(f"#!/bin/bash\ncat <<'END'\n{said}\nEND\nexit {code}\n")
    python.chmod(0o755)
    change(site, "\nruns_root", f'\npython = "{python}"\nruns_root')


def change(site: SiteWithRuns, old: str, new: str) -> None:
    text = site.file.read_text()
    assert old in text
    site.file.write_text(text.replace(old, new, 1))


@pytest.fixture
def healthy(site: SiteWithRuns) -> SiteWithRuns:
    interpreter(site, json.dumps(KERNELS))
    return site


def told(site: SiteWithRuns, code: ExitCode = ExitCode.OK) -> dict[str, Any]:
    """Return the findings by their names."""
    findings = site.told("doctor", "--json", code=code)["findings"]
    return {finding["name"]: finding for finding in findings}


def problems(site: SiteWithRuns, code: ExitCode) -> dict[str, Any]:
    found = {name: finding for name, finding in told(site, code).items() if finding["state"] == "problem"}
    assert all(finding["remedy"] for finding in found.values())
    return found


# -------------------------------------------------------------------------------------------------- carrying out


def test_a_check_that_hangs_or_fails_holds_up_no_other() -> None:
    ended = threading.Event()

    def hang() -> str:
        ended.wait(30)
        return "too late"

    def refuse() -> str:
        raise StoreUnavailable("no database", remedy="start it")

    def fault() -> str:
        raise ZeroDivisionError

    checks = [Check(name=look.__name__, look=look) for look in (hang, refuse, fault)]
    found = carry_out([*checks, Check(name="fine", look=lambda: "here")], limit_s=0.5)
    ended.set()
    assert [finding.name for finding in found] == ["hang", "refuse", "fault", "fine"]
    assert [finding.code for finding in found] == [
        ExitCode.UNAVAILABLE,
        ExitCode.UNAVAILABLE,
        ExitCode.FAULT,
        ExitCode.OK,
    ]
    assert found[0].found == "no answer within 0.5 s"
    assert (found[1].found, found[1].remedy) == ("no database", "start it")
    assert "ZeroDivisionError" in found[2].found
    assert found[3] == Finding(name="fine", found="here")
    assert all(finding.remedy for finding in found if finding.state is State.PROBLEM)


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("slurm-wlm 22.05.8", "SLURM 22.05.8"),
        ("slurm 25.11.2", "SLURM 25.11.2"),
        ("slurm 23.02.6-1-1.el9", "SLURM 23.02.6-1-1.el9"),
        ("what?", "SLURM of unknown release (what?)"),
    ],
)
def test_release_is_what_the_commands_say(text: str, release: str) -> None:
    assert slurm_release(text) == release


# ------------------------------------------------------------------------------------------------------- a site


def test_a_healthy_site_has_no_problem(healthy: SiteWithRuns) -> None:
    found = told(healthy)
    names = {"site file", "database", "spool", "gateway", "runs_root", "allowed_roots", "templates", "interpreter"}
    assert names <= {name for name, finding in found.items() if finding["state"] == "ok"}
    assert {"SLURM commands", "mpirun", "srun", "native core"} <= set(found)
    assert list(healthy.folder.rglob(".doctor-*")) == []


def test_for_people_there_is_a_table_with_remedies_and_the_speeds(healthy: SiteWithRuns) -> None:
    change(healthy, "allowed_roots = [", 'allowed_roots = ["/nowhere", ')
    text = healthy.call("doctor", code=ExitCode.NOT_FOUND)
    assert "allowed_roots" in text
    assert "    remedy: mount it" in text
    assert "native core (avx2)           2000     1600        taken by the kernels" in text


def test_a_wrong_site_file_is_a_problem_and_the_machine_is_looked_at_all_the_same(
    site: SiteWithRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = site.folder / "python"
    interpreter(site, json.dumps(KERNELS))
    monkeypatch.setattr("sys.executable", str(python))  # whose kernels are looked at where the site file says nothing
    change(site, "[gateway]", "[gatevay]")
    found = told(site, ExitCode.INVALID_INPUT)
    assert "gatevay" in found["site file"]["found"]
    assert found["native core"]["state"] == "ok"


def test_a_database_that_was_never_upgraded_is_a_problem(healthy: SiteWithRuns) -> None:
    change(healthy, "store.sqlite", "other.sqlite")
    found = problems(healthy, ExitCode.INVALID_INPUT)
    assert "orchestrator db upgrade" in found["database"]["remedy"]
    assert set(found) == {"database"}


def test_paths_that_lead_nowhere_are_problems_and_the_first_cause_is_the_exit_code(healthy: SiteWithRuns) -> None:
    (healthy.folder / "file").touch()
    change(healthy, f'runs_root = "{healthy.folder}/runs"', f'runs_root = "{healthy.folder}/file/runs"')
    change(healthy, "allowed_roots = [", 'allowed_roots = ["/nowhere", ')
    change(healthy, "[gateway]", f'[gateway]\nlocal_state = "{healthy.folder}/jobs"')
    assert set(problems(healthy, ExitCode.NOT_FOUND)) == {"runs_root", "allowed_roots"}


def test_a_template_that_is_missing_is_named(healthy: SiteWithRuns) -> None:
    change(healthy, "azimuthal.sbatch.j2", "other.sbatch.j2")
    assert "other.sbatch.j2" in problems(healthy, ExitCode.INVALID_INPUT)["templates"]["found"]


def test_a_broker_that_does_not_answer_is_a_problem_that_may_pass(healthy: SiteWithRuns) -> None:
    spool = f'[spool]\nfolder = "{healthy.folder}/spool"'
    change(healthy, spool, '[stomp]\nbrokers = ["127.0.0.1:1"]\nqueue = "q"\nconnect_timeout_s = 1')
    found = problems(healthy, ExitCode.UNAVAILABLE)
    assert set(found) == {"broker"}
    assert "127.0.0.1:1" in found["broker"]["found"]


@pytest.mark.parametrize(
    ("said", "code", "words"),
    [("", 1, "no message"), ("not JSON", 0, "no message")],
)
def test_an_interpreter_without_kernels_is_a_problem(site: SiteWithRuns, said: str, code: int, words: str) -> None:
    interpreter(site, said, code)
    found = problems(site, ExitCode.NOT_FOUND)
    assert words in found["interpreter"]["found"]


def test_an_interpreter_that_is_not_there_is_a_problem(site: SiteWithRuns) -> None:
    change(site, "\nruns_root", '\npython = "/nowhere/python"\nruns_root')
    assert "/nowhere/python" in problems(site, ExitCode.NOT_FOUND)["interpreter"]["found"]


def test_a_problem_of_the_kernels_is_one_of_the_site(site: SiteWithRuns) -> None:
    wrong = {"name": "sums", "state": "problem", "found": "not those of numpy", "remedy": "process nothing"}
    interpreter(site, json.dumps(KERNELS | {"findings": [wrong]}), 1)
    assert set(problems(site, ExitCode.INCOMPLETE)) == {"sums"}


def test_runs_root_without_permission_is_a_problem(healthy: SiteWithRuns) -> None:
    runs = healthy.folder / "runs"
    runs.mkdir(mode=0o500)
    if os.access(runs, os.W_OK):
        pytest.skip("NOT TESTED: root may write everywhere")
    assert set(problems(healthy, ExitCode.UNAVAILABLE)) == {"runs_root"}
