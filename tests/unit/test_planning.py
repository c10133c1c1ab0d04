"""Planning: which recipes want a collection, with which parameters, decided by whom."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import NoRecipe, PathNotAllowed
from orchestrator.planning import check_allowed, plan, plan_recipe, run_id_of
from orchestrator.records import CollectionStart, Origin
from orchestrator.runs import RunDirectory
from orchestrator.settings import Settings, load_settings

SITE = """
name = "test"
database = "sqlite://"
runs_root = "/runs"
allowed_roots = ["/data"]
templates = "."

[defaults]
launcher = "srun"
modules = ["openmpi"]
stall_timeout_s = 10

[defaults.environment]
A = "site"
B = "site"

[defaults.resources]
ntasks = 8
partition = "live"

[defaults.parameters.azimuthal]
unit = "q_nm^-1"
bins = 100
error_model = "poisson"

[recipes.saxs]
kernel = "azimuthal"
template = "azimuthal.sbatch.j2"
match = { beamline = "i22", detector = ["saxs", "Pilatus*"], metadata = { energy_keV = { min = 7, max = 20 } } }
from_metadata = { bins = "azint_bins", background_scale = "ratio" }
[recipes.saxs.parameters]
bins = 200
unit = "2th_deg"
[recipes.saxs.resources]
ntasks = 2
[recipes.saxs.environment]
B = "recipe"

[recipes.everything]
kernel = "other"
template = "azimuthal.sbatch.j2"
match = { beamline = "*" }
modules = []
launcher = "none"

[recipes.off]
enabled = false
kernel = "other"
template = "azimuthal.sbatch.j2"
match = { beamline = "*" }
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "test.toml").write_text(SITE)
    return load_settings(tmp_path / "test.toml")


def start(**changes: Any) -> CollectionStart:
    fields: dict[str, Any] = {
        "uid": "uid-1", "beamline": "i22", "detector": "saxs", "file": Path("/data/a.nxs"), "dataset": "/entry/data",
        "visit": "sm1-1", "metadata": {"energy_keV": 12.4},
    }  # fmt: skip
    return CollectionStart(**fields | changes)


def chosen(collection: CollectionStart, settings: Settings) -> list[str]:
    return [one.recipe for one in plan(collection, settings).plans]


def test_every_recipe_that_matches_gives_a_plan(settings: Settings) -> None:
    assert chosen(start(), settings) == ["saxs", "everything"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"beamline": "i23"}, "beamline is 'i23', not 'i22'"),
        ({"detector": "waxs"}, "detector is 'waxs', not 'saxs' or 'Pilatus*'"),
        ({"metadata": {}}, "metadata has no 'energy_keV'"),
        ({"metadata": {"energy_keV": 5}}, "metadata 'energy_keV' is 5, not from 7.0 up to 20.0"),
        (
            {"beamline": "i23", "detector": "waxs"},
            "beamline is 'i23', not 'i22', detector is 'waxs', not 'saxs' or 'Pilatus*'",
        ),
    ],
)
def test_a_recipe_that_isnt_chosen_says_why(settings: Settings, changes: dict[str, Any], reason: str) -> None:
    planning = plan(start(**changes), settings)
    assert {one.recipe: one.reason for one in planning.not_chosen}["saxs"] == reason


def test_a_recipe_that_is_switched_off_says_so(settings: Settings) -> None:
    reasons = {one.recipe: one.reason for one in plan(start(), settings).not_chosen}
    assert reasons == {"off": "switched off (enabled = false)"}


def test_patterns_match_names(settings: Settings) -> None:
    assert "saxs" in chosen(start(detector="Pilatus2M"), settings)
    assert "saxs" not in chosen(start(detector="pilatus2M"), settings), "names are case-sensitive"


def test_no_plan_at_all_is_an_error_with_the_reasons_for_who_needs_one(settings: Settings) -> None:
    only = load_settings(settings.source, {"recipes.everything.enabled": False})
    planning = plan(start(beamline="i23"), only)
    assert planning.plans == ()
    assert planning.reason.startswith("saxs: beamline is 'i23'")
    with pytest.raises(NoRecipe, match="saxs: beamline is 'i23'"):
        planning.require_plans()


def test_a_site_without_recipes_says_so(settings: Settings) -> None:
    assert plan(start(), load_settings(settings.source, {"recipes": {}})).reason == "the site file has no recipes"


