"""``orchestrator ispyb``: what of the runs stands in the site's ISPyB, and what keeps the others from it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from orchestrator.cli.common import ExitCode, JsonOption, SiteOption, out, print_json, print_table, says_errors
from orchestrator.cli.run_argument import complete_run
from orchestrator.errors import InvalidSettings
from orchestrator.ispyb.database import IspybDatabase
from orchestrator.ispyb.schema import read_schema
from orchestrator.ispyb.tables import grants as grant_statements
from orchestrator.provenance import IspybRun
from orchestrator.records import utc_now
from orchestrator.service import open_store
from orchestrator.settings import Settings, load_settings
from orchestrator.settings.ispyb import IspybSettings

app = typer.Typer(name="ispyb", help="ISPyB: what is mirrored there, and what isn't.", no_args_is_help=True)

_ALL = 1_000_000


@app.command()
@says_errors
def check(site: SiteOption, json: JsonOption = False) -> None:
    """Ask ISPyB whether runs can be mirrored to it: its schema's version, its columns, this user's rights.

    Changes nothing. Exit code 3 when the version isn't one of those that the site file wants, 5 when ISPyB can't be
    reached or rights are missing.

    - before the service gets the site file: `orchestrator ispyb check --site site.toml`
    """
    settings = load_settings(site)
    table = _table(settings)
    database = IspybDatabase(settings.ispyb_url, timeout_s=table.timeout_s)
    try:
        with database.transaction() as connection:
            schema = read_schema(connection)
    finally:
        database.close()
    if json:
        print_json(
            {
                "address": database.address,
                "version": schema.version,
                "wanted": list(table.schema_versions),
                "lacking": {name: list(what) for name, what in schema.lacking.items()},
            }
        )
    else:
        out.print(f"{database.address}\n  schema  {schema.version or 'not told'}")
        for name, what in schema.lacking.items():
            out.print(f"  lacks   {name}: {', '.join(what)}")
    schema.check(table.schema_versions, database.address)
    if not json:
        out.print("  ready   runs can be mirrored")


@app.command()
@says_errors
def status(
    site: SiteOption,
    everything: Annotated[bool, typer.Option("--all", help="Runs without an obstacle as well.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 50,
    json: JsonOption = False,
) -> None:
    """Say which runs don't stand in ISPyB, and why. Asks our own database; exit code 6 when there are some.

    *Active* are those that may change still, and those that weren't looked at yet.

    - what was given up, for a script: `orchestrator ispyb status --json | jq '.runs[] | select(.due_at == null)'`
    """
    settings = load_settings(site)
    _table(settings)
    with open_store(settings) as store:
        counts = store.ispyb_counts()
        runs = store.ispyb_runs(obstructed=not everything, limit=limit)
    if json:
        print_json({"counts": dict(counts), "runs": [_as_json(run) for run in runs]})
    else:
        out.print(", ".join(f"{number} {name.replace('_', ' ')}" for name, number in counts.items()))
        if runs:
            print_table(("run", "state", "in ISPyB", "program", "next", "obstacle"), [_row(run) for run in runs])
    if counts["waiting"] or counts["given_up"]:
        raise typer.Exit(ExitCode.INCOMPLETE)


@app.command()
@says_errors
def again(
    site: SiteOption,
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN]", help="A run's id, the beginning of one, or `latest`.", autocompletion=complete_run
        ),
    ] = None,
    obstructed: Annotated[bool, typer.Option("--obstructed", help="All runs that an obstacle keeps out.")] = False,
) -> None:
    """Have the service mirror runs once more, at once: those that were given up, or that were made before ISPyB was.

    - after the data collections were put in: `orchestrator ispyb again --obstructed`
    - an old run: `orchestrator ispyb again 3f2a`
    """
    if (run is None) is not obstructed:
        raise typer.BadParameter("give a RUN, or --obstructed")
    settings = load_settings(site)
    _table(settings)
    with open_store(settings) as store:
        if run is not None:
            wanted = [store.find_run(run)]
        else:
            wanted = [one.run_id for one in store.ispyb_runs(obstructed=True, limit=_ALL)]
        store.mirror_again(wanted, utc_now())
    out.print(f"{len(wanted)} to be mirrored by the service")


@app.command()
@says_errors
def grants(
    account: Annotated[str, typer.Argument(help="The account, as MariaDB writes it: 'orchestrator'@'%'.")],
    database: Annotated[str, typer.Option(metavar="NAME", help="ISPyB's database.")] = "ispyb",
) -> None:
    """Print the GRANT statements that give an account what the service needs in ISPyB, column by column.

    - for ISPyB's administrator: `orchestrator ispyb grants "'orchestrator'@'%'" > grants.sql`
    """
    for statement in grant_statements(database, account):
        out.print(statement, markup=False)


def _table(settings: Settings) -> IspybSettings:
    if settings.ispyb is None:
        raise InvalidSettings(
            f"{settings.source}: no table [ispyb]: nothing is mirrored",
            remedy="add one, see docs/reference/ispyb.md",
        )
    return settings.ispyb


def _row(run: IspybRun) -> tuple[str, ...]:
    return (
        run.run_id,
        run.run_state,
        run.state or "-",
        str(run.ids.program or "-"),
        _when(run.due_at),
        run.obstacle,
    )


def _when(moment: datetime | None) -> str:
    return "never" if moment is None else moment.astimezone().strftime("%m-%d %H:%M:%S")


def _as_json(run: IspybRun) -> dict[str, object]:
    ids = {"data_collection": run.ids.data_collection, "job": run.ids.processing_job, "program": run.ids.program}
    return {**vars(run), "ids": ids}
