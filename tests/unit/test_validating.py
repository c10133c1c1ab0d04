"""How valid a file is, by the judgement of a process that may crash, hang or not be there."""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest

from orchestrator.cli.common import ExitCode
from orchestrator.nexus_validator import LONGEST_TEXT, MOST_TEXTS
from orchestrator.provenance import OutputIdentity, Validation
from orchestrator.validating import validate, validate_output
from tests.unit.site_with_runs import SiteWithRuns


def entry(path: Path, definition: str | None = None) -> Path:
    """Write a NeXus file with an empty entry."""
    with h5py.File(path, "w") as file:
        group = file.create_group("entry")
        group.attrs["NX_class"] = "NXentry"
        if definition is not None:
            group["definition"] = definition
    return path


def add_faulty_source(path: Path, name: str = "source") -> Path:
    """Add a group with one error, and one field that NeXus doesn't know."""
    with h5py.File(path, "r+") as file:
        file.require_group("entry/instrument").attrs["NX_class"] = "NXinstrument"
        source = file.create_group(f"entry/instrument/{name}")
        source.attrs["NX_class"] = "NXsource"
        source["probe"] = "light"
        source["fancy"] = 1
    return path


def module(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> str:
    """Write a module that the validator's process finds."""
    (folder / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=":")
    return name


# ------------------------------------------------------------------------------------------------------ what is found


def test_a_file_is_held_against_the_definition_that_it_names_and_errors_tell_their_places(tmp_path: Path) -> None:
    found = validate(entry(tmp_path / "a.nxs", "NXazint1d"))
    assert (found.application, found.valid, found.obstacle) == ("NXazint1d", False, "")
    assert found.validator.startswith("nexusformat ")
    assert found.definitions.startswith("v20")
    assert found.errors >= len(found.texts) > 0
    assert "/entry/solid_angle_applied: This required field is not in the NeXus file" in found.texts


def test_a_file_without_a_definition_is_held_against_the_base_classes(tmp_path: Path) -> None:
    path = entry(tmp_path / "a.nxs")
    assert validate(path).valid
    found = validate(add_faulty_source(path))
    assert (found.application, found.errors, found.warnings) == (None, 1, 1)
    assert found.texts == ("/entry/instrument/source/probe: The field value is not a member of the enumerated list",)
    assert found.words.startswith("NOT valid NeXus: 1 error, 1 warning (nexusformat ")


def test_hdf5_without_an_entry_is_no_nexus(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "plain.h5", "w") as file:
        file["x"] = 1
    found = validate(tmp_path / "plain.h5")
    assert (found.errors, found.texts) == (1, ("/: there is no NXentry",))


def test_of_many_errors_the_first_are_told_and_all_are_counted(tmp_path: Path) -> None:
    path = entry(tmp_path / "a.nxs")
    for number in range(MOST_TEXTS + 5):
        add_faulty_source(path, f"{'long' * 100}{number}")
    found = validate(path)
    assert (found.errors, len(found.texts)) == (MOST_TEXTS + 5, MOST_TEXTS)
    assert max(map(len, found.texts)) == LONGEST_TEXT


def test_nothing_is_left_beside_the_file(tmp_path: Path) -> None:
    validate(entry(tmp_path / "a.nxs"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.nxs"]


# ---------------------------------------------------------------------------------------------- what stands in the way


@pytest.mark.parametrize("content", [b"no HDF5 at all", b"\x89HDF\r\n\x1a\n" + bytes(100)])
def test_what_can_not_be_read_is_told_as_such(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.nxs").write_bytes(content)
    found = validate(tmp_path / "a.nxs")
    assert found.obstacle.startswith("the validator can't read it: ")
    assert found.words == f"not validated, because {found.obstacle}"
    assert not found.valid


def test_an_unknown_definition_is_told_as_such(tmp_path: Path) -> None:
    assert '"NXnothing" does not exist' in validate(entry(tmp_path / "a.nxs", "NXnothing")).obstacle


def test_a_validator_that_is_not_installed_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module(tmp_path, monkeypatch, "nexusformat", "raise ImportError('No module named nexusformat')")
    found = validate(entry(tmp_path / "a.nxs"))
    assert found == Validation(obstacle="there is no validator: No module named nexusformat")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import os; os.abort()", "the validator was ended by SIGABRT"),
        ("raise RecursionError('too deep')", "the validator broke off: RecursionError: too deep"),
        ("import time; time.sleep(60)", "the validator took longer than 1 s"),
        ("print('{')", "the validator's answer can't be read: "),
        ("print('[1]')", "the validator's answer can't be read: not a validation: "),
    ],
)
def test_a_validator_that_fails_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, told: str
) -> None:
    failing = module(tmp_path, monkeypatch, "failing", text)
    assert validate(tmp_path / "a.nxs", patience_s=1, module=failing).obstacle.startswith(told)


def test_a_result_that_is_not_what_the_run_made_is_not_validated(tmp_path: Path) -> None:
    path = entry(tmp_path / "a.nxs")
    made = OutputIdentity(path=path, kind="result", size=path.stat().st_size, sha256="a" * 64)
    assert validate_output(made).valid
    with path.open("ab") as file:
        file.write(b"more")
    assert validate_output(made).obstacle == f"the file has {made.size + 4} bytes now; the run made {made.size}"
    path.unlink()
    assert validate_output(made).obstacle == "the file isn't there any more"


# --------------------------------------------------------------------------------------------------------- the command


def test_the_command_needs_no_site_for_a_file(site: SiteWithRuns, tmp_path: Path) -> None:
    site.call("validate", str(entry(tmp_path / "a.nxs")))
    told = site.told("validate", str(entry(tmp_path / "b.nxs", "NXazint1d")), "--json", code=ExitCode.INCOMPLETE)
    assert (told[0]["path"], told[0]["valid"]) == (str(tmp_path / "b.nxs"), False)
    assert told[0]["errors"] >= len(told[0]["texts"]) > 0


def test_the_command_tells_the_errors_of_a_runs_result_and_keeps_them(site: SiteWithRuns) -> None:
    tag = site.complete()
    path = add_faulty_source(entry(site.directory(tag).result))
    site.store.record_output(
        tag.run_id, OutputIdentity(path=path, kind="result", size=path.stat().st_size, sha256="a" * 64)
    )
    text = site.call("validate", tag.run_id, code=ExitCode.INCOMPLETE)
    assert "result.nxs: /entry/instrument/source/probe: The field value is not a member of the enumerated list" in text
    assert "checked by nexusformat " in text
    shown = site.call("show", tag.run_id)
    assert "NOT valid NeXus: 1 error, " in shown
    assert "/entry/instrument/source/probe: The field value" in shown


def test_the_command_says_how_to_get_a_validator(site: SiteWithRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    path = entry(site.folder / "a.nxs")
    module(site.folder, monkeypatch, "nexusformat", "raise ImportError('No module named nexusformat')")
    assert "not validated, because there is no validator" in site.call("validate", str(path), code=ExitCode.INCOMPLETE)
    assert "requirements/validation.txt" in site.said


def test_a_run_without_a_result_is_named(site: SiteWithRuns) -> None:
    site.call("validate", site.planned().run_id, code=ExitCode.NOT_FOUND)
    assert "has no result on record" in site.said
