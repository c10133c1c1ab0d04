"""What every database must do for the provenance store: SQLite, PostgreSQL and MariaDB, all of them real."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text

from orchestrator.errors import InvalidInput, InvalidSettings, NotFound, StoreUnavailable
from orchestrator.provenance import (
    CAME_HOME,
    LOST,
    Arrival,
    AttemptEnd,
    AttemptStage,
    Decision,
    InputIdentity,
    InputMoment,
    Intent,
    MessageKind,
    MessageState,
    NotSubmitted,
    OutputIdentity,
    RunSummary,
    Store,
    Unanswered,
    Validation,
    detail_of,
    plan_to_json,
    record_text,
)
from orchestrator.provenance.leases import database_now
from orchestrator.provenance.runs import lock_run
from orchestrator.provenance.schema import MIGRATIONS, upgrade_schema
from orchestrator.provenance.tables import Base, InputRow, LeaseRow, OutputRow, RunRow
from orchestrator.records import (
    BatchScript,
    CollectionEnd,
    CollectionOutcome,
    CollectionStart,
    Evidence,
    FrameCounts,
    JobIdentity,
    JobPlan,
    JobReport,
    JobState,
    Json,
    Origin,
    Parameter,
    Predecessor,
    RawMessage,
    Resources,
    Retry,
    RunState,
    RunTag,
    SubmittedJob,
    utc_now,
)
from orchestrator.stack import processes
from orchestrator.stack.databases import accepts_connections, private_mariadb, private_postgresql
from orchestrator.stack.programs import find_program

CHECKOUT = Path(__file__).parents[2]
NOON = datetime(2026, 11, 22, 12, 0, 0, 123456, tzinfo=UTC)
A_RETRY = Retry(
    resources=Resources(memory_mb=2, exclude="n1"), because="attempt 1 lost", changes=("memory 1 → 2 MB", "not on n1")
)
AN_END = AttemptEnd(state=RunState.FAILED, reason="lost", cause=JobState.NODE_FAIL, ended_at=NOON)
SCRIPT = BatchScript(text="#!/bin/bash\nexit 0\n", template_name="azimuthal.sbatch.j2", template_text="{{ plan }}")


# ------------------------------------------------------------------------------------------------------ records


def a_start(uid: str = "c-1", **changes: Any) -> CollectionStart:
    plain = CollectionStart(
        uid=uid,
        beamline="i22",
        detector="pilatus",
        file=Path("/data/i22/cm1/scan.h5"),
        dataset="/entry/data",
        visit="cm1-1",
        frames_expected=200,
        started_at=NOON,
        metadata={"energy_keV": 12.4, "sample": "AgBeh", "n": 3, "dark": False},
    )
    return replace(plain, **changes)


def a_message(body: bytes = b"{}", **changes: Any) -> RawMessage:
    return replace(RawMessage(body=body, source="stomp:collection", headers={"id": "7"}, received_at=NOON), **changes)


def a_plan(start: CollectionStart | None = None, **changes: Any) -> JobPlan:
    run_id = changes.pop("run_id", str(uuid4()))
    plain = JobPlan(
        run_id=run_id,
        recipe="azimuthal",
        kernel="azimuthal",
        template="azimuthal.sbatch.j2",
        launcher="mpirun",
        launcher_options=("--oversubscribe",),
        collection=start or a_start(),
        parameters=(
            Parameter(name="bins", value=1000, origin=Origin.RECIPE, place="demo.toml: recipes.azimuthal.bins"),
            Parameter(name="mask", value=None, origin=Origin.DEFAULT, place="kernel"),
            Parameter(name="range", value=[0.1, 3.5], origin=Origin.MESSAGE, place="metadata.range"),
        ),
        resources=Resources(ntasks=2, memory_mb=500, partition="live"),
        run_directory=Path(f"/runs/i22/cm1-1/azimuthal-c-1-{run_id[:8]}"),
        modules=("openmpi/4",),
        environment={"OMP_NUM_THREADS": "1"},
        python=Path("/usr/bin/python3"),
        stall_timeout_s=300.0,
        appear_timeout_s=120.0,
    )
    return replace(plain, **changes)


def a_job(job_id: int = 42) -> SubmittedJob:
    return SubmittedJob(
        identity=JobIdentity(cluster="live", job_id=job_id, submitted_at=NOON.replace(microsecond=0)), gateway="cli"
    )


def a_report(tag: RunTag, state: JobState = JobState.RUNNING, **changes: Any) -> JobReport:
    plain = JobReport(
        identity=a_job().identity,
        name=tag.job_name,
        state=state,
        words=state.name,
        evidence=Evidence.CONTROLLER,
        nodes="n[1-2]",
        started_at=NOON,
        comment=tag.comment,
    )
    return replace(plain, **changes)


def planned(store: Store, plan: JobPlan | None = None) -> RunTag:
    """Put a run into the store as a message makes it; returns the tag of its first attempt."""
    plan = plan or a_plan()
    receipt = store.record_message(a_message(), understood=plan.collection)
    store.record_runs(receipt.message_id, [plan], note="one run")
    return RunTag(run_id=plan.run_id, attempt=1)


def submitted(store: Store, plan: JobPlan | None = None) -> RunTag:
    """Bring a run as far as an accepted job."""
    tag = planned(store, plan)
    assert store.record_intent(tag, SCRIPT, gateway="cli")
    assert store.record_submitted(tag, a_job())
    return tag


def at_once(calls: int, call: Callable[[int], Any]) -> list[Any]:
    """Make calls from as many threads at the same moment."""
    barrier = threading.Barrier(calls)

    def one(number: int) -> Any:
        barrier.wait()
        return call(number)

    with ThreadPoolExecutor(calls) as pool:
        return list(pool.map(one, range(calls)))


# ------------------------------------------------------------------------------------------------------ databases


@dataclass(frozen=True)
class Place:
    """Where a backend's databases are made."""

    new: Callable[[], str]
    """Make an empty database, return its URL."""


def _server_place(url: str) -> Place:
    def new() -> str:
        name = f"t{uuid4().hex[:12]}"
        engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        engine.dispose()
        return sqlalchemy.make_url(url).set(database=name).render_as_string(hide_password=False)

    return Place(new=new)


@dataclass(frozen=True)
class Doomed:
    """A server that may be killed."""

    url: str
    directory: Path
    prefix: tuple[str, ...]
    """Words before its command that give it its user."""

    def kill(self) -> list[str]:
        """Kill it with all its children; returns its command."""
        named = os.fsencode(self.directory)
        (server,) = processes.processes_where(lambda folder: named in (folder / "cmdline").read_bytes())
        command = (processes.PROC / str(server.pid) / "cmdline").read_text().rstrip("\0").split("\0")
        children = processes.with_descendants([server]) - {server}
        processes.kill(server)
        assert processes.wait_until(lambda: not any(processes.is_alive(child) for child in children), timeout_s=30)
        return command

    @contextmanager
    def started_again(self, command: list[str]) -> Iterator[None]:
        again = processes.launch([*self.prefix, *command], log=self.directory / "again.log", directory=self.directory)
        try:
            assert processes.wait_until(lambda: accepts_connections(self.url), timeout_s=60)
            yield
        finally:
            processes.end([again])


@pytest.fixture(scope="module")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with private_postgresql(tmp_path_factory.mktemp("postgresql")) as url:
        yield url


@pytest.fixture(scope="module")
def mariadb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with private_mariadb(tmp_path_factory.mktemp("mariadb")) as url:
        yield url


def _recorded_at_random(store: Store, chance: random.Random, number: int) -> str:
    """Record a run whose words come from few, many at the same moment."""
    words = ["scan", "SCAN", "50%", "a_b", 'say "no"', "x/y", "x\\y", "-", "é", "ø", "ab", "it's"]
    start = a_start(
        "".join(chance.choices(words, k=3)) + f"-{number}",
        visit=chance.choice([None, "cm1-1", "cm1-2"]),
        file=Path("/data", *chance.choices(["scan", "dark", "Å", "a b", "C*D"], k=2)),
    )
    run_id = planned(store, a_plan(start, recipe=chance.choice(words))).run_id
    with store.writing() as session:
        session.get_one(RunRow, run_id).created_at = NOON + timedelta(microseconds=chance.randrange(30))
    return run_id


def _change_at_random(store: Store, chance: random.Random, runs: list[str]) -> None:
    """End most runs, and change afterwards what is said of some."""
    reasons = ["all frames", "Node n1 died", "scan 50%", "", "äöü"]
    for run_id in chance.sample(runs, 45):
        store.finish_run(run_id, chance.choice([RunState.COMPLETE, RunState.FAILED]), chance.choice(reasons))
    for run_id in chance.sample(runs, 20):
        with store.writing() as session:
            row = session.get_one(RunRow, run_id)
            row.reason, row.visit = f"{chance.choice(reasons)} {row.reason}", chance.choice(["cm1-1", "other"])
            row.created_at += timedelta(microseconds=chance.choice([0, 0, 1, 7]))
    for run_id in chance.sample(runs, 5):
        with store.writing() as session:
            for table in ("parameters", "runs"):
                session.execute(text(f"DELETE FROM {table} WHERE run_id = :run"), {"run": run_id})  # noqa: S608


def _a_text(chance: random.Random, listed: Sequence[RunSummary]) -> str:
    """Return a piece of what some run says, as it is or in other letters, or something that none does."""
    run = chance.choice(listed)
    words = chance.choice(_words_of(run)) or "nothing"
    begin = chance.randrange(len(words))
    piece = words[begin : begin + chance.choice([1, 2, 3, 4, 8, 40])] * chance.choice([1, 1, 1, 1, 50])
    ascii_only = piece.isascii()  # SQLite and names on PostgreSQL know no other capitals
    return chance.choice([piece, piece, piece.upper() if ascii_only else piece, piece + "x", "%%%", "_" * 3])


def _words_of(run: RunSummary) -> tuple[str, ...]:
    return run.run_id, run.recipe, run.collection_uid, run.visit or "", str(run.file), run.reason


def _has(run: RunSummary, wanted: str) -> bool:
    return any(wanted.lower() in words.lower() for words in _words_of(run))


# ------------------------------------------------------------------------------------------------------- contract


