"""What SLURM's commands printed, captured, and what is read from it."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orchestrator.records import JobIdentity, JobReport, JobState, RunTag
from orchestrator.slurm import parsing
from orchestrator.slurm.waiting import hindrance

TEXTS = Path(__file__).parent / "slurm_texts"


def at(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


@pytest.fixture
def queue() -> dict[int, JobReport]:
    reports = parsing.parse_squeue((TEXTS / "squeue-22.05.txt").read_text(), cluster="c")
    return {report.identity.job_id: report for report in reports}


@pytest.fixture
def records() -> list[JobReport]:
    return parsing.parse_sacct((TEXTS / "sacct-22.05.txt").read_text(), cluster="c")


def test_every_job_of_the_queue_is_read(queue: dict[int, JobReport]) -> None:
    assert set(queue) == {8, 9, 13, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31}


@pytest.mark.parametrize(
    ("job_id", "state", "exit_code", "signal"),
    [
        (26, JobState.COMPLETED, 0, None),
        (24, JobState.FAILED, 3, None),
        (25, JobState.FAILED, 0, 9),
        (27, JobState.FAILED, 0, 53),
        (28, JobState.CANCELLED, 0, None),
        (8, JobState.PENDING, None, None),
        (31, JobState.RUNNING, None, None),
    ],
)
def test_exit_of_queued_jobs_is_told_only_when_they_have_ended(
    queue: dict[int, JobReport], job_id: int, state: JobState, exit_code: int | None, signal: int | None
) -> None:
    report = queue[job_id]
    assert (report.state, report.exit_code, report.signal) == (state, exit_code, signal)


def test_times_of_queued_jobs_are_facts_not_estimates(queue: dict[int, JobReport]) -> None:
    assert queue[26].identity.submitted_at == at(1795392585)
    assert (queue[26].started_at, queue[26].ended_at) == (at(1795392586), at(1795392589))
    assert queue[31].started_at == at(1795392601)
    assert queue[31].ended_at is None
    assert queue[29].started_at is None
    assert queue[28].started_at is None


def test_free_text_with_newlines_and_separators_stays_with_its_job(queue: dict[int, JobReport]) -> None:
    assert queue[22].name == "two\nlines"
    assert queue[22].comment.startswith("a\nb")
    assert queue[24].comment == 'orchestrator run=1 | "x"'
    assert queue[26].comment == ""


def test_restarts_and_reasons_of_queued_jobs_are_read(queue: dict[int, JobReport]) -> None:
    assert (queue[29].restarts, queue[29].reason) == (1, "BeginTime")
    assert queue[22].reason == "JobHeldUser"
    assert queue[26].reason == ""


def test_newer_releases_print_code_and_signal_apart() -> None:
    fields = ["7", "FAILED", "None", "1795392585", "1795392586", "1795392587", "3:9", "0", "n1", "name", "", ""]
    (report,) = parsing.parse_squeue(parsing.SEPARATOR.join(fields), cluster="c")
    assert (report.exit_code, report.signal) == (3, 9)


def test_unknown_state_word_quarantines_one_job_and_keeps_the_word(queue: dict[int, JobReport]) -> None:
    text = (TEXTS / "squeue-22.05.txt").read_text().replace("COMPLETED", "SOMETHING_NEW", 1)
    reports = {report.identity.job_id: report for report in parsing.parse_squeue(text, cluster="c")}
    assert len(reports) == len(queue)
    changed = [job_id for job_id in queue if reports[job_id] != queue[job_id]]
    assert len(changed) == 1
    assert (reports[changed[0]].state, reports[changed[0]].words) == (JobState.UNKNOWN, "SOMETHING_NEW")


def test_nothing_printed_is_no_jobs() -> None:
    assert parsing.parse_squeue("", cluster="c") == []
    assert parsing.parse_sacct("\n", cluster="c") == []


def test_requeued_job_has_one_record_per_run(records: list[JobReport]) -> None:
    runs = [record for record in records if record.identity.job_id == 19]
    assert [run.words for run in runs] == ["REQUEUED", "COMPLETED"]
    job = JobIdentity(cluster="c", job_id=19, submitted_at=at(1795391288))
    report = parsing.latest_of([job], records)[job]
    assert (report.identity, report.state, report.restarts) == (job, JobState.COMPLETED, 1)


def test_record_under_another_submit_time_and_name_is_another_job(records: list[JobReport]) -> None:
    job = JobIdentity(cluster="c", job_id=19, submitted_at=at(1795391288))
    (latest,) = parsing.latest_of([job], records).values()
    later = replace(job, submitted_at=job.submitted_at + timedelta(days=30))
    reused = replace(latest, identity=later, name="somebody else's", state=JobState.FAILED)
    assert parsing.latest_of([job], [*records, reused])[job].state is JobState.COMPLETED
    assert parsing.latest_of([later], [*records, reused])[later].state is JobState.FAILED
    assert parsing.latest_of([replace(job, submitted_at=at(1))], records) == {}


def test_usage_is_merged_from_the_steps(records: list[JobReport]) -> None:
    (report,) = [record for record in records if record.identity.job_id == 30]
    assert report.usage == {
        "elapsed_s": 5,
        "cpu_s": 0.185,
        "max_rss_bytes": 112644 * 1024,
        "requested_memory_bytes": 600 * 2**20,
        "allocated": "billing=1,cpu=1,mem=614400K,node=1",
        "derived_exit_code": "0:0",
    }


def test_accounted_exit_states_and_nodes_are_read(records: list[JobReport]) -> None:
    by_id = {record.identity.job_id: record for record in records}
    assert (by_id[25].state, by_id[25].signal) == (JobState.FAILED, 9)
    assert (by_id[28].state, by_id[28].words, by_id[28].nodes) == (JobState.CANCELLED, "CANCELLED by 0", "")
    assert by_id[28].started_at is None
    assert (by_id[8].state, by_id[8].reason) == (JobState.PENDING, "PartitionTimeLimit")


def test_tag_is_known_by_name_or_by_comment(records: list[JobReport]) -> None:
    tag = RunTag(run_id="odd | 'q\" é %j;$(x),a", attempt=1795391654)
    found = parsing.tagged(records, tag, at(0))
    # Accounting has replaced the double quote in the name, but not in the comment.
    assert [record.identity.job_id for record in found] == [20]
    assert parsing.tagged(records, tag, at(1795391655)) == []


PARENT = "1b4e28ba-2fa1-11d2-883f-0016d3cca427"


@pytest.mark.parametrize(
    ("name", "comment", "is_one"),
    [
        (f"rerun-{PARENT}", "", True),
        (f"rerun-{PARENT}", f"orchestrator run={PARENT} attempt=1", True),
        ("peaks\nof rerun", f"orchestrator rerun={PARENT}", True),
        ("rerun-everything", "my rerun", False),
        (f"rerun-{PARENT}-2", "", False),
        (f"rerun-{PARENT.upper()}", "", False),
    ],
)
def test_job_of_a_rerun_is_known_by_name_or_comment_among_others(name: str, comment: str, is_one: bool) -> None:
    other = ["8", "RUNNING", "None", "1795392585", "1795392586", "0", "0", "0", "n1", "x", "/rerun", "bash", "(null)"]
    fields = [
        "9",
        "FAILED",
        "NonZeroExitCode",
        *other[3:5],
        "1795392589",
        "512",
        "0",
        "n1",
        "x",
        "/a\nb",
        name,
        comment,
    ]
    text = "\n".join(parsing.SEPARATOR.join([*row, ""]) for row in (other, fields, other))
    found = parsing.parse_queued_reruns(text, cluster="c")
    assert [(job.report.identity.job_id, job.tag.parent) for job in found] == ([(9, PARENT)] if is_one else [])
    for job in found:
        assert (job.user, job.working_directory, job.report.exit_code) == ("x", Path("/a\nb"), 2)


def test_last_start_of_a_requeued_rerun_is_told_under_its_first_submit_time() -> None:
    fields = dict.fromkeys(parsing.RERUN_ACCOUNT_FORMAT.split(","), "")
    fields |= {"JobID": "9", "JobName": f"rerun-{PARENT}", "User": "x", "WorkDir": "/home/x", "NodeList": "n1"}
    starts = (("NODE_FAIL", "1795392585", "0:0"), ("FAILED", "1795392685", "2:0"))
    rows = [fields | {"State": state, "Submit": submit, "ExitCode": code} for state, submit, code in starts]
    text = "\n".join(parsing.SEPARATOR.join(row.values()) for row in rows)
    (job,) = parsing.parse_accounted_reruns(text, cluster="c")
    assert job.report.identity.submitted_at == at(1795392585)
    assert (job.report.state, job.report.exit_code, job.report.restarts) == (JobState.FAILED, 2, 1)
    assert (job.user, job.working_directory) == ("x", Path("/home/x"))


def test_requeued_job_is_the_same_although_slurm_moved_its_submit_time(queue: dict[int, JobReport]) -> None:
    submitted = JobIdentity(cluster="c", job_id=29, submitted_at=at(1795392588))
    assert parsing.is_same_job(submitted, queue[29])
    assert not parsing.is_same_job(replace(submitted, cluster="d"), queue[29])
    assert not parsing.is_same_job(replace(submitted, submitted_at=at(1795399999)), queue[29])
    completed = replace(queue[26].identity, submitted_at=at(1795392000))
    assert not parsing.is_same_job(completed, queue[26])


def test_a_requeued_job_of_another_attempt_is_not_the_one_whose_id_was_lost(queue: dict[int, JobReport]) -> None:
    ours, other = (RunTag(run_id=str(uuid.UUID(int=number)), attempt=1).job_name for number in (1, 2))
    submitted = JobIdentity(cluster="c", job_id=29, submitted_at=at(1795392588), name=ours)
    assert parsing.is_same_job(submitted, replace(queue[29], name=ours))
    assert parsing.is_same_job(submitted, replace(queue[29], name="renamed by its user"))
    assert not parsing.is_same_job(submitted, replace(queue[29], name=other))


def test_configuration_is_read() -> None:
    config = parsing.parse_config((TEXTS / "scontrol-show-config-22.05.txt").read_text())
    assert config["ClusterName"] == "scratch"
    assert config["SLURM_VERSION"] == "22.05.8"
    assert config["AccountingStorageType"] == "accounting_storage/slurmdbd"


@pytest.mark.parametrize(
    ("text", "job_id"), [("12\n", 12), ("12;cluster\n", 12), ("", None), ("Submitted batch job", None), ("12 13", None)]
)
def test_job_id_is_read_or_missed(text: str, job_id: int | None) -> None:
    assert parsing.parse_sbatch(text) == job_id


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("00:00.185", 0.185), ("00:01:02", 62), ("02:03:04", 7384), ("1-02:03:04", 93784), ("", None), ("INVALID", None)],
)
def test_durations_are_read(text: str, seconds: float | None) -> None:
    assert parsing.parse_duration_s(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [("102400K", 102400 * 1024), ("4Gn", 4 * 2**30), ("1.5M", 1572864), ("0", 0), ("", None),
     ("18889465931478580854784K", None)],
)  # fmt: skip
def test_sizes_are_read_and_no_value_is_none(text: str, size: int | None) -> None:
    assert parsing.parse_bytes(text) == size


@pytest.mark.parametrize("text", ["Unknown", "N/A", "None", "", "0"])
def test_times_that_are_none(text: str) -> None:
    assert parsing.parse_time(text) is None


def test_times_in_iso_form_are_utc() -> None:
    assert parsing.parse_time("2026-11-22T23:43:10") == at(1795390990)


# ----------------------------------------------------------------------- jobs to which something happened, captured


def named_queue() -> dict[str, JobReport]:
    reports = parsing.parse_squeue((TEXTS / "squeue-22.05-states.txt").read_text(), cluster="c")
    return {report.name: report for report in reports}


@pytest.mark.parametrize(
    ("name", "state", "reason"),
    [
        ("preempted", JobState.PENDING, "BeginTime"),
        ("requeue-hold", JobState.PENDING, "job requeued in held state"),
        ("suspended", JobState.SUSPENDED, ""),
        ("cancelled", JobState.CANCELLED, ""),
        ("memory", JobState.FAILED, "JobLaunchFailure"),
        ("deadline", JobState.DEADLINE, "DeadLine"),
        ("held", JobState.PENDING, "JobHeldUser"),
        ("hopeless", JobState.PENDING, "PartitionTimeLimit"),
        ("dependent", JobState.PENDING, "DependencyNeverSatisfied"),
    ],
)
def test_what_happened_to_a_queued_job_is_read(name: str, state: JobState, reason: str) -> None:
    report = named_queue()[name]
    assert (report.state, report.reason) == (state, reason)
    assert report.started_at is None or report.nodes
    assert report.restarts == (name in {"preempted", "requeue-hold"})


@pytest.mark.parametrize("name", ["hopeless", "dependent"])
def test_captured_hopeless_jobs_are_told_as_hopeless(name: str) -> None:
    assert "for ever" in hindrance(named_queue()[name])
    assert not hindrance(named_queue()["held"])
    assert "suspended" in hindrance(named_queue()["suspended"])


def test_accounting_tells_how_captured_jobs_came_to_be_requeued() -> None:
    records = parsing.parse_sacct((TEXTS / "sacct-22.05-states.txt").read_text(), cluster="c")
    by_name = {record.name: record for record in records}
    assert by_name["preempted"].state is JobState.PREEMPTED
    assert by_name["requeue-hold"].words == "REQUEUED"
    assert (by_name["cancelled"].words, by_name["suspended"].state) == ("CANCELLED by 0", JobState.SUSPENDED)
    second = replace(by_name["preempted"], words="COMPLETED", state=JobState.COMPLETED)
    second = replace(second, identity=replace(second.identity, submitted_at=at(1795404587)))
    job = by_name["preempted"].identity
    report = parsing.latest_of([job], [*records, second])[job]
    assert (report.state, report.restarts) == (JobState.COMPLETED, 1)
    assert [earlier.words for earlier in report.earlier] == ["PREEMPTED"]
