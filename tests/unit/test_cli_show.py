"""``show`` answers for somebody who wasn't there."""

from __future__ import annotations

import json
import re
from datetime import timedelta

import pytest
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.cli.common import ExitCode
from orchestrator.provenance import NotSubmitted
from orchestrator.records import JobState, RunState
from tests.unit.site_with_runs import NOON, SCRIPT, SiteWithRuns


def sections(text: str) -> dict[str, dict[str, str]]:
    """Read what `show` printed: title -> label -> value."""
    found: dict[str, dict[str, str]] = {}
    for line in text.splitlines()[1:]:
        if line and not line.startswith(" "):
            title = line
            found[title] = {}
        elif line.strip():
            field = re.fullmatch(r"  (\S.*?)  +(.*)", line)
            if field is not None:
                found[title][field[1]] = field[2]
    return found


def test_it_answers_everything_about_a_complete_run(site: SiteWithRuns) -> None:
    tag = site.complete()
    text = site.call("show", tag.run_id)
    told = sections(text)
    assert list(told) == [
        "State", "Frames", "Result", "What was processed", "Parameters", "Code", "Script", "Asked for",
        "Job of attempt 1", "History", "Next",
    ]  # fmt: skip
    assert told["State"]["because"] == "200 of 200 written frames processed"
    assert told["Frames"]["announced"] == "200"
    assert told["Frames"]["processed"] == "200: all"
    assert told["Frames"]["ended"] == "file finished"
    assert told["Frames"]["lag"].startswith("median 4 ms, worst 1.50 s")
    result = site.directory(tag).result
    assert told["Result"]["result"] == str(result)
    assert told["Result"]["size"] == f"{result.stat().st_size} bytes; the file is there"
    assert len(told["Result"]["sha256"]) == 64
    assert told["Result"]["content"] == f"sha256 {'c' * 64}, the same for equal results"
    processed = told["What was processed"]
    assert (processed["collection"], processed["visit"], processed["beamline"]) == ("c-1", "cm1-1", "i22")
    assert processed["metadata"] == "sample = AgBeh [1]"
    assert processed["at open"] == "200 x 515 x 512 of uint32, chunks of 1 x 515 x 512"
    assert "44.0 MB (44000000 bytes)" in text
    assert f"links resolved: {site.folder}/disk7/c-1.h5" in text
    assert f"source {site.folder}/disk7/c-1_1.h5" in text
    assert processed["as read"] == f"200 frames, sha256(xxh3-128) {'d' * 64}"
    assert (processed["mask"], f"sha256 {'e' * 64}" in text) == (f"{site.folder}/calib/mask.npy", True)
    job = told["Job of attempt 1"]
    assert (job["job"], job["nodes"]) == ("live:42 through the cli gateway", "n[1-2]")
    assert (job["partition"], job["account"], job["exit code"]) == ("live", "i22", "0")
    assert job["usage"] == "elapsed 2 min 5 s, CPU time 3.25 s, peak memory 100.0 MB (99975168 bytes)"
    assert told["Asked for"]["message"].endswith("stomp:/queue/i22")


def test_each_parameter_has_value_origin_and_place(site: SiteWithRuns) -> None:
    parameters = sections(site.call("show", site.complete().run_id))["Parameters"]
    assert re.fullmatch(r"1000 +recipe +i22.toml: recipes.azimuthal.bins", parameters["bins"])
    assert re.fullmatch(r"\[0.1, 3.5\] +message +message: metadata.range", parameters["range"])
    assert re.fullmatch(r'"q_nm\^-1" +default +the kernel\'s', parameters["unit"])
    assert parameters["mask"].startswith("none")


def test_the_code_is_named_with_its_commit_and_whether_it_was_changed(site: SiteWithRuns) -> None:
    code = sections(site.call("show", site.complete().run_id))["Code"]
    assert code["program"].endswith(
        "commit 0123456789abcdef0123456789abcdef01234567, WITH CHANGES that aren't committed"
    )
    assert code["python"] == "3.11.2 (/opt/venv/bin/python)"
    assert code["packages"] == "h5py 3.16.0, numpy 2.4.6"
    assert code["modules"] == "openmpi/4.1"
    assert code["loaded"] == "hdf5 2.0.0, mpi Open MPI v4.1.4, says the kernel"


def test_a_script_that_was_changed_before_it_ran_is_noticed(site: SiteWithRuns) -> None:
    tag = site.submitted()
    site.begun(tag, script_sha256="f" * 64)
    assert f"CHANGED before it ran, to sha256 {'f' * 64}" in site.call("show", tag.run_id)
    assert "it is what ran" in site.call("show", site.complete("c-2", job_id=43).run_id)


