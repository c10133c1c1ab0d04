"""The provenance store: one object that services, threads and commands share."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from orchestrator.provenance.adoptions import AdoptionStore
from orchestrator.provenance.attempts import AttemptStore
from orchestrator.provenance.chains import ChainStore
from orchestrator.provenance.changes import MarkingSession
from orchestrator.provenance.database import parse_url
from orchestrator.provenance.endings import EndingStore
from orchestrator.provenance.intents import IntentStore
from orchestrator.provenance.keeping import RecordStore
from orchestrator.provenance.leases import LeaseStore
from orchestrator.provenance.lineage import LineageStore
from orchestrator.provenance.listing import ListingStore
from orchestrator.provenance.messages import MessageStore
from orchestrator.provenance.mirrors import MirrorStore
from orchestrator.provenance.queries import QueryStore
from orchestrator.provenance.runs import RunStore
from orchestrator.provenance.schema import SchemaStatus, check_schema, schema_status, upgrade_schema

BUSY_TIMEOUT_S = 10.0
"""How long a writer waits for another one."""


class Store(
    MessageStore,
    RunStore,
    IntentStore,
    AttemptStore,
    EndingStore,
    ChainStore,
    ListingStore,
    QueryStore,
    LeaseStore,
    AdoptionStore,
    RecordStore,
    LineageStore,
    MirrorStore,
):
    """Everything that is known about messages, runs and jobs.

    Every method is one transaction: durable when it returns, without a trace when it raises. All may raise
    `StoreUnavailable` (database locked, lost, full), after which the same call may be repeated. Threads may share a
    store, processes may not: each opens its own.
    """

    session_type = MarkingSession

    @classmethod
    def open(cls, url: str, *, create: bool = False, busy_timeout_s: float = BUSY_TIMEOUT_S) -> Self:
        """Open the database at `url`.

        Parameters
        ----------
        url
            ``sqlite:////path/file``, ``postgresql://…`` or ``mariadb://…``.
        create
            Bring the schema up to date first. A SQLite file that is empty or missing is always made.

        Raises
        ------
        InvalidSettings
            When the address is wrong, or the schema isn't this release's.
        StoreUnavailable
            When the database can't be reached.
        """
        store = cls.connect(url, busy_timeout_s=busy_timeout_s)
        try:
            status = store.schema_status()
            if create or (status.revision is None and store.url.get_backend_name() == "sqlite"):
                store.upgrade()
                status = store.schema_status()
            check_schema(status)
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def connect(cls, url: str, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> Self:
        """Address a database without looking at its schema, to ask about it or to upgrade it."""
        return cls(parse_url(url), busy_timeout_s=busy_timeout_s)

    def schema_status(self) -> SchemaStatus:
        """Look where the schema stands."""
        return schema_status(self)

    def upgrade(self) -> SchemaStatus:
        """Bring the schema to this release's revision; returns how it stood before."""
        return upgrade_schema(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
