"""Runs as archives, catalogues and papers want them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from prov.model import ProvAgent, ProvDocument

from orchestrator.cli.common import ExitCode
from orchestrator.provenance import InputIdentity, InputMoment, OutputIdentity, Validation, detail_of
from orchestrator.records import ArrayPlan, JobState, Predecessor, RunState
from tests.unit.reduced_runs import TOLD, nexus, reduced
from tests.unit.site_with_runs import SiteWithRuns

SCHEMAS = Path(__file__).parent.parent / "schemas"
PARENT = "11111111-2222-3333-4444-555555555555"


def exported(site: SiteWithRuns, form: str, *, run: str = "latest") -> Path:
    folder = site.folder / "exports" / form
    site.call("export", run, "--format", form, "-o", str(folder))
    return folder


def faults(document: Any, schema: str) -> list[str]:
    validator = Draft202012Validator(json.loads((SCHEMAS / schema).read_text()))
    return [f"{'/'.join(map(str, error.path))}: {error.message}" for error in validator.iter_errors(document)]


def document(path: Path) -> Any:
    return json.loads(path.read_text())


def crate_of(site: SiteWithRuns) -> dict[str, dict[str, Any]]:
    graph = document(exported(site, "ro-crate") / "ro-crate" / "ro-crate-metadata.json")["@graph"]
    assert len({entity["@id"] for entity in graph}) == len(graph)
    return {entity["@id"]: entity for entity in graph}


# ------------------------------------------------------------------------------------------------- the command


def test_all_formats_at_once_are_listed_with_what_they_could_not_say(site: SiteWithRuns) -> None:
    tag = reduced(site)
    forms = [word for form in ("ro-crate", "scicat", "prov", "methods", "record") for word in ("--format", form)]
    told = site.told("export", "latest", *forms, "-o", str(site.folder / "out"), "--json")
    assert told["run_id"] == tag.run_id
    assert sorted(Path(path).name for path in told["written"]) == [
        "methods.md", "prov.json", "provenance.json", "ro-crate", "scicat-dataset.json", "scicat-files.json",
    ]  # fmt: skip
    assert all(Path(path).exists() for path in told["written"])
    assert [note.partition(":")[0] for note in told["notes"]] == ["scicat", "ro-crate"]


@pytest.mark.parametrize(
    ("form", "file"), [("methods", "methods.md"), ("prov", "prov.json"), ("record", "provenance.json")]
)
def test_a_form_that_is_one_text_is_printed_without_a_folder(site: SiteWithRuns, form: str, file: str) -> None:
    reduced(site)
    assert site.call("export", "latest", "--format", form) == (exported(site, form) / file).read_text()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("scicat",), "only one of methods, prov, record can be printed"),
        (("methods", "--format", "prov"), "only one of methods, prov, record can be printed"),
        (("methods", "--json"), "are about files"),
    ],
)
def test_what_needs_a_folder_says_so(site: SiteWithRuns, words: tuple[str, ...], told: str) -> None:
    reduced(site)
    assert not site.call("export", "latest", "--format", *words, code=ExitCode.INVALID_INPUT)
    said = " ".join(site.said.split())
    assert told in said
    assert "-o" in said


@pytest.mark.parametrize("form", ["ro-crate", "methods"])
def test_nothing_is_replaced_unless_asked(site: SiteWithRuns, form: str) -> None:
    reduced(site)
    folder = exported(site, form)
    before = sorted(folder.iterdir())
    site.call("export", "latest", "--format", form, "-o", str(folder), code=ExitCode.INVALID_INPUT)
    assert "is there already" in site.said
    site.call("export", "latest", "--format", form, "-o", str(folder), "--overwrite")
    assert sorted(folder.iterdir()) == before


def test_a_folder_that_is_no_crate_is_never_replaced(site: SiteWithRuns) -> None:
    reduced(site)
    (site.folder / "out" / "ro-crate").mkdir(parents=True)
    words = ("export", "latest", "--format", "ro-crate", "-o", str(site.folder / "out"), "--overwrite")
    site.call(*words, code=ExitCode.INVALID_INPUT)
    assert "is no crate" in site.said


def test_a_folder_that_can_not_be_made_is_named(site: SiteWithRuns) -> None:
    reduced(site)
    words = ("export", "latest", "--format", "methods", "-o", str(site.file / "out"))
    site.call(*words, code=ExitCode.INVALID_INPUT)
    assert f"{site.file / 'out'}: Not a directory" in site.said.replace("\n", "")


def test_the_directory_of_the_run_is_left_alone(site: SiteWithRuns) -> None:
    tag = reduced(site)
    words = ("export", "latest", "--format", "methods", "-o", str(site.directory(tag).path / "paper"))
    site.call(*words, code=ExitCode.INVALID_INPUT)
    assert "lies in the run's own directory" in site.said.replace("\n", " ")


def test_a_run_that_has_not_ended_is_refused(site: SiteWithRuns) -> None:
    tag = site.submitted()
    site.begun(tag)
    site.call("export", "latest", "--format", "methods", "-o", str(site.folder), code=ExitCode.INVALID_INPUT)
    assert "is running; only a run that has ended can be exported" in site.said.replace("\n", " ")


@pytest.mark.parametrize("form", ["ro-crate", "scicat", "methods"])
def test_a_result_that_is_gone_or_another_is_named(site: SiteWithRuns, form: str) -> None:
    tag = reduced(site)
    result = site.directory(tag).result
    for spoil, word in ((lambda: result.write_bytes(b"other"), "has 5 bytes now"), (result.unlink, "isn't there")):
        spoil()
        words = ("export", "latest", "--format", form, "-o", str(site.folder / "out"))
        site.call(*words, code=ExitCode.INVALID_INPUT)
        assert word in site.said
        assert not list((site.folder / "out").glob("*"))


def test_a_result_that_changed_but_kept_its_size_does_not_get_into_a_crate(site: SiteWithRuns) -> None:
    tag = reduced(site)
    result = site.directory(tag).result
    result.write_bytes(result.read_bytes()[:-1] + b"x")
    words = ("export", "latest", "--format", "ro-crate", "-o", str(site.folder / "out"))
    site.call(*words, code=ExitCode.INVALID_INPUT)
    assert "changed since the run" in site.said
    assert list((site.folder / "out").iterdir()) == []


def test_a_log_that_grew_after_its_digest_was_taken_hinders_nothing(site: SiteWithRuns) -> None:
    tag = reduced(site)
    log = site.attempt(tag).log
    site.store.record_output(tag.run_id, OutputIdentity(path=log, kind="log", size=3, sha256="ab" * 32))
    crate = crate_of(site)
    assert crate["attempts/1/job.log"]["sha256"] == hashlib.sha256(log.read_bytes()).hexdigest()
    files = document(exported(site, "scicat") / "scicat-files.json")["dataFileList"]
    assert [file["path"] for file in files] == ["result.nxs"]


# --------------------------------------------------------------------------------------------------- RO-Crate


def test_crate_has_the_files_of_the_run_and_names_what_it_read(site: SiteWithRuns) -> None:
    tag = reduced(site)
    crate = crate_of(site)
    action = crate[f"urn:uuid:{tag.run_id}"]
    assert crate[action["instrument"]["@id"]]["softwareVersion"].startswith("0.1.0 (commit 0123456789abcdef")
    assert (action["startTime"], action["endTime"]) == (
        "2026-11-22T12:00:00.000+00:00",
        "2026-11-22T12:00:21.000+00:00",
    )
    result = crate[action["result"]["@id"]]
    copy = site.folder / "exports" / "ro-crate" / "ro-crate" / result["@id"]
    assert result["sha256"] == hashlib.sha256(copy.read_bytes()).hexdigest()
    assert (result["contentSize"], result["encodingFormat"]) == (str(copy.stat().st_size), "application/x-hdf5")
    read = [one["@id"] for one in action["object"] if one["@id"].startswith("file:")]
    assert read == [
        (site.folder / "c-1.h5").as_uri(),
        f"file://{site.folder}/disk7/c-1_1.h5",
        f"file://{site.folder}/calib/mask.npy",
        "file:///dls/back.h5",
        "file:///calibration/i22.poni",
    ]
    assert crate["#parameter-thickness_m"]["unitText"] == "m"
    assert crate["#parameter-bins"]["value"] == 1000
    assert "#parameter-dark" not in crate  # has no value
    parts = {part["@id"] for part in crate["./"]["hasPart"]}
    assert {"message.json", "attempts/1/job.log", "result.nxs", *read} <= parts


def test_crate_and_prov_say_how_valid_the_result_is(site: SiteWithRuns) -> None:
    tag = reduced(site)
    said = Validation(validator="nexusformat 2.1.0", definitions="v2026.01", errors=1, texts=("/entry: wrong",))
    site.store.record_validation(tag.run_id, site.directory(tag).result, said)
    assert crate_of(site)["result.nxs"]["description"] == f"result of the run; {said.words}"
    assert said.words in (exported(site, "prov") / "prov.json").read_text()


def test_crate_names_the_container_image_with_its_digest(site: SiteWithRuns) -> None:
    tag = reduced(site)
    image = {"path": "/images/a.sif", "sif_uuid": "u", "sha256": "a" * 64}
    site.store.record_software(tag, {"container": image})
    crate = crate_of(site)
    assert crate[f"urn:uuid:{tag.run_id}"]["containerImage"] == {"@id": "#container-image"}
    assert crate["#container-image"] == {
        "@id": "#container-image",
        "@type": "ContainerImage",
        "additionalType": {"@id": "https://w3id.org/ro/terms/workflow-run#SIFImage"},
        "name": "/images/a.sif",
        "sha256": "a" * 64,
    }


def test_crate_can_leave_results_where_they_are(site: SiteWithRuns) -> None:
    tag = reduced(site)
    folder = site.folder / "out"
    site.call("export", "latest", "--format", "ro-crate", "--results-by-reference", "-o", str(folder))
    graph = document(folder / "ro-crate" / "ro-crate-metadata.json")["@graph"]
    (action,) = (entity for entity in graph if entity["@type"] == "CreateAction")
    assert action["result"]["@id"] == site.directory(tag).result.as_uri()
    assert not (folder / "ro-crate" / "result.nxs").exists()
    assert (folder / "ro-crate" / "message.json").exists()


def test_files_of_parameters_stand_with_the_digests_that_the_kernel_told(site: SiteWithRuns) -> None:
    reduced(site)
    crate = crate_of(site)
    mask, background = crate[f"file://{site.folder}/calib/mask.npy"], crate["file:///dls/back.h5"]
    assert (mask["description"], mask["sha256"]) == ("mask", "e" * 64)
    assert background["description"] == "background, dataset /entry/data[3]"  # it told nothing of this one
    assert "sha256" not in background


def test_files_that_no_kernel_told_of_are_named_from_the_parameter_file(site: SiteWithRuns) -> None:
    tag = reduced(site)
    scan = site.folder / "c-1.h5"
    site.store.record_input(tag.run_id, InputIdentity(at=InputMoment.END, path=scan, real_path=scan))
    assert (site.directory(tag).path / "calibration/mask.npy").as_uri() in crate_of(site)


def test_crate_links_the_runs_before_this_one(site: SiteWithRuns) -> None:
    before = Predecessor(recipe="average", run_id=PARENT[::-1], run_directory=site.folder)
    reduced(site, parent_run=PARENT, because="other mask", after=(before,), requester="gda")
    crate = crate_of(site)
    links = [one["@id"] for one in crate["./"]["isBasedOn"]]
    assert links == [f"urn:uuid:{PARENT}", f"urn:uuid:{PARENT[::-1]}"]
    assert crate[links[0]]["description"] == "the run that this one repeats, because: other mask"
    assert crate["#requester"]["name"] == "gda"


def test_crate_of_a_failed_run_says_why(site: SiteWithRuns) -> None:
    tag = reduced(site, state=RunState.FAILED, reason="no space left")
    action = crate_of(site)[f"urn:uuid:{tag.run_id}"]
    assert action["actionStatus"].endswith("FailedActionStatus")
    assert action["error"] == "no space left"


def test_crate_says_whose_data_they_are_and_under_which_license(site: SiteWithRuns) -> None:
    facility = '[facility]\nname = "A ring"\nurl = "https://ring.example"\nlicense = "https://cc.example/by"\n'
    site.file.write_text(site.file.read_text() + facility)
    reduced(site)
    crate = crate_of(site)
    assert crate["./"]["license"] == {"@id": "https://cc.example/by"}
    assert (crate["#facility"]["name"], crate["#facility"]["url"]) == ("A ring", "https://ring.example")
    assert not site.said


def test_crate_takes_no_links_and_no_unfinished_files(site: SiteWithRuns) -> None:
    tag = reduced(site)
    (site.directory(tag).path / "elsewhere").symlink_to("/etc/hostname")
    (site.directory(tag).path / ".result.nxs.making").write_text("half")
    folder = exported(site, "ro-crate") / "ro-crate"
    assert not (folder / "elsewhere").exists()
    assert not (folder / ".result.nxs.making").exists()


def test_names_of_other_encodings_stand_escaped(site: SiteWithRuns) -> None:
    tag = reduced(site)
    (site.directory(tag).path / "\udcb5 x.txt").write_text("micro")
    crate = crate_of(site)
    assert crate["%B5%20x.txt"]["name"] == r"\xb5 x.txt"


# ------------------------------------------------------------------------------------------------------- PROV


def test_prov_keeps_to_the_schema_and_is_read_by_others(site: SiteWithRuns) -> None:
    tag = reduced(site, parent_run=PARENT, requester="gda")
    path = exported(site, "prov") / "prov.json"
    assert faults(document(path), "prov-json.schema.json") == []
    read = ProvDocument.deserialize(str(path), format="json")
    again = ProvDocument.deserialize(content=read.serialize(format="json"), format="json")
    assert again == read
    run, result = read.get_record(f"uuid:{tag.run_id}"), read.get_record(f"file:{site.directory(tag).result}")
    assert len(run) == len(result) == 1
    assert {str(agent.label) for agent in read.get_records(ProvAgent)} >= {"gda", "orchestrator", "NumPy"}


def test_prov_says_what_came_from_what(site: SiteWithRuns) -> None:
    tag = reduced(site, parent_run=PARENT, requester="gda")
    prov = document(exported(site, "prov") / "prov.json")
    result = f"file:{site.directory(tag).result}"
    (made,) = prov["wasGeneratedBy"].values()
    assert (made["prov:entity"], made["prov:activity"]) == (result, "part:attempt-1")
    sources = {
        one["prov:usedEntity"] for one in prov["wasDerivedFrom"].values() if one["prov:generatedEntity"] == result
    }
    assert {
        f"file:{site.folder / 'c-1.h5'}",
        f"file:{site.folder}/disk7/c-1_1.h5",
        "file:/calibration/i22.poni",
    } <= sources
    informed = {(one["prov:informed"], one["prov:informant"]) for one in prov["wasInformedBy"].values()}
    assert informed == {("part:attempt-1", f"uuid:{tag.run_id}"), (f"uuid:{tag.run_id}", f"uuid:{PARENT}")}
    assert prov["entity"]["part:parameters"]["run:bins"] == 1000
    ran_with = {
        one["prov:agent"] for one in prov["wasAssociatedWith"].values() if one["prov:activity"] == "part:attempt-1"
    }
    assert {"part:numpy-2.4.6", "part:openmpi-4.1.4"} < ran_with
    assert prov["agent"]["part:numpy-2.4.6"]["schema:softwareVersion"] == "2.4.6"
    assert prov["entity"]["part:message"]["schema:sha256"]


def test_schema_of_prov_refuses_what_is_wrong() -> None:
    nothing: dict[str, Any] = {"prefix": {}, "entity": {}, "activity": {}, "agent": {}}
    assert faults(nothing, "prov-json.schema.json") == []
    for wrong in (
        {"entity": {"a:b": {"a:c": {"d": 1}}}},
        {"activity": {"a:b": {"prov:startTime": "noon"}}},
        {"used": {"_:u1": {"prov:entity": "a:b"}}},
        {"wasMadeBy": {}},
    ):
        assert faults(nothing | wrong, "prov-json.schema.json"), wrong


# ----------------------------------------------------------------------------------------------------- SciCat


def test_scicat_documents_keep_to_the_schemas(site: SiteWithRuns) -> None:
    contact = '[facility]\nname = "A ring"\ncontact = "Data group"\ncontact_email = "data@ring.example"\n'
    site.file.write_text(site.file.read_text() + contact)
    tag = reduced(site, parent_run=PARENT)
    folder = exported(site, "scicat")
    dataset, files = document(folder / "scicat-dataset.json"), document(folder / "scicat-files.json")
    assert faults(dataset, "scicat-dataset.schema.json") == []
    assert faults(files, "scicat-files.schema.json") == []
    assert (dataset["owner"], dataset["contactEmail"]) == ("Data group", "data@ring.example")
    assert dataset["ownerGroup"] == "cm1-1"
    assert (site.folder / "c-1.h5").as_uri() in dataset["inputDatasets"]
    assert dataset["usedSoftware"][0].startswith("orchestrator 0.1.0 (commit")
    assert dataset["jobParameters"]["parameters"]["bins"] == 1000
    assert dataset["jobParameters"]["parentRun"] == PARENT
    assert dataset["jobLogData"] == "all is well\n"
    assert dataset["scientificMetadata"]["thickness_m"] == {"value": 0.001, "unit": "m"}
    assert dataset["scientificMetadata"]["wavelength"] == {"value": 1.2, "unit": "angstrom"}
    assert dataset["scientificMetadata"]["frames_processed"] == {"value": 200, "unit": ""}
    (file,) = files["dataFileList"]
    assert file["path"] == "result.nxs"
    assert file["chk"] == hashlib.sha256(site.directory(tag).result.read_bytes()).hexdigest()


def test_scicat_says_that_nobody_is_known_to_be_asked(site: SiteWithRuns) -> None:
    reduced(site, visit=None)
    dataset = document(exported(site, "scicat") / "scicat-dataset.json")
    assert faults(dataset, "scicat-dataset.schema.json") == []
    assert (dataset["owner"], dataset["ownerGroup"]) == ("not known", "not known")
    assert dataset["contactEmail"] == "not-known@example.invalid"
    assert "[facility] contact_email" in site.said


def test_schema_of_scicat_refuses_fields_that_the_backend_does_not_know(site: SiteWithRuns) -> None:
    reduced(site)
    dataset = document(exported(site, "scicat") / "scicat-dataset.json")
    assert faults(dataset | {"investigator": "gda"}, "scicat-dataset.schema.json")
    assert faults(dataset | {"contactEmail": "not known"}, "scicat-dataset.schema.json")


def test_run_without_files_makes_no_list_of_them(site: SiteWithRuns) -> None:
    tag = site.submitted()
    site.begun(tag)
    site.report(tag, JobState.FAILED, exit_code=4)
    site.ended(tag, RunState.FAILED, "input unusable")
    folder = exported(site, "scicat")
    assert [path.name for path in folder.iterdir()] == ["scicat-dataset.json"]
    assert faults(document(folder / "scicat-dataset.json"), "scicat-dataset.schema.json") == []
    assert "made no files" in site.said


# ---------------------------------------------------------------------------------------------------- methods


def methods_of(site: SiteWithRuns) -> str:
    return (exported(site, "methods") / "methods.md").read_text()


def test_methods_say_what_was_done_and_cite_it(site: SiteWithRuns) -> None:
    reduced(site)
    text = methods_of(site)
    for sentence in (
        "200 of 200 written frames were processed; 200 were announced.",
        "into 1000 bins of q in Å⁻¹; pixels were split over bins by their bounding box.",
        "The geometry was taken from the PONI file `/calibration/i22.poni`.",
        "The wavelength was 1.2 Å.",
        "those of the mask `calibration/mask.npy`",
        "background (`/dls/back.h5::/entry/data[3]`, scaled by 0.5)",
        "polarisation (factor 0.99)",
        "sample thickness (0.001 m)",
        "Standard deviations assume Poisson statistics of the counts.",
        "The job ran under SLURM",
        "Open MPI 4.1.4",
    ):
        assert sentence in text
    for doi in ("S1600576715004306", "s41586-020-2649-2", "S1600576714027575", "10968987_3", "ascom.2015.07.002"):
        assert doi in text


def test_methods_leave_out_what_was_not_done(site: SiteWithRuns) -> None:
    off = dict.fromkeys(("mask", "polarization_factor", "poni", "background", "thickness_m"))
    tag = reduced(site, told=TOLD | off | {"solid_angle": False, "error_model": "none"})
    text = methods_of(site)
    assert "corrected for" not in text
    assert "No errors were propagated." in text
    assert "The geometry was taken from the input file." in text
    for doi in ("S0021889897001647", "S0021889882012060", "S1600576717015096"):
        assert doi not in text
    assert tag.run_id in text


def test_methods_of_a_partial_run_say_how_many_frames(site: SiteWithRuns) -> None:
    reduced(site, processed=150, state=RunState.PARTIAL, reason="150 of 200 written frames processed")
    text = methods_of(site)
    assert "150 of 200 written frames were processed" in text
    assert "The run is partial: 150 of 200 written frames processed." in text


def test_methods_of_a_run_without_a_processed_frame_claim_nothing(site: SiteWithRuns) -> None:
    reduced(site, processed=0, state=RunState.FAILED, reason="input unusable")
    text = methods_of(site)
    assert "The run is failed: input unusable." in text
    assert "References" not in text
    assert "integrated" not in text


def test_methods_of_a_job_array_name_the_values_of_its_tasks(site: SiteWithRuns) -> None:
    reduced(site, array=ArrayPlan(parameter="mask", values=("/a.npy", "/b.npy")))
    text = methods_of(site)
    assert "for each of these values of `mask`, in results of their own: /a.npy, /b.npy." in text
    read = document(exported(site, "scicat") / "scicat-dataset.json")["inputDatasets"]
    assert {"file:///a.npy", "file:///b.npy"} <= set(read)


def test_methods_without_bitshuffle_do_not_cite_it(site: SiteWithRuns) -> None:
    tag = reduced(site)
    site.result(tag, nexus("HDF5 pipeline"))
    assert "bitshuffle" not in methods_of(site)


def test_methods_of_a_run_that_never_began_claim_nothing(site: SiteWithRuns) -> None:
    tag = site.planned()
    site.ended(tag, RunState.REFUSED, "the template is wrong")
    text = methods_of(site)
    assert "how many frames were processed is not known" in text.lower()
    assert "The run is refused: the template is wrong." in text
    assert "References" not in text
    assert "integrated" not in text


# ----------------------------------------------------------------------------------------------------- record


def test_record_is_everything_that_the_store_knows(site: SiteWithRuns) -> None:
    tag = reduced(site)
    record = document(exported(site, "record") / "provenance.json")
    assert detail_of(record) == site.store.run(tag.run_id)
