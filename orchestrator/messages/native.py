"""The native documents, as pydantic models: what a collection-start and a collection-end message may say.

The JSON Schema that is published comes from these models, so the schema and the check can't disagree. Other modules see
only the records; the models stay in here.
"""

from __future__ import annotations

import math
import unicodedata
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, StringConstraints, WithJsonSchema

from orchestrator.records import CollectionEnd, CollectionOutcome, CollectionStart, Json, Scalar

START_SCHEMA = "orchestrator/collection-start/1"
END_SCHEMA = "orchestrator/collection-end/1"

_MAX_FRAMES = 1_000_000_000
_MAX_METADATA = 1000
_MAX_METADATA_TEXT = 4096
_INT64 = 2**63
_YEARS = range(1990, 2200)
# Control characters, lone surrogates (they can't be stored as UTF-8), line and paragraph separators.
_REFUSED_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})


def _plain_text(text: str) -> str:
    for position, character in enumerate(text):
        if unicodedata.category(character) in _REFUSED_CATEGORIES:
            raise ValueError(f"has the control character U+{ord(character):04X} at position {position}")
    return text


def _absolute_file(text: str) -> str:
    if not text.startswith("/") or text.endswith("/"):
        raise ValueError("should be the absolute path of a file")
    return text


def _absolute_dataset(text: str) -> str:
    if not text.startswith("/") or any(part in {"", ".", ".."} for part in text.split("/")[1:]):
        raise ValueError("should be an absolute HDF5 path such as /entry/data/data")
    return text


def _utc(text: str) -> str:
    # The pattern has been checked; this finds the 30th of February.
    if datetime.fromisoformat(text).year not in _YEARS:
        raise ValueError(f"should lie in the years {_YEARS.start} to {_YEARS.stop - 1}")
    return text


def _scalar(value: object) -> Scalar:
    if isinstance(value, str):
        if len(value) > _MAX_METADATA_TEXT:
            raise ValueError(f"should have at most {_MAX_METADATA_TEXT} characters")
        return _plain_text(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("should be finite")
    if isinstance(value, int) and not -_INT64 <= value < _INT64:
        raise ValueError("should fit 64 bits")
    if isinstance(value, bool | int | float):
        return value
    raise ValueError("should be a string, a number or a boolean")


_Identifier = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@+-]*$", max_length=128)]
_Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
_SpacedName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9 ._+-]*[A-Za-z0-9._+-])?$", max_length=64)
]
_File = Annotated[
    str,
    StringConstraints(min_length=2, max_length=4000),
    AfterValidator(_plain_text),
    AfterValidator(_absolute_file),
    Field(json_schema_extra={"pattern": "^/(.*[^/])$"}),
]
_Dataset = Annotated[
    str,
    StringConstraints(min_length=2, max_length=1024),
    AfterValidator(_plain_text),
    AfterValidator(_absolute_dataset),
    Field(json_schema_extra={"pattern": "^(/[^/]+)+$"}),
]
_Time = Annotated[
    str,
    StringConstraints(
        pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})$"
    ),
    AfterValidator(_utc),
    Field(json_schema_extra={"format": "date-time"}),
]
_MetadataName = Annotated[str, StringConstraints(min_length=1, max_length=128), AfterValidator(_plain_text)]
_MetadataValue = Annotated[
    Any,
    PlainValidator(_scalar),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "maxLength": _MAX_METADATA_TEXT},
                {"type": "integer", "minimum": -_INT64, "maximum": _INT64 - 1},
                {"type": "number"},
                {"type": "boolean"},
            ]
        }
    ),
]


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text).astimezone(UTC)


def _text(time: datetime | None) -> str | None:
    return None if time is None else time.astimezone(UTC).isoformat()