class StoreContract:
    """Subclasses give the fixture ``place``."""

    @pytest.fixture(scope="class")
    @classmethod
    def shared_url(cls, place: Place) -> str:
        url = place.new()
        Store.open(url, create=True).close()
        return url

    @pytest.fixture
    def url(self, shared_url: str) -> str:
        """Return the address of a database with all tables and no rows."""
        with Store.open(shared_url) as store, store.writing() as session:
            for table in reversed(Base.metadata.sorted_tables):
                session.execute(table.delete())
        return shared_url

    @pytest.fixture
    def store(self, url: str) -> Iterator[Store]:
        with Store.open(url, busy_timeout_s=20) as store:
            yield store

    # ------------------------------------------------------------------------------------------------ messages

    def test_a_message_comes_back_byte_for_byte(self, store: Store) -> None:
        raw = a_message(bytes(range(256)) * 1000, headers={"message-id": "a:1", "persistent": "true"})
        receipt = store.record_message(raw, understood=a_start())
        assert (receipt.duplicate, receipt.rejection) == (False, None)
        assert store.message(receipt.message_id).raw == raw

    def test_a_start_waits_until_it_is_handled(self, store: Store) -> None:
        first = store.record_message(a_message(b"1"), understood=a_start("c-1"))
        second = store.record_message(a_message(b"2"), understood=a_start("c-2", ignored=("x.y",)))
        assert [waiting.start for waiting in store.waiting_starts()] == [
            a_start("c-1"),
            a_start("c-2", ignored=("x.y",)),
        ]
        store.record_decisions([Decision(message_id=first.message_id, plans=(), note="no recipe")])
        assert [waiting.message_id for waiting in store.waiting_starts()] == [second.message_id]
        assert store.message(first.message_id).note == "no recipe"

    def test_a_repeated_start_is_counted_and_nothing_else(self, store: Store) -> None:
        first = store.record_message(a_message(b"{}"), understood=a_start())
        again = store.record_message(a_message(b"{ }"), understood=a_start(ignored=("new",)))
        assert again == replace(first, duplicate=True)
        (record,) = store.messages()
        assert (record.repeats, record.raw.body) == (1, b"{}")

    def test_another_collection_with_a_used_uid_is_rejected_naming_the_first(self, store: Store) -> None:
        first = store.record_message(a_message(b"1"), understood=a_start())
        other = store.record_message(a_message(b"2"), understood=a_start(beamline="i15"))
        assert other.rejection is not None
        assert "another collection-start with this uid was received at 2026-11-22 12:00:00" in other.rejection
        assert store.message(other.message_id).state is MessageState.REJECTED
        again = store.record_message(a_message(b"2"), understood=a_start(beamline="i15"))
        assert (again.message_id, again.duplicate, again.rejection) == (other.message_id, True, other.rejection)
        assert [waiting.message_id for waiting in store.waiting_starts()] == [first.message_id]

    def test_what_was_not_understood_is_kept_once_with_the_reason(self, store: Store) -> None:
        raw = a_message(b"\xff\x00no json")
        first = store.record_message(raw, understood=None, rejection="not JSON: \udcff \x00")
        again = store.record_message(raw, understood=None, rejection="not JSON: \udcff \x00")
        assert (again.message_id, again.duplicate) == (first.message_id, True)
        (record,) = store.messages(state=MessageState.REJECTED, kind=MessageKind.UNREADABLE)
        assert record.raw == raw
        assert record.rejection == r"not JSON: \udcff \x00"
        assert store.messages(state=MessageState.WAITING) == []

    def test_an_end_is_found_by_uid_whichever_came_first(self, store: Store) -> None:
        end = CollectionEnd(uid="c-1", outcome=CollectionOutcome.FINISHED, frames_written=200, ended_at=NOON)
        assert store.collection_end("c-1") is None
        store.record_message(a_message(b"end"), understood=end)
        store.record_message(a_message(b"start"), understood=a_start("c-1"))
        assert store.collection_end("c-1") == end
        assert store.collection_end("c-2") is None
        later = store.record_message(a_message(b"end 2"), understood=replace(end, outcome=CollectionOutcome.ABORTED))
        assert later.rejection is not None
        assert store.collection_end("c-1") == end

    def test_ends_are_found_for_many_collections_at_once_and_those_that_came_since(self, store: Store) -> None:
        assert (store.newest_message(), store.ended_collections(0)) == (0, {})
        ends = {
            uid: CollectionEnd(uid=uid, outcome=CollectionOutcome.FINISHED, frames_written=7, ended_at=NOON)
            for uid in ("c-1", "c-2", "c\x00")
        }
        numbers = [store.record_message(a_message(b"end"), understood=end).message_id for end in ends.values()]
        store.record_message(a_message(b"start"), understood=a_start("c-3"))
        assert store.newest_message() > numbers[-1]
        assert store.collection_ends([*ends, "c-3", *(f"none-{n}" for n in range(1200))]) == ends
        assert list(store.ended_collections(numbers[0])) == numbers[1:]
        assert store.ended_collections(0)[numbers[1]] == "c-2"
        assert store.ended_collections(numbers[-1]) == {}

    def test_uids_are_told_apart_byte_by_byte(self, store: Store) -> None:
        for number, uid in enumerate(("scan", "Scan", "scan ", "scän", "scan\udcff", "scan\x00")):
            receipt = store.record_message(a_message(bytes([number])), understood=a_start(uid))
            assert (receipt.duplicate, receipt.rejection) == (False, None)

    def test_a_uid_that_is_too_long_is_rejected_not_cut(self, store: Store) -> None:
        receipt = store.record_message(a_message(), understood=a_start("u" * 300))
        assert receipt.rejection is not None
        assert "300 characters" in receipt.rejection
        assert store.waiting_starts() == []

    def test_the_same_message_from_many_services_makes_one_row(self, url: str) -> None:
        stores = [Store.open(url, busy_timeout_s=20) for _ in range(6)]
        try:
            for round_ in range(5):
                start = a_start(f"race-{round_}")
                raw = a_message(b"%d" % round_)

                def record(number: int, raw: RawMessage = raw, start: CollectionStart = start) -> bool:
                    return stores[number].record_message(raw, understood=start).duplicate

                assert sorted(at_once(6, record)) == [False] + [True] * 5
                (record_,) = stores[0].messages(uid=start.uid)
                assert record_.repeats == 5
        finally:
            for store in stores:
                store.close()

    def test_messages_that_came_together_are_recorded_in_their_order(self, store: Store) -> None:
        known = store.record_message(a_message(b"known"), understood=a_start("c-known"))
        starts = [a_start(f"c-{number}") for number in range(40)]
        end = CollectionEnd(uid="c-3", outcome=CollectionOutcome.FINISHED, frames_written=200)
        receipts = store.record_messages(
            [
                *(Arrival(raw=a_message(b"%d" % number), understood=start) for number, start in enumerate(starts)),
                Arrival(raw=a_message(b"again"), understood=starts[2]),
                Arrival(raw=a_message(b"known"), understood=a_start("c-known")),
                Arrival(raw=a_message(b"other"), understood=replace(starts[5], beamline="i15")),
                Arrival(raw=a_message(b"other"), understood=replace(starts[5], beamline="i15")),
                Arrival(raw=a_message(b"["), understood=None, rejection="not JSON"),
                Arrival(raw=a_message(b"end"), understood=end),
            ]
        )
        ids = [receipt.message_id for receipt in receipts]
        assert ids[:40] == sorted(ids[:40])
        waiting = [waiting.start.uid for waiting in store.waiting_starts()]
        assert waiting == ["c-known", *(start.uid for start in starts)]
        assert ids[40:42] == [ids[2], known.message_id]
        assert [receipt.duplicate for receipt in receipts] == [False] * 40 + [True, True, False, True, False, False]
        assert store.message(ids[2]).repeats == 1
        assert f"(message {ids[5]})" in str(receipts[42].rejection)
        assert receipts[43] == replace(receipts[42], duplicate=True)
        assert receipts[44].rejection == "not JSON"
        assert store.collection_end("c-3") == end

    def test_one_message_that_can_not_be_recorded_leaves_none_of_those_that_came_with_it(self, store: Store) -> None:
        arrivals = [
            Arrival(raw=a_message(b"good"), understood=a_start("c-good")),
            Arrival(raw=a_message(b"naive", received_at=NOON.replace(tzinfo=None)), understood=a_start("c-naive")),
        ]
        with pytest.raises(sqlalchemy.exc.StatementError, match="no time zone"):
            store.record_messages(arrivals)
        assert store.messages() == []

    def test_services_that_get_the_same_messages_in_another_order_make_one_row_of_each(self, url: str) -> None:
        stores = [Store.open(url, busy_timeout_s=20) for _ in range(4)]
        arrivals = [Arrival(raw=a_message(b"%d" % number), understood=a_start(f"c-{number}")) for number in range(20)]

        def record(number: int) -> int:
            mine = arrivals if number % 2 else arrivals[::-1]
            while True:
                try:
                    return sum(not receipt.duplicate for receipt in stores[number].record_messages(mine))
                except StoreUnavailable as error:  # each waited for the other; one of them gave way
                    if "deadlock" not in str(error).lower():
                        raise

        try:
            assert sum(at_once(4, record)) == 20
            assert [record_.repeats for record_ in stores[0].messages()] == [3] * 20
        finally:
            for store in stores:
                store.close()

    def test_messages_are_listed_newest_first_and_filtered(self, store: Store) -> None:
        for number in range(4):
            raw = a_message(b"%d" % number, received_at=NOON + timedelta(hours=number))
            store.record_message(raw, understood=a_start(f"c-{number}"))
        assert [record.uid for record in store.messages(limit=2)] == ["c-3", "c-2"]
        assert [record.uid for record in store.messages(since=NOON + timedelta(hours=3))] == ["c-3"]
        with pytest.raises(NotFound, match="message 99999"):
            store.message(99999)

    # ---------------------------------------------------------------------------------------------------- runs

    def test_a_plan_comes_back_whole_with_its_message(self, store: Store) -> None:
        plan = a_plan()
        planned(store, plan)
        (run,) = store.planned_runs()
        assert (run.plan, run.message, run.tag) == (plan, a_message(), RunTag(run_id=plan.run_id, attempt=1))
        detail = store.run(plan.run_id)
        assert (detail.plan, detail.parameters) == (plan, plan.parameters)
        assert detail.message is not None
        assert (detail.message.state, detail.message.note) == (MessageState.HANDLED, "one run")

    def test_recording_runs_again_leaves_them_alone(self, store: Store) -> None:
        receipt = store.record_message(a_message(), understood=a_start())
        plans = [a_plan(), a_plan()]
        assert store.record_runs(receipt.message_id, plans[:1], note="") == [plans[0].run_id]
        store.finish_run(plans[0].run_id, RunState.CANCELLED, "by ann")
        assert store.record_runs(receipt.message_id, plans, note="") == [plans[1].run_id]
        assert store.run(plans[0].run_id).summary.state is RunState.CANCELLED

    def test_a_run_needs_no_message_and_its_parent_may_be_unknown(self, store: Store) -> None:
        plan = a_plan(requester="ann", parent_run=str(uuid4()))
        store.record_runs(None, [plan], note="")
        detail = store.run(plan.run_id)
        assert (detail.message, detail.summary.parent_run, detail.summary.requester) == (None, plan.parent_run, "ann")
        assert [run.run_id for run in store.runs(parent=plan.parent_run)] == [plan.run_id]

    def test_a_planned_run_can_be_refused_a_submitted_one_not(self, store: Store) -> None:
        tag = planned(store)
        assert store.record_refused_run(tag.run_id, "undefined variable")
        assert store.run(tag.run_id).summary.state is RunState.REFUSED
        assert store.planned_runs() == []
        other = submitted(store)
        assert not store.record_refused_run(other.run_id, "too late")
        assert store.run(other.run_id).summary.state is RunState.PENDING

    def test_killing_a_writer_leaves_nothing_half(self, url: str, store: Store) -> None:
        receipt = store.record_message(a_message(), understood=a_start())
        child = textwrap.dedent(
            """
            import sys, time
            from sqlalchemy import event
            from sqlalchemy.orm import Session
            from orchestrator.provenance import Store, plan_from_json
            import json

            @event.listens_for(Session, "before_commit")
            def stop(session):
                session.flush()
                print("written, not committed", flush=True)
                time.sleep(60)

            plans = [plan_from_json(plan) for plan in json.loads(sys.argv[3])]
            Store.open(sys.argv[1]).record_runs(int(sys.argv[2]), plans, note="never")
            """
        )
        plans = json.dumps([plan_to_json(a_plan()), plan_to_json(a_plan())])
        command = [sys.executable, "-c", child, url, str(receipt.message_id), plans]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "written, not committed\n"
            writer.kill()
        assert [waiting.message_id for waiting in store.waiting_starts()] == [receipt.message_id]
        assert store.runs() == []
        with store.reading() as session:
            assert session.scalar(text("SELECT count(*) FROM parameters")) == 0
        plan = a_plan()
        assert store.record_runs(receipt.message_id, [plan], note="now") == [plan.run_id]

    def test_attempts_of_runs_that_ended_lately_are_found_with_their_last_report(self, store: Store) -> None:
        tag = submitted(store)
        store.record_report(tag, a_report(tag, JobState.COMPLETED))
        assert store.ended_attempts(NOON) == []
        store.finish_run(tag.run_id, RunState.COMPLETE, "", NOON)
        (attempt,) = store.ended_attempts(NOON)
        assert (attempt.tag, attempt.last_report) == (tag, a_report(tag, JobState.COMPLETED))
        assert store.ended_attempts(NOON + timedelta(seconds=1)) == []

    def test_what_was_heard_instead_of_an_answer_is_kept_until_the_next_intent(self, store: Store) -> None:
        tag = planned(store)
        store.record_intent(tag, SCRIPT, gateway="cli")
        store.record_outcomes([Unanswered(tag=tag, reason="timed out")])
        (unsettled,) = store.unsettled_attempts()
        assert (unsettled.reason, store.run(tag.run_id).summary.reason) == ("timed out", "timed out")
        store.record_outcomes([NotSubmitted(tag=tag, reason="timed out; no job")])
        store.record_intent(tag, SCRIPT, gateway="cli")
        assert store.unsettled_attempts()[0].reason == ""
        store.record_submitted(tag, a_job())
        store.record_outcomes([Unanswered(tag=tag, reason="too late")])
        assert store.run(tag.run_id).summary.reason == ""

    def test_what_was_said_of_one_job_is_not_said_of_another_that_takes_its_place(self, store: Store) -> None:
        tag = submitted(store)
        store.record_report(tag, a_report(tag, JobState.COMPLETED, exit_code=0, ended_at=NOON))
        store.record_submitted(tag, a_job(43))
        (attempt,) = store.active_attempts()
        assert (attempt.identity, attempt.last_report) == (a_job(43).identity, None)

    def test_which_jobs_are_active_is_told_in_a_glance_too(self, store: Store) -> None:
        assert (store.count_active(), store.active_jobs()) == (0, set())
        first, second = submitted(store), submitted(store)
        planned(store)
        assert (store.count_active(), len(store.active_jobs())) == (2, 2)
        assert (second.run_id, 1, a_job().identity.job_id) in store.active_jobs()
        assert [one.tag for one in store.active_attempts({second.run_id})] == [second]
        assert store.active_attempts([]) == []
        store.finish_run(first.run_id, RunState.CANCELLED, "by somebody")
        assert (store.count_active(), len(store.active_jobs())) == (1, 1)

    def test_reports_on_many_jobs_are_recorded_together_or_not_at_all(self, store: Store) -> None:
        tags = [submitted(store) for _ in range(3)]
        reports = {tag: a_report(tag, JobState.RUNNING) for tag in tags}
        assert store.record_reports(reports) == set(tags)
        assert store.record_reports(reports) == set()
        assert {store.run(tag.run_id).summary.state for tag in tags} == {RunState.RUNNING}
        with pytest.raises(NotFound):
            store.record_reports(
                {tags[0]: a_report(tags[0], JobState.SUSPENDED), RunTag(run_id="?", attempt=1): a_report(tags[0])}
            )
        assert store.run(tags[0].run_id).attempts[0].last_report.state is JobState.RUNNING

    def test_progress_is_kept_as_it_was_told(self, store: Store) -> None:
        tag = submitted(store)
        assert store.run(tag.run_id).summary.counts is None
        counts = FrameCounts(
            expected=200, written=200, processed=199, failed=1, lag_median_s=0.004, lag_max_s=1 / 3, finished=True,
            ended_because="file finished",
        )  # fmt: skip
        store.record_progress(tag.run_id, counts)
        assert store.run(tag.run_id).summary.counts == counts
        assert store.active_attempts()[0].counts == counts

    def test_inputs_and_outputs_are_kept_once_per_path(self, store: Store) -> None:
        run_id = planned(store).run_id
        opened = InputIdentity(
            at=InputMoment.OPEN,
            path=Path("/data/" + "deep/" * 700 + "scan.h5"),
            real_path=Path("/gpfs/scan.h5"),
            dataset="/entry/data",
            size=2**40,
            mtime_ns=1_763_812_800_123_456_789,
            inode=2**64 - 1,
            shape=(0, 1679, 1475),
            dtype="uint32",
            chunks=(1, 1679, 1475),
            sources=({"path": "/data/scan_000001.h5", "size": 12},),
            seal={"state": "pending", "algorithm": None, "digest": None, "frames": 0},
            files=({"parameter": "mask", "path": "/calib/mask.npy", "sha256": "b" * 64},),
        )
        sealed = {"state": "sealed", "algorithm": "sha256(xxh3-128)", "digest": "c" * 64, "frames": 200}
        ended = replace(opened, at=InputMoment.END, shape=(200, 1679, 1475), seal=sealed)
        for identity in (replace(opened, size=1), opened, ended):
            store.record_input(run_id, identity)
        result = OutputIdentity(path=Path("/runs/1/result.nxs"), kind="result", size=10, sha256="a" * 64)
        log = replace(result, path=Path("/runs/1/job.log"), kind="log")
        result = replace(result, content_sha256="d" * 64)
        for output in (replace(result, size=1), log, result):
            store.record_output(run_id, output)
        detail = store.run(run_id)
        assert detail.inputs == (opened, ended)
        assert detail.outputs == (log, result)

    def test_what_a_validator_says_of_an_output_is_kept_with_it_and_makes_the_record_due(self, store: Store) -> None:
        tag = submitted(store)
        result = OutputIdentity(path=Path("/runs/1/µ.nxs"), kind="result", size=10, sha256="a" * 64)
        store.record_output(tag.run_id, result)
        store.finish_run(tag.run_id, RunState.COMPLETE, "", NOON)
        assert store.run(tag.run_id).unvalidated == (result,)
        ((_, changes),) = store.due_records()
        store.mark_recorded(tag.run_id, changes, examination_due=True)
        assert (store.due_records(), store.due_examinations()) == ([], [tag.run_id])
        said = Validation(
            validator="nexusformat 2.1.0", definitions="v2026.01", application="NXazint1d", errors=2, warnings=1,
            texts=("/entry/µ: wrong", "'/': \"wrong\""),
        )  # fmt: skip
        store.record_validation(tag.run_id, result.path, said)
        store.record_validation(tag.run_id, Path("/runs/1/another.nxs"), said)
        assert store.run(tag.run_id).outputs == (replace(result, validation=said),)
        assert store.run(tag.run_id).unvalidated == ()
        ((_, changes),) = store.due_records()
        store.mark_recorded(tag.run_id, changes - 1)
        assert store.due_examinations() == [tag.run_id]
        store.mark_recorded(tag.run_id, changes)
        assert (store.due_records(), store.due_examinations()) == ([], [])

    def test_the_digest_of_an_image_is_known_of_the_very_file_that_a_run_recorded(self, store: Store) -> None:
        image: dict[str, Json] = {
            "real_path": "/images/µ.sif",
            "size": 5_000_000_000,
            "mtime_ns": 7,
            "inode": 2**63 + 1,
        }
        path = Path("/images/µ.sif")
        assert store.image_digest(path, image) is None
        for digest in ({}, {"sha256": "a" * 64}, {}):
            tag = submitted(store)
            store.record_software(tag, {"container": {"path": "/images/latest.sif", **image, **digest}})
        assert store.run(tag.run_id).attempts[-1] in store.run(tag.run_id).undigested
        assert store.image_digest(path, image) == "a" * 64
        for change in ({"size": 1}, {"mtime_ns": 8}, {"inode": 2}):
            assert store.image_digest(path, image | change) is None
        assert [(used.role, used.path, used.sha256) for used in store.used_by(tag.run_id)] == [
            ("container image", path, None)
        ]
        assert [used.sha256 for used in store.users_of(Path("/elsewhere.sif"), "a" * 64)] == ["a" * 64]
        assert store.ingredients_of([tag.run_id])[tag.run_id].container["size"] == 5_000_000_000

    def test_a_run_ends_once_and_a_late_verdict_is_an_event(self, store: Store) -> None:
        tag = submitted(store)
        assert store.finish_run(tag.run_id, RunState.COMPLETE, "200 of 200 frames", NOON)
        assert not store.finish_run(tag.run_id, RunState.COMPLETE, "again", NOON)
        assert not store.finish_run(tag.run_id, RunState.FAILED, "exit code 1", NOON)
        detail = store.run(tag.run_id)
        told = (detail.summary.state, detail.summary.reason, detail.summary.ended_at)
        assert told == (RunState.COMPLETE, "200 of 200 frames", NOON)
        (late,) = detail.events
        assert (late.kind, late.detail) == ("late-verdict", {"state": "failed", "reason": "exit code 1"})
        with pytest.raises(ValueError, match="doesn't end as running"):
            store.finish_run(tag.run_id, RunState.RUNNING, "")
        with pytest.raises(NotFound):
            store.finish_run(str(uuid4()), RunState.FAILED, "")

    # ------------------------------------------------------------------------------------------------ attempts

    # ------------------------------------------------------------------------------------------------- retries

    def test_an_attempt_that_ended_is_followed_by_another_with_changes(self, store: Store) -> None:
        tag = submitted(store)
        store.record_report(tag, a_report(tag, JobState.NODE_FAIL))
        counts = FrameCounts(expected=200, written=10, processed=9, failed=1, finished=True)
        store.record_progress(tag.run_id, counts, attempt=1)
        store.record_output(tag.run_id, OutputIdentity(path=Path("/r"), kind="result", size=1, sha256="0"), attempt=1)
        assert store.end_attempt(tag, a_job().identity, AN_END, retry=A_RETRY) is RunState.PLANNED
        assert store.active_attempts() == []
        (waiting,) = store.planned_runs()
        assert (waiting.tag, waiting.retry) == (replace(tag, attempt=2), A_RETRY)
        assert waiting.plan_of_attempt == replace(waiting.plan, resources=A_RETRY.resources)
        # What the first attempt still says isn't said of the run any more; what is heard of its job is.
        store.record_progress(tag.run_id, counts, attempt=1)
        store.record_output(tag.run_id, OutputIdentity(path=Path("/r"), kind="result", size=1, sha256="0"), attempt=1)
        assert store.record_report(tag, replace(a_report(tag, JobState.NODE_FAIL), usage={"elapsed_s": 5}))
        assert [attempt.tag for attempt in store.ended_attempts(utc_now() - timedelta(minutes=1))] == [tag]
        assert store.record_intent(waiting.tag, SCRIPT, gateway="cli")
        store.record_submitted(waiting.tag, a_job(job_id=99))
        detail = store.run(tag.run_id)
        assert (detail.summary.state, detail.summary.counts, detail.outputs) == (RunState.PENDING, None, ())
        assert [one.retry for one in detail.attempts] == [None, A_RETRY]
        assert detail.attempts[0].end is not None
        assert (detail.attempts[0].end.cause, detail.attempts[0].end.reason) == (AN_END.cause, AN_END.reason)
        assert detail.attempts[1].end is None
        assert [event.kind for event in detail.events].count("retry") == 1

    def test_an_attempt_ends_once(self, store: Store) -> None:
        tag = submitted(store)
        assert store.end_attempt(tag, a_job().identity, AN_END, retry=A_RETRY) is RunState.PLANNED
        assert store.end_attempt(tag, a_job().identity, AN_END, retry=A_RETRY) is None
        assert store.end_attempt(tag, a_job().identity, AN_END) is None
        second = replace(tag, attempt=2)
        store.record_intent(second, SCRIPT, gateway="cli")
        store.record_submitted(second, a_job(job_id=99))
        assert store.end_attempt(tag, a_job().identity, AN_END) is None
        assert store.run(tag.run_id).summary.state is RunState.PENDING
        assert store.end_attempt(second, a_job(99).identity, AN_END) is RunState.FAILED
        assert store.end_attempt(second, a_job(99).identity, replace(AN_END, state=RunState.COMPLETE)) is None
        detail = store.run(tag.run_id)
        assert (detail.summary.state, detail.summary.reason, detail.summary.ended_at) == (RunState.FAILED, "lost", NOON)
        assert [event.kind for event in detail.events] == ["retry", "late-verdict"]

    def test_of_many_services_one_has_a_run_tried_again(self, url: str) -> None:
        stores = [Store.open(url, busy_timeout_s=20) for _ in range(6)]
        try:
            for _ in range(5):
                tag, job = submitted(stores[0]), a_job().identity
                with ThreadPoolExecutor(len(stores)) as pool:
                    states = list(pool.map(lambda one: one.end_attempt(tag, job, AN_END, retry=A_RETRY), stores))  # noqa: B023
                assert sorted(map(str, states)) == ["None"] * 5 + ["planned"]
                assert [event.kind for event in stores[0].run(tag.run_id).events] == ["retry"]
        finally:
            for one in stores:
                one.close()

    def test_what_is_said_of_a_job_that_the_attempt_has_no_more_changes_nothing(self, store: Store) -> None:
        tag, another = submitted(store), submitted(store)
        store.record_submitted(tag, a_job(43))
        before = store.run(tag.run_id)
        assert not store.record_report(tag, a_report(tag))
        assert store.record_reports({each: a_report(each) for each in (tag, another)}) == {another}
        assert store.end_attempt(tag, a_job().identity, AN_END, retry=A_RETRY) is None
        assert store.run(tag.run_id) == before
        assert store.plan_again_unbegun(tag, a_job(43).identity, "gone") is RunState.PLANNED
        before = store.run(tag.run_id)
        assert not store.record_report(tag, a_report(tag, identity=a_job(43).identity))
        assert store.end_attempt(tag, a_job(43).identity, AN_END) is None
        assert store.run(tag.run_id) == before

    def test_a_wish_to_cancel_wins_over_a_retry(self, store: Store) -> None:
        tag = submitted(store)
        store.record_event(tag, "cancel", {"by": "ann"}, NOON)
        assert store.end_attempt(tag, a_job().identity, AN_END, retry=A_RETRY) is RunState.FAILED
        assert store.run(tag.run_id).summary.reason == "lost; not tried again, because it was cancelled"

    def test_a_retry_waits_for_its_time(self, store: Store) -> None:
        tag = submitted(store)
        later = replace(A_RETRY, not_before=utc_now() + timedelta(seconds=1.5))
        store.end_attempt(tag, a_job().identity, AN_END, retry=later)
        assert store.planned_runs() == []
        time.sleep(1.6)
        (waiting,) = store.planned_runs()
        assert waiting.tag.attempt == 2

    def test_a_refused_retry_has_its_former_nodes_back_and_then_ends_as_the_attempt_before(self, store: Store) -> None:
        tag = submitted(store)
        store.end_attempt(tag, a_job().identity, AN_END, retry=A_RETRY)
        second = replace(tag, attempt=2)
        store.record_intent(second, SCRIPT, gateway="cli")
        store.record_outcomes([NotSubmitted(tag=second, reason="no such nodes", refused=True)])
        (waiting,) = store.planned_runs()
        assert waiting.tag == second
        assert waiting.retry is not None
        assert (waiting.retry.resources.exclude, waiting.retry.changes) == (None, ("memory 1 → 2 MB",))
        store.record_intent(second, SCRIPT, gateway="cli")
        store.record_outcomes([NotSubmitted(tag=second, reason="too much memory", refused=True)])
        summary = store.run(tag.run_id).summary
        assert (summary.state, summary.reason) == (RunState.FAILED, "lost; attempt 2 was refused: too much memory")
        assert store.planned_runs() == []

    def test_an_answer_to_a_former_attempt_changes_nothing_of_the_next(self, store: Store) -> None:
        tag = submitted(store)
        store.end_attempt(tag, a_job().identity, AN_END, retry=A_RETRY)
        second = replace(tag, attempt=2)
        store.record_intent(second, SCRIPT, gateway="cli")
        assert not store.record_submitted(tag, a_job())
        store.record_outcomes([NotSubmitted(tag=tag, reason="late", refused=True)])
        summary = store.run(tag.run_id).summary
        assert (summary.state, summary.attempts) == (RunState.SUBMITTING, 2)
        assert [unsettled.tag for unsettled in store.unsettled_attempts()] == [second]

    def test_an_intent_is_made_once(self, store: Store) -> None:
        tag = planned(store)
        assert store.record_intent(tag, SCRIPT, gateway="cli")
        assert not store.record_intent(tag, SCRIPT, gateway="cli")
        assert not store.record_intent(replace(tag, attempt=2), SCRIPT, gateway="cli")
        (unsettled,) = store.unsettled_attempts()
        assert (unsettled.tag, unsettled.gateway, unsettled.run_state) == (tag, "cli", RunState.SUBMITTING)
        assert store.planned_runs() == []
        with pytest.raises(NotFound):
            store.record_intent(RunTag(run_id=str(uuid4()), attempt=1), SCRIPT, gateway="cli")

    def test_of_many_services_one_makes_the_attempt(self, url: str) -> None:
        stores = [Store.open(url, busy_timeout_s=20) for _ in range(6)]
        try:
            for _ in range(5):
                tag = planned(stores[0])

                def intend(number: int, tag: RunTag = tag) -> bool:
                    return stores[number].record_intent(tag, SCRIPT, gateway=f"service {number}")

                assert sum(at_once(6, intend)) == 1
                assert len(stores[0].run(tag.run_id).attempts) == 1
        finally:
            for store in stores:
                store.close()

    def test_services_that_share_a_new_template_do_not_hinder_each_other(self, store: Store) -> None:
        tags = [planned(store) for _ in range(6)]
        script = replace(SCRIPT, text="#!/bin/sh\n" + str(uuid4()), template_text=str(uuid4()))
        assert all(at_once(6, lambda number: store.record_intent(tags[number], script, gateway="cli")))

    def test_scripts_and_templates_come_back_byte_for_byte_and_are_stored_once(self, store: Store) -> None:
        script = replace(SCRIPT, text="#!/bin/bash\r\n# Ångström \t \n" + "x" * 4_000_000 + "  \n")
        tags = [planned(store) for _ in range(2)]
        for tag in tags:
            store.record_intent(tag, script, gateway="cli")
            (attempt,) = store.run(tag.run_id).attempts
            assert (attempt.script_text, attempt.script_sha256) == (script.text, script.sha256)
            assert (attempt.template_text, attempt.template_name) == (script.template_text, script.template_name)
        with store.reading() as session:
            assert session.scalar(text("SELECT count(*) FROM texts")) == 2

    def test_an_accepted_job_is_followed_until_its_run_ends(self, store: Store) -> None:
        tag = submitted(store)
        assert store.unsettled_attempts() == []
        (active,) = store.active_attempts()
        assert (active.tag, active.identity, active.gateway) == (tag, a_job().identity, "cli")
        assert (active.run_state, active.last_report, active.frames_expected) == (RunState.PENDING, None, 200)
        assert (active.collection_uid, active.run_directory) == ("c-1", store.run(tag.run_id).plan.run_directory)
        store.finish_run(tag.run_id, RunState.COMPLETE, "")
        assert store.active_attempts() == []

    def test_a_job_accepted_after_its_run_was_cancelled_is_kept_and_unwanted(self, store: Store) -> None:
        tag = planned(store)
        store.record_intent(tag, SCRIPT, gateway="cli")
        store.finish_run(tag.run_id, RunState.CANCELLED, "by ann")
        (unsettled,) = store.unsettled_attempts()
        assert unsettled.run_state is RunState.CANCELLED
        assert not store.record_submitted(tag, replace(a_job(), adopted=True))
        detail = store.run(tag.run_id)
        assert (detail.summary.state, detail.summary.job) == (RunState.CANCELLED, a_job().identity)
        assert detail.attempts[0].adopted

    @pytest.mark.parametrize("retry", [None, A_RETRY], ids=["run over", "run tried again"])
    def test_a_job_that_is_heard_of_after_another_one_ended_its_attempt_is_unwanted_and_changes_nothing(
        self, store: Store, retry: Retry | None
    ) -> None:
        tag = submitted(store)
        store.record_report(tag, a_report(tag, JobState.NODE_FAIL, exit_code=0))
        store.end_attempt(tag, a_job().identity, AN_END, retry=retry)
        before = store.run(tag.run_id).attempts
        assert not store.record_submitted(tag, a_job(43))
        assert store.run(tag.run_id).attempts == before

    def test_a_failed_submission_is_kept_and_tried_again_under_its_own_number(self, store: Store) -> None:
        tag = planned(store)
        store.record_intent(tag, SCRIPT, gateway="cli")
        store.record_outcomes([NotSubmitted(tag=tag, reason="slurmctld is down")])
        (again,) = store.planned_runs()
        assert (again.tag, again.reason) == (tag, "slurmctld is down")
        assert store.run(tag.run_id).attempts[0].stage is AttemptStage.FAILED
        assert store.record_intent(again.tag, SCRIPT, gateway="cli")
        assert not store.record_intent(again.tag, SCRIPT, gateway="cli")
        (unsettled,) = store.unsettled_attempts()
        assert unsettled.intent_at < unsettled.latest_intent_at
        store.record_submitted(again.tag, a_job())
        assert [active.tag for active in store.active_attempts()] == [again.tag]
        detail = store.run(tag.run_id)
        assert [(attempt.stage, attempt.failure) for attempt in detail.attempts] == [(AttemptStage.SUBMITTED, "")]
        assert [(event.kind, event.detail) for event in detail.events if event.kind == "not-submitted"] == [
            ("not-submitted", {"reason": "slurmctld is down", "refused": False})
        ]
        assert (detail.summary.state, detail.summary.reason) == (RunState.PENDING, "")

    def test_the_kernels_defaults_join_the_parameters_and_change_none_that_was_decided(self, store: Store) -> None:
        tag = submitted(store)
        decided = store.run(tag.run_id).parameters
        told = {"unit": "q_nm^-1", "dark": None} | {parameter.name: "other" for parameter in decided}
        for _ in range(2):
            store.record_defaults(tag.run_id, told, place="the kernel's")
        parameters = store.run(tag.run_id).parameters
        assert parameters[: len(decided)] == decided
        assert {(item.name, item.value, item.origin) for item in parameters[len(decided) :]} == {
            ("unit", "q_nm^-1", Origin.DEFAULT),
            ("dark", None, Origin.DEFAULT),
        }

    def test_software_of_the_job_and_of_the_kernel_stand_side_by_side(self, store: Store) -> None:
        tag = submitted(store)
        store.record_software(tag, {"loaded": {"hdf5": "2.0.0"}})
        store.record_software(tag, {"python": "3.11.2"})
        assert store.run(tag.run_id).attempts[0].software == {"loaded": {"hdf5": "2.0.0"}, "python": "3.11.2"}

    def test_an_obstacle_is_said_while_a_run_waits_and_forgotten_once_it_goes_on(self, store: Store) -> None:
        tag = planned(store)
        store.record_obstacle(tag.run_id, "waiting: no space left")
        assert store.run(tag.run_id).summary.reason == "waiting: no space left"
        store.record_intent(tag, SCRIPT, gateway="cli")
        store.record_submitted(tag, a_job())
        store.record_obstacle(tag.run_id, "waiting: no space left")
        assert store.run(tag.run_id).summary.reason == ""

    def test_a_hindrance_is_said_until_it_is_taken_back_and_never_after_the_end(self, store: Store) -> None:
        tag = submitted(store)
        for _ in range(2):
            store.record_hindrance(tag, "its job is suspended")
        assert store.run(tag.run_id).summary.reason == "its job is suspended"
        store.record_hindrance(tag, "")
        assert store.run(tag.run_id).summary.reason == ""
        assert [event.kind for event in store.run(tag.run_id).events] == ["hindrance"]
        store.finish_run(tag.run_id, RunState.FAILED, "exit code 1", NOON)
        store.record_hindrance(tag, "its job is suspended")
        assert store.run(tag.run_id).summary.reason == "exit code 1"

    def test_a_refused_submission_ends_the_run(self, store: Store) -> None:
        tag = planned(store)
        store.record_intent(tag, SCRIPT, gateway="cli")
        store.record_outcomes([NotSubmitted(tag=tag, reason="no partition 'live'", refused=True)])
        summary = store.run(tag.run_id).summary
        assert (summary.state, summary.reason) == (RunState.REFUSED, "no partition 'live'")
        assert summary.ended_at is not None

    def test_a_submission_that_succeeded_can_not_fail_afterwards(self, store: Store) -> None:
        tag = submitted(store)
        store.record_outcomes([NotSubmitted(tag=tag, reason="late", refused=True)])
        assert store.run(tag.run_id).summary.state is RunState.PENDING

    def test_a_report_is_recorded_when_it_is_news(self, store: Store) -> None:
        tag = submitted(store)
        waiting = a_report(tag, JobState.PENDING, reason="Priority", nodes="", started_at=None)
        assert store.record_report(tag, waiting)
        assert not store.record_report(tag, waiting)
        assert store.run(tag.run_id).summary.state is RunState.PENDING
        assert store.record_report(tag, a_report(tag))
        assert store.run(tag.run_id).summary.state is RunState.RUNNING
        assert store.active_attempts()[0].last_report == a_report(tag)
        events = store.run(tag.run_id).events
        assert [(event.kind, event.sequence) for event in events] == [("state", 0), ("state", 1)]
        assert [event.detail["state"] for event in events if isinstance(event.detail, dict)] == ["pending", "running"]

    def test_a_silent_source_takes_nothing_away_and_a_restart_begins_anew(self, store: Store) -> None:
        tag = submitted(store)
        ended = a_report(tag, JobState.NODE_FAIL, exit_code=1, signal=9, ended_at=NOON, usage={"cpu_s": 1.5})
        store.record_report(tag, ended)
        silent = a_report(tag, JobState.UNKNOWN, evidence=Evidence.ABSENCE, nodes="", started_at=None)
        store.record_report(tag, silent)
        told = store.run(tag.run_id).attempts[0].last_report
        assert told == replace(ended, state=JobState.UNKNOWN, words="UNKNOWN", evidence=Evidence.ABSENCE)
        requeued = a_report(tag, JobState.PENDING, restarts=1, nodes="", started_at=None)
        store.record_report(tag, requeued)
        assert store.run(tag.run_id).attempts[0].last_report == requeued

    def test_a_report_after_the_end_adds_to_the_attempt_and_leaves_the_run(self, store: Store) -> None:
        tag = submitted(store)
        store.finish_run(tag.run_id, RunState.FAILED, "exit code 1", NOON)
        usage = {"elapsed_s": 12.5, "max_rss_bytes": 2**40, "cpu": "x86"}
        assert store.record_report(tag, a_report(tag, usage=usage, evidence=Evidence.ACCOUNTING))
        detail = store.run(tag.run_id)
        assert detail.summary.state is RunState.FAILED
        assert detail.attempts[0].last_report is not None
        assert detail.attempts[0].last_report.usage == usage

    def test_events_are_kept_once_per_number(self, store: Store) -> None:
        tag = submitted(store)
        late = NOON.astimezone(timezone(timedelta(hours=5, minutes=30)))
        assert store.record_event(tag, "begin", {"host": "n1", "odd": "\x00\udcff"}, late, sequence=3)
        assert not store.record_event(tag, "begin", {"host": "n2"}, NOON, sequence=3)
        assert store.record_event(tag, "cancelled", {"by": "ann"}, NOON)
        assert store.record_event(tag, "cancelled", {"by": "bob"}, NOON)
        begin, *cancelled = store.run(tag.run_id).attempts[0].events
        assert (begin.at, begin.at.tzinfo) == (NOON, UTC)
        assert begin.detail == {"host": "n1", "odd": "\x00\udcff"}
        assert [event.detail for event in cancelled] == [{"by": "ann"}, {"by": "bob"}]

    def test_software_is_kept_with_the_attempt(self, store: Store) -> None:
        tag = submitted(store)
        store.record_software(tag, {"h5py": "3.15.1", "modules": ["openmpi/4"]})
        assert store.run(tag.run_id).attempts[0].software == {"h5py": "3.15.1", "modules": ["openmpi/4"]}
        with pytest.raises(NotFound, match="no attempt 7"):
            store.record_software(replace(tag, attempt=7), {})

    def test_threads_that_write_about_one_run_do_not_hinder_each_other(self, store: Store) -> None:
        tag = submitted(store)
        counts = FrameCounts(expected=200, written=1, processed=0, failed=0)
        source = InputIdentity(at=InputMoment.OPEN, path=Path("/a"), real_path=Path("/a"))
        writers: list[Callable[[int], object]] = [
            lambda number: store.record_report(tag, a_report(tag, reason=str(number))),
            lambda number: store.record_progress(tag.run_id, replace(counts, processed=number)),
            lambda number: store.record_event(tag, "note", number, utc_now()),
            lambda number: store.record_input(tag.run_id, replace(source, path=Path(f"/{number}"))),
        ]
        at_once(8, lambda thread: [writers[thread % 4](100 * thread + number) for number in range(10)])
        detail = store.run(tag.run_id)
        assert len([event for event in detail.events if event.kind == "state"]) == 20
        assert sorted(event.sequence for event in detail.events if event.kind == "note") == list(range(20))
        assert len(detail.inputs) == 20

    # ------------------------------------------------------------------------------------------------- queries

    def test_runs_are_listed_newest_first_and_filtered(self, store: Store) -> None:
        plans = [
            a_plan(a_start("c-1", visit="cm1-1")),
            a_plan(a_start("c-2", visit="cm1-2", beamline="i15"), recipe="peaks_100%"),
            a_plan(a_start("C-3", visit=None, file=Path("/data/Ångström.h5"))),
        ]
        for plan in plans:
            planned(store, plan)
        store.finish_run(plans[0].run_id, RunState.FAILED, "Node n1 died")
        ids = [plan.run_id for plan in plans]

        def found(**filters: Any) -> list[int]:
            return [ids.index(run.run_id) for run in store.runs(**filters)]

        assert found() == [2, 1, 0]
        assert found(limit=1, after=store.runs(limit=1)[0]) == [1]
        assert found(states=[RunState.FAILED, RunState.CANCELLED]) == [0]
        assert found(beamline="i15") == found(visit="cm1-2") == found(recipe="peaks_100%") == [1]
        assert found(beamline="I15") == found(uid="c-3") == []
        assert found(uid="C-3") == [2]
        assert found(text="node N1") == [0]
        assert found(text="0%") == [1]
        assert found(text="ÅNGSTRÖM" if store.url.get_backend_name() != "sqlite" else "ngstr") == [2]
        assert found(since=utc_now() + timedelta(hours=1)) == []

    def test_a_text_is_found_with_the_index_as_by_looking_at_each_run(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("orchestrator.provenance.listing._LOOKED_THROUGH", 7)
        monkeypatch.setattr("orchestrator.provenance.listing._MOMENTS_AT_ONCE", 3)
        chance = random.Random(7)  # noqa: S311  the same each time
        with Store.open(place.new(), create=True) as store:
            runs = [_recorded_at_random(store, chance, number) for number in range(60)]
            _change_at_random(store, chance, runs)
            has_index = store.schema_status().searches == ""
            assert has_index == (store.url.get_backend_name() != "mariadb")
            listed = store.runs(limit=1000)
            for most_moments in (1000, 4):
                monkeypatch.setattr("orchestrator.provenance.listing._MOST_MOMENTS", most_moments)
                for _ in range(150):
                    wanted = _a_text(chance, listed)
                    states = chance.choice([[], [], [RunState.FAILED], [RunState.FAILED, RunState.PLANNED]])
                    visit = chance.choice([None, None, "cm1-1"])
                    after = chance.choice([None, None, chance.choice(listed)])
                    limit = chance.choice([1, 5, 50])
                    found = store.runs(text=wanted, states=states, visit=visit, after=after, limit=limit)
                    behind = listed if after is None else listed[listed.index(after) + 1 :]
                    expected = [
                        run
                        for run in behind
                        if _has(run, wanted) and run.state in (states or RunState) and visit in {None, run.visit}
                    ]
                    assert list(found) == expected[:limit], (wanted, states, visit, limit)

    def test_a_run_is_found_by_the_beginning_of_its_id(self, store: Store) -> None:
        with pytest.raises(NotFound, match="no run 'latest'"):
            store.run("latest")
        ids = ["aaaa0000-0000-4000-8000-000000000001", "aaaa1000-0000-4000-8000-000000000002"]
        for run_id in ids:
            planned(store, a_plan(run_id=run_id))
        assert store.find_run("AAAA0") == ids[0]
        assert store.find_run(ids[0]) == ids[0]
        assert store.find_run("latest") == ids[1]
        with pytest.raises(NotFound, match=f"several runs: {ids[1]}, {ids[0]}"):
            store.run("aaaa")
        for nothing in ("b", "zz", "", "a%", "aaaa_"):
            with pytest.raises(NotFound, match="no run"):
                store.run(nothing)

    def test_the_questions_of_the_reference_page_can_be_asked(self, store: Store) -> None:
        other_mask = Parameter(name="mask", value="/calib/old.h5", origin=Origin.SITE, place="")
        run_id = submitted(store, a_plan(a_start(visit="cm37235-1"), parameters=(other_mask,))).run_id
        digest = SCRIPT.template_sha256  # any: it stands for the one that the page leaves open
        made = OutputIdentity(path=Path("/r.nxs"), kind="result", size=1, sha256="a" * 64, content_sha256=digest)
        store.record_output(run_id, made)
        looking_inside = {
            "postgresql": "SELECT run_id FROM runs WHERE plan::jsonb ->> 'kernel' = 'azimuthal'",
            "mariadb": "SELECT run_id FROM runs WHERE JSON_VALUE(plan, '$.kernel') = 'azimuthal'",
            "sqlite": "SELECT run_id FROM runs WHERE JSON_EXTRACT(plan, '$.kernel') = 'azimuthal'",
        }
        page = (CHECKOUT / "docs/reference/database.md").read_text()
        _, _, questions = page.partition("## Questions in SQL")
        statements = [part.strip() for part in questions.replace("…", digest).split(";") if part.strip()]
        assert len(statements) == 4
        for statement in (*statements, looking_inside[store.url.get_backend_name()]):
            with store.reading() as session:
                assert session.execute(text(statement)).scalars().all() == [run_id]

    # -------------------------------------------------------------------------------------------------- trouble

    def test_a_lease_is_one_services_until_it_runs_out(self, url: str) -> None:
        with Store.open(url) as first, Store.open(url) as second:
            assert first.hold_lease("work", for_s=1.0)
            assert not second.hold_lease("work", for_s=1.0)
            assert first.hold_lease("work", for_s=1.0)
            assert first.leases() == second.leases() == {"work": first.holder}
            assert second.hold_lease("other", for_s=1.0)
            time.sleep(1.1)
            assert first.leases() == {}
            assert second.hold_lease("work", for_s=60.0)
            assert not first.hold_lease("work", for_s=60.0)

    def test_of_many_services_one_gets_a_lease(self, url: str) -> None:
        stores = [Store.open(url, busy_timeout_s=20) for _ in range(6)]
        try:
            for round_ in range(5):
                got = at_once(6, lambda number, name=f"work {round_}": stores[number].hold_lease(name, for_s=60.0))  # type: ignore[misc]
                assert sorted(got) == [False] * 5 + [True]
        finally:
            for store in stores:
                store.close()

    def test_a_lease_is_measured_by_the_databases_clock_and_outlives_no_jump_of_it(self, store: Store) -> None:
        with store.writing() as session:
            session.add(LeaseRow(name="work", holder="before the clock was put back", until=NOON.replace(year=2100)))
        assert store.hold_lease("work", for_s=60.0)
        with store.writing() as session:
            row = session.get_one(LeaseRow, "work")
            assert timedelta(seconds=50) < row.until - database_now(session) <= timedelta(seconds=60)

    def test_a_service_that_resigns_leaves_its_leases_to_the_others(self, url: str) -> None:
        with Store.open(url) as first, Store.open(url) as second:
            first.become_service()
            assert first.hold_lease("work", for_s=60.0)
            assert second.hold_lease("other", for_s=60.0)
            first.resign()
            assert first.leases() == {"other": second.holder}
            assert second.hold_lease("work", for_s=60.0)

    def test_a_locked_row_is_said_to_be_unavailable_and_later_it_is_not(self, url: str) -> None:
        counts = FrameCounts(expected=1, written=1, processed=1, failed=0)
        with Store.open(url) as other, Store.open(url, busy_timeout_s=1) as store:
            run_id = planned(store).run_id
            with other.writing() as session:
                lock_run(session, run_id)
                with pytest.raises(StoreUnavailable, match=r"(?i)lock") as raised:
                    store.record_progress(run_id, counts)
                assert raised.value.remedy
                assert store.run(run_id).summary.counts is None
            store.record_progress(run_id, counts)
            assert store.run(run_id).summary.counts == counts

    # --------------------------------------------------------------------------------------------------- schema

    def test_migrations_make_the_tables_that_the_program_means(self, place: Place) -> None:
        with Store.open(place.new(), create=True) as store:
            assert _differences(store) == []
            with store.connected() as connection:
                connection.execute(text("ALTER TABLE outputs ADD COLUMN stray INTEGER"))
                connection.execute(text("CREATE INDEX ix_stray ON outputs (size)"))
            assert len(_differences(store)) == 2

    def test_a_schema_that_was_changed_under_a_running_program_is_named_with_the_remedy(self, place: Place) -> None:
        with Store.open(place.new(), create=True) as store:
            with store.connected() as connection:
                connection.execute(text("ALTER TABLE messages DROP COLUMN note"))
                connection.execute(text("DROP TABLE outputs"))
            with pytest.raises(InvalidSettings, match=r"note.*") as raised:
                store.record_message(a_message(), understood=a_start())
            assert "orchestrator db upgrade" in raised.value.remedy
            with pytest.raises(InvalidSettings, match="outputs"), store.reading() as session:
                session.scalar(text("SELECT count(*) FROM outputs"))

    def test_programs_that_start_together_migrate_once(self, place: Place) -> None:
        url = place.new()
        at_once(4, lambda _number: Store.open(url, create=True).close())
        with Store.open(url) as store:
            assert store.schema_status().current

    def test_a_filled_database_of_an_earlier_schema_is_brought_forward(self, place: Place, tmp_path: Path) -> None:
        earlier = tmp_path / "migrations"
        shutil.copytree(MIGRATIONS, earlier)
        for later in [path for path in (earlier / "versions").glob("0*.py") if path.name > "0006"]:
            later.unlink()
        with Store.connect(place.new()) as store:
            upgrade_schema(store, migrations=earlier)
            runs = [(str(uuid4()), RunState.COMPLETE, NOON), (str(uuid4()), RunState.RUNNING, None)]
            common = {
                "requester": "automatic", "recipe": "r", "kernel": "azimuthal", "beamline": "b", "collection_uid": "c",
                "file": "/x", "run_directory": "/y", "plan": {}, "reason": "", "attempts": 0, "created_at": NOON,
                "frames_finished": False, "ended_because": "",
            }  # fmt: skip
            rows = [common | {"run_id": run_id, "state": state, "ended_at": ended} for run_id, state, ended in runs]
            of_run = {"run_id": runs[0][0], "recorded_at": NOON}
            made = of_run | {"path": "/r/result.nxs", "kind": "result", "size": 1, "sha256": "a" * 64}
            read = of_run | {
                "moment": InputMoment.END, "path": "/x", "real_path": "/data/x", "sources": [{"path": "/data/x_1"}],
            }  # fmt: skip
            with store.connected() as connection:
                for table, filled in ((RunRow, rows), (OutputRow, [made]), (InputRow, [read])):
                    columns = [sqlalchemy.Column(name, table.__table__.c[name].type) for name in filled[0]]
                    place_of = sqlalchemy.Table(table.__tablename__, sqlalchemy.MetaData(), *columns)
                    connection.execute(place_of.insert(), filled)
            store.upgrade()
            assert _differences(store) == []
            assert store.due_records() == [(runs[0][0], 0)]
            assert store.due_examinations() == []
            with store.reading() as session:
                assert session.scalars(text("SELECT validation FROM outputs")).all() == [None]
            assert [one.run_id for one in store.makers_of(Path("/r/result.nxs"))] == [runs[0][0]]
            assert [(one.role, one.path) for one in store.used_by(runs[0][0])] == [
                ("input", Path("/data/x")), ("source", Path("/data/x_1")),
            ]  # fmt: skip
            assert {run.run_id for run in store.runs()} == {run_id for run_id, _, _ in runs}

    # ------------------------------------------------------------------------------------------ reruns and records

    def test_a_run_that_comes_home_is_recorded_once_with_its_job(self, store: Store) -> None:
        parent = submitted(store)
        plan = a_plan(parent_run=parent.run_id, requester="ann")
        tag, job = RunTag(run_id=plan.run_id, attempt=1), replace(a_job(43), adopted=True)
        intent = Intent(tag=tag, script=SCRIPT)
        told = {"how": "sbatch", "edits": "+bins = 2000"}
        assert store.record_adopted(plan, intent, job, told, NOON)
        before = store.run(tag.run_id)
        assert not store.record_adopted(plan, intent, job, told, NOON + timedelta(hours=1))
        assert store.run(tag.run_id) == before
        assert before.plan == plan
        assert (before.summary.state, before.summary.job, before.summary.created_at) == (
            RunState.PENDING, job.identity, NOON
        )  # fmt: skip
        assert [(event.kind, event.detail) for event in before.events] == [("made", told)]
        assert before.message == store.run(parent.run_id).message
        assert store.planned_runs() == []
        assert tag in {one.tag for one in store.active_attempts()}

    def test_a_run_whose_parent_is_not_here_finds_its_message_by_the_uid(self, store: Store) -> None:
        receipt = store.record_message(a_message(), understood=a_start())
        for start, message_id in ((a_start(), receipt.message_id), (a_start("another"), None)):
            plan = a_plan(start, parent_run=str(uuid4()))
            intent = Intent(tag=RunTag(run_id=plan.run_id, attempt=1), script=SCRIPT)
            assert store.record_adopted(plan, intent, a_job(100 + (message_id or 0)), {}, NOON)
            message = store.run(plan.run_id).message
            assert (message.message_id if message else None) == message_id

    def test_a_run_does_not_come_home_with_the_job_of_another_one(self, store: Store) -> None:
        parent = submitted(store)
        plan = a_plan(parent_run=parent.run_id)
        intent = Intent(tag=RunTag(run_id=plan.run_id, attempt=1), script=SCRIPT)
        with pytest.raises(InvalidInput, match=f"is that of run {parent.run_id}"):
            store.record_adopted(plan, intent, a_job(), {}, NOON)
        assert [run.run_id for run in store.runs()] == [parent.run_id]

    def test_of_many_services_one_takes_a_run_in(self, url: str) -> None:
        plan = a_plan(parent_run=str(uuid4()))
        intent = Intent(tag=RunTag(run_id=plan.run_id, attempt=1), script=SCRIPT)

        def take_in(_number: int) -> bool:
            with Store.open(url, busy_timeout_s=20) as store:
                return store.record_adopted(plan, intent, a_job(), {"how": "sbatch"}, NOON)

        assert sorted(at_once(4, take_in)) == [False, False, False, True]

    def test_a_job_that_left_no_word_is_told_of_once_and_later_words_take_the_place_of_earlier_ones(
        self, store: Store
    ) -> None:
        parent, job = submitted(store).run_id, a_job(60).identity
        assert store.known_reruns([job]) == set()
        assert store.record_lost_rerun(parent, job, {"words": "RUNNING"}, NOON)
        assert not store.record_lost_rerun(parent, job, {"words": "RUNNING"}, NOON)
        requeued = replace(job, submitted_at=job.submitted_at + timedelta(minutes=5))
        assert store.record_lost_rerun(parent, requeued, {"words": "FAILED"}, NOON + timedelta(hours=1))
        assert not store.record_lost_rerun(parent, job, {"words": "FAILED"}, NOON + timedelta(hours=1))
        assert store.record_lost_rerun(parent, a_job(61).identity, {"words": "TIMEOUT"}, NOON)
        first, second = (event for event in store.run(parent).events if event.kind == LOST)
        told = {"cluster": job.cluster, "job_id": 60, "submitted_at": job.submitted_at.isoformat(), "words": "FAILED"}
        assert (first.attempt, first.sequence, first.at, first.detail) == (0, 0, NOON + timedelta(hours=1), told)
        assert isinstance(second.detail, dict)
        assert second.detail["job_id"] == 61
        assert store.known_reruns([job]) == set()
        with pytest.raises(NotFound):
            store.record_lost_rerun(str(uuid4()), job, {}, NOON)

    def test_a_job_that_came_home_is_known_and_its_parent_says_so(self, store: Store) -> None:
        parent, job = submitted(store).run_id, a_job(62)
        store.record_lost_rerun(parent, job.identity, {"words": "FAILED"}, NOON)
        plan = a_plan(parent_run=parent)
        intent = Intent(tag=RunTag(run_id=plan.run_id, attempt=1), script=SCRIPT)
        assert store.record_adopted(plan, intent, job, {}, NOON)
        assert store.known_reruns([job.identity, a_job(63).identity]) == {(job.identity.cluster, 62, parent)}
        (event,) = (event for event in store.run(parent).events if event.kind == LOST)
        assert isinstance(event.detail, dict)
        assert event.detail[CAME_HOME] == plan.run_id
        assert not store.record_lost_rerun(parent, job.identity, {"words": "TIMEOUT"}, NOON)
        assert store.run(parent).events[-1] == event

    def test_however_word_and_comparison_meet_a_job_is_recorded_once(self, url: str) -> None:
        with Store.open(url) as store:
            parent = submitted(store).run_id
        plans = [a_plan(parent_run=parent) for _ in range(5)]

        def record(number: int) -> None:
            with Store.open(url, busy_timeout_s=20) as store:
                for job_id, plan in enumerate(plans, 70):
                    if number % 2:
                        intent = Intent(tag=RunTag(run_id=plan.run_id, attempt=1), script=SCRIPT)
                        store.record_adopted(plan, intent, a_job(job_id), {}, NOON)
                    else:
                        store.record_lost_rerun(parent, a_job(job_id).identity, {"words": "FAILED"}, NOON)

        at_once(4, record)
        with Store.open(url) as store:
            assert {run.run_id for run in store.runs(parent=parent)} == {plan.run_id for plan in plans}
            told = [dict(event.detail) for event in store.run(parent).events if event.kind == LOST]  # type: ignore[arg-type]
        by_id = {plan.run_id: job_id for job_id, plan in enumerate(plans, 70)}
        assert len(told) == len({one["job_id"] for one in told})
        assert all(by_id[str(one[CAME_HOME])] == one["job_id"] for one in told)

    def test_only_reruns_through_the_service_are_counted_and_while_they_have_a_job(self, store: Store) -> None:
        parent = submitted(store)
        by_hand = a_plan(parent_run=parent.run_id)
        intent = Intent(tag=RunTag(run_id=by_hand.run_id, attempt=1), script=SCRIPT)
        store.record_adopted(by_hand, intent, a_job(50), {}, NOON)
        assert store.count_active_reruns() == 0
        tags = []
        for number in (51, 52):
            plan = a_plan(parent_run=parent.run_id)
            store.record_runs(None, [plan], note="")
            tags.append(RunTag(run_id=plan.run_id, attempt=1))
            assert store.count_active_reruns() == number - 51
            store.record_intent(tags[-1], SCRIPT, gateway="cli")
            assert store.count_active_reruns() == number - 50
            store.record_submitted(tags[-1], a_job(number))
        store.finish_run(tags[0].run_id, RunState.COMPLETE, "")
        assert store.count_active_reruns() == 1

    def test_whatever_changes_about_an_ended_run_makes_its_record_due_again(self, store: Store) -> None:
        tag = submitted(store)
        identity = InputIdentity(at=InputMoment.END, path=Path("/x"), real_path=Path("/x"))
        changes: list[Callable[[], object]] = [
            lambda: store.record_report(tag, a_report(tag, JobState.COMPLETED, usage={"cpu_s": 1.5})),
            lambda: store.record_event(tag, "late", {}, NOON),
            lambda: store.record_software(tag, {"python": "3"}),
            lambda: store.record_input(tag.run_id, identity),
            lambda: store.record_output(
                tag.run_id, OutputIdentity(path=Path("/o"), kind="result", size=1, sha256="ab")
            ),
            lambda: store.record_defaults(tag.run_id, {"unit": "q"}, place="the kernel"),
            lambda: store.record_progress(tag.run_id, FrameCounts(expected=1, written=1, processed=1, failed=0)),
            lambda: store.finish_run(tag.run_id, RunState.FAILED, "a late verdict"),
        ]
        store.record_event(tag, "begin", {}, NOON)
        assert store.due_records() == []  # it hasn't ended
        store.finish_run(tag.run_id, RunState.COMPLETE, "")
        for change in changes:
            ((run_id, number),) = store.due_records()
            store.mark_recorded(run_id, number)
            assert store.due_records() == []
            change()
        ((run_id, number),) = store.due_records()
        store.record_event(tag, "between", {}, NOON)
        store.mark_recorded(run_id, number)  # written before that
        assert len(store.due_records()) == 1

    def test_a_run_comes_back_from_its_record_whole_and_once(self, store: Store, place: Place) -> None:
        tag = submitted(store)
        store.record_report(tag, a_report(tag, JobState.COMPLETED, exit_code=0, usage={"cpu_s": 1.5}, ended_at=NOON))
        store.record_event(tag, "begin", {"host": "n1"}, NOON, sequence=0)
        store.record_software(tag, {"python": "3"})
        store.record_defaults(tag.run_id, {"unit": "q"}, place="the kernel")
        store.record_progress(tag.run_id, FrameCounts(expected=2, written=2, processed=2, failed=0, finished=True))
        identity = InputIdentity(
            at=InputMoment.OPEN, path=Path("/x"), real_path=Path("/y"), inode=2**63 + 1, shape=(1, 2)
        )
        store.record_input(tag.run_id, identity)
        store.record_output(tag.run_id, OutputIdentity(path=Path("/o"), kind="result", size=1, sha256="ab"))
        store.finish_run(tag.run_id, RunState.COMPLETE, "all", NOON)
        before = detail_of(json.loads(record_text(store.run(tag.run_id))))
        assert before.message is not None
        arrival = Arrival(raw=before.message.raw, understood=before.plan.collection, note=before.message.note)
        with Store.open(place.new(), create=True) as other:
            assert other.import_run(before, arrival)
            assert not other.import_run(before, arrival)
            after = other.run(tag.run_id)
            assert other.knows_run(tag.run_id)
            assert not other.knows_run("another")
            assert not other.record_is_due(tag.run_id)  # it is there
            other.record_again([tag.run_id])
            assert other.record_is_due(tag.run_id)
        assert after.message is not None
        number = after.message.message_id
        assert after == replace(before, message=replace(before.message, message_id=number))

    def test_a_run_that_was_never_submitted_has_no_attempt_after_its_return_either(
        self, store: Store, place: Place
    ) -> None:
        plan = a_plan()
        store.record_runs(None, [plan], note="")
        tag = RunTag(run_id=plan.run_id, attempt=1)
        assert store.record_intent(tag, SCRIPT, gateway="cli")
        store.record_outcomes([NotSubmitted(tag=tag, reason="the partition is closed")])
        store.finish_run(plan.run_id, RunState.CANCELLED, "not wanted", NOON)
        before = store.run(plan.run_id)
        with Store.open(place.new(), create=True) as other:
            assert other.import_run(before, None)
            assert other.run(plan.run_id) == before

    def test_a_record_that_contradicts_itself_leaves_no_trace(self, store: Store, place: Place) -> None:
        tag = submitted(store)
        store.record_event(tag, "begin", {"host": "n1"}, NOON, sequence=0)
        before = store.run(tag.run_id)
        with Store.open(place.new(), create=True) as other:
            with pytest.raises(InvalidInput, match="contradicts itself"):
                other.import_run(replace(before, events=before.events * 2), None)
            assert other.runs() == []

    # ------------------------------------------------------------------------------------------------- chains

    def test_how_the_runs_before_and_after_a_run_stand_is_told_in_the_recipes_order(self, store: Store) -> None:
        first, second = a_plan(recipe="reduce"), a_plan(recipe="calibrate")
        predecessors = tuple(
            Predecessor(recipe=one.recipe, run_id=one.run_id, run_directory=one.run_directory)
            for one in (second, first)
        )
        last = a_plan(recipe="average", after=predecessors)
        store.record_runs(None, [first, second, last], note="a chain")
        tag = RunTag(run_id=first.run_id, attempt=1)
        assert store.record_intent(tag, SCRIPT, gateway="cli")
        assert store.record_submitted(tag, a_job())
        waiting, running = store.earlier_runs(last.run_id)
        assert (waiting.recipe, waiting.state, waiting.job) == ("calibrate", RunState.PLANNED, None)
        assert (running.recipe, running.state, running.job) == ("reduce", RunState.PENDING, a_job().identity)
        assert running.intent_at is not None
        assert [one.run_id for one in store.later_runs(first.run_id)] == [last.run_id]
        assert store.earlier_runs(first.run_id) == ()
        assert store.run(last.run_id).plan == last

    def test_what_hinders_all_is_said_of_those_that_wait_for_nothing_else(self, store: Store) -> None:
        first = a_plan(recipe="reduce")
        before = (Predecessor(recipe="reduce", run_id=first.run_id, run_directory=first.run_directory),)
        second = a_plan(recipe="average", after=before)
        store.record_runs(None, [first, second], note="a chain")
        store.record_obstacle(second.run_id, "it comes after reduce")
        store.record_obstacle_to_all("SLURM is down")
        reasons = [store.run(plan.run_id).summary.reason for plan in (first, second)]
        assert reasons == ["SLURM is down", "it comes after reduce"]
        assert store.record_intent(RunTag(run_id=first.run_id, attempt=1), SCRIPT, gateway="cli")
        store.record_submitted(RunTag(run_id=first.run_id, attempt=1), a_job())
        store.record_obstacle_to_all("SLURM is down again")
        assert store.run(second.run_id).summary.reason == "SLURM is down again"

    def test_planned_runs_that_are_left_out_are_passed_over_in_order(self, store: Store) -> None:
        plans = [a_plan() for _ in range(6)]
        store.record_runs(None, plans, note="")
        ids = [plan.run_id for plan in plans]
        asked: list[str] = []

        def left_out(run_id: str) -> bool:
            asked.append(run_id)
            return run_id in ids[1:3]

        found = store.planned_runs(2, leave_out=left_out)
        assert [run.tag.run_id for run in found] == [ids[0], ids[3]]
        assert asked == ids[:4]
        found = store.planned_runs(9, after=found[-1], leave_out=left_out)
        assert [run.tag.run_id for run in found] == ids[4:]

    def test_run_after_one_that_is_not_here_says_so(self, store: Store) -> None:
        absent = Predecessor(recipe="reduce", run_id=str(uuid4()), run_directory=Path("/runs/absent"))
        plan = a_plan(after=(absent,))
        store.record_runs(None, [plan], note="alone")
        (one,) = store.earlier_runs(plan.run_id)
        assert (one.run_id, one.state) == (absent.run_id, None)

    # ------------------------------------------------------------------------------------------------- schemas

    def test_a_database_of_a_newer_release_is_refused(self, place: Place) -> None:
        url = place.new()
        with Store.open(url, create=True) as store, store.connected() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        for create in (False, True):
            with pytest.raises(InvalidSettings, match="9999, newer than this release's"):
                Store.open(url, create=create)

    def test_another_programs_database_is_refused_and_left_alone(self, place: Place) -> None:
        url = place.new()
        with Store.connect(url) as store, store.connected() as connection:
            connection.execute(text("CREATE TABLE messages (id INTEGER)"))
        with pytest.raises(InvalidSettings, match=r"another program's tables \(messages"):
            Store.open(url, create=True)
        with Store.connect(url) as store:
            assert sqlalchemy.inspect(store.engine).get_table_names() == ["messages"]


def _differences(store: Store) -> list[Any]:
    options = {"compare_type": True, "compare_server_default": True, "include_name": _is_of_the_schema}
    with store.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts=options)
        differences: list[Any] = compare_metadata(context, Base.metadata)
        return differences


