"""What slurmrestd's errors mean; the answers are those of SLURM 22.05.8 and 25.11."""

from __future__ import annotations

import pytest

from orchestrator.errors import GatewayError, GatewayUnavailable, OutcomeUnknown, SubmitRefused
from orchestrator.slurm.rest_documents import RestError
from orchestrator.slurm.rest_failures import query_failure, submission_failure, token_verdict

ZERO_BYTES = RestError(number=5005, text="Zero Bytes were transmitted or received")


def failure(status: int, number: int, text: str = "", plain: str = "") -> GatewayError:
    found = [RestError(number=number, text=text)] if text else []
    return submission_failure(status, found, plain=plain, options=["gres", "mem"])


@pytest.mark.parametrize(
    ("number", "text", "kind", "remedy"),
    [
        (2000, "Invalid partition name specified", SubmitRefused, "--partition"),
        (2014, "Requested node configuration is not available", SubmitRefused, "--mem"),
        (2045, "Invalid account or account/partition combination specified", SubmitRefused, "--account"),
        (2066, "Invalid qos specification", SubmitRefused, "--qos"),
        (1005, "Incompatible versions of client and server code", SubmitRefused, "releases"),
        (2007, "Slurm job queue full", GatewayUnavailable, "MaxJobCount"),
        (2105, "System submissions disabled", GatewayUnavailable, "closed the queue"),
        (1800, "Unable to contact slurm controller (connect failure)", GatewayUnavailable, "slurmctld"),
        (1002, "Message send failure", OutcomeUnknown, "tag"),
        (1003, "Message receive failure", OutcomeUnknown, "tag"),
        (5004, "Socket timed out on send/recv operation", OutcomeUnknown, "tag"),
        (5005, "Zero Bytes were transmitted or received", OutcomeUnknown, "tag"),
        (2999, "Something that nobody has seen", OutcomeUnknown, "tag"),
    ],
)
def test_slurms_number_decides_whether_a_job_may_exist(
    number: int, text: str, kind: type[GatewayError], remedy: str
) -> None:
    error = failure(500, number, text)
    assert type(error) is kind
    assert remedy in error.remedy
    assert text in str(error)


def test_words_decide_where_there_is_no_number_in_the_table() -> None:
    assert type(failure(500, 2998, "Invalid feature specification")) is SubmitRefused


def test_request_that_slurmrestd_could_not_read_is_refused_and_names_the_options() -> None:
    error = failure(400, 9001, "Failure during parsing")
    assert type(error) is SubmitRefused
    assert error.remedy.endswith("--gres, --mem")


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, GatewayUnavailable), (404, GatewayUnavailable), (500, OutcomeUnknown), (502, OutcomeUnknown)],
)
def test_answer_without_a_document_is_judged_by_its_status(status: int, kind: type[GatewayError]) -> None:
    error = failure(status, 0, plain="Bad\nGateway")
    assert type(error) is kind
    assert "Bad Gateway" in str(error)


def test_accounting_that_is_down_is_told_from_a_controller_that_is() -> None:
    down = RestError(number=7000, text="Unable to connect to database")
    assert "slurmdbd" in query_failure(200, [down], plain="", what="/slurmdb/v0.0.38/jobs").remedy
    nothing = RestError(number=-1, text="Failed while looking for jobs")
    assert "slurmctld" in query_failure(500, [nothing], plain="", what="/slurm/v0.0.38/jobs").remedy


@pytest.mark.parametrize(
    ("status", "errors", "verdict"),
    [
        (401, [], True),
        (500, [RestError(number=1007, text="Protocol authentication error")], True),
        (500, [ZERO_BYTES], None),
        (500, [RestError(number=-1, text="request failed")], None),
        (500, [RestError(number=2000, text="Invalid partition name specified")], False),
        (200, [], False),
    ],
)
def test_rejected_token_is_known_or_left_open(status: int, errors: list[RestError], verdict: bool | None) -> None:
    assert token_verdict(status, errors) is verdict


def test_error_of_slurmrestds_own_beside_one_of_the_connection_leaves_the_outcome_open() -> None:
    errors = [RestError(number=110, text="Connection timed out"), RestError(number=9001, text="it failed")]
    assert isinstance(submission_failure(500, errors, plain="", options=()), OutcomeUnknown)
