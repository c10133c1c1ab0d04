"""A run as ISPyB's rows, without an ISPyB: what fits, what is shortened, what is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.ispyb.data_collections import stands_for
from orchestrator.ispyb.fitting import TextColumn
from orchestrator.ispyb.mapping import MAX_IMAGE, Mapper, Rows
from orchestrator.ispyb.tables import ATTACHMENT, MESSAGE, PARAMETER, PROCESSING_JOB, PROGRAM, USED, grants, rights
from orchestrator.provenance import RunDetail, Validation
from orchestrator.records import JobState, Origin, Parameter, RunState
from orchestrator.settings.ispyb import ImportanceRanks
from tests.unit.site_with_runs import SiteWithRuns

LENGTHS = {
    PROCESSING_JOB.c.displayName: 80,
    PROCESSING_JOB.c.comments: 255,
    PROCESSING_JOB.c.recipe: 50,
    PARAMETER.c.parameterKey: 80,
    PARAMETER.c.parameterValue: 1024,
    PROGRAM.c.processingCommandLine: 255,
    PROGRAM.c.processingPrograms: 255,
    PROGRAM.c.processingMessage: 255,
    PROGRAM.c.processingEnvironment: 255,
    MESSAGE.c.message: 200,
    MESSAGE.c.description: 16383,
    ATTACHMENT.c.fileName: 255,
    ATTACHMENT.c.filePath: 255,
}
CHARSETS = ["utf8mb4", "utf8mb3", "latin1", "ascii"]
ENCODINGS = {"utf8mb4": "utf-8", "utf8mb3": "utf-8", "latin1": "cp1252", "ascii": "ascii"}


def mapper(charset: str = "utf8mb4") -> Mapper:
    return Mapper(
        columns={column: TextColumn(length=length, charset=charset) for column, length in LENGTHS.items()},
        recipe_prefix="orch-",
        importance=ImportanceRanks(result=7),
        time_zone=ZoneInfo("UTC"),
    )


def rows(run: RunDetail) -> Rows:
    return mapper().rows(run)


@given(text=st.text(max_size=400), length=st.integers(1, 300), charset=st.sampled_from(CHARSETS))
def test_whatever_the_text_it_fits_and_says_so_where_it_is_not_whole(text: str, length: int, charset: str) -> None:
    column = TextColumn(length=length, charset=charset)
    fitted = column.fitted(text, "plan.json")
    assert len(fitted) <= length
    fitted.encode(ENCODINGS[charset])  # the column's set has all of it
    assert "\0" not in fitted
    assert column.fitted(fitted) == fitted
    if len(text) > length:
        assert fitted != text[:length]
    elif charset == "utf8mb4" and "\0" not in text and text.isprintable():
        assert fitted == text


def test_text_that_is_shortened_says_where_the_whole_is_if_there_is_room() -> None:
    assert TextColumn(length=60).fitted("x" * 61, "plan.json") == "x" * 40 + "… (whole: plan.json)"
    assert TextColumn(length=20).fitted("x" * 61, "plan.json") == "x" * 19 + "…"
    assert TextColumn(length=10, charset="ascii").fitted("é\udcff") == "\\xe9\\udcff"


@pytest.mark.parametrize("charset", CHARSETS)
def test_every_value_of_a_run_with_much_to_say_fits(site: SiteWithRuns, charset: str) -> None:
    much = "ж" * 3000
    tag = site.submitted(requester="r" * 255)
    site.ended(tag, RunState.FAILED, much)
    run = site.store.run(tag.run_id)
    run = replace(run, parameters=(Parameter(name=much, value=[much], origin=Origin.USER, place=""), *run.parameters))
    made = mapper(charset).rows(run)
    tables = {PROCESSING_JOB: (made.job,), PARAMETER: made.parameters, PROGRAM: (made.program,)}
    for table, filled in (tables | {MESSAGE: made.messages, ATTACHMENT: made.attachments}).items():
        for row in filled:
            for name, value in row.items():
                if (length := LENGTHS.get(table.c[name])) is not None and isinstance(value, str):
                    assert len(value) <= length, name
                    value.encode(ENCODINGS[charset])


def test_a_file_whose_path_does_not_fit_is_told_and_not_attached(site: SiteWithRuns) -> None:
    run = site.store.run(site.complete().run_id)
    far = Path("/data") / ("x" * 300) / "scan.h5"
    run = replace(run, plan=replace(run.plan, collection=replace(run.plan.collection, file=far)))
    made = rows(run)
    assert far.name not in {row["fileName"] for row in made.attachments}
    (warning,) = [row for row in made.messages if row["severity"] == "WARNING"]
    assert str(far) in str(warning["description"])


def test_files_have_the_types_and_ranks_that_the_site_gives_them(site: SiteWithRuns) -> None:
    made = rows(site.store.run(site.complete().run_id))
    ranks = {row["fileName"]: (row["fileType"], row["importanceRank"]) for row in made.attachments}
    assert ranks == {
        "result.nxs": ("Result", 7),
        "c-1.h5": ("Input", 10),
        "plan.json": ("Input", 5),
        "job.log": ("Log", 10),
        "provenance.json": ("Log", 5),
    }


@pytest.mark.parametrize("state", RunState)
def test_every_state_has_a_status_and_only_living_runs_have_none(site: SiteWithRuns, state: RunState) -> None:
    run = site.store.run(site.planned().run_id)
    made = rows(replace(run, summary=replace(run.summary, state=state, reason="so")))
    status = made.program["processingStatus"]
    assert (status is None) is not state.ended
    assert (status == 1) is (state in {RunState.COMPLETE, RunState.PARTIAL})
    assert made.program["processingMessage"] == f"{state}: so"
    severities = {row["severity"] for row in made.messages}
    expected = {RunState.COMPLETE: {"INFO"}, RunState.PARTIAL: {"WARNING"}}.get(state, {"ERROR"})
    assert severities == (expected if state.ended else set())


def test_the_last_image_is_the_one_announced_then_the_one_written(site: SiteWithRuns) -> None:
    tag = site.submitted()
    assert rows(site.store.run(tag.run_id)).images == (1, 200)
    site.begun(tag)
    site.counts(tag, written=150, processed=150)
    assert rows(site.store.run(tag.run_id)).images == (1, 200)
    site.ended(tag, RunState.PARTIAL)
    run = site.store.run(tag.run_id)
    assert rows(run).images == (1, 150)
    assert run.summary.counts is not None
    many = replace(run.summary, counts=replace(run.summary.counts, written=MAX_IMAGE + 1))
    assert rows(replace(run, summary=many)).images == (1, None)


def test_the_fingerprint_changes_with_what_is_told(site: SiteWithRuns) -> None:
    tag = site.submitted()
    before = rows(site.store.run(tag.run_id))
    assert rows(site.store.run(tag.run_id)).fingerprint == before.fingerprint
    site.report(tag, JobState.RUNNING)
    assert rows(site.store.run(tag.run_id)).fingerprint != before.fingerprint


def test_no_more_is_granted_than_is_used() -> None:
    statements = list(grants("ispyb", "'a'@'%'"))
    assert len(statements) == len(USED) + 1
    assert "GRANT SELECT (name, value) ON ispyb.AdminVar TO 'a'@'%';" in statements
    assert not any(word in statement for statement in statements for word in ("DELETE", "CREATE", "ALL", "*"))
    assert rights(PROGRAM.c.processingStatus) == {"SELECT", "INSERT", "UPDATE"}
    assert rights(PROGRAM.c.autoProcProgramId) == {"SELECT"}
    assert rights(PROCESSING_JOB.c.comments) == {"SELECT", "INSERT"}


@pytest.mark.parametrize(
    ("template", "name", "matches"),
    [
        ("scan_1.nxs", "scan_1.nxs", True),
        ("scan_1.nxs", "scan_1xnxs", False),
        ("scan_1_####.cbf", "scan_1_0042.cbf", True),
        ("scan_1_####.cbf", "scan_1_042.cbf", False),
        ("scan_#.h5", "scan_x.h5", False),
    ],
)
def test_a_file_template_stands_for_names_with_digits_where_it_has_signs(
    template: str, name: str, matches: bool
) -> None:
    assert stands_for(template, name) is matches


def test_a_result_that_is_not_valid_is_a_warning_with_its_errors(site: SiteWithRuns) -> None:
    tag = site.complete()
    result = site.directory(tag).result
    assert [one["severity"] for one in rows(site.store.run(tag.run_id)).messages] == ["INFO"]
    valid = Validation(validator="nexusformat 2.1.0", definitions="v2026.01")
    site.store.record_validation(tag.run_id, result, valid)
    assert [one["severity"] for one in rows(site.store.run(tag.run_id)).messages] == ["INFO"]
    site.store.record_validation(tag.run_id, result, replace(valid, errors=2, texts=("/a: wrong", "/b: wrong")))
    message = rows(site.store.run(tag.run_id)).messages[-1]
    assert message["severity"] == "WARNING"
    assert str(message["message"]).startswith("result.nxs: NOT valid NeXus: 2 errors, 0 warnings")
    assert message["description"] == "/a: wrong\n/b: wrong"
