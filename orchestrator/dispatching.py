"""The trip from a message to a job: record, plan, render, submit, each exactly once.

In: raw messages from the doors. Out: runs in the store and jobs at SLURM. Every step reads what is to be done from the
store and writes what was done to it, so any step may be cut off anywhere and is simply done again:

    receive          messages -> store                     (called by a door, before it acknowledges)
    plan_waiting     messages nobody decided about -> runs in state PLANNED
    settle           intents whose outcome isn't known -> adopted, or proven absent and free to be submitted again
    submit_planned   runs in state PLANNED -> intent -> SLURM -> PENDING

An attempt keeps its number until SLURM is known to have a job for it: a job that turns up late carries the same tag as
the one submitted after it, and the fence inside the job (`orchestrator.injob`) lets only one of them work.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

from orchestrator.errors import (
    GatewayUnavailable,
    InvalidInput,
    InvalidMessage,
    OutcomeUnknown,
    RunDirectoryUnavailable,
    StoreUnavailable,
    SubmitRefused,
    UnknownJob,
)
from orchestrator.chaining import Go, Never, Wait, decide
from orchestrator.evidence import claim_owner
from orchestrator.listening.door import Accepted, Rejected, Verdict
from orchestrator.messages import understand
from orchestrator.planning import check_allowed, plan
from orchestrator.provenance import (
    Arrival,
    MessageReceipt,
    PlannedRun,
    Store,
    UnsettledAttempt,
    WaitingStart,
    encoded,
    plan_to_json,
)
from orchestrator.records import (
    BatchScript,
    JobIdentity,
    JobReport,
    RawMessage,
    RunState,
    RunTag,
    Submission,
    SubmittedJob,
    utc_now,
)
from orchestrator.rendering import render
from orchestrator.runs import RunDirectory, write_atomically
from orchestrator.settings import Settings
from orchestrator.slurm.gateway import CLOCK_DIFFERENCE, CLOCK_JUMP, Gateway

T = TypeVar("T")

log = logging.getLogger(__name__)

BATCH = 100
"""Most messages decided about, or jobs made, in one round, so that a burst can't starve the other steps."""


