"""``orchestrator plan``: what a message would lead to."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from orchestrator.cli.common import JsonOption, SiteOption, err, out, print_json, says_errors
from orchestrator.errors import InvalidMessage, NotFound
from orchestrator.messages import understand
from orchestrator.planning import Planning, check_allowed
from orchestrator.planning import plan as plan_collection
from orchestrator.records import CollectionStart, JobPlan, RawMessage
from orchestrator.rendering import render
from orchestrator.settings import Settings, load_settings


@says_errors
def plan(
    message: Annotated[Path, typer.Argument(help="A collection-start document, or - for standard input.")],
    site: SiteOption,
    script: Annotated[bool, typer.Option("--script", help="Print the exact script that would be submitted.")] = False,
    json: JsonOption = False,
) -> None:
    """Show what a collection-start message would lead to. Nothing is submitted, nothing is written.

    Shows the recipes that want the collection, each parameter with who decided it and where, what is asked of SLURM,
    and for every other recipe the reason why it isn't chosen. Exit code 6 when no recipe matches.
    """
    settings = load_settings(site)
    start = _read_start(message)
    check_allowed(start.file, settings.allowed_roots)
    planning = plan_collection(start, settings)
    scripts = {one.recipe: render(one, 1, settings.templates) for one in planning.plans}
    if json:
        plans = [asdict(one) | {"script": scripts[one.recipe].text} for one in planning.plans]
        print_json({"plans": plans, "not_chosen": planning.not_chosen})
    elif script:
        sys.stdout.write("\n".join(one.text for one in scripts.values()))
    else:
        _show(planning, settings)
    planning.require_plans()


def _read_start(path: Path) -> CollectionStart:
    try:
        body = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise NotFound(f"{path}: {error.strerror}", remedy="give the message's JSON file, or - for input") from error
    message = understand(RawMessage(body=body, source=f"command:{path}"))
    if not isinstance(message, CollectionStart):
        raise InvalidMessage(
            f"{path}: it is a collection-end message", remedy="give the collection-start message of the same uid"
        )
    return message


def _show(planning: Planning, settings: Settings) -> None:
    for one in planning.plans:
        _show_plan(one, settings)
    for other in planning.not_chosen:
        out.print(f"[dim]not chosen[/]  {other.recipe}: {escape(other.reason)}")
    if planning.plans:
        err.print("Nothing was submitted. The exact script: add --script.")


def _show_plan(one: JobPlan, settings: Settings) -> None:
    out.print(f"[bold]{one.recipe}[/]  run {one.run_id}")
    collection = one.collection
    expected = "unknown number of" if collection.frames_expected is None else collection.frames_expected
    resources = ", ".join(f"{name} {value}" for name, value in asdict(one.resources).items() if value is not None)
    rows = {
        "input": f"{collection.file} {collection.dataset}, {expected} frames",
        "kernel": f"{one.kernel}, started by {' '.join((one.launcher, *one.launcher_options))}",
        "template": str(settings.templates / one.template),
        "resources": resources,
        "directory": str(one.run_directory),
        "ends after": f"{one.stall_timeout_s:g} s without a new frame, {one.appear_timeout_s:g} s without a file",
    }
    for name, value in rows.items():
        out.print(f"  {name:<11} {escape(value)}")
    for parameter in one.parameters:
        source = f"{parameter.origin.value}: {parameter.place}"
        out.print(f"  {escape(f'{parameter.name} = {parameter.value!r}'):<40} [dim]{escape(source)}[/]")
    out.print()
