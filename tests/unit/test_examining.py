"""What is found out about a run after its end, and kept: validity of results, digest of the container image."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import h5py
import pytest
from jsonschema import Draft202012Validator

from orchestrator.containers import image_file
from orchestrator.differences import Aspect, differences
from orchestrator.examining import examine_due
from orchestrator.injob import file_sha256
from orchestrator.provenance import OutputIdentity, RunDetail, Store, detail_of
from orchestrator.provenance.record import record_schema
from orchestrator.provenance.rows import MADE
from orchestrator.record_keeping import import_runs, write_due
from orchestrator.records import RunTag
from orchestrator.rerunning import user_name
from orchestrator.runs import RECORDS
from tests.unit.images import IDENTIFIER, sif
from tests.unit.site_with_runs import NOON, SOFTWARE, SiteWithRuns


def keep_records(site: SiteWithRuns) -> None:
    """Do what the service's loops do, until nothing is due."""
    while write_due(site.store, site.folder / RECORDS) + examine_due(site.store):
        pass


def recorded(site: SiteWithRuns, tag: RunTag) -> RunDetail:
    return detail_of(json.loads(site.directory(tag).provenance.read_bytes()))


def with_result(site: SiteWithRuns, uid: str = "c-1", **changes: Any) -> RunTag:
    """Return an ended run with a NeXus result."""
    tag = site.complete(uid, **changes)
    path = site.directory(tag).result
    with h5py.File(path, "w") as file:
        file.create_group("entry").attrs["NX_class"] = "NXentry"
    made = OutputIdentity(path=path, kind="result", size=path.stat().st_size, sha256=file_sha256(path))
    site.store.record_output(tag.run_id, made)
    return tag


def made_by_hand(site: SiteWithRuns, tag: RunTag) -> RunTag:
    site.store.record_event(RunTag(run_id=tag.run_id, attempt=0), MADE, {"how": "sbatch"}, NOON)
    return tag


# ------------------------------------------------------------------------------------------------------------ validity


def test_a_result_is_validated_after_its_record_is_written_and_then_stands_in_it(site: SiteWithRuns) -> None:
    tag = with_result(site)
    assert site.store.due_examinations() == []
    assert write_due(site.store, site.folder / RECORDS) == 1
    assert [one.validation for one in recorded(site, tag).outputs] == [None]
    assert site.store.due_examinations() == [tag.run_id]
    keep_records(site)
    document = json.loads(site.directory(tag).provenance.read_bytes())
    Draft202012Validator(record_schema()).validate(document)
    (output,) = detail_of(document).outputs
    assert output.validation is not None
    assert output.validation.valid
    assert site.store.run(tag.run_id).outputs == (output,)
    assert site.store.due_examinations() == []
    assert f"validity  {output.validation.words}" in " ".join(site.call("show", tag.run_id).split("   ")).replace(
        "  ", "  "
    )


def test_a_result_that_is_gone_says_that_it_was_not_validated_and_why(site: SiteWithRuns) -> None:
    tag = with_result(site)
    site.directory(tag).result.unlink()
    keep_records(site)
    (output,) = recorded(site, tag).outputs
    assert output.validation is not None
    assert output.validation.words == "not validated, because the file isn't there any more"


def test_a_run_without_results_is_never_due(site: SiteWithRuns) -> None:
    tag = site.submitted()
    keep_records(site)
    assert site.store.due_examinations() == []
    assert site.store.run(tag.run_id).outputs == ()


def test_what_was_found_comes_back_with_the_record_after_the_database_was_lost(site: SiteWithRuns) -> None:
    image = sif(site.folder / "image.sif")
    tag = in_container(site, image)
    keep_records(site)
    known = site.store.run(tag.run_id)
    assert known.outputs[0].validation is not None
    with Store.open(f"sqlite:///{site.folder}/new.sqlite") as store:
        assert list(import_runs(store, site.folder / "runs", owner=os.getuid()))[-1].new == [tag.run_id]
        assert store.run(tag.run_id).outputs == known.outputs
        assert store.run(tag.run_id).attempts[0].container == known.attempts[0].container
        assert store.image_digest(image, image_file(image)) == file_sha256(image)
        write_due(store, site.folder / RECORDS)
        assert store.due_examinations() == []