def _is_of_the_schema(name: str | None, kind: str, _parents: object) -> bool:
    return not (kind == "table" and name is not None and name.startswith("run_texts"))


# ------------------------------------------------------------------------------------------------------- backends


def _spoil(store: Store) -> None:
    """Change what a run says, in a transaction that fails."""
    with store.writing() as session:
        session.get_one(RunRow, store.runs(text="scan")[0].run_id).reason = "something else"
        session.flush()
        session.execute(text("UPDATE runs SET recipe = NULL"))


def _indexed(store: Store) -> set[tuple[str, int]]:
    """Return which trigrams of which moments the index has."""
    with store.connected() as connection:
        connection.exec_driver_sql("INSERT INTO run_texts (run_texts) VALUES ('integrity-check')")
        connection.exec_driver_sql(
            "CREATE VIRTUAL TABLE IF NOT EXISTS temp.terms USING fts5vocab('main', run_texts, instance)"
        )
        found = connection.exec_driver_sql("SELECT term, doc FROM terms").all()
        connection.exec_driver_sql("DROP TABLE temp.terms")
    return {(term, moment) for term, moment in found}


class TestSqlite(StoreContract):
    @pytest.fixture(scope="class")
    @classmethod
    def place(cls, tmp_path_factory: pytest.TempPathFactory) -> Place:
        return Place(new=lambda: f"sqlite:///{tmp_path_factory.mktemp('sqlite')}/provenance.sqlite")

    def test_the_index_of_texts_is_kept_as_it_would_be_made_and_outlives_a_vacuum(self, place: Place) -> None:
        chance = random.Random(11)  # noqa: S311  the same each time
        with Store.open(place.new(), create=True) as store:
            runs = [_recorded_at_random(store, chance, number) for number in range(60)]
            _change_at_random(store, chance, runs)
            with pytest.raises(sqlalchemy.exc.IntegrityError):
                _spoil(store)
            kept = _indexed(store)
            with store.engine.connect() as connection:
                connection.connection.driver_connection.execute("VACUUM")  # type: ignore[union-attr]
            assert _indexed(store) == kept
            with store.connected() as connection:
                connection.exec_driver_sql("DROP TABLE run_texts")
                for name in connection.exec_driver_sql(
                    "SELECT name FROM sqlite_master WHERE type = 'trigger'"
                ).scalars():
                    connection.exec_driver_sql(f"DROP TRIGGER {name}")
            store.upgrade()
            assert _indexed(store) == kept
            assert len(kept) > 1000

    def test_a_second_service_is_refused_naming_the_first_and_the_remedy(self, url: str, tmp_path: Path) -> None:
        (tmp_path / "another way.sqlite").symlink_to(url.removeprefix("sqlite:///"))
        with Store.open(url) as first, Store.open(f"sqlite:///{tmp_path}/another way.sqlite") as second:
            first.become_service()
            with pytest.raises(InvalidSettings, match=rf"has its service already \(process {os.getpid()}\)") as raised:
                second.become_service()
            assert "PostgreSQL" in raised.value.remedy
            second.record_message(a_message(), understood=a_start())  # commands go on
            first.resign()
            second.become_service()
            second.resign()

    def test_a_service_that_was_killed_is_in_nobodys_way(self, url: str) -> None:
        program = """
            import sys, time
            from orchestrator.provenance import Store
            Store.open(sys.argv[1]).become_service()
            print("here", flush=True)
            time.sleep(60)
        """
        with Store.open(url) as store:
            command = [sys.executable, "-c", textwrap.dedent(program), url]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
                assert service.stdout is not None
                assert service.stdout.readline() == "here\n"
                with pytest.raises(InvalidSettings, match=f"process {service.pid}"):
                    store.become_service()
                service.kill()
            store.become_service()
            store.resign()


