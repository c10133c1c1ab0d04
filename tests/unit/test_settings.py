"""Site files: what is read, and that a mistake is named with file, line, key and remedy."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import InvalidSettings
from orchestrator.planning import plan_recipe
from orchestrator.records import CollectionStart
from orchestrator.rendering import render
from orchestrator.settings import (
    Condition,
    Defaults,
    GatewaySettings,
    Match,
    Recipe,
    ResourceRequest,
    RestSettings,
    Settings,
    SpoolSettings,
    StompSettings,
    TlsSettings,
    load_settings,
)
from orchestrator.settings.retries import FailedRetryRequest, RetriesRequest

SHIPPED = Path(__file__).parents[2] / "site-configs"

SITE = """\
name = "test"
database = "sqlite:///state/db.sqlite"
runs_root = "runs"
allowed_roots = ["data", "/other"]
templates = "../jobtemplates"

[stomp]
brokers = ["localhost:61613"]
queue = "collection"

[defaults.resources]
ntasks = 2

[recipes.azimuthal]
kernel = "azimuthal"
template = "azimuthal.sbatch.j2"
match = { beamline = "i22" }

[recipes.azimuthal.parameters]
bins = 500
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    path = tmp_path / "sites" / "test.toml"
    path.parent.mkdir()
    path.write_text(SITE)
    return path


def refused(site: Path, old: str, new: str) -> InvalidSettings:
    assert old in SITE
    site.write_text(SITE.replace(old, new, 1))
    with pytest.raises(InvalidSettings) as error:
        load_settings(site)
    return error.value


def line_of(site: Path, text: str) -> int:
    return next(number for number, line in enumerate(site.read_text().splitlines(), 1) if text in line)


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.toml")), ids=lambda path: path.name)
def test_every_shipped_site_file_renders_all_its_recipes(path: Path) -> None:
    settings = load_settings(path)
    collection = CollectionStart(uid="u", beamline="b", detector="d", file=Path("/data/a.nxs"), dataset="/data")
    assert settings.recipes
    for name in settings.recipes:
        assert render(plan_recipe(name, collection, settings), 1, settings.templates).text.startswith("#!/bin/bash\n")