def test_what_was_not_looked_at_yet_is_after_the_database_was_lost(site: SiteWithRuns) -> None:
    tag = with_result(site)
    write_due(site.store, site.folder / RECORDS)
    with Store.open(f"sqlite:///{site.folder}/new.sqlite") as store:
        assert list(import_runs(store, site.folder / "runs", owner=os.getuid()))[-1].new == [tag.run_id]
        assert store.due_examinations() == [tag.run_id]


@pytest.mark.parametrize(("requester", "told"), [("somebody", "the file isn't somebody's, who made the run"), ("", "")])
def test_of_a_run_that_was_made_by_hand_only_its_users_files_are_read(
    site: SiteWithRuns, requester: str, told: str
) -> None:
    tag = made_by_hand(site, with_result(site, requester=requester or user_name(os.getuid())))
    keep_records(site)
    (validation,) = (one.validation for one in recorded(site, tag).outputs)
    assert validation is not None
    assert validation.obstacle == told


# ------------------------------------------------------------------------------------------------- the container image


def in_container(site: SiteWithRuns, image: Path, uid: str = "c-1", *, in_sight: bool = True) -> RunTag:
    """Return an ended run whose job told in which image it ran."""
    tag = site.complete(uid)
    told: dict[str, Any] = {"path": str(image), **(image_file(image) if in_sight else {})}
    site.store.record_software(tag, {"container": told})
    return tag


def container(site: SiteWithRuns, tag: RunTag) -> dict[str, Any]:
    return dict(site.store.run(tag.run_id).attempts[-1].container)


def test_the_image_of_an_ended_run_is_digested_and_shown(site: SiteWithRuns) -> None:
    image = sif(site.folder / "image.sif", content=b"a system")
    tag = in_container(site, image)
    keep_records(site)
    assert container(site, tag) == {"path": str(image), **image_file(image), "sha256": file_sha256(image)}
    assert dict(recorded(site, tag).attempts[-1].container) == container(site, tag)
    assert f"{image}, SIF {IDENTIFIER}, sha256 {file_sha256(image)}" in site.call("show", tag.run_id)


def test_an_image_that_a_run_has_recorded_is_not_read_again(site: SiteWithRuns) -> None:
    image = sif(site.folder / "image.sif", content=b"a system")
    first, there = in_container(site, image), image.stat()
    keep_records(site)
    digest = file_sha256(image)
    with image.open("r+b") as file:
        file.write(b"?")
    os.utime(image, ns=(there.st_atime_ns, there.st_mtime_ns))
    second = in_container(site, image, "c-2")
    keep_records(site)
    assert container(site, first)["sha256"] == container(site, second)["sha256"] == digest != file_sha256(image)


def test_an_image_that_only_a_users_job_has_named_is_not_read(site: SiteWithRuns) -> None:
    image = sif(site.folder / "image.sif", content=b"a system")
    theirs = made_by_hand(site, in_container(site, image))
    keep_records(site)
    assert container(site, theirs)["sha256_unknown_because"] == "a user's job named it, and no other run was in it"
    in_container(site, image, "c-2")
    keep_records(site)
    another = made_by_hand(site, in_container(site, image, "c-3"))
    keep_records(site)
    assert container(site, another)["sha256"] == file_sha256(image)


def change(image: Path) -> None:
    sif(image, content=b"another system")


@pytest.mark.parametrize(
    ("happens", "told"),
    [
        (Path.unlink, "the service doesn't find it, or may not read it"),
        (change, "it was changed since the job began"),
    ],
)
def test_an_image_that_is_not_there_any_more_has_no_digest(site: SiteWithRuns, happens: Any, told: str) -> None:
    image = sif(site.folder / "image.sif", content=b"a system")
    tag = in_container(site, image)
    happens(image)
    keep_records(site)
    assert container(site, tag)["sha256_unknown_because"] == told
    assert "sha256" not in container(site, tag)
    assert f"digest unknown: {told}" in site.call("show", tag.run_id)


