"""What two runs have different, and which of it can be why their results differ."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from site_with_runs import SiteWithRuns

from orchestrator.cli.common import ExitCode
from orchestrator.contents import Verdict, content_digest
from orchestrator.differences import Aspect, RunDifference, differences
from orchestrator.injob import file_sha256
from orchestrator.provenance import AttemptRecord, InputIdentity, InputMoment, OutputIdentity, RunDetail
from orchestrator.records import RunTag
from orchestrator.verifying import verified


@pytest.fixture
def site(tmp_path: Path) -> SiteWithRuns:
    return SiteWithRuns(tmp_path)


@pytest.fixture
def run(site: SiteWithRuns) -> RunDetail:
    return site.store.run(site.complete().run_id)


def only(found: tuple[RunDifference, ...]) -> RunDifference:
    (one,) = found
    return one


def with_attempt(run: RunDetail, **changes: Any) -> RunDetail:
    newest: AttemptRecord = replace(run.attempts[-1], **changes)
    return replace(run, attempts=(*run.attempts[:-1], newest))


def with_last_input(run: RunDetail, **changes: Any) -> RunDetail:
    return replace(
        run, inputs=tuple(replace(one, **changes) if one.at is InputMoment.END else one for one in run.inputs)
    )


def test_a_run_has_nothing_different_from_itself(run: RunDetail) -> None:
    assert differences(run, run) == ()


def test_another_run_of_the_same_request_differs_in_nothing_that_decides(site: SiteWithRuns, run: RunDetail) -> None:
    other = site.store.run(site.complete().run_id)
    assert [one for one in differences(run, other) if one.decisive] == []
    assert not any(one.aspect is Aspect.SCRIPT for one in differences(run, other))


def test_a_parameter_decides(run: RunDetail) -> None:
    changed = tuple(replace(one, value=500) if one.name == "bins" else one for one in run.parameters)
    one = only(differences(run, replace(run, parameters=changed)))
    assert (one.aspect, one.name, one.first, one.second, one.decisive) == (
        Aspect.PARAMETERS, "bins", "1000", "500", True,
    )  # fmt: skip


def test_a_sealed_input_is_told_by_its_content_and_not_by_its_times(run: RunDetail) -> None:
    assert differences(run, with_last_input(run, mtime_ns=1, inode=2, size=3)) == ()
    seal = {"state": "sealed", "algorithm": "sha256(xxh3-128)", "digest": "e" * 64, "frames": 200}
    one = only(differences(run, with_last_input(run, seal=seal)))
    assert (one.aspect, one.name) == (Aspect.INPUT, "content")


def test_an_input_that_was_never_sealed_is_told_by_size_and_time(run: RunDetail) -> None:
    pending = with_last_input(run, seal={"state": "pending"})
    assert {one.name for one in differences(pending, with_last_input(pending, mtime_ns=1, size=3))} == {
        "mtime_ns", "size",
    }  # fmt: skip


def test_a_file_that_a_parameter_names_decides(run: RunDetail) -> None:
    files = ({"parameter": "mask", "path": "/calib/mask.npy", "sha256": "f" * 64},)
    one = only(differences(run, with_last_input(run, files=files)))
    assert (one.aspect, one.name, one.decisive) == (Aspect.FILES, "mask", True)


def test_a_template_is_told_as_what_was_changed_in_it(run: RunDetail) -> None:
    text = run.attempts[-1].template_text
    one = only(differences(run, with_attempt(run, template_text=text + "sleep 1\n")))
    assert (one.aspect, one.decisive) == (Aspect.TEMPLATE, True)
    assert "+sleep 1" in one.second.splitlines()


@pytest.mark.parametrize("known", [True, False], ids=["source known", "source unknown"])
def test_the_commit_decides_only_where_the_source_is_not_known(run: RunDetail, known: bool) -> None:
    software: dict[str, Any] = dict(run.attempts[-1].software or {})  # type: ignore[arg-type]
    if known:
        software["loaded"] = {**software.get("loaded", {}), "source_sha256": "a" * 64}
    first = with_attempt(run, software=software)
    second = with_attempt(run, software={**software, "commit": "f" * 40})
    one = only(differences(first, second))
    assert one.name == "commit"
    assert one.decisive is not known


def test_changed_source_of_the_kernels_decides(run: RunDetail) -> None:
    first, second = (with_attempt(run, software={"loaded": {"source_sha256": digest * 64}}) for digest in "ab")
    one = only(differences(first, second))
    assert (one.aspect, one.name, one.decisive) == (Aspect.CODE, "loaded.source_sha256", True)


# --------------------------------------------------------------------------------------------------------- results


def with_result(site: SiteWithRuns, tag: RunTag, values: list[float], **parameters: int) -> RunDetail:
    """Put an HDF5 result in the place of a run's, and record it."""
    path = site.directory(tag).result
    with h5py.File(path, "w") as file:
        file["entry/data/I"] = np.array(values)
        for name, value in parameters.items():
            file[f"entry/reduction/input/{name}"] = value
    made = OutputIdentity(
        path=path,
        kind="result",
        size=path.stat().st_size,
        sha256=file_sha256(path),
        content_sha256=content_digest(path).sha256,
    )
    site.store.record_output(tag.run_id, made)
    return site.store.run(tag.run_id)


