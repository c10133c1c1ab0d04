"""The judge of the fault injection finds what it is there to find."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from tests.faults.verdict import Accounted, Effect, Record, Sent, judge

SENT = Sent(uid="c", exit_code=7)
RECORD = Record(
    uid="c", run_id="r", state="failed", reason="", attempts=1, attempt=1, job_id=5, job_state="failed", exit_code=7,
    adopted=False,
)  # fmt: skip
EFFECT = Effect(uid="c", run_id="r", attempt=1, job_id=5)
JOB = Accounted(job_id=5, tag="run-r.1", state="FAILED", exit_code=7)


def test_one_message_one_run_one_job_is_right() -> None:
    verdict = judge([SENT], Counter("c"), [RECORD], [EFFECT], [JOB])
    assert verdict.violations == ()
    assert (verdict.dispatches, verdict.fenced, verdict.adopted) == (1, 0, 0)


def test_a_message_that_is_not_recorded_is_lost() -> None:
    verdict = judge([SENT], Counter(), [], [], [])
    assert len(verdict.lost) == 3
    assert "isn't in the database" in verdict.lost[0]


def test_a_run_whose_job_did_nothing_is_lost() -> None:
    assert judge([SENT], Counter("c"), [RECORD], [], [JOB]).lost


def test_two_jobs_that_did_the_work_are_a_doubling() -> None:
    twin = replace(EFFECT, job_id=6)
    verdict = judge([SENT], Counter("c"), [RECORD], [EFFECT, twin], [JOB, replace(JOB, job_id=6)])
    assert len(verdict.doubled) == 1
    assert not verdict.lost


def test_the_same_job_working_twice_is_a_doubling() -> None:
    assert judge([SENT], Counter("c"), [RECORD], [EFFECT, EFFECT], [JOB]).doubled


def test_two_runs_or_two_rows_of_one_message_are_a_doubling() -> None:
    assert judge([SENT], Counter("cc"), [RECORD], [EFFECT], [JOB]).doubled
    assert judge([SENT], Counter("c"), [RECORD, replace(RECORD, run_id="s")], [EFFECT], [JOB]).doubled


def test_a_second_job_that_left_at_the_fence_is_counted_and_no_violation() -> None:
    left = replace(JOB, job_id=6, state="COMPLETED", exit_code=0)
    verdict = judge([SENT], Counter("c"), [RECORD], [EFFECT], [JOB, left])
    assert verdict.violations == ()
    assert verdict.fenced == 1


def test_each_disagreement_with_accounting_and_with_the_job_is_found() -> None:
    wrong = {
        "state": replace(RECORD, state="complete"),
        "exit code": replace(RECORD, exit_code=0),
        "job state": replace(RECORD, job_state="completed"),
        "job": replace(RECORD, job_id=6),
        "attempt": replace(RECORD, attempts=2),
    }
    for name, record in wrong.items():
        assert judge([SENT], Counter("c"), [record], [EFFECT], [JOB]).disagreements, name
    assert judge([SENT], Counter("c"), [RECORD], [EFFECT], []).disagreements


def test_a_job_that_accounting_never_heard_of_is_right_only_by_its_own_word() -> None:
    told_by_itself = replace(RECORD, evidence="job record")
    verdict = judge([SENT], Counter("c"), [told_by_itself], [EFFECT], [])
    assert verdict.violations == ()
    assert verdict.forgotten == 1
    assert judge([SENT], Counter("c"), [replace(RECORD, evidence="controller")], [EFFECT], []).disagreements
    other_id = replace(JOB, job_id=6)  # accounting has one of this name, but not this one
    assert judge([SENT], Counter("c"), [told_by_itself], [EFFECT], [other_id]).disagreements


def test_an_end_that_slurm_made_up_afterwards_is_counted_and_no_disagreement() -> None:
    false = replace(JOB, state="TIMEOUT", exit_code=0)
    verdict = judge([SENT], Counter("c"), [RECORD], [EFFECT], [false])
    assert (verdict.violations, verdict.overruled) == ((), 1)
    wrong = replace(RECORD, exit_code=0, job_state="completed")
    assert judge([SENT], Counter("c"), [wrong], [EFFECT], [false]).disagreements


def test_of_a_requeued_job_the_last_start_counts() -> None:
    before = replace(JOB, state="REQUEUED", exit_code=0)
    assert judge([SENT], Counter("c"), [RECORD], [EFFECT], [before, JOB]).violations == ()
    assert judge([SENT], Counter("c"), [RECORD], [EFFECT], [JOB, before]).disagreements
