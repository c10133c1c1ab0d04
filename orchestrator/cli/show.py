"""``orchestrator show``: everything about one run."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from orchestrator.cli.common import JsonOption, SiteOption, out, print_fields, print_json, says_errors
from orchestrator.cli.description import Findings, Section, describe
from orchestrator.cli.run_argument import RunArgument
from orchestrator.cli.waiting import with_waiting_reasons
from orchestrator.errors import NotFound
from orchestrator.evidence import KernelProgress, newest_progress
from orchestrator.provenance import RunDetail
from orchestrator.runs import RunDirectory
from orchestrator.service import open_store
from orchestrator.settings import load_settings
from orchestrator.staleness import Staleness

MOST_RERUNS = 1000


@says_errors
def show(
    *,
    run: RunArgument,
    site: SiteOption,
    script: Annotated[
        bool, typer.Option("--script", help="Print the script as it was submitted, byte for byte.")
    ] = False,
    template: Annotated[bool, typer.Option("--template", help="Print the template it was rendered from.")] = False,
    message: Annotated[
        bool, typer.Option("--message", help="Print the message that asked for it, as it came.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Tell everything about a run, for somebody who wasn't there.

    State and frames; where the result is; what was processed, with which parameters from where, by which code; the
    script; who asked; on which nodes; what happened when; and which commands lead further.

    - the newest run: `orchestrator show latest`
    - the beginning of an id is enough: `orchestrator show 3f2a`
    - the exact script again: `orchestrator show 3f2a --script > script.sbatch`
    - one fact for a script: `orchestrator show 3f2a --json | jq -r .summary.state`
    """
    if script + template + message + as_json > 1:
        raise typer.BadParameter("--script, --template, --message and --json print different things; give one of them")
    settings = load_settings(site)
    with open_store(settings) as store:
        detail = store.run(run)
        (summary,) = with_waiting_reasons(store, [detail.summary])
        detail = replace(detail, summary=summary)
        reruns = [rerun.run_id for rerun in store.runs(parent=detail.summary.run_id, limit=MOST_RERUNS)]
        parent_known = summary.parent_run is None or store.knows_run(summary.parent_run)
        stale = Staleness(store, settings.templates).reasons([summary]).get(summary.run_id, ())
        earlier, later = store.earlier_runs(detail.summary.run_id), store.later_runs(detail.summary.run_id)
    if script or template or message:
        sys.stdout.buffer.write(_document(detail, script=script, template=template))
        sys.stdout.flush()
        return
    if as_json:
        print_json(asdict(detail) | {"reruns": reruns, "stale": stale, "comes_after": earlier, "before": later})
        return
    options = "" if os.environ.get("ORCHESTRATOR_SITE") else f" --site {shlex.quote(str(site))}"
    findings = Findings(
        sizes=_sizes(detail),
        parent_known=parent_known,
        reruns=reruns,
        earlier=earlier,
        later=later,
        tasks=_tasks(detail),
        stale=stale,
        options=options,
    )
    _print(detail, describe(detail, findings))


def _document(detail: RunDetail, *, script: bool, template: bool) -> bytes:
    run_id = detail.summary.run_id
    if script or template:
        if not detail.attempts:
            raise NotFound(f"run {run_id} has no script: no attempt was made", remedy=detail.summary.reason)
        newest = detail.attempts[-1]
        return (newest.script_text if script else newest.template_text).encode()
    if detail.message is None:
        raise NotFound(f"no message asked for run {run_id}", remedy=f"{detail.summary.requester} did")
    return detail.message.raw.body


def _tasks(detail: RunDetail) -> dict[int, KernelProgress | None]:
    """Return how the kernels of a job array's newest attempt stand, by task; an unreadable file tells nothing."""
    if detail.plan.array is None or not detail.attempts:
        return {}
    attempt = RunDirectory(detail.summary.run_directory).attempt(detail.attempts[-1].tag.attempt)
    told: dict[int, KernelProgress | None] = {}
    for task in range(len(detail.plan.array.values)):
        with suppress(OSError, ValueError):
            told[task] = newest_progress(attempt.task(task))
    return told


def _sizes(detail: RunDetail) -> dict[Path, int | None]:
    paths = {output.path for output in detail.outputs} | {RunDirectory(detail.summary.run_directory).result}
    return {path: path.stat().st_size if path.is_file() else None for path in paths}


def _print(detail: RunDetail, sections: Sequence[Section]) -> None:
    out.print(Text.assemble(("run ", "bold"), detail.summary.run_id))
    for section in sections:
        width = max(len(label) for label, _ in section.fields)
        out.print(Text(f"\n{section.title}", style="bold underline"))
        print_fields(section.fields, label_width=max(width, 10))
