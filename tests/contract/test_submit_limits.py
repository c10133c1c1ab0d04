"""Limits of accounts and QOS on a real SLURM, by every route: one on the number of jobs passes, one on size doesn't."""

from __future__ import annotations

import getpass
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.errors import GatewayUnavailable, SubmitRefused
from orchestrator.records import JobIdentity
from orchestrator.slurm.cli import CliGateway
from orchestrator.slurm.gateway import Gateway
from orchestrator.slurm.pyslurm import PyslurmGateway
from orchestrator.slurm.rest import RestGateway
from orchestrator.stack import Stack
from orchestrator.stack.programs import find_program
from tests.contract.test_gateways import SUCCEEDS, eventually, some_tag, submission_of

pytestmark = pytest.mark.stack

HELD = "#SBATCH --hold"
NO_QOS_LIMITS = (
    "flags-=DenyOnLimit",
    "MaxWall=-1",
    "MaxTRESPerJob=cpu=-1",
    "MaxSubmitJobsPerUser=-1",
    "GrpSubmitJobs=-1",
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    private = Stack(tmp_path_factory.mktemp("cluster"))
    try:
        private.up({"slurm", "accounting", "rest"}, nodes=1, slurm_settings={"AccountingStorageEnforce": "limits"})
        yield private
    finally:
        private.down()


@pytest.fixture(params=["cli", "rest", pytest.param("pyslurm", marks=pytest.mark.pyslurm)])
def gateway(request: pytest.FixtureRequest, cluster: Stack, tmp_path: Path) -> Iterator[Gateway]:
    environment = {**os.environ, **cluster.environment()}
    made: Gateway
    if request.param == "cli":
        made = CliGateway(environment=environment)
    elif request.param == "rest":
        (tmp_path / "token").write_text(cluster.token())
        made = RestGateway(url=environment["ORCHESTRATOR_SLURMRESTD_URL"], token_file=tmp_path / "token")
    else:
        made = PyslurmGateway(python=request.getfixturevalue("pyslurm_python"), environment=environment)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def no_limits(cluster: Stack) -> Iterator[None]:
    yield
    ask(cluster, "scancel", "--user", getpass.getuser())
    limit(cluster, "user", getpass.getuser(), "MaxSubmitJobs=-1", "GrpSubmitJobs=-1")
    limit(cluster, "qos", "normal", *NO_QOS_LIMITS)


def ask(cluster: Stack, program: str, *words: str) -> str:
    command = [find_program(program), *words]
    environment = {**os.environ, **cluster.environment()}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def limit(cluster: Stack, kind: str, name: str, *limits: str) -> None:
    ask(cluster, "sacctmgr", "-i", "modify", kind, "where", f"name={name}", "set", *limits)


def submit(gateway: Gateway, folder: Path, options: str = "") -> JobIdentity:
    lines = f"{HELD}\n#SBATCH --time=1 {options}"
    return gateway.submit(submission_of(folder, replace(SUCCEEDS, lines=lines), some_tag())).identity


@pytest.mark.parametrize(
    ("kind", "limits"),
    [
        ("user", ["MaxSubmitJobs=2"]),
        ("user", ["GrpSubmitJobs=2"]),
        ("qos", ["MaxSubmitJobsPerUser=2"]),
        ("qos", ["GrpSubmitJobs=2"]),
        ("qos", ["flags=DenyOnLimit", "MaxSubmitJobsPerUser=2"]),
        ("qos", ["flags=DenyOnLimit", "GrpSubmitJobs=2", "MaxWall=60"]),
    ],
)
def test_too_many_jobs_are_for_now_and_one_fewer_is_taken(
    gateway: Gateway, cluster: Stack, tmp_path: Path, kind: str, limits: list[str]
) -> None:
    limit(cluster, kind, {"user": getpass.getuser(), "qos": "normal"}[kind], *limits)
    first, _ = submit(gateway, tmp_path), submit(gateway, tmp_path)
    with pytest.raises(GatewayUnavailable, match="policy") as error:
        submit(gateway, tmp_path)
    assert not error.value.everywhere
    assert "fewer jobs" in error.value.remedy
    gateway.cancel(first)
    eventually(lambda: True if gateway.poll([first])[first].state.ended else None)
    submit(gateway, tmp_path)


@pytest.mark.parametrize(
    ("limits", "options"),
    [
        (["MaxWall=10"], "--time=20"),
        (["MaxWall=10", "GrpSubmitJobs=100"], "--time=20"),
        (["MaxTRESPerJob=cpu=1"], "--ntasks=2"),
    ],
)
def test_too_large_a_job_is_refused_for_good(
    gateway: Gateway, cluster: Stack, tmp_path: Path, limits: list[str], options: str
) -> None:
    limit(cluster, "qos", "normal", "flags=DenyOnLimit", *limits)
    with pytest.raises(SubmitRefused, match="policy"):
        submit(gateway, tmp_path, options)
    submit(gateway, tmp_path)


def test_without_deny_on_limit_too_large_a_job_waits_in_the_queue(
    gateway: Gateway, cluster: Stack, tmp_path: Path
) -> None:
    limit(cluster, "qos", "normal", "MaxWall=10")
    submit(gateway, tmp_path, "--time=20")


def test_array_over_the_limit_is_not_taken(gateway: Gateway, cluster: Stack, tmp_path: Path) -> None:
    limit(cluster, "user", getpass.getuser(), "MaxSubmitJobs=2")
    with pytest.raises(GatewayUnavailable, match="policy"):
        submit(gateway, tmp_path, "--array=0-3")
    submit(gateway, tmp_path, "--array=0-1")


class TestOnlyRest:
    @pytest.fixture(params=["rest"])
    def gateway(self, cluster: Stack, tmp_path: Path) -> Iterator[RestGateway]:
        (tmp_path / "token").write_text(cluster.token())
        url = cluster.environment()["ORCHESTRATOR_SLURMRESTD_URL"]
        made = RestGateway(url=url, token_file=tmp_path / "token")
        yield made
        made.close()

    def test_what_cannot_be_told_is_tried_again_and_said_so(
        self, gateway: RestGateway, cluster: Stack, tmp_path: Path
    ) -> None:
        """A job of 100 MB too much: its size isn't compared here, and other users' jobs could count."""
        limit(cluster, "qos", "normal", "flags=DenyOnLimit", "MaxTRESPerJob=mem=10")
        with pytest.raises(GatewayUnavailable, match="can't be told") as error:
            submit(gateway, tmp_path, "--mem=100M")
        assert error.value.doubtful
        limit(cluster, "qos", "normal", "MaxTRESPerJob=mem=-1")

    def test_accounting_that_is_down_leaves_it_open(self, gateway: RestGateway, cluster: Stack, tmp_path: Path) -> None:
        limit(cluster, "user", getpass.getuser(), "MaxSubmitJobs=1")
        submit(gateway, tmp_path)
        cluster.stop("slurmdbd")
        try:
            with pytest.raises(GatewayUnavailable, match="can't be told"):
                submit(gateway, tmp_path)
        finally:
            cluster.start("slurmdbd")
