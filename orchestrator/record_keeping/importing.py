"""Rows from the records in runs' directories, after the database was lost.

A run that has ended has its record there. One that was under way when the database was lost has its plan, its script
and what its job wrote: it comes back as a run with a job, and the service finds out how it goes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.errors import InvalidInput, InvalidMessage
from orchestrator.messages import understand
from orchestrator.provenance import (
    Arrival,
    AttemptRecord,
    AttemptStage,
    JobEvent,
    MessageKind,
    MessageRecord,
    MessageState,
    RunDetail,
    RunSummary,
    Store,
    detail_of,
)
from orchestrator.provenance.rows import MADE
from orchestrator.records import JobIdentity, JobPlan, RawMessage, RerunTag, Retries, RunState, RunTag, sha256_of
from orchestrator.rerunning import read_plan, user_name
from orchestrator.runs import RECORDS, AttemptDirectory, RunDirectory

NOTE = "read from the run's directory"


@dataclass(kw_only=True)
class Imported:
    """What came of an import."""

    new: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    unusable: dict[str, str] = field(default_factory=dict)
    """Directories that hold no run that could be read, and why."""


def import_runs(store: Store, root: Path) -> Iterator[Imported]:
    """Bring the runs below a folder into the store; give what came of it so far after each directory.

    Runs that are there are left alone, so it may be repeated, and runs of several folders be brought together.
    """
    done = Imported()
    # Records first: they know more about a message than a directory without one.
    for place in sorted(places_of_runs(root), key=lambda place: place.suffix != ".json"):
        try:
            detail = _detail(place, {0, os.getuid(), root.stat().st_uid})
            new = store.import_run(detail, _arrival(detail))
        except (InvalidInput, OSError) as error:
            done.unusable[str(place)] = error.full_text if isinstance(error, InvalidInput) else str(error)
        else:
            (done.new if new else done.known).append(detail.summary.run_id)
        yield done


def places_of_runs(root: Path) -> Iterator[Path]:
    """Give the files that hold a run, or the directories that should."""
    for folder, folders, files in os.walk(root):
        here = RunDirectory(Path(folder))
        found = {here.provenance.name, here.plan.name} & set(files)
        if found:
            folders.clear()
            yield here.provenance if here.provenance.name in found else here.path
        elif Path(folder).name == RECORDS:
            folders.clear()
            yield from (Path(folder) / name for name in sorted(files) if name.endswith(".json") and name[0] != ".")
        folders.sort()


def _detail(place: Path, trusted: Collection[int]) -> RunDetail:
    """Return what a record says, or the files of a run without one.

    Who made a run with sbatch owns its directory, and could write into a record there what they like: of theirs no more
    is taken than when such a run comes home.
    """
    owner = place.stat().st_uid
    run = RunDirectory(place if place.suffix != ".json" else place.parent)
    if owner not in trusted:
        return _made_by_hand(_unfinished(run), user_name(owner))
    if place.suffix != ".json":
        detail = _unfinished(run)
        return _made_by_hand(detail, detail.plan.requester) if run.submitted.exists() else detail
    try:
        detail = detail_of(json.loads(place.read_bytes()))
    except ValueError as error:
        raise InvalidInput(f"{place}: {error}", remedy="take it from a backup, or leave it out") from error
    except InvalidInput as error:
        raise InvalidInput(f"{place}: {error}", remedy=error.remedy) from error
    return detail


def _arrival(detail: RunDetail) -> Arrival | None:
    if detail.message is None:
        return None
    raw = detail.message.raw
    try:
        return Arrival(raw=raw, understood=understand(raw), note=detail.message.note or NOTE)
    except InvalidMessage as error:
        return Arrival(raw=raw, understood=None, rejection=error.full_text)


# ------------------------------------------------------------------------------------------ a run that was under way


def _unfinished(run: RunDirectory) -> RunDetail:
    plan = read_plan(run)
    at = datetime.fromtimestamp(run.plan.stat().st_mtime, UTC)
    attempts = tuple(_attempts(run, plan, at))
    begun = bool(attempts) and attempts[-1].identity is not None
    summary = RunSummary(
        run_id=plan.run_id,
        state=RunState.RUNNING if begun else RunState.UNKNOWN,
        reason=""
        if begun
        else f"{NOTE}, where nothing says that its job had begun; look for {_name(run, plan)} in SLURM",
        recipe=plan.recipe,
        kernel=plan.kernel,
        beamline=plan.collection.beamline,
        visit=plan.collection.visit,
        collection_uid=plan.collection.uid,
        file=plan.collection.file,
        run_directory=run.path,
        requester=plan.requester,
        parent_run=plan.parent_run,
        created_at=at,
        ended_at=None if begun else at,
        attempts=len(attempts),
        job=attempts[-1].identity if begun else None,
        nodes="",
        counts=None,
    )
    return RunDetail(
        summary=summary,
        message=_message(run, at),
        plan=plan,
        parameters=plan.parameters,
        attempts=attempts,
        events=(),
        inputs=(),
        outputs=(),
    )


def _name(run: RunDirectory, plan: JobPlan) -> str:
    """Return what a run's jobs are called, at least how that begins."""
    by_hand = plan.parent_run is not None and run.submitted.exists()
    return RerunTag(parent=str(plan.parent_run)).job_name if by_hand else f"run-{plan.run_id}"


