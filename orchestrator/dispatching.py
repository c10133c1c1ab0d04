"""The trip from a message to a job: record, plan, render, submit, each exactly once.

In: raw messages from the doors. Out: runs in the store and jobs at SLURM. Every step reads what is to be done from the
store and writes what was done to it, so any step may be cut off anywhere and is simply done again:

    receive          messages -> store, with the runs that they make (called by a door, before it acknowledges)
    plan_waiting     messages nobody decided about -> runs in state PLANNED
    settle           intents whose outcome isn't known -> adopted, or proven absent and free to be submitted again
    submit_planned   runs in state PLANNED -> intent -> SLURM -> PENDING

An attempt keeps its number until SLURM is known to have a job for it: a job that turns up late carries the same tag as
the one submitted after it, and the fence inside the job (`orchestrator.injob`) lets only one of them work.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TypeVar

from orchestrator.crashpoints import CrashPoint, reached
from orchestrator.errors import InvalidInput, InvalidMessage, InvalidSettings, StoreUnavailable
from orchestrator.evidence import claim_owner
from orchestrator.listening.door import Accepted, Rejected, Verdict
from orchestrator.messages import understand
from orchestrator.planning import check_allowed, plan
from orchestrator.provenance import (
    Arrival,
    Decision,
    MessageReceipt,
    NotSubmitted,
    Store,
    UnsettledAttempt,
)
from orchestrator.records import (
    CollectionStart,
    JobPlan,
    JobReport,
    RawMessage,
    RunState,
    RunTag,
    SubmittedJob,
    utc_now,
)
from orchestrator.runs import RunDirectory
from orchestrator.settings import Settings
from orchestrator.slurm.gateway import CLOCK_DIFFERENCE, CLOCK_JUMP, Gateway
from orchestrator.submitting import Memory, Submitter, end

T = TypeVar("T")

log = logging.getLogger(__name__)

BATCH = 100
"""Most messages decided about in one round, so that a burst can't starve the other steps."""


