"""What a site file may say, as frozen models. Unknown keys are refused.

These models check each value by itself; reading the file, overrides and the wording of errors are in `loading`. Paths
come out absolute: relative ones are taken from the site file's folder.
"""

from __future__ import annotations

import difflib
import fnmatch
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated, Literal, TypeAlias
from urllib.parse import quote_plus

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationInfo,
    field_validator,
    model_validator,
)

from orchestrator.errors import InvalidSettings
from orchestrator.records import Scalar
from orchestrator.sbatch_options import checked
from orchestrator.settings.doors import Seconds, SpoolSettings, StompSettings
from orchestrator.settings.facility import FacilitySettings
from orchestrator.settings.ispyb import IspybSettings
from orchestrator.settings.paths import SitePath
from orchestrator.settings.rest import RestSettings, UserName
from orchestrator.settings.retries import RetriesRequest


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str | bool | int | float) else value


def _json_value(value: JsonValue) -> JsonValue:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError as error:
        raise ValueError("has no JSON form: not a finite number") from error
    return value


def _environment_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError(f"{name!r} is no name of an environment variable")
    return name


Name: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=40)]
TemplateName: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*\.j2$")]
EnvironmentName: TypeAlias = Annotated[str, AfterValidator(_environment_name)]
Texts: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(_as_list)]
ParameterValue: TypeAlias = Annotated[JsonValue, AfterValidator(_json_value)]
Launcher: TypeAlias = Literal["mpirun", "srun", "none"]


MAX_TASKS = 1000
"""Most tasks of a job array: SLURM's MaxArraySize is 1001 by default, and task numbers must be below it less one."""


class Model(BaseModel):
    """Frozen, and strict about what it knows."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class GatewaySettings(Model):
    """The route to SLURM."""

    route: Literal["auto", "pyslurm", "rest", "cli", "local"] = "auto"
    """``auto`` takes the best that answers, and this machine only where there is no SLURM."""
    rest: RestSettings | None = None
    pyslurm_python: SitePath | None = None
    """The interpreter that has pyslurm; the service's own when left out."""
    poll_interval_s: Seconds = 1.5
    """Shortest time between two questions about all active jobs; it grows when an answer takes long."""
    poll_interval_max_s: Seconds = 60.0
    submit_deadline_s: Seconds = 60.0
    """How long one call may take before its outcome counts as unknown."""
    absence_grace_s: Seconds = 30.0
    """How long after a submission without an answer a job that can't be found counts as absent."""
    vanish_after_s: Seconds = 600.0
    """How long nobody may know a job before its run is called unknown."""
    forgive_out_of_memory: bool = False
    """Whether OUT_OF_MEMORY is no failure where the script ended with 0 and the kernel accounted for every frame."""
    local_jobs_max: int = Field(default=1, ge=1)
    """How many jobs the local route runs at once; the others wait."""
    local_state: SitePath
    """Where the local route keeps its jobs; ``.local-jobs`` below the runs root when left out."""

    @model_validator(mode="after")
    def _rest_is_described(self) -> GatewaySettings:
        if self.route == "rest" and self.rest is None:
            raise ValueError('route = "rest" needs a table [gateway.rest] with url or socket')
        return self


class RerunSettings(Model):
    """Runs that people make again, with sbatch or through the service."""

    root: SitePath
    """Where the directories of those made with sbatch go; the runs root when left out."""
    drop: SitePath
    """Where they leave word for the service; ``.reruns`` below the runs root when left out."""
    at_most: int = Field(default=20, ge=1)
    """How many runs that are made again through the service may have a job at the same time."""
    compare_interval_s: Seconds = 60.0
    """How often SLURM's jobs of those made with sbatch are compared with the store."""


class ResourceRequest(Model):
    """What a job asks of SLURM; fields left out are taken from ``[defaults.resources]``, then from `Resources`."""

    ntasks: int | None = Field(default=None, ge=1)
    nodes: int | None = Field(default=None, ge=1)
    cpus_per_task: int | None = Field(default=None, ge=1)
    memory_mb: int | None = Field(default=None, ge=1)
    time_limit_min: int | None = Field(default=None, ge=1)
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    exclusive: bool | None = None
    requeue: bool | None = None
    exclude: str | None = None

    @field_validator("partition", "account", "qos", "constraint", "reservation", "exclude")
    @classmethod
    def _fits_its_option(cls, value: str | None, info: ValidationInfo) -> str | None:
        return value if value is None else checked(str(info.field_name), value)


