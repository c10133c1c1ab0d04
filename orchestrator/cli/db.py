"""``orchestrator db``: where the database's schema stands, and whether it and the runs' directories fit together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import track

from orchestrator.cli.common import ExitCode, JsonOption, err, out, print_json, says_errors
from orchestrator.cli.common import SiteOption as RequiredSite
from orchestrator.provenance import SchemaStatus, Store
from orchestrator.record_keeping import Finding, Imported, import_runs, records_folder
from orchestrator.record_keeping import check as compare
from orchestrator.settings import load_settings

app = typer.Typer(
    name="db",
    help="The provenance database: its schema, and whether it fits the runs' directories.",
    no_args_is_help=True,
)

SiteOption = Annotated[
    Path | None,
    typer.Option("--site", metavar="FILE", envvar="ORCHESTRATOR_SITE", help="Site file that names the database."),
]
UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url", metavar="URL", help="Database itself, e.g. sqlite:////path/file or postgresql://user@host/name."
    ),
]


@app.command()
@says_errors
def upgrade(site: SiteOption = None, url: UrlOption = None) -> None:
    """Bring the schema to the one this release needs; harmless when it is there already.

    Stop the services first, and make a backup: there is no way back.

    - a new site's database: `orchestrator db upgrade --site site.toml`
    """
    with Store.connect(_address(site, url)) as store:
        before = store.upgrade()
        searches = store.schema_status().searches
    if before.current:
        out.print(f"{before.address} has schema {before.newest} already")
    else:
        out.print(f"{before.address} upgraded from {before.revision or 'empty'} to {before.newest}")
    if searches:
        out.print(_row_by_row(searches))


@app.command()
@says_errors
def status(site: SiteOption = None, url: UrlOption = None, json: JsonOption = False) -> None:
    """Say which schema the database has and which one this release needs; exit code 6 when they differ.

    - `orchestrator db status --site site.toml || orchestrator db upgrade --site site.toml`
    """
    with Store.connect(_address(site, url)) as store:
        found = store.schema_status()
    if json:
        print_json({**vars(found), "current": found.current})
    else:
        out.print(
            f"{found.address}\n  schema  {found.revision or 'none'}\n  needed  {found.newest}\n  {_advice(found)}"
        )
        if found.searches:
            out.print(f"  {_row_by_row(found.searches)}")
    if not found.current:
        raise typer.Exit(ExitCode.INCOMPLETE)


def _row_by_row(searches: str) -> str:
    return f"text searches look at every run: {searches}"


def _address(site: Path | None, url: str | None) -> str:
    if url is not None:
        return url
    if site is not None:
        return load_settings(site).database
    raise typer.BadParameter("give --site or --url")


def _advice(found: SchemaStatus) -> str:
    if found.current:
        return "up to date"
    if not found.known:
        return "a newer release upgraded it: use that one"
    return f"{len(found.pending)} to run: `orchestrator db upgrade`"


@app.command()
@says_errors
def check(
    *,
    site: RequiredSite,
    digests: Annotated[
        bool, typer.Option("--digests/--no-digests", help="Whether results are read, and compared with what was made.")
    ] = True,
    write_records: Annotated[
        bool,
        typer.Option(
            "--write-records",
            help="Have the service write the records anew that are gone, or don't tell what the database does.",
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Find what doesn't fit together: runs without a directory, directories without a run, files that were changed.

    Exit code 6 when there is something.

    - quickly, without reading results: `orchestrator db check --no-digests`
    - after a record was lost or spoilt: `orchestrator db check --write-records`
    """
    settings = load_settings(site)
    findings: list[Finding] = []
    number = 0
    roots = {settings.runs_root, settings.reruns.root}
    with Store.open(settings.database) as store:
        looked_at = compare(store, roots, records_folder(settings), digests=digests)
        for found in track(looked_at, "looked at", total=None, console=err, transient=True):
            if found is None:
                number += 1
            else:
                findings.append(found)
        if write_records:
            store.record_again({one.run_id for one in findings if one.kind == "record" and one.run_id is not None})
    if json:
        print_json(findings)
    else:
        for one in findings:
            _say(f"{one.kind}: {one.path}: {one.what}\n  {one.remedy}")
        out.print(f"{number} runs, {len(findings)} findings")
    if findings:
        raise typer.Exit(ExitCode.INCOMPLETE)


@app.command("import")
@says_errors
def import_(
    *,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A runs root, or a part of one.", exists=True, file_okay=False)
    ],
    site: RequiredSite,
    json: JsonOption = False,
) -> None:
    """Bring runs back from the records in their directories, after the database was lost.

    Runs that are there are left alone. A run that was under way is followed again by the service. Exit code 6 when a
    directory couldn't be read, or isn't where it was.

    - all of a site: `orchestrator db upgrade && orchestrator db import /path/runs`
    """
    settings = load_settings(site)
    owner = (settings.runs_root if settings.runs_root.exists() else Path.cwd()).stat().st_uid
    with Store.open(settings.database) as store:
        read = import_runs(store, folder.absolute(), owner=owner)
        *_, done = [Imported(), *track(read, "runs read", total=None, console=err, transient=True)]
    if json:
        print_json(done)
    else:
        out.print(f"{len(done.new)} runs brought back, {len(done.known)} were there")
        for place, why in done.unusable.items():
            _say(f"{place}: {why}")
        for place, before in done.moved.items():
            _say(f"{place}: the run's directory was {before}, which isn't there: move it back")
    if done.unusable or done.moved:
        raise typer.Exit(ExitCode.INCOMPLETE)


def _say(text: str) -> None:
    """Print a sentence with paths in it, whose names may be in another encoding."""
    out.print(text.encode("utf-8", "backslashreplace").decode(), markup=False)
