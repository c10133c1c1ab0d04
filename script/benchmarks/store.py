"""How long the questions take that commands and pages ask, with a million runs in the database.

The rows are copies of one run that was recorded by the program; what differs between runs (ids, times, visits, recipes,
files, states) is computed from the run's number: 20 recipes, 5,000 visits, 40 beamlines, 4 % of the runs not complete,
2 % made again, one every 30 s.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from sqlalchemy import Connection
from targets import below, table_of

from orchestrator.provenance import (
    AttemptEnd,
    InputIdentity,
    InputMoment,
    IspybIds,
    MessageKind,
    Mirrored,
    OutputIdentity,
    Store,
    Submitted,
)
from orchestrator.provenance.mirrors import LOOK_AGAIN_AFTER
from orchestrator.records import (
    BatchScript,
    CollectionStart,
    JobIdentity,
    JobPlan,
    JobState,
    Origin,
    Parameter,
    RawMessage,
    Resources,
    RunState,
    RunTag,
    SubmittedJob,
    sha256_of,
    utc_now,
)
from orchestrator.stack.databases import private_mariadb, private_postgresql
from orchestrator.staleness import Staleness

LIMIT_MS = 50.0
DATABASES = ("sqlite", "postgresql")
EVERY_S = 30
"""Seconds from one run to the next."""


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the command line's options."""
    command.add_argument("--runs", type=int, default=1_000_000, metavar="N", help="rows of the table (%(default)s)")
    command.add_argument("--repeats", type=int, default=15, metavar="N", help="of each question (%(default)s)")
    command.add_argument(
        "--databases", nargs="+", choices=(*DATABASES, "mariadb"), default=DATABASES, help="(%(default)s)"
    )


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Fill each database and ask; return milliseconds by database and question."""
    figures: dict[str, Any] = {"runs": options.runs, "databases": {}}
    for name in options.databases:
        with _database(name, folder / name) as url, Store.open(url, create=True) as store:
            began = time.monotonic()
            _fill(store, options.runs)
            sys.stderr.write(f"bench: {name}: {options.runs} runs made in {time.monotonic() - began:.0f} s\n")
            figures["databases"][name] = {
                question: _milliseconds(ask, options.repeats) for question, ask in _questions(store, options.runs)
            }
    return figures


def report(figures: dict[str, Any]) -> int:
    """Print the table and the targets; 0 when all are met."""
    console = Console(width=max(Console().width, 110))
    names = list(figures["databases"])
    table = Table("question", *(f"{name}, ms: median (worst)" for name in names))
    for question in figures["databases"][names[0]]:
        told = [figures["databases"][name][question] for name in names]
        table.add_row(question, *(f"{statistics.median(one):.1f} ({max(one):.1f})" for one in told))
    console.print(f"{figures['runs']} runs", table)
    targets = [
        below(f"{name}: slowest question, median ms", max(map(statistics.median, told.values())), LIMIT_MS)
        for name, told in figures["databases"].items()
    ]
    console.print(table_of(targets))
    return 0 if all(target.met for target in targets) else 1


@contextmanager
def _database(name: str, folder: Path) -> Iterator[str]:
    folder.mkdir(parents=True)
    if name == "sqlite":
        yield f"sqlite:///{folder}/store.sqlite"
        return
    with (private_postgresql if name == "postgresql" else private_mariadb)(folder) as url:
        yield url


def _milliseconds(ask: Callable[[], object], repeats: int) -> list[float]:
    ask()  # the first one fills the caches, as the one before does in a service
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        ask()
        times.append((time.perf_counter() - began) * 1000)
    return times


def _questions(store: Store, runs: int) -> Iterator[tuple[str, Callable[[], object]]]:
    some = _run_id(runs // 2)
    visit, recipe = f"cm{(runs // 2) // 200}-1", f"recipe{runs // 2 % 20}"
    newest, far_behind = store.runs(limit=50), store.run(some).summary
    yield "newest 50", lambda: store.runs(limit=50)
    yield "those of a page far behind", lambda: store.runs(limit=50, after=far_behind)
    yield "of a visit", lambda: store.runs(visit=visit)
    yield "of a beamline", lambda: store.runs(beamline="i07")
    yield "of a recipe", lambda: store.runs(recipe=recipe)
    yield "failed", lambda: store.runs(states=[RunState.FAILED])
    yield "active", lambda: store.runs(states=[state for state in RunState if not state.ended])
    yield "failed or partial", lambda: store.runs(states=[RunState.FAILED, RunState.PARTIAL])
    yield "failed of a visit", lambda: store.runs(states=[RunState.FAILED], visit=visit)
    yield "since an hour", lambda: store.runs(since=utc_now() - timedelta(hours=1))
    yield "of a collection", lambda: store.runs(uid=f"scan-{runs // 2}")
    yield "made again from", lambda: store.runs(parent=some)
    yield "text that many have", lambda: store.runs(text="scan")
    yield "text that one has", lambda: store.runs(text=f"scan-{runs // 2}.")
    yield "text that many had long ago", lambda: store.runs(text="cm12")
    yield "text that no failed one has", lambda: store.runs(text="recipe7", states=[RunState.FAILED])
    yield "text that none has", lambda: store.runs(text="out of memory")
    yield "beginning of an id", lambda: store.find_run(some[:8])
    yield "everything about one", lambda: store.run(some)
    yield "who made a file", lambda: store.makers_of(Path(f"/runs/{runs // 2}/result.nxs"))
    yield "who read a file", lambda: store.users_of(Path(f"/data/{runs // 2}.nxs"))
    yield "stale ones of a page", lambda: Staleness(store, Path("/templates")).reasons(newest)
    yield "messages of a kind", lambda: store.messages(kind=MessageKind.END)
    yield "what stands in ISPyB", lambda: (store.ispyb_counts(), store.ispyb_runs(), store.ispyb_runs(obstructed=True))
    yield "ended in five minutes", lambda: store.ended_attempts(utc_now() - timedelta(minutes=5))
    yield "unwanted jobs", lambda: store.unwanted_jobs(utc_now() - timedelta(days=1))
    yield "active jobs", store.active_jobs
    yield "records that are due", store.due_records
    yield "planned", lambda: store.planned_runs(100)


def _run_id(number: int) -> str:
    return f"{number * 2654435761 % 2**32:08x}-0000-4000-8000-{number:012x}"


# -------------------------------------------------------------------------------------------------- making the rows


def _fill(store: Store, runs: int) -> None:
    _one_run(store)
    for table in _TABLES:
        with store.connected() as connection:
            found = connection.exec_driver_sql(f"SELECT * FROM {table}")  # noqa: S608  a name from below
            columns, bases = list(found.keys()), [tuple(row) for row in found]
        rows = (_copy(table, dict(zip(columns, base, strict=True)), n, runs) for n in range(1, runs) for base in bases)
        inserted = [name for name in columns if name not in _COUNTED.get(table, ())]
        while lot := [tuple(row[name] for name in inserted) for row in itertools.islice(rows, _LOT)]:
            with store.connected() as connection:  # many transactions: one would fill the log of the database
                _insert(connection, table, inserted, lot)
        sys.stderr.write(f"bench: {store.url.get_backend_name()}: {table} filled\n")
    if store.url.get_backend_name() != "sqlite":  # the servers do so by themselves, SQLite doesn't
        with store.connected() as connection:
            for table in _TABLES:
                connection.exec_driver_sql(f"ANALYZE {'TABLE ' if connection.dialect.name == 'mariadb' else ''}{table}")


_LOT = 20_000
_TABLES = ("messages", "runs", "attempts", "parameters", "job_events", "inputs", "outputs", "used_files", "ispyb_runs")
_COUNTED = dict.fromkeys(("job_events", "inputs", "outputs", "used_files"), ("id",))
"""Columns that the database counts up."""


_TIMES = {
    *("created_at", "ended_at", "concluded_at", "recorded_at", "mirrored_at"),
    *("received_at", "last_received_at", "handled_at", "intent_at", "latest_intent_at", "submitted_at"),
}


def _insert(connection: Connection, table: str, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> None:
    """Put rows into a table, in the quickest way that the database has."""
    if connection.dialect.name == "postgresql":
        statement = f"COPY {table} ({', '.join(columns)}) FROM STDIN"
        with connection.connection.cursor().copy(statement) as copy:  # type: ignore[attr-defined]
            for one in rows:
                copy.write_row(one)
        return
    mark = "?" if connection.dialect.name == "sqlite" else "%s"
    statement = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join([mark] * len(columns))})"  # noqa: S608
    connection.exec_driver_sql(statement, list(rows))


def _copy(table: str, base: dict[str, Any], n: int, runs: int) -> dict[str, Any]:
    """Return a row of run `n`: the first run's, but for what each run has of its own."""
    row = base | {"run_id": _run_id(n)} if "run_id" in base else dict(base)
    for name in row.keys() & _TIMES:
        row[name] = _earlier(row[name], (runs - n) * EVERY_S)
    if table == "messages":
        row |= {"id": n + 1, "identity": f"start:{n}", "uid": f"scan-{n}"}
    elif table == "runs":
        state = {0: "failed", 1: "partial", 2: "partial", 3: "cancelled"}.get(n % 100, "complete")
        row |= {
            "message_id": n + 1,
            "collection_uid": f"scan-{n}",
            "visit": f"cm{n // 200}-1",
            "recipe": f"recipe{n % 20}",
            "beamline": f"i{n % 40:02d}",
            "file": f"/data/scan-{n}.nxs",
            "state": state,
            "parent_run_id": _run_id(n - 1) if n % 50 == 0 else None,
            "record_due": False,
        }
    elif table == "attempts":
        row |= {"job_id": n}
    elif table in {"outputs", "used_files"}:
        path = f"/runs/{n}/result.nxs" if table == "outputs" else f"/data/{n}.nxs"
        row |= {"path": path, "path_sha256": sha256_of(path), "sha256": sha256_of(f"content of {path}")}
    return row


