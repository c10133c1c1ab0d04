"""Lists of runs: which ones there are, newest first, and how many in each state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import chain, islice
from pathlib import Path
from typing import TypeAlias

from sqlalchemy import ColumnElement, Row, Select, and_, case, func, or_, select, type_coerce
from sqlalchemy.orm import Session

from orchestrator.provenance.attempts import counts_of, identity_of
from orchestrator.provenance.columns import LongText
from orchestrator.provenance.database import Database
from orchestrator.provenance.rows import RunSummary
from orchestrator.provenance.tables import AttemptRow, RunRow
from orchestrator.provenance.text_index import SEARCHED, moments
from orchestrator.records import RunState

Found: TypeAlias = Row[RunRow, AttemptRow]

_LIVING = tuple(state for state in RunState if not state.ended)
_ENDED = tuple(state for state in RunState if state.ended)

_LOOKED_THROUGH = 2000
"""So many of the newest runs are looked through for a text before its index is asked: what many have is found there."""

_MOMENTS_AT_ONCE = 100
_MOST_MOMENTS = 1000
"""So many moments of the index may lead to no run that is wanted; then all that are left are looked through."""

_NEWEST_FIRST = (RunRow.created_at.desc(), RunRow.run_id.desc())


class ListingStore(Database):
    """The store's part that lists runs."""

    def runs(
        self,
        *,
        states: Sequence[RunState] = (),
        beamline: str | None = None,
        visit: str | None = None,
        recipe: str | None = None,
        uid: str | None = None,
        parent: str | None = None,
        since: datetime | None = None,
        text: str | None = None,
        id_begins: str = "",
        after: RunSummary | None = None,
        limit: int = 50,
    ) -> Sequence[RunSummary]:
        """Return runs, newest first.

        Parameters
        ----------
        states
            Only runs in one of these; all when empty.
        uid
            Only runs of this collection.
        since
            Only runs recorded at or after this moment.
        text
            Only runs that have this, in any case, in their id, recipe, uid, visit, file or reason.
        id_begins
            Only runs whose ids begin so.
        after
            Only runs that come after this one in the list: the last of a page gives the next page.
        """
        exact = {
            RunRow.beamline: beamline,
            RunRow.visit: visit,
            RunRow.recipe: recipe,
            RunRow.collection_uid: uid,
            RunRow.parent_run_id: parent,
        }
        conditions = [column == value for column, value in exact.items() if value is not None]
        if since is not None:
            conditions.append(RunRow.created_at >= since)
        if id_begins:
            conditions += begins(id_begins)
        if after is not None:
            conditions.append(_is_behind(after))
        wanted = with_newest_attempt().where(*conditions).order_by(*_NEWEST_FIRST)
        with self.snapshot() as session:
            few = any(value is not None for value in (visit, uid, parent))
            pages = [_page(session, wanted.where(*state), text, limit) for state in _in_one_of(states, of_few=few)]
        return [summary_of(run, attempt) for run, attempt in _newest(chain.from_iterable(pages), limit)]


