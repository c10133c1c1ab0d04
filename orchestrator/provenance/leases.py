"""Services on one database: who is there, and who does what only one may do at a time.

On PostgreSQL and MariaDB a service that lives renews a lease in its own name, and whoever does work for all holds the
lease of that work. A lease that isn't renewed runs out by itself, by the database's clock, and the next one takes it. A
lease saves work being done twice; that nothing bad comes of it when it is (a service that was stopped and wakes up, a
clock that jumps) is seen to elsewhere. SQLite is for one service: it holds a lock on a file beside the database, which
goes with the process.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Mapping, Sequence, Set
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import delete, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from orchestrator.errors import InvalidSettings, StoreUnavailable
from orchestrator.provenance.database import Database, sqlite_file
from orchestrator.provenance.tables import LeaseRow
from orchestrator.records import utc_now

PRESENCE_S = 15.0
"""How long a service counts as living after it last said so."""

_LONGEST = timedelta(minutes=10)
"""No lease is longer: one that seems to be was given before the database's clock was put back."""

_SERVICE = "service/"


class LeaseStore(Database):
    """The store's part that services share the work with."""

    _lock: int | None = None
    _present = False

    @property
    def shared(self) -> bool:
        """Whether several services may use the database."""
        return sqlite_file(self.url) is None

    def become_service(self) -> None:
        """Say that this process is a service; on a database that is shared, again before `PRESENCE_S` have passed.

        Raises
        ------
        InvalidSettings
            When the database is for one service and has one.
        """
        file = sqlite_file(self.url)
        if file is None:
            if not self._present:
                self._free_what_dead_processes_held()
            self._present = self.hold_lease(self._presence, for_s=PRESENCE_S)
        elif self._lock is None:
            self._lock = _locked(file)

    def resign(self) -> None:
        """Say that this process is no service any more; whatever it held is free, and what dead ones left is gone."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        with self.writing() as session:
            long_ago = database_now(session) - _LONGEST
            session.execute(delete(LeaseRow).where((LeaseRow.holder == self.holder) | (LeaseRow.until < long_ago)))

    def hold_lease(self, name: str, *, for_s: float) -> bool:
        """Take a lease, or renew it.

        Returns
        -------
        bool
            Whether it is this process's for the next `for_s` seconds; False while it is another's.
        """
        try:
            with self.writing() as session:
                row = session.get(LeaseRow, name, with_for_update=True)
                now = database_now(session)  # only now: getting the lock may have taken its time
                until = now + min(timedelta(seconds=for_s), _LONGEST)
                if row is None:
                    session.add(LeaseRow(name=name, holder=self.holder, until=until))
                elif row.holder == self.holder or not _valid(row, now):
                    row.holder, row.until = self.holder, until
                else:
                    return False
        except IntegrityError:  # another one has taken it at the same moment, for the first time
            return False
        return True

    def leases(self) -> Mapping[str, str]:
        """Return who holds what just now: names of leases, and their holders."""
        with self.reading() as session:
            return {row.name: row.holder for row in _valid_leases(session)}

    def _free_what_dead_processes_held(self) -> None:
        """Take away leases of this machine's processes that aren't there any more.

        Who comes after a service that was killed needn't wait until they run out.
        """
        with self.writing() as session:
            for row in session.scalars(select(LeaseRow).order_by(LeaseRow.name).with_for_update()):
                if _surely_dead(row.holder):
                    session.delete(row)

    @property
    def _presence(self) -> str:
        return _SERVICE + self.holder.rpartition(":")[2]


def database_now(session: Session) -> datetime:
    """Return the time by the database's clock, not that of the transaction's beginning."""
    asked = {"postgresql": "SELECT clock_timestamp()", "mariadb": "SELECT UTC_TIMESTAMP(6)"}
    dialect = session.get_bind().dialect.name
    if dialect not in asked:
        return utc_now()  # SQLite has this machine's
    now: datetime = session.execute(text(asked[dialect])).scalar_one()
    return now.replace(tzinfo=UTC) if now.tzinfo is None else now.astimezone(UTC)


def _surely_dead(holder: str) -> bool:
    machine, _, process = holder.rpartition(":")[0].rpartition(":")
    if machine != socket.gethostname() or not process.isdecimal():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _valid(row: LeaseRow, now: datetime) -> bool:
    return now < row.until <= now + _LONGEST


def living_services(session: Session) -> Set[str]:
    """Return the holders that are living services."""
    return {row.holder for row in _valid_leases(session) if row.name.startswith(_SERVICE)}


def _valid_leases(session: Session) -> Sequence[LeaseRow]:
    rows = session.scalars(select(LeaseRow).order_by(LeaseRow.name)).all()
    now = database_now(session)
    return [row for row in rows if _valid(row, now)]


def _locked(file: Path) -> int:
    """Return the open lock beside a SQLite file; who holds it is written in it."""
    lock = file.resolve().with_name(f"{file.resolve().name}.service")
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StoreUnavailable(f"{lock}: {error.strerror}", remedy="check the path and its permissions") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.truncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()}\n".encode())
    except BlockingIOError:
        holder = os.pread(descriptor, 100, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise InvalidSettings(
            f"database {file} has its service already ({holder or 'just starting'}): SQLite is for one",
            remedy="end that one first, or give several services a PostgreSQL or MariaDB",
        ) from None
    except OSError as error:
        os.close(descriptor)
        raise StoreUnavailable(f"{lock}: {error.strerror}", remedy="make room, or check its file system") from error
    return descriptor
