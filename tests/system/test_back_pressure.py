"""A burst that is larger than what SLURM takes at once: it is seldom asked, and everything runs in the end, once."""

from __future__ import annotations

import getpass
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.demonstration import shipped
from orchestrator.records import RunState
from orchestrator.stack import Stack
from orchestrator.stack.programs import find_program
from tests.system.beamline import Beamline, slurm, slurm_jobs

pytestmark = pytest.mark.stack

LIMIT = 5
UIDS = [f"burst-{number:02}" for number in range(20)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    private = Stack(tmp_path_factory.mktemp("cluster"))
    try:
        private.up({"slurm", "accounting"}, nodes=1, slurm_settings={"AccountingStorageEnforce": "associations,limits"})
        user = getpass.getuser()
        slurm(private, "sacctmgr", "-i", "modify", "user", "where", f"name={user}", "set", f"MaxSubmitJobs={LIMIT}")
        yield private
    finally:
        private.down()


@pytest.fixture
def beamline(cluster: Stack, tmp_path: Path) -> Iterator[Beamline]:
    templates = tmp_path / "templates"
    shutil.copytree(shipped("jobtemplates"), templates)
    whole = (templates / "azimuthal.sbatch.j2").read_text()
    (templates / "azimuthal.sbatch.j2").write_text(whole.replace('{% include "_kernel.j2" %}\n', "sleep 3\n"))
    changes: dict[str, object] = {
        "gateway.route": "cli",
        "gateway.poll_interval_s": 0.5,
        "templates": str(templates),
        "defaults.resources.ntasks": 1,
    }
    beamline = Beamline(tmp_path / "beamline", None, changes)
    beamline.environment = cluster.environment() | {"PATH": counting_path(tmp_path)}
    yield beamline
    beamline.close()


def counting_path(folder: Path) -> str:
    """Put an sbatch on the path that keeps count of its calls."""
    programs = folder / "programs"
    programs.mkdir()
    (programs / "sbatch").write_text(f'#!/bin/sh\necho >> {folder}/calls\nexec {find_program("sbatch")} "$@"\n')
    (programs / "sbatch").chmod(0o755)
    return f"{programs}:{os.environ['PATH']}"


def calls(folder: Path) -> int:
    return len((folder / "calls").read_text().splitlines())


def test_a_burst_over_the_limit_of_submitted_jobs_waits_says_why_and_runs_once(
    beamline: Beamline, cluster: Stack, tmp_path: Path
) -> None:
    for uid in UIDS:
        beamline.announce(uid, None)
    beamline.start_service()
    waiting = beamline.wait_for(UIDS[-1], lambda run: "AssocMaxSubmitJobLimit" in run.summary.reason)
    assert waiting.summary.state is RunState.PLANNED
    runs = [beamline.wait_for_end(uid, within_s=240) for uid in UIDS]
    assert all(run.summary.job is not None and len(run.attempts) == 1 for run in runs), beamline.log()
    assert Counter(slurm_jobs(cluster)) == Counter(run.attempts[0].tag.job_name for run in runs)
    submitted = sorted((run.summary.job.job_id, run.summary.collection_uid) for run in runs if run.summary.job)
    assert [uid for _, uid in submitted] == UIDS
    # A job of 3 s and the pauses between tries let so many of them be in vain, not more.
    assert len(UIDS) <= calls(tmp_path) <= 3 * len(UIDS)
