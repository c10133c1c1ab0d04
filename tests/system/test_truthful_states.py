"""Whatever SLURM does to a job, ``orchestrator show`` tells it: real jobs of the real service on the real SLURM.

All collections are announced at once, each to a recipe of its own; every test does one thing to its own job. What takes
SLURM its time (a time limit, a dead node) is begun first and asked for last.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from orchestrator.demonstration import shipped
from orchestrator.messages import start_document
from orchestrator.provenance import RunDetail
from orchestrator.records import CollectionStart, JobReport, JobState, RunState
from orchestrator.stack import Stack
from tests.system.beamline import Beamline, slurm

pytestmark = pytest.mark.stack

SMALL: dict[str, object] = {"memory_mb": 200}
RECIPES: dict[str, dict[str, object]] = {
    # First those that want nodes for themselves.
    "preempted": SMALL | {"exclusive": True, "requeue": True},
    "lost": SMALL | {"exclusive": True, "requeue": False},
    "timeout": SMALL | {"time_limit_min": 1},
    "memory": SMALL,
    "cancelled": SMALL,
    "suspended": SMALL,
    "unaccounted": SMALL,
    "held": SMALL | {"partition": "debug"},
    "deadline": SMALL | {"partition": "debug"},
    "hopeless": SMALL | {"partition": "urgent", "time_limit_min": 600},
}
"""What each run asks of SLURM; its kernel waits for a file that never comes."""

HOG = """#!/bin/bash
{% include "_sbatch.j2" %}

{% include "_begin.j2" %}

"$python" -c 'import time; hog = bytearray(600_000_000); time.sleep(60)'
"""
"""Takes three times the memory that it asks for."""


class Truthful(Beamline):
    """A beamline without a broker on a SLURM with accounting."""

    def __init__(self, directory: Path, cluster: Stack, changes: dict[str, object]) -> None:
        super().__init__(directory, None, {"gateway.route": "cli", "defaults.launcher": "none", **changes})
        self.cluster = cluster
        self.environment = cluster.environment()

    def wants(self, uid: str, scan_type: str) -> None:
        start = CollectionStart(
            uid=uid,
            beamline="demo",
            detector="simulated",
            scan_type=scan_type,
            file=self.file(uid),
            dataset="/entry/data/data",
        )
        self.send(start_document(start), uid)

    def slurm(self, *command: str) -> str:
        return slurm(self.cluster, *command)

    def job_id(self, uid: str) -> str:
        job = self.wait_for(uid, lambda detail: detail.summary.job is not None).summary.job
        assert job is not None
        return str(job.job_id)

    def running(self, uid: str) -> str:
        """Wait until a run's kernel has begun; return its job's id."""
        self.wait_for(uid, lambda detail: any(event.kind == "begin" for event in detail.events))
        return self.job_id(uid)

    def until(self, uid: str, holds: Callable[[JobReport], bool], *, within_s: float = 60) -> RunDetail:
        return self.wait_for(uid, lambda detail: _holds(detail, holds), within_s=within_s)

    def node(self, uid: str) -> str:
        """Wait until a run's job is running; return its node."""
        report = self.until(uid, lambda report: report.state is JobState.RUNNING).attempts[-1].last_report
        assert report is not None
        return report.nodes

    def shown(self, uid: str) -> str:
        """Return what `orchestrator show` says of a run, in lines of single spaces."""
        detail = self.run(uid)
        assert detail is not None
        answer = self.command("show", detail.summary.run_id)
        assert answer.returncode == 0, answer.stderr
        if folder := os.environ.get("SHOWN_INTO"):
            (Path(folder) / f"{uid}.txt").write_text(answer.stdout)
        return "\n".join(" ".join(line.split()) for line in answer.stdout.splitlines())


def _holds(detail: RunDetail, holds: Callable[[JobReport], bool]) -> bool:
    report = detail.attempts[-1].last_report if detail.attempts else None
    return report is not None and holds(report)


