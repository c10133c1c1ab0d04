"""Column types that mean the same on SQLite, PostgreSQL and MariaDB.

Values go in and come out as Python values (aware UTC times, JSON values, text); no type here ever lets a server
shorten or reinterpret one. Migrations use these types too: what one of them stores is never changed, a new type is
made instead.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, DateTime, Dialect, Integer, LargeBinary, String, Text
from sqlalchemy.dialects import mysql
from sqlalchemy.types import TypeDecorator, TypeEngine

from orchestrator.errors import InvalidInput
from orchestrator.records import Json

_MARIADB = ("mysql", "mariadb")

RowId = BigInteger().with_variant(Integer(), "sqlite")
"""Key that the database counts up; SQLite does so for INTEGER only."""

Body = LargeBinary().with_variant(mysql.LONGBLOB(), *_MARIADB)
"""Bytes as they came; MariaDB's BLOB would end at 64 KiB."""


def storable(text: str) -> str:
    r"""Return `text` with what no database takes (lone surrogates, NUL) written out as ``\udcff`` and ``\x00``."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


class UtcDateTime(TypeDecorator[datetime]):
    """A moment to the microsecond: aware in Python, UTC in the database."""

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name in _MARIADB:
            return dialect.type_descriptor(mysql.DATETIME(fsp=6))
        return dialect.type_descriptor(DateTime(timezone=dialect.name == "postgresql"))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone")
        utc = value.astimezone(UTC)
        return utc if dialect.name == "postgresql" else utc.replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Name(TypeDecorator[str]):
    """Short text that is searched for: compared byte by byte, and refused rather than cut when it is too long."""

    impl = String
    cache_ok = True

    def __init__(self, length: int = 255) -> None:
        super().__init__(length)
        self.length = length

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        collation = "C" if dialect.name == "postgresql" else None
        return dialect.type_descriptor(String(self.length, collation=collation))

    def process_bind_param(self, value: str | None, _dialect: Dialect) -> str | None:
        if value is None:
            return None
        text = storable(value)
        if len(text) > self.length:
            raise InvalidInput(
                f"{text[:40]!r}… has {len(text)} characters, the database takes {self.length}",
                remedy="use a shorter name",
            )
        return text


class LongText(TypeDecorator[str]):
    """Text of any length."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(mysql.LONGTEXT() if dialect.name in _MARIADB else Text())

    def process_bind_param(self, value: str | None, _dialect: Dialect) -> str | None:
        return None if value is None else storable(value)


class JsonText(TypeDecorator[Json]):
    r"""A JSON value as canonical text (sorted keys, ASCII), so that equality is the same question on every database.

    The databases' own JSON types aren't used: PostgreSQL's refuse comparison or ``\u0000``, MariaDB's is text anyway.
    """

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(mysql.LONGTEXT() if dialect.name in _MARIADB else Text())

    def process_bind_param(self, value: Json, _dialect: Dialect) -> str | None:
        return None if value is None else json.dumps(value, sort_keys=True, separators=(",", ":"))

    def process_result_value(self, value: str | None, _dialect: Dialect) -> Json:
        if value is None:
            return None
        decoded: Json = json.loads(value)
        return decoded