class Condition(Model):
    """What a metadata field must be: one of some values (text may have ``*``), or a number within bounds."""

    one_of: tuple[bool | int | float | str, ...] = ()
    min: float | None = None
    max: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_value(cls, value: object) -> object:
        if isinstance(value, Mapping):
            if not value or set(value) - {"min", "max"}:
                raise ValueError("takes a value, a list of values, or { min = …, max = … }")
            return value
        values = _as_list(value)
        if not isinstance(values, list) or not values:
            raise ValueError("takes a value, a list of values, or { min = …, max = … }")
        return {"one_of": values}

    def holds(self, value: Scalar) -> bool:
        """Whether a message's value meets the condition."""
        if self.one_of:
            return any(_same(wanted, value) for wanted in self.one_of)
        if isinstance(value, bool | str):
            return False
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)

    def __str__(self) -> str:
        if self.one_of:
            return " or ".join(repr(value) for value in self.one_of)
        lower = "" if self.min is None else f"from {self.min}"
        upper = "" if self.max is None else f"up to {self.max}"
        return f"{lower} {upper}".strip()


def _same(wanted: Scalar, value: Scalar) -> bool:
    if isinstance(wanted, str) and isinstance(value, str):
        return fnmatch.fnmatchcase(value, wanted)
    return isinstance(wanted, bool) == isinstance(value, bool) and wanted == value


class Match(Model):
    """Which collections a recipe wants: all conditions must hold. Text may have ``*``, ``?`` and ``[…]``."""

    beamline: Texts | None = None
    detector: Texts | None = None
    scan_type: Texts | None = None
    visit: Texts | None = None
    metadata: Mapping[str, Condition] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _has_a_condition(self) -> Match:
        if not self.model_fields_set:
            raise ValueError('has no condition; write beamline = "*" for every collection')
        return self


class ArrayRequest(Model):
    """One run as a job array: a task for each value of a parameter."""

    parameter: str
    values: Annotated[tuple[ParameterValue, ...], Field(min_length=1)]
    at_most: int | None = Field(default=None, ge=1)
    """How many tasks may run at once."""

    @field_validator("values")
    @classmethod
    def _fit_into_an_array(cls, values: tuple[JsonValue, ...]) -> tuple[JsonValue, ...]:
        if len(values) > MAX_TASKS:
            raise ValueError(f"has {len(values)} values; SLURM takes {MAX_TASKS} tasks (MaxArraySize); use two recipes")
        return values


class Recipe(Model):
    """One way to process the collections that match."""

    enabled: bool = True
    match: Match
    kernel: Name
    template: TemplateName
    launcher: Launcher | None = None
    launcher_options: tuple[str, ...] | None = None
    parameters: Mapping[str, ParameterValue] = Field(default_factory=dict)
    from_metadata: Mapping[str, str] = Field(default_factory=dict)
    """Parameter -> the message's metadata field that sets it, where the message has that field."""
    resources: ResourceRequest = ResourceRequest()
    retries: RetriesRequest = RetriesRequest()
    after: Annotated[tuple[Name, ...], BeforeValidator(_as_list)] = ()
    """Recipes whose runs for the same collection have to succeed before this one's begins."""
    array: ArrayRequest | None = None
    modules: tuple[str, ...] | None = None
    environment: Mapping[EnvironmentName, str] = Field(default_factory=dict)
    stall_timeout_s: Seconds | None = None
    appear_timeout_s: Seconds | None = None
    submit_as: UserName | None = None
    """Whose jobs they are to be; the service's own user when left out."""


class Defaults(Model):
    """What recipes needn't repeat."""

    launcher: Launcher = "mpirun"
    launcher_options: tuple[str, ...] = ()
    parameters: Mapping[Name, Mapping[str, ParameterValue]] = Field(default_factory=dict)
    """Kernel -> its parameters at this site."""
    resources: ResourceRequest = ResourceRequest()
    retries: RetriesRequest = RetriesRequest()
    modules: tuple[str, ...] = ()
    environment: Mapping[EnvironmentName, str] = Field(default_factory=dict)
    stall_timeout_s: Seconds = 300.0
    appear_timeout_s: Seconds = 120.0