@pytest.mark.parametrize(
    ("content", "said"), [(None, "the file is gone"), (b"x", "CHANGED since: the file there has 1 bytes")]
)
def test_a_result_that_is_gone_or_changed_is_noticed(site: SiteWithRuns, content: bytes | None, said: str) -> None:
    tag = site.complete()
    site.directory(tag).result.unlink()
    if content is not None:
        site.directory(tag).result.write_bytes(content)
    told = sections(site.call("show", tag.run_id))
    assert told["Result"]["size"].endswith(said)


def test_a_result_that_grows_is_shown_while_it_is_written(site: SiteWithRuns) -> None:
    tag = site.submitted()
    site.begun(tag)
    site.directory(tag).result.write_bytes(b"the beginning")
    told = sections(site.call("show", tag.run_id))
    assert told["Result"]["size"].endswith("it grows while the job runs")
    assert told["Parameters"]["others"] == "the defaults of kernel azimuthal, which hasn't told them"
    assert told["Next"]["follow it"] == f"orchestrator watch {tag.run_id[:8]}"


def test_a_cancelled_run_says_who_cancelled_it(site: SiteWithRuns) -> None:
    tag = site.submitted()
    site.store.record_event(tag, "cancel", {"by": "ada"}, NOON + timedelta(seconds=5))
    site.report(tag, JobState.CANCELLED)
    site.ended(tag, RunState.CANCELLED, "the job was cancelled")
    told = sections(site.call("show", tag.run_id))
    assert told["State"]["cancelled by"].startswith("ada, 2026-11-22")
    assert told["Result"]["result"] == "none was made"
    assert "cancelled by ada" in told["History"].values()


def test_missing_and_failed_frames_are_counted(site: SiteWithRuns) -> None:
    tag = site.submitted()
    site.counts(tag, written=150, processed=140, failed=10)
    site.report(tag, JobState.FAILED, exit_code=4)
    site.ended(tag, RunState.PARTIAL, "frames are missing")
    told = sections(site.call("show", tag.run_id))
    assert told["Frames"]["processed"] == "140, 50 missing"
    assert told["Frames"]["failed"] == "10; the result says which and why"
    assert told["Job of attempt 1"]["exit code"] == "4, the kernel's for: ended in order, frames are missing"
    assert told["Next"]["why it failed"] == f"orchestrator log {tag.run_id[:8]}"


def test_a_run_that_waits_for_its_first_attempt_claims_nothing(site: SiteWithRuns) -> None:
    told = sections(site.call("show", site.planned().run_id))
    assert told["State"] == {"state": "planned"}
    assert told["Frames"] == {"announced": "200", "processed": "the kernel has not reported yet"}
    assert told["Result"]["result"].startswith("none yet; it will be ")
    assert told["What was processed"]["identity"] == "the kernel has not told what the file was"
    assert told["Code"]["software"] == "no job has begun, so none is recorded"
    assert told["Script"]["script"] == "none was made"
    assert not any(title.startswith("Job") for title in told)


def test_every_attempt_is_told(site: SiteWithRuns) -> None:
    tag = site.planned()
    assert site.store.record_intent(tag, SCRIPT, gateway="cli")
    site.store.record_outcomes([NotSubmitted(tag=tag, reason="the controller doesn't answer")])
    site.attempt_submitted(tag)
    told = sections(site.call("show", tag.run_id))
    assert "no job was made: the controller doesn't answer" in told["History"].values()
    assert told["Job of attempt 1"]["job"] == "live:42 through the cli gateway"


def test_parent_and_reruns_are_named(site: SiteWithRuns) -> None:
    parent = site.complete()
    child = site.planned("c-1", parent_run=parent.run_id)
    assert sections(site.call("show", child.run_id))["Asked for"]["parent run"] == parent.run_id
    assert sections(site.call("show", parent.run_id))["Asked for"]["rerun"] == child.run_id


def test_a_parent_that_the_database_does_not_have_is_said_to_be_unknown(site: SiteWithRuns) -> None:
    run_id = site.planned(parent_run="11111111-1111-4111-8111-111111111111").run_id
    assert "11111111-1111-4111-8111-111111111111, which this database doesn't have" in site.call("show", run_id)
    known = site.planned("c-2", parent_run=run_id).run_id
    assert "which this database doesn't have" not in site.call("show", known)


def test_script_template_and_message_come_byte_for_byte(site: SiteWithRuns) -> None:
    tag = site.complete()
    assert site.call("show", tag.run_id, "--script") == SCRIPT.text
    assert site.call("show", tag.run_id, "--template") == SCRIPT.template_text
    message = site.store.run(tag.run_id).message
    assert message is not None
    assert site.call("show", tag.run_id, "--message") == message.raw.body.decode()
    site.call("show", tag.run_id, "--script", "--message", code=ExitCode.USAGE)
    assert site.call("show", site.planned("c-2").run_id, "--script", code=ExitCode.NOT_FOUND) == ""
    assert "no attempt was made" in site.said


