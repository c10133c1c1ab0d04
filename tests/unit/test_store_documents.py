"""Records survive being written as JSON and read again."""

from __future__ import annotations

import json
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import InvalidInput
from orchestrator.provenance import (
    InputIdentity,
    InputMoment,
    end_from_json,
    end_to_json,
    input_from_json,
    plan_from_json,
    plan_to_json,
    start_from_json,
    start_to_json,
)
from orchestrator.provenance.documents import encoded
from orchestrator.records import CollectionEnd, CollectionStart, JobPlan, Json, Parameter

TIMES = st.none() | st.datetimes(timezones=st.just(UTC))
FINITE = st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.booleans() | st.integers() | FINITE | st.text()
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5
)
PATHS = st.text(st.characters(exclude_characters="\0")).map(Path)
# `...` lets hypothesis make every field of the record, those of later releases too.
STARTS = st.builds(
    CollectionStart,
    file=PATHS,
    started_at=TIMES,
    metadata=st.dictionaries(st.text(), SCALARS),
    visit=...,
    scan_type=...,
    frames_expected=...,
    ignored=...,
)
ENDS = st.builds(CollectionEnd, ended_at=TIMES, frames_written=..., ignored=...)
PLANS = st.builds(
    JobPlan,
    collection=STARTS,
    parameters=st.lists(st.builds(Parameter, value=VALUES), max_size=3).map(tuple),
    run_directory=PATHS,
    python=PATHS,
    stall_timeout_s=FINITE,
    appear_timeout_s=FINITE,
    launcher_options=...,
    modules=...,
    environment=...,
    parent_run=...,
)


def as_text(document: Json) -> Json:
    """Return a document as it is after a trip through a file."""
    read: Json = json.loads(json.dumps(document))
    return read


@given(PLANS)
def test_a_plan_comes_back(plan: JobPlan) -> None:
    assert plan_from_json(as_text(plan_to_json(plan))) == plan


@given(STARTS)
def test_a_collection_start_comes_back(start: CollectionStart) -> None:
    assert start_from_json(as_text(start_to_json(start))) == start


@given(ENDS)
def test_a_collection_end_comes_back(end: CollectionEnd) -> None:
    assert end_from_json(as_text(end_to_json(end))) == end


def test_an_inputs_identity_comes_back() -> None:
    identity = InputIdentity(
        at=InputMoment.END,
        path=Path("/data/scan.h5"),
        real_path=Path("/gpfs/scan.h5"),
        shape=(200, 5, 7),
        chunks=(1, 5, 7),
        sources=({"path": "/data/a.h5", "size": 3},),
        seal={"state": "sealed", "algorithm": "sha256(xxh3-128)", "digest": "d" * 64, "frames": 200},
        files=({"parameter": "mask", "path": "/calib/mask.npy", "sha256": "e" * 64},),
    )
    document = encoded(identity)
    assert isinstance(document, dict)
    del document["at"]
    assert input_from_json(as_text(document), InputMoment.END) == identity


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (None, "not a plan: it must be a JSON object, not NoneType"),
        ({"plan_version": 2}, "plan_version is 2, this release reads 1"),
        ({"plan_version": 1}, "not a plan: collection is missing"),
        ({"plan_version": 1, "collection": {"file": 3}}, "not a collection-start: "),
    ],
)
def test_what_is_not_a_plan_is_refused_with_the_reason(document: Json, words: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        plan_from_json(document)
    assert words in str(raised.value)


def test_an_unknown_outcome_or_field_is_refused() -> None:
    with pytest.raises(InvalidInput, match="'exploded'"):
        end_from_json({"uid": "c", "outcome": "exploded"})
    with pytest.raises(InvalidInput, match="surprise"):
        end_from_json({"uid": "c", "outcome": "finished", "surprise": 1})
