"""The native documents: what is understood, what is refused and how it is said."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import InvalidMessage
from orchestrator.messages import (
    END_SCHEMA,
    MAX_BYTES,
    START_SCHEMA,
    end_document,
    json_schemas,
    start_document,
    understand,
)
from orchestrator.records import CollectionEnd, CollectionOutcome, CollectionStart, RawMessage

START: dict[str, Any] = {
    "schema": START_SCHEMA,
    "uid": "i22-774821",
    "beamline": "i22",
    "detector": "Pilatus3 X 2M",
    "file": "/data/i22/2026/sm12345-1/i22-774821.nxs",
    "dataset": "/entry/data/data",
}
END: dict[str, Any] = {"schema": END_SCHEMA, "uid": "i22-774821", "outcome": "finished"}


def raw(body: bytes) -> RawMessage:
    return RawMessage(body=body, source="test")


def read(document: dict[str, Any]) -> CollectionStart | CollectionEnd:
    return understand(raw(json.dumps(document).encode()))


def refusal(document: dict[str, Any]) -> InvalidMessage:
    with pytest.raises(InvalidMessage) as caught:
        read(document)
    assert caught.value.remedy
    return caught.value


# ------------------------------------------------------------------------------------------------- understood


def test_smallest_start_is_understood_and_the_rest_is_unknown() -> None:
    assert read(START) == CollectionStart(
        uid="i22-774821",
        beamline="i22",
        detector="Pilatus3 X 2M",
        file=Path("/data/i22/2026/sm12345-1/i22-774821.nxs"),
        dataset="/entry/data/data",
    )


def test_smallest_end_is_understood() -> None:
    assert read(END) == CollectionEnd(uid="i22-774821", outcome=CollectionOutcome.FINISHED)


def test_null_means_unknown() -> None:
    nothing = dict.fromkeys(["visit", "scan_type", "frames_expected", "started_at"])
    assert read(START | nothing) == read(START)


def test_times_become_utc() -> None:
    start = read(START | {"started_at": "2026-11-23T01:40:00.25+02:00"})
    assert isinstance(start, CollectionStart)
    assert start.started_at == datetime(2026, 11, 22, 23, 40, 0, 250000, tzinfo=UTC)
    assert start.started_at.tzinfo is UTC


def test_metadata_keep_their_types() -> None:
    metadata = {"sample": "Silberbehenat, 20 °C", "energy_keV": 12.4, "repeats": 3, "calibration": True}
    start = read(START | {"metadata": metadata})
    assert isinstance(start, CollectionStart)
    assert start.metadata == metadata
    assert [type(value) for value in start.metadata.values()] == [str, float, int, bool]


def test_unknown_fields_are_named_as_ignored() -> None:
    start = read(START | {"facility": "DLS", "schedule": {"shift": [1, 2]}})
    assert start.ignored == ("facility", "schedule")


def test_names_of_ignored_fields_are_harmless_and_few() -> None:
    start = read(START | {"evil\n#SBATCH": 1} | {f"x{number:04}": None for number in range(500)})
    assert start.ignored[0] == '"evil\\n#SBATCH"'
    assert start.ignored[-1] == "and 401 more"
    assert len(start.ignored) == 101


# ---------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"frames_expected": "200"}, 'frames_expected: input should be a valid integer, found "200"'),
        ({"frames_expected": 200.0}, "frames_expected: input should be a valid integer, found 200.0"),
        ({"frames_expected": True}, "frames_expected: input should be a valid integer, found true"),
        ({"frames_expected": 0}, "frames_expected: input should be greater than or equal to 1, found 0"),
        ({"frames_expected": 10**10}, "frames_expected: input should be less than or equal to 1000000000"),
        ({"uid": 7}, "uid: input should be a valid string, found 7"),
        ({"uid": ""}, "uid: string should match pattern"),
        ({"uid": "a\n#SBATCH --uid=0"}, r'found "a\n#SBATCH --uid=0"'),
        ({"uid": "a\n"}, r'found "a\n"'),
        ({"uid": "a" * 129}, "uid: string should have at most 128 characters"),
        ({"uid": "../../etc"}, "uid: string should match pattern"),
        ({"beamline": "i22 "}, "beamline: string should match pattern"),
        ({"detector": "x; rm -rf"}, "detector: string should match pattern"),
        ({"visit": "a/b"}, "visit: string should match pattern"),
        ({"file": "data/a.nxs"}, "file: should be the absolute path of a file"),
        ({"file": "/data/"}, "file: should be the absolute path of a file"),
        ({"file": "/data/a\nb.nxs"}, "file: has the control character U+000A at position 7"),
        ({"file": "/data/a\x00.nxs"}, "file: has the control character U+0000 at position 7"),
        ({"file": "/data/\ud800"}, "file: "),
        ({"file": "/" + "a" * 5000}, "file: string should have at most 4000 characters"),
        ({"dataset": "entry/data"}, "dataset: should be an absolute HDF5 path"),
        ({"dataset": "/entry//data"}, "dataset: should be an absolute HDF5 path"),
        ({"dataset": "/entry/../data"}, "dataset: should be an absolute HDF5 path"),
        ({"started_at": "2026-11-22T23:40:00"}, "started_at: string should match pattern"),
        ({"started_at": 1795390800}, "started_at: input should be a valid string, found 1795390800"),
        ({"started_at": "2026-02-30T00:00:00Z"}, "started_at: day is out of range"),
        ({"started_at": "0001-01-01T00:00:00+23:00"}, "started_at: should lie in the years 1990 to 2199"),
        ({"started_at": "2026-11-22T23:40:00+99:00"}, "started_at: offset must be"),
        ({"metadata": []}, "metadata: input should be a valid dictionary, found an array of 0"),
        ({"metadata": None}, "metadata: input should be a valid dictionary, found null"),
        ({"metadata": {"positions": [1, 2]}}, "metadata.positions: should be a string, a number or a boolean"),
        ({"metadata": {"sample": "a\nb"}}, "metadata.sample: has the control character U+000A"),
        ({"metadata": {"a\tb": 1}}, r'metadata."a\tb": has the control character U+0009'),
        ({"metadata": {"n": 2**63}}, "metadata.n: should fit 64 bits"),
        ({"metadata": {"s": "x" * 4097}}, "metadata.s: should have at most 4096 characters"),
        ({"metadata": {str(n): n for n in range(1001)}}, "metadata: dictionary should have at most 1000 items"),
    ],
)
def test_a_wrong_field_is_named_with_what_was_found(change: dict[str, Any], said: str) -> None:
    assert said in str(refusal(START | change))


@pytest.mark.parametrize("field", ["uid", "beamline", "detector", "file", "dataset"])
def test_a_missing_field_of_a_start_is_named(field: str) -> None:
    error = refusal({name: value for name, value in START.items() if name != field})
    assert str(error) == f"{field}: the field is missing"
    assert error.remedy.startswith(f"{field} is: ")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"outcome": "done"}, "outcome: input should be 'finished', 'aborted' or 'failed', found \"done\""),
        ({"frames_written": -1}, "frames_written: input should be greater than or equal to 0, found -1"),
    ],
)
def test_a_wrong_field_of_an_end_is_named(change: dict[str, Any], said: str) -> None:
    assert said in str(refusal(END | change))


def test_several_wrong_fields_are_all_named() -> None:
    error = refusal(START | {"uid": 1, "file": "x", "frames_expected": 0})
    assert all(field in str(error) for field in ("uid: ", "file: ", "frames_expected: "))


@pytest.mark.parametrize("schema", ["orchestrator/collection-start/2", "", None, 1, ["a"]])
def test_an_unknown_schema_is_refused_with_the_known_ones(schema: object) -> None:
    error = refusal(START | {"schema": schema})
    assert "isn't known here" in str(error)
    assert START_SCHEMA in error.remedy
    assert END_SCHEMA in error.remedy


def test_a_missing_schema_is_refused_with_the_known_ones() -> None:
    assert START_SCHEMA in refusal({"uid": "a"}).remedy


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "the body is empty"),
        (b" \n", "the body is empty"),
        (b'{"uid": 1,\n  nope}', "not JSON: line 2 column 3"),
        (b"{} {}", "not JSON: line 1 column 4: Extra data"),
        (b"\xef\xbb\xbf{}", "not JSON: line 1 column 1: Unexpected UTF-8 BOM"),
        (b"[1]", "the document is an array, not an object"),
        (b"null", "the document is null, not an object"),
        (b'{"uid": "\xff"}', "byte 9 (0xff) isn't UTF-8"),
        (b'{"uid": 1, "uid": 2}', "uid: stands twice in one object"),
        (b'{"metadata": {"a": 1, "a": 1}}', "a: stands twice in one object"),
        (b'{"metadata": {"a": NaN}}', "NaN isn't a JSON number"),
        (b'{"metadata": {"a": -Infinity}}', "-Infinity isn't a JSON number"),
        (b'{"metadata": {"a": 1e999}}', "the number 1e999 is too large for a double"),
        (b'{"n": ' + b"1" * 5000 + b"}", "has more than 19 digits"),
        (b"[" * 100_000, "the JSON is nested too deeply"),
        (b'{"a":' * 100_000, "the JSON is nested too deeply"),
        (b" " * (MAX_BYTES + 1), f"the body has more than {MAX_BYTES} bytes"),
    ],
)
def test_what_isnt_an_acceptable_json_object_is_refused_with_the_place(body: bytes, said: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        understand(raw(body))
    assert said in str(caught.value)
    assert caught.value.remedy


def test_refusals_are_short_and_printable_whatever_was_sent() -> None:
    error = refusal(START | {"uid": "\x1b[31m" * 10_000, "metadata": {"\x07" * 100: "y" * 100_000}})
    assert len(error.full_text) < 1000
    assert error.full_text.isprintable()


# --------------------------------------------------------------------------------------------------- any bytes


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_and_never_crash(body: bytes) -> None:
    with pytest.raises(InvalidMessage):
        understand(raw(body))


any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.sampled_from([START, END]), st.dictionaries(st.sampled_from([*START, *END, "metadata", "x"]), any_json))
def test_documents_with_arbitrary_values_are_understood_or_refused_and_never_crash(
    document: dict[str, Any], changes: dict[str, Any]
) -> None:
    try:
        read(document | changes)
    except InvalidMessage as error:
        error.full_text.encode()  # can be stored


# -------------------------------------------------------------------------------------------------- round trip

identifiers = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:@+-]{0,127}", fullmatch=True)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)
plain_text = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=30)
path_parts = plain_text.map(lambda text: text.replace("/", "")).filter(lambda text: text not in {"", ".", ".."})
paths = st.lists(path_parts, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))
times = st.datetimes(
    min_value=datetime(1991, 1, 1),  # noqa: DTZ001 - hypothesis adds the zone
    max_value=datetime(2198, 1, 1),  # noqa: DTZ001
    timezones=st.integers(-720, 840).map(lambda minutes: timezone(timedelta(minutes=minutes))),
)
scalars = (
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | plain_text
)
starts = st.builds(
    CollectionStart,
    uid=identifiers,
    beamline=names,
    detector=names,
    file=paths.map(Path),
    dataset=paths,
    visit=st.none() | names,
    scan_type=st.none() | names,
    frames_expected=st.none() | st.integers(1, 10**9),
    started_at=st.none() | times,
    metadata=st.dictionaries(plain_text, scalars, max_size=5),
)
ends = st.builds(
    CollectionEnd,
    uid=identifiers,
    outcome=st.sampled_from(CollectionOutcome),
    frames_written=st.none() | st.integers(0, 10**9),
    ended_at=st.none() | times,
)


@given(starts)
def test_a_start_that_is_written_is_read_back_the_same(start: CollectionStart) -> None:
    assert understand(raw(start_document(start))) == start


@given(ends)
def test_an_end_that_is_written_is_read_back_the_same(end: CollectionEnd) -> None:
    assert understand(raw(end_document(end))) == end


def test_a_sender_cant_write_what_no_receiver_accepts() -> None:
    start = CollectionStart(uid="a", beamline="b", detector="c", file=Path("relative.nxs"), dataset="/entry/data")
    with pytest.raises(InvalidMessage, match="file: should be the absolute path"):
        start_document(start)


def test_a_sender_cant_write_numbers_that_arent_json() -> None:
    start = CollectionStart(
        uid="a", beamline="b", detector="c", file=Path("/a"), dataset="/d", metadata={"x": float("nan")}
    )
    with pytest.raises(InvalidMessage, match=r"metadata\.x: should be finite"):
        start_document(start)


# ------------------------------------------------------------------------------------------------- JSON Schema


def test_schemas_are_published_for_each_document() -> None:
    schemas: dict[str, Any] = json_schemas()
    assert set(schemas) == {START_SCHEMA, END_SCHEMA}
    for schema_id, schema in schemas.items():
        assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        assert schema["properties"]["schema"]["const"] == schema_id
        json.dumps(schema)


@pytest.mark.parametrize("schema_id", [START_SCHEMA, END_SCHEMA])
def test_every_field_in_the_schema_is_described_with_an_example_that_is_understood(schema_id: str) -> None:
    schemas: dict[str, Any] = json_schemas()
    document: dict[str, Any] = {"schema": schema_id}
    for field, description in schemas[schema_id]["properties"].items():
        assert description["description"]
        if field != "schema":
            document[field] = description["examples"][0]
    assert read(document).ignored == ()


def test_schema_demands_the_same_fields_as_the_reader() -> None:
    schemas: dict[str, Any] = json_schemas()
    assert set(schemas[START_SCHEMA]["required"]) == set(START)
    assert set(schemas[END_SCHEMA]["required"]) == set(END)


def test_the_documents_in_the_reference_are_understood_completely() -> None:
    reference = (Path(__file__).parents[2] / "docs" / "reference" / "messages.md").read_text()
    start, end = (understand(raw(text.encode())) for text in re.findall(r"```json\n(.*?)```", reference, re.DOTALL))
    assert isinstance(start, CollectionStart)
    assert isinstance(end, CollectionEnd)
    assert start.ignored == end.ignored == ()
    assert start.frames_expected == end.frames_written == 200
