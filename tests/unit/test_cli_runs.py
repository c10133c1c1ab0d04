"""``runs``, ``messages``, ``submit``, ``cancel`` and ``schema`` as people call them."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime, timedelta

import pytest

from orchestrator.cli.common import ExitCode
from orchestrator.cli.wording import program_of
from orchestrator.messages import json_schemas
from orchestrator.records import JobState, RawMessage, RunState
from tests.unit.site_with_runs import SiteWithRuns


def listed(site: SiteWithRuns, *words: str) -> set[str]:
    """Return the collections whose runs are listed."""
    return {run["collection_uid"] for run in site.told("runs", "--json", *words)}


def test_a_piped_listing_has_ids_and_paths_whole(site: SiteWithRuns) -> None:
    tag = site.complete("a-collection-with-a-long-name-" + 60 * "x")
    heading, line = site.call("runs").splitlines()
    names = ["run", "recorded", "state", "frames", "recipe", "visit", "file", "job", "attempts", "why"]
    assert heading.split() == names
    words = line.split()
    assert (words[0], words[2], words[3], words[7]) == (tag.run_id, "complete", "200/200", "live:42")
    assert line.endswith("200 of 200 written frames processed")
    assert words[6] == f"{site.folder}/a-collection-with-a-long-name-{60 * 'x'}.h5"
    assert datetime.fromisoformat(words[1]).tzinfo is not None


def test_a_run_whose_job_waits_says_why(site: SiteWithRuns) -> None:
    tag = site.submitted()
    assert site.told("runs", "--json")[0]["reason"] == ""
    site.report(tag, JobState.PENDING, reason="Priority", started_at=None)
    assert site.call("runs").rstrip().endswith("  its job waits: jobs of higher priority go first (Priority)")
    assert "because     its job waits: jobs of higher priority go first (Priority)" in site.call("show", "latest")
    site.report(tag, JobState.PENDING, reason="PartitionTimeLimit", started_at=None)
    for_ever = "its job will wait for ever: it asks for more time than its partition allows (PartitionTimeLimit)"
    assert for_ever in site.call("runs", "--active")
    site.report(tag, JobState.PENDING, reason="SomethingNew", started_at=None)
    assert site.told("runs", "--json")[0]["reason"] == "its job waits: SomethingNew"
    site.report(tag, JobState.RUNNING, reason="None")
    assert site.told("runs", "--json")[0]["reason"] == ""


def test_runs_are_filtered(site: SiteWithRuns) -> None:
    site.complete("whole")
    site.planned("waits", visit="cm2-2", recipe="other")
    site.submitted("elsewhere", job_id=43, beamline="i15")
    assert listed(site) == {"whole", "waits", "elsewhere"}
    assert listed(site, "--state", "complete") == {"whole"}
    assert listed(site, "--state", "complete", "--state", "planned") == {"whole", "waits"}
    assert listed(site, "--active") == {"waits", "elsewhere"}
    assert listed(site, "--beamline", "i15") == {"elsewhere"}
    assert listed(site, "--visit", "cm2-2") == {"waits"}
    assert listed(site, "--recipe", "other") == {"waits"}
    assert listed(site, "--uid", "whole") == {"whole"}
    assert listed(site, "--text", "ELSE") == {"elsewhere"}
    assert listed(site, "--limit", "1") == {"elsewhere"}


def test_since_takes_a_moment_or_a_time_ago(site: SiteWithRuns) -> None:
    site.planned()
    tomorrow = (datetime.now().astimezone() + timedelta(days=1)).date().isoformat()
    for past in ("today", "2min", "1.5h", "3d", "1w", "2020-01-01", "2020-01-01T10:00+02:00"):
        assert listed(site, "--since", past) == {"c-1"}, past
    assert listed(site, "--since", tomorrow) == set()
    site.call("runs", "--since", "yesterdayish", code=ExitCode.USAGE)
    assert "2026-11-22T14:30" in site.said


def test_an_empty_listing_says_so_and_a_full_one_says_how_to_see_more(site: SiteWithRuns) -> None:
    assert site.call("runs") == "No runs.\n"
    assert site.told("runs", "--json") == []
    site.planned()
    site.call("runs", "--limit", "1")
    assert "--limit gives more" in site.said


def test_a_site_file_that_is_not_there_is_a_wrong_command_line(site: SiteWithRuns) -> None:
    site.call("runs", "--site", str(site.folder / "missing.toml"), code=ExitCode.USAGE)


def test_messages_tell_what_came_of_them(site: SiteWithRuns) -> None:
    site.planned("c-1")
    site.store.record_message(RawMessage(body=b"{", source="spool:/x"), understood=None, rejection="not JSON: [line 1]")
    rejected, handled = site.told("messages", "--json")
    assert (handled["state"], handled["uid"], handled["note"]) == ("handled", "c-1", "planned azimuthal")
    assert (rejected["state"], rejected["body"]) == ("rejected", "{")
    heading, line = site.call("messages", "--state", "rejected").splitlines()
    assert heading.endswith("what came of it")
    assert line.endswith("not JSON: [line 1]")
    assert len(site.told("messages", "--kind", "start", "--json")) == 1
    assert site.call("messages", "--state", "waiting") == "No messages.\n"


def test_a_run_without_a_job_is_cancelled_at_once(site: SiteWithRuns) -> None:
    tag = site.planned()
    assert site.told("cancel", tag.run_id[:8], "--json") == {"run": tag.run_id, "state": "cancelled"}
    assert "had ended already: cancelled" in site.call("cancel", "latest")
    assert site.store.run(tag.run_id).summary.state is RunState.CANCELLED


def test_a_document_that_is_no_message_is_refused_and_recorded(site: SiteWithRuns) -> None:
    document = site.folder / "m.json"
    document.write_text('{"schema": "orchestrator/collection-start/1"}')
    site.call("submit", str(document), code=ExitCode.INVALID_INPUT)
    assert str(document) in site.said
    assert [message["state"] for message in site.told("messages", "--json")] == ["rejected"]


def test_a_document_that_is_not_there_is_not_found(site: SiteWithRuns) -> None:
    site.call("submit", str(site.folder / "missing.json"), code=ExitCode.NOT_FOUND)
    assert "missing.json: No such file or directory" in site.said


def test_a_collection_that_no_recipe_wants_makes_no_run_and_says_why(site: SiteWithRuns) -> None:
    document = site.folder / "m.json"
    start = {
        "schema": "orchestrator/collection-start/1",
        "uid": "c",
        "beamline": "i99",
        "detector": "d",
        "file": str(site.folder / "x.h5"),
        "dataset": "/d",
    }
    document.write_text(json.dumps(start))
    assert "no recipe wants this collection" in site.call("submit", str(document), code=ExitCode.INCOMPLETE)


@pytest.mark.parametrize("name", json_schemas())
def test_schemas_are_printed_as_json(site: SiteWithRuns, name: str) -> None:
    assert name in site.call("schema").splitlines()
    assert site.told("schema", name) == json_schemas()[name] == site.told("schema", "--json")[name]


def test_the_schemas_of_kernels_are_what_the_kernels_print(site: SiteWithRuns) -> None:
    names = [name for name in site.call("schema").splitlines() if name.startswith("kernel/")]
    assert "kernel/azimuthal" in names
    for name in names:
        command = [sys.executable, "-m", *program_of(name.removeprefix("kernel/")), "--schema"]
        printed = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
        assert site.told("schema", name) == json.loads(printed)


def test_an_unknown_schema_names_the_known_ones(site: SiteWithRuns) -> None:
    site.call("schema", "orchestrator/none/1", code=ExitCode.NOT_FOUND)
    assert next(iter(json_schemas())) in site.said
