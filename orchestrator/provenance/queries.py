"""Questions people ask about single runs: which one is meant, and everything about it; `listing` has the others."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session, undefer

from orchestrator.errors import NotFound
from orchestrator.provenance.attempts import identity_of, last_report
from orchestrator.provenance.database import Database, batched
from orchestrator.provenance.documents import plan_from_json, retry_from_json, validation_from_json
from orchestrator.provenance.listing import begins, summary_of, with_newest_attempt
from orchestrator.provenance.messages import message_record
from orchestrator.provenance.rows import (
    AttemptEnd,
    AttemptRecord,
    Ingredients,
    InputIdentity,
    JobEvent,
    MessageRecord,
    OutputIdentity,
    RunDetail,
    container_of,
)
from orchestrator.provenance.runs import input_identity
from orchestrator.provenance.tables import (
    AttemptRow,
    InputRow,
    JobEventRow,
    MessageRow,
    OutputRow,
    ParameterRow,
    RunRow,
    TextRow,
)
from orchestrator.records import Parameter, RunTag

LATEST = "latest"
_CANDIDATES = 5


class QueryStore(Database):
    """The store's part that answers people."""

    def find_run(self, name: str) -> str:
        """Return the full id of the run that `name` means: an id, the beginning of one, or ``latest``.

        Raises
        ------
        NotFound
            When no run or more than one is meant; the candidates are named.
        """
        with self.reading() as session:
            return _resolve(session, name)

    def run(self, name: str) -> RunDetail:
        """Return everything about one run; `name` is as for `find_run`.

        Raises
        ------
        NotFound
            When no run or more than one is meant.
        """
        with self.reading() as session:
            run_id = _resolve(session, name)
            row, newest = session.execute(with_newest_attempt().where(RunRow.run_id == run_id)).one()
            events = _events(session, run_id)
            return RunDetail(
                summary=summary_of(row, newest),
                message=_message(session, row.message_id),
                plan=plan_from_json(row.plan),
                parameters=_parameters(session, run_id),
                attempts=_attempts(session, run_id, events),
                events=events,
                inputs=tuple(
                    input_identity(item)
                    for item in session.scalars(select(InputRow).filter_by(run_id=run_id).order_by(InputRow.id))
                ),
                outputs=_outputs(session, run_id),
            )

    def ingredients_of(self, run_ids: Collection[str]) -> Mapping[str, Ingredients]:
        """Return what runs were made from, by their ids; those without an attempt are left out."""
        same = (AttemptRow.run_id == RunRow.run_id) & (AttemptRow.number == RunRow.attempts)
        newest = select(AttemptRow).join(RunRow, same).options(undefer(AttemptRow.software))
        found: dict[str, Ingredients] = {}
        with self.reading() as session:
            for ids in batched(run_ids):
                attempts = session.scalars(newest.where(RunRow.run_id.in_(ids))).all()
                digests = {row.template_sha256 for row in attempts}
                texts = {
                    row.sha256: row.content
                    for row in session.scalars(select(TextRow).where(TextRow.sha256.in_(digests)))
                }
                seen = select(InputRow).where(InputRow.run_id.in_(ids)).order_by(InputRow.id)
                inputs = {row.run_id: input_identity(row) for row in session.scalars(seen)}  # the last one counts
                found |= {row.run_id: _ingredients(row, inputs.get(row.run_id), texts) for row in attempts}
        return found


def _resolve(session: Session, name: str) -> str:
    newest = select(RunRow.run_id).order_by(RunRow.created_at.desc(), RunRow.run_id.desc())
    if name == LATEST:
        found = session.scalars(newest.limit(1)).all()
    elif re.fullmatch(r"[0-9a-f-]{1,36}", name.lower()):
        found = session.scalars(newest.where(*begins(name)).limit(_CANDIDATES + 1)).all()
    else:
        found = []
    if len(found) == 1 or name in found:
        return name if name in found else found[0]
    if not found:
        raise NotFound(f"there is no run {name!r}", remedy="`orchestrator runs` lists them")
    named = ", ".join(found[:_CANDIDATES]) + (", …" if len(found) > _CANDIDATES else "")
    raise NotFound(f"{name!r} begins the ids of several runs: {named}", remedy="give more of the id")


