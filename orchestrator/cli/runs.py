"""``orchestrator runs``: which runs there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, TypeAlias

import typer

from orchestrator.cli.common import JsonOption, SiteOption, err, out, print_json, print_table, says_errors
from orchestrator.cli.waiting import with_waiting_reasons
from orchestrator.cli.wording import parse_moment
from orchestrator.provenance import RunSummary
from orchestrator.records import RunState
from orchestrator.service import open_store
from orchestrator.settings import load_settings
from orchestrator.staleness import Staleness

Stale: TypeAlias = Mapping[str, tuple[str, ...]]
"""Why runs are stale, by their ids."""

ACTIVE = tuple(state for state in RunState if not state.ended)


@says_errors
def runs(
    *,
    site: SiteOption,
    states: Annotated[
        list[RunState] | None,
        typer.Option(
            "--state", metavar="STATE", help=f"Only in this state: {', '.join(RunState)}. May be given again."
        ),
    ] = None,
    active: Annotated[bool, typer.Option("--active", help="Only runs that haven't ended.")] = False,
    beamline: Annotated[str | None, typer.Option(help="Only of this beamline.")] = None,
    visit: Annotated[str | None, typer.Option(help="Only of this visit.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Only of this recipe.")] = None,
    uid: Annotated[str | None, typer.Option(help="Only of the collection with this uid.")] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help="Only recorded since then: 2026-11-22, 2026-11-22T14:30, today, 3h, 2d, 1w."),
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="Only with this text in id, recipe, uid, visit, file or reason.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """List runs, newest first.

    `frames` says processed / announced (or written, where no number was announced). A run that isn't complete says why:
    why it failed, or why its job waits. One is stale whose input, calibration or template was changed since. On a
    terminal ids and files are shortened; the beginning of an id is enough for the other commands.

    - what is under way: `orchestrator runs --active`
    - what failed today: `orchestrator runs --state failed --since today`
    - all of a visit, for a script: `orchestrator runs --visit cm12345-6 --limit 10000 --json`
    """
    wanted = [*(states or ()), *(ACTIVE if active else ())]
    moment = None if since is None else parse_moment(since)
    settings = load_settings(site)
    with open_store(settings) as store:
        listed = store.runs(
            states=wanted,
            beamline=beamline,
            visit=visit,
            recipe=recipe,
            uid=uid,
            since=moment,
            text=text,
            limit=limit,
        )
        found = with_waiting_reasons(store, listed)
        stale = Staleness(store, settings.templates).reasons(found)
    if as_json:
        print_json([{**asdict(run), "stale": stale.get(run.run_id, ())} for run in found])
    elif not found:
        out.print("No runs.")
    else:
        _print(found, stale)
    if len(found) == limit:
        err.print(f"These are the newest {limit}; --limit gives more.")


def _print(found: Sequence[RunSummary], stale: Stale) -> None:
    headings = ("run", "recorded", "state", "frames", "recipe", "visit", "file")
    if out.is_terminal:
        print_table(headings, [_short(run) for run in found], cut=True, notes=[_why(run, stale) for run in found])
    else:
        print_table((*headings, "job", "attempts", "why"), [_long(run, stale) for run in found])


def _why(run: RunSummary, stale: Stale) -> str:
    why = "" if run.state is RunState.COMPLETE else run.reason
    return "; ".join(part for part in (why, _stale(run, stale)) if part)


def _stale(run: RunSummary, stale: Stale) -> str:
    return f"STALE: {'; '.join(stale[run.run_id])}" if run.run_id in stale else ""


def _short(run: RunSummary) -> tuple[str, ...]:
    recorded = run.created_at.astimezone().strftime("%m-%d %H:%M")
    state = run.state if run.attempts < 2 else f"{run.state} (attempt {run.attempts})"
    return (run.run_id[:8], recorded, state, frames_done(run), run.recipe, run.visit or "-", run.file.name)


def _long(run: RunSummary, stale: Stale) -> tuple[str, ...]:
    recorded = run.created_at.astimezone().isoformat(timespec="seconds")
    where, why = (
        (run.recipe, run.visit or "-", str(run.file)),
        " ".join(f"{run.reason} {_stale(run, stale)}".split()) or "-",
    )
    return (run.run_id, recorded, run.state, frames_done(run), *where, str(run.job or "-"), str(run.attempts), why)


def frames_done(run: RunSummary) -> str:
    """Word how far a run's frames are: processed / announced."""
    if run.counts is None:
        return "-"
    total = run.counts.written if run.counts.expected is None else run.counts.expected
    return f"{run.counts.processed}/{total}"
