"""Rows from the records in runs' directories, after the database was lost.

A run that has ended has its record there. One that was under way when the database was lost has its plan, its script
and what its job wrote: it comes back as far as it was, and the service finds out how it goes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator
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
    retry_from_json,
)
from orchestrator.provenance.rows import MADE
from orchestrator.records import JobIdentity, JobPlan, RawMessage, RerunTag, Retries, Retry, RunState, RunTag, sha256_of
from orchestrator.rerunning import read_plan, user_name
from orchestrator.runs import RECORDS, AttemptDirectory, RunDirectory

NOTE = "read from the run's directory"
_BACKUP = "take it from a backup, or leave it out"


@dataclass(kw_only=True)
class Imported:
    """What came of an import."""

    new: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    unusable: dict[str, str] = field(default_factory=dict)
    """Directories that hold no run that could be read, and why."""
    moved: dict[str, str] = field(default_factory=dict)
    """Directories of runs that were brought back, and where they were when the runs were made: nothing is there."""


def import_runs(store: Store, root: Path, *, owner: int) -> Iterator[Imported]:
    """Bring the runs below a folder into the store; give what came of it so far after each directory.

    Runs that are there are left alone, so it may be repeated, and runs of several folders be brought together.

    Parameters
    ----------
    owner
        Whose records are believed, besides those of root and of the present user: the service's account.
    """
    done = Imported()
    trusted = {0, os.getuid(), owner}
    places = places_of_runs(root, lambda error: done.unusable.update({error.filename: _words(error)}))
    # Records first: they know more about a message than a directory without one. Last what users made: whoever names
    # another's run in a directory of their own doesn't take its place.
    for place in sorted(places, key=lambda place: (_owner(place) not in trusted, place.suffix != ".json")):
        try:
            recorded = place.suffix == ".json" and _owner(place) in trusted
            detail = _recorded(place) if recorded else _from_files(place, trusted)
            new = store.import_run(detail, _arrival(detail), recorded=recorded)
        except (InvalidInput, OSError, ValueError) as error:
            done.unusable[str(place)] = _words(error)
        else:
            (done.new if new else done.known).append(detail.summary.run_id)
            if new and not os.path.exists(detail.summary.run_directory):  # noqa: PTH110 - one that can't be seen isn't
                done.moved[str(place)] = str(detail.summary.run_directory)
        yield done
    yield done


def _owner(place: Path) -> int | None:
    """Return whose a place is; None where that can't be told, which is nobody who is trusted."""
    try:
        return place.stat().st_uid
    except OSError:
        return None


def _words(error: InvalidInput | OSError | ValueError) -> str:
    if isinstance(error, InvalidInput):
        return error.full_text
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)


def places_of_runs(root: Path, on_error: Callable[[OSError], object]) -> Iterator[Path]:
    """Give the files that hold a run, or the directories that should; `on_error` hears of what can't be read."""
    for folder, folders, files in os.walk(root, onerror=on_error):
        here = RunDirectory(Path(folder))
        found = {here.provenance.name, here.plan.name} & set(files)
        if found:
            folders.clear()
            yield here.provenance if here.provenance.name in found else here.path
        elif Path(folder).name == RECORDS:
            folders.clear()
            yield from (Path(folder) / name for name in sorted(files) if name.endswith(".json") and name[0] != ".")
        folders.sort()


def _recorded(file: Path) -> RunDetail:
    """Return what a record says."""
    try:
        detail = detail_of(json.loads(file.read_bytes()))
        _check(detail)
    except InvalidInput as error:
        raise InvalidInput(str(error), remedy=error.remedy or _BACKUP) from error
    except ValueError as error:
        raise InvalidInput(str(error), remedy=_BACKUP) from error
    return detail


def _from_files(place: Path, trusted: Collection[int]) -> RunDetail:
    """Return what the files of a run without a record say.

    Who made a run with sbatch owns its directory, and could write into a record there what they like: of theirs no more
    is taken than when such a run comes home.
    """
    run = RunDirectory(place if place.suffix != ".json" else place.parent)
    for owner in (run.path.stat().st_uid, run.plan.stat().st_uid):
        if owner not in trusted:
            return _made_by_hand(run, user_name(owner))
    return _made_by_hand(run, None) if run.submitted.exists() else _unfinished(run)


