"""What every door for messages keeps, on a real folder and a real ActiveMQ; then what only one of them has."""

from __future__ import annotations

import logging
import os
import signal
import socket
import ssl
import tempfile
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.crashpoints import CrashPoint
from orchestrator.errors import DoorUnavailable, InvalidInput, InvalidSettings, StackError, StoreUnavailable
from orchestrator.listening import spool
from orchestrator.listening.broker import BrokerSession
from orchestrator.listening.credentials import read_credentials
from orchestrator.listening.door import Accepted, Door, Handler, Rejected, Verdict, backoff
from orchestrator.listening.spool import SpoolDoor, drop
from orchestrator.listening.stomp import StompDoor, publish
from orchestrator.messages import MAX_BYTES
from orchestrator.records import RawMessage, sha256_of
from orchestrator.settings import SpoolSettings, StompSettings, TlsSettings
from orchestrator.stack import Service, Stack
from orchestrator.stack.catalogue import require_programs
from tests.faults.proxy import Ambush, Fault, Proxy

PATIENCE_S = 30.0


def eventually(what: Callable[[], object], *, within_s: float = PATIENCE_S) -> None:
    """Wait until `what` holds."""
    end = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < end, f"not within {within_s} s"
        time.sleep(0.02)


class Store:
    """A handler that keeps messages as the service's store does: by content, or not at all while it is unavailable."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.deliveries: list[RawMessage] = []
        self.together: list[int] = []
        """How many messages came with each call."""
        self.refusals = 0
        self.available = threading.Event()
        self.available.set()

    def __call__(self, raws: Sequence[RawMessage]) -> Sequence[Verdict]:
        if not self.available.is_set():
            self.refusals += 1
            raise StoreUnavailable("database is locked")
        if any(raw.body.startswith(b"fault") for raw in raws):
            raise ZeroDivisionError("a bug in the handler")
        self.together.append(len(raws))
        return [self._keep(raw) for raw in raws]

    def _keep(self, raw: RawMessage) -> Verdict:
        self.deliveries.append(raw)
        duplicate = raw.body in self.bodies
        if not duplicate:
            self.bodies.append(raw.body)
        if raw.body.startswith(b"bad") or len(raw.body) > MAX_BYTES:
            return Rejected(reason="bad: line 1\ncolumn 1")
        return Accepted(duplicate=duplicate)


@contextmanager
def running(door: Door, store: Handler) -> Iterator[Door]:
    door.start(store)
    try:
        yield door
    finally:
        assert door.stop()


class Place(ABC):
    """The other side of a door: where senders put messages and where rejected ones lie."""

    @abstractmethod
    def door(self) -> Door: ...

    @abstractmethod
    def put(self, body: bytes) -> None: ...

    @abstractmethod
    def rejected(self) -> list[tuple[bytes, str]]:
        """Return the bodies put aside and the reasons; may be called once."""

    @abstractmethod
    def take_away(self) -> None:
        """Make the other side unreachable."""

    @abstractmethod
    def bring_back(self) -> None: ...


class DoorContract:
    """One suite for all doors."""

    def test_a_message_arrives_byte_for_byte(self, place: Place) -> None:
        body = bytes(range(256)) * 1000 + b"\n\n\0"
        store = Store()
        with running(place.door(), store) as door:
            place.put(body)
            eventually(lambda: door.status().counts.accepted == 1)
        assert [raw.body for raw in store.deliveries] == [body]
        assert store.deliveries[0].source.startswith(f"{door.name}:")

    def test_accepted_and_rejected_messages_leave_the_sender_for_good(self, place: Place) -> None:
        first, second = Store(), Store()
        with running(place.door(), first) as door:
            place.put(b"one")
            place.put(b"bad")
            eventually(lambda: door.status().counts.rejected == 1)
        with running(place.door(), second):
            place.put(b"two")
            eventually(lambda: second.bodies)
        assert first.bodies == [b"one", b"bad"]
        assert second.bodies == [b"two"]

    def test_messages_come_in_order(self, place: Place) -> None:
        bodies = [b"message %d" % number for number in range(20)]
        store = Store()
        for body in bodies[:10]:
            place.put(body)
        with running(place.door(), store):
            for body in bodies[10:]:
                place.put(body)
            eventually(lambda: len(store.deliveries) >= 20)
        assert [raw.body for raw in store.deliveries] == bodies

    def test_repeated_messages_are_delivered_and_counted_as_duplicates(self, place: Place) -> None:
        with running(place.door(), Store()) as door:
            for _ in range(3):
                place.put(b"the same")
            eventually(lambda: door.status().counts.accepted == 3)
            assert door.status().counts.duplicates == 2
            assert door.status().counts.received == 3

    def test_a_rejected_message_is_put_aside_whole_with_the_reason(self, place: Place) -> None:
        with running(place.door(), Store()) as door:
            place.put(b"bad \0 \xff")
            eventually(lambda: door.status().counts.rejected == 1)
        [(body, reason)] = place.rejected()
        assert body == b"bad \0 \xff"
        assert " ".join(reason.split()) == "bad: line 1 column 1"

    def test_an_empty_message_reaches_the_handler(self, place: Place) -> None:
        store = Store()
        with running(place.door(), store):
            place.put(b"")
            eventually(lambda: store.deliveries)
        assert store.bodies == [b""]

    def test_a_body_that_is_too_large_is_cut_for_the_handler_and_put_aside_whole(self, place: Place) -> None:
        body = b"x" * (3 * MAX_BYTES)
        store = Store()
        with running(place.door(), store) as door:
            place.put(body)
            eventually(lambda: door.status().counts.rejected == 1)
        assert len(store.bodies[0]) == MAX_BYTES + 1
        assert store.deliveries[0].headers["body-cut-from-bytes"] == str(len(body))
        assert place.rejected()[0][0] == body

    def test_a_fault_in_the_handler_puts_one_message_aside_and_the_next_gets_its_turn(
        self, place: Place, caplog: pytest.LogCaptureFixture
    ) -> None:
        store = Store()
        with running(place.door(), store):
            place.put(b"fault")
            place.put(b"good")
            eventually(lambda: b"good" in store.bodies)
        [(body, reason)] = place.rejected()
        assert body == b"fault"
        assert "ZeroDivisionError: a bug in the handler" in reason
        assert "Traceback" in caplog.text

    def test_messages_wait_for_the_store_in_order_and_none_overtakes(self, place: Place) -> None:
        store = Store()
        store.available.clear()
        bodies = [b"a", b"b", b"c"]
        with running(place.door(), store) as door:
            for body in bodies:
                place.put(body)
            eventually(lambda: store.refusals >= 3)
            assert store.deliveries == []
            received = door.status().counts.received
            store.available.set()
            eventually(lambda: len(store.deliveries) == 3)
            assert [raw.body for raw in store.deliveries] == bodies
            assert door.status().counts.held >= 3
            assert store.together[0] == received

    def test_the_door_doesnt_spin_while_the_store_is_unavailable(self, place: Place) -> None:
        store = Store()
        store.available.clear()
        with running(place.door(), store):
            place.put(b"a")
            eventually(lambda: store.refusals)
            time.sleep(2)
        assert store.refusals <= 5

    def test_stopping_while_the_store_is_unavailable_is_quick_and_loses_nothing(self, place: Place) -> None:
        unavailable, available = Store(), Store()
        unavailable.available.clear()
        with running(place.door(), unavailable):
            place.put(b"a")
            place.put(b"b")
            eventually(lambda: unavailable.refusals >= 2)
            began = time.monotonic()
        assert time.monotonic() - began < 3
        with running(place.door(), available):
            eventually(lambda: len(available.deliveries) == 2)
        assert available.bodies == [b"a", b"b"]

    def test_a_door_can_be_started_again_and_finds_what_came_meanwhile(self, place: Place) -> None:
        store, door = Store(), place.door()
        with running(door, store):
            place.put(b"a")
            eventually(lambda: door.status().counts.accepted == 1)
        place.put(b"b")
        assert door.status().detail == "stopped"
        with running(door, store):
            eventually(lambda: door.status().counts.accepted == 2)
        assert store.bodies == [b"a", b"b"]
        assert len(store.deliveries) == 2

    def test_a_message_stays_with_its_sender_while_the_database_has_another_schema(self, place: Place) -> None:
        tries: list[bytes] = []

        def handle(raws: Sequence[RawMessage]) -> Sequence[Verdict]:
            tries.extend(raw.body for raw in raws)
            if len(tries) < 3:
                raise InvalidSettings("the database has another release's schema")
            return [Accepted() for _ in raws]

        door = place.door()
        place.put(b"a")
        door.start(handle)
        eventually(lambda: door.status().counts.accepted == 1)
        assert door.stop()
        assert (door.status().counts.held, door.status().counts.rejected) == (2, 0)

    def test_a_message_whose_handling_outlives_the_stop_isnt_lost(self, place: Place) -> None:
        begun, go_on = threading.Event(), threading.Event()

        def slow(_raws: Sequence[RawMessage]) -> Sequence[Verdict]:
            begun.set()
            go_on.wait(PATIENCE_S)
            raise StoreUnavailable("the service was killed before the commit")

        door, store = place.door(), Store()
        door.start(slow)
        place.put(b"a")
        assert begun.wait(PATIENCE_S)
        assert not door.stop(timeout_s=0.1)
        go_on.set()
        assert door.stop()
        with running(place.door(), store):
            eventually(lambda: store.bodies)
        assert store.bodies == [b"a"]

    def test_starting_twice_is_refused(self, place: Place) -> None:
        with running(place.door(), Store()) as door, pytest.raises(RuntimeError):
            door.start(Store())

    def test_no_thread_is_left_after_the_stop(self, place: Place) -> None:
        before = set(threading.enumerate())
        with running(place.door(), Store()) as door:
            eventually(lambda: door.status().connected)
        eventually(lambda: set(threading.enumerate()) <= before)

    def test_a_missing_other_side_is_said_and_waited_for(self, place: Place) -> None:
        place.take_away()
        store = Store()
        with running(place.door(), store) as door:
            eventually(lambda: "trying again" in door.status().detail)
            assert not door.status().connected
            down_since = door.status().since
            place.bring_back()
            eventually(lambda: door.status().connected)
            assert door.status().since > down_since
            place.put(b"a")
            eventually(lambda: store.bodies)

    def test_an_other_side_that_goes_away_and_comes_back_is_found_again(self, place: Place) -> None:
        store = Store()
        with running(place.door(), store) as door:
            place.put(b"a")
            eventually(lambda: door.status().counts.accepted == 1)
            place.take_away()
            eventually(lambda: not door.status().connected)
            place.bring_back()
            place.put(b"b")
            # The first may come once more: its acknowledgement can be lost with the other side.
            eventually(lambda: store.bodies == [b"a", b"b"])


def test_waiting_times_double_up_to_the_longest() -> None:
    delays = [delay for delay, _ in zip(backoff(initial_s=1.0, longest_s=8.0), range(6), strict=False)]
    for delay, longest in zip(delays, [1, 2, 4, 8, 8, 8], strict=True):
        assert 0.75 * longest <= delay <= longest


# ------------------------------------------------------------------------------------------------------- spool


class SpoolPlace(Place):
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hidden = folder.with_name("hidden")
        self._number = 0

    def door(self) -> SpoolDoor:
        return SpoolDoor(SpoolSettings(folder=self.folder, poll_interval_s=0.05))

    def put(self, body: bytes) -> None:
        self.folder.mkdir(exist_ok=True)
        self._number += 1
        drop(self.folder, body, f"{self._number:03}.json")

    def rejected(self) -> list[tuple[bytes, str]]:
        reasons = (self.folder / "rejected").glob("*.reason.txt")
        return [
            (path.with_name(path.name.removesuffix(".reason.txt")).read_bytes(), path.read_text()) for path in reasons
        ]

    def take_away(self) -> None:
        if self.folder.exists():
            self.folder.rename(self.hidden)
        self.folder.write_text("a file where the folder should be")

    def bring_back(self) -> None:
        self.folder.unlink()
        if self.hidden.exists():
            self.hidden.rename(self.folder)


class TestSpoolDoor(DoorContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> SpoolPlace:
        return SpoolPlace(tmp_path / "spool")

    def test_unfinished_files_and_folders_are_overlooked(self, place: SpoolPlace) -> None:
        place.folder.mkdir()
        for name in (".hidden.json", "a.json.tmp", "a.json.part"):
            (place.folder / name).write_bytes(b"half")
        (place.folder / "folder.json").mkdir()
        store = Store()
        with running(place.door(), store):
            place.put(b"whole")
            eventually(lambda: store.bodies)
        assert store.bodies == [b"whole"]
        assert (place.folder / ".hidden.json").exists()
        assert list((place.folder / "done").iterdir()) == [place.folder / "done" / "001.json"]

    def test_files_are_taken_in_the_order_of_their_times_then_names(self, place: SpoolPlace) -> None:
        place.folder.mkdir()
        for name, second in (("c", 1), ("b", 2), ("a", 2), ("d", 0)):
            (place.folder / name).write_bytes(name.encode())
            os.utime(place.folder / name, (second, second))
        store = Store()
        with running(place.door(), store):
            eventually(lambda: len(store.bodies) == 4)
        assert store.bodies == [b"d", b"c", b"a", b"b"]

    def test_no_document_is_overwritten_by_another_of_the_same_name(self, place: SpoolPlace) -> None:
        place.folder.mkdir()
        bodies = [b"a", b"b", b"bad 1", b"bad 2"]
        with running(place.door(), Store()) as door:
            for number, body in enumerate(bodies, start=1):
                drop(place.folder, body, "same.json")
                eventually(lambda number=number: door.status().counts.received == number)  # type: ignore[misc]
        assert {path.name: path.read_bytes() for path in (place.folder / "done").iterdir()} == {
            "same.json": b"a",
            "same-2.json": b"b",
        }
        assert sorted(body for body, _reason in place.rejected()) == [b"bad 1", b"bad 2"]

    def test_a_backlog_is_handed_over_in_portions_in_order(self, place: SpoolPlace) -> None:
        for number in range(110):
            place.put(b"bad" if number == 30 else b"fault" if number == 50 else b"message %d" % number)
        store = Store()
        with running(place.door(), store) as door:
            eventually(lambda: door.status().counts.received == 110)
        good = [b"message %d" % number for number in range(110) if number not in {30, 50}]
        assert [body for body in store.bodies if body != b"bad"] == good
        assert len(list((place.folder / "done").iterdir())) == 108
        assert sorted(body for body, _reason in place.rejected()) == [b"bad", b"fault"]
        assert store.together.count(20) == 4

    def test_drop_never_replaces_a_waiting_document(self, place: SpoolPlace) -> None:
        place.folder.mkdir()
        paths = [drop(place.folder, body, "same.json") for body in (b"a", b"b", b"c")]
        assert [path.name for path in paths] == ["same.json", "same-2.json", "same-3.json"]
        assert [path.read_bytes() for path in paths] == [b"a", b"b", b"c"]
        assert len(list(place.folder.iterdir())) == 3

    @pytest.mark.parametrize("name", [".a.json", "a.tmp", "a.part", "../a.json", "done/a.json", ""])
    def test_drop_refuses_names_that_would_be_overlooked(self, place: SpoolPlace, name: str) -> None:
        place.folder.mkdir()
        with pytest.raises(InvalidInput):
            drop(place.folder, b"a", name)

    def test_drop_names_a_folder_that_isnt_there(self, place: SpoolPlace) -> None:
        with pytest.raises(DoorUnavailable, match=str(place.folder)):
            drop(place.folder, b"a", "a.json")

    def test_a_crash_between_the_commit_and_the_move_gives_one_duplicate(self, place: SpoolPlace) -> None:
        store = Store()
        store([RawMessage(body=b"a", source="before the crash")])
        place.put(b"a")
        with running(place.door(), store) as door:
            eventually((place.folder / "done" / "001.json").exists)
            assert door.status().counts.duplicates == 1

    def test_a_document_that_replaces_one_being_handled_gets_its_own_turn(self, place: SpoolPlace) -> None:
        store = Store()

        def replacing(raws: Sequence[RawMessage]) -> Sequence[Verdict]:
            if raws[0].body == b"first":
                (place.folder / ".second").write_bytes(b"second")
                (place.folder / ".second").rename(place.folder / "001.json")
            return store(raws)

        with running(place.door(), replacing):
            place.put(b"first")
            eventually(lambda: len(store.bodies) == 2)
        assert store.bodies == [b"first", b"second"]
        assert (place.folder / "done" / "001.json").read_bytes() == b"second"

    def test_a_document_that_comes_while_the_one_before_is_being_moved_gets_its_turn(
        self, place: SpoolPlace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = Store()

        def replacing(point: CrashPoint) -> None:
            if point is CrashPoint.BEFORE_ACKNOWLEDGEMENT and store.bodies == [b"first"]:
                (place.folder / ".second").write_bytes(b"second")
                (place.folder / ".second").rename(place.folder / "001.json")

        monkeypatch.setattr(spool, "reached", replacing)
        with running(place.door(), store):
            place.put(b"first")
            eventually(lambda: len(store.bodies) == 2)
        assert store.bodies == [b"first", b"second"]

    def test_links_and_pipes_are_put_aside_unread(self, place: SpoolPlace, tmp_path: Path) -> None:
        place.folder.mkdir()
        (tmp_path / "secret").write_text("secret")
        (place.folder / "link.json").symlink_to(tmp_path / "secret")
        os.mkfifo(place.folder / "pipe.json")
        store = Store()
        with running(place.door(), store) as door:
            eventually(lambda: door.status().counts.rejected == 2)
            place.put(b"a")
            eventually(lambda: store.bodies)
        assert store.bodies == [b"a"]
        assert "isn't a regular file" in (place.folder / "rejected" / "link.json.reason.txt").read_text()

    def test_names_that_arent_text_or_are_very_long_are_handled(self, place: SpoolPlace) -> None:
        place.folder.mkdir()
        for name in (b"\xff.json", b"x" * 255):
            Path(os.fsdecode(os.fsencode(place.folder) + b"/" + name)).write_bytes(b"bad " + name)
        store = Store()
        with running(place.door(), store) as door:
            eventually(lambda: door.status().counts.rejected == 2)
        for raw in store.deliveries:
            raw.source.encode()
        assert len(list((place.folder / "rejected").iterdir())) == 4

    def test_a_file_without_permission_waits_and_doesnt_stop_others(self) -> None:
        with tempfile.TemporaryDirectory() as scratch, _as_ordinary_user(Path(scratch)):
            place = SpoolPlace(Path(scratch) / "spool")
            place.put(b"closed")
            closed = place.folder / "001.json"
            closed.chmod(0)
            place.put(b"open")
            store = Store()
            with running(place.door(), store) as door:
                eventually(lambda: store.bodies == [b"open"])
                eventually(lambda: "001.json: Permission denied" in door.status().detail)
                closed.chmod(0o600)
                eventually(lambda: store.bodies == [b"open", b"closed"])

    def test_what_cant_be_moved_away_is_handled_only_once(self) -> None:
        with tempfile.TemporaryDirectory() as scratch, _as_ordinary_user(Path(scratch)):
            place = SpoolPlace(Path(scratch) / "spool")
            place.put(b"a")
            (place.folder / "done").mkdir(mode=0o500)
            store = Store()
            with running(place.door(), store) as door:
                eventually(lambda: "trying again" in door.status().detail)
                time.sleep(0.5)
                assert len(store.deliveries) == 1
                (place.folder / "done").chmod(0o700)
                eventually((place.folder / "done" / "001.json").exists)
            assert len(store.deliveries) == 1


@contextmanager
def _as_ordinary_user(folder: Path) -> Iterator[None]:
    """Drop root's power over permissions, where the tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    os.chown(folder, 65534, 65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