def test_relative_paths_count_from_the_site_file(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    settings = load_settings(site)
    assert settings.runs_root == site.parent / "runs"
    assert settings.allowed_roots == (site.parent / "data", Path("/other"))
    assert settings.templates == site.parent.parent / "jobtemplates"
    assert settings.database == f"sqlite:///{site.parent}/state/db.sqlite"
    assert settings.gateway.local_state == site.parent / "runs" / ".local-jobs"


def test_the_interpreter_is_this_one_unless_the_site_says_otherwise(site: Path) -> None:
    assert load_settings(site).python == Path(sys.executable)


def test_settings_are_frozen(site: Path) -> None:
    settings = load_settings(site)
    with pytest.raises(ValueError, match="frozen"):
        settings.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite:////abs/db", "mysql+pymysql://h/d"])
def test_other_database_urls_are_left_alone(site: Path, url: str) -> None:
    assert load_settings(site, {"database": url}).database == url


def test_a_password_from_the_environment_may_have_any_character(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(site, {"database": "postgresql+psycopg://me:${DB_PASSWORD}@host/db"})
    monkeypatch.delenv("DB_PASSWORD", raising=False)
    with pytest.raises(InvalidSettings, match="DB_PASSWORD isn't set"):
        _ = settings.database
    monkeypatch.setenv("DB_PASSWORD", "p@ss/w:rd")
    assert settings.database == "postgresql+psycopg://me:p%40ss%2Fw%3Ard@host/db"
    assert "p@ss" not in repr(settings)


def test_an_override_wins_and_is_told_from_the_file(site: Path) -> None:
    settings = load_settings(site, {"recipes.azimuthal.parameters.bins": 7, "stomp.brokers": ["a:1", "b:2"]})
    assert settings.recipes["azimuthal"].parameters == {"bins": 7}
    assert settings.stomp is not None
    assert settings.stomp.addresses() == (("a", 1), ("b", 2))
    assert settings.place("recipes.azimuthal.parameters.bins") == "override: recipes.azimuthal.parameters.bins"
    assert settings.place("defaults.resources.ntasks") == "test.toml: defaults.resources.ntasks"


def test_an_override_of_a_whole_table_covers_its_keys(site: Path) -> None:
    settings = load_settings(site, {"recipes.azimuthal.parameters": {"bins": 7}})
    assert settings.place("recipes.azimuthal.parameters.bins").startswith("override: ")


def test_an_override_doesnt_change_what_the_caller_handed_over(site: Path) -> None:
    parameters: dict[str, Any] = {"bins": 7}
    load_settings(site, {"recipes.azimuthal.parameters": parameters, "recipes.azimuthal.parameters.unit": "2th_deg"})
    assert parameters == {"bins": 7}


def test_an_override_below_a_value_is_refused(site: Path) -> None:
    with pytest.raises(InvalidSettings, match="'name' is a value, not a table"):
        load_settings(site, {"name.first": 1})


def test_every_key_stands_in_the_reference_page() -> None:
    page = (SHIPPED.parent / "docs" / "reference" / "site-file.md").read_text()
    models = (Settings, GatewaySettings, RestSettings, SpoolSettings, StompSettings, TlsSettings, Defaults, Recipe,
              Match, ResourceRequest, RetriesRequest, FailedRetryRequest)  # fmt: skip
    keys = {field.alias or name for model in models for name, field in vars(model)["__pydantic_fields__"].items()}
    assert {key for key in keys - {"source", "overridden"} if f"`{key}`" not in page and f"[{key}" not in page} == set()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("out-of-memory.memory_facter", 2, "unknown key 'defaults.retries.out-of-memory.memory_facter'"),
        ("out_of_memory.times", 2, "unknown key 'defaults.retries.out_of_memory'"),
        ("cancelled.times", 1, "unknown key 'defaults.retries.cancelled'"),
        ("timeout.exit_codes", [1], "unknown key 'defaults.retries.timeout.exit_codes'"),
        ("failed.exit_codes", [0], "defaults.retries.failed.exit_codes.0: must be greater than or equal to 1"),
        ("timeout.times", -1, "defaults.retries.timeout.times: must be greater than or equal to 0"),
        ("timeout.time_factor", 0.5, "defaults.retries.timeout.time_factor: must be greater than or equal to 1"),
        ("timeout.time_factor", float("inf"), "defaults.retries.timeout.time_factor"),
        ("preempted.delay_s", -1, "defaults.retries.preempted.delay_s: must be greater than or equal to 0"),
        ("most", "three", "defaults.retries.most"),
    ],
)
def test_a_mistake_in_the_rules_for_trying_again_is_named(site: Path, key: str, value: Any, said: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        load_settings(site, {f"defaults.retries.{key}": value})
    assert said in str(caught.value)


def test_a_mistyped_key_of_a_cause_is_answered_with_the_right_one(site: Path) -> None:
    with pytest.raises(InvalidSettings) as caught:
        load_settings(site, {"defaults.retries.out-of-memory.memory_facter": 2})
    assert caught.value.remedy == "did you mean 'memory_factor'?"


# ------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("old", "new", "key", "near"),
    [
        ("runs_root =", "run_root =", "run_root", "runs_root"),
        ("ntasks =", "ntask =", "defaults.resources.ntask", "ntasks"),
        ("queue =", "queu =", "stomp.queu", "queue"),
        ("kernel =", "kernal =", "recipes.azimuthal.kernal", "kernel"),
        ("[stomp]", "[stmp]", "stmp", "stomp"),
        ("database =", "databse =", "databse", "database"),
    ],
)
def test_an_unknown_key_names_its_line_and_the_nearest_known_one(
    site: Path, old: str, new: str, key: str, near: str
) -> None:
    error = refused(site, old, new)
    assert str(error).startswith(f"{site}, line {line_of(site, new)}: unknown key '{key}'")
    assert error.remedy == f"did you mean '{near}'?"


def test_an_unknown_key_like_no_other_names_all_that_are_known(site: Path) -> None:
    error = refused(site, "ntasks = 2", "zzz = 2")
    assert error.remedy.startswith("known keys here: account, constraint, cpus_per_task, ")


def test_a_missing_key_is_named(site: Path) -> None:
    error = refused(site, 'kernel = "azimuthal"\n', "")
    assert f"line {line_of(site, '[recipes.azimuthal]')}: 'recipes.azimuthal.kernel' is missing" in str(error)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("ntasks = 2", "ntasks = 0", "defaults.resources.ntasks: must be greater than or equal to 1"),
        ("ntasks = 2", "ntasks = 'two'", "defaults.resources.ntasks: must be a valid integer"),
        ("ntasks = 2", 'partition = "a\\nb"', "newline, which would end the #SBATCH line"),
        ("ntasks = 2", 'account = "a b"', "isn't a name"),
        ("bins = 500", "bins = nan", "parameters.bins: has no JSON form"),
        ("bins = 500", "bins = 2026-01-01", "parameters.bins"),
        ('"i22" }', '"i22", metadata = { e = { mn = 1 } } }', "takes a value, a list of values, or { min"),
        ('{ beamline = "i22" }', "{}", "has no condition"),
        ('"azimuthal.sbatch.j2"', '"../other.j2"', "template"),
        ('brokers = ["localhost:61613"]', 'brokers = ["localhost"]', "'localhost' isn't host:port"),
        ('brokers = ["localhost:61613"]', "brokers = []", "no broker is named"),
        ('allowed_roots = ["data", "/other"]', "allowed_roots = []", "allowed_roots: "),
        ("[stomp]", '[gateway]\nroute = "slurm"\n\n[stomp]', "gateway.route: must be 'auto', 'pyslurm', 'rest'"),
        ("[stomp]", '[defaults.environment]\n"A B" = "x"\n\n[stomp]', "no name of an environment variable"),
    ],
)
def test_a_wrong_value_names_its_line(site: Path, old: str, new: str, complaint: str) -> None:
    error = refused(site, old, new)
    assert complaint in str(error)
    lines = {line_of(site, line) for line in new.splitlines() if line} if "\n" in new else {line_of(site, new)}
    assert any(str(error).startswith(f"{site}, line {line}: ") for line in lines)


