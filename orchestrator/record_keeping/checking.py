"""What doesn't fit together between the database and the runs' directories, each thing named with what to do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import InvalidInput
from orchestrator.injob import file_sha256
from orchestrator.provenance import RunDetail, RunSummary, Store, detail_of
from orchestrator.record_keeping.importing import places_of_runs
from orchestrator.records import sha256_of
from orchestrator.runs import RECORDS, RunDirectory

_PAGE = 500


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that doesn't fit."""

    kind: str
    """``no directory``, ``no run``, ``digest``, ``record``."""
    run_id: str | None
    path: Path
    what: str
    remedy: str


def check(store: Store, root: Path, *, digests: bool = True) -> Iterator[Finding | None]:
    """Compare the store with the directories below a folder; give None before what is found about each run.

    Parameters
    ----------
    digests
        Whether outputs are read and compared, which takes its time.
    """
    known: set[Path] = set()
    for summary in _all_runs(store):
        known.add(summary.run_directory)
        yield None
        yield from _of_run(store, summary, digests=digests)
    for place in places_of_runs(root):
        folder = place.parent if place.suffix == ".json" else place
        if folder not in known and folder.name != RECORDS:
            yield _without_run(place)


def _all_runs(store: Store) -> Iterator[RunSummary]:
    last = None
    while page := store.runs(limit=_PAGE, after=last):
        yield from page
        last = page[-1]


def _of_run(store: Store, summary: RunSummary, *, digests: bool) -> Iterator[Finding]:
    run = RunDirectory(summary.run_directory)
    if not run.path.is_dir():
        if summary.attempts or summary.state.ended:
            yield Finding(
                kind="no directory",
                run_id=summary.run_id,
                path=run.path,
                what="the run's directory isn't there",
                remedy="bring it back from a backup or from where it was moved; the record is in the database",
            )
        return
    detail = store.run(summary.run_id)
    yield from _texts(detail, run)
    if digests:
        yield from _outputs(detail)
    if summary.state.ended:
        yield from _record(detail, run)


def _texts(detail: RunDetail, run: RunDirectory) -> Iterator[Finding]:
    if not detail.attempts:
        return
    newest = detail.attempts[-1]
    for path, digest in ((run.script, newest.script_sha256), (run.template, newest.template_sha256)):
        if not path.is_file():
            yield _changed(detail, path, "isn't there", "`orchestrator show RUN --script` and --template print them")
        elif sha256_of(path.read_bytes()) != digest:
            yield _changed(
                detail, path, "isn't what was recorded", "somebody has changed it; the database has the text"
            )


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


def _record(detail: RunDetail, run: RunDirectory) -> Iterator[Finding]:
    remedy = "a service that runs writes it, in some seconds"
    try:
        recorded = detail_of(json.loads(run.provenance.read_bytes()))
    except FileNotFoundError:
        yield _finding(detail, "record", run.provenance, "there is no record of the ended run", remedy)
    except (OSError, ValueError, InvalidInput) as error:
        yield _finding(detail, "record", run.provenance, f"can't be read: {error}", remedy)
    else:
        if (recorded.plan, recorded.summary.state) != (detail.plan, detail.summary.state):
            yield _finding(detail, "record", run.provenance, "tells another plan or end than the database", remedy)


def _without_run(place: Path) -> Finding:
    remedy = f"`orchestrator db import {place if place.is_dir() else place.parent}` brings it back"
    return Finding(
        kind="no run", run_id=None, path=place, what="the database has no run of this directory", remedy=remedy
    )


def _changed(detail: RunDetail, path: Path, what: str, remedy: str) -> Finding:
    return _finding(detail, "digest", path, what, remedy)


def _finding(detail: RunDetail, kind: str, path: Path, what: str, remedy: str) -> Finding:
    return Finding(kind=kind, run_id=detail.summary.run_id, path=path, what=what, remedy=remedy)