# ------------------------------------------------------------------------------------------------------- STOMP


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    try:
        require_programs([Service.BROKER])
    except StackError as missing:
        pytest.skip(f"NOT TESTED: {missing.full_text}")
    private = Stack(tmp_path_factory.mktemp("broker"))
    try:
        private.up([Service.BROKER])
        yield private
    finally:
        private.down()


class StompPlace(Place):
    def __init__(self, stack: Stack, *, tls: bool) -> None:
        here = stack.broker
        self.stack = stack
        self.settings = StompSettings(
            brokers=(f"{here.host}:{here.tls_port if tls else here.port}",),
            queue=f"collection.{uuid.uuid4()}",
            credentials_file=here.credentials,
            tls=TlsSettings(ca_file=here.certificate) if tls else None,
            heartbeat_s=1.0,
            reconnect_longest_s=1.0,
        )

    def door(self) -> StompDoor:
        return StompDoor(self.settings)

    def put(self, body: bytes) -> None:
        publish(self.settings, body)

    def put_all(self, bodies: Sequence[bytes]) -> None:
        """Publish a backlog through one connection."""
        session = BrokerSession(self.settings, self.settings.addresses()[0])
        session.open()
        try:
            for body in bodies:
                session.send(self.settings.destination, body, {})
        finally:
            session.close()

    def dead_letters(self) -> list[tuple[bytes, dict[str, str]]]:
        found = []
        session = BrokerSession(
            replace(self.settings, queue=f"{self.settings.queue}.rejected"), self.settings.addresses()[0]
        )
        session.open()
        try:
            session.subscribe()
            while deliveries := session.next(1.0):
                for delivery in deliveries:
                    found.append((delivery.body, delivery.headers))
                    session.acknowledge(delivery)
        finally:
            session.close()
        return found

    def rejected(self) -> list[tuple[bytes, str]]:
        return [(body, headers["reason"]) for body, headers in self.dead_letters()]

    def take_away(self) -> None:
        self.stack.kill("broker")

    def bring_back(self) -> None:
        self.stack.start("broker")


