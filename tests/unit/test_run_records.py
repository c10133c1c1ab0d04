"""Runs' records: whole, readable by their schema, written anew when more becomes known, and the way back from them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.common import ExitCode
from orchestrator.errors import InvalidInput, RunDirectoryUnavailable
from orchestrator.provenance import (
    Arrival,
    AttemptEnd,
    RunDetail,
    Store,
    detail_of,
    plan_to_json,
    record_text,
)
from orchestrator.provenance.record import record_schema
from orchestrator.record_keeping import check, import_runs, write_due, write_waiting
from orchestrator.records import FrameCounts, JobState, RawMessage, Resources, Retry, RunState, RunTag, utc_now
from orchestrator.rerunning import user_name
from orchestrator.runs import RECORDS, RunDirectory
from tests.unit.site_with_runs import NOON, SCRIPT, SiteWithRuns
from tests.unit.trip import Trip

NOBODY = 65534


def as_file(detail: RunDetail) -> Any:
    return json.loads(record_text(detail))


def write_files(site: SiteWithRuns, tag: RunTag) -> RunDirectory:
    """Write what the service writes before a job."""
    run, detail = site.directory(tag), site.store.run(tag.run_id)
    run.plan.write_text(json.dumps(plan_to_json(detail.plan)))
    run.parameters.write_text(json.dumps(detail.plan.parameter_values()))
    run.script.write_text(SCRIPT.text)
    run.template.write_text(SCRIPT.template_text)
    if detail.message is not None:
        run.message.write_bytes(detail.message.raw.body)
    return run


def tried_twice(site: SiteWithRuns) -> RunTag:
    tag = site.submitted("c-2", job_id=50)
    write_files(site, tag)
    site.begun(tag)
    job = site.store.run(tag.run_id).summary.job
    assert job is not None
    end = AttemptEnd(state=RunState.FAILED, reason="memory", cause=JobState.OUT_OF_MEMORY, ended_at=NOON)
    retry = Retry(resources=Resources(memory_mb=1000), because="attempt 1 ran out of memory", changes=("more",))
    assert site.store.end_attempt(tag, job, end, retry=retry) is RunState.PLANNED
    second = replace(tag, attempt=2)
    site.attempt_submitted(second, job_id=51)
    site.ended(second, RunState.FAILED, "it failed")
    return tag


# ---------------------------------------------------------------------------------------------------- the document


def test_a_record_tells_all_that_the_store_knows(site: SiteWithRuns) -> None:
    for tag in (site.complete(), tried_twice(site), site.planned("c-3")):
        detail = site.store.run(tag.run_id)
        assert detail_of(as_file(detail)) == detail


def test_a_message_and_files_that_are_no_text_come_back_byte_for_byte(site: SiteWithRuns) -> None:
    detail = site.store.run(site.complete().run_id)
    assert detail.message is not None
    raw = RawMessage(body=bytes(range(256)), source="spool:/\udcff.json", headers={"a": "\udcfe"}, received_at=NOON)
    file = Path(os.fsdecode(b"/data/\xff\xe9.h5"))
    start = replace(detail.plan.collection, file=file)
    strange = replace(
        detail,
        message=replace(detail.message, raw=raw),
        plan=replace(detail.plan, collection=start),
        summary=replace(detail.summary, file=file),
        inputs=tuple(replace(one, path=file) for one in detail.inputs),
    )
    assert detail_of(as_file(strange)) == strange


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ([], "it must be a JSON object, not list"),
        ({}, "record_version is None, this release reads 1"),
        ({"record_version": 2}, "record_version is 2, this release reads 1"),
        ({"record_version": 1}, "summary: Field required"),
    ],
)
def test_what_is_no_record_is_refused_with_the_reason(document: Any, told: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        detail_of(document)
    assert told in str(raised.value)


def test_a_body_that_is_no_base64_is_refused(site: SiteWithRuns) -> None:
    document = as_file(site.store.run(site.complete().run_id))
    document["message"]["raw"]["body"] = "!"
    with pytest.raises(InvalidInput, match=r"message\.raw\.body"):
        detail_of(document)


def test_a_body_of_another_digest_is_refused(site: SiteWithRuns) -> None:
    document = as_file(site.store.run(site.complete().run_id))
    document["message"]["raw"]["body"] = "e30="
    with pytest.raises(InvalidInput, match=r"message\.raw\.body: its SHA-256 is 44136fa3"):
        detail_of(document)


KINDS: Mapping[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "boolean": (bool,), "null": (type(None),),
    "integer": (int,), "number": (int, float),
}  # fmt: skip


def obeys(value: Any, schema: Any, root: Mapping[str, Any]) -> bool:
    """Whether a document obeys a schema, by those of its words that say what may be there."""
    if not isinstance(schema, dict):  # true: anything
        return True
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    return (
        any(obeys(value, one, root) for one in schema.get("anyOf", [True]))
        and value in schema.get("enum", [schema.get("const", value)])
        and ("type" not in schema or type(value) in KINDS[schema["type"]])
        and all(obeys(item, schema.get("items", {}), root) for item in (value if isinstance(value, list) else ()))
        and (not isinstance(value, dict) or has_members(value, schema, root))
    )


def has_members(value: Mapping[str, Any], schema: Mapping[str, Any], root: Mapping[str, Any]) -> bool:
    properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    known = all(obeys(item, properties.get(name, others), root) for name, item in value.items())
    return known and set(schema.get("required", ())) <= value.keys()


def test_records_obey_the_published_schema_and_what_is_none_does_not(site: SiteWithRuns) -> None:
    schema = record_schema()
    assert json.loads(site.call("schema", "orchestrator/run-record/1")) == schema
    documents = [as_file(site.store.run(tag.run_id)) for tag in (site.complete(), tried_twice(site), site.planned())]
    assert all(obeys(document, schema, schema) for document in documents)
    whole = documents[0]
    assert not obeys({name: value for name, value in whole.items() if name != "plan"}, schema, schema)
    assert not obeys(whole | {"record_version": 2}, schema, schema)
    assert not obeys(whole | {"summary": whole["summary"] | {"state": "fine"}}, schema, schema)
    assert not obeys(whole | {"summary": whole["summary"] | {"attempts": "1"}}, schema, schema)


NOBODY = 65534

# ------------------------------------------------------------------------------------------------------ when written


def test_a_record_is_written_when_the_run_has_ended_and_again_when_more_becomes_known(site: SiteWithRuns) -> None:
    tag = site.submitted()
    elsewhere = site.folder / RECORDS
    site.begun(tag)
    assert write_due(site.store, elsewhere) == 0
    site.ended(tag, RunState.COMPLETE)
    assert write_due(site.store, elsewhere) == 1
    assert write_due(site.store, elsewhere) == 0
    record = site.directory(tag).provenance
    assert detail_of(json.loads(record.read_text())) == site.store.run(tag.run_id)
    site.report(tag, JobState.COMPLETED, usage={"cpu_s": 7.0})
    assert write_due(site.store, elsewhere) == 1
    report = detail_of(json.loads(record.read_text())).attempts[0].last_report
    assert report is not None
    assert report.usage == {"cpu_s": 7.0}


def test_a_change_between_reading_and_writing_leaves_the_record_due(site: SiteWithRuns) -> None:
    tag = site.complete()
    ((run_id, changes),) = site.store.due_records()
    site.store.record_event(tag, "late-verdict", {}, NOON)
    site.store.mark_recorded(run_id, changes)
    ((_, later),) = site.store.due_records()
    assert later > changes
    site.store.mark_recorded(run_id, later)
    assert site.store.due_records() == []


def test_a_record_for_a_directory_of_somebody_else_is_kept_in_the_drop_folder(site: SiteWithRuns) -> None:
    tag = site.complete()
    directory, elsewhere = site.directory(tag).path, site.folder / RECORDS
    elsewhere.mkdir()
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: only root can give a directory away")
    os.chown(directory, NOBODY, NOBODY)
    write_due(site.store, elsewhere)
    assert not site.directory(tag).provenance.exists()
    assert detail_of(json.loads((elsewhere / f"{tag.run_id}.json").read_text())).summary.run_id == tag.run_id


def test_what_cannot_be_written_stays_due_and_holds_up_no_other(site: SiteWithRuns) -> None:
    bad, good = site.complete("c-1"), site.complete("c-2", job_id=43)
    site.directory(bad).provenance.mkdir()
    with pytest.raises(RunDirectoryUnavailable, match=r"provenance\.json.*; 1 records"):
        write_due(site.store, site.folder / RECORDS)
    assert site.directory(good).provenance.is_file()
    assert [run_id for run_id, _ in site.store.due_records()] == [bad.run_id]


# --------------------------------------------------------------------------------------------------- the way back


def told_of(site: SiteWithRuns) -> tuple[Any, dict[str, Any]]:
    """Return the listing and what is shown of each run, without the numbers of rows."""
    listing = site.told("runs", "--json")
    shown = {run["run_id"]: site.told("show", run["run_id"], "--json") for run in listing}
    for detail in shown.values():
        detail["message"].pop("message_id")
        detail["message"].pop("handled_at")
    return listing, shown


def lose_the_database(site: SiteWithRuns) -> None:
    site.store.close()
    for path in site.folder.glob("store.sqlite*"):
        path.unlink()
    site.store = Store.open(f"sqlite:///{site.folder}/store.sqlite")


def test_after_the_database_is_lost_every_run_is_as_it_was(site: SiteWithRuns) -> None:
    ended = [site.complete(), tried_twice(site)]
    for tag in ended:
        write_files(site, tag)
    write_due(site.store, site.folder / RECORDS)
    before = told_of(site)
    lose_the_database(site)
    assert "2 runs brought back, 0 were there" in site.call("db", "import", str(site.folder / "runs"))
    assert told_of(site) == before
    assert "0 runs brought back, 2 were there" in site.call("db", "import", str(site.folder / "runs"))
    assert told_of(site) == before


def test_a_run_that_was_under_way_is_followed_again(site: SiteWithRuns) -> None:
    tag = site.submitted()
    run = write_files(site, tag)
    claim = {"cluster": "live", "job_id": "42", "restarts": 0, "claimed_at": NOON.isoformat()}
    run.attempt(1).claim.write_text(json.dumps(claim))
    before = site.store.run(tag.run_id)
    lose_the_database(site)
    site.call("db", "import", str(site.folder / "runs"))
    (active,) = site.store.active_attempts()
    assert (active.tag, active.identity) == (tag, before.summary.job)
    detail = site.store.run(tag.run_id)
    assert detail.plan == before.plan
    assert detail.attempts[0].script_text == SCRIPT.text
    assert detail.message is not None
    assert before.message is not None
    assert detail.message.raw.body == before.message.raw.body


def test_a_run_whose_job_had_not_begun_is_looked_for_before_anything_is_submitted(site: SiteWithRuns) -> None:
    tag = site.submitted()
    write_files(site, tag)
    lose_the_database(site)
    site.call("db", "import", str(site.folder / "runs"))
    assert site.store.run(tag.run_id).summary.state is RunState.SUBMITTING
    (unsettled,) = site.store.unsettled_attempts()
    assert unsettled.tag == tag
    assert "nothing says that its job had begun" in unsettled.reason
    assert site.store.planned_runs() == []


def test_a_run_that_waits_to_be_submitted_survives_the_database(site: SiteWithRuns) -> None:
    tag, kept = site.planned(), set[str]()
    before = site.store.run(tag.run_id)
    write_waiting(site.store, kept, before=utc_now() + timedelta(seconds=1))
    assert kept == {tag.run_id}
    lose_the_database(site)
    site.call("db", "import", str(site.folder / "runs"))
    after = site.store.run(tag.run_id)
    assert (after.plan, after.summary.state, after.attempts) == (before.plan, RunState.PLANNED, ())
    ((planned),) = site.store.planned_runs()
    assert before.message is not None
    assert planned.message is not None
    assert planned.message.body == before.message.raw.body


def test_only_runs_that_wait_for_long_are_kept_outside_the_database(site: SiteWithRuns) -> None:
    tag, kept = site.planned(), {"gone on"}
    write_waiting(site.store, kept, before=utc_now() - timedelta(seconds=1))
    assert kept == set()
    assert not site.directory(tag).path.exists()


def test_a_planned_run_in_a_directory_that_is_not_its_own_is_never_submitted(site: SiteWithRuns) -> None:
    tag = site.planned()
    copy = site.folder / "runs" / "copy"
    copy.mkdir(parents=True)
    (copy / "plan.json").write_text(json.dumps(plan_to_json(site.store.run(tag.run_id).plan)))
    lose_the_database(site)
    said = site.call("db", "import", str(site.folder / "runs"), code=ExitCode.INCOMPLETE)
    assert f"{copy}: the run's directory was {site.directory(tag).path}, which isn't there: move it back" in said
    summary = site.store.run(tag.run_id).summary
    assert summary.state is RunState.UNKNOWN
    assert f"which was {site.directory(tag).path} when it was planned" in summary.reason


@pytest.mark.parametrize(("name", "content"), [("provenance.json", "{"), ("provenance.json", '{"record_version": 9}'),
                                               ("plan.json", "[]")])  # fmt: skip
def test_what_cannot_be_read_is_named_and_holds_up_no_other(site: SiteWithRuns, name: str, content: str) -> None:
    tag = site.complete()
    write_due(site.store, site.folder / RECORDS)
    bad = site.folder / "runs" / "bad"
    bad.mkdir()
    (bad / name).write_text(content)
    lose_the_database(site)
    done = site.told("db", "import", str(site.folder / "runs"), "--json", code=ExitCode.INCOMPLETE)
    assert done["new"] == [tag.run_id]
    ((place, why),) = done["unusable"].items()
    assert place.startswith(str(bad))
    assert name in place + why


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"summary": {"run_id": "another"}}, "summary.run_id is another, and that of plan"),
        ({"attempts": {"script_text": "rm -rf /"}}, "the script of attempt 1 isn't that of its SHA-256"),
        ({"attempts": {"template_sha256": "0" * 64}}, "the template of attempt 1 isn't that of its SHA-256"),
    ],
)
def test_a_record_that_contradicts_itself_is_not_believed(
    site: SiteWithRuns, change: dict[str, dict[str, str]], told: str
) -> None:
    tag = site.complete()
    write_due(site.store, site.folder / RECORDS)
    document = json.loads(site.directory(tag).provenance.read_text())
    ((part, values),) = change.items()
    (document[part][0] if part == "attempts" else document[part]).update(values)
    site.directory(tag).provenance.write_text(json.dumps(document))
    lose_the_database(site)
    said = site.call("db", "import", str(site.folder / "runs"), code=ExitCode.INCOMPLETE)
    assert told in said
    assert "take it from a backup, or leave it out" in said
    assert site.store.runs() == []


def test_a_record_of_events_that_cannot_be_is_refused(site: SiteWithRuns) -> None:
    detail = site.store.run(site.complete().run_id)
    lose_the_database(site)
    with pytest.raises(InvalidInput, match="contradicts itself"):
        site.store.import_run(replace(detail, events=detail.events * 2), None)


def test_what_the_owner_of_the_folder_wrote_is_believed_only_if_it_is_the_services_account(site: SiteWithRuns) -> None:
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: only root can give files to another user")
    tag = site.complete()
    write_files(site, tag)
    write_due(site.store, site.folder / RECORDS)
    home = site.directory(tag).path.parent
    for path in (home, *home.glob("**/*")):
        os.chown(path, NOBODY, NOBODY)
    lose_the_database(site)
    *_, done = import_runs(site.store, home, owner=os.getuid())
    assert done.new == [tag.run_id]
    assert site.store.run(tag.run_id).made_by_hand


@pytest.mark.parametrize("whose", ["runs/{0}", "runs/{0}/plan.json"])
def test_a_plan_that_a_user_wrote_is_never_submitted(site: SiteWithRuns, whose: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: only root can give files to another user")
    tag = site.planned()
    site.directory(tag).path.mkdir(parents=True)
    site.directory(tag).plan.write_text(json.dumps(plan_to_json(site.store.run(tag.run_id).plan)))
    os.chown(site.folder / whose.format(tag.run_id), NOBODY, NOBODY)
    lose_the_database(site)
    [*_, done] = import_runs(site.store, site.folder / "runs", owner=os.getuid())
    assert done.new == [tag.run_id]
    assert site.store.run(tag.run_id).summary.state is RunState.UNKNOWN
    assert site.store.planned_runs() == []


def test_a_user_takes_neither_the_place_nor_the_directory_of_another_run(site: SiteWithRuns) -> None:
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: only root can give files to another user")
    tag = site.submitted()
    run = write_files(site, tag)
    forged = run.path.with_name("a" * 8)
    shutil.copytree(run.path, forged)
    for path in (forged, *forged.glob("**/*")):
        os.chown(path, NOBODY, NOBODY)
    lose_the_database(site)
    [*_, done] = import_runs(site.store, site.folder / "runs", owner=os.getuid())
    assert done.new == [tag.run_id]
    assert not site.store.run(tag.run_id).made_by_hand
    ((place, why),) = done.unusable.items()
    assert place == str(forged)
    assert f"is that of {run.path}" in why


def test_each_attempt_keeps_its_own_script_outside_the_database(trip: Trip) -> None:
    trip.site_says(retries={"failed": {"times": 1, "memory_factor": 2.0}}, resources={"ntasks": 1, "memory_mb": 100})
    job = trip.submitted()
    trip.job_begins()
    trip.gateway.set_state(job, JobState.FAILED, exit_code=1)
    trip.job_ends(1)
    trip.gateway.set_state(job, "FAILED", exit_code=1)
    trip.follower.cycle()
    trip.dispatcher.submit_planned()
    before = trip.run()
    assert len(before.attempts) == 2
    trip.store.close()
    Path(trip.folder / "store.sqlite").unlink()
    trip.store = Store.open(trip.settings.database)
    [*_] = import_runs(trip.store, trip.settings.runs_root, owner=os.getuid())
    after = trip.run()
    assert [one.script_text for one in after.attempts] == [one.script_text for one in before.attempts]
    assert [one.retry for one in after.attempts] == [one.retry for one in before.attempts]


@pytest.mark.parametrize(("name", "content"), [("claim.json", "{"), ("claim.json", "{}"), ("retry.json", "[")])
def test_a_run_under_way_whose_files_cannot_be_read_is_named(site: SiteWithRuns, name: str, content: str) -> None:
    tag = site.submitted()
    write_files(site, tag)
    file = site.attempt(tag).path / name
    file.write_text(content)
    lose_the_database(site)
    said = site.call("db", "import", str(site.folder / "runs"), code=ExitCode.INCOMPLETE)
    assert f"{file}: " in said
    assert "take it from a backup, or leave it out" in said
    assert site.store.runs() == []


def test_of_a_record_that_a_user_owns_only_the_plan_is_taken_and_never_run(site: SiteWithRuns) -> None:
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: only root can give files to another user")
    tag = site.complete()
    run = write_files(site, tag)
    forged = as_file(site.store.run(tag.run_id))
    forged["summary"] |= {"state": "planned", "ended_at": None, "requester": "root"}
    forged["attempts"] = []
    run.provenance.write_text(json.dumps(forged))
    for path in (run.path, *run.path.glob("*.*")):
        os.chown(path, NOBODY, NOBODY)
    lose_the_database(site)
    [*_, done] = import_runs(site.store, site.folder / "runs", owner=os.getuid())
    assert done.new == [tag.run_id]
    detail = site.store.run(tag.run_id)
    assert detail.summary.requester == user_name(NOBODY)
    assert detail.made_by_hand
    assert site.store.planned_runs() == []


def test_a_run_is_imported_once(site: SiteWithRuns) -> None:
    detail = site.store.run(site.complete().run_id)
    assert detail.message is not None
    arrival = Arrival(raw=detail.message.raw, understood=detail.plan.collection)
    assert not site.store.import_run(detail, arrival)


# ------------------------------------------------------------------------------------------------------ the comparison


def found(site: SiteWithRuns, *, digests: bool = True) -> list[tuple[str, str | None, Path]]:
    findings = check(site.store, [site.folder / "runs"], site.folder / RECORDS, digests=digests)
    return [(one.kind, one.run_id, one.path) for one in findings if one is not None]


@pytest.fixture
def whole(site: SiteWithRuns) -> RunTag:
    """Return a run of which all fits together."""
    tag = site.complete()
    write_files(site, tag)
    write_due(site.store, site.folder / RECORDS)
    assert found(site) == []
    return tag


def test_a_store_and_directories_that_fit_are_clean(site: SiteWithRuns, whole: RunTag) -> None:
    assert site.call("db", "check") == "1 runs, 0 findings\n"


def test_every_run_is_looked_at_also_where_the_list_has_several_pages(
    site: SiteWithRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.record_keeping.checking._PAGE", 2)
    runs = {site.complete(f"c-{number}", job_id=number).run_id for number in range(1, 6)}
    assert {run_id for _, run_id, _ in found(site)} == runs
    looked_at = [*check(site.store, [site.folder / "runs"], site.folder / RECORDS)]
    assert looked_at.count(None) == len(runs)


def test_a_directory_that_is_gone_is_found(site: SiteWithRuns, whole: RunTag) -> None:
    path = site.directory(whole).path
    path.rename(site.folder / "moved")
    assert found(site) == [("no directory", whole.run_id, path)]
    said = site.call("db", "check", code=ExitCode.INCOMPLETE)
    assert f"no directory: {path}: the run's directory isn't there\n  bring it back from a backup" in said


def test_a_directory_without_a_run_is_found_with_the_way_back(site: SiteWithRuns, whole: RunTag) -> None:
    lose_the_database(site)
    run = site.directory(whole)
    assert found(site) == [("no run", whole.run_id, run.provenance)]
    assert f"`orchestrator db import {run.path}` brings it back" in site.call("db", "check", code=ExitCode.INCOMPLETE)
    site.call("db", "import", str(run.path))
    assert found(site) == []


def test_texts_that_were_changed_or_are_gone_are_found(site: SiteWithRuns, whole: RunTag) -> None:
    run = site.directory(whole)
    run.script.write_text("#!/bin/bash\nanother\n")
    run.template.unlink()
    assert found(site) == [("digest", whole.run_id, run.script), ("digest", whole.run_id, run.template)]


def test_a_result_that_was_changed_is_found_unless_it_is_not_to_be_read(site: SiteWithRuns, whole: RunTag) -> None:
    result = site.directory(whole).result
    result.write_bytes(b"A result")  # as many bytes
    assert found(site) == [("digest", whole.run_id, result)]
    assert found(site, digests=False) == []
    result.unlink()
    assert found(site) == [("digest", whole.run_id, result)]


def test_a_directory_that_was_moved_is_found_where_it_is_and_import_says_so(site: SiteWithRuns, whole: RunTag) -> None:
    path = site.directory(whole).path
    moved = path.rename(path.with_name("moved"))
    assert found(site) == [("no directory", whole.run_id, path)]
    said = site.call("db", "check", code=ExitCode.INCOMPLETE)
    assert f"no directory: {path}: the run's directory isn't there: it is {moved}\n  move it back" in said
    lose_the_database(site)
    said = site.call("db", "import", str(site.folder / "runs"), code=ExitCode.INCOMPLETE)
    assert f"{moved / 'provenance.json'}: the run's directory was {path}, which isn't there: move it back" in said
    moved.rename(path)
    assert found(site) == []


def test_a_copy_of_a_directory_is_no_run_of_its_own(site: SiteWithRuns, whole: RunTag) -> None:
    path = site.directory(whole).path
    shutil.copytree(path, path.with_name("copy"))
    assert found(site) == [("copy", whole.run_id, path.with_name("copy"))]
    assert "copy of that run's directory" in site.call("db", "check", code=ExitCode.INCOMPLETE)


@pytest.mark.parametrize(
    ("name", "content"),
    [("plan.json", "{}"), ("plan.json", None), ("parameters.json", '{"bins": 7}'), ("message.json", "{}")],
)
def test_what_a_rerun_would_go_by_and_was_changed_is_found(
    site: SiteWithRuns, whole: RunTag, name: str, content: str | None
) -> None:
    file = site.directory(whole).path / name
    changed = file.read_text().replace('"partition": "live"', '"partition": "other"') if content is None else content
    file.write_text(changed)
    assert found(site) == [("digest", whole.run_id, file)]
    said = site.call("db", "check", code=ExitCode.INCOMPLETE)
    assert f"`orchestrator show {whole.run_id} --" in said


def test_any_edit_of_a_record_is_found_and_the_service_writes_it_anew_when_told_to(
    site: SiteWithRuns, whole: RunTag
) -> None:
    record = site.directory(whole).provenance
    document = json.loads(record.read_text())
    document["outputs"][0]["sha256"] = "0" * 64
    record.write_text(json.dumps(document))
    assert found(site) == [("record", whole.run_id, record)]
    said = site.call("db", "check", code=ExitCode.INCOMPLETE)
    assert f"record: {record}: doesn't tell what the database does: outputs\n" in said
    assert "--write-records" in said
    assert write_due(site.store, site.folder / RECORDS) == 0
    site.call("db", "check", "--write-records", code=ExitCode.INCOMPLETE)
    assert "a service that runs writes it" in site.call("db", "check", code=ExitCode.INCOMPLETE)
    assert write_due(site.store, site.folder / RECORDS) == 1
    assert found(site) == []


def test_the_record_of_somebody_elses_directory_is_looked_for_where_it_is(site: SiteWithRuns, whole: RunTag) -> None:
    elsewhere = site.folder / RECORDS / f"{whole.run_id}.json"
    elsewhere.parent.mkdir()
    site.directory(whole).provenance.rename(elsewhere)
    assert found(site) == []
    elsewhere.write_text("{}")
    assert found(site) == [("record", whole.run_id, elsewhere)]


def test_a_directory_that_cannot_be_read_is_named_by_check_and_import(site: SiteWithRuns, whole: RunTag) -> None:
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: only root can look with another user's eyes")
    closed = site.directory(whole).path
    for folder in (*site.folder.parents, site.folder, *site.folder.glob("**/")):
        folder.chmod(folder.stat().st_mode | 0o755)
    closed.chmod(0o700)
    os.seteuid(NOBODY)
    try:
        assert found(site)[0][0] == "unreadable"
        *_, done = import_runs(site.store, site.folder / "runs", owner=0)
    finally:
        os.seteuid(0)
    assert done.unusable == {str(closed): f"{closed}: Permission denied"}


def test_a_record_that_is_gone_unreadable_or_of_another_end_is_found(site: SiteWithRuns, whole: RunTag) -> None:
    record = site.directory(whole).provenance
    document = json.loads(record.read_text())
    document["summary"]["state"] = "failed"
    for content in (json.dumps(document), "{", '{"record_version": 9}'):
        record.write_text(content)
        assert found(site) == [("record", whole.run_id, record)]
    record.unlink()
    assert found(site) == [("record", whole.run_id, record)]


def test_counts_after_the_end_make_the_record_due(site: SiteWithRuns, whole: RunTag) -> None:
    site.store.record_progress(whole.run_id, FrameCounts(expected=200, written=200, processed=199, failed=1))
    assert [run_id for run_id, _ in site.store.due_records()] == [whole.run_id]