@pytest.fixture
def two(site: SiteWithRuns) -> tuple[RunTag, RunTag]:
    return site.complete("c-1"), site.complete("c-2")


def test_equal_results_are_identical_without_being_read(site: SiteWithRuns, two: tuple[RunTag, RunTag]) -> None:
    first, second = (with_result(site, tag, [1.0, 2.0]) for tag in two)
    site.directory(two[0]).result.unlink()
    found = verified(first, second)
    assert (found.verdict, found.culprits) == (Verdict.IDENTICAL, ())


def test_different_results_name_the_place_and_the_parameter_that_the_kernel_used(
    site: SiteWithRuns, two: tuple[RunTag, RunTag]
) -> None:
    first = with_result(site, two[0], [1.0, 2.0], bins=1000)
    second = with_result(site, two[1], [1.0, 2.5], bins=900)
    found = verified(first, second)
    assert found.verdict is Verdict.DIFFERENT
    (result,) = found.results
    assert result.comparison is not None
    assert [one.path for one in result.comparison.differences] == ["/entry/data/I", "/entry/reduction/input/bins"]
    assert [(one.name, one.first, one.second) for one in found.culprits if one.aspect is Aspect.PARAMETERS] == [
        ("bins", "1000", "900")
    ]


def test_results_within_the_tolerance(site: SiteWithRuns, two: tuple[RunTag, RunTag]) -> None:
    first, second = with_result(site, two[0], [1.0]), with_result(site, two[1], [1.0 + 1e-9])
    assert verified(first, second).verdict is Verdict.DIFFERENT
    assert verified(first, second, rtol=1e-6).verdict is Verdict.WITHIN_TOLERANCE


def test_a_result_that_was_changed_since_is_not_taken_for_what_the_run_made(
    site: SiteWithRuns, two: tuple[RunTag, RunTag]
) -> None:
    first, second = with_result(site, two[0], [1.0]), with_result(site, two[1], [2.0])
    with h5py.File(site.directory(two[0]).result, "r+") as file:
        file["entry/data/I"][0] = 2.0
    (result,) = verified(first, second).results
    assert result.verdict is Verdict.DIFFERENT
    assert "changed since" in result.obstacle


def test_a_missing_result_is_a_difference(site: SiteWithRuns, two: tuple[RunTag, RunTag]) -> None:
    first, second = with_result(site, two[0], [1.0]), replace(site.store.run(two[1].run_id), outputs=())
    found = verified(first, second)
    assert found.verdict is Verdict.DIFFERENT
    assert "the second run hasn't made it" in found.results[0].obstacle


def test_diff_tells_results_first_and_ends_with_6(site: SiteWithRuns, two: tuple[RunTag, RunTag]) -> None:
    for tag, value in zip(two, (1.0, 2.0), strict=True):
        with_result(site, tag, [value])
    said = site.call("diff", two[0].run_id, two[1].run_id, code=ExitCode.INCOMPLETE)
    assert said.startswith("result.nxs: different\n")
    assert "/entry/data/I" in said
    told = site.told("diff", two[0].run_id, two[1].run_id, "--json", code=ExitCode.INCOMPLETE)
    assert told["verdict"] == "different"
    assert site.told("diff", two[0].run_id, two[0].run_id, "--json")["verdict"] == "identical"


