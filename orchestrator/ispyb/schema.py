"""Whether an ISPyB can be written to: its schema's version, its columns, and what this program may do with them.

`information_schema` is asked instead of reflecting tables: it shows what columns hold and what may be done with them to
a user who was granted no more than those columns.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Connection, select, text
from sqlalchemy.exc import DBAPIError

from orchestrator.errors import InvalidSettings, IspybUnavailable
from orchestrator.ispyb.fitting import TextColumn
from orchestrator.ispyb.tables import ADMIN_VAR, OPTIONAL, USED, rights

_VERSION = "schemaVersion"

_COLUMNS = text(
    "SELECT table_name, column_name, character_maximum_length, character_octet_length, character_set_name, data_type, "
    "privileges FROM information_schema.columns WHERE table_schema = DATABASE()"
)

_OCTETS_PER_CHARACTER = 4


@dataclass(frozen=True, kw_only=True)
class IspybSchema:
    """What is known of an ISPyB's schema."""

    version: str | None
    """None where it isn't told."""
    text_columns: Mapping[Column[str], TextColumn]
    there: Set[Column[Any]]
    """The columns that this program uses and finds."""
    lacking: Mapping[str, Sequence[str]]
    """Table -> what it lacks, each as ``column comments`` or ``INSERT (comments, recipe)``."""

    def check(self, versions: Collection[str], address: str) -> None:
        """Refuse an ISPyB that can't be written to.

        Raises
        ------
        InvalidSettings
            When its schema's version isn't one of those that the site file names.
        IspybUnavailable
            When columns or rights are missing.
        """
        if not any(fnmatch.fnmatchcase(self.version or "", wanted) for wanted in versions):
            found = f"schema {self.version}" if self.version else f"no {_VERSION} in AdminVar"
            raise InvalidSettings(
                f"{address} has {found}, the site file wants {' or '.join(versions)}: nothing is mirrored",
                remedy="see `orchestrator ispyb check`; if nothing else is wrong, add this version to "
                "ispyb.schema_versions",
            )
        if self.lacking:
            lacks = "; ".join(f"{table}: {', '.join(what)}" for table, what in self.lacking.items())
            raise IspybUnavailable(
                f"{address} lacks what is needed to mirror runs: {lacks}",
                remedy="grant it to this user; docs/reference/ispyb.md has the statements",
            )


def read_schema(connection: Connection) -> IspybSchema:
    """Look at an ISPyB's schema."""
    found = {(row.table_name.lower(), row.column_name.lower()): row for row in connection.execute(_COLUMNS)}
    there: set[Column[Any]] = set()
    text_columns: dict[Column[str], TextColumn] = {}
    lacking: dict[str, list[str]] = {}
    for table in USED:
        missing_rights: dict[str, list[str]] = {}
        for column in table.c:
            row = found.get((table.name.lower(), column.name.lower()))
            missing = set() if row is None else rights(column) - {right.upper() for right in row.privileges.split(",")}
            if column in OPTIONAL and (row is None or missing):
                continue
            if row is None:
                lacking.setdefault(table.name, []).append(f"column {column.name}, or any right to it")
                continue
            for right in missing:
                missing_rights.setdefault(right, []).append(column.name)
            there.add(column)
            if row.character_set_name is not None:
                text_columns[column] = _text_column(row)
        if missing_rights:
            lacking.setdefault(table.name, []).extend(_worded(missing_rights))
    return IspybSchema(version=_version(connection), text_columns=text_columns, there=there, lacking=lacking)


def _worded(missing: Mapping[str, Sequence[str]]) -> Iterator[str]:
    for right in sorted(missing):
        yield f"{right} ({', '.join(missing[right])})"


def _text_column(row: Any) -> TextColumn:
    length = int(row.character_maximum_length)
    if row.data_type.lower().endswith("text"):  # these are limited by bytes
        length = int(row.character_octet_length) // _OCTETS_PER_CHARACTER
    return TextColumn(length=length, charset=row.character_set_name)


def _version(connection: Connection) -> str | None:
    wanted = select(ADMIN_VAR.c.value).where(ADMIN_VAR.c.name == _VERSION).limit(1)
    try:
        version: str | None = connection.scalar(wanted)
    except DBAPIError as error:
        if error.connection_invalidated or getattr(error.orig, "args", (None,))[0] not in {1142, 1143, 1146}:
            raise
        connection.rollback()  # it may not be asked, or isn't there: nobody tells
        return None
    return version