def test_later_deciders_win_and_are_named_with_their_place(settings: Settings) -> None:
    collection = start(metadata={"energy_keV": 12, "azint_bins": 300})
    one = plan(collection, settings, user_parameters={"error_model": "none"}).plans[0]
    assert {p.name: (p.value, p.origin, p.place) for p in one.parameters} == {
        "bins": (300, Origin.MESSAGE, "message: metadata.azint_bins"),
        "error_model": ("none", Origin.USER, "request: error_model"),
        "unit": ("2th_deg", Origin.RECIPE, "test.toml: recipes.saxs.parameters.unit"),
    }


def test_the_sites_parameters_reach_only_their_kernel(settings: Settings) -> None:
    saxs, everything = plan(start(), settings).plans
    error_model = next(p for p in saxs.parameters if p.name == "error_model")
    assert (error_model.origin, error_model.place) == (
        Origin.SITE,
        "test.toml: defaults.parameters.azimuthal.error_model",
    )
    assert everything.parameters == ()


def test_metadata_sets_only_what_the_recipe_lets_it(settings: Settings) -> None:
    one = plan(start(metadata={"energy_keV": 12, "unit": "hacked", "bins": 1}), settings).plans[0]
    assert one.parameter_values() == {"bins": 200, "error_model": "poisson", "unit": "2th_deg"}


@pytest.mark.parametrize("value", [3, 0.5, True, "poisson", "q_nm^-1", "mask.npy"])
def test_numbers_and_words_of_a_message_reach_the_kernel_as_they_are(settings: Settings, value: Any) -> None:
    one = plan(start(metadata={"energy_keV": 12, "azint_bins": value}), settings).plans[0]
    assert one.parameter_values()["bins"] == value


@pytest.mark.parametrize(
    "value",
    [
        "/etc/passwd", "../../../etc/passwd", "..", "", "~/x", "x/../../y", "/data/../etc/shadow",
        "/etc/a.h5::/entry/mask", "a.h5::/data/x", "/etc/a\n", "mask.npy\n", "file:///etc/passwd",
        "x" * 65, "\u2024\u2024/x",
    ],
)  # fmt: skip
def test_a_message_cant_name_a_file_outside_the_allowed_roots(settings: Settings, value: str) -> None:
    """The recipe isn't chosen, with the reason; others go on."""
    planning = plan(start(metadata={"energy_keV": 12, "azint_bins": value}), settings)
    assert [one.recipe for one in planning.plans] == ["everything"]
    reason = {one.recipe: one.reason for one in planning.not_chosen}["saxs"]
    assert reason.startswith("message: metadata.azint_bins: ")
    assert "outside the allowed roots" in reason


def test_a_file_that_a_message_names_is_handed_on_as_where_it_really_leads(tmp_path: Path) -> None:
    (tmp_path / "test.toml").write_text(SITE)
    site = load_settings(tmp_path / "test.toml", {"allowed_roots": [str(tmp_path / "data")]})
    (tmp_path / "data").mkdir()
    (tmp_path / "secret.npy").touch()
    (tmp_path / "data" / "link.npy").symlink_to(tmp_path / "secret.npy")
    (tmp_path / "data" / "current.h5").symlink_to(tmp_path / "data" / "mask-7.h5")
    metadata = {"energy_keV": 12, "azint_bins": f"{tmp_path}/data/current.h5::/entry/mask[mean]"}
    assert plan(start(metadata=metadata), site).plans[0].parameter_values()["bins"] == (
        f"{(tmp_path / 'data').resolve()}/mask-7.h5::/entry/mask[mean]"
    )
    metadata["azint_bins"] = f"{tmp_path}/data/link.npy"
    assert chosen(start(metadata=metadata), site) == ["everything"]


def test_resources_environment_and_modules_come_from_recipe_over_defaults(settings: Settings) -> None:
    saxs, everything = plan(start(), settings).plans
    assert (saxs.resources.ntasks, saxs.resources.partition, saxs.resources.time_limit_min) == (2, "live", 60)
    assert (everything.resources.ntasks, everything.launcher, saxs.launcher) == (8, "none", "srun")
    assert saxs.environment == {"A": "site", "B": "recipe"}
    assert (saxs.modules, everything.modules) == (("openmpi",), ())
    assert (saxs.stall_timeout_s, saxs.appear_timeout_s) == (10, 120)