class StompContract(DoorContract):
    tls = False

    @pytest.fixture
    def place(self, stack: Stack) -> Iterator[StompPlace]:
        yield StompPlace(stack, tls=self.tls)
        stack.start("broker")

    def test_a_killed_broker_loses_no_message(self, place: StompPlace) -> None:
        bodies = [b"message %d" % number for number in range(100)]
        for body in bodies:
            place.put(body)
        store = Store()

        def slow(raws: Sequence[RawMessage]) -> Sequence[Verdict]:
            time.sleep(0.1 * len(raws))  # the broker is gone before all are handled
            return store(raws)

        with running(place.door(), slow) as door:
            eventually(lambda: len(store.bodies) >= 10)
            place.take_away()
            eventually(lambda: not door.status().connected)
            assert len(store.bodies) < 100
            place.bring_back()
            eventually(lambda: len(store.bodies) == 100)
        assert store.bodies == bodies

    def test_a_message_held_while_the_broker_dies_is_delivered_once_more_and_accepted(self, place: StompPlace) -> None:
        store = Store()
        store.available.clear()
        with running(place.door(), store) as door:
            place.put(b"a")
            eventually(lambda: store.refusals)
            place.take_away()
            eventually(lambda: not door.status().connected)
            place.bring_back()
            store.available.set()
            eventually(lambda: door.status().counts.accepted == 1)
        assert [raw.body for raw in store.deliveries] == [b"a"]

    def test_a_hung_broker_is_noticed_by_its_missing_heart_beats(self, place: StompPlace, stack: Stack) -> None:
        [pid] = [daemon.pid for daemon in stack.status() if daemon.name == "broker"]
        assert pid is not None
        store = Store()
        with running(place.door(), store) as door:
            eventually(lambda: door.status().connected)
            os.kill(pid, signal.SIGSTOP)
            try:
                eventually(lambda: not door.status().connected, within_s=8)
            finally:
                os.kill(pid, signal.SIGCONT)
            eventually(lambda: door.status().connected)
            place.put(b"a")
            eventually(lambda: store.bodies)

    def test_a_handler_slower_than_the_heart_beats_keeps_its_connection(self, place: StompPlace) -> None:
        store = Store()

        def slow(raws: Sequence[RawMessage]) -> Sequence[Verdict]:
            time.sleep(5 * place.settings.heartbeat_s)
            return store(raws)

        with running(place.door(), slow) as door:
            eventually(lambda: door.status().connected)
            since = door.status().since
            place.put(b"a")
            eventually(lambda: door.status().counts.accepted == 1)
            assert door.status().since == since
        assert len(store.deliveries) == 1

    def test_a_backlog_is_handed_over_in_portions_and_drained_well_over_100_messages_a_second(
        self, place: StompPlace
    ) -> None:
        bodies = [b"message %d" % number for number in range(400)]
        place.put_all(bodies)
        store = Store()
        with running(place.door(), store) as door:
            eventually(lambda: store.bodies)
            began = time.monotonic()
            eventually(lambda: door.status().counts.accepted == 400)
            assert time.monotonic() - began < 2  # it was 16 s while each acknowledgement waited for its receipt
        assert store.bodies == bodies
        assert 1 < max(store.together) <= place.settings.prefetch

    def test_one_bad_and_one_faulty_message_in_a_backlog_are_put_aside_and_the_others_taken_in_order(
        self, place: StompPlace
    ) -> None:
        bodies = [b"message %d" % number for number in range(20)]
        place.put_all([*bodies[:5], b"fault", *bodies[5:10], b"bad", *bodies[10:]])
        store = Store()
        with running(place.door(), store) as door:
            eventually(lambda: door.status().counts.received >= 22 and door.status().counts.accepted == 20)
        assert [body for body in store.bodies if body != b"bad"] == bodies
        assert sorted(body for body, _reason in place.rejected()) == [b"bad", b"fault"]

    def test_large_messages_are_not_handed_over_together(self, place: StompPlace) -> None:
        place.put_all([b"x" * 400_000 + b"%d" % number for number in range(10)])
        store = Store()
        with running(place.door(), store) as door:
            eventually(lambda: door.status().counts.accepted == 10)
        assert max(store.together) <= 2

    def test_a_backlog_that_waits_for_the_store_goes_back_to_the_queue_in_order_when_the_door_stops(
        self, place: StompPlace
    ) -> None:
        bodies = [b"message %d" % number for number in range(50)]
        place.put_all(bodies)
        unavailable, available = Store(), Store()
        unavailable.available.clear()
        with running(place.door(), unavailable):
            eventually(lambda: unavailable.refusals >= 2)
        with running(place.door(), available) as door:
            eventually(lambda: door.status().counts.accepted == 50)
        assert available.bodies == bodies


