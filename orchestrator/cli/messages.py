"""``orchestrator messages``: what came in, and what was made of it."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from orchestrator.cli.common import JsonOption, SiteOption, out, print_json, says_errors
from orchestrator.provenance import MessageKind, MessageRecord, MessageState
from orchestrator.service import open_store
from orchestrator.settings import load_settings


@says_errors
def messages(
    site: SiteOption,
    state: Annotated[MessageState | None, typer.Option(help="Only messages in this state.")] = None,
    kind: Annotated[MessageKind | None, typer.Option(help="Only messages of this kind.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """List messages, newest first: accepted, rejected (with the reason), repeated.

    `--state rejected` shows what couldn't be understood; its body also stands in the dead-letter queue or folder.
    """
    with open_store(load_settings(site)) as store:
        records = store.messages(state=state, kind=kind, limit=limit)
    if as_json:
        print_json([_as_json(record) for record in records])
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("id", "received", "kind", "state", "repeats", "collection", "what came of it"):
        table.add_column(heading, overflow="fold")
    for record in records:
        table.add_row(
            str(record.message_id),
            record.raw.received_at.astimezone().strftime("%Y-%m-%d %H:%M:%S"),
            record.kind,
            record.state,
            str(record.repeats or ""),
            record.uid or "",
            (record.rejection or record.note).replace("[", "\\["),
        )
    out.print(table if records else "No messages.")


def _as_json(record: MessageRecord) -> dict[str, object]:
    return {
        "id": record.message_id,
        "received_at": record.raw.received_at,
        "source": record.raw.source,
        "headers": dict(record.raw.headers),
        "sha256": record.raw.sha256,
        "body": record.raw.body.decode(errors="replace"),
        "kind": record.kind,
        "state": record.state,
        "repeats": record.repeats,
        "uid": record.uid,
        "rejection": record.rejection,
        "note": record.note,
    }
