"""Which of ISPyB's data collections a run is of: by the id in the message, or by directory and file template."""

from __future__ import annotations

import re
from pathlib import Path

from sqlalchemy import Connection, select

from orchestrator.errors import InvalidInput, NotFound
from orchestrator.ispyb.tables import DATA_COLLECTION
from orchestrator.records import CollectionStart
from orchestrator.settings.ispyb import IspybSettings


def find_data_collection(connection: Connection, start: CollectionStart, settings: IspybSettings) -> int:
    """Return the id of a collection's data collection: the newest one where several are of the same file.

    Raises
    ------
    InvalidInput
        When the message's id is no id.
    NotFound
        When there is none, or none yet.
    """
    if "id" in settings.match and (named := _named(start, settings)) is not None:
        return _existing(connection, *named)
    if "path" not in settings.match:
        raise NotFound(
            f"its message has no data collection's id: no metadata {' or '.join(settings.id_metadata)}",
            remedy='send one, or add "path" to ispyb.match',
        )
    return _by_path(connection, start.file, settings)


def _named(start: CollectionStart, settings: IspybSettings) -> tuple[str, int] | None:
    for name in settings.id_metadata:
        value = start.metadata.get(name)
        if value is None:
            continue
        text = str(value).strip()
        if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,18}", text):
            raise InvalidInput(f"metadata {name} is {value!r}, no dataCollectionId", remedy="correct the message")
        return name, int(text)
    return None


def _existing(connection: Connection, name: str, wanted: int) -> int:
    key = DATA_COLLECTION.c.dataCollectionId
    if connection.scalar(select(key).where(key == wanted)) is None:
        raise NotFound(f"ISPyB has no data collection {wanted} (metadata {name})", remedy="it is looked for again")
    return wanted


def _by_path(connection: Connection, file: Path, settings: IspybSettings) -> int:
    columns = DATA_COLLECTION.c
    directory = str(file.parent)
    wanted = (
        select(columns.dataCollectionId, columns.fileTemplate)
        .where(columns.imageDirectory.in_([directory, f"{directory}/"]))
        .order_by(columns.dataCollectionId.desc())
    )
    names = {template.format(name=file.name, stem=file.stem) for template in settings.file_templates}
    for row in connection.execute(wanted):
        if row.fileTemplate and any(stands_for(row.fileTemplate, name) for name in names):
            found: int = row.dataCollectionId
            return found
    raise NotFound(
        f"ISPyB has no data collection with imageDirectory {directory}/ and fileTemplate {' or '.join(sorted(names))}",
        remedy="it is looked for again",
    )


def stands_for(template: str, name: str) -> bool:
    """Return whether a file template is this name; ``#`` stands for a digit."""
    return re.fullmatch(re.escape(template).replace(r"\#", "[0-9]"), name) is not None
