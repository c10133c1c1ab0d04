"""Jobs that ran out of memory or time or lost their node are tried again with changes, on a real SLURM.

The three collections are announced at once, each to a recipe of its own. Their kernels are real and the second attempts
find the results that the first ones left.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack

import h5py
import pytest

from orchestrator.demonstration import shipped
from orchestrator.messages import start_document
from orchestrator.provenance import RunDetail
from orchestrator.records import CollectionStart, JobState, RunState
from orchestrator.runs import RunDirectory
from orchestrator.stack import Stack
from tests.system.beamline import Beamline, processed, slurm, slurm_jobs

pytestmark = pytest.mark.stack

HUNGRY = """{% include "_kernel.j2" %}

"$python" -c 'import time; hog = bytearray(500_000_000); time.sleep(8)' || exit 1
"""
"""Takes 500 MB before the kernel starts."""

FRAMES = {"memory": 50, "time": 700, "node": 450}
RATE_HZ = {"memory": "inf", "time": "5", "node": "5"}


def recipe(name: str, retries: dict[str, object], **resources: object) -> dict[str, object]:
    template = "hungry.sbatch.j2" if name == "memory" else "azimuthal.sbatch.j2"
    asked = {"ntasks": 1, "memory_mb": 300, "requeue": False, **resources}
    known = {"kernel": "azimuthal", "template": template, "match": {"scan_type": name}}
    return {**known, "resources": asked, "retries": retries}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    private = Stack(tmp_path_factory.mktemp("cluster"))
    try:
        private.up({"slurm", "accounting"}, nodes=3)
        yield private
    finally:
        private.down()


@pytest.fixture(scope="module")
def beamline(cluster: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beamline]:
    folder = tmp_path_factory.mktemp("retries")
    templates = folder / "templates"
    shutil.copytree(shipped("jobtemplates"), templates)
    whole = (templates / "azimuthal.sbatch.j2").read_text()
    (templates / "hungry.sbatch.j2").write_text(whole.replace('{% include "_kernel.j2" %}\n', HUNGRY))
    changes: dict[str, object] = {
        "gateway.route": "cli",
        "gateway.poll_interval_s": 0.5,
        "templates": str(templates),
        "defaults.launcher": "none",
        "defaults.stall_timeout_s": 120.0,
        "recipes.azimuthal.enabled": False,
        "recipes.memory": recipe("memory", {"out-of-memory": {"memory_factor": 4.0, "memory_max_mb": 1000}}),
        "recipes.time": recipe("time", {"timeout": {"time_factor": 5.0}}, time_limit_min=1),
        "recipes.node": recipe("node", {"node-fail": {"delay_s": 5}}, exclusive=True),
    }
    beamline = Beamline(folder / "beamline", None, changes)
    beamline.environment = cluster.environment()
    with ExitStack() as detectors:
        for uid, frames in FRAMES.items():
            options = ("--number", str(frames), "--rate", RATE_HZ[uid])
            detectors.enter_context(beamline.detector(uid, *options))
            announce(beamline, uid)
        beamline.start_service()
        yield beamline
        beamline.close()


def node_of(run: RunDetail) -> str:
    """Return the nodes of the first attempt's job; empty while they aren't known."""
    report = run.attempts[0].last_report if run.attempts else None
    return "" if report is None else report.nodes


def announce(beamline: Beamline, uid: str) -> None:
    start = CollectionStart(
        uid=uid,
        beamline="demo",
        detector="simulated",
        scan_type=uid,
        file=beamline.file(uid),
        dataset="/entry/data/data",
        frames_expected=FRAMES[uid],
    )
    beamline.send(start_document(start), uid)


@pytest.fixture(scope="module")
def lost_node(beamline: Beamline, cluster: Stack) -> str:
    """Kill the slurmd under the job of `node` in the middle of its work; its kernel lives on. Return the node."""
    node = node_of(beamline.wait_for("node", lambda run: processed(20)(run) and node_of(run) != "", within_s=120))
    cluster.kill(f"slurmd-{node}")
    return node


def complete_at_second_attempt(beamline: Beamline, cluster: Stack, uid: str, cause: JobState) -> RunDetail:
    """One run, complete; two attempts with a job each, the first for the cause; a result with every frame, once."""
    detail = beamline.wait_for_end(uid, within_s=300)
    frames, summary = FRAMES[uid], detail.summary
    assert summary.state is RunState.COMPLETE, (summary.reason, beamline.log())
    first, second = detail.attempts
    assert first.end is not None
    assert (first.end.cause, first.end.state) == (cause, RunState.FAILED)
    assert first.identity != second.identity
    for attempt in detail.attempts:
        assert slurm_jobs(cluster).count(attempt.tag.job_name) == 1
    assert summary.counts is not None
    assert (summary.counts.processed, summary.counts.failed) == (frames, 0)
    with h5py.File(RunDirectory(summary.run_directory).result) as result:
        assert (result["entry/frames/status"][()] == 1).sum() == frames
    assert [output.kind for output in detail.outputs if output.kind != "log"] == ["result"]
    assert detail.plan.resources.memory_mb == 300
    return detail


def shown(beamline: Beamline, detail: RunDetail) -> str:
    answer = beamline.command("show", detail.summary.run_id)
    assert answer.returncode == 0, answer.stderr
    return " ".join(answer.stdout.split())


@pytest.mark.usefixtures("lost_node")
def test_a_job_that_ran_out_of_memory_gets_more(beamline: Beamline, cluster: Stack) -> None:
    detail = complete_at_second_attempt(beamline, cluster, "memory", JobState.OUT_OF_MEMORY)
    assert "#SBATCH --mem=300M" in detail.attempts[0].script_text
    assert "#SBATCH --mem=1000M" in detail.attempts[1].script_text
    assert "made because attempt 1 ran out of memory: memory 300 → 1000 MB" in shown(beamline, detail)


@pytest.mark.usefixtures("lost_node")
def test_a_job_that_ran_out_of_time_gets_more_and_begins_the_result_anew(beamline: Beamline, cluster: Stack) -> None:
    detail = complete_at_second_attempt(beamline, cluster, "time", JobState.TIMEOUT)
    assert "#SBATCH --time=00:05:00" in detail.attempts[1].script_text
    assert "attempt 1 ran out of time: time 1 → 5 minutes" in shown(beamline, detail)


def test_a_job_that_lost_its_node_goes_to_another_one(beamline: Beamline, cluster: Stack, lost_node: str) -> None:
    detail = complete_at_second_attempt(beamline, cluster, "node", JobState.NODE_FAIL)
    first, second = detail.attempts
    assert first.end is not None
    assert second.last_report is not None
    assert second.last_report.nodes != lost_node
    assert f"#SBATCH --exclude={lost_node}" in second.script_text
    assert (second.intent_at - first.end.ended_at).total_seconds() >= 5
    assert f"attempt 1 lost its node: not on {lost_node}" in shown(beamline, detail)
    cluster.start(f"slurmd-{lost_node}")


def test_a_run_that_waits_to_be_tried_again_is_cancelled_at_once(beamline: Beamline, cluster: Stack) -> None:
    start = CollectionStart(
        uid="later", beamline="demo", detector="simulated", scan_type="node", file=beamline.file("later"),
        dataset="/entry/data/data", frames_expected=10,
    )  # fmt: skip
    beamline.send(start_document(start), "later")
    running = beamline.wait_for("later", lambda run: run.summary.state is RunState.RUNNING, within_s=120)
    node = node_of(running)
    slurm(cluster, "scontrol", "update", f"node={node}", "state=down", "reason=test")
    beamline.wait_for("later", lambda detail: detail.summary.state is RunState.PLANNED and detail.summary.attempts == 1)
    assert beamline.command("cancel", running.summary.run_id).returncode == 0
    time.sleep(7)
    detail = beamline.run("later")
    assert detail is not None
    assert detail.summary.state is RunState.CANCELLED
    assert len(detail.attempts) == 1
