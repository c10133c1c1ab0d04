"""What only the route through libslurm has: its helper processes, and jobs put together without sbatch.

The measure of a job is the one that sbatch makes of the same script, on the same real SLURM.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest

from orchestrator.errors import GatewayUnavailable, OutcomeUnknown, SubmitRefused
from orchestrator.records import JobIdentity, JobReport, JobState, RunTag, utc_now
from orchestrator.slurm.cli import CliGateway
from orchestrator.slurm.gateway import Gateway
from orchestrator.slurm.pyslurm import PyslurmGateway
from orchestrator.slurm.pyslurm_process import HELPER
from orchestrator.stack import Stack
from tests.contract.test_gateways import (
    FAILS,
    GOES_ON,
    SUCCEEDS,
    Work,
    eventually,
    processes_with,
    reaches,
    some_tag,
    stays_pending,
    submission_of,
)

pytestmark = [pytest.mark.stack, pytest.mark.pyslurm]

Make = Callable[..., PyslurmGateway]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    private = Stack(tmp_path_factory.mktemp("cluster"))
    try:
        private.up({"slurm", "accounting"}, nodes=2)
        yield private
    finally:
        private.down()


@pytest.fixture
def make_gateway(cluster: Stack, pyslurm_python: Path) -> Iterator[Make]:
    made: list[PyslurmGateway] = []

    def make(*, submit_timeout_s: float = 60.0, query_timeout_s: float = 60.0) -> PyslurmGateway:
        gateway = PyslurmGateway(
            python=pyslurm_python,
            submit_timeout_s=submit_timeout_s,
            query_timeout_s=query_timeout_s,
            environment={**os.environ, **cluster.environment()},
        )
        made.append(gateway)
        return gateway

    yield make
    for gateway in made:
        gateway.close()


@pytest.fixture
def gateway(make_gateway: Make) -> PyslurmGateway:
    return make_gateway()


@pytest.fixture
def sbatch(cluster: Stack) -> CliGateway:
    return CliGateway(environment={**os.environ, **cluster.environment()})


def submit(gateway: Gateway, folder: Path, work: Work) -> JobIdentity:
    return gateway.submit(submission_of(folder, work, some_tag())).identity


def scontrol(cluster: Stack, *words: str) -> str:
    environment = {**os.environ, **cluster.environment()}
    done = subprocess.run(["scontrol", *words], capture_output=True, text=True, check=True, env=environment)
    return done.stdout


@contextmanager
def hung_controller(cluster: Stack) -> Iterator[None]:
    (controller,) = [daemon for daemon in cluster.status() if daemon.name == "slurmctld"]
    assert controller.pid is not None
    os.kill(controller.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(controller.pid, signal.SIGCONT)


# ------------------------------------------------------------------------------------------- the job that sbatch makes


def shown(cluster: Stack, job: JobIdentity) -> dict[str, str]:
    """Return what scontrol shows of a job but for what differs between any two jobs."""
    text = scontrol(cluster, "show", "job", str(job.job_id))
    without_comment = re.sub(r"^ *Comment=.*$", "", text, flags=re.MULTILINE)
    fields = dict(re.findall(r"(\S+?)=(.*?)(?= \S+?=|\n|$)", without_comment))
    own = {"JobId", "ArrayJobId", "JobName", "Priority", "AllocNode:Sid", "LastSchedEval"}
    own |= {name for name in fields if name.endswith("Time")}
    # Its number stands in names of files.
    return {
        name: re.sub(rf"\b{job.job_id}\b(?=[^/]*$)", "ID", value) if "/" in value else value
        for name, value in fields.items()
        if name not in own
    }


@pytest.mark.parametrize(
    "options",
    [
        "--time=5",
        "--ntasks=4 --mem-per-cpu=100M --time=0",
        "--nodes=2",
        "--nodes=1-2 --ntasks=3",
        "--nodes=2 --ntasks-per-node=2 --cpus-per-task=1",
        "--nodes=2 --ntasks=1",
        "--nodelist=n[1-2]",
        "--nodelist=n2 --exclude=n1",
        "--cpus-per-task=2 --ntasks=2 --threads-per-core=1",
        "--mem=50M --tmp=10G --time=1:30 --time-min=1",
        "--array=0-4%2",
        "--array=1,5,9 --nice",
        "--exclusive",
        "--exclusive=user",
        "--no-requeue --open-mode=append",
        "--requeue --open-mode=truncate --nice=7",
        "--output=x-%j.log --error=e-%A --input=/etc/hosts",
        "--chdir=/tmp --qos=normal --account=beam --partition=live",
        "--chdir=below -t 2",
        "--begin=now+1hour --mail-type=END,FAIL --mail-user=someone@example.org",
        "--mail-type=NONE --wckey=beam",
        "--dependency=singleton",
    ],
)
def test_job_is_the_one_that_sbatch_makes(
    gateway: PyslurmGateway, sbatch: CliGateway, cluster: Stack, tmp_path: Path, options: str
) -> None:
    work = replace(GOES_ON, lines=f"#SBATCH --hold\n#SBATCH {options}")
    jobs = [submit(route, tmp_path, work) for route in (sbatch, gateway)]
    by_sbatch, by_pyslurm = (shown(cluster, job) for job in jobs)
    assert by_pyslurm == by_sbatch
    for job in jobs:
        gateway.cancel(job)


@pytest.mark.parametrize(
    "lines", ["", "#SBATCH --export=NONE", "#SBATCH --export=HOME,BEAMLINE=b21 -c2 --open-mode=append"]
)
def test_environment_limits_and_mask_are_those_that_sbatch_gives(
    gateway: PyslurmGateway, sbatch: CliGateway, tmp_path: Path, lines: str
) -> None:
    of_the_moment = re.compile(r"SLURM_(JOB_?ID|JOB_NAME|TASK_PID|\w*NODELIST|TOPOLOGY_ADDR)|SLURMD_NODENAME|HOSTNAME")
    seen = []
    for route in (sbatch, gateway):
        body = f"env -0 > {tmp_path}/{route.name}.env; (ulimit -S -a; umask) > {tmp_path}/{route.name}.limits"
        job = submit(route, tmp_path, replace(SUCCEEDS, body=body, lines=f"#SBATCH --nodelist=n1\n{lines}"))
        reaches(gateway, job, JobState.COMPLETED)
        pairs = (word.partition("=") for word in (tmp_path / f"{route.name}.env").read_text().split("\0"))
        environment = {name: value for name, _, value in pairs if not of_the_moment.fullmatch(name)}
        seen.append((environment, (tmp_path / f"{route.name}.limits").read_text()))
    assert seen[1] == seen[0]


def test_script_is_submitted_byte_for_byte(gateway: PyslurmGateway, cluster: Stack, tmp_path: Path) -> None:
    work = replace(SUCCEEDS, lines="#SBATCH --hold", body="echo 'é 漢 \\n \t'\n" + "# long\n" * 2000)
    submission = submission_of(tmp_path, work, some_tag())
    job = gateway.submit(submission).identity
    scontrol(cluster, "write", "batch_script", str(job.job_id), str(tmp_path / "kept"))
    assert (tmp_path / "kept").read_bytes() == submission.script.text.encode()
    gateway.cancel(job)


def test_signal_before_the_time_limit_arrives(gateway: PyslurmGateway, tmp_path: Path) -> None:
    body = f"trap 'touch {tmp_path}/got; exit 0' USR1; while :; do sleep 0.2; done"
    job = submit(gateway, tmp_path, replace(SUCCEEDS, body=body, lines="#SBATCH --time=1 --signal=B:USR1@60"))
    reaches(gateway, job, JobState.COMPLETED, within_s=90)
    assert (tmp_path / "got").exists()


def test_job_starts_after_those_it_comes_after_and_never_after_one_that_failed(
    gateway: PyslurmGateway, cluster: Stack, tmp_path: Path
) -> None:
    held = replace(SUCCEEDS, lines="#SBATCH --hold")
    first, doomed = submit(gateway, tmp_path, held), submit(gateway, tmp_path, replace(FAILS, lines="#SBATCH --hold"))
    after = [
        gateway.submit(replace(submission_of(tmp_path, SUCCEEDS, some_tag()), after=before)).identity
        for before in ((first,), (first, doomed))
    ]
    assert gateway.poll(after)[after[0]].reason == "Dependency"
    scontrol(cluster, "release", f"{first.job_id},{doomed.job_id}")
    reaches(gateway, after[0], JobState.COMPLETED)
    reaches(gateway, after[1], JobState.CANCELLED)


def test_array_is_one_job_from_submission_to_accounting(gateway: PyslurmGateway, tmp_path: Path) -> None:
    body = "exit $((SLURM_ARRAY_TASK_ID == 2 ? 3 : 0))"
    job = submit(gateway, tmp_path, replace(SUCCEEDS, body=body, lines="#SBATCH --array=0-3%3"))
    report = reaches(gateway, job, JobState.FAILED)
    done = JobState.COMPLETED
    assert report.tasks == {0: done, 1: done, 2: JobState.FAILED, 3: done}
    assert report.exit_code == 3
    accounted = eventually(lambda: r if len((r := gateway.account([job])[job]).tasks) == 4 else None)
    assert accounted.identity == job


def test_cancelled_array_has_no_task_left(gateway: PyslurmGateway, tmp_path: Path) -> None:
    job = submit(gateway, tmp_path, replace(GOES_ON, lines="#SBATCH --array=0-7%2"))
    reaches(gateway, job, JobState.RUNNING)
    gateway.cancel(job)
    report = reaches(gateway, job, JobState.CANCELLED)
    assert set(report.tasks.values()) == {JobState.CANCELLED}
    assert len(report.tasks) == 8


@pytest.mark.parametrize("code", [127, 128, 137, 255])
def test_large_exit_codes_arrive(gateway: PyslurmGateway, tmp_path: Path, code: int) -> None:
    job = submit(gateway, tmp_path, replace(FAILS, body=f"exit {code}"))
    report = reaches(gateway, job, JobState.FAILED)
    assert (report.exit_code, report.signal) == (code, None)


def test_requeued_job_keeps_its_identity(gateway: PyslurmGateway, cluster: Stack, tmp_path: Path) -> None:
    body = f'echo run >> {tmp_path}/runs; [ -n "$SLURM_RESTART_COUNT" ] || sleep 600'
    job = submit(gateway, tmp_path, replace(SUCCEEDS, body=body, lines="#SBATCH --requeue"))
    eventually(lambda: True if (tmp_path / "runs").exists() else None)
    scontrol(cluster, "requeue", str(job.job_id))
    waiting = eventually(lambda: r if (r := gateway.poll([job])[job]).restarts else None)
    assert waiting.identity == job
    eventually(lambda: True if gateway.account([job])[job].restarts == 1 else None)
    gateway.cancel(job)


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("line", "option"),
    [
        ("--partition=nonsense", "--partition"),
        ("--mem=100000G", "--mem"),
        ("--constraint=nonsense", "--constraint"),
        ("--nodelist=nonsense", "--nodelist"),
        ("--gres=gpu:9", "--gres"),
        ("--licenses=nonsense", "--licenses"),
        ("--reservation=nonsense", "--reservation"),
        ("--begin=nonsense", "#SBATCH"),
        ("--time=nonsense", "--time"),
        ("--ntasks=none", "--ntasks"),
        ("--signal=NONSENSE@5", "--signal"),
        ("--nonsense", "#SBATCH"),
        ("--hint=nomultithread", "gateway.route"),
    ],
)
def test_refusal_names_the_option(gateway: PyslurmGateway, tmp_path: Path, line: str, option: str) -> None:
    with pytest.raises(SubmitRefused) as refusal:
        submit(gateway, tmp_path, replace(SUCCEEDS, lines=f"#SBATCH {line}"))
    assert option in refusal.value.remedy


def test_carriage_return_is_refused_with_its_line(gateway: PyslurmGateway, tmp_path: Path) -> None:
    with pytest.raises(SubmitRefused, match=r"line 4 .* carriage return"):
        submit(gateway, tmp_path, replace(SUCCEEDS, body="printf 'a\rb'"))


def test_submission_for_another_user_is_refused(gateway: PyslurmGateway, tmp_path: Path) -> None:
    with pytest.raises(SubmitRefused, match="nobody") as refusal:
        gateway.submit(replace(submission_of(tmp_path, SUCCEEDS, some_tag()), user="nobody"))
    assert "rest" in refusal.value.remedy


# ------------------------------------------------------------------------------- controllers and helpers that go away


def test_stopped_controller_is_unavailable_for_every_question(
    gateway: PyslurmGateway, cluster: Stack, tmp_path: Path
) -> None:
    before, tag = utc_now(), some_tag()
    job = submit(gateway, tmp_path, SUCCEEDS)
    cluster.stop("slurmctld")
    try:
        calls: tuple[Callable[[], object], ...] = (
            gateway.check,
            lambda: gateway.submit(submission_of(tmp_path, SUCCEEDS, tag)),
            lambda: gateway.find(tag, since=before),
            lambda: gateway.poll([job]),
            lambda: gateway.cancel(job),
        )
        for call in calls:
            with pytest.raises(GatewayUnavailable, match="connect failure") as error:
                call()
            assert "slurmctld" in error.value.remedy
    finally:
        cluster.start("slurmctld")
    assert gateway.find(tag, since=before) == ()


def test_unsigned_call_surely_had_no_effect_and_names_munge(
    gateway: PyslurmGateway, cluster: Stack, tmp_path: Path
) -> None:
    before, tag = utc_now(), some_tag()
    gateway.check()
    cluster.stop("munged")
    try:
        for call in (lambda: gateway.submit(submission_of(tmp_path, SUCCEEDS, tag)), gateway.check):
            with pytest.raises(GatewayUnavailable) as error:
                call()
            assert "munged" in error.value.remedy
    finally:
        cluster.start("munged")
    assert gateway.find(tag, since=before) == ()


def test_hung_controller_holds_nobody_up_longer_than_the_time_limits(
    make_gateway: Make, cluster: Stack, tmp_path: Path
) -> None:
    gateway = make_gateway(submit_timeout_s=2.0, query_timeout_s=2.0)
    before, tag = utc_now(), some_tag()
    job = submit(gateway, tmp_path, SUCCEEDS)
    beats: list[float] = []
    done = threading.Event()

    def beat() -> None:
        while not done.wait(0.02):
            beats.append(time.monotonic())

    heart = threading.Thread(target=beat)
    with hung_controller(cluster), ThreadPoolExecutor(2) as threads:
        heart.start()
        begun = time.monotonic()
        submission = threads.submit(gateway.submit, submission_of(tmp_path, SUCCEEDS, tag))
        question = threads.submit(gateway.poll, [job])
        with pytest.raises(OutcomeUnknown, match="within 2 s"):
            submission.result(10)
        with pytest.raises(GatewayUnavailable, match="within 2 s"):
            question.result(10)
        took_s = time.monotonic() - begun
        done.set()
        heart.join()
    assert took_s < 4.0
    assert max(later - earlier for earlier, later in pairwise(beats)) < 0.5
    assert len(eventually(lambda: found_or_none(gateway, tag, before))) == 1


def found_or_none(gateway: PyslurmGateway, tag: RunTag, since: datetime) -> tuple[JobReport, ...] | None:
    try:
        return gateway.find(tag, since=since) or None
    except GatewayUnavailable:  # the controller catches up first
        return None


def test_helper_killed_in_the_middle_of_a_submission_leaves_the_outcome_unknown_and_the_next_one_works(
    gateway: PyslurmGateway, cluster: Stack, tmp_path: Path
) -> None:
    submit(gateway, tmp_path, SUCCEEDS)
    helper = gateway._submitter._process
    assert helper is not None
    with hung_controller(cluster), ThreadPoolExecutor(1) as threads:
        submission = threads.submit(submit, gateway, tmp_path, SUCCEEDS)
        eventually(lambda: True if in_a_call(helper.pid) else None)
        os.kill(helper.pid, signal.SIGKILL)
        with pytest.raises(OutcomeUnknown, match="ended in the middle"):
            submission.result(10)
    reaches(gateway, submit(gateway, tmp_path, SUCCEEDS), JobState.COMPLETED)


def in_a_call(pid: int) -> bool:
    """Whether the helper has a connection open: it waits for the controller."""
    links = (str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink())
    return any(link.startswith("socket:") for link in links)


SERVICE = """
import sys, threading
from pathlib import Path
from orchestrator.slurm.pyslurm import PyslurmGateway
gateway = PyslurmGateway(python=Path(sys.argv[1]), submit_timeout_s=600, query_timeout_s=600)
gateway.check()
print("checked", flush=True)
sys.stdin.readline()
threading.Thread(target=gateway.check).start()
"""


@pytest.mark.parametrize("in_a_hung_call", [False, True])
def test_helpers_end_with_the_service(cluster: Stack, pyslurm_python: Path, in_a_hung_call: bool) -> None:
    others = set(processes_with(str(HELPER)))
    service = subprocess.Popen(
        [sys.executable, "-c", SERVICE, str(pyslurm_python)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **cluster.environment()},
    )  # fmt: skip
    assert service.stdin is not None
    assert service.stdout is not None
    assert service.stdout.readline() == b"checked\n"
    (helper,) = set(processes_with(str(HELPER))) - others
    with hung_controller(cluster):
        if in_a_hung_call:
            service.stdin.write(b"\n")
            service.stdin.flush()
            eventually(lambda: True if in_a_call(helper) else None)
        service.kill()
        service.wait()
        eventually(lambda: True if helper not in processes_with(str(HELPER)) else None, within_s=5)
    service.stdin.close()
    service.stdout.close()


def test_several_threads_submit_and_ask_at_once(gateway: PyslurmGateway, tmp_path: Path) -> None:
    work = Work(body="sleep 600", lines="#SBATCH --hold", play=stays_pending)
    first = submit(gateway, tmp_path, work)
    with ThreadPoolExecutor(4) as threads:
        submissions = [threads.submit(submit, gateway, tmp_path, work) for _ in range(20)]
        polls = [threads.submit(gateway.poll, [first]) for _ in range(20)]
        jobs = {submission.result() for submission in submissions}
        assert all(set(poll.result()) == {first} for poll in polls)
    assert len(jobs) == 20
    assert set(gateway.poll([*jobs])) == jobs
    for job in (first, *jobs):
        gateway.cancel(job)


def test_stopped_accounting_proves_no_absence(gateway: PyslurmGateway, cluster: Stack, tmp_path: Path) -> None:
    before, tag = utc_now(), some_tag()
    job = gateway.submit(submission_of(tmp_path, SUCCEEDS, tag)).identity
    cluster.stop("slurmdbd")
    try:
        with pytest.raises(GatewayUnavailable):
            gateway.account([job])
        assert [report.identity for report in gateway.find(tag, since=before)] == [job]
        with pytest.raises(GatewayUnavailable):
            gateway.find(some_tag(), since=before)
    finally:
        cluster.start("slurmdbd")
