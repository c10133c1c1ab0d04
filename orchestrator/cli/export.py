"""``orchestrator export``: a run for archives, catalogues and papers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.common import JsonOption, SiteOption, err, out, print_json, says_errors
from orchestrator.cli.run_argument import RunArgument
from orchestrator.errors import InvalidInput
from orchestrator.exporting import Account, Exported, Format, exported_text
from orchestrator.exporting import export as write_export
from orchestrator.service import open_store
from orchestrator.settings import load_settings


@says_errors
def export(
    *,
    run: RunArgument,
    site: SiteOption,
    formats: Annotated[
        list[Format], typer.Option("--format", help="In which form. May be given again.", show_default=False)
    ],
    folder: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Folder to write into. Without it methods, prov or record is printed.",
            file_okay=False,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier export wrote.")] = False,
    results_by_reference: Annotated[
        bool,
        typer.Option("--results-by-reference", help="Leave results out of the crate; name them by their addresses."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a run for archives, catalogues and papers.

    - how the data was processed, for a paper: `orchestrator export 3f2a --format methods`
    - everything for a publication's supplement: `orchestrator export 3f2a --format ro-crate --format methods -o paper`
    - for the facility's catalogue: `orchestrator export latest --format scicat -o catalogue`
    - a crate without large results: `orchestrator export 3f2a --format ro-crate --results-by-reference -o crate`
    """
    settings = load_settings(site)
    with open_store(settings) as store:
        detail = store.run(run)
    account = Account(detail=detail, site=settings.name, facility=settings.facility)
    if folder is None:
        if as_json or overwrite or results_by_reference:
            raise InvalidInput("--json, --overwrite and --results-by-reference are about files", remedy="give -o too")
        typer.echo(exported_text(account, formats), nl=False)
        return
    exported = write_export(
        account, formats, folder.absolute(), overwrite=overwrite, results_by_reference=results_by_reference
    )
    if as_json:
        print_json(exported)
    else:
        _print(exported)


def _print(exported: Exported) -> None:
    for path in exported.written:
        out.print(str(path), markup=False)
    for note in exported.notes:
        err.print(f"note: {note}", markup=False)
