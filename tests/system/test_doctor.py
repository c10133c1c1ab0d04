"""``orchestrator doctor`` on a site with a real SLURM and a real broker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.common import ExitCode
from orchestrator.stack import Stack
from tests.system.beamline import Beamline

pytestmark = [pytest.mark.stack, pytest.mark.mpi]


@pytest.fixture
def beamline(tmp_path: Path, stack: Stack) -> Iterator[Beamline]:
    beamline = Beamline(tmp_path, stack)
    yield beamline
    beamline.close()


def told(beamline: Beamline, code: ExitCode) -> dict[str, Any]:
    done = beamline.command("doctor", "--json")
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stderr == ""
    findings = json.loads(done.stdout)["findings"]
    return {finding["name"]: finding for finding in findings}


def test_everything_of_a_running_stack_is_found(beamline: Beamline, stack: Stack) -> None:
    found = told(beamline, ExitCode.OK)
    around = (
        "site file", "database", "broker", "gateway", "runs_root", "allowed_roots", "templates", "SLURM commands",
        "mpirun", "srun", "interpreter", "sums",
    )  # fmt: skip
    assert {name: found[name]["state"] for name in around} == dict.fromkeys(around, "ok")
    assert "cluster stack" in found["gateway"]["found"]
    assert stack.environment()["ORCHESTRATOR_BROKER"] in found["broker"]["found"]


def test_a_stopped_broker_and_a_wrong_path_are_problems_with_remedies(beamline: Beamline, stack: Stack) -> None:
    site = beamline.site.read_text()
    beamline.site.write_text(site.replace(f'"{beamline.directory}/data"', '"/nowhere/data"'))
    stack.stop("broker")
    try:
        found = told(beamline, ExitCode.NOT_FOUND)
    finally:
        stack.start("broker")
    problems = {name: finding for name, finding in found.items() if finding["state"] == "problem"}
    assert set(problems) == {"broker", "allowed_roots"}
    assert "/nowhere/data" in problems["allowed_roots"]["found"]
    assert all(finding["remedy"] for finding in problems.values())
