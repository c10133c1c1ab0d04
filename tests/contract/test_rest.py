"""What only the route over slurmrestd has: kept connections, lost answers, tokens, users, versions."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from orchestrator.errors import GatewayUnavailable, OutcomeUnknown, SubmitRefused
from orchestrator.records import JobState, utc_now
from orchestrator.slurm.rest import RestGateway
from orchestrator.stack import Stack
from orchestrator.stack.programs import find_program
from tests.contract.test_gateways import SUCCEEDS, eventually, is_accounted, reaches, some_tag, submission_of

pytestmark = pytest.mark.stack

HELD = replace(SUCCEEDS, lines="#SBATCH --hold")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    private = Stack(tmp_path_factory.mktemp("cluster"))
    try:
        private.up({"slurm", "accounting", "rest"}, nodes=1)
        yield private
    finally:
        private.down()


def url_of(cluster: Stack) -> str:
    return cluster.environment()["ORCHESTRATOR_SLURMRESTD_URL"]


def token_of(cluster: Stack, user: str, lifespan_s: int = 600) -> str:
    command = [find_program("scontrol"), "token", f"username={user}", f"lifespan={lifespan_s}"]
    environment = {**os.environ, **cluster.environment()}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def token(cluster: Stack, tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text(cluster.token())
    return file


@pytest.fixture
def make_gateway(cluster: Stack, token: Path) -> Iterator[Callable[..., RestGateway]]:
    made: list[RestGateway] = []

    def make(**settings: object) -> RestGateway:
        wanted = {"url": url_of(cluster), "token_file": token, **settings}
        made.append(RestGateway(**wanted))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for gateway in made:
        gateway.close()


@pytest.fixture
def gateway(make_gateway: Callable[..., RestGateway]) -> RestGateway:
    return make_gateway()


# ------------------------------------------------------------------------------------------------ connections


class Wire:
    """A TCP proxy: counts connections, and can swallow an answer or end kept connections."""

    def __init__(self, url: str) -> None:
        self._target = (urlsplit(url).hostname, urlsplit(url).port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self.accepted = 0
        self.swallow = False
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End every connection."""
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with suppress(OSError):  # done before, by the test
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.cut()
        for one in self._open:
            one.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._server.accept()
                self.accepted += 1
                far = socket.create_connection(self._target)
                self._open += [near, far]
                threading.Thread(target=self._pump, args=(near, far, False), daemon=True).start()
                threading.Thread(target=self._pump, args=(far, near, True), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if answers and self.swallow:
                    break
                sink.sendall(data)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def wire(cluster: Stack) -> Iterator[Wire]:
    made = Wire(url_of(cluster))
    yield made
    made.close()


def test_one_connection_serves_many_calls(make_gateway: Callable[..., RestGateway], wire: Wire, tmp_path: Path) -> None:
    gateway = make_gateway(url=wire.url)
    jobs = [gateway.submit(submission_of(tmp_path, HELD, some_tag())).identity for _ in range(5)]
    assert set(gateway.poll(jobs)) == set(jobs)
    for job in jobs:
        gateway.cancel(job)
    assert wire.accepted == 1


def test_kept_connection_that_has_ended_is_replaced_before_anything_is_sent(
    make_gateway: Callable[..., RestGateway], wire: Wire, tmp_path: Path
) -> None:
    before, tag = utc_now(), some_tag()
    gateway = make_gateway(url=wire.url)
    gateway.check()
    wire.cut()
    time.sleep(0.2)
    job = gateway.submit(submission_of(tmp_path, HELD, tag)).identity
    assert [report.identity for report in gateway.find(tag, since=before)] == [job]
    gateway.cancel(job)


def test_answer_that_is_lost_after_acceptance_leaves_one_job_that_is_found(
    make_gateway: Callable[..., RestGateway], wire: Wire, tmp_path: Path
) -> None:
    before, tag = utc_now(), some_tag()
    gateway = make_gateway(url=wire.url)
    gateway.check()
    wire.swallow = True
    with pytest.raises(OutcomeUnknown, match="before the answer was there"):
        gateway.submit(submission_of(tmp_path, HELD, tag))
    wire.swallow = False
    (found,) = gateway.find(tag, since=before)
    assert found.state is JobState.PENDING
    gateway.cancel(found.identity)


def test_slurmrestd_that_is_not_there_is_unavailable(
    make_gateway: Callable[..., RestGateway], wire: Wire, tmp_path: Path
) -> None:
    gateway = make_gateway(url=wire.url)
    gateway.check()
    wire.close()
    with pytest.raises(GatewayUnavailable, match="refused"):
        gateway.submit(submission_of(tmp_path, HELD, some_tag()))


def test_controller_that_hangs_leaves_the_outcome_unknown_and_the_job_is_found_later(
    make_gateway: Callable[..., RestGateway], cluster: Stack, tmp_path: Path
) -> None:
    before, tag = utc_now(), some_tag()
    gateway = make_gateway(submit_timeout_s=1.0)
    gateway.check()
    (controller,) = [daemon for daemon in cluster.status() if daemon.name == "slurmctld"]
    assert controller.pid is not None
    os.kill(controller.pid, signal.SIGSTOP)
    try:
        with pytest.raises(OutcomeUnknown, match="within 1 s"):
            gateway.submit(submission_of(tmp_path, HELD, tag))
    finally:
        os.kill(controller.pid, signal.SIGCONT)
    (found,) = eventually(lambda: gateway.find(tag, since=before) or None)
    gateway.cancel(found.identity)


def test_stopped_controller_is_unavailable_and_leaves_no_job(
    gateway: RestGateway, cluster: Stack, tmp_path: Path
) -> None:
    before, tag = utc_now(), some_tag()
    job = gateway.submit(submission_of(tmp_path, HELD, some_tag())).identity
    cluster.stop("slurmctld")
    try:
        with pytest.raises(GatewayUnavailable, match="connect failure") as error:
            gateway.submit(submission_of(tmp_path, HELD, tag))
        assert "slurmctld" in error.value.remedy
        with pytest.raises(GatewayUnavailable):
            gateway.poll([job])
    finally:
        cluster.start("slurmctld")
    assert gateway.find(tag, since=before) == ()
    gateway.cancel(job)


def test_stopped_accounting_proves_no_absence(gateway: RestGateway, cluster: Stack, tmp_path: Path) -> None:
    before, tag = utc_now(), some_tag()
    job = gateway.submit(submission_of(tmp_path, SUCCEEDS, tag)).identity
    reaches(gateway, job, JobState.COMPLETED)
    cluster.stop("slurmdbd")
    try:
        with pytest.raises(GatewayUnavailable, match="7000") as error:
            gateway.account([job])
        assert "slurmdbd" in error.value.remedy
        assert [report.identity for report in gateway.find(tag, since=before)] == [job]
        with pytest.raises(GatewayUnavailable):
            gateway.find(some_tag(), since=before)
    finally:
        cluster.start("slurmdbd")


def test_requeued_job_keeps_its_identity_with_controller_and_accounting(
    gateway: RestGateway, cluster: Stack, tmp_path: Path
) -> None:
    body = f'echo run >> {tmp_path}/runs; [ -n "$SLURM_RESTART_COUNT" ] || sleep 600'
    job = gateway.submit(submission_of(tmp_path, replace(SUCCEEDS, body=body, lines="#SBATCH --requeue"), some_tag()))
    reaches(gateway, job.identity, JobState.RUNNING)
    eventually(lambda: True if (tmp_path / "runs").exists() else None)
    command = [find_program("scontrol"), "requeue", str(job.identity.job_id)]
    subprocess.run(command, env={**os.environ, **cluster.environment()}, check=True)
    waiting = eventually(lambda: r if (r := gateway.poll([job.identity])[job.identity]).restarts else None)
    assert waiting.identity == job.identity
    eventually(lambda: r if (r := gateway.account([job.identity]).get(job.identity)) and r.restarts == 1 else None)
    gateway.cancel(job.identity)
    reaches(gateway, job.identity, JobState.CANCELLED, JobState.COMPLETED)


# ----------------------------------------------------------------------------------------------------- tokens


def test_expired_token_is_named_and_a_new_one_in_the_file_is_taken(
    gateway: RestGateway, cluster: Stack, token: Path, tmp_path: Path
) -> None:
    gateway.check()
    token.write_text(token_of(cluster, "root", lifespan_s=1))
    time.sleep(2.1)
    with pytest.raises(GatewayUnavailable, match="expired at"):
        gateway.submit(submission_of(tmp_path, HELD, some_tag()))
    token.write_text(cluster.token())
    gateway.cancel(gateway.submit(submission_of(tmp_path, HELD, some_tag())).identity)


def test_command_is_asked_for_a_new_token_before_the_old_one_expires(
    make_gateway: Callable[..., RestGateway], cluster: Stack, tmp_path: Path
) -> None:
    script = tmp_path / "token.sh"
    conf = cluster.environment()["SLURM_CONF"]
    scontrol = find_program("scontrol")
    script.write_text(f"echo x >> {tmp_path}/calls; SLURM_CONF={conf} {scontrol} token username=$1 lifespan=3\n")
    gateway = make_gateway(token_file=None, token_command=["sh", str(script), "{user}"])
    deadline = time.monotonic() + 7
    while time.monotonic() < deadline:
        gateway.poll([gateway.submit(submission_of(tmp_path, HELD, some_tag())).identity])
        time.sleep(0.2)
    assert 3 <= len((tmp_path / "calls").read_text().split()) <= 5


def test_token_of_another_user_is_told_from_one_that_was_not_signed_here(
    gateway: RestGateway, cluster: Stack, token: Path, tmp_path: Path
) -> None:
    before, tag = utc_now(), some_tag()
    gateway.check()
    good = token.read_text().strip()
    token.write_text(token_of(cluster, "nobody"))
    with pytest.raises(GatewayUnavailable, match="the token of nobody for root"):
        gateway.submit(submission_of(tmp_path, HELD, tag))
    token.write_text(good[:-8] + "AAAAAAAA")
    with pytest.raises(GatewayUnavailable, match="wasn't signed") as error:
        gateway.submit(submission_of(tmp_path, HELD, tag))
    assert good[:-8] not in error.value.full_text
    token.write_text(good)
    assert gateway.find(tag, since=before) == ()


def test_job_of_another_user_is_that_users_job(
    make_gateway: Callable[..., RestGateway], cluster: Stack, tmp_path: Path
) -> None:
    for user in ("root", "nobody"):
        (tmp_path / f"{user}.jwt").write_text(token_of(cluster, user))
    gateway = make_gateway(token_file=tmp_path / "{user}.jwt")
    home = Path("/")
    text = "#!/bin/bash\n#SBATCH --output=/dev/null\n#SBATCH --hold\ndate\n"
    submission = submission_of(tmp_path, SUCCEEDS, some_tag())
    job = gateway.submit(
        replace(submission, script=replace(submission.script, text=text), working_directory=home, user="nobody")
    ).identity
    owner = gateway._one(job.job_id, "root")
    assert owner is not None
    assert owner.user == "nobody"
    gateway.cancel(job)
    reaches(gateway, job, JobState.CANCELLED)
    is_accounted(gateway, job, JobState.CANCELLED)


def test_job_of_another_user_is_refused_without_that_users_token(gateway: RestGateway, tmp_path: Path) -> None:
    with pytest.raises(SubmitRefused, match="no token of nobody") as refusal:
        gateway.submit(replace(submission_of(tmp_path, HELD, some_tag()), user="nobody"))
    assert "{user}" in refusal.value.remedy


def test_token_stands_in_no_representation(gateway: RestGateway, token: Path) -> None:
    gateway.check()
    secret = token.read_text().strip().rpartition(".")[2]
    assert secret not in repr(gateway) + repr(gateway._connection) + repr(gateway._tokens.token("root"))


# --------------------------------------------------------------------------------------- sockets and versions


def test_unix_socket_is_spoken_to_as_well(
    make_gateway: Callable[..., RestGateway], cluster: Stack, tmp_path: Path
) -> None:
    path = tmp_path / "slurmrestd.socket"
    environment = {
        **os.environ, **cluster.environment(), "SLURMRESTD_SECURITY": "disable_user_check", "SLURM_JWT": "daemon"
    }  # fmt: skip
    with (tmp_path / "log").open("w") as log:
        command = [find_program("slurmrestd"), "-a", "rest_auth/jwt", f"unix:{path}"]
        daemon = subprocess.Popen(command, env=environment, stderr=log)
    try:
        eventually(lambda: True if path.exists() else None)
        gateway = make_gateway(url=None, socket=path)
        job = gateway.submit(submission_of(tmp_path, HELD, some_tag())).identity
        assert set(gateway.poll([job])) == {job}
        gateway.cancel(job)
    finally:
        daemon.terminate()
        daemon.wait(20)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Return a certificate of 127.0.0.1 that nobody signed but itself, with its key in the same file."""
    file = tmp_path / "tls.pem"
    command = [find_program("openssl"), "req", "-x509", "-nodes", "-days", "1", "-newkey", "rsa:2048"]
    command += ["-subj", "/CN=slurmrestd", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", str(tmp_path / "key"), "-out", str(file)], check=True, capture_output=True)
    file.write_text(file.read_text() + (tmp_path / "key").read_text())
    return file


@pytest.fixture
def https_url(cluster: Stack, certificate: Path) -> Iterator[str]:
    """Serve slurmrestd by HTTPS, as the proxy does that a site puts in front of it."""

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
            said = httpx.request(self.command, url_of(cluster) + self.path, headers=headers, content=body, timeout=60)
            self.send_response(said.status_code)
            self.send_header("Content-Type", said.headers["Content-Type"])
            self.send_header("Content-Length", str(len(said.content)))
            self.end_headers()
            self.wfile.write(said.content)

        do_GET = do_POST = do_DELETE = forward  # noqa: N815 - the base class's names

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    # The handshake is the connection's own thread's business: a client that refuses must not end the server.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"https://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_https_is_spoken_with_a_certificate_that_ca_file_trusts(
    make_gateway: Callable[..., RestGateway], https_url: str, certificate: Path, tmp_path: Path
) -> None:
    before, tag = utc_now(), some_tag()
    gateway = make_gateway(url=https_url, ca_file=certificate)
    job = gateway.submit(submission_of(tmp_path, HELD, tag)).identity
    assert [report.identity for report in gateway.find(tag, since=before)] == [job]
    gateway.cancel(job)
    gateway.close()  # before its server


def test_certificate_that_nobody_trusts_gets_no_token_and_is_named(
    make_gateway: Callable[..., RestGateway], https_url: str, tmp_path: Path
) -> None:
    gateway = make_gateway(url=https_url)
    for call in (gateway.check, lambda: gateway.submit(submission_of(tmp_path, HELD, some_tag()))):
        with pytest.raises(GatewayUnavailable, match="certificate") as error:
            call()
        assert "ca_file" in error.value.remedy


def test_server_of_another_cluster_is_refused(make_gateway: Callable[..., RestGateway]) -> None:
    gateway = make_gateway(cluster="elsewhere")
    with pytest.raises(GatewayUnavailable, match=r"serves the cluster stack, not elsewhere") as error:
        gateway.check()
    assert "cluster" in error.value.remedy


@contextmanager
def offering(paths: list[str]) -> Iterator[str]:
    """Serve an OpenAPI document with these paths."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"paths": {path: {} for path in paths}}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_server_of_an_unsupported_version_is_told(make_gateway: Callable[..., RestGateway]) -> None:
    with offering(["/slurm/v0.0.99/job/submit", "/slurm/v0.0.35/job/submit"]) as url:
        gateway = make_gateway(url=url)
        with pytest.raises(GatewayUnavailable, match=r"offers 0.0.35, 0.0.99; this program speaks 0.0.38 to"):
            gateway.check()
        gateway.close()


@pytest.mark.parametrize(
    ("line", "option"),
    [
        ("--partition=nonsense", "--partition"),
        ("--mem=100000G", "--mem"),
        ("--constraint=nonsense", "--constraint"),
        ("--nodelist=nonsense", "--nodelist"),
        ("--gres=gpu:9", "--gres"),
        ("--reservation=nonsense", "--reservation"),
        ("--time=nonsense", "--time"),
        ("--nonsense", "#SBATCH"),
    ],
)
def test_refusal_names_the_option(gateway: RestGateway, tmp_path: Path, line: str, option: str) -> None:
    with pytest.raises(SubmitRefused) as refusal:
        gateway.submit(submission_of(tmp_path, replace(SUCCEEDS, lines=f"#SBATCH {line}"), some_tag()))
    assert option in refusal.value.remedy
