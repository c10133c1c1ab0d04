"""``orchestrator validate``: how valid a run's results, or any NeXus file, are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.common import ExitCode, JsonOption, err, out, print_json, print_table, says_errors
from orchestrator.cli.run_argument import complete_run
from orchestrator.errors import InvalidInput, NotFound
from orchestrator.provenance import Validation, encoded
from orchestrator.service import open_store
from orchestrator.settings import load_settings
from orchestrator.validating import REMEDY, validate_output
from orchestrator.validating import validate as validate_file


@says_errors
def validate(
    *,
    name: Annotated[
        str,
        typer.Argument(
            metavar="RUN_OR_FILE",
            help="A run's id, the beginning of one, or `latest`; or a NeXus file.",
            autocompletion=complete_run,
        ),
    ],
    site: Annotated[
        Path | None,
        typer.Option(
            "--site", metavar="FILE", envvar="ORCHESTRATOR_SITE", help="The site file; for runs.", dir_okay=False
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check a run's results against the NeXus standard now, or a file that nobody has made a run of.

    The service does so by itself when a run is over. What comes of it for a run stands in its record from then on. Exit
    code 6 when something isn't valid, or couldn't be checked.

    - is this file what others can read? `orchestrator validate result.nxs`
    - again, with newer definitions: `orchestrator validate 3f2a`
    """
    found = {Path(name): validate_file(Path(name))} if Path(name).is_file() else _of_run(name, site)
    if as_json:
        print_json([{"path": path, "valid": one.valid, **_told(one)} for path, one in found.items()])
    else:
        _print(found)
    if not all(one.valid for one in found.values()):
        raise typer.Exit(ExitCode.INCOMPLETE)


def _of_run(name: str, site: Path | None) -> Mapping[Path, Validation]:
    """Validate a run's results, and keep what comes of it."""
    if site is None:
        raise InvalidInput(
            f"{name}: no such file, and no site to look for a run", remedy="give --site, or set ORCHESTRATOR_SITE"
        )
    with open_store(load_settings(site)) as store:
        run = store.run(name)
        results = [output for output in run.outputs if output.kind == "result"]
        if not results:
            state = run.summary.state
            raise NotFound(
                f"run {run.summary.run_id} is {state} and has no result on record",
                remedy="validate a run that has ended with one",
            )
        found = {output.path: validate_output(output) for output in results}
        for path, validation in found.items():
            store.record_validation(run.summary.run_id, path, validation)
    return found


def _told(validation: Validation) -> Mapping[str, object]:
    document = encoded(validation)
    return document if isinstance(document, dict) else {}


def _print(found: Mapping[Path, Validation]) -> None:
    rows = [
        ("-", "-", one.application or "-", f"{path}: {one.words}")
        if one.obstacle
        else (str(one.errors), str(one.warnings), one.application or "-", str(path))
        for path, one in found.items()
    ]
    print_table(("errors", "warnings", "definition", "file"), rows)
    for path, one in found.items():
        for text in one.texts:
            out.print(f"{path.name}: {text}", markup=False)
    checked = {f"{one.validator}, definitions {one.definitions}" for one in found.values() if not one.obstacle}
    for by in sorted(checked):
        out.print(f"checked by {by}")
    if any("there is no validator" in one.obstacle for one in found.values()):
        err.print(f"[bold]remedy:[/] {REMEDY}")