def _made_by_hand(detail: RunDetail, requester: str) -> RunDetail:
    """Return a run that somebody made with sbatch, for which the service submits nothing."""
    at, plan = detail.summary.created_at, detail.plan
    made = JobEvent(attempt=1, kind=MADE, sequence=0, at=at, recorded_at=at, detail={"how": "sbatch", "note": NOTE})
    return replace(
        detail,
        summary=replace(detail.summary, requester=requester),
        plan=replace(plan, requester=requester, retries=Retries(), submit_as=None),
        events=(made,),
    )


def _message(run: RunDirectory, at: datetime) -> MessageRecord | None:
    if not run.message.exists():
        return None
    raw = RawMessage(body=run.message.read_bytes(), source=f"file:{run.message}", received_at=at)
    return MessageRecord(
        message_id=0,
        raw=raw,
        kind=MessageKind.START,
        state=MessageState.HANDLED,
        uid=None,
        rejection=None,
        note=NOTE,
        repeats=0,
        last_received_at=at,
        handled_at=at,
    )


def _attempts(run: RunDirectory, plan: JobPlan, at: datetime) -> Iterator[AttemptRecord]:
    folder = run.attempt(1).path.parent
    numbers = sorted(int(entry.name) for entry in folder.glob("[0-9]*")) if folder.exists() else []
    script, template = run.script.read_text(), run.template.read_text()
    for number in numbers:
        identity = _identity(run.attempt(number))
        yield AttemptRecord(
            tag=RunTag(run_id=plan.run_id, attempt=number),
            gateway="unknown",
            stage=AttemptStage.SUBMITTED if identity else AttemptStage.FAILED,
            failure="" if identity else f"{NOTE}: it never began",
            template_name=plan.template,
            template_sha256=sha256_of(template),
            template_text=template,
            template_origin=None,
            script_sha256=sha256_of(script),
            script_text=script,
            packages="",
            intent_at=at,
            identity=identity,
            adopted=True,
            last_report=None,
            software=None,
            events=(),
        )


def _identity(attempt: AttemptDirectory) -> JobIdentity | None:
    """Return the job that has claimed an attempt; the time of its claim stands for that of its submission."""
    try:
        owner = json.loads(attempt.claim.read_bytes())
        claimed_at = datetime.fromisoformat(owner["claimed_at"])
        return JobIdentity(
            cluster=owner["cluster"], job_id=int(owner["job_id"]), submitted_at=claimed_at.replace(microsecond=0)
        )
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"{attempt.claim}: not a claim: {error!r}") from error
