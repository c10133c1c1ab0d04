"""What the service's ISPyB loop does in a step: enter new runs, mirror what has changed, take requests.

Every step reads what is to be done from the store and writes what was done to it. ISPyB's rows of a run and our record
of them are two transactions: whoever dies in between finds the rows again by the run's id. What stands in the way of
one run is kept with it and holds up no other; what stands in the way of all is raised, and the loop waits.
"""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from zoneinfo import ZoneInfo

from orchestrator.errors import InvalidInput, NotFound, OrchestratorError
from orchestrator.ispyb.data_collections import find_data_collection
from orchestrator.ispyb.database import IspybDatabase, RowsRefused
from orchestrator.ispyb.mapping import Mapper, Rows
from orchestrator.ispyb.requests import Requests
from orchestrator.ispyb.schema import IspybSchema, read_schema
from orchestrator.ispyb.writing import Writer
from orchestrator.provenance import IspybIds, IspybRun, Mirrored, RunDetail, Store
from orchestrator.records import utc_now
from orchestrator.settings import Settings

log = logging.getLogger(__name__)

LEASE = "ispyb"
"""Name of the lease of the one service that mirrors."""

LEASE_S = 120.0
AT_ONCE = 50
"""Most runs of one step: the lease is renewed before the next. Where ISPyB is slow it is fewer."""

_FIRST_PAUSE = timedelta(seconds=10)
_LONGEST_PAUSE = timedelta(minutes=10)


class Mirror:
    """Mirrors the runs of one store to one ISPyB."""

    def __init__(self, store: Store, settings: Settings) -> None:
        if settings.ispyb is None:
            raise ValueError("the site file has no table [ispyb]")
        self.store = store
        self.site = settings.ispyb
        self.ispyb = IspybDatabase(settings.ispyb_url, timeout_s=self.site.timeout_s)
        self._requests = Requests(store=store, ispyb=self.ispyb, settings=settings)
        self._schema: IspybSchema | None = None

    def step(self) -> bool:
        """Take a step; return whether there is more to do at once.

        Raises
        ------
        IspybUnavailable, InvalidSettings
            When nothing can be mirrored now.
        StoreUnavailable
            When our own database can't be used.
        """
        if self.store.shared and not self.store.hold_lease(LEASE, for_s=LEASE_S):
            return False
        self.store.enter_for_ispyb(utc_now())
        try:
            schema = self.checked_schema()
            mapper = self._mapper(schema)
            due = self.store.due_for_ispyb(utc_now(), AT_ONCE)
            end_s = time.monotonic() + LEASE_S / 2
            for one in due:
                if time.monotonic() < end_s:
                    self._mirror(one, schema, mapper)
            taken = self._requests.take(schema, mapper) if self.site.take_requests else 0
        except OrchestratorError:
            self._schema = None  # it may be another one when it is back
            raise
        return len(due) == AT_ONCE or taken > 0

    def checked_schema(self) -> IspybSchema:
        """Return the schema of the ISPyB at hand; looked at when the service starts, and after every obstacle.

        Raises
        ------
        IspybUnavailable, InvalidSettings
            When it can't be written to.
        """
        if self._schema is None:
            with self.ispyb.transaction() as connection:
                schema = read_schema(connection)
            schema.check(self.site.schema_versions, self.ispyb.address)
            self._schema = schema
            log.info("mirroring to %s, schema %s", self.ispyb.address, schema.version)
        return self._schema

    def close(self) -> None:
        """Close the connection to ISPyB."""
        self.ispyb.close()

    def _mapper(self, schema: IspybSchema) -> Mapper:
        return Mapper(
            columns=schema.text_columns,
            recipe_prefix=self.site.recipe_prefix,
            importance=self.site.importance,
            time_zone=None if self.site.time_zone is None else ZoneInfo(self.site.time_zone),
        )

    def _mirror(self, one: IspybRun, schema: IspybSchema, mapper: Mapper) -> None:
        run = self.store.run(one.run_id)
        rows = mapper.rows(run)
        try:
            ids = self._written(one, run, rows, schema)
        except (NotFound, InvalidInput, RowsRefused) as error:
            self._put_off(one, error)
            return
        self.store.record_mirrored(
            Mirrored(
                run_id=one.run_id,
                state=run.summary.state,
                attempts=run.summary.attempts,
                ids=ids,
                fingerprint=rows.fingerprint,
                at=utc_now(),
            )
        )

    def _written(self, one: IspybRun, run: RunDetail, rows: Rows, schema: IspybSchema) -> IspybIds:
        earlier = self.store.ispyb_programs([before.run_id for before in run.plan.after])
        parent = next(iter(earlier.values()), None)
        data_collection = one.ids.data_collection or self._found_data_collection(run)
        with self.ispyb.alone(one.run_id) as connection:
            job = one.ids.processing_job if one.requested else None
            writer = Writer(connection=connection, there=schema.there)
            return writer.write(one.run_id, rows, data_collection, job=job, parent=parent)

    def _found_data_collection(self, run: RunDetail) -> int:
        """Find a run's data collection, and keep it before anything is written: the next look may find a newer one."""
        with self.ispyb.transaction() as connection:
            found = find_data_collection(connection, run.plan.collection, self.site)
        self.store.record_data_collection(run.summary.run_id, found)
        return found

    def _put_off(self, one: IspybRun, error: OrchestratorError) -> None:
        """Keep what stands in a run's way, and try again: less and less often, and not for ever."""
        now = utc_now()
        gives_up = now - (one.waiting_since or now) > timedelta(hours=self.site.give_up_after_h)
        again_at = None if gives_up else now + _pause(one.failures)
        said = error.full_text
        if gives_up:
            said = f"given up after {self.site.give_up_after_h:g} h: {error} (`orchestrator ispyb again` tries again)"
        if said != one.obstacle:
            log.warning("run %s isn't in ISPyB: %s", one.run_id, said)
        self.store.record_not_mirrored(one.run_id, said, now, again_at=again_at)


def _pause(failures: int) -> timedelta:
    doubled: int = 2 ** min(failures, 20)
    return min(_FIRST_PAUSE * doubled, _LONGEST_PAUSE)
