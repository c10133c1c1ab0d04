"""What doesn't fit together between the database and the runs' directories, each thing named with what to do."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from orchestrator.errors import InvalidInput
from orchestrator.injob import file_sha256
from orchestrator.provenance import AttemptStage, RunDetail, RunSummary, Store, detail_of
from orchestrator.record_keeping.importing import places_of_runs
from orchestrator.records import Json, sha256_of
from orchestrator.rerunning import read_plan
from orchestrator.runs import RECORDS, RunDirectory

_PAGE = 500


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that doesn't fit."""

    kind: str
    """``no directory``, ``no run``, ``copy``, ``digest``, ``record``, ``unreadable``."""
    run_id: str | None
    path: Path
    what: str
    remedy: str


def check(store: Store, roots: Collection[Path], records: Path, *, digests: bool = True) -> Iterator[Finding | None]:
    """Compare the store with the directories below folders; give None before what is found about each run.

    Parameters
    ----------
    records
        Folder of the records of runs whose directories aren't the service's; it is in the drop folder.
    digests
        Whether outputs are read and compared, which takes its time.
    """
    unreadable: list[OSError] = []
    places = {_folder(place): place for root in roots for place in places_of_runs(root, unreadable.append)}
    lost: dict[str, Finding] = {}
    for summary in _all_runs(store):
        places.pop(summary.run_directory, None)
        yield None
        try:
            if not summary.run_directory.is_dir():
                if summary.attempts or summary.state.ended:
                    lost[summary.run_id] = _without_directory(summary)
                continue
            yield from _of_run(store, summary, records, digests=digests)
        except OSError as error:
            yield _unreadable(error, summary.run_id)
    for place in places.values():
        run_id = _run_id(place)
        if place.parent.name != RECORDS or run_id is None or not store.knows_run(run_id):
            yield _without_run(store, place, run_id, lost, drop=records.parent)
    yield from lost.values()
    yield from (_unreadable(error, None) for error in unreadable)


def _folder(place: Path) -> Path:
    """Return the directory that a place of a run is, or is in; the files of a folder of records are for themselves."""
    return place.parent if place.suffix == ".json" and place.parent.name != RECORDS else place


def _all_runs(store: Store) -> Iterator[RunSummary]:
    last = None
    while page := store.runs(limit=_PAGE, after=last):
        yield from page
        last = page[-1]


def _of_run(store: Store, summary: RunSummary, records: Path, *, digests: bool) -> Iterator[Finding]:
    run, detail = RunDirectory(summary.run_directory), store.run(summary.run_id)
    if detail.attempts and detail.attempts[-1].stage is not AttemptStage.FAILED:
        yield from _texts(detail, run)
        yield from _documents(detail, run)
    if digests:
        yield from _outputs(detail)
    if summary.state.ended:
        elsewhere = records / f"{summary.run_id}.json"
        yield from _record(store, detail, elsewhere if elsewhere.exists() else run.provenance)


def _texts(detail: RunDetail, run: RunDirectory) -> Iterator[Finding]:
    newest = detail.attempts[-1]
    for path, digest in ((run.script, newest.script_sha256), (run.template, newest.template_sha256)):
        if not path.is_file():
            yield _changed(detail, path, "isn't there", "`orchestrator show RUN --script` and --template print them")
        elif sha256_of(path.read_bytes()) != digest:
            yield _changed(
                detail, path, "isn't what was recorded", "somebody has changed it; the database has the text"
            )


def _documents(detail: RunDetail, run: RunDirectory) -> Iterator[Finding]:
    """Compare what a rerun, or the kernel, reads of a run's plan."""
    plan, array = detail.plan, detail.plan.array
    told = "somebody has changed it: reruns with sbatch would go by it; `orchestrator show RUN --json` has the plan"
    try:
        theirs = read_plan(run)
        if detail.made_by_hand:  # of whose plan not all is taken
            theirs = replace(theirs, requester=plan.requester, retries=plan.retries, submit_as=plan.submit_as)
        if theirs != plan:
            yield _changed(detail, run.plan, "isn't what was planned", told)
    except InvalidInput as error:
        yield _changed(detail, run.plan, f"can't be read: {error}", told)
    for task in [None] if array is None else range(len(array.values)):
        path = run.parameters_of(task)
        if _json_of(path) != plan.parameter_values(task):
            yield _changed(detail, path, "isn't there, or isn't what was planned", told)
    if detail.message is not None and run.message.exists() and run.message.read_bytes() != detail.message.raw.body:
        remedy = "somebody has changed it; `orchestrator show RUN --message` prints what came"
        yield _changed(detail, run.message, "isn't the message that came", remedy)