@pytest.mark.parametrize("after_s", [-60, 60])
def test_an_image_out_of_the_jobs_sight_counts_if_it_is_older_than_the_job(site: SiteWithRuns, after_s: int) -> None:
    image = sif(site.folder / "image.sif")
    written_s = (NOON + timedelta(seconds=after_s)).timestamp()
    os.utime(image, (written_s, written_s))
    tag = in_container(site, image, in_sight=False)
    keep_records(site)
    assert ("sha256" in container(site, tag)) == (after_s < 0)


def test_a_directory_has_no_digest_and_what_the_site_says_needs_none(site: SiteWithRuns) -> None:
    folder, stated = in_container(site, site.folder), site.complete("c-2")
    site.store.record_software(stated, {"container": {"stated": "registry.example/a@sha256:1"}})
    keep_records(site)
    assert container(site, folder)["sha256_unknown_because"] == "it is a directory, not a file"
    assert container(site, stated) == {"stated": "registry.example/a@sha256:1"}
    assert "registry.example/a@sha256:1, says the site" in site.call("show", stated.run_id)


def test_a_changed_image_is_a_changed_ingredient_and_a_moved_one_is_not(site: SiteWithRuns) -> None:
    image, copy = (sif(site.folder / name, content=b"a system") for name in ("image.sif", "copy.sif"))
    first, moved = in_container(site, image), in_container(site, copy)
    keep_records(site)
    change(image)
    changed = in_container(site, image)
    keep_records(site)
    run, same, other = (site.store.run(tag.run_id) for tag in (first, moved, changed))
    assert [one.name for one in differences(run, same) if one.decisive] == []
    assert "container.path" in [one.name for one in differences(run, same) if one.aspect is Aspect.INSTALLATION]
    assert [one.name for one in differences(run, other) if one.decisive] == ["container.sha256"]
    assert "container.sha256" in site.call("diff", first.run_id, changed.run_id)


def test_while_a_digest_is_not_known_the_file_stands_for_it(site: SiteWithRuns) -> None:
    image = sif(site.folder / "image.sif")
    first = in_container(site, image)
    keep_records(site)
    again = in_container(site, image)
    run = site.store.run(first.run_id)
    assert [one.name for one in differences(run, site.store.run(again.run_id)) if one.decisive] == []
    change(image)
    changed = site.store.run(in_container(site, image).run_id)
    assert {one.name for one in differences(run, changed) if one.decisive} == {"container.size", "container.mtime_ns"}


def test_a_run_whose_image_was_changed_or_is_gone_is_stale(site: SiteWithRuns) -> None:
    image = sif(site.folder / "image.sif", content=b"a system")
    tag = in_container(site, image)
    keep_records(site)
    os.utime(image)  # touched, and the same
    assert "container image" not in site.call("runs")
    change(image)
    assert f"container image {image} was changed since" in site.call("runs")
    image.unlink()
    assert f"container image {image}: No such file" in site.call("show", tag.run_id)


def test_lineage_leads_from_an_image_to_the_runs_in_it(site: SiteWithRuns) -> None:
    image = sif(site.folder / "image.sif")
    tags = [in_container(site, image), in_container(site, image, "c-2")]
    keep_records(site)
    moved = image.rename(site.folder / "moved.sif")
    for path in (image, moved):
        forward = site.told("lineage", str(path), "--json")["forward"]
        assert {one["run"]["run_id"] for one in forward["runs"]} == {tag.run_id for tag in tags}


def test_a_requeued_job_tells_its_image_again(site: SiteWithRuns) -> None:
    image = sif(site.folder / "image.sif")
    tag = in_container(site, image)
    keep_records(site)
    site.store.record_software(tag, {**SOFTWARE, "container": {"path": str(image), **image_file(image)}})
    assert "sha256" not in container(site, tag)
    keep_records(site)
    assert container(site, tag)["sha256"] == file_sha256(image)
    assert [used.path for used in site.store.used_by(tag.run_id) if used.role == "container image"] == [image]
