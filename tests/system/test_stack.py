"""The private stack: what comes up, what comes down, and that jobs end the way they do on a real cluster."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import h5py
import pytest
import sqlalchemy
import typer.testing

from orchestrator.cli.common import ExitCode
from orchestrator.cli.stack import app
from orchestrator.errors import StackError
from orchestrator.stack import DaemonStatus, Stack, addresses, ports, processes

pytestmark = [pytest.mark.stack, pytest.mark.timeout(240)]

MPI_AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
SUM_OF_ONES = "from mpi4py import MPI; print(MPI.COMM_WORLD.allreduce(1))"


def in_stack(stack: Stack, *command: str | Path) -> str:
    environment = {**os.environ, **stack.environment(), **MPI_AS_ROOT}
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=180).stdout


def submit(stack: Stack, script: str, *options: str) -> str:
    return in_stack(stack, "sbatch", "--parsable", "--output=/dev/null", *options, f"--wrap={script}").strip()


def accounted(stack: Stack, job: str, field: str, *, timeout_s: float = 60, until: str = "") -> str:
    """Return a field of a job (all its records, first the job's own) once accounting has `until` in its state."""

    def ask(name: str) -> list[str]:
        return in_stack(stack, "sacct", "-D", "-n", "-P", "-j", job, "-o", name).split("\n")

    assert processes.wait_until(lambda: until in ask("State")[0], timeout_s=timeout_s, interval_s=0.5), ask("State")
    return "\n".join(ask(field))


def by_name(stack: Stack) -> dict[str, DaemonStatus]:
    return {daemon.name: daemon for daemon in stack.status()}


def wait_for_state(stack: Stack, job: str, state: str) -> None:
    def is_it() -> bool:
        return in_stack(stack, "squeue", "-h", "-j", job, "-o", "%T").strip() == state

    assert processes.wait_until(is_it, timeout_s=60, interval_s=0.2)


def wait_for_idle_nodes(stack: Stack) -> None:
    def idle() -> bool:
        return in_stack(stack, "sinfo", "-h", "-p", "live", "-o", "%D %t") == "2 idle\n"

    assert processes.wait_until(idle, timeout_s=60, interval_s=0.2)


@pytest.fixture
def other_stack(tmp_path: Path) -> Iterator[Stack]:
    """A second stack in a directory whose name is too long for sockets; tests bring it up."""
    other = Stack(tmp_path / ("other-stack-" * 10))
    try:
        yield other
    finally:
        other.down()


# ------------------------------------------------------------------------------------------------- up and down


def test_every_daemon_is_alive_and_the_nodes_are_idle(stack: Stack) -> None:
    daemons = by_name(stack)
    assert {"munged", "slurmctld", "slurmd-n1", "slurmd-n2", "broker"} <= set(daemons)
    assert all(daemon.alive for daemon in daemons.values())
    wait_for_idle_nodes(stack)


def test_bringing_it_up_again_keeps_every_process(stack: Stack) -> None:
    before = {name: daemon.pid for name, daemon in by_name(stack).items()}
    stack.up()
    assert {name: daemon.pid for name, daemon in by_name(stack).items()} == before


def test_a_dead_daemon_is_shown_with_its_last_words_and_only_it_is_started_again(stack: Stack) -> None:
    before = by_name(stack)
    stack.kill("slurmd-n2")
    dead = by_name(stack)["slurmd-n2"]
    assert not dead.alive
    assert any("slurmd started" in line for line in processes.tail(dead.log, 100))
    assert dead.last_lines == tuple(processes.tail(dead.log))
    stack.up()
    after = by_name(stack)
    assert after["slurmd-n2"].alive
    assert {name for name in after if after[name].pid != before[name].pid} == {"slurmd-n2"}


def test_another_number_of_nodes_is_refused_while_it_runs(stack: Stack) -> None:
    with pytest.raises(StackError, match="has 2 nodes, not 3") as caught:
        stack.up(nodes=3)
    assert "stack down" in caught.value.remedy


def test_each_daemon_listens_on_one_address_of_the_loopback_only(stack: Stack) -> None:
    beyond = addresses.beyond_loopback()
    for name, port in stack.layout.ports.items():
        if not (beyond and name.startswith("slurm")):
            # Who listens everywhere, or on an interface of the network besides, answers here too.
            with pytest.raises(OSError, match="refused"):
                socket.create_connection(("127.0.0.2", port), timeout=5)
    if beyond:
        assert "instead of to 127.0.0.1" in beyond


def test_two_stacks_run_side_by_side_and_going_down_ends_only_its_own(stack: Stack, other_stack: Stack) -> None:
    other_stack.up({"slurm", "broker"}, nodes=1)
    assert not set(other_stack.layout.ports.values()) & set(stack.layout.ports.values())
    ours, runtime = by_name(stack), other_stack.layout.runtime
    others = [daemon.pid for daemon in other_stack.status()]
    assert in_stack(other_stack, "srun", "hostname").strip()
    other_stack.down()
    assert not any(processes.identify(pid) for pid in others if pid)
    assert not runtime.exists()
    assert by_name(stack) == ours
    other_stack.down()


def test_going_down_ends_jobs_even_those_that_ignore_term(other_stack: Stack, tmp_path: Path) -> None:
    other_stack.up({"slurm"}, nodes=1)
    note = tmp_path / "pid"
    submit(other_stack, f"trap '' TERM; echo $$ > {note}; sleep 1000; sleep 1000")
    assert processes.wait_until(lambda: note.exists() and note.read_text().endswith("\n"), timeout_s=30)
    job = processes.identify(int(note.read_text()))
    assert job is not None
    other_stack.kill("slurmctld")
    other_stack.kill("slurmd-n1")
    assert processes.is_alive(job)
    other_stack.down()
    assert not processes.is_alive(job)


def test_a_daemon_that_does_not_come_up_is_quoted(other_stack: Stack) -> None:
    other_stack.up({"slurm"}, nodes=1)
    other_stack.stop("slurmd-n1")
    taken = socket.create_server((ports.LOOPBACK, other_stack.layout.ports["slurmd-n1"]))
    with taken, pytest.raises(StackError, match="slurmd-n1 ended at once") as caught:
        other_stack.start("slurmd-n1")
    assert "already in use" in str(caught.value)
    assert str(other_stack.layout.log("slurmd-n1")) in caught.value.remedy


def test_a_stack_that_crashed_comes_up_again_as_it_was(other_stack: Stack) -> None:
    other_stack.up({"slurm"}, nodes=1)
    before = other_stack.layout
    for daemon in other_stack.status():
        other_stack.kill(daemon.name)
    other_stack.up({"slurm"})
    assert other_stack.layout == before
    assert all(daemon.alive for daemon in other_stack.status())


CHECKOUT = Path(__file__).parents[2]
NOBODY = ("setpriv", "--reuid=nobody", f"--regid={pwd.getpwnam('nobody').pw_gid}", "--clear-groups")


@pytest.fixture
def home_of_nobody() -> Iterator[Path]:
    """Return a folder of the user nobody, with this checkout in it, which may itself be in a folder of root's."""
    home = Path(tempfile.mkdtemp(prefix="nobody-"))
    (home / "checkout").mkdir()
    subprocess.run(["mount", "--bind", str(CHECKOUT), str(home / "checkout")], check=True)
    os.chown(home, pwd.getpwnam("nobody").pw_uid, -1)
    yield home
    subprocess.run(["umount", str(home / "checkout")], check=True)
    shutil.rmtree(home)


def interpreter_for_nobody() -> str:
    """Return an interpreter of our version that everybody may run: ours may be in a folder of root's, too."""
    for candidate in (str(Path(sys.executable).resolve()), "/usr/bin/python3"):
        asked = [*NOBODY, candidate, "-c", "import sys; print(*sys.version_info[:2])"]
        answer = subprocess.run(asked, capture_output=True, text=True, check=False)
        if answer.stdout.split() == [str(number) for number in sys.version_info[:2]]:
            return candidate
    return pytest.skip("NOT TESTED: no interpreter of this version that the user nobody may run")


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: only root can become another user")
def test_an_ordinary_user_can_have_one(home_of_nobody: Path) -> None:
    program = (
        "import os, subprocess; from pathlib import Path; from orchestrator.stack import Stack\n"
        f"stack = Stack(Path({str(home_of_nobody)!r}) / 'stack')\n"
        "try:\n"
        "    stack.up(['slurm', 'broker', 'accounting', 'rest'])\n"
        "    environment = {**os.environ, **stack.environment()}\n"
        "    subprocess.run(['srun', '-N2', '-n2', 'id', '-un'], env=environment, check=True)\n"
        "    print([daemon for daemon in stack.status() if not daemon.alive])\n"
        "finally:\n"
        "    stack.down()\n"
    )
    checkout = home_of_nobody / "checkout"
    packages = checkout / Path(h5py.__file__).parents[1].relative_to(CHECKOUT)
    environment = {
        "HOME": str(home_of_nobody),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{checkout}:{packages}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [*NOBODY, interpreter_for_nobody(), "-c", program],
        env=environment, cwd=home_of_nobody, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["nobody", "nobody", "[]"], done.stderr


# -------------------------------------------------------------------------------------------------------- jobs


@pytest.mark.mpi
def test_an_mpi_job_spans_two_nodes_and_is_accounted_for(accounting_stack: Stack, tmp_path: Path) -> None:
    output = tmp_path / "out"
    script = f"mpirun {sys.executable} -c '{SUM_OF_ONES}'; sleep 2"
    wait_for_idle_nodes(accounting_stack)
    job = submit(accounting_stack, script, "-N2", "-n4", f"--output={output}", "--comment=run 1", "--wait")
    assert "".join(output.read_text().split()) == "4444"  # lines of several ranks may run into each other
    assert accounted(accounting_stack, job, "State,AllocNodes,Comment", until="COMPLETED").startswith(
        "COMPLETED|2|run 1\n"
    )
    assert "K" in accounted(accounting_stack, job, "MaxRSS")


def test_jobs_outlive_a_restart_of_the_controller(accounting_stack: Stack) -> None:
    job = submit(accounting_stack, "sleep 6")
    wait_for_state(accounting_stack, job, "RUNNING")
    # In order: a controller that crashes forgets what it was told during the last seconds, jobs included.
    accounting_stack.stop("slurmctld")
    assert not by_name(accounting_stack)["slurmctld"].alive
    accounting_stack.start("slurmctld")
    assert accounted(accounting_stack, job, "State", until="COMPLETED")


def test_memory_beyond_the_limit_is_killed_and_fails_the_job(accounting_stack: Stack) -> None:
    hungry = f"exec {sys.executable} -c 'import time; x = b\"1\" * 400_000_000; time.sleep(60)'"
    job = submit(accounting_stack, hungry, "--mem=100")
    # SLURM 22.05 says OUT_OF_MEMORY only where cgroups tell it; its own accounting says FAILED by signal 9.
    first, batch, *_ = accounted(accounting_stack, job, "State,ExitCode", until="FAILED").split("\n")
    assert first == "FAILED|0:9"
    assert batch.startswith("CANCELLED")


@pytest.mark.timeout(300)
def test_time_limit_and_lost_node_end_jobs_as_on_a_real_cluster(accounting_stack: Stack) -> None:
    wait_for_idle_nodes(accounting_stack)
    too_long = submit(accounting_stack, "sleep 600", "--time=1", "--nodelist=n1")
    lost = submit(accounting_stack, "sleep 600", "--nodelist=n2", "--no-requeue")
    requeued = submit(accounting_stack, "[ $SLURM_RESTART_COUNT ] || sleep 600", "--nodelist=n2", "--requeue")
    for job in (too_long, lost, requeued):
        wait_for_state(accounting_stack, job, "RUNNING")
    accounting_stack.kill("slurmd-n2")
    assert accounted(accounting_stack, lost, "State", until="NODE_FAIL", timeout_s=60)
    accounting_stack.start("slurmd-n2")
    assert processes.wait_until(
        lambda: "COMPLETED" in accounted(accounting_stack, requeued, "State"), timeout_s=90, interval_s=1
    )
    # A requeued job has a record for each attempt.
    assert accounted(accounting_stack, requeued, "State").startswith("NODE_FAIL\n")
    assert accounted(accounting_stack, too_long, "State", until="TIMEOUT", timeout_s=120)


# ---------------------------------------------------------------------------------------- the other services


def test_the_broker_shows_its_certificate_and_lets_its_user_in(stack: Stack) -> None:
    here = stack.broker
    context = ssl.create_default_context(cafile=str(here.certificate))
    plain = socket.create_connection((here.host, here.tls_port), timeout=10)
    with plain, context.wrap_socket(plain, server_hostname=here.host) as connection:
        connection.sendall(connect_frame(here.user, here.password))
        assert connection.recv(4096).startswith(b"CONNECTED\n")


def test_the_broker_refuses_strangers(stack: Stack) -> None:
    with socket.create_connection((stack.broker.host, stack.broker.port), timeout=10) as connection:
        connection.sendall(connect_frame(stack.broker.user, "guessed"))
        assert connection.recv(4096).startswith(b"ERROR\n")


def connect_frame(user: str, password: str) -> bytes:
    return f"CONNECT\naccept-version:1.2\nhost:localhost\nlogin:{user}\npasscode:{password}\n\n\0".encode()


def test_messages_outlive_a_crash_of_the_broker(other_stack: Stack) -> None:
    other_stack.up({"broker"})
    send = "SEND\ndestination:/queue/kept\npersistent:true\nreceipt:1\n\nframe 1\0"
    assert "RECEIPT" in conversation(other_stack, send)
    other_stack.kill("broker")
    other_stack.start("broker")
    assert "frame 1" in conversation(other_stack, "SUBSCRIBE\nid:0\ndestination:/queue/kept\n\n\0")


def conversation(stack: Stack, frame: str) -> str:
    """Return what the broker says to one frame after CONNECT."""
    here = stack.broker
    with socket.create_connection((here.host, here.port), timeout=10) as connection:
        connection.sendall(connect_frame(here.user, here.password))
        assert connection.recv(4096).startswith(b"CONNECTED\n")
        connection.sendall(frame.encode())
        answer = b""
        while not answer.rstrip(b"\n").endswith(b"\0"):
            answer += connection.recv(4096)
        return answer.decode()


def test_slurmrestd_answers_to_a_token_and_to_nothing_else(rest_stack: Stack) -> None:
    def jobs(token: str) -> dict[str, list[object]]:
        url = f"{rest_stack.environment()['ORCHESTRATOR_SLURMRESTD_URL']}/slurm/v0.0.38/jobs"
        user = pwd.getpwuid(os.geteuid()).pw_name
        request = urllib.request.Request(  # noqa: S310 -- the stack's own address
            url, headers={"X-SLURM-USER-NAME": user, "X-SLURM-USER-TOKEN": token}
        )
        with urllib.request.urlopen(request, timeout=10) as reply:  # noqa: S310 -- as above
            answer: dict[str, list[object]] = json.load(reply)
        return answer

    assert jobs(rest_stack.token())["errors"] == []
    with pytest.raises(urllib.error.HTTPError) as refused:
        jobs("guessed")
    refused.value.close()


def test_the_database_of_accounting_has_room_for_the_orchestrator(accounting_stack: Stack) -> None:
    engine = sqlalchemy.create_engine(accounting_stack.environment()["ORCHESTRATOR_MARIADB_URL"])
    with engine.connect() as connection:
        assert sqlalchemy.inspect(connection).get_table_names() == []
    engine.dispose()


# ------------------------------------------------------------------------------------------------ the commands


def invoke(*arguments: str | Path) -> typer.testing.Result:
    return typer.testing.CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_status_says_dead_by_exit_code_and_by_json(stack: Stack) -> None:
    whole = invoke("status", "--dir", stack.directory, "--json")
    assert whole.exit_code == ExitCode.OK
    assert all(daemon["alive"] for daemon in json.loads(whole.stdout)["daemons"])
    stack.kill("munged")
    try:
        broken = invoke("status", "--dir", stack.directory, "--json")
        assert broken.exit_code == ExitCode.INCOMPLETE
        dead = [daemon for daemon in json.loads(broken.stdout)["daemons"] if not daemon["alive"]]
        assert [daemon["name"] for daemon in dead] == ["munged"]
        assert dead[0]["last_lines"][-1].startswith("munged: ")
        for_people = invoke("status", "--dir", stack.directory)
        assert for_people.exit_code == ExitCode.INCOMPLETE
        assert f"    | {dead[0]['last_lines'][-1]}" in for_people.stdout
    finally:
        stack.start("munged")


def test_what_env_prints_can_be_evaluated_by_a_shell(stack: Stack) -> None:
    printed = invoke("env", "--dir", stack.directory).stdout
    shell = subprocess.run(
        ["sh", "-c", f'{printed}\nprintf "%s\\n" "$SLURM_CONF" "$ORCHESTRATOR_BROKER"; sinfo -h -o %P'],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    broker = f"{stack.broker.host}:{stack.broker.port}"
    assert shell.stdout.split() == [str(stack.layout.slurm_conf), broker, "live*", "debug", "urgent"]


def test_commands_on_a_stack_that_is_not_there(tmp_path: Path) -> None:
    status = invoke("status", "--dir", tmp_path)
    assert status.exit_code == ExitCode.OK
    assert f"There is no stack in {tmp_path}" in status.stdout
    assert invoke("env", "--dir", tmp_path).exit_code == ExitCode.INCOMPLETE
    assert invoke("down", "--dir", tmp_path).exit_code == ExitCode.OK
    assert not list(tmp_path.iterdir())
    assert invoke("up", "--dir", tmp_path, "--with", "slurm,brokr").exit_code == ExitCode.INCOMPLETE