def test_verify_of_a_run_without_a_result_is_refused(site: SiteWithRuns) -> None:
    tag = site.submitted()
    site.call("verify", tag.run_id, code=ExitCode.NOT_FOUND)
    assert "has no result on record" in site.said


# ------------------------------------------------------------------------------------------------ stale, and lineage


def test_verify_of_a_run_whose_input_is_gone_is_refused_and_nothing_is_recorded(site: SiteWithRuns) -> None:
    tag = site.complete()
    before = site.store.run(tag.run_id)
    (site.folder / "c-1.h5").unlink(missing_ok=True)
    site.call("verify", tag.run_id, code=ExitCode.NOT_FOUND)
    assert f"{site.folder}/c-1.h5, which run {tag.run_id} read, isn't there any more" in " ".join(site.said.split())
    assert "bring the file back" in site.said
    assert site.store.run(tag.run_id) == before
    assert len(site.store.runs()) == 1


def test_a_run_is_stale_when_its_input_is_gone_or_changed(site: SiteWithRuns) -> None:
    tag = site.complete()
    file = site.folder / "raw.h5"
    file.write_bytes(b"frames")
    there = file.stat()
    identity = InputIdentity(
        at=InputMoment.END, path=file, real_path=file, size=6, mtime_ns=there.st_mtime_ns, inode=there.st_ino
    )
    site.store.record_input(tag.run_id, identity)

    def reasons() -> list[str]:
        (listed,) = site.told("runs", "--json")
        stale: list[str] = [reason for reason in listed["stale"] if "raw.h5" in reason]
        return stale

    ended_s = site.store.run(tag.run_id).summary.ended_at
    assert ended_s is not None
    os.utime(file, (ended_s.timestamp(), ended_s.timestamp() + 30))
    assert reasons() == []
    os.utime(file, (ended_s.timestamp(), ended_s.timestamp() + 300))
    assert "was changed since" in reasons()[0]
    file.unlink()
    assert "No such file" in reasons()[0]


def test_a_run_is_stale_when_a_file_that_a_parameter_names_has_another_content(site: SiteWithRuns) -> None:
    tag = site.complete()
    mask = site.folder / "mask.npy"
    mask.write_bytes(b"a mask")
    known = {"parameter": "mask", "path": str(mask), "size": 6, "sha256": file_sha256(mask), "mtime_ns": 1}
    identity = InputIdentity(at=InputMoment.END, path=site.folder, real_path=site.folder, files=(known,))
    site.store.record_input(tag.run_id, identity)
    assert "mask" not in site.call("runs")  # touched, and the same
    mask.write_bytes(b"b mask")
    said = site.call("runs")
    assert "STALE: " in said
    assert f"mask {mask} was changed since" in said
    assert f"mask {mask} was changed since" in site.call("show", tag.run_id)


def test_lineage_follows_a_mask_that_another_run_made_and_a_copy_by_its_digest(site: SiteWithRuns) -> None:
    made, used = site.complete("c-1"), site.complete("c-2")
    result = site.result(made, b"a mask that a run made")
    files = ({"parameter": "mask", "path": str(result), "sha256": file_sha256(result)},)
    raw = Path("/disk7/c-2.h5")
    site.store.record_input(used.run_id, InputIdentity(at=InputMoment.END, path=raw, real_path=raw, files=files))
    last_result = site.result(used, b"the last")
    back = site.told("lineage", str(last_result), "--json")["back"]
    (run,) = back["runs"]
    assert run["run"]["run_id"] == used.run_id
    (mask,) = [file for file in run["files"] if file["path"] == str(result)]
    assert mask["role"] == "mask"
    assert [one["run"]["run_id"] for one in mask["runs"]] == [made.run_id]
    copy = site.folder / "copy of the mask.h5"
    copy.write_bytes(result.read_bytes())
    forward = site.told("lineage", str(copy), "--json")["forward"]
    assert [one["run"]["run_id"] for one in forward["runs"]] == [used.run_id]
    said = site.call("lineage", str(copy)).splitlines()
    assert said[0] == f"Made from: {copy}"
    assert any(line.endswith(f"mask: {result}") for line in site.call("lineage", str(last_result)).splitlines())
    assert any(used.run_id[:8] in line for line in said)


def test_lineage_of_a_file_that_nobody_knows(site: SiteWithRuns) -> None:
    site.call("lineage", str(site.file), code=ExitCode.NOT_FOUND)
    assert "neither its path nor its digest" in site.said