class ServerContract(StoreContract):
    """What only servers can do."""

    def test_an_empty_database_is_migrated_only_when_asked(self, place: Place) -> None:
        url = place.new()
        with pytest.raises(InvalidSettings, match="is empty") as raised:
            Store.open(url)
        assert "orchestrator db upgrade" in raised.value.remedy
        Store.open(url, create=True).close()
        Store.open(url).close()

    def test_what_another_service_is_just_recording_is_passed_over_without_waiting(self, url: str) -> None:
        with Store.open(url) as first, Store.open(url) as second:
            taken, free = planned(first, a_plan(a_start("c-taken"))), planned(first, a_plan(a_start("c-free")))
            first.record_message(a_message(b"1"), understood=a_start("c-1"))
            first.record_message(a_message(b"2"), understood=a_start("c-2"))
            began = time.monotonic()
            with first.writing() as session:
                lock_run(session, taken.run_id)
                session.execute(text("UPDATE messages SET note = 'no run' WHERE uid = :uid"), {"uid": "c-1"})
                assert [waiting.start.uid for waiting in second.waiting_starts()] == ["c-2"]
                assert second.still_planned([taken.run_id, free.run_id]) == {free.run_id}
            assert time.monotonic() - began < 2
            assert first.record_intent(free, SCRIPT, gateway="cli")
            assert second.still_planned([taken.run_id, free.run_id]) == {taken.run_id}

    def test_a_submission_under_way_is_left_to_its_service_while_that_one_lives(self, url: str) -> None:
        with Store.open(url) as first, Store.open(url) as second:
            first.become_service()
            second.become_service()
            tag = planned(first)
            assert first.record_intent(tag, SCRIPT, gateway="cli")
            assert [unsettled.tag for unsettled in first.unsettled_attempts()] == [tag]
            assert second.unsettled_attempts() == []
            first.resign()  # or was killed, and its presence has run out
            assert [unsettled.tag for unsettled in second.unsettled_attempts()] == [tag]

    def test_a_submission_that_a_living_service_never_settles_is_everybodys_in_the_end(self, url: str) -> None:
        with Store.open(url) as first, Store.open(url) as second:
            first.become_service()
            tag = planned(first)
            assert first.record_intents(
                [Intent(tag=tag, script=SCRIPT)], gateway="cli", at=utc_now() - timedelta(minutes=11)
            )
            assert [unsettled.tag for unsettled in second.unsettled_attempts()] == [tag]

    def test_what_a_killed_service_of_this_machine_held_is_free_for_the_next_one(self, url: str) -> None:
        program = """
            import sys, time
            from orchestrator.provenance import Store
            store = Store.open(sys.argv[1])
            store.become_service()
            store.hold_lease("work", for_s=500)
            print("here", flush=True)
            time.sleep(60)
        """
        with Store.open(url) as second, Store.open(url) as third:
            command = [sys.executable, "-c", textwrap.dedent(program), url]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
                assert first.stdout is not None
                assert first.stdout.readline() == "here\n"
                second.become_service()
                assert not second.hold_lease("work", for_s=500)
                first.kill()
            assert not second.hold_lease("work", for_s=500)  # one that goes on waits until it has run out
            third.become_service()
            assert third.hold_lease("work", for_s=500)
            assert set(third.leases().values()) == {second.holder, third.holder}

    def test_several_services_are_welcome(self, url: str) -> None:
        with Store.open(url) as first, Store.open(url) as second:
            assert first.shared
            first.become_service()
            second.become_service()
            assert set(first.leases().values()) == {first.holder, second.holder}

    def test_no_message_of_an_error_shows_the_password(self, place: Place) -> None:
        url = sqlalchemy.make_url(place.new())
        assert url.password
        with pytest.raises(StoreUnavailable) as raised:
            Store.open(url.set(port=1).render_as_string(hide_password=False))
        assert url.password not in raised.value.full_text
        assert "***" in raised.value.full_text

    def test_a_store_survives_the_death_of_its_server(self, doomed: Doomed) -> None:
        with Store.open(doomed.url, create=True) as store:
            tag = submitted(store)
            command = doomed.kill()
            with pytest.raises(StoreUnavailable):
                store.finish_run(tag.run_id, RunState.COMPLETE, "", NOON)
            with pytest.raises(StoreUnavailable):
                store.runs()
            with doomed.started_again(command):
                assert store.active_attempts()[0].tag == tag
                assert store.finish_run(tag.run_id, RunState.COMPLETE, "", NOON)

    def test_a_restart_between_two_calls_goes_unnoticed(self, doomed: Doomed) -> None:
        with Store.open(doomed.url, create=True) as store:
            tag = submitted(store)
            with doomed.started_again(doomed.kill()):
                assert store.finish_run(tag.run_id, RunState.COMPLETE, "", NOON)