@dataclass(frozen=True, kw_only=True)
class Dispatcher:
    """The steps, over one store and one gateway."""

    store: Store
    gateway: Gateway
    settings: Settings
    now: Callable[[], datetime] = utc_now
    clock: Callable[[], float] = time.monotonic
    """Seconds; only goes on."""
    _memory: Memory = field(default_factory=Memory, init=False)

    # ------------------------------------------------------------------------------------------------- receive

    def receive(self, raws: Sequence[RawMessage]) -> Sequence[Verdict]:
        """Record messages that came together, and what is decided about them, in one transaction.

        The answers, one for each, say that all are durable.

        Raises
        ------
        StoreUnavailable
            When none of them is: they have to stay with their sender.
        """
        arrivals = [_arrival(raw) for raw in raws]
        try:
            arrivals = [self._with_decision(arrival) for arrival in arrivals]
            receipts = self.store.record_messages(arrivals)
        except (StoreUnavailable, InvalidSettings):
            raise
        except Exception:
            # It is in a plan, not in the messages: they are recorded, and `plan_waiting` takes them one by one.
            log.exception("%d messages are decided about later", len(raws))
            arrivals = [replace(arrival, note=None, plans=()) for arrival in arrivals]
            receipts = self.store.record_messages(arrivals)
        reached(CrashPoint.PLANNED)
        return [_verdict(arrival, receipt) for arrival, receipt in zip(arrivals, receipts, strict=True)]

    def _with_decision(self, arrival: Arrival) -> Arrival:
        if not isinstance(arrival.understood, CollectionStart):
            return arrival
        note, plans = self._decided(arrival.understood)
        return replace(arrival, note=note, plans=plans)

    # -------------------------------------------------------------------------------------------------- plan

    def plan_waiting(self) -> int:
        """Decide about every message that waits; return how many runs were planned."""
        decisions: list[Decision] = []
        faults: list[Exception] = []
        for waiting in self.store.waiting_starts(BATCH):
            try:
                note, plans = self._decided(waiting.start)
                decisions.append(Decision(message_id=waiting.message_id, plans=plans, note=note))
            except Exception as error:  # noqa: BLE001 - whatever it is, it is this message's, and raised below
                faults.append(error)
        planned = self._record(decisions)
        _raise_first(faults)
        return planned

    def _decided(self, start: CollectionStart) -> tuple[str, tuple[JobPlan, ...]]:
        """Return what is decided about a collection, in words, and the runs that it gets."""
        try:
            check_allowed(start.file, self.settings.allowed_roots)
            planning = plan(start, self.settings)
        except InvalidInput as error:
            return f"no run: {error.full_text}", ()
        if not planning.plans:
            return f"no run: no recipe wants this collection ({planning.reason})", ()
        return "planned " + ", ".join(item.recipe for item in planning.plans), tuple(planning.plans)

    def _record(self, decisions: Sequence[Decision]) -> int:
        """Record decisions together; where that fails for one, each by itself."""
        if not decisions:
            return 0
        try:
            self.store.record_decisions(decisions)
        except (StoreUnavailable, InvalidSettings):
            raise
        except Exception:
            if len(decisions) == 1:
                raise
            return _for_each(decisions, lambda decision: self._record([decision]))
        reached(CrashPoint.PLANNED)
        for decision in decisions:
            log.info("message %d: %s", decision.message_id, decision.note)
        return sum(len(decision.plans) for decision in decisions)

    # -------------------------------------------------------------------------------------------------- settle

    def settle(self) -> int:
        """Find out about every intent without an outcome; return how many are still open."""
        self._submitter.catch_up()
        unsettled = self.store.unsettled_attempts()
        seen, now_s = self._memory.first_seen_s, self.clock()
        since_s = {key: seen.get(key, now_s) for key in ((item.tag, item.latest_intent_at) for item in unsettled)}
        seen.clear()
        seen.update(since_s)
        again = self._memory.look_again_s
        for key in again.keys() - since_s.keys():
            del again[key]
        if not self._memory.settled_once:
            self._memory.unwanted += self.store.unwanted_jobs(self.now() - CLOCK_JUMP)
        self._memory.settled_once = True
        return _for_each(unsettled, lambda item: int(not self._settle(item)))

    @property
    def may_be_open(self) -> bool:
        """Whether `settle` has something to find out: always before its first time, then as far as is known here."""
        return not self._memory.settled_once or bool(self._memory.first_seen_s)

    def _settle(self, unsettled: UnsettledAttempt) -> bool:
        tag, key, now_s = unsettled.tag, (unsettled.tag, unsettled.latest_intent_at), self.clock()
        if now_s < self._memory.look_again_s.get(key, now_s):
            return False
        # The call itself may be under way, here or in another process, until its deadline. This isn't measured from the
        # time of the intent: a clock that was put forward meanwhile would cut it short.
        gateway = self.settings.gateway
        patient = now_s - self._memory.first_seen_s[key] < gateway.submit_deadline_s + gateway.absence_grace_s
        before = CLOCK_DIFFERENCE if patient else CLOCK_JUMP
        self._memory.look_again_s[key] = now_s + gateway.poll_interval_s
        reports = self.gateway.find(tag, since=min(unsettled.intent_at, self.now()) - before)
        if reports:
            del self._memory.look_again_s[key]
            reached(CrashPoint.JOB_FOUND)
            self._adopt_one(unsettled, reports)
            return True
        if patient:
            return False
        said = unsettled.reason or "the submission's answer was lost"
        reason = f"{said}; {self.gateway.name} has no job {tag.job_name}"
        self.store.record_outcomes([NotSubmitted(tag=tag, reason=reason, intent_at=unsettled.latest_intent_at)])
        log.warning("run %s: %s; submitting again", tag.run_id, reason)
        return True

    def _adopt_one(self, unsettled: UnsettledAttempt, reports: Sequence[JobReport]) -> None:
        """Take the job that has claimed the attempt, else the first one, for the run's; end the others."""
        tag = unsettled.tag
        owner = claim_owner(RunDirectory(unsettled.run_directory).attempt(tag.attempt))
        chosen = min(
            (report.identity for report in reports),
            key=lambda job: (str(job.job_id) != owner, job.submitted_at, job.job_id),
        )
        # Before the outcome is recorded: if one can't be ended now, the next round finds them all again.
        for report in reports:
            if not report.state.ended and (unsettled.run_state.ended or report.identity != chosen):
                end(self.gateway, report.identity)
        job = SubmittedJob(identity=chosen, gateway=self.gateway.name, adopted=True)
        if not self.store.record_submitted(tag, job):
            end(self.gateway, chosen)
        reached(CrashPoint.ADOPTED)
        log.warning("run %s: adopted job %s after its submission's answer was lost", tag.run_id, chosen)

    # -------------------------------------------------------------------------------------------------- submit

    def submit_planned(self) -> int:
        """Submit the runs that wait; return how many jobs were made. See `Submitter.submit_planned`."""
        return self._submitter.submit_planned()

    @property
    def jobs_made(self) -> int:
        """How many jobs were made so far, in rounds that met an obstacle too."""
        return self._memory.made

    @property
    def _submitter(self) -> Submitter:
        return Submitter(
            store=self.store,
            gateway=self.gateway,
            settings=self.settings,
            memory=self._memory,
            now=self.now,
            clock=self.clock,
        )