def _near(name: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


class Settings(Model):
    """A site file, read and checked."""

    name: Name
    database_as_written: str = Field(alias="database", min_length=1)
    """SQLAlchemy URL, in which ``${NAME}`` stands for an environment variable; see `database`."""
    runs_root: SitePath
    allowed_roots: Annotated[tuple[SitePath, ...], Field(min_length=1)]
    """Input files must lie below one of these, links resolved."""
    templates: SitePath
    python: SitePath = Path(sys.executable)
    """The interpreter that runs the kernel in the job; it must exist on the compute nodes."""
    gateway: GatewaySettings
    reruns: RerunSettings
    spool: SpoolSettings | None = None
    stomp: StompSettings | None = None
    facility: FacilitySettings | None = None
    ispyb: IspybSettings | None = None
    """Where runs are mirrored to; nowhere when left out."""
    defaults: Defaults = Defaults()
    recipes: Mapping[Name, Recipe]

    source: Path = Field(exclude=True)
    """The site file."""
    overridden: frozenset[str] = Field(default=frozenset(), exclude=True)
    """Dotted keys that were set from outside the file."""

    @model_validator(mode="before")
    @classmethod
    def _places_below_runs_root(cls, content: dict[str, object]) -> dict[str, object]:
        runs_root = content.get("runs_root")
        if not isinstance(runs_root, str):
            return content
        places = {
            "gateway": {"local_state": f"{runs_root}/.local-jobs"},
            "reruns": {"root": runs_root, "drop": f"{runs_root}/.reruns"},
        }
        given = {table: content.get(table, {}) for table in places}
        filled = {table: places[table] | dict(told) for table, told in given.items() if isinstance(told, Mapping)}
        return content | filled

    @model_validator(mode="after")
    def _chains_end(self) -> Settings:
        for name, recipe in self.recipes.items():
            for other in recipe.after:
                if other not in self.recipes:
                    raise ValueError(f"recipes.{name}.after: there is no recipe {other!r}{_near(other, self.recipes)}")
        try:
            TopologicalSorter({name: recipe.after for name, recipe in self.recipes.items()}).prepare()
        except CycleError as error:
            circle = list(reversed(error.args[1]))
            raise ValueError(f"recipes.{circle[0]}.after: a circle: {' after '.join(circle)}") from error
        return self

    @model_validator(mode="after")
    def _requests_name_recipes(self) -> Settings:
        for name in () if self.ispyb is None else self.ispyb.take_requests:
            if name not in self.recipes:
                raise ValueError(f"ispyb.take_requests: there is no recipe {name!r}{_near(name, self.recipes)}")
        return self

    @property
    def database(self) -> str:
        """SQLAlchemy URL; a relative SQLite file counts from the site file's folder, ``${NAME}`` is filled in.

        Passwords don't belong into site files. They are looked up here and not when the file is read, so that those
        who have no access to the database can still check a site file or plan with it.

        Raises
        ------
        InvalidSettings
            When an environment variable isn't set.
        """
        url = self._filled_in("database", self.database_as_written)
        prefix, found, file = url.partition("sqlite:///")
        if prefix or not found or not file or file.startswith(("/", ":memory:")):
            return url
        return f"{found}{os.path.normpath(self.source.parent / file)}"

    @property
    def ispyb_url(self) -> str:
        """SQLAlchemy URL of ISPyB, ``${NAME}`` filled in; empty without a table ``[ispyb]``.

        Raises
        ------
        InvalidSettings
            When an environment variable isn't set.
        """
        return "" if self.ispyb is None else self._filled_in("ispyb.url", self.ispyb.url_as_written)

    def _filled_in(self, key: str, text: str) -> str:
        def value_of(match: re.Match[str]) -> str:
            if match[1] not in os.environ:
                raise InvalidSettings(
                    f"{self.source}: {key}: the environment variable {match[1]} isn't set",
                    remedy=f"export {match[1]}=…",
                )
            return quote_plus(os.environ[match[1]])

        return re.sub(r"\$\{(\w+)\}", value_of, text)

    def place(self, key: str) -> str:
        """Return where a dotted key was decided, e.g. ``demo.toml: recipes.azimuthal.parameters.bins``."""
        outside = any(key == name or key.startswith(f"{name}.") for name in self.overridden)
        return f"override: {key}" if outside else f"{self.source.name}: {key}"