def _earlier(value: Any, seconds: float) -> Any:
    """Return a moment so much earlier, as the driver gave it; SQLite's has texts."""
    if value is None:
        return None
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    moved = moment - timedelta(seconds=seconds)
    return moved.strftime("%Y-%m-%d %H:%M:%S.%f") if isinstance(value, str) else moved


def _one_run(store: Store) -> None:
    """Record one run as the program does, from its message to its result."""
    start = CollectionStart(
        uid="scan-0",
        beamline="i00",
        detector="eiger",
        file=Path("/data/scan-0.nxs"),
        dataset="/entry/data",
        visit="cm0-1",
    )
    message = RawMessage(body=b'{"uid": "scan-0"}' + b" " * 500, source="stomp:/queue/collections")
    receipt = store.record_message(message, understood=start)
    plan = JobPlan(
        run_id=_run_id(0),
        recipe="recipe0",
        kernel="azimuthal",
        template="azimuthal.sbatch.j2",
        launcher="mpirun",
        collection=start,
        parameters=(Parameter(name="bins", value=1000, origin=Origin.RECIPE, place="site.toml: recipes.x"),),
        resources=Resources(ntasks=2),
        run_directory=Path("/runs/0"),
        python=Path("/opt/venv/bin/python"),
        stall_timeout_s=300.0,
        appear_timeout_s=120.0,
    )
    tag = RunTag(run_id=plan.run_id, attempt=1)
    store.record_runs(receipt.message_id, [plan], note="planned recipe0")
    script = BatchScript(
        text="#!/bin/bash\n" * 40, template_name=plan.template, template_text="{# ---- a.j2 ---- #}\n" * 3
    )
    store.record_intent(tag, script, gateway="cli")
    identity = JobIdentity(cluster="live", job_id=1, submitted_at=utc_now().replace(microsecond=0))
    store.record_outcomes([Submitted(tag=tag, job=SubmittedJob(identity=identity, gateway="cli"))])
    for kind in ("begin", "end"):
        store.record_event(tag, kind, {"host": "n1", "software": {"python": "3.11"}}, utc_now(), sequence=0)
    file = Path("/data/0.nxs")
    store.record_input(tag.run_id, InputIdentity(at=InputMoment.END, path=file, real_path=file, size=1, mtime_ns=1))
    made = OutputIdentity(path=Path("/runs/0/result.nxs"), kind="result", size=1, sha256=sha256_of(""))
    store.record_output(tag.run_id, made)
    end = AttemptEnd(state=RunState.COMPLETE, reason="all frames", cause=JobState.COMPLETED, ended_at=utc_now())
    store.end_attempt(tag, identity, end)
    now = utc_now() + LOOK_AGAIN_AFTER
    store.enter_for_ispyb(now)
    ids = IspybIds(data_collection=1, processing_job=1, program=1)
    store.record_mirrored(
        Mirrored(run_id=tag.run_id, state=RunState.COMPLETE, attempts=1, ids=ids, fingerprint=sha256_of(""), at=now)
    )
