"""Whether a run is tried again, and with which changes: the policy, pure.

In: the plan, the run's attempts so far, and how the last one ended. Out: a `Retry`, or the reason why there is none.
The plan's rules decide (`orchestrator.settings.retries`), so a run keeps to those that held when it was planned.
Nothing here decides *that* an attempt has ended; `orchestrator.evidence` does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from orchestrator.evidence import EXIT_PARTIAL, Conclusion
from orchestrator.records import JobPlan, JobReport, JobState, Resources, Retry, RetryRule, RunState

WARNING_TIME = timedelta(seconds=90)
"""How long before its time is up a job may have been told to end: a minute (jobtemplates/_sbatch.j2), and SLURM sends
signals up to a minute early at worst (sbatch(1), --signal); the rest is for the end itself."""

_TERMINATED = "terminated"
"""The kernel's word for having been told to end; docs/reference/kernel-command-line.md."""

_BECAUSE = {
    JobState.OUT_OF_MEMORY: "ran out of memory",
    JobState.TIMEOUT: "ran out of time",
    JobState.NODE_FAIL: "lost its node",
    JobState.BOOT_FAIL: "got a node that didn't boot",
    JobState.PREEMPTED: "had to make way for another job",
    JobState.DEADLINE: "met its deadline",
    JobState.FAILED: "failed",
    JobState.UNKNOWN: "vanished",
}


@dataclass(frozen=True, kw_only=True)
class Ended:
    """An attempt that has ended."""

    number: int
    cause: JobState
    """Why: one of the states that have a rule, or one that is never tried again."""
    resources: Resources
    """What it asked for."""
    report: JobReport | None
    """The last report on its job; None where nobody knew it."""


@dataclass(frozen=True, kw_only=True)
class NoRetry:
    """The decision that a run has ended for good."""

    reason: str = ""
    """Why it isn't tried again although it could have been; empty where nothing was to be expected."""


def cause_of(report: JobReport | None, conclusion: Conclusion, resources: Resources, ended_because: str) -> JobState:
    """Return the cause for which an attempt would be tried again.

    A job that is told in good time that its time is up, and closes its result in order, ends as FAILED with the
    kernel's exit code for missing frames: its cause is TIMEOUT all the same.

    Parameters
    ----------
    report
        The last report on its job.
    conclusion
        How the attempt ended.
    resources
        What it asked for.
    ended_because
        The kernel's own word, empty where it said none.
    """
    if report is None or conclusion.state is RunState.UNKNOWN:
        return JobState.UNKNOWN
    in_order = report.state is JobState.FAILED and report.exit_code == EXIT_PARTIAL
    if in_order and ended_because == _TERMINATED and _time_was_up(report, resources):
        return JobState.TIMEOUT
    return report.state


def _time_was_up(report: JobReport, resources: Resources) -> bool:
    if report.started_at is None or report.ended_at is None:
        return False
    return report.ended_at - report.started_at >= timedelta(minutes=resources.time_limit_min) - WARNING_TIME


def decide(plan: JobPlan, attempts: Sequence[Ended], state: RunState, now: datetime) -> Retry | NoRetry:
    """Decide whether a run is tried again.

    Parameters
    ----------
    plan
        The run's plan, with its rules.
    attempts
        All that were made, oldest first; the last one has just ended.
    state
        How the run would end.
    now
        The present time, from which a delay counts.
    """
    last = attempts[-1]
    rule = plan.retries.rules.get(last.cause, RetryRule())
    if state in {RunState.COMPLETE, RunState.CANCELLED} or not _applies(rule, last):
        return NoRetry()
    if reason := _used_up(plan, rule, attempts):
        return NoRetry(reason=reason)
    changed = _changed(rule, last)
    if isinstance(changed, NoRetry):
        return changed
    return Retry(
        resources=changed,
        because=f"attempt {last.number} {_BECAUSE[last.cause]}",
        changes=tuple(_differences(last.resources, changed)),
        not_before=now + timedelta(seconds=rule.delay_s) if rule.delay_s else None,
    )


def _applies(rule: RetryRule, last: Ended) -> bool:
    if not rule.times:
        return False
    if last.cause is not JobState.FAILED:
        return True
    code = None if last.report is None else last.report.exit_code
    return code in rule.exit_codes if rule.exit_codes else code != EXIT_PARTIAL


def _used_up(plan: JobPlan, rule: RetryRule, attempts: Sequence[Ended]) -> str:
    """Return the limit that is reached, in words; empty while there is none."""
    cause = attempts[-1].cause
    of_this_cause = sum(attempt.cause is cause for attempt in attempts[:-1])
    if of_this_cause >= rule.times:
        return f"tried again {_times(of_this_cause)}, the most that retries.{cause} allows"
    # A job that was given up with the one it came after, and made again with that one, isn't to blame.
    in_all = sum(attempt.cause is not JobState.CANCELLED for attempt in attempts[:-1])
    if in_all >= plan.retries.most:
        return f"tried again {_times(in_all)}, the most that retries.most allows"
    return ""


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


# ----------------------------------------------------------------------------------------------------- changes


def _changed(rule: RetryRule, last: Ended) -> Resources | NoRetry:
    """Return what the next attempt asks for, or why the same again would be of no use."""
    asked = last.resources
    memory_mb: int | None = asked.memory_mb
    if rule.memory_factor > 1:
        if asked.memory_mb is None:
            return NoRetry(reason=f"it asks for no memory_mb, which retries.{last.cause} could raise")
        memory_mb = _more(asked.memory_mb, rule.memory_factor, rule.memory_max_mb)
        if memory_mb == asked.memory_mb:
            return NoRetry(reason=f"{memory_mb} MB is the most that retries.{last.cause}.memory_max_mb allows")
    time_min = asked.time_limit_min
    if rule.time_factor > 1:
        time_min = _more(time_min, rule.time_factor, rule.time_max_min)
        if time_min == asked.time_limit_min:
            return NoRetry(reason=f"{time_min} minutes is the most that retries.{last.cause}.time_max_min allows")
    exclude = _with_nodes(asked.exclude, last.report) if rule.avoid_nodes else asked.exclude
    return replace(asked, memory_mb=memory_mb, time_limit_min=time_min, exclude=exclude)


def _more(asked: int, factor: float, most: int | None) -> int:
    """Return more than was asked for, or the same where that is the most already."""
    wanted = math.ceil(asked * factor)
    return max(asked, wanted if most is None else min(wanted, most))


def _with_nodes(exclude: str | None, report: JobReport | None) -> str | None:
    nodes = "" if report is None else report.nodes
    return ",".join(part for part in (exclude, nodes) if part) or None


def _differences(before: Resources, after: Resources) -> list[str]:
    changes = []
    if after.memory_mb != before.memory_mb:
        changes.append(f"memory {before.memory_mb} → {after.memory_mb} MB")
    if after.time_limit_min != before.time_limit_min:
        changes.append(f"time {before.time_limit_min} → {after.time_limit_min} minutes")
    if after.exclude != before.exclude:
        changes.append(f"{Retry.AVOIDS}{after.exclude}")
    return changes