def test_all_mistakes_are_told_at_once(site: Path) -> None:
    site.write_text(SITE.replace("ntasks = 2", "ntasks = 0").replace("queue =", "queu ="))
    with pytest.raises(InvalidSettings) as error:
        load_settings(site)
    assert len(str(error.value).splitlines()) == 3  # unknown, missing, wrong


def test_two_recipes_with_one_name_are_refused_with_both_places(site: Path) -> None:
    error = refused(site, "bins = 500", 'bins = 500\n\n[recipes.azimuthal]\nkernel = "other"')
    first, second = (n for n, line in enumerate(site.read_text().splitlines(), 1) if line == "[recipes.azimuthal]")
    assert str(error) == f"{site}: two recipes have the name 'azimuthal': line {first} and line {second}"


def test_a_table_that_stands_twice_is_refused_with_both_places(site: Path) -> None:
    error = refused(site, "bins = 500", "bins = 500\n\n[defaults.resources]\nnodes = 1")
    assert "[defaults.resources] stands twice: line 11 and line 22" in str(error)


def test_what_isnt_toml_names_its_line(site: Path) -> None:
    assert f"{site}, line 12: not TOML" in str(refused(site, "ntasks = 2", "ntasks = "))


def test_a_file_that_isnt_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"none\.toml: there is no such site file"):
        load_settings(tmp_path / "none.toml")


def test_a_file_that_isnt_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidSettings, match=r"a\.toml: the site file can't be read"):
        load_settings(tmp_path / "a.toml")


# ----------------------------------------------------------------------------------------------------- conditions


@pytest.mark.parametrize(
    ("condition", "value", "holds"),
    [
        ("AgBeh*", "AgBehenate", True), ("AgBeh*", "LaB6", False), (["a", "b"], "b", True), (["a", "b"], "c", False),
        (3, 3, True), (3, 3.0, True), (3, "3", False), (1, True, False), (True, True, True), (True, 1, False),
        ({"min": 1}, 1, True), ({"min": 1}, 0.9, False), ({"max": 2}, 2, True), ({"max": 2}, 2.1, False),
        ({"min": 1, "max": 2}, 1.5, True), ({"min": 1}, "2", False), ({"min": 0}, True, False),
        ({"min": 0}, float("nan"), False),
    ],
)  # fmt: skip
def test_a_condition_holds_for_the_values_it_names(condition: object, value: Any, holds: bool) -> None:
    assert Condition.model_validate(condition).holds(value) is holds


def test_shipped_site_files_are_found() -> None:
    assert {path.name for path in SHIPPED.glob("*.toml")} >= {"demo.toml", "embedded.toml", "saxs-beamline.toml"}


def test_a_copied_site_file_works_where_its_templates_are(tmp_path: Path) -> None:
    shutil.copytree(SHIPPED, tmp_path / "site-configs")
    shutil.copytree(SHIPPED.parent / "jobtemplates", tmp_path / "jobtemplates")
    assert load_settings(tmp_path / "site-configs" / "demo.toml").templates == tmp_path / "jobtemplates"


def test_places_of_reruns_are_below_the_runs_root_unless_the_site_says_otherwise(site: Path) -> None:
    runs = site.parent / "runs"
    reruns = load_settings(site).reruns
    assert (reruns.root, reruns.drop, reruns.at_most) == (runs, runs / ".reruns", 20)
    other = load_settings(site, {"reruns.root": "/scratch", "reruns.drop": "words", "reruns.at_most": 3}).reruns
    assert (other.root, other.drop, other.at_most) == (Path("/scratch"), site.parent / "words", 3)
    with pytest.raises(InvalidSettings, match=r"reruns\.at_most"):
        load_settings(site, {"reruns.at_most": 0})
