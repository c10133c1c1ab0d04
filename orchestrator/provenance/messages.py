"""Messages: recorded once however often they come, and paired by the collection's uid."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Row, func, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from orchestrator.errors import NotFound
from orchestrator.provenance.columns import storable
from orchestrator.provenance.database import Database, batched
from orchestrator.provenance.documents import end_from_json, end_to_json, start_from_json, start_to_json
from orchestrator.provenance.new_runs import add_runs
from orchestrator.provenance.rows import Arrival, MessageKind, MessageReceipt, MessageRecord, MessageState, WaitingStart
from orchestrator.provenance.tables import UID_LIMIT, MessageRow
from orchestrator.records import CollectionEnd, CollectionStart, Json, RawMessage, sha256_of, utc_now

Understood = CollectionStart | CollectionEnd


class MessageStore(Database):
    """The store's part that deals with messages."""

    def record_message(
        self, raw: RawMessage, *, understood: Understood | None, rejection: str | None = None
    ) -> MessageReceipt:
        """Make one message durable; see `record_messages`."""
        [receipt] = self.record_messages([Arrival(raw=raw, understood=understood, rejection=rejection)])
        return receipt

    def record_messages(self, arrivals: Sequence[Arrival]) -> Sequence[MessageReceipt]:
        """Make messages durable, all in one transaction; they may be acknowledged when this returns.

        A message that was there before (a start or end with the same uid and the same content, a rejected one with the
        same bytes) is only counted. A start or end whose uid belongs to another collection is recorded as rejected.
        Several services may do this with the same messages at the same moment: one row of each remains.

        What has been decided about a new message is recorded with it, and the runs that it makes.

        Returns
        -------
        Sequence[MessageReceipt]
            One for each, in their order.
        """
        checked = [_of_storable_uid(arrival) for arrival in arrivals]
        for turn in range(2 + 2 * len(checked)):
            try:
                with self.writing() as session:
                    # Most messages are new: looking for them before would double the time it takes.
                    return _Recording(session, checked).receipts() if turn else _all_new(session, checked)
            except IntegrityError as error:  # one is there, or another service has just recorded it: it is found next
                conflict = error
        raise conflict

    def waiting_starts(self, limit: int = 100) -> Sequence[WaitingStart]:
        """Return collection-starts about which nothing has been decided, oldest first.

        Those that another service is just recording its decision about are left out.
        """
        wanted = (
            select(MessageRow)
            .where(MessageRow.state == MessageState.WAITING, MessageRow.kind == MessageKind.START)
            .order_by(MessageRow.id)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        with self.reading() as session:
            return [
                WaitingStart(message_id=row.id, raw=raw_of(row), start=start_from_json(row.content))
                for row in session.scalars(wanted)
            ]

    def collection_end(self, uid: str) -> CollectionEnd | None:
        """Return the accepted collection-end with this uid, or None while there is none."""
        return self.collection_ends([uid]).get(uid)

    def collection_ends(self, uids: Collection[str]) -> Mapping[str, CollectionEnd]:
        """Return the accepted collection-ends with these uids; those that haven't ended are left out."""
        asked = {_identity_of(MessageKind.END, uid): uid for uid in uids}
        wanted = select(MessageRow.identity, MessageRow.content)
        with self.reading() as session:
            found = [
                row for some in batched(asked) for row in session.execute(wanted.where(MessageRow.identity.in_(some)))
            ]
        return {asked[identity]: end_from_json(content) for identity, content in found}

    def ended_collections(self, after: int) -> Mapping[int, str]:
        """Return the uids of the accepted collection-ends with a number above `after`, by their numbers."""
        wanted = select(MessageRow.id, MessageRow.uid).where(MessageRow.kind == MessageKind.END, MessageRow.id > after)
        with self.reading() as session:
            return {number: uid for number, uid in session.execute(wanted) if uid is not None}

    def newest_message(self) -> int:
        """Return the number of the message that came last; 0 when none has come."""
        with self.reading() as session:
            return session.scalar(select(func.max(MessageRow.id))) or 0

    def messages(
        self,
        *,
        state: MessageState | None = None,
        kind: MessageKind | None = None,
        uid: str | None = None,
        since: datetime | None = None,
        limit: int = 100,
    ) -> Sequence[MessageRecord]:
        """Return messages, newest first."""
        wanted = select(MessageRow).order_by(MessageRow.id.desc()).limit(limit)
        if state is not None:
            wanted = wanted.where(MessageRow.state == state)
        if kind is not None:
            wanted = wanted.where(MessageRow.kind == kind)
        if uid is not None:
            wanted = wanted.where(MessageRow.uid == uid)
        if since is not None:
            wanted = wanted.where(MessageRow.received_at >= since)
        with self.reading() as session:
            return [message_record(row) for row in session.scalars(wanted)]

    def message(self, message_id: int) -> MessageRecord:
        """Return one message.

        Raises
        ------
        NotFound
            When there is no such message.
        """
        with self.reading() as session:
            return message_record(_existing(session, message_id))


_INSERTED = insert(MessageRow).returning(MessageRow.identity, MessageRow.id)


def _all_new(session: Session, arrivals: Sequence[Arrival]) -> Sequence[MessageReceipt]:
    """Insert messages of which none is there; one that is, or that comes twice, is an `IntegrityError`."""
    # Plain values instead of mapped objects: this stands in every collection's way to its job.
    rows = [_row(arrival) for arrival in arrivals]
    inserted = session.connection().execute(_INSERTED, rows)
    numbers = {row.identity: row.id for row in inserted}
    recorded = [(numbers[row["identity"]], arrival) for row, arrival in zip(rows, arrivals, strict=True)]
    add_runs(session, [(number, plan) for number, arrival in recorded for plan in arrival.plans], look=False)
    return [
        MessageReceipt(message_id=number, duplicate=False, rejection=arrival.rejection) for number, arrival in recorded
    ]


class _Recording:
    """Messages on their way into the table, within one transaction; some may be there."""

    def __init__(self, session: Session, arrivals: Sequence[Arrival]) -> None:
        self._session = session
        self._arrivals = arrivals
        self._rows = self._there({_identity(arrival) for arrival in arrivals})
        self._new: list[tuple[MessageRow, Arrival]] = []

    def receipts(self) -> Sequence[MessageReceipt]:
        """Insert or count each message."""
        recorded = [self._record(arrival) for arrival in self._arrivals]
        self._session.flush()  # gives new rows their numbers
        add_runs(self._session, [(row.id, plan) for row, arrival in self._new for plan in arrival.plans])
        return [
            MessageReceipt(message_id=row.id, duplicate=duplicate, rejection=row.rejection)
            for row, duplicate in recorded
        ]

    def _record(self, arrival: Arrival) -> tuple[MessageRow, bool]:
        """Return the message's row, and whether it was there before."""
        first = self._rows.get(_identity(arrival))
        if first is None:
            row = MessageRow(**_row(arrival))
            self._session.add(row)
            self._rows[row.identity] = row
            self._new.append((row, arrival))
            return row, False
        if arrival.rejection is not None or arrival.understood is None or _same(first, arrival.understood):
            first.repeats += 1
            first.last_received_at = arrival.raw.received_at
            return first, True
        return self._record_other(arrival, first)

    def _record_other(self, arrival: Arrival, first: MessageRow) -> tuple[MessageRow, bool]:
        self._session.flush()
        reason = f"another collection-{first.kind} with this uid was received at {first.received_at:%Y-%m-%d %H:%M:%S}Z"
        rejected = _rejected(arrival, f"{reason} (message {first.id})")
        identity = _identity(rejected)
        if identity not in self._rows:
            self._rows |= self._there({identity})
        return self._record(rejected)

    def _there(self, identities: Set[str]) -> dict[str, MessageRow]:
        """Return the rows that are there already, locked, in an order that all services keep."""
        wanted = select(MessageRow).where(MessageRow.identity.in_(sorted(identities))).order_by(MessageRow.identity)
        return {row.identity: row for row in self._session.scalars(wanted.with_for_update())}


def bring_back_message(session: Session, arrival: Arrival, record: MessageRecord) -> int:
    """Add a message inside a transaction as its record has it, unless it is there; return its number."""
    there = session.scalar(select(MessageRow.id).where(MessageRow.identity == _identity(arrival)))
    if there is not None:
        return there
    row = MessageRow(**_row(arrival))
    row.repeats, row.last_received_at, row.handled_at = record.repeats, record.last_received_at, record.handled_at
    session.add(row)
    session.flush()
    return row.id


def mark_handled(session: Session, notes: Mapping[int, str]) -> None:
    """Say inside a transaction what was decided about messages, by their ids; their rows stay locked until the end."""
    wanted = select(MessageRow).where(MessageRow.id.in_(sorted(notes))).order_by(MessageRow.id).with_for_update()
    rows = {row.id: row for row in session.scalars(wanted)}
    for message_id, note in notes.items():
        row = rows.get(message_id)
        if row is None:
            raise _not_found(message_id)
        row.note = note
        row.handled_at = utc_now()
        if row.state is MessageState.WAITING:
            row.state = MessageState.HANDLED


def message_id_of(session: Session, uid: str) -> int | None:
    """Return the number of the accepted collection-start with this uid; None where there is none."""
    wanted = select(MessageRow.id).where(MessageRow.identity == _identity_of(MessageKind.START, uid))
    return session.scalar(wanted)


def message_record(row: MessageRow) -> MessageRecord:
    """Return a row as the record that the store hands out."""
    return MessageRecord(
        message_id=row.id,
        raw=raw_of(row),
        kind=row.kind,
        state=row.state,
        uid=row.uid,
        rejection=row.rejection,
        note=row.note,
        repeats=row.repeats,
        last_received_at=row.last_received_at,
        handled_at=row.handled_at,
    )


def raw_of(row: MessageRow | Row[*tuple[Any, ...]]) -> RawMessage:
    """Return a message as it came in."""
    headers = row.headers if isinstance(row.headers, dict) else {}
    return RawMessage(
        body=row.body,
        source=row.source,
        headers={name: str(value) for name, value in headers.items()},
        received_at=row.received_at,
    )


def _existing(session: Session, message_id: int) -> MessageRow:
    row = session.get(MessageRow, message_id)
    if row is None:
        raise _not_found(message_id)
    return row


def _not_found(message_id: int) -> NotFound:
    return NotFound(f"there is no message {message_id}", remedy="`orchestrator messages` lists them")


def _of_storable_uid(arrival: Arrival) -> Arrival:
    if arrival.understood is None or not _too_long(arrival.understood) or arrival.rejection is not None:
        return arrival
    length = len(arrival.understood.uid)
    return _rejected(arrival, f"uid has {length} characters, at most {UID_LIMIT} can be kept")


def _rejected(arrival: Arrival, reason: str) -> Arrival:
    return replace(arrival, rejection=reason, note=None, plans=())


def _too_long(understood: Understood) -> bool:
    return len(storable(understood.uid)) > UID_LIMIT


def _row(arrival: Arrival) -> dict[str, Any]:
    raw, understood = arrival.raw, arrival.understood
    return {
        "identity": _identity(arrival),
        "kind": _kind(understood),
        "state": _first_state(arrival),
        "uid": None if understood is None or _too_long(understood) else understood.uid,
        "source": raw.source,
        "headers": dict(raw.headers),
        "body": raw.body,
        "sha256": raw.sha256,
        "content": _content(understood),
        "rejection": arrival.rejection,
        "note": arrival.note or "",
        "received_at": raw.received_at,
        "repeats": 0,
        "last_received_at": raw.received_at,
        "handled_at": None if arrival.note is None else utc_now(),
    }


def _kind(understood: Understood | None) -> MessageKind:
    if understood is None:
        return MessageKind.UNREADABLE
    return MessageKind.START if isinstance(understood, CollectionStart) else MessageKind.END


def _first_state(arrival: Arrival) -> MessageState:
    if arrival.rejection is not None:
        return MessageState.REJECTED
    # An end asks for no decision: whoever follows its collection looks it up.
    undecided = isinstance(arrival.understood, CollectionStart) and arrival.note is None
    return MessageState.WAITING if undecided else MessageState.HANDLED


def _identity(arrival: Arrival) -> str:
    if arrival.understood is None or arrival.rejection is not None:
        return f"rejected:{arrival.raw.sha256}"
    return _identity_of(_kind(arrival.understood), arrival.understood.uid)


def _identity_of(kind: MessageKind, uid: str) -> str:
    return f"{kind}:{sha256_of(storable(uid))}"


def _content(understood: Understood | None) -> Json:
    if understood is None:
        return None
    return start_to_json(understood) if isinstance(understood, CollectionStart) else end_to_json(understood)


def _same(first: MessageRow, understood: Understood) -> bool:
    """Whether both say the same; fields that nobody understands don't count."""
    before = start_from_json(first.content) if first.kind is MessageKind.START else end_from_json(first.content)
    return replace(before, ignored=()) == replace(understood, ignored=())