class StartDocument(BaseModel):
    """A detector has begun to write frames into an HDF5 file."""

    model_config: ClassVar[ConfigDict] = ConfigDict(strict=True, title="Collection start")

    schema_id: Literal["orchestrator/collection-start/1"] = Field(
        alias="schema", description="Which document this is, and its version."
    )
    uid: _Identifier = Field(
        description="The collection's identity at the facility; its end message carries the same one. Unique for good.",
        examples=["5f0c9c0e-8a57-4a3f-9d0f-3f6f2f1f7a11", "i22-774821"],
    )
    beamline: _Name = Field(description="The beamline or instrument, as the site file spells it.", examples=["i22"])
    detector: _SpacedName = Field(description="The detector, as the site file spells it.", examples=["Pilatus3 X 2M"])
    file: _File = Field(
        description="Absolute path of the HDF5 file (or NeXus master) as compute nodes see it. It may appear later.",
        examples=["/data/i22/2026/sm12345-1/i22-774821.nxs"],
    )
    dataset: _Dataset = Field(
        description="Absolute path of the frames inside the file; the last two axes are a frame's y and x.",
        examples=["/entry/data/data"],
    )
    visit: _Name | None = Field(
        default=None, description="Visit, proposal or experiment session.", examples=["sm12345-1"]
    )
    scan_type: _SpacedName | None = Field(
        default=None, description="Kind of scan; recipes select by it.", examples=["time-series"]
    )
    frames_expected: int | None = Field(
        default=None,
        ge=1,
        le=_MAX_FRAMES,
        description="Number of frames announced; null when not known.",
        examples=[200],
    )
    started_at: _Time | None = Field(
        default=None,
        description="When the detector was armed: ISO 8601 (RFC 3339) with seconds and time zone.",
        examples=["2026-11-22T23:40:00.125+00:00"],
    )
    metadata: dict[_MetadataName, _MetadataValue] = Field(
        default_factory=dict,
        max_length=_MAX_METADATA,
        description="Anything that recipes may select by or hand to a kernel: strings, numbers, booleans. "
        "Write the unit into the name.",
        examples=[{"sample": "AgBh", "energy_keV": 12.4, "sample_detector_distance_m": 3.1, "calibration": True}],
    )

    def record(self, ignored: tuple[str, ...]) -> CollectionStart:
        """Return what the document says, in the program's own form."""
        return CollectionStart(
            uid=self.uid,
            beamline=self.beamline,
            detector=self.detector,
            file=Path(self.file),
            dataset=self.dataset,
            visit=self.visit,
            scan_type=self.scan_type,
            frames_expected=self.frames_expected,
            started_at=_time(self.started_at),
            metadata=self.metadata,
            ignored=ignored,
        )


class EndDocument(BaseModel):
    """A detector has stopped writing frames."""

    model_config: ClassVar[ConfigDict] = ConfigDict(strict=True, title="Collection end")

    schema_id: Literal["orchestrator/collection-end/1"] = Field(
        alias="schema", description="Which document this is, and its version."
    )
    uid: _Identifier = Field(description="The uid of the collection's start message.", examples=["i22-774821"])
    outcome: Literal["finished", "aborted", "failed"] = Field(
        description="How it ended at the detector: finished as planned, aborted by people, or failed.",
        examples=["finished"],
    )
    frames_written: int | None = Field(
        default=None,
        ge=0,
        le=_MAX_FRAMES,
        description="Number of frames in the file; no more are waited for. Null when not known.",
        examples=[200],
    )
    ended_at: _Time | None = Field(
        default=None,
        description="When the last frame was written: ISO 8601 (RFC 3339) with seconds and time zone.",
        examples=["2026-11-22T23:40:10.125+00:00"],
    )

    def record(self, ignored: tuple[str, ...]) -> CollectionEnd:
        """Return what the document says, in the program's own form."""
        return CollectionEnd(
            uid=self.uid,
            outcome=CollectionOutcome(self.outcome),
            frames_written=self.frames_written,
            ended_at=_time(self.ended_at),
            ignored=ignored,
        )


Document = StartDocument | EndDocument

DOCUMENTS: dict[str, type[StartDocument] | type[EndDocument]] = {START_SCHEMA: StartDocument, END_SCHEMA: EndDocument}
"""The schemas this version understands."""


def start_fields(start: CollectionStart) -> dict[str, Json]:
    """Return the start document's fields; what isn't known is left out."""
    fields: dict[str, Json] = {
        "schema": START_SCHEMA,
        "uid": start.uid,
        "beamline": start.beamline,
        "detector": start.detector,
        "file": str(start.file),
        "dataset": start.dataset,
        "visit": start.visit,
        "scan_type": start.scan_type,
        "frames_expected": start.frames_expected,
        "started_at": _text(start.started_at),
        "metadata": dict(start.metadata),
    }
    return {name: value for name, value in fields.items() if value is not None}


def end_fields(end: CollectionEnd) -> dict[str, Json]:
    """Return the end document's fields; what isn't known is left out."""
    fields: dict[str, Json] = {
        "schema": END_SCHEMA,
        "uid": end.uid,
        "outcome": str(end.outcome),
        "frames_written": end.frames_written,
        "ended_at": _text(end.ended_at),
    }
    return {name: value for name, value in fields.items() if value is not None}
