"""What people see of runs that are tried again: ``show``, ``runs`` and ``plan``."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.cli.wording import retries_allowed
from orchestrator.provenance import AttemptEnd
from orchestrator.records import JobState, Resources, Retries, Retry, RetryRule, RunState, RunTag
from tests.unit.site_with_runs import NOON, SiteWithRuns

MORE = Retry(
    resources=Resources(ntasks=2, memory_mb=1000, partition="live"),
    because="attempt 1 ran out of memory",
    changes=("memory 500 → 1000 MB",),
)


def out_of_memory(site: SiteWithRuns, tag: RunTag, reason: str, retry: Retry | None = None) -> None:
    site.report(tag, JobState.OUT_OF_MEMORY)
    end = AttemptEnd(state=RunState.FAILED, reason=reason, cause=JobState.OUT_OF_MEMORY, ended_at=NOON)
    job = site.store.run(tag.run_id).attempts[-1].identity
    assert job is not None
    assert site.store.end_attempt(tag, job, end, retry=retry) is not None


@pytest.fixture
def tried_twice(site: SiteWithRuns) -> RunTag:
    """Return the first tag of a run with two attempts that ran out of memory; no other is to follow."""
    tag = site.submitted()
    out_of_memory(site, tag, "the job ended as OUT_OF_MEMORY", MORE)
    second = replace(tag, attempt=2)
    site.attempt_submitted(second, job_id=43)
    out_of_memory(site, second, "the job ended as OUT_OF_MEMORY; not tried again: tried again once, the most")
    return tag


def test_show_tells_each_attempt_its_changes_and_why_there_is_no_other(site: SiteWithRuns, tried_twice: RunTag) -> None:
    lines = [" ".join(line.split()) for line in site.call("show", tried_twice.run_id).splitlines()]
    assert "because the job ended as OUT_OF_MEMORY; not tried again: tried again once, the most" in lines
    assert "attempt 2 made because attempt 1 ran out of memory: memory 500 → 1000 MB" in lines
    assert "again because attempt 1 ran out of memory: memory 500 → 1000 MB" in lines
    first, second = lines.index("Job of attempt 1"), lines.index("Job of attempt 2")
    assert "outcome failed: the job ended as OUT_OF_MEMORY" in lines[first:second]
    assert any(line.startswith("asks for ntasks 2,") and "memory 1000 MB" in line for line in lines[second:])
    history = " ".join(lines[lines.index("History") :])
    assert "another attempt is to follow, because attempt 1 ran out of memory: memory 500 → 1000 MB" in history


def test_show_as_json_has_the_same(site: SiteWithRuns, tried_twice: RunTag) -> None:
    first, second = site.told("show", tried_twice.run_id, "--json")["attempts"]
    assert (first["end"]["cause"], first["end"]["state"], first["retry"]) == ("out-of-memory", "failed", None)
    assert second["retry"]["changes"] == ["memory 500 → 1000 MB"]
    assert second["retry"]["resources"]["memory_mb"] == 1000


def test_runs_says_how_many_attempts_there_were(site: SiteWithRuns, tried_twice: RunTag) -> None:
    site.complete("c-2", job_id=44)
    heading, *lines = (line.split() for line in site.call("runs").splitlines())
    assert {line[0]: line[heading.index("attempts")] for line in lines}[tried_twice.run_id] == "2"
    assert {run["run_id"]: run["attempts"] for run in site.told("runs", "--json")}[tried_twice.run_id] == 2


def test_a_run_that_waits_to_be_tried_again_says_so(site: SiteWithRuns) -> None:
    tag = site.submitted()
    out_of_memory(site, tag, "the job ended as OUT_OF_MEMORY", MORE)
    told = "attempt 1 ran out of memory, attempt 2 follows; memory 500 → 1000 MB"
    assert told in site.call("runs", "--active")
    assert told in " ".join(site.call("show", tag.run_id).split())


def test_the_rules_are_worded_with_what_they_change() -> None:
    rules = {
        JobState.OUT_OF_MEMORY: RetryRule(times=2, memory_factor=2.0, memory_max_mb=6000),
        JobState.TIMEOUT: RetryRule(times=1, time_factor=1.5),
        JobState.NODE_FAIL: RetryRule(times=2, avoid_nodes=True, delay_s=30),
        JobState.FAILED: RetryRule(times=1, exit_codes=(137, 1)),
        JobState.DEADLINE: RetryRule(),
    }
    assert list(retries_allowed(Retries(most=3, rules=rules))) == [
        "out-of-memory 2 times with 2 times the memory up to 6000 MB",
        "timeout 1 time with 1.5 times the time",
        "node-fail 2 times on other nodes after 30 s",
        "failed 1 time after exit code 137 or 1",
    ]