def _ingredients(row: AttemptRow, seen: InputIdentity | None, texts: Mapping[str, str]) -> Ingredients:
    return Ingredients(
        input=seen,
        template_name=row.template_name,
        template_sha256=row.template_sha256,
        template_text=texts[row.template_sha256],
        container=container_of(row.software),
    )


def _message(session: Session, message_id: int | None) -> MessageRecord | None:
    row = None if message_id is None else session.get(MessageRow, message_id)
    return None if row is None else message_record(row)


def _parameters(session: Session, run_id: str) -> tuple[Parameter, ...]:
    rows = session.scalars(select(ParameterRow).filter_by(run_id=run_id).order_by(ParameterRow.position))
    return tuple(Parameter(name=row.name, value=row.value, origin=row.origin, place=row.place) for row in rows)


def _events(session: Session, run_id: str) -> tuple[JobEvent, ...]:
    rows = session.scalars(select(JobEventRow).filter_by(run_id=run_id).order_by(JobEventRow.id))
    return tuple(
        JobEvent(
            attempt=row.attempt,
            kind=row.kind,
            sequence=row.sequence,
            at=row.at,
            recorded_at=row.recorded_at,
            detail=row.detail,
        )
        for row in rows
    )


def _attempts(session: Session, run_id: str, events: Sequence[JobEvent]) -> tuple[AttemptRecord, ...]:
    wanted = select(AttemptRow).filter_by(run_id=run_id).options(undefer(AttemptRow.software))
    rows = session.scalars(wanted.order_by(AttemptRow.number)).all()
    digests = {
        digest
        for row in rows
        for digest in (row.script_sha256, row.template_sha256, row.packages_sha256)
        if digest is not None
    }
    stored = session.scalars(select(TextRow).where(TextRow.sha256.in_(digests)))
    texts = {text.sha256: text.content for text in stored}
    return tuple(_attempt(row, texts, events) for row in rows)


def _attempt(row: AttemptRow, texts: Mapping[str, str], events: Sequence[JobEvent]) -> AttemptRecord:
    return AttemptRecord(
        tag=RunTag(run_id=row.run_id, attempt=row.number),
        gateway=row.gateway,
        stage=row.stage,
        failure=row.failure,
        template_name=row.template_name,
        template_sha256=row.template_sha256,
        template_text=texts[row.template_sha256],
        template_origin=row.template_origin,
        script_sha256=row.script_sha256,
        script_text=texts[row.script_sha256],
        packages="" if row.packages_sha256 is None else texts[row.packages_sha256],
        intent_at=row.intent_at,
        identity=identity_of(row),
        adopted=row.adopted,
        last_report=last_report(row),
        software=row.software,
        events=tuple(event for event in events if event.attempt == row.number),
        retry=None if row.retry is None else retry_from_json(row.retry),
        end=_end(row),
    )


def _end(row: AttemptRow) -> AttemptEnd | None:
    if row.outcome is None or row.cause is None or row.concluded_at is None:
        return None
    return AttemptEnd(
        state=row.outcome, reason=row.outcome_reason or "", cause=row.cause, ended_at=row.ended_at or row.concluded_at
    )


def _outputs(session: Session, run_id: str) -> tuple[OutputIdentity, ...]:
    rows = session.scalars(select(OutputRow).filter_by(run_id=run_id).order_by(OutputRow.id))
    return tuple(
        OutputIdentity(
            path=Path(row.path),
            kind=row.kind,
            size=row.size,
            sha256=row.sha256,
            content_sha256=row.content_sha256,
            validation=None if row.validation is None else validation_from_json(row.validation),
        )
        for row in rows
    )
