"""The route over SLURM's commands where something around it is wrong: named, and told apart whether to try again."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from orchestrator.errors import GatewayUnavailable, SubmitRefused, UnknownJob
from orchestrator.records import BatchScript, JobState, RunTag, Submission, utc_now
from orchestrator.slurm.cli import CliGateway
from orchestrator.stack import Stack, processes
from orchestrator.stack.programs import find_program

pytestmark = pytest.mark.stack

STRICT = {"AccountingStorageEnforce": "associations,limits,qos", "EnforcePartLimits": "ALL"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Return a SLURM as sites have it: accounts and limits are enforced."""
    private = Stack(tmp_path_factory.mktemp("strict"))
    try:
        private.up({"slurm", "accounting"}, nodes=1, slurm_settings=STRICT)
        yield private
    finally:
        private.down()


def gateway_of(slurm_conf: Path) -> CliGateway:
    return CliGateway(environment={**os.environ, "SLURM_CONF": str(slurm_conf)}, query_timeout_s=20)


@pytest.fixture
def gateway(cluster: Stack) -> CliGateway:
    return gateway_of(cluster.layout.slurm_conf)


@pytest.fixture
def changed_conf(cluster: Stack, tmp_path: Path) -> Callable[[str, str], Path]:
    """Return a maker of copies of slurm.conf in which something is replaced."""

    def change(old: str, new: str) -> Path:
        text = cluster.layout.slurm_conf.read_text()
        assert old in text
        (tmp_path / "slurm.conf").write_text(text.replace(old, new))
        return tmp_path / "slurm.conf"

    return change


def submission(folder: Path, *, lines: str = "", body: str = "true") -> Submission:
    text = f"#!/bin/bash\n#SBATCH --output=/dev/null\n{lines}\n{body}\n"
    tag = RunTag(run_id=secrets.token_hex(8), attempt=1)
    script = BatchScript(text=text, template_name="test", template_text="")
    return Submission(tag=tag, script=script, working_directory=folder)


@pytest.mark.parametrize(
    ("line", "words", "option"),
    [
        ("--account=nonsense", "Invalid account", "--account"),
        ("--qos=nonsense", "Invalid qos", "--qos"),
        ("--time=30-00:00:00", "time limit is invalid", "--time"),
        ("--mem=100000G", "Memory specification", "--mem"),
        ("--ntasks=10000", "More processors", "--ntasks"),
    ],
)
def test_what_no_node_or_account_offers_is_refused_for_good(
    gateway: CliGateway, tmp_path: Path, line: str, words: str, option: str
) -> None:
    with pytest.raises(SubmitRefused, match=words) as refusal:
        gateway.submit(submission(tmp_path, lines=f"#SBATCH {line}"))
    assert option in refusal.value.remedy


def test_a_script_over_slurms_limit_is_refused_for_good_and_the_limit_named(
    gateway: CliGateway, tmp_path: Path
) -> None:
    too_long = submission(tmp_path, body="# a line of a comment\n" * 220_000)
    with pytest.raises(SubmitRefused) as refusal:
        gateway.submit(too_long)
    assert "4 MB" in refusal.value.remedy
    assert gateway.find(too_long.tag, since=utc_now()) == ()


@pytest.fixture
def foreign_munge(tmp_path: Path) -> Iterator[Path]:
    """Return the socket of a munged that has another key than the cluster's."""
    key, socket = tmp_path / "munge.key", tmp_path / "munge.sock"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    files = (f"--key-file={key}", f"--seed-file={tmp_path}/seed", f"--pid-file={tmp_path}/pid", f"--socket={socket}")
    munged = subprocess.Popen([find_program("munged"), "--foreground", "--force", *files], stderr=subprocess.DEVNULL)
    try:
        assert processes.wait_until(socket.exists, timeout_s=20)
        yield socket
    finally:
        munged.terminate()
        munged.wait(20)


def test_another_munge_key_is_unavailable_for_every_question_and_no_job_is_made(
    cluster: Stack, gateway: CliGateway, changed_conf: Callable[[str, str], Path], foreign_munge: Path, tmp_path: Path
) -> None:
    job = gateway.submit(submission(tmp_path)).identity
    stranger = gateway_of(changed_conf(str(cluster.layout.munge_socket), str(foreign_munge)))
    refused = submission(tmp_path)
    for call in (stranger.check, lambda: stranger.poll([job]), lambda: stranger.submit(refused)):
        with pytest.raises(GatewayUnavailable) as error:
            call()
        assert "munge key" in error.value.remedy
    assert gateway.find(refused.tag, since=utc_now()) == ()


def test_a_configuration_that_names_another_cluster_is_told_by_the_controller_which_it_is(
    cluster: Stack, gateway: CliGateway, changed_conf: Callable[[str, str], Path], tmp_path: Path
) -> None:
    misled = gateway_of(changed_conf("ClusterName=stack", "ClusterName=elsewhere"))
    job = misled.submit(submission(tmp_path)).identity
    assert job.cluster == gateway.check().cluster == "stack"
    accounted: list[JobState] = []

    def known() -> bool:
        accounted.extend(report.state for report in misled.account([job]).values())
        return JobState.COMPLETED in accounted

    assert processes.wait_until(known, timeout_s=60)


def test_a_controller_that_lost_its_state_gives_ids_out_again_and_the_new_job_is_not_taken_for_the_old(
    cluster: Stack, gateway: CliGateway, tmp_path: Path
) -> None:
    """What a wrapped counter does too (MaxJobId); last in this file, for the cluster's jobs are forgotten."""
    ours = gateway.submit(submission(tmp_path, body="sleep 600"))
    cluster.stop("slurmctld")
    shutil.rmtree(cluster.layout.slurm_conf.parent / "state")
    (cluster.layout.slurm_conf.parent / "state").mkdir(mode=0o700)
    cluster.start("slurmctld")
    while (strangers := gateway.submit(submission(tmp_path, body="sleep 600")).identity).job_id < ours.identity.job_id:
        gateway.cancel(strangers)
    assert strangers.job_id == ours.identity.job_id
    assert strangers != ours.identity
    assert set(gateway.poll([ours.identity, strangers])) == {strangers}
    told = gateway.account([ours.identity]).get(ours.identity)
    assert told is None or told.name != gateway.poll([strangers])[strangers].name
    with suppress(UnknownJob):  # accounting may remember it
        gateway.cancel(ours.identity)
    assert not gateway.poll([strangers])[strangers].state.ended
    gateway.cancel(strangers)