def test_json_has_the_whole_record(site: SiteWithRuns) -> None:
    tag = site.complete()
    told = site.told("show", "latest", "--json")
    assert told["summary"]["run_id"] == tag.run_id
    assert told["summary"]["state"] == "complete"
    assert json.loads(told["message"]["raw"]["body"])["uid"] == "c-1"
    assert told["attempts"][0]["script_text"] == SCRIPT.text
    assert [one["name"] for one in told["parameters"] if one["origin"] == "default"] == ["unit", "mask"]
    assert [one["at"] for one in told["inputs"]] == ["open", "end"]


def test_a_run_is_found_by_the_beginning_of_its_id_and_what_is_not_there_is_said(site: SiteWithRuns) -> None:
    site.planned("c-1", run_id="aa000000-0000-4000-8000-000000000000")
    site.planned("c-2", run_id="ab000000-0000-4000-8000-000000000000")
    assert site.call("show", "ab").startswith("run ab000000-0000-4000-8000-000000000000\n")
    site.call("show", "a", code=ExitCode.NOT_FOUND)
    assert "several runs" in site.said
    site.call("show", "ff", code=ExitCode.NOT_FOUND)
    assert "orchestrator runs" in site.said


def test_proposed_commands_find_the_site(site: SiteWithRuns) -> None:
    tag = site.complete()
    assert "--site" not in site.call("show", tag.run_id)
    result = CliRunner(env={"ORCHESTRATOR_SITE": None}).invoke(app, ["show", tag.run_id, "--site", str(site.file)])
    assert sections(result.stdout)["Next"]["its log"] == f"orchestrator log {tag.run_id[:8]} --site {site.file}"


# --------------------------------------------------------------------------------------- what SLURM did to the job


def test_earlier_starts_of_a_requeued_job_say_how_they_ended(site: SiteWithRuns) -> None:
    tag = site.submitted()
    site.begun(tag)
    site.report(tag, JobState.PENDING, reason="BeginTime", restarts=1, nodes="", started_at=None)
    job = sections(site.call("show", "latest"))["Job of attempt 1"]
    assert job["requeued"] == "1 time; accounting has not told why"
    assert (job["nodes"], job["started"]) == ("none yet", "not yet")
    site.store.record_event(tag, "earlier-start", {"words": "PREEMPTED", "reason": "", "nodes": "n1"}, NOON, sequence=0)
    text = site.call("show", "latest")
    assert sections(text)["Job of attempt 1"]["requeued"] == "1 time; start 1 ended as PREEMPTED on n1"
    assert "this start ended as PREEMPTED on n1 and was requeued, says accounting" in text


def test_a_memory_kill_keeps_slurms_word_and_says_whose_word_the_reason_is(site: SiteWithRuns) -> None:
    tag = site.submitted()
    usage = {"max_rss_bytes": 300, "requested_memory_bytes": 200}
    note = "StepId=7.batch exceeded memory limit (300 > 200), being killed"
    report = {"words": "FAILED", "reason": note, "exit_code": 0, "signal": 9, "usage": usage}
    site.report(tag, JobState.OUT_OF_MEMORY, **report)
    job = sections(site.call("show", "latest"))["Job of attempt 1"]
    assert job["state"] == f"FAILED ({note}), says the controller"
    assert job["meaning"].endswith("the reason is SLURM's own note in the job's log")
    assert job["exit code"] == "0, signal 9"
    assert job["memory"] == "its peak is more than it had asked for"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("NODE_FAIL", "0, which SLURM says of every job that ended as NODE_FAIL; it isn't the script's"),
        ("TIMEOUT", "0"),
    ],
)
def test_an_exit_code_that_no_script_gave_is_said_to_be_slurms(site: SiteWithRuns, words: str, code: str) -> None:
    tag = site.submitted()
    site.report(tag, JobState[words], exit_code=0)
    assert sections(site.call("show", "latest"))["Job of attempt 1"]["exit code"] == code


@pytest.mark.parametrize("ours", [True, False])
def test_who_cancelled_a_run_is_told_as_far_as_it_is_known(site: SiteWithRuns, ours: bool) -> None:
    tag = site.submitted()
    if ours:
        site.store.record_event(tag, "cancel", {"by": "gda"}, NOON)
    site.report(tag, JobState.CANCELLED, words="CANCELLED by 0")
    site.store.finish_run(tag.run_id, RunState.CANCELLED, "the job was cancelled (CANCELLED by 0)", NOON)
    told = sections(site.call("show", "latest"))
    assert told["State"]["cancelled by"].startswith("gda" if ours else "somebody outside this program")
    assert told["Job of attempt 1"]["meaning"] == "user root (0) cancelled it"


def test_what_hinders_a_job_stands_in_reason_and_history(site: SiteWithRuns) -> None:
    tag = site.submitted()
    site.store.record_hindrance(tag, "its job will wait for ever: no node has what it asks for")
    text = site.call("show", "latest")
    assert sections(text)["State"]["because"] == "its job will wait for ever: no node has what it asks for"
    assert text.count("for ever") == 2
    assert "for ever" in site.call("runs")
