"""``orchestrator site``: look at a site file before the service does."""

from __future__ import annotations

import json as json_format
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from orchestrator.cli.common import ExitCode, JsonOption, out, print_json, says_errors
from orchestrator.cli.wording import program_of
from orchestrator.errors import InvalidInput, InvalidTemplate, OrchestratorError
from orchestrator.kernel_parameters import check_parameters
from orchestrator.planning import plan_recipe
from orchestrator.records import CollectionStart
from orchestrator.rendering import compile_template, render, template_names
from orchestrator.settings import Settings, load_settings
from orchestrator.slurm.choice import choose

app = typer.Typer(help="Site files: what this installation is to do, and with what.", no_args_is_help=True)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    ok: bool
    detail: str = ""
    remedy: str = ""


@app.command()
@says_errors
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", envvar="ORCHESTRATOR_SITE", help="The site file.")],
    json: JsonOption = False,
) -> None:
    """Check a site file and all it refers to. Talks to no SLURM, broker or database, and changes nothing.

    Loads the file, compiles every template, renders every recipe's script for a made-up collection and has bash parse
    it, and looks at the folders, the interpreter and the kernels' parameters. Exit code 3 when something is wrong.

    - before the service gets it: `orchestrator site check new.toml`
    - what is wrong, for a script: `orchestrator site check new.toml --json | jq '.[] | select(.ok | not)'`
    """
    settings = load_settings(file)
    findings = [
        Finding(subject=f"site file {file}", ok=True, detail=f"site {settings.name}, {len(settings.recipes)} recipes"),
        *_templates(settings),
        *_recipes(settings),
        *_folders(settings),
        *_interpreter(settings),
    ]
    if json:
        print_json(findings)
    else:
        for finding in findings:
            _show(finding)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(ExitCode.INVALID_INPUT)


@app.command()
@says_errors
def gateway(
    file: Annotated[Path, typer.Argument(metavar="FILE", envvar="ORCHESTRATOR_SITE", help="The site file.")],
    json: JsonOption = False,
) -> None:
    """Say which route to SLURM the service takes with a site file, and why. Asks SLURM; submits and changes nothing.

    With `route = "auto"` every route that the site has is asked, best first. Exit code 5 when the one that is taken
    doesn't answer.

    - which way do the jobs go: `orchestrator site gateway site.toml`
    - is accounting there: `orchestrator site gateway site.toml --json | jq .accounting`
    """
    choice = choose(load_settings(file))
    try:
        info = choice.gateway.check()
    finally:
        choice.gateway.close()
    if json:
        print_json({"reason": choice.reason} | asdict(info))
        return
    out.print(f"[bold]{escape(info.gateway)}[/]: {escape(choice.reason)}")
    out.print(f"cluster {escape(info.cluster)}, SLURM {escape(info.release)}")
    out.print("accounting: " + ("there" if info.accounting else "not there"))


def _show(finding: Finding) -> None:
    mark = "[green]ok[/]   " if finding.ok else "[bold red]wrong[/]"
    out.print(f"{mark} {escape(finding.subject)}{escape(f': {finding.detail}') if finding.detail else ''}")
    if finding.remedy:
        out.print(f"      remedy: {escape(finding.remedy)}")


def _tried(subject: str, action: Callable[[], str]) -> Finding:
    try:
        return Finding(subject=subject, ok=True, detail=action())
    except OrchestratorError as error:
        return Finding(subject=subject, ok=False, detail=str(error), remedy=error.remedy)


# --------------------------------------------------------------------------------------- templates and recipes


def _templates(settings: Settings) -> Iterator[Finding]:
    for name in template_names(settings.templates):

        def compiled(name: str = name) -> str:
            compile_template(name, settings.templates)
            return "compiles"

        yield _tried(f"template {name}", compiled)


def _recipes(settings: Settings) -> Iterator[Finding]:
    collection = _made_up_collection(settings)
    for name in settings.recipes:

        def parsed(name: str = name) -> str:
            script = render(plan_recipe(name, collection, settings), 1, settings.templates)
            _parse_with_bash(script.text, script.template_name)
            return f"script of {len(script.text.splitlines())} lines, bash parses it"

        yield _tried(f"recipe {name}", parsed)


