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
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from orchestrator.back_pressure import BackPressure, HeldRuns, Queue
from orchestrator.chaining import Go, Never, Wait, decide
from orchestrator.crashpoints import CrashPoint, reached
from orchestrator.errors import (
    GatewayError,
    GatewayUnavailable,
    InvalidInput,
    InvalidSettings,
    NotFound,
    RunDirectoryUnavailable,
    StoreUnavailable,
    SubmitRefused,
    UnknownJob,
)
from orchestrator.provenance import (
    Intent,
    NotSubmitted,
    Outcome,
    PlannedRun,
    Store,
    Submitted,
    Unanswered,
    write_directory,
)
from orchestrator.records import BatchScript, JobIdentity, RunState, RunTag, Submission, SubmittedJob, utc_now
from orchestrator.rendering import render, render_recorded, rerun_script
from orchestrator.runs import make_durable
from orchestrator.settings import Settings
from orchestrator.slurm.gateway import Gateway
from orchestrator.template_origins import TemplateOrigins

log = logging.getLogger(__name__)

ROUND = 100
"""Most jobs made in one round, so that a burst can't starve the other steps."""

BATCH_S = 0.25
BATCH_MOST = 32
"""How long the calls of one batch may take, and how many they are at most."""

OUTCOMES_HELD_S = 0.25
"""How long an outcome may wait for others to be committed with."""

_NEXT = "waiting: another submission's outcome has to be known first"
_LATE = "waiting: the submissions before it took long"


@dataclass
class Memory:
    """What is remembered from one round to the next; a new process does without it."""

    pressure: BackPressure = field(default_factory=BackPressure)
    made: int = 0
    """Jobs, in all rounds."""
    call_s: float = 0.06
    """How long a call takes, from the last ones; sbatch's usual time to begin with."""
    first_seen_s: dict[tuple[RunTag, datetime], float] = field(default_factory=dict)
    """Since when this process has known of an intent, by its attempt and time; on a clock that only goes on."""
    settled_once: bool = False
    """Whether what an earlier process left open is among those."""
    look_again_s: dict[tuple[RunTag, datetime], float] = field(default_factory=dict)
    """When an intent's job may be looked for again."""
    unrecorded: list[Outcome] = field(default_factory=list)
    """What the store couldn't take when it became known."""
    origins: TemplateOrigins = field(default_factory=TemplateOrigins)
    held: HeldRuns = field(init=False)
    unwanted: list[JobIdentity] = field(default_factory=list)
    """Jobs of runs that were cancelled meanwhile, and that couldn't be ended yet."""

    def __post_init__(self) -> None:
        self.held = HeldRuns(self.pressure)


@dataclass(frozen=True, kw_only=True)
class _Ready:
    """A run with all that its submission needs."""

    planned: PlannedRun
    submission: Submission
    rerun: str
    """The script that makes the run again."""

    @property
    def tag(self) -> RunTag:
        return self.submission.tag


