"""Planned runs become jobs: intents, directories, calls, outcomes, a batch at a time.

In: runs in state PLANNED. Out: jobs at SLURM, in the order of the runs, and what became of each in the store. The
intents of a batch are committed together before its first call, its outcomes together at short intervals; while its
calls are made, the next batch is prepared. Calls are made one after another, and none twice. What of a batch wasn't
sent, because an answer was lost or SLURM takes no more, is given back in the same breath.

A batch is as large as it can be sent in a quarter of a second: what dies in between leaves that many intents to be
looked for, not more.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

from orchestrator.back_pressure import Queue
from orchestrator.crashpoints import CrashPoint, reached
from orchestrator.errors import (
    GatewayError,
    GatewayUnavailable,
    InvalidSettings,
    RunDirectoryUnavailable,
    StoreUnavailable,
    UnknownJob,
)
from orchestrator.provenance import Intent, Outcome, PlannedRun, Store, Submitted
from orchestrator.records import JobIdentity, utc_now
from orchestrator.settings import Settings
from orchestrator.slurm.gateway import Gateway
from orchestrator.submitting.calls import Calls
from orchestrator.submitting.preparing import Preparation, write_directories
from orchestrator.submitting.state import Memory, Ready, Round, queue_of, reason_of

log = logging.getLogger(__name__)

ROUND = 100
"""Most jobs made in one round, so that a burst can't starve the other steps."""

BATCH_S = 0.25
BATCH_MOST = 32
"""How long the calls of one batch may take, and how many they are at most."""


