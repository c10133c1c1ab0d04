"""The policy of retries: which outcomes, how often, with which changes; and never beyond a limit."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.evidence import Conclusion
from orchestrator.records import (
    CollectionStart,
    Evidence,
    JobIdentity,
    JobPlan,
    JobReport,
    JobState,
    Resources,
    Retries,
    Retry,
    RetryRule,
    RunState,
)
from orchestrator.retrying import Ended, NoRetry, cause_of, decide
from orchestrator.settings.retries import BUILT_IN, MOST, RetriesRequest, retries_of

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
ASKED = Resources(memory_mb=4000, time_limit_min=60)
CAUSES = list(BUILT_IN)


def a_plan(retries: Retries | None = None, resources: Resources = ASKED) -> JobPlan:
    start = CollectionStart(uid="c", beamline="b", detector="d", file=Path("/x.h5"), dataset="/d")
    return JobPlan(
        run_id="r", recipe="azimuthal", kernel="azimuthal", template="t.j2", launcher="none", collection=start,
        parameters=(), resources=resources, run_directory=Path("/runs/r"), python=Path("/python"), stall_timeout_s=1,
        appear_timeout_s=1, retries=retries or retries_of(RetriesRequest(), RetriesRequest()),
    )  # fmt: skip


def a_report(
    state: JobState, *, exit_code: int | None = 0, nodes: str = "n1", took: timedelta | None = None
) -> JobReport:
    identity = JobIdentity(cluster="c", job_id=1, submitted_at=NOON)
    ended_at = None if took is None else NOON + took
    return JobReport(
        identity=identity, name="run-r.1", state=state, words=state.name, evidence=Evidence.CONTROLLER,
        exit_code=exit_code, nodes=nodes, started_at=NOON, ended_at=ended_at,
    )  # fmt: skip


def ended(cause: JobState, number: int = 1, resources: Resources = ASKED, **changes: object) -> Ended:
    report = None if cause is JobState.UNKNOWN else replace(a_report(cause), **changes)  # type: ignore[arg-type]
    return Ended(number=number, cause=cause, resources=resources, report=report)


def rules(cause: JobState, rule: RetryRule, most: int = 100) -> Retries:
    return Retries(most=most, rules={cause: rule})


def again(plan: JobPlan, *attempts: Ended, state: RunState = RunState.FAILED) -> Retry:
    decision = decide(plan, attempts, state, NOON)
    assert isinstance(decision, Retry), decision
    return decision


def not_again(plan: JobPlan, *attempts: Ended, state: RunState = RunState.FAILED) -> str:
    decision = decide(plan, attempts, state, NOON)
    assert isinstance(decision, NoRetry), decision
    return decision.reason


# ---------------------------------------------------------------------------------------------------- built in


def test_out_of_memory_gets_twice_the_memory() -> None:
    retry = again(a_plan(), ended(JobState.OUT_OF_MEMORY))
    assert retry.resources == replace(ASKED, memory_mb=8000)
    assert retry.because == "attempt 1 ran out of memory"
    assert retry.changes == ("memory 4000 → 8000 MB",)
    assert retry.not_before is None


def test_timeout_gets_half_as_much_time_again() -> None:
    retry = again(a_plan(), ended(JobState.TIMEOUT))
    assert retry.resources == replace(ASKED, time_limit_min=90)
    assert retry.changes == ("time 60 → 90 minutes",)


@pytest.mark.parametrize("cause", [JobState.NODE_FAIL, JobState.BOOT_FAIL])
def test_a_lost_node_is_avoided_and_those_before_stay_so(cause: JobState) -> None:
    first = again(a_plan(), ended(cause, nodes="n[1-2]"))
    assert first.resources == replace(ASKED, exclude="n[1-2]")
    assert first.changes == ("not on n[1-2]",)
    second = again(a_plan(), ended(cause, nodes="n[1-2]"), ended(cause, 2, first.resources, nodes="n7"))
    assert second.resources.exclude == "n[1-2],n7"


def test_preempted_gets_the_same_again() -> None:
    retry = again(a_plan(), ended(JobState.PREEMPTED))
    assert retry.resources == ASKED
    assert retry.changes == ()


@pytest.mark.parametrize("cause", [JobState.FAILED, JobState.DEADLINE, JobState.UNKNOWN, JobState.CANCELLED])
def test_what_trying_again_cant_help_isnt_tried_again_and_nothing_is_said(cause: JobState) -> None:
    assert not_again(a_plan(), ended(cause, exit_code=1) if cause is not JobState.UNKNOWN else ended(cause)) == ""


@pytest.mark.parametrize("state", [RunState.COMPLETE, RunState.CANCELLED])
@pytest.mark.parametrize("cause", list(JobState))
def test_a_run_that_is_complete_or_cancelled_is_never_tried_again(state: RunState, cause: JobState) -> None:
    plan = a_plan(Retries(most=9, rules=dict.fromkeys(JobState, RetryRule(times=9))))
    assert not_again(plan, ended(cause), state=state) == ""


def test_a_plan_from_before_there_were_retries_has_none() -> None:
    assert not_again(replace(a_plan(), retries=Retries()), ended(JobState.NODE_FAIL)) == ""


# ------------------------------------------------------------------------------------------------------ limits


def test_the_limit_of_a_cause_is_named() -> None:
    attempts = [ended(JobState.OUT_OF_MEMORY, number) for number in (1, 2, 3)]
    assert not_again(a_plan(), *attempts) == "tried again 2 times, the most that retries.out-of-memory allows"
    assert not_again(a_plan(), ended(JobState.TIMEOUT), ended(JobState.TIMEOUT, 2)) == (
        "tried again once, the most that retries.timeout allows"
    )


def test_each_cause_counts_for_itself_and_all_of_them_together() -> None:
    causes = [JobState.PREEMPTED, JobState.OUT_OF_MEMORY, JobState.PREEMPTED, JobState.TIMEOUT]
    attempts = [ended(cause, number) for number, cause in enumerate(causes, start=1)]
    for number in (1, 2, 3):
        again(a_plan(), *attempts[:number])
    assert not_again(a_plan(), *attempts) == f"tried again {MOST} times, the most that retries.most allows"


def test_attempts_that_were_given_up_with_the_run_they_come_after_dont_count() -> None:
    given_up = [ended(JobState.CANCELLED, number) for number in range(1, 10)]
    again(a_plan(), *given_up, ended(JobState.NODE_FAIL, 10))


def test_the_last_more_goes_up_to_the_limit_and_then_it_ends() -> None:
    rule = RetryRule(times=9, memory_factor=2.0, memory_max_mb=6000)
    plan = a_plan(rules(JobState.OUT_OF_MEMORY, rule))
    first = again(plan, ended(JobState.OUT_OF_MEMORY))
    assert first.resources.memory_mb == 6000
    last = ended(JobState.OUT_OF_MEMORY, 2, first.resources)
    reason = "6000 MB is the most that retries.out-of-memory.memory_max_mb allows"
    assert not_again(plan, ended(JobState.OUT_OF_MEMORY), last) == reason


def test_a_recipe_that_asks_for_more_than_the_limit_isnt_cut() -> None:
    plan = a_plan(rules(JobState.TIMEOUT, RetryRule(times=1, time_factor=2.0, time_max_min=30)))
    assert "60 minutes is the most" in not_again(plan, ended(JobState.TIMEOUT))


def test_without_memory_asked_for_there_is_nothing_to_double() -> None:
    asked = Resources()
    reason = not_again(a_plan(resources=asked), ended(JobState.OUT_OF_MEMORY, resources=asked))
    assert reason == "it asks for no memory_mb, which retries.out-of-memory could raise"


def test_a_delay_counts_from_now() -> None:
    plan = a_plan(rules(JobState.PREEMPTED, RetryRule(times=1, delay_s=90)))
    assert again(plan, ended(JobState.PREEMPTED)).not_before == NOON + timedelta(seconds=90)


# ------------------------------------------------------------------------------------------------- exit codes


@pytest.mark.parametrize(("code", "tried"), [(137, True), (1, False), (4, False), (None, False)])
def test_only_the_named_exit_codes_count(code: int | None, *, tried: bool) -> None:
    plan = a_plan(rules(JobState.FAILED, RetryRule(times=1, exit_codes=(137,))))
    assert isinstance(decide(plan, [ended(JobState.FAILED, exit_code=code)], RunState.FAILED, NOON), Retry) is tried


@pytest.mark.parametrize(("code", "tried"), [(137, True), (1, True), (4, False)])
def test_without_names_all_count_but_that_for_missing_frames(code: int, *, tried: bool) -> None:
    plan = a_plan(rules(JobState.FAILED, RetryRule(times=1)))
    assert isinstance(decide(plan, [ended(JobState.FAILED, exit_code=code)], RunState.PARTIAL, NOON), Retry) is tried


def test_missing_frames_count_where_their_code_is_named() -> None:
    plan = a_plan(rules(JobState.FAILED, RetryRule(times=1, exit_codes=(4,))))
    again(plan, ended(JobState.FAILED, exit_code=4), state=RunState.PARTIAL)


# ------------------------------------------------------------------------------------------------------ causes

PARTIAL = Conclusion(state=RunState.PARTIAL, reason="")


@pytest.mark.parametrize(
    ("took", "exit_code", "word", "cause"),
    [
        (timedelta(minutes=59), 4, "terminated", JobState.TIMEOUT),
        (timedelta(minutes=60, seconds=20), 4, "terminated", JobState.TIMEOUT),
        (timedelta(minutes=30), 4, "terminated", JobState.FAILED),  # somebody's signal
        (timedelta(minutes=59), 4, "no new frame", JobState.FAILED),
        (timedelta(minutes=59), 1, "terminated", JobState.FAILED),
        (None, 4, "terminated", JobState.FAILED),
    ],
)
def test_a_job_that_was_told_that_its_time_is_up_and_ended_in_order_timed_out(
    took: timedelta | None, exit_code: int, word: str, cause: JobState
) -> None:
    report = a_report(JobState.FAILED, exit_code=exit_code, took=took)
    assert cause_of(report, PARTIAL, ASKED, word) is cause


def test_a_job_that_nobody_knows_vanished() -> None:
    unknown = Conclusion(state=RunState.UNKNOWN, reason="")
    assert cause_of(None, unknown, ASKED, "") is JobState.UNKNOWN
    assert cause_of(a_report(JobState.RUNNING), unknown, ASKED, "") is JobState.UNKNOWN


@pytest.mark.parametrize("state", [state for state in JobState if state.ended])
def test_else_the_cause_is_what_slurm_says(state: JobState) -> None:
    assert cause_of(a_report(state), Conclusion(state=RunState.FAILED, reason=""), ASKED, "") is state


# -------------------------------------------------------------------------------------------------- properties

some_rules = st.builds(
    RetryRule,
    times=st.integers(0, 5),
    delay_s=st.floats(0, 600),
    memory_factor=st.floats(1, 10),
    memory_max_mb=st.none() | st.integers(1, 100_000),
    time_factor=st.floats(1, 10),
    time_max_min=st.none() | st.integers(1, 10_000),
    avoid_nodes=st.booleans(),
    exit_codes=st.lists(st.integers(1, 255), max_size=2).map(tuple),
)
some_retries = st.builds(
    Retries, most=st.integers(0, 6), rules=st.dictionaries(st.sampled_from(list(JobState)), some_rules)
)
some_resources = st.builds(
    Resources, memory_mb=st.none() | st.integers(1, 50_000), time_limit_min=st.integers(1, 5_000)
)


@given(
    retries=some_retries,
    asked=some_resources,
    ends=st.lists(st.tuples(st.sampled_from(CAUSES), st.integers(0, 255)), min_size=20, max_size=20),
)
def test_whatever_happens_every_limit_is_kept_and_every_run_ends(
    retries: Retries, asked: Resources, ends: list[tuple[JobState, int]]
) -> None:
    plan, attempts, resources = a_plan(retries, asked), [], asked
    for number, (cause, code) in enumerate(ends, start=1):
        attempts.append(ended(cause, number, resources, **({} if cause is JobState.UNKNOWN else {"exit_code": code})))
        decision = decide(plan, attempts, RunState.FAILED, NOON)
        if isinstance(decision, NoRetry):
            break
        rule, after = retries.rules[cause], decision.resources
        assert after.time_limit_min >= resources.time_limit_min
        assert rule.time_max_min is None or after.time_limit_min <= max(rule.time_max_min, resources.time_limit_min)
        assert (after.memory_mb is None) == (asked.memory_mb is None)
        if after.memory_mb is not None and resources.memory_mb is not None:
            assert after.memory_mb >= resources.memory_mb
            assert rule.memory_max_mb is None or after.memory_mb <= max(rule.memory_max_mb, resources.memory_mb)
        assert (decision.changes == ()) == (after == resources)
        others = {"memory_mb": None, "time_limit_min": 1, "exclude": None}
        assert replace(after, **others) == replace(asked, **others)  # type: ignore[arg-type]
        resources = after
    else:
        pytest.fail("it never ended")
    made = len(attempts) - 1
    assert made <= retries.most
    for cause in CAUSES:
        tried = sum(attempt.cause is cause for attempt in attempts[:-1])
        assert tried <= retries.rules.get(cause, RetryRule()).times