@dataclass
class _Round:
    """What one round has met."""

    made: int = 0
    unanswered: bool = False
    batch_most: int = 4
    """The first batch is small: nothing is sent while it is prepared."""
    last: bool = False
    """Whether the newest batch is the last one."""
    closed: dict[Queue, GatewayUnavailable] = field(default_factory=dict)
    reruns_left: int | None = None
    """How many more runs that are made again may get a job; None before the first is met."""
    waiting: dict[str, str] = field(default_factory=dict)
    """Reasons by run id."""
    directories: list[str] = field(default_factory=list)
    faults: list[Exception] = field(default_factory=list)
    """Of runs that couldn't be made ready; the others go on."""


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
        this = _Round()
        self._go_through(self._batches(this), this)
        if error := self._closed_everywhere():
            self.store.record_obstacle_to_all(_reason(error))
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

    def _go_through(self, batches: Iterator[list[PlannedRun]], this: _Round) -> None:
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

    def _is_over(self, this: _Round) -> bool:
        return this.unanswered or this.made >= ROUND or self._closed_everywhere() is not None

    def _next(self, batches: Iterator[list[PlannedRun]], this: _Round) -> _Calls | None:
        batch = next(batches, None)
        return None if batch is None else self._prepare(batch, this)

    def _batches(self, this: _Round) -> Iterator[list[PlannedRun]]:
        """Give the runs that may be sent, in batches; what a batch meets decides about the next ones."""
        if self._closed_everywhere():
            return
        batch: list[PlannedRun] = []
        for planned in self._planned_runs(this):
            queue = _queue_of(planned)
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

    def _may_be_made_again(self, planned: PlannedRun, this: _Round) -> bool:
        """Whether a rerun's turn has come: a whole visit that is made again leaves room for others."""
        if this.reruns_left is None:
            this.reruns_left = self.settings.reruns.at_most - self.store.count_active_reruns()
        this.reruns_left -= 1
        if this.reruns_left < 0:
            reason = f"waiting: {self.settings.reruns.at_most} runs that are made again have jobs ([reruns] at_most)"
            if planned.reason != reason:
                this.waiting[planned.tag.run_id] = reason
        return this.reruns_left >= 0

    def _hold(self, planned: PlannedRun, queue: Queue, error: GatewayUnavailable, this: _Round) -> None:
        this.closed[queue] = error
        reason = _reason(error)
        if planned.reason != reason:
            this.waiting[planned.tag.run_id] = reason
        self.memory.held.hold(queue, planned.tag.run_id, reason, self.clock())

    def _planned_runs(self, this: _Round) -> Iterator[PlannedRun]:
        """Give each run that waits, in portions: those that can't be submitted now don't hide the ones behind them."""
        many, open_all_along = ROUND, self.memory.held.open()
        portion = self.store.planned_runs(many, leave_out=self._left_out(this))
        yield from portion
        while len(portion) == many:
            many = 10 * ROUND if this.closed else ROUND
            portion = self.store.planned_runs(many, after=portion[-1], leave_out=self._left_out(this))
            yield from portion
        self.memory.held.forget(open_all_along & self.memory.held.open())

    def _left_out(self, this: _Round) -> Callable[[str], bool] | None:
        """Return what leaves out runs of closed queues that are known already; None while there are none."""
        held, now_s = self.memory.held, self.clock()
        for queue, error in held.closed(now_s).items():
            this.closed[queue] = error
            this.waiting |= dict.fromkeys(held.to_be_told(queue, _reason(error)), _reason(error))
        return held.left_out(now_s)

    def _batch_size(self) -> int:
        return max(1, min(BATCH_MOST, int(BATCH_S / max(self.memory.call_s, 1e-6))))

    def _prepare(self, batch: Sequence[PlannedRun], this: _Round) -> _Calls:
        """Commit the intents of a batch and write its directories; return the calls that are left to be made."""
        ready = [item for planned in self._left_by_others(batch) if (item := self._prepared(planned, this)) is not None]
        at, since_s = self.now(), self.clock()
        if not ready:
            return _Calls(self, this, [], at, since_s)
        intents = [Intent(tag=item.tag, script=item.submission.script) for item in ready]
        ours = self.store.record_intents(intents, gateway=self.gateway.name, at=at)
        reached(CrashPoint.INTENT_COMMITTED)
        self.memory.first_seen_s.update({(tag, at): since_s for tag in ours})
        # Only now: whoever holds the intent is the only one to write the directory, so what is submitted is what the
        # intent says.
        written = self._written([item for item in ready if item.tag in ours])
        return _Calls(self, this, written, at, since_s)

    def _left_by_others(self, batch: Sequence[PlannedRun]) -> Sequence[PlannedRun]:
        """Leave out what another service has taken since it was read: to render it again would be in vain."""
        if not self.store.shared:
            return batch
        left = self.store.still_planned([planned.tag.run_id for planned in batch])
        return [planned for planned in batch if planned.tag.run_id in left]

    def _prepared(self, planned: PlannedRun, this: _Round) -> _Ready | None:
        """Return a run ready to be submitted; None when it can't be."""
        try:
            return self._made_ready(planned)
        except (StoreUnavailable, InvalidSettings):
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this run's, and raised in the end
            this.faults.append(error)
            return None

    def _made_ready(self, planned: PlannedRun) -> _Ready | None:
        """Return a run ready to be submitted; None when it can't be, which its record says."""
        after = self._jobs_before(planned)
        if after is None:
            return None
        tag = planned.tag
        try:
            script = self._rendered(planned)
        except InvalidInput as error:
            if self.store.record_refused_run(tag.run_id, error.full_text):
                log.error("run %s refused: %s", tag.run_id, error.full_text)
            return None
        folder = planned.plan.run_directory
        submission = Submission(
            tag=tag, script=script, working_directory=folder, after=after, user=planned.plan.submit_as
        )
        reruns = self.settings.reruns
        rerun = rerun_script(planned.plan, script, root=reruns.root, drop=reruns.drop)
        return _Ready(planned=planned, submission=submission, rerun=rerun)

    def _rendered(self, planned: PlannedRun) -> BatchScript:
        plan, attempt = planned.plan_of_attempt, planned.tag.attempt
        if plan.template_of is None:
            script = render(plan, attempt, self.settings.templates)
            return replace(script, template_origin=self.memory.origins.of(script, self.settings.templates))
        try:
            made = self.store.run(plan.template_of).attempts
        except NotFound as error:
            raise InvalidInput(
                f"{error}: its template was to be rendered",
                remedy="`orchestrator db import` its directory and make this run again, or say which with --template",
            ) from error
        if not made:
            raise InvalidInput(
                f"run {plan.template_of} has no template: no attempt of it was made", remedy="say which with --template"
            )
        script = render_recorded(plan, attempt, made[-1].template_text)
        origin = made[-1].template_origin
        return replace(script, template_origin=origin if isinstance(origin, dict) else {})

    def _jobs_before(self, planned: PlannedRun) -> tuple[JobIdentity, ...] | None:
        """Return the jobs that a run's job has to come after; None when it can't be sent, which its record says."""
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

    def _written(self, items: Sequence[_Ready]) -> list[tuple[_Ready, OSError | None]]:
        """Write the directories of runs; return with each what stood in the way."""
        written = [_try_to_write(item) for item in items]
        if len(items) < 2:
            obstacles = [_try_to_make_durable(needed) for needed in written]
        else:  # side by side, because the file system makes many files durable in the time of one
            with ThreadPoolExecutor(4) as pool:
                obstacles = list(pool.map(_try_to_make_durable, written))
        reached(CrashPoint.DIRECTORY_WRITTEN)
        return list(zip(items, obstacles, strict=True))

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


