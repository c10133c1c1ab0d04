"""What changes at slurmrestd between two calls: its release, and whether it accepts the token."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from orchestrator.errors import GatewayUnavailable, OutcomeUnknown
from orchestrator.records import BatchScript, JobIdentity, Json, RunTag, Submission
from orchestrator.slurm.rest import RestGateway
from tests.unit.test_tokens import a_token

ZERO_BYTES: Json = {"errors": [{"error_number": 5005, "error": "Zero Bytes were transmitted or received"}]}
A_JOB = JobIdentity(cluster="c", job_id=7, submitted_at=datetime(2026, 11, 22, tzinfo=UTC))


class Server:
    """Answers as slurmrestd of SLURM 22.05 does, which says the same of a rejected token and of a lost answer."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.url = ""
        self.token_file = Path()
        self.submission: Callable[[], Json] = lambda: ZERO_BYTES
        self.accepts = True

    def answer(self, path: str) -> tuple[int, Json]:
        base = path.partition("?")[0]
        if base == "/openapi/v3":
            some = [f"/slurm/v0.0.{self.number}/job/submit", f"/slurmdb/v0.0.{self.number}/jobs"]
            return 200, {"paths": {one: {} for one in some}}
        if f"/v0.0.{self.number}/" not in base:
            return 404, None
        if base.endswith("/job/submit"):
            return 500, self.submission()
        if not self.accepts:
            return 401, None
        return 200, {"meta": {"slurm": {"cluster": "c"}}, "jobs": [], "clusters": [{"name": "c"}], "errors": []}


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server(38)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, document = state.answer(self.path)
            body = b"" if document is None else json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    listening = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{listening.server_port}"
    try:
        yield state
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()


@pytest.fixture
def gateway(server: Server, tmp_path: Path) -> Iterator[RestGateway]:
    server.token_file = tmp_path / "token"
    write_token(server, lives_s=3600)
    made = RestGateway(url=server.url, user="b21", token_file=server.token_file)
    yield made
    made.close()


def write_token(server: Server, *, lives_s: float) -> None:
    now = time.time()
    server.token_file.write_text(a_token(sun="b21", iat=now, exp=now + lives_s))


def a_submission(folder: Path) -> Submission:
    script = BatchScript(text="#!/bin/bash\ntrue\n", template_name="t", template_text="")
    return Submission(tag=RunTag(run_id="r", attempt=1), script=script, working_directory=folder)


def test_a_slurmrestd_of_a_newer_release_costs_a_question_one_failure(server: Server, gateway: RestGateway) -> None:
    assert gateway.poll([A_JOB]) == {}
    server.number = 44
    with pytest.raises(GatewayUnavailable) as error:
        gateway.poll([A_JOB])
    assert "it will be asked again" in error.value.remedy
    assert gateway.poll([A_JOB]) == {}


def test_a_slurmrestd_of_a_newer_release_costs_a_submission_one_failure(
    server: Server, gateway: RestGateway, tmp_path: Path
) -> None:
    gateway.check()
    server.number = 44
    with pytest.raises(GatewayUnavailable, match="404"):
        gateway.submit(a_submission(tmp_path))
    with pytest.raises(OutcomeUnknown, match="Zero Bytes"):  # it has reached the new release
        gateway.submit(a_submission(tmp_path))


def test_a_token_that_was_rejected_all_along_leaves_no_job(
    server: Server, gateway: RestGateway, tmp_path: Path
) -> None:
    gateway.check()
    server.accepts = False
    with pytest.raises(GatewayUnavailable, match="doesn't accept the token of b21"):
        gateway.submit(a_submission(tmp_path))


def test_a_token_that_expires_while_a_submission_is_under_way_leaves_its_outcome_open(
    server: Server, gateway: RestGateway, tmp_path: Path
) -> None:
    gateway.check()
    write_token(server, lives_s=5)  # slurmrestd's clock may be ahead of ours

    def accepted_then_expired() -> Json:
        server.accepts = False
        return ZERO_BYTES

    server.submission = accepted_then_expired
    with pytest.raises(OutcomeUnknown, match="Zero Bytes"):
        gateway.submit(a_submission(tmp_path))


def test_what_is_said_of_a_token_that_came_later_is_nothing_about_the_one_before(
    server: Server, gateway: RestGateway, tmp_path: Path
) -> None:
    gateway.check()

    def accepted_then_renewed() -> Json:
        server.accepts = False
        write_token(server, lives_s=7200)
        return ZERO_BYTES

    server.submission = accepted_then_renewed
    with pytest.raises(OutcomeUnknown, match="Zero Bytes"):
        gateway.submit(a_submission(tmp_path))