def has_usage(report: JobReport) -> bool:
    return report.state.ended and "elapsed_s" in report.usage


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Return a SLURM that forgets ended jobs quickly."""
    private = Stack(tmp_path_factory.mktemp("cluster"))
    try:
        private.up({"slurm", "accounting"}, nodes=4, slurm_settings={"MinJobAge": "5"})
        yield private
    finally:
        private.down()


def site_changes(folder: Path) -> dict[str, object]:
    templates = folder / "templates"
    subprocess.run(["cp", "-r", str(shipped("jobtemplates")), str(templates)], check=True)
    (templates / "hog.sbatch.j2").write_text(HOG)
    changes: dict[str, object] = {
        "templates": str(templates),
        "gateway.poll_interval_s": 0.5,
        "defaults.appear_timeout_s": 900.0,
        "defaults.retries.most": 0,
        "defaults.resources.ntasks": 1,
        "recipes.azimuthal.match": {"scan_type": "whole"},
        "recipes.azimuthal.resources": SMALL,
    }
    for name, resources in RECIPES.items():
        template = "hog.sbatch.j2" if name == "memory" else "azimuthal.sbatch.j2"
        recipe = {"kernel": "azimuthal", "template": template, "resources": resources}
        changes[f"recipes.{name}"] = {**recipe, "match": {"scan_type": name}}
    return changes


@pytest.fixture(scope="module")
def beamline(cluster: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Truthful]:
    folder = tmp_path_factory.mktemp("truthful")
    beamline = Truthful(folder / "beamline", cluster, site_changes(folder))
    beamline.slurm("scontrol", "update", "partition=debug", "state=DOWN")
    for name in RECIPES:
        beamline.wants(name, name)
    beamline.start_service()
    beamline.running("lost")
    cluster.kill(f"slurmd-{beamline.node('lost')}")
    yield beamline
    beamline.close()


def test_a_job_cancelled_by_someone_is_cancelled_and_says_by_whom(beamline: Truthful) -> None:
    beamline.slurm("scancel", beamline.running("cancelled"))
    detail = beamline.wait_for_end("cancelled")
    assert detail.summary.state is RunState.CANCELLED
    beamline.until("cancelled", has_usage)
    shown = beamline.shown("cancelled")
    assert "cancelled by somebody outside this program" in shown
    assert f"state CANCELLED by {os.getuid()}" in shown
    assert "cancelled it" in shown


def test_a_job_that_took_too_much_memory_says_so_although_slurm_says_failed(beamline: Truthful) -> None:
    detail = beamline.wait_for_end("memory")
    assert detail.summary.state is RunState.FAILED
    report = detail.attempts[-1].last_report
    assert report is not None
    assert (report.words, report.state, report.signal) == ("FAILED", JobState.OUT_OF_MEMORY, 9)
    assert "it used more memory than it had asked for" in detail.summary.reason
    beamline.until("memory", has_usage)
    shown = beamline.shown("memory")
    assert "exceeded memory limit" in shown
    assert "JobLaunchFailure" not in detail.summary.reason


def test_a_preempted_job_is_requeued_and_says_what_became_of_its_first_start(beamline: Truthful) -> None:
    beamline.running("preempted")
    node = beamline.node("preempted")
    options = ("--partition=urgent", "--exclusive", f"--nodelist={node}", "--output=/dev/null")
    beamline.slurm("sbatch", *options, "--wrap=sleep 5")
    waiting = beamline.until("preempted", lambda report: report.restarts == 1 and report.state is JobState.PENDING)
    assert waiting.summary.state is RunState.PENDING
    beamline.wait_for("preempted", lambda detail: any(event.kind == "earlier-start" for event in detail.events))
    shown = beamline.shown("preempted")
    assert f"requeued 1 time; start 1 ended as PREEMPTED on {node}" in shown
    assert "its begin time hasn't come yet" in shown
    beamline.until("preempted", lambda report: report.state is JobState.RUNNING)
    beamline.wait_for("preempted", lambda detail: [event.kind for event in detail.events].count("begin") == 2)
    beamline.slurm("scancel", beamline.job_id("preempted"))
    ended = beamline.wait_for_end("preempted")
    assert len(ended.attempts) == 1
    assert f"start 1 ended as PREEMPTED on {node}" in beamline.shown("preempted")


def test_a_held_job_says_that_it_is_held(beamline: Truthful) -> None:
    job = beamline.job_id("held")
    beamline.until("held", lambda report: report.reason == "PartitionDown")
    assert "its partition is closed at present (PartitionDown)" in beamline.shown("held")
    beamline.slurm("scontrol", "hold", job)
    beamline.until("held", lambda report: report.reason.startswith("JobHeld"))
    assert "until somebody releases it" in beamline.shown("held")
    listed = beamline.command("runs", "--active").stdout
    assert "until somebody releases it" in listed
    assert "for ever" not in beamline.shown("held")


def test_a_job_that_can_never_start_says_so_and_goes_on_when_somebody_mends_it(beamline: Truthful) -> None:
    hopeless = beamline.wait_for("hopeless", lambda detail: "(PartitionTimeLimit)" in detail.summary.reason)
    assert hopeless.summary.state is RunState.PENDING
    for shown in (beamline.shown("hopeless"), beamline.command("runs", "--active").stdout):
        assert "will wait for ever: it asks for more time than its partition allows (PartitionTimeLimit)" in shown
    assert "hindrance" in [event.kind for event in hopeless.events]
    beamline.slurm("scontrol", "update", f"job={beamline.job_id('hopeless')}", "timelimit=10")
    beamline.until("hopeless", lambda report: report.state is JobState.RUNNING)
    beamline.wait_for("hopeless", lambda detail: detail.summary.reason == "")
    beamline.slurm("scancel", beamline.job_id("hopeless"))


def test_a_suspended_job_says_so_until_it_is_resumed(beamline: Truthful) -> None:
    job = beamline.running("suspended")
    beamline.slurm("scontrol", "suspend", job)
    suspended = beamline.wait_for("suspended", lambda detail: "is suspended (SUSPENDED)" in detail.summary.reason)
    assert suspended.summary.state is RunState.RUNNING
    assert "its job is suspended (SUSPENDED)" in beamline.shown("suspended")
    beamline.slurm("scontrol", "resume", job)
    beamline.until("suspended", lambda report: report.state is JobState.RUNNING)
    beamline.wait_for("suspended", lambda detail: detail.summary.reason == "")
    beamline.slurm("scancel", job)


def test_a_job_that_cannot_end_before_its_deadline_says_so(beamline: Truthful) -> None:
    deadline = datetime.now() + timedelta(minutes=5)  # noqa: DTZ005 - SLURM reads local time
    job = f"job={beamline.job_id('deadline')}"
    beamline.slurm("scontrol", "update", job, f"deadline={deadline:%Y-%m-%dT%H:%M:%S}")
    beamline.slurm("scontrol", "update", "partition=debug", "state=UP")
    detail = beamline.wait_for_end("deadline")
    assert detail.summary.state is RunState.FAILED
    assert "DEADLINE: its deadline came before its end" in detail.summary.reason
    shown = beamline.shown("deadline")
    assert "state DEADLINE" in shown
    assert "started never" in shown


def test_a_job_that_ended_and_was_forgotten_while_nobody_looked_is_told_by_accounting(
    beamline: Truthful, cluster: Stack
) -> None:
    with beamline.detector("purged", "--number", "3", "--rate", "inf") as detector:
        detector.wait(60)
    beamline.wants("purged", "whole")
    job = beamline.job_id("purged")
    beamline.kill_service()
    deadline = time.monotonic() + 120
    while job in beamline.slurm("squeue", "--states=all", "--noheader", "--format=%i").split():
        assert time.monotonic() < deadline
        time.sleep(1)
    beamline.start_service()
    detail = beamline.wait_for_end("purged")
    assert detail.summary.state is RunState.COMPLETE, detail.summary.reason
    assert "state COMPLETED, says accounting" in beamline.shown("purged")


def test_a_job_that_lost_its_node_says_so(beamline: Truthful) -> None:
    detail = beamline.wait_for_end("lost", within_s=90)
    assert detail.summary.state is RunState.FAILED
    assert "NODE_FAIL: a node it ran on was lost" in detail.summary.reason
    assert "state NODE_FAIL" in beamline.shown("lost")


def test_a_job_whose_time_was_up_says_so(beamline: Truthful) -> None:
    detail = beamline.wait_for_end("timeout", within_s=150)
    assert detail.summary.state is RunState.FAILED
    assert "TIMEOUT: its time limit came before its end" in detail.summary.reason
    beamline.until("timeout", has_usage)
    assert "state TIMEOUT" in beamline.shown("timeout")


def test_a_job_that_ends_while_accounting_is_down_gets_its_usage_later(beamline: Truthful, cluster: Stack) -> None:
    job = beamline.running("unaccounted")
    cluster.stop("slurmdbd")
    try:
        beamline.slurm("scancel", job)
        detail = beamline.wait_for_end("unaccounted")
        assert detail.summary.state is RunState.CANCELLED
        assert "usage not known" in beamline.shown("unaccounted")
    finally:
        cluster.start("slurmdbd")
    beamline.until("unaccounted", has_usage, within_s=90)
    assert "usage elapsed" in beamline.shown("unaccounted")


# ------------------------------------------------------------------------- memory that the kernel itself enforces


@pytest.fixture(scope="module")
def confined(tmp_path_factory: pytest.TempPathFactory, memory_cgroups: Path) -> Iterator[Truthful]:
    """Return a beamline on a SLURM whose nodes confine jobs to cgroups."""
    folder = tmp_path_factory.mktemp("confined")
    private = Stack(folder / "stack")
    settings = {"TaskPlugin": "task/cgroup", "JobAcctGatherParams": "NoOverMemoryKill"}
    try:
        private.up({"slurm", "accounting"}, nodes=1, slurm_settings=settings)
        beamline = Truthful(folder / "beamline", private, site_changes(folder))
        beamline.start_service()
        yield beamline
        beamline.close()
    finally:
        private.down()
        for group in sorted(memory_cgroups.glob("slurm_n1/**/"), reverse=True):
            group.rmdir()


@pytest.mark.cgroups
def test_a_job_that_the_kernel_killed_for_its_memory_is_out_of_memory(confined: Truthful) -> None:
    confined.wants("memory", "memory")
    detail = confined.wait_for_end("memory")
    assert detail.summary.state is RunState.FAILED
    assert "OUT_OF_MEMORY: it used more memory than it had asked for (OutOfMemory)" in detail.summary.reason
    assert "signal" not in detail.summary.reason
    assert "state OUT_OF_MEMORY (OutOfMemory)" in confined.shown("memory")


@pytest.mark.cgroups
def test_out_of_memory_with_exit_code_0_is_a_failure_all_the_same(confined: Truthful) -> None:
    template = confined.settings.templates / "hog.sbatch.j2"
    template.write_text(f"{HOG}\nexit 0\n")
    confined.wants("survivor", "memory")
    detail = confined.wait_for_end("survivor")
    assert detail.summary.state is RunState.FAILED
    report = detail.attempts[-1].last_report
    assert report is not None
    assert (report.state, report.exit_code) == (JobState.OUT_OF_MEMORY, 0)
    assert [event.detail["exit_code"] for event in detail.events if event.kind == "end"] == [0]  # type: ignore[index,call-overload]