class _Calls:
    """The calls of one batch, one after another, and their outcomes on the way into the store."""

    def __init__(
        self,
        submitter: Submitter,
        this: _Round,
        items: Sequence[tuple[_Ready, OSError | None]],
        at: datetime,
        since_s: float,
    ) -> None:
        self._submitter, self._round = submitter, this
        self._left = deque(items)
        self._memory, self._clock = submitter.memory, submitter.clock
        self._at, self._since_s = at, since_s
        self._sent = deque[_Ready]()
        """What the gateway has, and no answer yet."""
        self._unsent: list[_Ready] = []
        """What the gateway took and gave back."""
        self._outcomes: list[Outcome] = []
        self._oldest_s = self._begun_s = 0.0
        self._called = self._stopped = False

    @property
    def on_trial(self) -> bool:
        """Whether these calls show if more may be sent."""
        return any(self._memory.pressure.on_trial(_queue_of(item.planned)) for item, _ in self._left)

    def make(self) -> None:
        """Submit what may be submitted, in order, and give the rest back."""
        try:
            while self._left:
                self._make_some()
        except StoreUnavailable:
            # What was sent stands in the memory or is found by its tag; of the rest the store hears when it is back.
            self._memory.unrecorded += [*self._outcomes, *self._given_back_all()]
            raise
        except Exception:
            self.give_back()
            raise
        self._commit()

    def _make_some(self) -> None:
        """Make calls until one isn't accepted: then it has to be thought about anew what may be sent."""
        answers = self._submitter.gateway.submit_each(self._to_send())
        self._begun_s = self._clock()
        try:
            for answer in answers:
                self._take(answer)
                if self._outcomes and self._clock() - self._oldest_s >= OUTCOMES_HELD_S:
                    self._commit()
        except StoreUnavailable:
            self._stopped = True
            for answer in answers:  # to what is under way
                self._take(answer)
            raise
        finally:
            self._left.extendleft((item, None) for item in reversed(self._unsent))
            self._unsent.clear()

    def _to_send(self) -> Iterator[Submission]:
        """Give what may be sent, each when the gateway takes it; what may not has its outcome."""
        while self._left and not self._stopped:
            item, obstacle = self._left.popleft()
            if obstacle is not None:
                self._keep(item.tag, self._without_directory(item, obstacle))
            elif reason := self._reason_to_wait(item):
                self._keep(item.tag, self._given_back(item.tag, reason))
            else:
                self._called = True
                self._sent.append(item)
                yield item.submission

    def give_back(self) -> None:
        """Make none of the calls that are left."""
        self._outcomes += self._given_back_all()
        self._commit()

    def _given_back_all(self) -> list[NotSubmitted]:
        left, self._left = self._left, deque()
        return [self._given_back(item.tag, _NEXT) for item, _ in left]

    def _without_directory(self, item: _Ready, obstacle: OSError) -> Outcome:
        text = f"{obstacle.filename or item.submission.working_directory}: {obstacle.strerror}"
        self._round.directories.append(text)
        return NotSubmitted(tag=item.tag, reason=f"waiting: its directory can't be written: {text}", intent_at=self._at)

    def _reason_to_wait(self, item: _Ready) -> str:
        if self._round.unanswered:
            return _NEXT
        if error := self._memory.pressure.obstacle(_queue_of(item.planned), self._clock()):
            return _reason(error)
        # Another service that looks for it must not take it for absent while it is still here. The first one has more
        # time: where everything is slow, something has to be sent all the same.
        gateway = self._submitter.settings.gateway
        longest_s = gateway.absence_grace_s / 2 if self._called else gateway.submit_deadline_s
        if self._clock() - self._since_s > longest_s:
            return _LATE
        return ""

    def _take(self, answer: SubmittedJob | GatewayError | None) -> None:
        """Learn from an answer, to the oldest call without one."""
        item = self._sent.popleft()
        if answer is None:
            self._unsent.append(item)
        elif isinstance(answer, SubmittedJob):
            self._keep(item.tag, self._accepted(item, answer))
        else:
            self._keep(item.tag, self._not_accepted(item, answer))
        self._begun_s = self._clock()

    def _accepted(self, item: _Ready, job: SubmittedJob) -> Outcome:
        reached(CrashPoint.JOB_ACCEPTED)
        self._memory.pressure.accepted(_queue_of(item.planned), run_id=item.tag.run_id)
        self._memory.call_s += (self._clock() - self._begun_s - self._memory.call_s) / 4
        self._round.made += 1
        self._memory.made += 1
        log.info("run %s is job %s", item.tag.run_id, job.identity)
        return Submitted(tag=item.tag, job=job)

    def _not_accepted(self, item: _Ready, error: GatewayError) -> Outcome:
        tag, said = item.tag, error.full_text
        if isinstance(error, SubmitRefused):
            log.error("run %s refused by %s: %s", tag.run_id, self._submitter.gateway.name, said)
            self._memory.pressure.forget(tag.run_id)
            return NotSubmitted(tag=tag, reason=said, refused=True, intent_at=self._at)
        if isinstance(error, GatewayUnavailable):
            queue = _queue_of(item.planned)
            # A job array may have more tasks than the limit of an account, and then it never fits.
            array = item.planned.plan.array is not None and not error.everywhere
            alone = tag.run_id if error.doubtful or array else None
            self._memory.pressure.refused(queue, error, self._clock(), alone=alone)
            self._round.closed[queue] = error
            return NotSubmitted(tag=tag, reason=said, intent_at=self._at)
        # `OutcomeUnknown`, or what no route is to say: either way nobody knows whether there is a job.
        log.warning("run %s: %s; looking for its job before anything else", tag.run_id, said)
        self._round.unanswered = True
        return Unanswered(tag=tag, reason=said, intent_at=self._at)

    def _given_back(self, tag: RunTag, reason: str) -> NotSubmitted:
        return NotSubmitted(tag=tag, reason=reason, given_back=True, intent_at=self._at)

    def _keep(self, tag: RunTag, outcome: Outcome) -> None:
        """Have an outcome wait for others to be committed with."""
        if not isinstance(outcome, Unanswered):
            self._memory.first_seen_s.pop((tag, self._at), None)
        if not self._outcomes:
            self._oldest_s = self._clock()
        self._outcomes.append(outcome)

    def _commit(self) -> None:
        outcomes, self._outcomes = self._outcomes, []
        if outcomes:
            self._submitter.record(outcomes)


def end(gateway: Gateway, job: JobIdentity) -> None:
    """End a job that nobody needs; one that is gone already is no obstacle."""
    try:
        gateway.cancel(job)
    except UnknownJob as error:
        log.info("job %s needn't be ended: %s", job, error)


def _reason(error: GatewayUnavailable) -> str:
    return f"waiting: {error.full_text}"


def _queue_of(planned: PlannedRun) -> Queue:
    asked = planned.plan_of_attempt.resources
    return Queue(asked.partition, asked.account, asked.qos, planned.plan.submit_as)


def _try_to_write(item: _Ready) -> Sequence[Path] | OSError:
    """Write a run's directory; return what is to be made durable of it, or what stood in the way."""
    try:
        return write_directory(item.planned, item.submission.script, rerun=item.rerun)
    except OSError as error:
        return error


def _try_to_make_durable(needed: Sequence[Path] | OSError) -> OSError | None:
    """Make files durable, if there are any; return what stood in the way, then or before."""
    if isinstance(needed, OSError):
        return needed
    try:
        for path in needed:
            make_durable(path)
    except OSError as error:
        return error
    return None