@pytest.mark.stack("initdb", "postgres")
class TestPostgresql(ServerContract):
    @pytest.fixture(scope="class")
    @classmethod
    def place(cls, postgresql: str) -> Place:
        return _server_place(postgresql)

    def test_who_may_not_add_pg_trgm_searches_row_by_row_until_somebody_else_has(self, place: Place) -> None:
        url = sqlalchemy.make_url(place.new())
        name = url.database
        with Store.connect(url.render_as_string(hide_password=False)) as owner:
            with owner.connected() as connection:
                connection.execute(text("CREATE ROLE plain LOGIN PASSWORD 'plain'"))
                connection.execute(text("GRANT ALL ON SCHEMA public TO plain"))
                connection.execute(text(f"REVOKE CREATE ON DATABASE {name} FROM plain"))
            with Store.open(
                url.set(username="plain", password="plain").render_as_string(hide_password=False), create=True
            ) as store:
                assert "CREATE EXTENSION pg_trgm" in store.schema_status().searches
                run_id = planned(store).run_id
                store.finish_run(run_id, RunState.FAILED, "Node n1 died")
                assert [run.run_id for run in store.runs(text="node N1")] == [run_id]
                with owner.connected() as connection:
                    connection.execute(text("CREATE EXTENSION pg_trgm"))
                store.upgrade()
                assert store.schema_status().searches == ""
                assert [run.run_id for run in store.runs(text="node N1")] == [run_id]

    def test_a_user_without_rights_is_told_so(self, place: Place) -> None:
        url = sqlalchemy.make_url(place.new())
        with Store.connect(url.render_as_string(hide_password=False)) as owner, owner.connected() as connection:
            connection.execute(text("CREATE ROLE weak LOGIN PASSWORD 'weak'"))
        with pytest.raises(StoreUnavailable, match="permission denied for schema public") as raised:
            Store.open(url.set(username="weak", password="weak").render_as_string(hide_password=False), create=True)
        assert "permissions" in raised.value.remedy

    @pytest.fixture
    def doomed(self, tmp_path: Path) -> Iterator[Doomed]:
        prefix: tuple[str, ...] = ()
        if os.geteuid() == 0:  # as private_postgresql starts it
            rights = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search", "--"]
            prefix = (str(find_program("setpriv")), "--reuid=postgres", "--regid=postgres", "--clear-groups", *rights)
        with private_postgresql(tmp_path / "doomed") as url:
            yield Doomed(url, tmp_path / "doomed", prefix)


@pytest.mark.stack("mariadbd", "mariadb-install-db")
class TestMariadb(ServerContract):
    @pytest.fixture(scope="class")
    @classmethod
    def place(cls, mariadb: str) -> Place:
        return _server_place(mariadb)

    @pytest.fixture
    def doomed(self, tmp_path: Path) -> Iterator[Doomed]:
        with private_mariadb(tmp_path / "doomed") as url:
            yield Doomed(url, tmp_path / "doomed", ())
