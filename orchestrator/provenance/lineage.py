"""Which run made a file, and which ones read it: found by the file's path, or by its digest wherever it lies now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sqlalchemy import ColumnElement, delete, or_, select
from sqlalchemy.orm import Session

from orchestrator.provenance.columns import storable
from orchestrator.provenance.database import Database
from orchestrator.provenance.rows import InputIdentity, UsedFile, container_of
from orchestrator.provenance.tables import AttemptRow, OutputRow, UsedFileRow
from orchestrator.records import Json, sha256_of

IMAGE = "container image"
"""Role of the image that a run's job ran in."""

_STATE = ("real_path", "size", "mtime_ns", "inode")
"""What changes when an image's file does."""


class LineageStore(Database):
    """The store's part that deals with files."""

    def makers_of(self, path: Path, sha256: str | None = None) -> Sequence[UsedFile]:
        """Return the runs that made a file, the newest first: by this path, or one with this digest."""
        wanted = select(OutputRow).where(_same(OutputRow, path, sha256))
        with self.reading() as session:
            return [
                UsedFile(run_id=row.run_id, role=row.kind, path=Path(row.path), sha256=row.sha256)
                for row in session.scalars(wanted.order_by(OutputRow.id.desc()))
            ]

    def users_of(self, path: Path, sha256: str | None = None) -> Sequence[UsedFile]:
        """Return the runs that read a file, the oldest first: by this path, or one with this digest."""
        wanted = select(UsedFileRow).where(_same(UsedFileRow, path, sha256))
        with self.reading() as session:
            return [_used(row) for row in session.scalars(wanted.order_by(UsedFileRow.id))]

    def used_by(self, run_id: str) -> Sequence[UsedFile]:
        """Return the files that a run read."""
        wanted = select(UsedFileRow).where(UsedFileRow.run_id == run_id).order_by(UsedFileRow.id)
        with self.reading() as session:
            return [_used(row) for row in session.scalars(wanted)]

    def image_digest(self, path: Path, found: Mapping[str, Json]) -> str | None:
        """Return the digest of a container image that a run has recorded already; None where none has.

        Parameters
        ----------
        path
            With links resolved.
        found
            What the file is now: of another one the digest isn't known.
        """
        same = (
            UsedFileRow.path_sha256 == path_digest(path),
            UsedFileRow.role == IMAGE,
            UsedFileRow.sha256.is_not(None),
        )
        newest = select(UsedFileRow.run_id).where(*same).order_by(UsedFileRow.id.desc()).limit(1)
        wanted = select(AttemptRow.software).where(AttemptRow.run_id == newest.scalar_subquery())
        with self.reading() as session:
            images = [container_of(software) for software in session.scalars(wanted)]
        digests = [one.get("sha256") for one in images if all(one.get(name) == found.get(name) for name in _STATE)]
        return next((digest for digest in digests if isinstance(digest, str)), None)


def keep_image(session: Session, run_id: str, software: Json) -> None:
    """Keep inside a transaction in which container image a run's job ran, as far as it has a file."""
    image = container_of(software)
    path, digest = image.get("real_path"), image.get("sha256")
    if not isinstance(path, str):
        return
    same = (UsedFileRow.run_id == run_id, UsedFileRow.role == IMAGE, UsedFileRow.path_sha256 == path_digest(path))
    session.execute(delete(UsedFileRow).where(*same))
    sha256 = digest if isinstance(digest, str) else None
    session.add(UsedFileRow(run_id=run_id, role=IMAGE, path=path, path_sha256=path_digest(path), sha256=sha256))


def path_digest(path: Path | str) -> str:
    """Return what a path is found by; databases don't index text of any length."""
    return sha256_of(storable(str(path)))


def keep_used_files(session: Session, run_id: str, identity: InputIdentity) -> None:
    """Keep inside a transaction which files a run read, in place of what was known of them before."""
    named = dict(_files_of(identity))
    for role, path in named:
        session.execute(
            delete(UsedFileRow).where(
                UsedFileRow.run_id == run_id, UsedFileRow.role == role, UsedFileRow.path_sha256 == path_digest(path)
            )
        )
    session.add_all(
        UsedFileRow(run_id=run_id, role=role, path=path, path_sha256=path_digest(path), sha256=sha256)
        for (role, path), sha256 in named.items()
    )


def _files_of(identity: InputIdentity) -> Iterator[tuple[tuple[str, str], str | None]]:
    yield ("input", str(identity.real_path)), None
    for source in identity.sources:
        yield ("source", str(source.get("path"))), None
    for file in identity.files:
        digest = file.get("sha256")
        path = file.get("real_path") or file.get("path")
        yield (str(file.get("parameter")), str(path)), digest if isinstance(digest, str) else None


def _same(table: type[OutputRow | UsedFileRow], path: Path, sha256: str | None) -> ColumnElement[bool]:
    found = table.path_sha256 == path_digest(path)
    return found if sha256 is None else or_(found, table.sha256 == sha256)


def _used(row: UsedFileRow) -> UsedFile:
    return UsedFile(run_id=row.run_id, role=row.role, path=Path(row.path), sha256=row.sha256)