@dataclass(frozen=True, kw_only=True)
class Dispatcher:
    """The steps, over one store and one gateway."""

    store: Store
    gateway: Gateway
    settings: Settings
    now: Callable[[], datetime] = utc_now

    # ------------------------------------------------------------------------------------------------- receive

    def receive(self, raws: Sequence[RawMessage]) -> Sequence[Verdict]:
        """Record messages that came together; the answers, one for each, say that all are durable.

        Raises
        ------
        StoreUnavailable
            When none of them is: they have to stay with their sender.
        """
        receipts = self.store.record_messages([_arrival(raw) for raw in raws])
        return [_verdict(raw, receipt) for raw, receipt in zip(raws, receipts, strict=True)]

    # -------------------------------------------------------------------------------------------------- plan

    def plan_waiting(self) -> int:
        """Decide about every message that waits; return how many runs were planned."""
        return _for_each(self.store.waiting_starts(BATCH), self._plan)

    def _plan(self, waiting: WaitingStart) -> int:
        uid = waiting.start.uid
        try:
            check_allowed(waiting.start.file, self.settings.allowed_roots)
            planning = plan(waiting.start, self.settings)
        except InvalidInput as error:
            self.store.message_handled(waiting.message_id, f"no run: {error.full_text}")
            log.warning("collection %s: no run: %s", uid, error.full_text)
            return 0
        if planning.plans:
            note = "planned " + ", ".join(item.recipe for item in planning.plans)
        else:
            note = f"no run: no recipe wants this collection ({planning.reason})"
        self.store.record_runs(waiting.message_id, planning.plans, note=note)
        log.info("collection %s: %s", uid, note)
        return len(planning.plans)

    # -------------------------------------------------------------------------------------------------- settle

    def settle(self) -> int:
        """Find out about every intent without an outcome; return how many are still open."""
        return _for_each(self.store.unsettled_attempts(), lambda unsettled: int(not self._settle(unsettled)))

    def _settle(self, unsettled: UnsettledAttempt) -> bool:
        tag = unsettled.tag
        reports = self.gateway.find(tag, since=unsettled.intent_at - CLOCK_DIFFERENCE)
        if reports:
            self._adopt_one(unsettled, reports)
            return True
        # The call itself may be under way, here or in another process, until its deadline.
        gateway = self.settings.gateway
        if self.now() - unsettled.latest_intent_at < timedelta(
            seconds=gateway.submit_deadline_s + gateway.absence_grace_s
        ):
            return False
        if reports := self.gateway.find(tag, since=unsettled.intent_at - CLOCK_JUMP):
            self._adopt_one(unsettled, reports)
            return True
        said = unsettled.reason or "the submission's answer was lost"
        reason = f"{said}; {self.gateway.name} has no job {tag.job_name}"
        self.store.record_submit_failed(tag, reason, refused=False)
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
                self._end(report.identity)
        job = SubmittedJob(identity=chosen, gateway=self.gateway.name, adopted=True)
        if not self.store.record_submitted(tag, job):
            self._end(chosen)
        log.warning("run %s: adopted job %s after its submission's answer was lost", tag.run_id, chosen)

    def _end(self, job: JobIdentity) -> None:
        """End a job that nobody needs; one that is gone already is no obstacle."""
        try:
            self.gateway.cancel(job)
        except UnknownJob as error:
            log.info("job %s needn't be ended: %s", job, error)

    # -------------------------------------------------------------------------------------------------- submit

    def submit_planned(self) -> int:
        """Submit the runs that wait, oldest first; return how many jobs were made.

        A submission without an answer ends the round: `settle` comes before anything else is sent.

        Raises
        ------
        GatewayUnavailable
            When SLURM can't take jobs now, or not in one partition; the runs stay planned, those of other partitions
            were submitted.
        RunDirectoryUnavailable
            When a run's directory couldn't be written. That run stays planned, with the reason in its record; the
            others were submitted.
        """
        made = 0
        obstacles: list[str] = []
        closed: dict[str | None, GatewayUnavailable] = {}
        for planned in self._planned_runs():
            if made >= BATCH:
                break
            partition = planned.plan.resources.partition
            if partition in closed:
                continue
            try:
                made += self._submit(planned)
            except GatewayUnavailable as error:
                closed[partition] = error
            except OutcomeUnknown:
                break
            except OSError as error:
                obstacles.append(f"{error.filename or planned.plan.run_directory}: {error.strerror}")
                reason = f"waiting: its directory can't be written: {obstacles[-1]}"
                self.store.record_obstacle(planned.tag.run_id, reason)
        _raise_first([*closed.values(), *_in_one(obstacles)])
        return made

    def _planned_runs(self) -> Iterator[PlannedRun]:
        """Give each run that waits, in portions: those that can't be submitted now don't hide the ones behind them."""
        portion = self.store.planned_runs(BATCH)
        while portion:
            yield from portion
            portion = self.store.planned_runs(BATCH, after=portion[-1])

    def _jobs_before(self, planned: PlannedRun) -> tuple[JobIdentity, ...] | None:
        """Return the jobs that a run's job has to come after; None when it can't be submitted, which its record says."""
        if not planned.plan.after:
            return ()
        run_id = planned.tag.run_id
        match decide(self.store.earlier_runs(run_id)):
            case Go(after=after):
                return after
            case Wait(reason=reason):
                if reason != planned.reason:
                    self.store.record_obstacle(run_id, reason)
            case Never(reason=reason):
                if self.store.finish_run(run_id, RunState.CANCELLED, reason):
                    log.warning("run %s is cancelled: %s", run_id, reason)
        return None

    def _submit(self, planned: PlannedRun) -> bool:
        tag = planned.tag
        after = self._jobs_before(planned)
        if after is None:
            return False
        try:
            script = render(planned.plan_of_attempt, tag.attempt, self.settings.templates)
        except InvalidInput as error:
            if self.store.record_refused_run(tag.run_id, error.full_text):
                log.error("run %s refused: %s", tag.run_id, error.full_text)
            return False
        if not self.store.record_intent(tag, script, gateway=self.gateway.name):
            return False
        # Only now: whoever holds the intent is the only one to write the directory, so what is submitted is what the
        # intent says.
        try:
            self._write_directory(planned, script)
        except OSError as error:
            self.store.record_submit_failed(tag, f"its directory can't be written: {error}", refused=False)
            raise
        folder = planned.plan.run_directory
        return self._hand_over(Submission(tag=tag, script=script, working_directory=folder, after=after))

    def _hand_over(self, submission: Submission) -> bool:
        tag = submission.tag
        try:
            job = self.gateway.submit(submission)
        except SubmitRefused as error:
            self.store.record_submit_failed(tag, error.full_text, refused=True)
            log.error("run %s refused by %s: %s", tag.run_id, self.gateway.name, error.full_text)
            return False
        except OutcomeUnknown as error:
            self.store.record_unanswered(tag, error.full_text)
            log.warning("run %s: %s; looking for its job before anything else", tag.run_id, error.full_text)
            raise
        except GatewayUnavailable as error:
            self.store.record_submit_failed(tag, error.full_text, refused=False)
            raise
        if not self.store.record_submitted(tag, job):
            self._end(job.identity)
            return False
        log.info("run %s is job %s", tag.run_id, job.identity)
        return True

    def _write_directory(self, planned: PlannedRun, script: BatchScript) -> None:
        directory = RunDirectory(planned.plan.run_directory)
        directory.attempt(planned.tag.attempt).path.mkdir(parents=True, exist_ok=True)
        files: dict[Path, bytes | str] = {
            directory.plan: json.dumps(plan_to_json(planned.plan), indent=2) + "\n",
            directory.parameters: json.dumps(planned.plan.parameter_values(), indent=2) + "\n",
            directory.template: script.template_text,
        }
        if planned.retry is not None:
            files[directory.attempt(planned.tag.attempt).retry] = json.dumps(encoded(planned.retry), indent=2) + "\n"
        if planned.message is not None:
            files[directory.message] = planned.message.body
        for path, content in files.items():
            write_atomically(path, content)
        write_atomically(directory.script, script.text, mode=0o755)


def _arrival(raw: RawMessage) -> Arrival:
    try:
        return Arrival(raw=raw, understood=understand(raw))
    except InvalidMessage as error:
        return Arrival(raw=raw, understood=None, rejection=error.full_text)


def _verdict(raw: RawMessage, receipt: MessageReceipt) -> Verdict:
    if receipt.rejection is not None:
        return Rejected(reason=receipt.rejection)
    log.info("recorded message %d from %s", receipt.message_id, raw.source)
    return Accepted(duplicate=receipt.duplicate)


def cancel(store: Store, gateway: Gateway, run_id: str, *, by: str) -> RunState:
    """End a run that somebody doesn't want any more; return its state right afterwards.

    A run without a job, or one that waits to be tried again, is cancelled at once. One with a job is cancelled when SLURM says that the job is; the follower
    records that.

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


def _in_one(obstacles: Sequence[str]) -> Iterator[RunDirectoryUnavailable]:
    if obstacles:
        yield RunDirectoryUnavailable(
            f"{len(obstacles)} runs wait for their directory: {obstacles[0]}",
            remedy="free space or correct the rights; the runs go on by themselves",
        )
