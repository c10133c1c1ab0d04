"""Where runs are mirrored to: the table ``[ispyb]`` of a site file. Without it nothing is."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from orchestrator.settings.doors import Seconds


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


Texts: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(_as_list)]
Rank: TypeAlias = Annotated[int, Field(ge=0, le=127)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ImportanceRanks(_Model):
    """``importanceRank`` of a run's files: the highest is the most important of its type."""

    result: Rank = 10
    report: Rank = 9
    picture: Rank = 10
    log: Rank = 10
    record: Rank = 5
    """Of ``plan.json`` and ``provenance.json``."""
    input: Rank = 10


class IspybSettings(_Model):
    """An ISPyB database on MariaDB or MySQL, and how runs stand in it."""

    url_as_written: str = Field(alias="url", min_length=1)
    """SQLAlchemy URL; ``${NAME}`` stands for an environment variable. See `Settings.ispyb_url`."""
    schema_versions: Texts = ("5.2.*",)
    """Versions of ISPyB's schema (``schemaVersion`` in ``AdminVar``) that are written to; ``*`` stands for anything."""
    match: Annotated[tuple[Literal["id", "path"], ...], BeforeValidator(_as_list), Field(min_length=1)] = ("id", "path")
    """How the data collection is found: by the id in the message, else by directory and file template."""
    id_metadata: Texts = ("ispyb_dcid", "datacollectionid")
    """Fields of the message's metadata that may have the ``dataCollectionId``."""
    file_templates: Texts = ("{name}",)
    """What ``fileTemplate`` may be for a file of this ``{name}`` (``scan_1.nxs``) and ``{stem}`` (``scan_1``)."""
    recipe_prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$", max_length=10)] = "orch-"
    """Stands before a recipe's name in ISPyB, so that it isn't taken for another program's."""
    take_requests: Texts = ()
    """Recipes that may be asked for in ISPyB."""
    request_settles_s: Seconds = 10.0
    """How old a request must be: its parameters are written after it, one by one."""
    request_age_max_h: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 24.0
    """Older ones are left alone."""
    importance: ImportanceRanks = ImportanceRanks()
    time_zone: str | None = None
    """Of the times in ISPyB, which say none; this machine's when left out."""
    timeout_s: Seconds = 10.0
    """How long ISPyB may take to answer."""
    poll_interval_s: Seconds = 2.0
    give_up_after_h: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 72.0
    """How long a data collection that isn't there is waited for."""

    @field_validator("time_zone")
    @classmethod
    def _is_known(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                ZoneInfo(value)
            except (ZoneInfoNotFoundError, ValueError) as error:
                raise ValueError(f"{value!r} is no time zone; write it like Europe/Berlin") from error
        return value

    @field_validator("file_templates")
    @classmethod
    def _have_known_fields(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for template in value:
            try:
                template.format(name="scan_1.nxs", stem="scan_1")
            except (KeyError, IndexError, ValueError, AttributeError) as error:
                raise ValueError(f"{template!r}: only {{name}} and {{stem}} can stand in braces") from error
        return value
