"""Every shipped template, by every route, on a real SLURM: accepted, and the job is the one that sbatch makes of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.demonstration import shipped
from orchestrator.records import (
    CollectionStart,
    JobIdentity,
    JobPlan,
    JobState,
    Resources,
    RunTag,
    Submission,
)
from orchestrator.rendering import render
from orchestrator.runs import RunDirectory
from orchestrator.slurm.cli import CliGateway
from orchestrator.slurm.gateway import Gateway
from orchestrator.slurm.pyslurm import PyslurmGateway
from orchestrator.slurm.rest import RestGateway
from orchestrator.stack import Stack
from orchestrator.stack.programs import find_program
from tests.contract.test_gateways import SUCCEEDS, eventually, reaches, some_tag, submission_of

pytestmark = pytest.mark.stack

TEMPLATES = sorted(path.name for path in shipped("jobtemplates").glob("*.sbatch.j2"))
ROUTES = ["rest", pytest.param("pyslurm", marks=pytest.mark.pyslurm)]
Make = Callable[[str], Gateway]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    private = Stack(tmp_path_factory.mktemp("cluster"))
    try:
        private.up({"slurm", "accounting", "rest"}, nodes=2)
        yield private
    finally:
        private.down()


@pytest.fixture
def by(cluster: Stack, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Make]:
    """Return what makes the gateway of a route."""
    environment = {**os.environ, **cluster.environment()}
    with ExitStack() as made:

        def make(route: str) -> Gateway:
            gateway: Gateway
            if route == "cli":
                gateway = CliGateway(environment=environment)
            elif route == "rest":
                (tmp_path / "token").write_text(cluster.token())
                url = environment["ORCHESTRATOR_SLURMRESTD_URL"]
                gateway = RestGateway(url=url, token_file=tmp_path / "token", environment=environment)
            else:
                gateway = PyslurmGateway(python=request.getfixturevalue("pyslurm_python"), environment=environment)
            made.callback(gateway.close)
            return gateway

        yield make


def scontrol(cluster: Stack, *words: str) -> str:
    environment = {**os.environ, **cluster.environment()}
    command = [find_program("scontrol"), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def closed_partition(cluster: Stack) -> Iterator[None]:
    """Keep jobs in the queue, where they can be looked at, without a word in their scripts."""
    scontrol(cluster, "update", "partitionname=live", "state=down")
    yield
    scontrol(cluster, "update", "partitionname=live", "state=up")


def shown(cluster: Stack, job: JobIdentity) -> dict[str, str]:
    """Return what scontrol shows of a job but for what differs between any two jobs."""
    text = scontrol(cluster, "show", "job", str(job.job_id))
    fields = dict(re.findall(r"(\S+?)=(.*?)(?= \S+?=|\n|$)", text))
    own = {"JobId", "ArrayJobId", "Priority", "AllocNode:Sid", "LastSchedEval"}
    own |= {name for name in fields if name.endswith("Time")}
    return {name: value for name, value in fields.items() if name not in own}


def rendered(template: str, tag: RunTag, folder: Path) -> Submission:
    collection = CollectionStart(
        uid="uid-1", beamline="b21", detector="saxs", file=folder / "scan 1's.nxs", dataset="/entry/data/data"
    )
    plan = JobPlan(
        run_id=tag.run_id, recipe="reduce", kernel="azimuthal", template=template, launcher="mpirun",
        collection=collection, parameters=(), run_directory=folder, python=Path(sys.executable), stall_timeout_s=30.0,
        appear_timeout_s=60.0,
        resources=Resources(
            ntasks=2, cpus_per_task=1, memory_mb=300, time_limit_min=60, partition="live", account="beam", qos="normal",
            requeue=True,
        ),
    )  # fmt: skip
    return Submission(tag=tag, script=render(plan, tag.attempt, shipped("jobtemplates")), working_directory=folder)


@pytest.mark.usefixtures("closed_partition")
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("template", TEMPLATES)
def test_job_of_a_shipped_template_is_the_one_that_sbatch_makes(
    by: Make, cluster: Stack, tmp_path: Path, route: str, template: str
) -> None:
    submission = rendered(template, some_tag(), tmp_path)
    assert "#SBATCH --signal=B:TERM@60" in submission.script.text
    assert "#SBATCH --export=NONE" in submission.script.text
    gateway, sbatch = by(route), by("cli")
    jobs = [each.submit(submission).identity for each in (sbatch, gateway)]
    by_sbatch, by_route = (shown(cluster, job) for job in jobs)
    assert by_route == by_sbatch
    assert by_route["TimeLimit"] == "01:00:00"
    for job in jobs:
        gateway.cancel(job)


@pytest.mark.parametrize("route", ["cli", *ROUTES])
def test_script_of_a_shipped_template_is_told_a_minute_before_its_time_is_up(
    by: Make, tmp_path: Path, route: str
) -> None:
    """What the shipped script does before and around its kernel, with a time limit that the test can wait for."""
    gateway = by(route)
    submission = rendered("azimuthal.sbatch.j2", some_tag(), tmp_path)
    RunDirectory(tmp_path).attempt(1).path.mkdir(parents=True)
    text = submission.script.text.replace("--time=01:00:00", "--time=00:02:00").replace("B:TERM@60", "B:TERM@110")
    assert "--time=00:02:00" in text
    assert "B:TERM@110" in text
    begin, rest = text.index("# The fence"), text.index("# SLURM's TERM (time")
    kernel = text.index("kernel=(", rest)
    launch = f'bash -c {chr(39)}trap "echo > {tmp_path}/told; exit 0" USR1; while :; do sleep 0.2; done{chr(39)} &\n'
    end = text.index("while true; do", kernel)
    script = replace(submission.script, text=text[:begin] + text[rest:kernel] + launch + text[end:])
    job = gateway.submit(replace(submission, script=script)).identity
    reaches(gateway, job, JobState.COMPLETED, within_s=110)
    assert (tmp_path / "told").read_text() == "\n"


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("export", ["NONE", "ALL"])
def test_environment_is_the_one_that_sbatch_gives(by: Make, tmp_path: Path, route: str, export: str) -> None:
    of_the_moment = re.compile(
        r"SLURM_(JOB_?ID|JOB_NAME|TASK_PID|\w*NODELIST|TOPOLOGY_ADDR|PRIO_PROCESS|SUBMIT_HOST|UMASK|RLIMIT_\w+)"
        r"|SLURM_CONF|SLURMD_NODENAME|HOSTNAME"
    )
    seen = []
    for name in ("cli", route):
        gateway, file = by(name), tmp_path / f"{name}.env"
        work = replace(SUCCEEDS, body=f"env -0 > {file}", lines=f"#SBATCH --nodelist=n1\n#SBATCH --export={export}")
        job = gateway.submit(submission_of(tmp_path, work, some_tag())).identity
        reaches(gateway, job, JobState.COMPLETED)
        pairs = (word.partition("=") for word in file.read_text().split("\0"))
        seen.append({key: value for key, _, value in pairs if not of_the_moment.fullmatch(key)})
    assert seen[1] == seen[0]


@pytest.mark.parametrize("route", ["cli", *ROUTES])
def test_starts_before_a_requeue_are_told_by_accounting(by: Make, cluster: Stack, tmp_path: Path, route: str) -> None:
    gateway = by(route)
    body = f'echo run >> {tmp_path}/runs; [ -n "$SLURM_RESTART_COUNT" ] || sleep 600'
    work = replace(SUCCEEDS, body=body, lines="#SBATCH --requeue")
    job = gateway.submit(submission_of(tmp_path, work, some_tag())).identity
    eventually(lambda: True if (tmp_path / "runs").exists() else None)
    scontrol(cluster, "requeue", str(job.job_id))
    # SLURM lets a requeued job begin two minutes later.
    eventually(lambda: True if gateway.poll([job])[job].state is JobState.PENDING else None)
    report = eventually(lambda: r if (r := gateway.account([job])[job]).restarts == 1 else None)
    (before,) = report.earlier
    assert before.started_at is not None
    assert before.ended_at is not None
    assert before.words == "REQUEUED"
    assert report.identity == job
    gateway.cancel(job)
