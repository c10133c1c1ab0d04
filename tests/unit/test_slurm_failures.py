"""What sbatch said when it failed, captured, and what that means."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator import errors
from orchestrator.slurm.failures import query_failure, submit_failure

CAPTURED = (Path(__file__).parent / "slurm_texts" / "sbatch-failures-22.05.txt").read_text()
CASES = [case.split("\n", 1) for case in CAPTURED.split("## ") if case]


@pytest.mark.parametrize(("case", "stderr"), CASES, ids=[case for case, _ in CASES])
def test_captured_failures_mean_what_they_mean(case: str, stderr: str) -> None:
    kind, what = case.split()
    error = submit_failure(stderr)
    assert type(error) is getattr(errors, kind)
    assert error.remedy
    assert "\n" not in str(error)
    option = what.partition("=")[0]
    if kind == "SubmitRefused" and option.startswith("--"):
        assert any(word in error.full_text for word in (option, "#SBATCH line", "MaxWallDurationPerJobLimit"))


FAILED = "sbatch: error: Batch job submission failed: "


@pytest.mark.parametrize(
    ("stderr", "kind"),
    [
        (FAILED + "Unable to contact slurm controller (connect failure)", errors.GatewayUnavailable),
        (FAILED + "Unable to contact slurm controller (send failure)", errors.OutcomeUnknown),
        (FAILED + "Unable to contact slurm controller (receive failure)", errors.OutcomeUnknown),
        (FAILED + "Unable to contact slurm controller (shutdown failure)", errors.OutcomeUnknown),
        (FAILED + "Zero Bytes were transmitted or received", errors.OutcomeUnknown),
        (FAILED + "Socket timed out on send/recv operation", errors.OutcomeUnknown),
        (FAILED + "Connection reset by peer", errors.OutcomeUnknown),
        (FAILED + "Unexpected message received", errors.OutcomeUnknown),
        (FAILED + "Protocol authentication error", errors.OutcomeUnknown),
        (FAILED + "a text of a release to come", errors.OutcomeUnknown),
        ("", errors.OutcomeUnknown),
        (FAILED + "Resource temporarily unavailable", errors.GatewayUnavailable),
        (FAILED + "Slurm temporarily unable to accept job, sleeping and retrying", errors.GatewayUnavailable),
        (FAILED + "MaxJobCount limit reached", errors.GatewayUnavailable),
        (FAILED + "Rate limit exceeded, please retry momentarily", errors.GatewayUnavailable),
        (FAILED + "System submissions disabled", errors.GatewayUnavailable),
        (FAILED + "Unspecified error", errors.SubmitRefused),
        (FAILED + "User's group not permitted to use this partition", errors.SubmitRefused),
        (FAILED + "Requested time limit is invalid (missing or exceeds some limit)", errors.SubmitRefused),
        (
            "sbatch: error: QOSMaxSubmitJobPerUserLimit\n" + FAILED + "Job violates accounting/QOS policy (…)",
            errors.GatewayUnavailable,
        ),
        (
            "sbatch: error: QOSMaxCpuPerJobLimit\n" + FAILED + "Job violates accounting/QOS policy (…)",
            errors.SubmitRefused,
        ),
        (
            # An earlier try was answered, the last one was not: the job may exist.
            "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying\n"
            + FAILED
            + "Socket timed out on send/recv operation",
            errors.OutcomeUnknown,
        ),
    ],
)
def test_only_what_surely_made_no_job_is_told_as_no_job(stderr: str, kind: type[errors.GatewayError]) -> None:
    assert type(submit_failure(stderr)) is kind


def test_failed_question_says_what_and_the_remedy() -> None:
    error = query_failure("squeue", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n")
    assert "connect failure" in str(error)
    assert "scontrol ping" in error.remedy
    assert str(query_failure("sacct", "")) == "sacct failed without a word"


@pytest.mark.parametrize(
    "stderr",
    [
        "slurm_load_jobs error: Zero Bytes were transmitted or received",
        "sacct: error: slurm_persist_conn_open: Something happened … Failed to unpack SLURM_PERSIST_INIT message",
    ],
)
def test_a_daemon_that_hangs_up_may_have_another_munge_key(stderr: str) -> None:
    assert "munge key" in query_failure("squeue", stderr).remedy
