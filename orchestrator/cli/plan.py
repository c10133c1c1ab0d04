"""``orchestrator plan``: what a message would lead to."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from orchestrator.cli.common import JsonOption, SiteOption, err, out, print_fields, print_json, says_errors
from orchestrator.cli.message_argument import MessageArgument, read_message
from orchestrator.cli.wording import counted, resources_asked, retries_allowed
from orchestrator.errors import InvalidMessage
from orchestrator.messages import understand
from orchestrator.planning import Planning, check_allowed
from orchestrator.planning import plan as plan_collection
from orchestrator.records import CollectionStart, JobPlan
from orchestrator.rendering import render
from orchestrator.settings import Settings, load_settings


@says_errors
def plan(
    message: MessageArgument,
    site: SiteOption,
    script: Annotated[bool, typer.Option("--script", help="Print the exact script that would be submitted.")] = False,
    json: JsonOption = False,
) -> None:
    """Show what a collection-start message would lead to. Nothing is submitted, nothing is written.

    Shows the recipes that want the collection, each parameter with who decided it and where, what is asked of SLURM,
    and for every other recipe the reason why it isn't chosen. Exit code 6 when no recipe matches.

    - what would happen: `orchestrator plan start.json`
    - what another site file would change: `diff <(orchestrator plan start.json --script) <(orchestrator plan start.json
      --script --site new.toml)`
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
    message = understand(read_message(path))
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
    rows = (
        *(("comes after", f"{before.recipe}, run {before.run_id}") for before in one.after),
        ("input", f"{collection.file} {collection.dataset}, {expected} frames"),
        ("kernel", f"{one.kernel}, started by {' '.join((one.launcher, *one.launcher_options))}"),
        ("template", str(settings.templates / one.template)),
        ("resources", ", ".join(resources_asked(one.resources))),
        ("tried again", "\n".join((*retries_allowed(one.retries), f"{counted(one.retries.most, 'time')} in all"))),
        ("directory", str(one.run_directory)),
        ("ends after", f"{one.stall_timeout_s:g} s without a new frame, {one.appear_timeout_s:g} s without a file"),
    )
    print_fields(rows)
    parameters = [(parameter.name, f"{parameter.value!r}", parameter) for parameter in one.parameters]
    width = min(max((len(value) for _, value, _ in parameters), default=0), 24)
    label = max((len(name) for name, _, _ in parameters), default=0)
    out.print("  parameters")
    print_fields(
        ((name, f"{value:<{width}}  {it.origin:<7}  {it.place}") for name, value, it in parameters),
        indent=4,
        label_width=label,
    )
    out.print(f"    others: the defaults, see `orchestrator schema kernel/{one.kernel}`\n")
