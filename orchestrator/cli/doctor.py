"""``orchestrator doctor``: what this machine and a site have, what is missing, and what to do about it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.cli.checks import Check, Finding, State, carry_out, of_machine, of_site, problem
from orchestrator.cli.common import ExitCode, JsonOption, out, print_json, print_table, says_errors
from orchestrator.errors import InvalidSettings, NotFound, OrchestratorError
from orchestrator.settings import Settings, load_settings

KERNELS_S = 120.0
"""How long the kernels' part may take: numba compiles when it is used for the first time."""

OptionalSite = Annotated[
    Path | None,
    typer.Option("--site", metavar="FILE", envvar="ORCHESTRATOR_SITE", help="Look at all that this site file names."),
]


@says_errors
def doctor(site: OptionalSite = None, as_json: JsonOption = False) -> None:
    """Say what this machine has for the service and its kernels, what is missing, and what to do about it.

    Looks for SLURM's commands and MPI, and measures for a few seconds how fast the interpreter of the jobs decodes and
    integrates frames, beside what would be possible. With a site file also: whether database, brokers and SLURM answer,
    and folders can be written. Submits and changes nothing. The exit code is 0 when nothing is a problem, else that of
    the first cause: 3, 4, 5 or 6.

    - on a new machine: `orchestrator doctor`
    - before the first run: `orchestrator doctor --site site.toml`
    - for a script: `orchestrator doctor --json | jq '.findings[] | select(.state != "ok")'`
    """
    findings, settings = _looked_around(site)
    # Measured alone: what runs beside it would take its time.
    of_kernels, kernels = _kernels(Path(sys.executable) if settings is None else settings.python)
    findings += of_kernels
    if as_json:
        print_json({"findings": [_public(finding) for finding in findings], "kernels": kernels})
    else:
        _show(findings, kernels)
    codes = [finding.code for finding in findings if finding.state is State.PROBLEM]
    if codes:
        raise typer.Exit(min(codes))


def _looked_around(site: Path | None) -> tuple[list[Finding], Settings | None]:
    if site is None:
        return carry_out(of_machine()), None
    try:
        settings = load_settings(site)
    except InvalidSettings as error:
        return [problem("site file", error), *carry_out(of_machine())], None
    found = f"{site}: site {settings.name}, {len(settings.recipes)} recipes; `orchestrator site check` tells more"
    checks: list[Check] = [*of_site(settings), *of_machine()]
    return [Finding(name="site file", found=found), *carry_out(checks)], settings


def _public(finding: Finding) -> dict[str, Any]:
    return {key: value for key, value in asdict(finding).items() if key != "code"}


# -------------------------------------------------------------------------------------------------- the kernels


def _kernels(python: Path) -> tuple[list[Finding], Mapping[str, Any] | None]:
    """Have the jobs' interpreter examine itself: this program imports no kernel."""
    name = "interpreter"
    try:
        report = _asked(python)
    except OrchestratorError as error:
        return [problem(name, error)], None
    findings = [Finding(name=name, found=f"{python} runs the kernels, {_software(report)}")]
    for found in report["findings"]:
        state = State(found["state"])
        code = ExitCode.INCOMPLETE if state is State.PROBLEM else ExitCode.OK
        findings.append(Finding(**(found | {"state": state}), code=code))
    return findings, report


def _asked(python: Path) -> Mapping[str, Any]:
    command = [str(python), "-P", "-m", "mpi_kernels", "doctor", "--json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=KERNELS_S)
    except FileNotFoundError as error:
        raise NotFound(f"{python}: no such interpreter", remedy="correct python in the site file") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotFound(f"{python} can't run the kernels: {error}", remedy=f"try `{' '.join(command)}`") from error
    try:
        report: Mapping[str, Any] = json.loads(done.stdout)
    except ValueError as error:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise NotFound(
            f"{python} can't run the kernels: {last}",
            remedy=f"try `{' '.join(command)}`; where a module is missing, script/bootstrap installs it",
        ) from error
    return report


def _software(report: Mapping[str, Any]) -> str:
    return f"Python {report['software']['python']}, numpy {report['software']['numpy']}"


# ------------------------------------------------------------------------------------------------------- output


def _show(findings: list[Finding], kernels: Mapping[str, Any] | None) -> None:
    rows = [(finding.name, finding.state.value, finding.found) for finding in findings]
    remedies = [finding.remedy and f"remedy: {finding.remedy}" for finding in findings]
    print_table(("CHECK", "STATE", "FOUND"), rows, notes=remedies)
    if kernels is not None:
        out.print()
        print_table(("FRAMES PER SECOND OF A CORE", "DECODED", "INTEGRATED", ""), list(_speeds(kernels)))


def _speeds(kernels: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    for speed in kernels["speeds"]:
        taken = "taken by the kernels" if speed["way"] == kernels["taken"] else ""
        yield speed["way"], f"{speed['decode_fps']:.0f}", f"{speed['integrate_fps']:.0f}", taken