def begins(beginning: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """Return the condition that an id begins so; all databases compare ids byte by byte, and use the index."""
    first = beginning.lower()
    return RunRow.run_id >= first, RunRow.run_id < first[:-1] + chr(ord(first[-1]) + 1)


def with_newest_attempt() -> Select[RunRow, AttemptRow]:
    """Return the question for runs, each with its newest attempt if it has one."""
    same = (AttemptRow.run_id == RunRow.run_id) & (AttemptRow.number == RunRow.attempts)
    return select(RunRow, AttemptRow).outerjoin(AttemptRow, same)


def _is_behind(run: RunSummary) -> ColumnElement[bool]:
    same = and_(RunRow.created_at == run.created_at, RunRow.run_id < run.run_id)
    return and_(RunRow.created_at <= run.created_at, or_(RunRow.created_at < run.created_at, same))


def _in_one_of(states: Sequence[RunState], *, of_few: bool) -> Iterator[tuple[ColumnElement[bool], ...]]:
    """Return the conditions for runs in one of some states, each to be asked by itself.

    Databases find the newest of one state in an index, and sort all of several; few haven't ended, they are together.
    Where another condition leaves few, SQLite can't know, and would begin with all of the state: of an expression there
    is no index.
    """
    if not states:
        yield ()
    elif of_few:
        yield (func.coalesce(RunRow.state, RunState.UNKNOWN).in_(states),)
        return
    if living := [state for state in _LIVING if state in states]:
        yield (RunRow.state.in_(living),)
    yield from ((RunRow.state == state,) for state in _ENDED if state in states)


def _newest(found: Iterable[Found], most: int) -> Sequence[Found]:
    return sorted(found, key=lambda row: (row[0].created_at, row[0].run_id), reverse=True)[:most]


def _page(session: Session, wanted: Select[RunRow, AttemptRow], text: str | None, most: int) -> Sequence[Found]:
    """Return the first runs that are wanted, and have a text.

    A text that many runs have is found among the newest; for one that few have there is the index.
    """
    if not text:
        return session.execute(wanted.limit(most)).all()
    having = wanted.where(_has(text))
    times = wanted.with_only_columns(RunRow.created_at).order_by(None).order_by(RunRow.created_at.desc())
    end = session.scalar(times.offset(_LOOKED_THROUGH).limit(1))
    if end is None:
        return session.execute(having.limit(most)).all()
    found = session.execute(having.where(RunRow.created_at > end).limit(most)).all()
    if len(found) == most:
        return found
    return [*found, *_further(session, having.where(RunRow.created_at <= end), text, end, most - len(found))]


def _has(text: str) -> ColumnElement[bool]:
    columns = (type_coerce(getattr(RunRow, name), LongText()) for name in SEARCHED)  # a text may be longer than a name
    return or_(*(column.icontains(text, autoescape=True) for column in columns))


def _further(
    session: Session, having: Select[RunRow, AttemptRow], text: str, end: datetime, most: int
) -> Sequence[Found]:
    times = moments(session, text, end, _MOST_MOMENTS + most)
    if times is None:
        return session.execute(having.limit(most)).all()
    # As one condition, behind which SQLite finds no other index than that of the few that haven't ended.
    hidden = case((having.whereclause, 1), else_=0) == 1  # type: ignore[arg-type]
    living = with_newest_attempt().where(RunRow.ended_at.is_(None), hidden).order_by(*_NEWEST_FIRST).limit(most)
    return _newest(
        [*session.execute(living), *_ended(session, having.where(RunRow.ended_at.is_not(None)), times, most)], most
    )


def _ended(
    session: Session, having: Select[RunRow, AttemptRow], times: Iterator[datetime], most: int
) -> Sequence[Found]:
    """Return the first runs of the moments that the index gives."""
    found: list[Found] = []
    looked_at, last = 0, None
    while len(found) < most and (lot := list(islice(times, _MOMENTS_AT_ONCE))):
        looked_at, last = looked_at + len(lot), lot[-1]
        found += session.execute(having.where(RunRow.created_at.in_(lot)).limit(most - len(found)))
    if len(found) < most and last is not None and looked_at >= _MOST_MOMENTS:  # many have the text, few are wanted
        found += session.execute(having.where(RunRow.created_at < last).limit(most - len(found)))
    return found


def summary_of(run: RunRow, attempt: AttemptRow | None) -> RunSummary:
    """Return rows as the record that the store hands out."""
    return RunSummary(
        run_id=run.run_id,
        state=run.state,
        reason=run.reason,
        recipe=run.recipe,
        kernel=run.kernel,
        beamline=run.beamline,
        visit=run.visit,
        collection_uid=run.collection_uid,
        file=Path(run.file),
        run_directory=Path(run.run_directory),
        requester=run.requester,
        parent_run=run.parent_run_id,
        created_at=run.created_at,
        ended_at=run.ended_at,
        attempts=run.attempts,
        job=identity_of(attempt),
        nodes="" if attempt is None else attempt.nodes,
        counts=counts_of(run),
    )