@pytest.mark.stack
class TestStompDoor(StompContract):
    def test_a_dead_letter_queue_that_cannot_be_written_holds_up_no_message(
        self, place: StompPlace, caplog: pytest.LogCaptureFixture
    ) -> None:
        here = place.settings
        bodies = [b"bad 1", b"good 1", b"bad 2", *(b"good %d" % number for number in range(2, 8))]
        with Proxy(place.stack.broker.port, mark=f"{here.queue}.rejected".encode()) as broken:
            broken.arm(Ambush(fault=Fault.REPLY_DROPPED))
            store = Store()
            with running(StompDoor(replace(here, brokers=(f"127.0.0.1:{broken.port}",), prefetch=2)), store) as door:
                place.put_all(bodies)
                eventually(lambda: caplog.text.count("stands in the database only") == 2)
                eventually(lambda: set(store.bodies) == set(bodies))
                eventually(lambda: door.status().connected)
            assert broken.happened[Fault.REPLY_DROPPED] >= 2
        again = Store()
        with running(place.door(), again):
            time.sleep(1)
        assert again.deliveries == []

    def test_a_dead_letter_says_where_it_came_from(self, place: StompPlace) -> None:
        store = Store()
        with running(place.door(), store) as door:
            place.put(b"bad")
            eventually(lambda: door.status().counts.rejected == 1)
        [(body, headers)] = place.dead_letters()
        assert body == b"bad"
        assert headers["reason"] == "bad: line 1 column 1"
        assert headers["original-destination"] == place.settings.destination
        assert headers["original-message-id"] == store.deliveries[0].headers["message-id"]
        assert headers["sha256"] == sha256_of(b"bad")
        assert headers["persistent"] == "true"

    def test_a_broker_that_answers_is_found_behind_one_that_doesnt(self, place: StompPlace) -> None:
        place.settings = replace(place.settings, brokers=("127.0.0.1:1", *place.settings.brokers))
        store = Store()
        with running(place.door(), store):
            place.put(b"a")
            eventually(lambda: store.bodies)

    def test_publishing_without_a_broker_names_each_and_why(self) -> None:
        with pytest.raises(DoorUnavailable, match=r"127\.0\.0\.1:1: Connection refused; broker 127\.0\.0\.1:2: "):
            publish(StompSettings(brokers=("127.0.0.1:1", "127.0.0.1:2"), queue="q"), b"a")

    def test_an_ipv6_broker_is_named_as_it_is_written(self) -> None:
        with pytest.raises(DoorUnavailable, match=r"broker \[::1\]:1: "):
            publish(StompSettings(brokers=("[::1]:1",), queue="q"), b"a")

    def test_a_wrong_password_is_said_and_never_shown(
        self, place: StompPlace, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        secret = tmp_path / "credentials.toml"
        secret.write_text('username = "orchestrator"\npassword = "open sesame"\n')
        secret.chmod(0o600)
        place.settings = replace(place.settings, credentials_file=secret)
        with running(place.door(), Store()) as door:
            eventually(lambda: "User name [orchestrator] or password is invalid" in door.status().detail)
        assert "sesame" not in caplog.text
        assert "sesame" not in str(door.status())
        assert "received frame: 'ERROR'" in caplog.text  # stomp.py's debug log was on

    def test_the_password_isnt_in_the_debug_log_of_a_working_connection(
        self, place: StompPlace, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        place.put(b"a")
        assert "sending frame: [b'SEND'" in caplog.text
        assert place.stack.broker.password not in caplog.text

    @pytest.mark.parametrize("prefetch", [1, 5])
    def test_a_service_that_hangs_keeps_what_it_prefetched_and_another_service_takes_the_rest(
        self, place: StompPlace, prefetch: int
    ) -> None:
        place.settings = replace(place.settings, prefetch=prefetch)
        begun, go_on = threading.Event(), threading.Event()

        def hanging(raws: Sequence[RawMessage]) -> Sequence[Verdict]:
            begun.set()
            assert go_on.wait(PATIENCE_S)
            return hung(raws)

        hung, lively = Store(), Store()
        bodies = [b"message %d" % number for number in range(20)]
        with running(place.door(), hanging):
            for body in bodies:
                place.put(body)
            assert begun.wait(PATIENCE_S)
            with running(place.door(), lively):
                eventually(lambda: lively.bodies == bodies[prefetch:])
            go_on.set()
            eventually(lambda: hung.bodies == bodies[:prefetch])


@pytest.mark.stack
class TestStompDoorOverTls(StompContract):
    tls = True

    def test_a_broker_of_unknown_authority_is_refused_with_the_reason(self, place: StompPlace) -> None:
        place.settings = replace(place.settings, tls=TlsSettings())
        with running(place.door(), Store()) as door:
            eventually(lambda: "certificate verify failed" in door.status().detail)

    def test_a_closed_connection_is_noticed_without_waiting_for_heart_beats(self, place: StompPlace) -> None:
        place.settings = replace(place.settings, heartbeat_s=600.0)
        with running(place.door(), Store()) as door:
            eventually(lambda: door.status().connected)
            place.take_away()
            eventually(lambda: not door.status().connected, within_s=3)

    def test_a_broker_with_another_name_than_its_certificate_is_refused(self, place: StompPlace) -> None:
        port = place.settings.addresses()[0][1]
        place.settings = replace(place.settings, brokers=(f"127.0.0.2:{port}", f"localhost:{port}"))
        with running(place.door(), Store()) as door:
            eventually(lambda: door.status().connected)
            assert "localhost" in door.status().detail

    def test_a_broker_that_demands_a_certificate_we_dont_have_is_named_with_that_reason(
        self, place: StompPlace
    ) -> None:
        here = place.stack.broker
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=here.certificate)
        context.load_cert_chain(here.certificate, here.certificate.with_name("key.pem"))
        context.verify_mode = ssl.CERT_REQUIRED
        with _tls_server(context) as port:
            settings = replace(place.settings, brokers=(f"127.0.0.1:{port}",))
            with pytest.raises(DoorUnavailable, match=rf"127\.0\.0\.1:{port}: .*certificate required"):
                publish(settings, b"a")

    def test_a_missing_authority_file_is_named_and_waited_for(self, place: StompPlace, tmp_path: Path) -> None:
        there = place.settings.tls
        assert there is not None
        assert there.ca_file is not None
        link = tmp_path / "ca.pem"
        place.settings = replace(place.settings, tls=TlsSettings(ca_file=link))
        with running(place.door(), Store()) as door:
            eventually(lambda: str(link) in door.status().detail)
            link.symlink_to(there.ca_file)
            eventually(lambda: door.status().connected)


@contextmanager
def _tls_server(context: ssl.SSLContext) -> Iterator[int]:
    """Accept connections and shake hands, no more."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                plain, _address = listener.accept()
            except OSError:
                return  # closed below
            with suppress(OSError), context.wrap_socket(plain, server_side=True) as secured:
                secured.recv(1)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


class TestStompSettings:
    @pytest.mark.parametrize("broker", ["", "host", "host:", ":61613", "host:http", "host:99999", "http://host:1"])
    def test_an_address_that_isnt_host_and_port_is_refused(self, broker: str) -> None:
        with pytest.raises(InvalidSettings, match="isn't host:port"):
            StompSettings(brokers=(broker,), queue="q")

    def test_addresses_may_be_names_and_ipv6(self) -> None:
        settings = StompSettings(brokers=("broker.example.org:61613", "[::1]:61614"), queue="q")
        assert settings.addresses() == (("broker.example.org", 61613), ("::1", 61614))

    def test_no_broker_at_all_is_refused(self) -> None:
        with pytest.raises(InvalidSettings, match="no broker"):
            StompSettings(brokers=(), queue="q")

    def test_destinations_follow_from_the_queue(self) -> None:
        settings = StompSettings(brokers=("a:1",), queue="collection")
        assert settings.destination == "/queue/collection"
        assert settings.dead_letter_destination == "/queue/collection.rejected"
        assert replace(settings, dead_letter_queue="/queue/DLQ").dead_letter_destination == "/queue/DLQ"


class TestCredentials:
    def write(self, folder: Path, text: str, mode: int = 0o600) -> Path:
        path = folder / "credentials.toml"
        path.write_text(text)
        path.chmod(mode)
        return path

    def test_username_and_password_are_read(self, tmp_path: Path) -> None:
        assert read_credentials(self.write(tmp_path, 'username = "u"\npassword = "p"\n', 0o640)) == ("u", "p")

    def test_a_file_that_everybody_may_read_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidSettings, match="everybody") as caught:
            read_credentials(self.write(tmp_path, 'username = "u"\npassword = "p"\n', 0o604))
        assert caught.value.remedy.startswith("chmod 600")

    @pytest.mark.parametrize(
        "text",
        ["sesame", 'username = "u"\npassword = sesame', 'password = "sesame"', 'username="u"\npassword="sesame\\n"'],
    )
    def test_a_file_without_both_is_refused_and_not_quoted(self, tmp_path: Path, text: str) -> None:
        with pytest.raises(InvalidSettings, match="doesn't hold username and password") as caught:
            read_credentials(self.write(tmp_path, text))
        assert "sesame" not in caught.value.full_text

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidSettings, match=str(tmp_path / "none")):
            read_credentials(tmp_path / "none")