def test_a_repeated_message_names_the_same_run_and_directory(settings: Settings) -> None:
    first, again = plan(start(), settings).plans[0], plan(start(), settings).plans[0]
    assert first == again
    assert first.run_directory == Path(f"/runs/i22/sm1-1/saxs-uid-1-{first.run_id[:8]}")


def test_run_ids_dont_change_from_release_to_release() -> None:
    assert run_id_of("uid-1", "saxs") == "f2b6e637-ac89-5759-a844-9ff0d2c16ec0"


def test_a_persons_run_is_another_than_the_automatic_one(settings: Settings) -> None:
    automatic = plan_recipe("saxs", start(), settings)
    changed = plan_recipe("saxs", start(), settings, user_parameters={"bins": 5})
    child = plan_recipe("saxs", start(), settings, parent_run=automatic.run_id)
    assert len({automatic.run_id, changed.run_id, child.run_id}) == 3
    assert child.parent_run == automatic.run_id
    assert plan(start(), settings, requester="ada").plans[0].requester == "ada"


@given(st.tuples(st.text(), st.text()), st.tuples(st.text(), st.text()))
def test_other_collections_or_recipes_have_other_run_ids(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert UUID(run_id_of(*one)).version == 5
    assert (run_id_of(*one) == run_id_of(*other)) is (one == other)


@given(st.text(), st.none() | st.text(), st.text(), st.text())
def test_a_runs_directory_is_three_levels_below_the_root_whatever_names_are_given(
    beamline: str, visit: str | None, recipe: str, uid: str
) -> None:
    path = RunDirectory.under(
        Path("/runs"), beamline=beamline, visit=visit, recipe=recipe, uid=uid, run_id=run_id_of(uid, recipe)
    ).path
    assert path.parents[2] == Path("/runs")
    assert all(re.fullmatch(r"[A-Za-z0-9_+=@][A-Za-z0-9._+=@-]{0,140}", part) for part in path.parts[2:])


@pytest.mark.parametrize(("one", "other"), [("scan:1", "scan_1"), ("x" * 60 + "1", "x" * 60 + "2")])
def test_uids_that_look_alike_as_file_names_have_directories_of_their_own(one: str, other: str) -> None:
    """Even if the run ids were made to begin alike, which takes some hours of guessing."""

    def directory(uid: str, rest: str) -> RunDirectory:
        run_id = f"f2b6e637-ac89-5759-a844-{rest}"
        return RunDirectory.under(Path("/runs"), beamline="i22", visit=None, recipe="saxs", uid=uid, run_id=run_id)

    assert directory(one, "9ff0d2c16ec0") != directory(other, "9ff0d2c16ec1")


# ------------------------------------------------------------------------------------------------- allowed roots


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "data" / "visit").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    return tmp_path / "data"


def test_a_file_below_a_root_is_allowed_even_before_it_exists(root: Path) -> None:
    assert check_allowed(root / "visit" / "new.nxs", [Path("/other"), root]) == (root / "visit/new.nxs").resolve()


def test_dots_that_stay_below_the_root_are_resolved(root: Path) -> None:
    assert check_allowed(root / "visit" / ".." / "a.nxs", [root]) == (root / "a.nxs").resolve()


def test_a_root_that_is_a_link_is_followed(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    assert check_allowed(tmp_path / "link" / "a.nxs", [tmp_path / "link"]) == (root / "a.nxs").resolve()
    assert check_allowed(root / "a.nxs", [tmp_path / "link"]) == (root / "a.nxs").resolve()


@pytest.mark.parametrize(
    "name", ["../secret/a.nxs", "visit/../../secret/a.nxs", "link/a.nxs", "file", "../data2/a.nxs"]
)
def test_a_way_out_of_the_roots_is_refused_and_says_where_it_leads(root: Path, name: str) -> None:
    (root / "link").symlink_to(root.parent / "secret")
    (root / "file").symlink_to(root.parent / "secret" / "a.nxs")
    with pytest.raises(PathNotAllowed, match="outside the allowed roots") as refused:
        check_allowed(root / name, [root])
    assert str(root) in str(refused.value)
    assert "leads to" in str(refused.value)
    assert "allowed_roots" in refused.value.remedy


@pytest.mark.parametrize("path", [Path("data/a.nxs"), Path("/"), Path("/data\0/x")])
def test_what_is_no_file_below_a_root_is_refused(root: Path, path: Path) -> None:
    with pytest.raises(PathNotAllowed):
        check_allowed(path, [root])
