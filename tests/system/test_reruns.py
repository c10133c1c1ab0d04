"""Runs that are made again on a real SLURM: with sbatch while the service is away, and through the service."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import pytest

from orchestrator.adopting import COMPARED
from orchestrator.provenance import LOST, RunDetail, detail_of
from orchestrator.records import Origin, RerunTag, RunState
from orchestrator.rerunning import HOME_FOLDER
from orchestrator.runs import RunDirectory
from orchestrator.stack import Stack
from orchestrator.stack.slurm import CLUSTER
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
        assert (name, cluster) == (RerunTag(parent=first.summary.run_id).job_name, identity.cluster)
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


@dataclass(frozen=True, kw_only=True)
class OpenSite:
    """A site of which others may read the runs, and one of these others, with a home."""

    stack: Stack
    beamline: Beamline
    home: Path

    def script(self, run: RunDetail, *edits: tuple[str, str]) -> Path:
        """Put a run's script, with lines edited, into that user's home."""
        text = RunDirectory(run.summary.run_directory).rerun.read_text()
        # The account has no home of its own.
        for before, after in (("\nparent=", f"\nexport HOME={self.home}\nparent="), *edits):
            assert before in text
            text = text.replace(before, after, 1)
        script = self.home / "mine.sbatch"
        script.write_text(text)
        return script

    def log_of(self, job: int) -> str:
        return (self.home / f"rerun-{job}.log").read_text()


@contextmanager
def site_open_to_others(services: set[str], **changes: object) -> Iterator[OpenSite]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)  # that others may enter, unlike pytest's
        folder.chmod(0o755)
        home = folder / "home"
        home.mkdir()
        os.chown(home, NOBODY.pw_uid, NOBODY.pw_gid)
        python = python_for_nobody(folder)
        stack = Stack(folder / "stack")
        stack.up(services, nodes=1)
        open_to_others(stack, folder)
        beamline = Beamline(folder / "site", stack, {"python": str(python), **changes})
        beamline.start_service()
        try:
            yield OpenSite(stack=stack, beamline=beamline, home=home)
        finally:
            beamline.close()
            stack.down()


def test_a_user_who_may_only_read_makes_a_run_again_that_is_theirs() -> None:
    with site_open_to_others({"slurm", "broker"}) as site:
        beamline = site.beamline
        first = a_live_run(beamline, "theirs")
        job = sbatch(site.stack, site.home, site.script(first), *AS_NOBODY)
        wait_until(lambda: is_over(site.stack, job), lambda: slurm(site.stack, "squeue"))
        wait_until(lambda: len(beamline.store.runs()) == 2, lambda: (site.log_of(job), beamline.log()))
        (again,) = (run for run in beamline.store.runs() if run.parent_run == first.summary.run_id)
        assert again.requester == "nobody"
        assert again.run_directory.is_relative_to(site.home / HOME_FOLDER)
        refused = beamline.command("rerun", again.run_id)
        assert refused.returncode == 3
        assert "was made by nobody with sbatch" in refused.stderr


def test_jobs_of_others_that_could_leave_no_word_are_found_in_slurm() -> None:
    with site_open_to_others({"slurm", "broker", "accounting"}, **{"reruns.compare_interval_s": 2}) as site:
        beamline, stack = site.beamline, site.stack
        first = a_live_run(beamline, "theirs")
        parent = first.summary.run_id
        drop = beamline.settings.reruns.drop
        wait_until(drop.exists, beamline.log)
        drop.chmod(0o755)

        silent = sbatch(stack, site.home, site.script(first), *AS_NOBODY)
        wait_until(lambda: is_over(stack, silent), lambda: slurm(stack, "squeue"))
        assert f"{drop}: Permission denied: no word for the service" in site.log_of(silent)
        wrong = sbatch(stack, site.home, site.script(first, ("\nbins = ", "\nbins == ")), *AS_NOBODY)
        held = site.script(first, ("\n#SBATCH", "\n#SBATCH --hold\n#SBATCH"))
        never = sbatch(stack, site.home, held, *AS_NOBODY)
        slurm(stack, "scancel", str(never))

        wait_until(lambda: len(beamline.store.runs()) == 2, beamline.log, within_s=150)
        (again,) = beamline.store.runs(parent=parent)
        assert (again.requester, again.job and again.job.job_id) == ("nobody", silent)
        assert again.run_directory.is_relative_to(site.home / HOME_FOLDER)

        def usage_is_known() -> bool:
            run = beamline.store.run(again.run_id)
            report = run.attempts[0].last_report
            return run.summary.state.ended and report is not None and "elapsed_s" in report.usage

        wait_until(usage_is_known, lambda: (beamline.store.run(again.run_id), beamline.log()))
        assert beamline.store.run(again.run_id).summary.state is RunState.COMPLETE

        def lost() -> dict[object, dict[str, object]]:
            details = [event.detail for event in beamline.store.run(parent).events if event.kind == LOST]
            return {detail["job_id"]: dict(detail) for detail in details if isinstance(detail, dict)}

        wait_until(lambda: len(lost()) == 2, lambda: (lost(), beamline.log()), within_s=150)
        told = lost()
        assert (told[wrong]["user"], told[wrong]["exit_code"]) == ("nobody", 2)
        assert "an edit in its script is wrong" in str(told[wrong]["because"])
        assert told[never]["because"] == "it never began"
        shown = " ".join(beamline.command("show", parent).stdout.split())
        assert f"rerun {again.run_id}" in shown
        assert f"no run of it is known: job {CLUSTER}:{wrong} of nobody, FAILED, exit code 2" in shown
        assert f"{site.home}/rerun-{wrong}.log says more" in shown
        assert f":{never} of nobody, CANCELLED" in shown

        beamline.stop_service()
        beamline.start_service()  # which looks at all of them again
        note = drop / COMPARED / "until"
        before = note.stat().st_mtime_ns
        wait_until(lambda: note.stat().st_mtime_ns > before, beamline.log)
        assert (lost(), len(beamline.store.runs())) == (told, 2)
