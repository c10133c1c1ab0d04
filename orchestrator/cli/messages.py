"""``orchestrator messages``: what came in, and what was made of it."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli.common import JsonOption, SiteOption, out, print_json, print_table, says_errors
from orchestrator.provenance import MessageKind, MessageRecord, MessageState
from orchestrator.service import open_store
from orchestrator.settings import load_settings


@says_errors
def messages(
    *,
    site: SiteOption,
    state: Annotated[
        MessageState | None, typer.Option(metavar="STATE", help=f"Only in this state: {', '.join(MessageState)}.")
    ] = None,
    kind: Annotated[
        MessageKind | None, typer.Option(metavar="KIND", help=f"Only of this kind: {', '.join(MessageKind)}.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """List messages, newest first: accepted, rejected (with the reason), repeated.

    What couldn't be understood also stands in the dead-letter queue or folder.

    - what was refused, and why: `orchestrator messages --state rejected`
    - the newest message as it came: `orchestrator messages --limit 1 --json | jq -r '.[0].body'`
    """
    with open_store(load_settings(site)) as store:
        records = store.messages(state=state, kind=kind, limit=limit)
    if as_json:
        print_json([_as_json(record) for record in records])
        return
    if not records:
        out.print("No messages.")
        return
    headings = ("id", "received", "kind", "state", "came", "collection", "what came of it")
    print_table(headings, [_row(record, short=out.is_terminal) for record in records])


def _row(record: MessageRecord, *, short: bool) -> tuple[str, ...]:
    received = record.raw.received_at.astimezone()
    return (
        str(record.message_id),
        received.strftime("%m-%d %H:%M:%S" if short else "%Y-%m-%dT%H:%M:%S%z"),
        record.kind,
        record.state,
        f"{record.repeats + 1}x",
        record.uid or "-",
        record.rejection or record.note,
    )


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
