"""What slurmrestd answers, as captured from SLURM 22.05.8 (0.0.38) and 25.11 (0.0.41, 0.0.44), turned into records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.records import Evidence, JobReport, JobState, Json, RerunTag
from orchestrator.slurm.parsing import latest_of
from orchestrator.slurm.rest_documents import (
    accounted,
    accounted_reruns,
    cluster_of,
    cluster_of_jobs,
    errors,
    only_cluster,
    queued,
    queued_reruns,
    release,
    submitted_id,
    whole,
)

TEXTS = Path(__file__).parent / "slurm_texts"
VERSIONS = ("0.0.38", "0.0.41", "0.0.44")


def captured(name: str, version: str) -> Any:
    return json.loads((TEXTS / f"rest-{name}-{version}.json").read_text())


def at_controller(version: str) -> list[JobReport]:
    return [job.report for job in queued(captured("jobs", version), cluster="stack")]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_tells_the_same_of_the_same_jobs_at_the_controller(version: str) -> None:
    done, failed, killed, array, held, held_array = at_controller(version)
    assert (done.state, done.exit_code, done.signal) == (JobState.COMPLETED, 0, None)
    assert (failed.state, failed.exit_code, failed.reason) == (JobState.FAILED, 3, "NonZeroExitCode")
    assert (killed.state, killed.exit_code, killed.signal) == (JobState.FAILED, 0, 9)
    assert (held.state, held.reason, held.started_at, held.exit_code) == (JobState.PENDING, "JobHeldUser", None, None)
    assert array.tasks == {0: JobState.COMPLETED, 1: JobState.FAILED, 2: JobState.FAILED}
    assert held_array.tasks == dict.fromkeys((1, 2, 3, 7), JobState.PENDING)
    assert all(report.evidence is Evidence.CONTROLLER and report.name.startswith("run-") for report in (done, array))
    assert done.started_at is not None
    assert done.ended_at is not None
    assert done.identity.submitted_at <= done.started_at < done.ended_at
    assert done.nodes == "n1"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("by", ["name", "comment"])
def test_jobs_of_reruns_are_told_from_others_in_every_version(version: str, by: str) -> None:
    tag = RerunTag(parent="1b4e28ba-2fa1-11d2-883f-0016d3cca427")
    jobs, records = (captured(name, version) for name in ("jobs", "accounting"))
    for document, folder, user in (
        (jobs, "current_working_directory", "user_name"),
        (records, "working_directory", "user"),
    ):
        job = document["jobs"][1]
        job |= {folder: "/home/x", user: "x", "name": tag.job_name if by == "name" else "peaks"}
        if by == "comment":
            job["comment"] = tag.comment if document is jobs else {**job["comment"], "job": tag.comment}
    (one,) = queued_reruns(jobs, cluster="stack")
    (same,) = accounted_reruns(records, cluster="stack")
    assert (one.tag, one.user, one.working_directory) == (tag, "x", Path("/home/x"))
    assert (same.tag, same.user, same.working_directory) == (tag, "x", Path("/home/x"))
    assert (one.report.state, one.report.exit_code) == (JobState.FAILED, 3)
    assert (same.report.identity, same.report.state) == (one.report.identity, JobState.FAILED)


@pytest.mark.parametrize("version", VERSIONS)
def test_accounting_agrees_with_the_controller_but_for_exit_codes_that_old_versions_lose(version: str) -> None:
    seen = at_controller(version)
    records = latest_of([r.identity for r in seen], accounted(captured("accounting", version), cluster="stack"))
    assert set(records) == {report.identity for report in seen}
    for report in seen:
        record = records[report.identity]
        assert (record.state, record.tasks, record.signal) == (report.state, report.tasks, report.signal)
        assert (record.started_at, record.ended_at) == (report.started_at, report.ended_at)
        lost = version == "0.0.38" and report.exit_code not in {0, None}
        assert record.exit_code == (None if lost else report.exit_code)
        assert record.evidence is Evidence.ACCOUNTING


@pytest.mark.parametrize("version", VERSIONS)
def test_usage_is_read_in_bytes_and_seconds(version: str) -> None:
    usage = accounted(captured("accounting", version), cluster="stack")[0].usage
    assert usage["elapsed_s"] in {1, 2}
    assert usage["requested_memory_bytes"] == 2410 * 2**20
    assert 10**6 < int(usage["max_rss_bytes"]) < 10**8
    assert usage["allocated"] == "billing=1,cpu=1,mem=2410M,node=1"
    assert 0 <= float(usage["cpu_s"]) < 10


def test_jobs_of_another_cluster_in_the_same_accounting_are_left_out() -> None:
    assert accounted(captured("accounting", "0.0.44"), cluster="elsewhere") == []


def test_release_and_cluster_are_told() -> None:
    assert release(captured("jobs", "0.0.38")) == "22.05.8"
    assert release(captured("jobs", "0.0.44")).startswith("25.11")
    assert cluster_of(captured("jobs", "0.0.44")) == "stack"
    assert cluster_of(captured("jobs", "0.0.38")) == ""
    assert cluster_of_jobs(captured("jobs", "0.0.38")) == "stack"
    assert only_cluster({"clusters": [{"name": "a"}]}) == "a"
    assert only_cluster({"clusters": [{"name": "a"}, {"name": "b"}]}) == ""


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (5, 5),
        ("5", 5),
        ({"set": True, "infinite": False, "number": 5}, 5),
        ({"set": False, "infinite": False, "number": 0}, None),
        ({"set": True, "infinite": True, "number": 0}, None),
        (None, None),
        ("", None),
        (True, None),
    ],
)
def test_number_is_read_in_every_form(written: Json, read: int | None) -> None:
    assert whole(written) == read


@pytest.mark.parametrize("status", ["SUCCESS", ["SUCCESS"]])
def test_code_0_of_a_failed_job_is_believed_only_from_versions_that_count_it(status: Json) -> None:
    code: Json = {"status": status, "return_code": 0}
    job: Json = {"job_id": 7, "state": {"current": "FAILED"}, "exit_code": code, "time": {"submission": 10}}
    (report,) = accounted({"jobs": [job]}, cluster="stack")
    assert report.exit_code == (None if status == "SUCCESS" else 0)


def test_array_tasks_of_a_list_that_was_cut_short_are_those_that_stand_there() -> None:
    job: Json = {"job_id": 7, "array_job_id": 7, "array_task_string": "1-3,5,...", "job_state": "PENDING"}
    (found,) = queued({"jobs": [job]}, cluster="stack")
    assert set(found.report.tasks) == {1, 2, 3, 5}


def test_word_that_nobody_knows_affects_one_job() -> None:
    jobs: Json = [{"job_id": 1, "job_state": ["NEWSPEAK"]}, {"job_id": 2, "job_state": ["RUNNING", "COMPLETING"]}]
    states = [job.report.state for job in queued({"jobs": jobs}, cluster="stack")]
    assert states == [JobState.UNKNOWN, JobState.COMPLETING]


def test_held_job_exists_although_the_answer_has_an_error() -> None:
    answer: Json = {"job_id": 10, "errors": [{"error_code": 2042, "error": "Job is in held state"}]}
    assert submitted_id(answer) == 10
    assert submitted_id({"result": {"job_id": 11}}) == 11
    assert submitted_id({"job_id": 0, "errors": [{"error_number": 2000}]}) is None


def test_errors_are_read_in_both_forms_and_say_nothing_twice() -> None:
    answer: Json = {
        "errors": [
            {"error_code": 2000, "error": "Invalid partition name specified"},
            {"error_number": 2017, "error": "Invalid job id specified", "description": "no: Invalid job id specified"},
            {"error_number": -1, "error": "Unspecified error", "description": "Unknown key \"foo\""},
            {"error_number": -1, "error": "Unspecified error"},
        ],
        "warnings": [{"description": "deprecated"}],
    }  # fmt: skip
    assert list(map(str, errors(answer))) == [
        "Invalid partition name specified (SLURM error 2000)",
        "no: Invalid job id specified (SLURM error 2017)",
        'Unknown key "foo"',
    ]