@dataclass(frozen=True, kw_only=True)
class Submitter:
    """One store, one gateway, and what is remembered."""

    store: Store
    gateway: Gateway
    settings: Settings
    memory: Memory
    now: Callable[[], datetime] = utc_now
    clock: Callable[[], float] = time.monotonic
    """Seconds; only goes on."""

    @property
    def _preparation(self) -> Preparation:
        return Preparation(store=self.store, settings=self.settings, origins=self.memory.origins)

    def submit_planned(self) -> int:
        """Submit the runs that wait, live ones first, oldest first; return how many jobs were made.

        A submission without an answer ends the round: it has to be looked for before anything else is sent.

        Raises
        ------
        GatewayUnavailable
            When SLURM can't take jobs now, or not in one queue; the runs stay planned, with the reason in their
            records; those of other queues were submitted.
        RunDirectoryUnavailable
            When a run's directory couldn't be written. That run stays planned, with the reason in its record; the
            others were submitted.
        """
        self.catch_up()
        this = Round()
        self._go_through(self._batches(this), this)
        if error := self._closed_everywhere():
            self.store.record_obstacle_to_all(reason_of(error))
            self.memory.held.say_again()
            raise error.with_traceback(None)
        if this.waiting:
            self.store.record_obstacles(this.waiting)
        for fault in this.faults:
            raise fault
        for error in this.closed.values():
            raise error.with_traceback(None)
        if this.directories:
            raise RunDirectoryUnavailable(
                f"{len(this.directories)} runs wait for their directory: {this.directories[0]}",
                remedy="free space or correct the rights; the runs go on by themselves",
            )
        return this.made

    def catch_up(self) -> None:
        """Record and end what couldn't be when it became known."""
        outcomes = self.memory.unrecorded[:]
        if outcomes:
            self._record(outcomes)
            del self.memory.unrecorded[: len(outcomes)]
        self._end_unwanted()

    def _closed_everywhere(self) -> GatewayUnavailable | None:
        return self.memory.pressure.obstacle(None, self.clock())

    def _go_through(self, batches: Iterator[list[PlannedRun]], this: Round) -> None:
        """Make the calls of each batch, and prepare the next one meanwhile: SLURM's time is waited for, not used."""
        with ThreadPoolExecutor(1) as ahead:
            calls = self._next(batches, this)
            while calls is not None:
                waits = calls.on_trial or this.last or self._is_over(this)
                coming = None if waits else ahead.submit(self._next, batches, this)
                try:
                    calls.make()
                except Exception:
                    prepared = coming.result() if coming else None
                    if prepared is not None:
                        prepared.give_back()
                    raise
                if coming is not None:
                    calls = coming.result()
                else:
                    calls = None if this.last or self._is_over(this) else self._next(batches, this)

    def _is_over(self, this: Round) -> bool:
        return this.unanswered or this.made >= ROUND or self._closed_everywhere() is not None

    def _next(self, batches: Iterator[list[PlannedRun]], this: Round) -> Calls | None:
        batch = next(batches, None)
        return None if batch is None else self._prepare(batch, this)

    def _batches(self, this: Round) -> Iterator[list[PlannedRun]]:
        """Give the runs that may be sent, in batches; what a batch meets decides about the next ones."""
        if self._closed_everywhere():
            return
        batch: list[PlannedRun] = []
        for planned in self._planned_runs(this):
            queue = queue_of(planned)
            if batch and self.memory.pressure.on_trial(queue):
                yield batch
                batch = []
            if error := self.memory.pressure.obstacle(queue, self.clock(), run_id=planned.tag.run_id):
                self._hold(planned, queue, error, this)
                continue
            if planned.plan.parent_run is not None and not self._may_be_made_again(planned, this):
                continue
            self.memory.held.let_go(queue, planned.tag.run_id)
            batch.append(planned)
            if len(batch) >= min(this.batch_most, self._batch_size()):
                this.batch_most *= 2
                yield batch
                batch = []
        this.last = True
        if batch:
            yield batch

    def _may_be_made_again(self, planned: PlannedRun, this: Round) -> bool:
        """Whether a rerun's turn has come: a whole visit that is made again leaves room for others."""
        if this.reruns_left is None:
            this.reruns_left = self.settings.reruns.at_most - self.store.count_active_reruns()
        this.reruns_left -= 1
        if this.reruns_left < 0:
            reason = f"waiting: {self.settings.reruns.at_most} runs that are made again have jobs ([reruns] at_most)"
            if planned.reason != reason:
                this.waiting[planned.tag.run_id] = reason
        return this.reruns_left >= 0

    def _hold(self, planned: PlannedRun, queue: Queue, error: GatewayUnavailable, this: Round) -> None:
        this.closed[queue] = error
        reason = reason_of(error)
        if planned.reason != reason:
            this.waiting[planned.tag.run_id] = reason
        self.memory.held.hold(queue, planned.tag.run_id, reason, self.clock())

    def _planned_runs(self, this: Round) -> Iterator[PlannedRun]:
        """Give each run that waits, in portions: those that can't be submitted now don't hide the ones behind them."""
        many, open_all_along = ROUND, self.memory.held.open()
        portion = self.store.planned_runs(many, leave_out=self._left_out(this))
        yield from portion
        while len(portion) == many:
            many = 10 * ROUND if this.closed else ROUND
            portion = self.store.planned_runs(many, after=portion[-1], leave_out=self._left_out(this))
            yield from portion
        self.memory.held.forget(open_all_along & self.memory.held.open())

    def _left_out(self, this: Round) -> Callable[[str], bool] | None:
        """Return what leaves out runs of closed queues that are known already; None while there are none."""
        held, now_s = self.memory.held, self.clock()
        for queue, error in held.closed(now_s).items():
            this.closed[queue] = error
            this.waiting |= dict.fromkeys(held.to_be_told(queue, reason_of(error)), reason_of(error))
        return held.left_out(now_s)

    def _batch_size(self) -> int:
        return max(1, min(BATCH_MOST, int(BATCH_S / max(self.memory.call_s, 1e-6))))

    def _prepare(self, batch: Sequence[PlannedRun], this: Round) -> Calls:
        """Commit the intents of a batch and write its directories; return the calls that are left to be made."""
        prepared = (self._prepared(planned, this) for planned in self._left_by_others(batch))
        ready = [item for item in prepared if item is not None]
        at, since_s = self.now(), self.clock()
        if not ready:
            return self._calls(this, [], at, since_s)
        intents = [Intent(tag=item.tag, script=item.submission.script) for item in ready]
        ours = self.store.record_intents(intents, gateway=self.gateway.name, at=at)
        reached(CrashPoint.INTENT_COMMITTED)
        self.memory.first_seen_s.update({(tag, at): since_s for tag in ours})
        # Only now: whoever holds the intent is the only one to write the directory, so what is submitted is what the
        # intent says.
        written = write_directories([item for item in ready if item.tag in ours])
        return self._calls(this, written, at, since_s)

    def _calls(self, this: Round, items: Sequence[tuple[Ready, OSError | None]], at: datetime, since_s: float) -> Calls:
        return Calls(
            gateway=self.gateway,
            patience=self.settings.gateway,
            record=self.record,
            memory=self.memory,
            clock=self.clock,
            this=this,
            left=deque(items),
            at=at,
            since_s=since_s,
        )

    def _left_by_others(self, batch: Sequence[PlannedRun]) -> Sequence[PlannedRun]:
        """Leave out what another service has taken since it was read: to render it again would be in vain."""
        if not self.store.shared:
            return batch
        left = self.store.still_planned([planned.tag.run_id for planned in batch])
        return [planned for planned in batch if planned.tag.run_id in left]

    def _prepared(self, planned: PlannedRun, this: Round) -> Ready | None:
        """Return a run ready to be submitted; None when it can't be."""
        try:
            return self._preparation.made_ready(planned)
        except (StoreUnavailable, InvalidSettings):
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this run's, and raised in the end
            this.faults.append(error)
            return None

    def record(self, outcomes: Sequence[Outcome]) -> None:
        """Commit outcomes, and end jobs that nobody wants any more; what the store can't take now is kept for later."""
        try:
            self._record(outcomes)
        except StoreUnavailable:
            self.memory.unrecorded += outcomes
            raise
        reached(CrashPoint.OUTCOME_RECORDED)
        self._end_unwanted()

    def _record(self, outcomes: Sequence[Outcome]) -> None:
        unwanted = self.store.record_outcomes(outcomes)
        jobs = [item.job.identity for item in outcomes if isinstance(item, Submitted) and item.tag in unwanted]
        self.memory.unwanted += jobs

    def _end_unwanted(self) -> None:
        for job in self.memory.unwanted[:]:
            try:
                end(self.gateway, job)
            except GatewayUnavailable as error:
                log.warning("job %s of a cancelled run can't be ended yet: %s", job, error)
                return
            except GatewayError as error:  # which doesn't pass, and is about this job
                log.error("job %s of a cancelled run can't be ended: %s; use scancel", job, error.full_text)
            self.memory.unwanted.remove(job)


def end(gateway: Gateway, job: JobIdentity) -> None:
    """End a job that nobody needs; one that is gone already is no obstacle."""
    try:
        gateway.cancel(job)
    except UnknownJob as error:
        log.info("job %s needn't be ended: %s", job, error)