def _json_of(path: Path) -> Json:
    try:
        document: Json = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return document


def _outputs(detail: RunDetail) -> Iterator[Finding]:
    for output in detail.outputs:
        if not output.path.is_file():
            yield _changed(
                detail, output.path, f"the {output.kind} isn't there", "bring it back, or make the run again"
            )
        elif output.path.stat().st_size != output.size or file_sha256(output.path) != output.sha256:
            yield _changed(
                detail, output.path, f"the {output.kind} isn't what the run made", "make the run again and compare"
            )


def _record(store: Store, detail: RunDetail, file: Path) -> Iterator[Finding]:
    try:
        other = _differing(detail, detail_of(json.loads(file.read_bytes())))
    except FileNotFoundError:
        what = "there is no record of the ended run"
    except (ValueError, InvalidInput) as error:
        what = f"can't be read: {error}"
    else:
        if not other:
            return
        what = f"doesn't tell what the database does: {', '.join(other)}"
    # Looked at only now: a record that is written meanwhile isn't due any more.
    remedy = "`orchestrator db check --write-records` has the service write it anew; look first who changed it"
    if store.record_is_due(detail.summary.run_id):
        remedy = "a service that runs writes it, in some seconds"
    yield _finding(detail, "record", file, what, remedy)


def _differing(detail: RunDetail, recorded: RunDetail) -> list[str]:
    """Name the parts in which a record differs; which number a message has, and how often it came, isn't the run's."""
    if detail.message is not None and recorded.message is not None:
        same = {name: getattr(detail.message, name) for name in ("message_id", "repeats", "last_received_at")}
        recorded = replace(recorded, message=replace(recorded.message, **same))
    names = (item.name for item in fields(detail))
    return [name for name in names if getattr(detail, name) != getattr(recorded, name)]


def _without_directory(summary: RunSummary) -> Finding:
    return Finding(
        kind="no directory",
        run_id=summary.run_id,
        path=summary.run_directory,
        what="the run's directory isn't there",
        remedy="bring it back from a backup or from where it was moved; the record is in the database",
    )


def _without_run(store: Store, place: Path, run_id: str | None, lost: dict[str, Finding], *, drop: Path) -> Finding:
    """Say what a directory is of which the database has no run; one that was moved is taken out of `lost`."""
    folder = place.parent if place.suffix == ".json" else place
    if run_id in lost:
        moved = lost.pop(run_id)
        return replace(moved, what=f"the run's directory isn't there: it is {folder}", remedy="move it back")
    if run_id is not None and store.knows_run(run_id):
        remedy = "nothing reads it; remove it, or keep it elsewhere"
        return Finding(kind="copy", run_id=run_id, path=folder, what="is a copy of that run's directory", remedy=remedy)
    remedy = f"`orchestrator db import {folder}` brings it back"
    if run_id is not None and (drop / f"{run_id}.json").exists():
        remedy = "made with sbatch, and word of it is there: a service that runs takes it in, in some seconds"
    return Finding(
        kind="no run", run_id=run_id, path=place, what="the database has no run of this directory", remedy=remedy
    )


def _run_id(place: Path) -> str | None:
    """Return which run a place is of, as far as it can be read."""
    document = _json_of(place if place.suffix == ".json" else RunDirectory(place).plan)
    told = document.get("summary", document) if isinstance(document, dict) else None
    run_id = told.get("run_id") if isinstance(told, Mapping) else None
    return run_id if isinstance(run_id, str) else None


def _unreadable(error: OSError, run_id: str | None) -> Finding:
    remedy = "correct the rights, or look with the service's account"
    path = Path(os.fsdecode(error.filename or ""))
    return Finding(kind="unreadable", run_id=run_id, path=path, what=error.strerror or str(error), remedy=remedy)


def _changed(detail: RunDetail, path: Path, what: str, remedy: str) -> Finding:
    return _finding(detail, "digest", path, what, remedy)


def _finding(detail: RunDetail, kind: str, path: Path, what: str, remedy: str) -> Finding:
    run_id = detail.summary.run_id
    return Finding(kind=kind, run_id=run_id, path=path, what=what, remedy=remedy.replace(" RUN ", f" {run_id} "))