def _arrival(raw: RawMessage) -> Arrival:
    try:
        return Arrival(raw=raw, understood=understand(raw))
    except InvalidMessage as error:
        return Arrival(raw=raw, understood=None, rejection=error.full_text)


def _verdict(arrival: Arrival, receipt: MessageReceipt) -> Verdict:
    if receipt.rejection is not None:
        return Rejected(reason=receipt.rejection)
    log.info("message %d from %s: %s", receipt.message_id, arrival.raw.source, arrival.note or "recorded")
    return Accepted(duplicate=receipt.duplicate)


def cancel(store: Store, gateway: Gateway, run_id: str, *, by: str) -> RunState:
    """End a run that somebody doesn't want any more; return its state right afterwards.

    A run without a job, or one that waits to be tried again, is cancelled at once. One with a job is cancelled when
    SLURM says that the job is; the follower records that.

    Raises
    ------
    NotFound
        When there is no such run.
    GatewayUnavailable, UnknownJob
        When the job can't be ended; the wish is recorded all the same.
    """
    summary = store.run(run_id).summary
    if summary.state.ended:
        return summary.state
    tag = RunTag(run_id=summary.run_id, attempt=summary.attempts)
    store.record_event(tag, "cancel", {"by": by}, utc_now())
    # Looked at again: from now on the end of its job is the end of the run, before it may have been tried again.
    summary = store.run(run_id).summary
    ended_job = summary.job if summary.state is RunState.PLANNED else None
    if summary.job == ended_job:
        before = "it was tried again" if ended_job else "it had a job"
        store.finish_run(summary.run_id, RunState.CANCELLED, f"cancelled by {by} before {before}")
        # It may have got one meanwhile; one that it gets from now on is ended by who submits or finds it.
        summary = store.run(run_id).summary
    if summary.job != ended_job and summary.job is not None:
        gateway.cancel(summary.job)
    return summary.state


def _for_each(items: Iterable[T], step: Callable[[T], int]) -> int:
    """Take a step for each item and add up the answers; a fault in one is raised when the others have had theirs."""
    total = 0
    faults: list[Exception] = []
    for item in items:
        try:
            total += step(item)
        except StoreUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this item's, and raised below
            faults.append(error)
    _raise_first(faults)
    return total


def _raise_first(faults: Iterable[Exception]) -> None:
    for fault in faults:
        raise fault
