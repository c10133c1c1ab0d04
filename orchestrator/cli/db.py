"""``orchestrator db``: where the database's schema stands, and the way to this release's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.common import ExitCode, JsonOption, out, print_json, says_errors
from orchestrator.provenance import SchemaStatus, Store
from orchestrator.settings import load_settings

app = typer.Typer(name="db", help="The provenance database: its schema, and upgrading it.", no_args_is_help=True)

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
    if before.current:
        out.print(f"{before.address} has schema {before.newest} already")
    else:
        out.print(f"{before.address} upgraded from {before.revision or 'empty'} to {before.newest}")


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
    if not found.current:
        raise typer.Exit(ExitCode.INCOMPLETE)


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