def _made_up_collection(settings: Settings) -> CollectionStart:
    return CollectionStart(
        uid="site-check", beamline=settings.name, detector="detector", visit="visit-1", dataset="/entry/data/data",
        file=settings.allowed_roots[0] / "site-check.nxs", frames_expected=1,
    )  # fmt: skip


def _parse_with_bash(text: str, template: str) -> None:
    done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
    if done.returncode:
        complaint = done.stderr.strip().replace("bash: ", "")
        raise InvalidTemplate(
            f"{template}: bash can't parse the script: {complaint}",
            remedy="see the script with: orchestrator plan MESSAGE.json --script",
        )


# --------------------------------------------------------------------------------------- folders and programs


def _folders(settings: Settings) -> Iterator[Finding]:
    for root in settings.allowed_roots:
        yield _existing("allowed_roots", root, os.R_OK | os.X_OK)
    yield _to_be_written("runs_root", settings.runs_root)
    if settings.spool:
        yield _to_be_written("spool.folder", settings.spool.folder)
    if settings.stomp and settings.stomp.credentials_file:
        yield _existing("stomp.credentials_file", settings.stomp.credentials_file, os.R_OK)


def _existing(key: str, path: Path, access: int) -> Finding:
    subject = f"{key} {path}"
    if not path.exists():
        return Finding(subject=subject, ok=False, detail="doesn't exist", remedy="create it or correct the path")
    if not os.access(path, access):
        return Finding(subject=subject, ok=False, detail="no permission", remedy="give it to this user")
    return Finding(subject=subject, ok=True)


def _to_be_written(key: str, path: Path) -> Finding:
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    detail = "" if there == path else "will be created"
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        detail = f"can't be written ({there})"
        return Finding(subject=f"{key} {path}", ok=False, detail=detail, remedy="give this user the permission")
    return Finding(subject=f"{key} {path}", ok=True, detail=detail)


def _interpreter(settings: Settings) -> Iterator[Finding]:
    found = _existing("python", settings.python, os.X_OK)
    yield found
    if not found.ok:
        return
    for kernel in sorted({recipe.kernel for recipe in settings.recipes.values()}):
        command = [str(settings.python), "-P", "-m", *program_of(kernel), "--schema"]
        done = subprocess.run(command, text=True, capture_output=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            yield Finding(
                subject=f"kernel {kernel}", ok=False, detail=f"{settings.python} can't run it: {last}",
                remedy="install this program into that interpreter, or correct the kernel's name",
            )  # fmt: skip
        else:
            names = _parameter_names(kernel, settings, set(json_format.loads(done.stdout)["properties"]))
            yield names
            yield from _wrong_values(kernel, settings) if names.ok else ()


def _parameter_names(kernel: str, settings: Settings, known: set[str]) -> Finding:
    places = {f"defaults.parameters.{kernel}": settings.defaults.parameters.get(kernel, {})}
    for name, recipe in settings.recipes.items():
        if recipe.kernel == kernel:
            places[f"recipes.{name}.parameters"] = recipe.parameters
            places[f"recipes.{name}.from_metadata"] = recipe.from_metadata
    unknown = [f"{place}.{key}" for place, values in places.items() for key in values if key not in known]
    if unknown:
        return Finding(
            subject=f"kernel {kernel}", ok=False, detail=f"has no such parameter: {', '.join(unknown)}",
            remedy=f"it takes: {', '.join(sorted(known))}",
        )  # fmt: skip
    return Finding(subject=f"kernel {kernel}", ok=True, detail="takes all parameters")


def _wrong_values(kernel: str, settings: Settings) -> Iterator[Finding]:
    """Have a kernel look at what recipes give it, but for those that leave a part to the messages."""
    for name, recipe in settings.recipes.items():
        if recipe.kernel == kernel and not recipe.from_metadata:
            try:
                check_parameters([plan_recipe(name, _made_up_collection(settings), settings)])
            except InvalidInput as error:
                yield Finding(subject=f"recipe {name}", ok=False, detail=str(error), remedy=error.remedy)
