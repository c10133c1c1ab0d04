"""Runs that are made again on a real SLURM: with sbatch while the service is away, and through the service."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest

from orchestrator.provenance import RunDetail, detail_of
from orchestrator.records import Origin, RunState
from orchestrator.rerunning import HOME_FOLDER
from orchestrator.runs import RunDirectory
from orchestrator.stack import Stack
from tests.others import AS_NOBODY, NOBODY, python_for_nobody
from tests.system.beamline import Beamline, slurm

pytestmark = [pytest.mark.stack, pytest.mark.mpi]

FRAMES = 20


def a_live_run(beamline: Beamline, uid: str) -> RunDetail:
    """Process a collection while it is being written."""
    with beamline.detector(uid, "--number", str(FRAMES), "--rate", "10"):
        beamline.announce(uid, FRAMES)
        detail = beamline.wait_for_end(uid, within_s=90)
    assert detail.summary.state is RunState.COMPLETE, detail.summary.reason
    return detail


def sbatch(stack: Stack, folder: Path, script: Path, *before: str) -> int:
    """Hand a script to the real sbatch; return the number of its job."""
    command = [*before, "sbatch", "--parsable", str(script)]
    environment = os.environ | stack.environment()
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.partition(";")[0])


def wait_until(condition: Callable[[], object], what: Callable[[], object], *, within_s: float = 90) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.3)


def is_over(stack: Stack, job: int) -> bool:
    return not slurm(stack, "squeue", "--noheader", f"--jobs={job}", "--states=PD,R,CG").strip()


def bins_of(run: RunDetail) -> int:
    with h5py.File(RunDirectory(run.summary.run_directory).result) as file:
        return int(file["entry/data/I"].shape[-1])


def test_a_run_made_again_with_sbatch_while_the_service_is_away_comes_home(
    tmp_path: Path, accounting_stack: Stack
) -> None:
    beamline = Beamline(tmp_path, accounting_stack)
    beamline.start_service()
    try:
        first = a_live_run(beamline, "live")
        beamline.stop_service()
        text = RunDirectory(first.summary.run_directory).rerun.read_text()
        line = next(line for line in text.splitlines() if line.startswith("bins = "))
        mine = tmp_path / "mine.sbatch"
        mine.write_text(text.replace(line, "bins = 123  # coarser").replace("because=\n", "because='peaks are wide'\n"))
        job = sbatch(accounting_stack, tmp_path, mine)
        wait_until(lambda: is_over(accounting_stack, job), lambda: slurm(accounting_stack, "squeue"))
        log = (tmp_path / f"rerun-{job}.log").read_text()
        assert "The new run is in " in log, log
        assert "warning" not in log
        assert len(beamline.store.runs()) == 1  # nobody has told the database

        beamline.start_service()
        wait_until(lambda: len(beamline.store.runs()) == 2, beamline.log)
        (again_id,) = (run.run_id for run in beamline.store.runs() if run.run_id != first.summary.run_id)

        def usage_is_known() -> bool:
            run = beamline.store.run(again_id)
            report = run.attempts[0].last_report
            return run.summary.state.ended and report is not None and "elapsed_s" in report.usage

        wait_until(usage_is_known, lambda: (beamline.store.run(again_id), beamline.log()))
        again = beamline.store.run(again_id)
        assert again.summary.state is RunState.COMPLETE, again.summary.reason
        assert (again.summary.parent_run, again.plan.because) == (first.summary.run_id, "peaks are wide")
        (bins,) = (one for one in again.parameters if one.name == "bins")
        assert (bins.value, bins.origin) == (123, Origin.USER)
        (made,) = (event for event in again.events if event.kind == "made")
        assert isinstance(made.detail, dict)
        assert "+bins = 123  # coarser" in str(made.detail["edits"])
        assert f"-{line}" in str(made.detail["edits"])

        identity = again.summary.job
        assert identity is not None
        assert identity.job_id == job
        columns = ("--format=JobName%80,Cluster,Submit", "--noheader", "--parsable2", "--allocations")
        name, cluster, submit = slurm(accounting_stack, "sacct", f"--jobs={job}", *columns).strip().split("|")
        assert (name, cluster) == (again.attempts[0].tag.job_name, identity.cluster)
        assert identity.submitted_at.timestamp() == time.mktime(time.strptime(submit, "%Y-%m-%dT%H:%M:%S"))

        assert (bins_of(first), bins_of(again)) == (500, 123)
        record = RunDirectory(again.summary.run_directory).provenance
        wait_until(record.exists, beamline.log)
        assert detail_of(json.loads(record.read_bytes())).plan == again.plan
        diff = json.loads(beamline.command("diff", first.summary.run_id, again_id, "--json").stdout)
        assert diff["verdict"] == "different"
        decisive = [one for one in diff["differences"] if one["aspect"] in {"parameters", "input", "template", "code"}]
        assert [(one["name"], one["first"], one["second"]) for one in decisive] == [("bins", "500", "123")]
        effects = {one["path"]: one["second"] for one in diff["results"][0]["comparison"]["differences"]}
        assert effects["/entry/data/I"] == f"({FRAMES}, 123)"
        told = " ".join(beamline.command("show", again_id).stdout.split())
        assert "made again with rerun.sbatch because: peaks are wide with edits" in told
        assert "+bins = 123 # coarser" in told
    finally:
        beamline.close()


def test_a_run_is_made_again_through_the_service(tmp_path: Path, stack: Stack) -> None:
    beamline = Beamline(tmp_path, stack)
    beamline.start_service()
    try:
        first = a_live_run(beamline, "once")
        beamline.stop_service()
        done = beamline.command(
            "rerun", first.summary.run_id[:8], "--set", "bins=77", "--ntasks", "1", "--wait", "--json"
        )
        assert done.returncode == 0, done.stderr
        (summary,) = json.loads(done.stdout)
        again = beamline.store.run(summary["run_id"])
        assert (again.summary.state, again.summary.parent_run) == (RunState.COMPLETE, first.summary.run_id)
        assert (again.plan.resources.ntasks, bins_of(again)) == (1, 77)
        assert again.attempts[0].template_text == first.attempts[0].template_text
        assert RunDirectory(again.summary.run_directory).provenance.exists()
    finally:
        beamline.close()


def open_to_others(stack: Stack, folder: Path) -> None:
    """Let other users use a stack, which is private otherwise; keys stay closed."""
    conf = Path(stack.environment()["SLURM_CONF"])
    conf.chmod(0o644)
    (socket,) = set(re.findall(r"socket=([^\s,]+)", conf.read_text()))
    for root in (folder / "stack", Path(socket).parent):
        for path, _, _ in os.walk(root):
            Path(path).chmod(0o755)


def test_a_user_who_may_only_read_makes_a_run_again_that_is_theirs() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)  # that others may enter, unlike pytest's
        folder.chmod(0o755)
        home = folder / "home"
        home.mkdir()
        os.chown(home, NOBODY.pw_uid, NOBODY.pw_gid)
        python = python_for_nobody(folder)
        stack = Stack(folder / "stack")
        stack.up({"slurm", "broker"}, nodes=1)
        open_to_others(stack, folder)
        beamline = Beamline(folder / "site", stack, {"python": str(python)})
        beamline.start_service()
        try:
            first = a_live_run(beamline, "theirs")
            text = RunDirectory(first.summary.run_directory).rerun.read_text()
            script = home / "mine.sbatch"  # the account has no home of its own
            script.write_text(text.replace("\nparent=", f"\nexport HOME={home}\nparent=", 1))
            job = sbatch(stack, home, script, *AS_NOBODY)
            wait_until(lambda: is_over(stack, job), lambda: slurm(stack, "squeue"))
            log = home / f"rerun-{job}.log"
            wait_until(lambda: len(beamline.store.runs()) == 2, lambda: (log.read_text(), beamline.log()))
            (again,) = (run for run in beamline.store.runs() if run.parent_run == first.summary.run_id)
            assert again.requester == "nobody"
            assert again.run_directory.is_relative_to(home / HOME_FOLDER)
            refused = beamline.command("rerun", again.run_id)
            assert refused.returncode == 3
            assert "was made by nobody with sbatch" in refused.stderr
        finally:
            beamline.close()
            stack.down()