def _check(detail: RunDetail) -> None:
    """Refuse a record that tells of several runs, or of texts that aren't those of their digests."""
    run_id = detail.summary.run_id
    for where, told in (("plan", detail.plan.run_id), *(("attempts", one.tag.run_id) for one in detail.attempts)):
        if told != run_id:
            raise InvalidInput(f"summary.run_id is {run_id}, and that of {where} {told}")
    for one in detail.attempts:
        for what, text, digest in (
            ("script", one.script_text, one.script_sha256),
            ("template", one.template_text, one.template_sha256),
        ):
            if sha256_of(text) != digest:
                raise InvalidInput(f"the {what} of attempt {one.tag.attempt} isn't that of its SHA-256 {digest}")


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
    """Return a run that the service was about to submit, or had submitted."""
    plan = read_plan(run)
    attempts = tuple(_attempts(run, plan))
    if plan.run_directory != run.path and not (attempts and attempts[-1].identity):
        state, reason = RunState.UNKNOWN, f"{NOTE}, which was {plan.run_directory} when it was planned"
    elif attempts:
        state, reason = _state_of(attempts[-1])
    elif not run.script.exists():
        state, reason = RunState.PLANNED, ""
    else:
        state, reason = RunState.UNKNOWN, f"{NOTE}, where nothing is left of its attempts"
    return _detail_of(run, plan, attempts, state, reason)


def _state_of(newest: AttemptRecord) -> tuple[RunState, str]:
    if newest.identity is not None:
        return RunState.RUNNING, ""
    return RunState.SUBMITTING, f"{NOTE}, where nothing says that its job had begun"


def _made_by_hand(run: RunDirectory, requester: str | None) -> RunDetail:
    """Return a run that somebody made with sbatch, for which the service submits nothing."""
    plan = read_plan(run)
    if plan.run_directory != run.path:  # where the service would write its record
        raise InvalidInput(
            f"{run.plan}: is that of {plan.run_directory}", remedy="move it back, and import it from there"
        )
    plan = replace(plan, requester=requester or plan.requester, retries=Retries(), submit_as=None)
    attempts = tuple(_attempts(run, plan))
    begun = bool(attempts) and attempts[-1].identity is not None
    if attempts and not begun:
        attempts = (*attempts[:-1], replace(attempts[-1], stage=AttemptStage.FAILED, failure=f"{NOTE}: it never began"))
    name = RerunTag(parent=str(plan.parent_run)).job_name
    reason = f"{NOTE}, where nothing says that its job had begun; look for {name} in SLURM"
    state, told = (RunState.RUNNING, "") if begun else (RunState.UNKNOWN, reason)
    detail = _detail_of(run, plan, attempts, state, told)
    at = detail.summary.created_at
    made = JobEvent(attempt=1, kind=MADE, sequence=0, at=at, recorded_at=at, detail={"how": "sbatch", "note": NOTE})
    return replace(detail, events=(made,))


def _detail_of(
    run: RunDirectory, plan: JobPlan, attempts: tuple[AttemptRecord, ...], state: RunState, reason: str
) -> RunDetail:
    at = _written_at(run)
    summary = RunSummary(
        run_id=plan.run_id,
        state=state,
        reason=reason,
        recipe=plan.recipe,
        kernel=plan.kernel,
        beamline=plan.collection.beamline,
        visit=plan.collection.visit,
        collection_uid=plan.collection.uid,
        file=plan.collection.file,
        run_directory=plan.run_directory,
        requester=plan.requester,
        parent_run=plan.parent_run,
        created_at=at,
        ended_at=at if state.ended else None,
        attempts=attempts[-1].tag.attempt if attempts else 0,
        job=attempts[-1].identity if attempts else None,
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


def _written_at(run: RunDirectory) -> datetime:
    return datetime.fromtimestamp(run.plan.stat().st_mtime, UTC)


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


def _attempts(run: RunDirectory, plan: JobPlan) -> Iterator[AttemptRecord]:
    folder = run.attempt(1).path.parent
    numbers = sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()) if folder.exists() else []
    for number in numbers:
        here, newest = run.attempt(number), number == numbers[-1]
        identity = _identity(here)
        script, template = (run.script, run.template) if newest else (here.script, here.template)
        script_text, template_text = script.read_text(), template.read_text()
        yield AttemptRecord(
            tag=RunTag(run_id=plan.run_id, attempt=number),
            gateway="unknown",
            stage=_stage(identity, newest=newest),
            failure="" if identity or newest else f"{NOTE}: it never began",
            template_name=plan.template,
            template_sha256=sha256_of(template_text),
            template_text=template_text,
            template_origin=None,
            script_sha256=sha256_of(script_text),
            script_text=script_text,
            packages="",
            intent_at=_written_at(run),
            identity=identity,
            adopted=True,
            last_report=None,
            software=None,
            events=(),
            retry=_retry(here),
        )


def _stage(identity: JobIdentity | None, *, newest: bool) -> AttemptStage:
    if identity is not None:
        return AttemptStage.SUBMITTED
    return AttemptStage.INTENDED if newest else AttemptStage.FAILED


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
        raise InvalidInput(f"{attempt.claim}: not a claim: {error!r}", remedy=_BACKUP) from error


def _retry(attempt: AttemptDirectory) -> Retry | None:
    """Return why there is an attempt after another one; None for the first."""
    try:
        return retry_from_json(json.loads(attempt.retry.read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, InvalidInput) as error:
        raise InvalidInput(f"{attempt.retry}: {error}", remedy=_BACKUP) from error
