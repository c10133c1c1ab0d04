"""Active jobs followed to their end: states, progress, results -> store.

One cycle asks the controller once about all active jobs, reads what kernels and jobs left in the runs' directories, and
writes to the store what changed. Evidence is ranked: controller, then accounting, then the job's own end record; a job
that none of them knows is *unknown*, never a success. What comes after the verdict (usage, last lines of a job that was
killed) is still taken in for a while. Whatever is wrong with one run costs that run only, and is said once.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

from orchestrator.chaining import Earlier, Never, Wait, decide_again, given_up
from orchestrator.crashpoints import CrashPoint, reached
from orchestrator.errors import (
    GatewayError,
    GatewayUnavailable,
    InvalidSettings,
    OrchestratorError,
    StoreUnavailable,
    UnknownJob,
)
from orchestrator.evidence import (
    Conclusion,
    InJobEvent,
    KernelProgress,
    claim_owner,
    conclude,
    may_say_more,
    newest_progress,
    of_newest_start,
    read_events,
    with_memory_note,
)
from orchestrator.provenance import (
    ActiveAttempt,
    AttemptEnd,
    AttemptRecord,
    InputMoment,
    OutputIdentity,
    Store,
    end_to_json,
    input_from_json,
)
from orchestrator.records import (
    Evidence,
    FrameCounts,
    JobIdentity,
    JobPlan,
    JobReport,
    JobState,
    Json,
    Retry,
    RunState,
    RunTag,
    SubmittedJob,
    utc_now,
)
from orchestrator.retrying import Ended, NoRetry, cause_of, decide
from orchestrator.runs import AttemptDirectory, RunDirectory, write_atomically
from orchestrator.slurm.gateway import CLOCK_JUMP, Gateway
from orchestrator.slurm.waiting import hindrance

log = logging.getLogger(__name__)

LAST_WORD_PATIENCE = timedelta(seconds=60)
"""How long the last word of a kernel that ended in order may take to be seen: NFS shows files as they were up to a
minute ago (acregmax, acdirmax; nfs(5))."""

LATE_PATIENCE = timedelta(minutes=5)
"""How long after a run's end what is still missing is looked for: usage, because accounting lags, and last lines."""

_EVENTS_PER_TASK = 1_000_000
"""What the numbers of a job array's events are told apart by."""

USAGE_INTERVAL = timedelta(seconds=10)
"""Shortest time between two questions to accounting about what isn't urgent: it may have none to tell."""

USAGE_INTERVAL_MAX = timedelta(minutes=5)
"""Longest time between two such questions while accounting can't be asked."""

USAGE_PATIENCE = timedelta(days=1)
"""How long after a run's end usage is looked for when accounting can't be asked before."""


@dataclass(kw_only=True)
class _Memory:
    """What is remembered of an attempt from one cycle to the next; without it things are read again, nothing else."""

    events_read: dict[int | None, int] = field(default_factory=dict)
    """By the number of a job array's task; None for other jobs."""
    inputs_known: set[str] = field(default_factory=set)
    kernel_known: bool = False
    counts: FrameCounts | None = None
    missing_since: datetime | None = None
    ended_since: datetime | None = None
    hindrance: str | None = None
    earlier_known: int = 0
    """Of how many of the job's earlier starts accounting has told."""
    complaints: set[str] = field(default_factory=set)


@dataclass(frozen=True, kw_only=True)
class _Late:
    """A run that has ended, and how long something may still come."""

    attempt: ActiveAttempt
    read_until: datetime
    """From its files."""
    ask_until: datetime
    """From accounting."""

    def patient(self) -> _Late:
        """Return it with more time for accounting, which can't be asked at present."""
        return replace(self, ask_until=self.read_until + USAGE_PATIENCE)


@dataclass(kw_only=True)
class Follower:
    """Follows the jobs of one store through one gateway."""

    store: Store
    gateway: Gateway
    vanish_after: timedelta
    """How long a job may be known to nobody before its run is called unknown."""
    forgive_out_of_memory: bool = False
    """Whether OUT_OF_MEMORY is no failure of a run whose script ended with 0 and whose frames are all there."""
    now: Callable[[], datetime] = utc_now
    _memory: dict[RunTag, _Memory] = field(default_factory=dict)
    _late: dict[RunTag, _Late] | None = None
    _accounting_silent: bool = False
    _cluster: str = ""
    """Of the gateway; empty until it matters."""
    _usage_asked_at: datetime | None = None
    _usage_pause: timedelta = USAGE_INTERVAL

    def cycle(self) -> int:
        """Go once over all active jobs; return how many stay active.

        Raises
        ------
        GatewayUnavailable
            When the controller can't be asked; what kernels and jobs wrote has been taken in all the same.
        StoreUnavailable
            When the store can't be written; the next cycle finds the same again.
        """
        active = self.store.active_attempts()
        late = self._still_late()
        self._memory = {tag: self._memory.get(tag, _Memory()) for tag in (*(attempt.tag for attempt in active), *late)}
        for attempt in active:
            self._announce_end(attempt)
            self._take_in_files(attempt)
        for item in late.values():
            if self.now() < item.read_until:
                self._take_in_files(item.attempt)
        ended = self._ask(active)
        self._ask_what_is_not_urgent(active)
        return len(active) - ended

    @property
    def remembered(self) -> frozenset[RunTag]:
        """The attempts of which anything is remembered: those that are active, or ended a short while ago."""
        return frozenset(self._memory)

    # ------------------------------------------------------------------------------------- the run's directory

    @contextmanager
    def _at_its_own_cost(self, attempt: ActiveAttempt) -> Iterator[None]:
        """Let a fault in one run's files or reports cost that run's news only; said once, not in every cycle."""
        try:
            yield
        except (StoreUnavailable, InvalidSettings, GatewayError):
            raise
        except Exception as error:  # the other runs must go on
            foreseen = isinstance(error, OSError | ValueError | OrchestratorError)
            complaints = self._memory[attempt.tag].complaints
            if str(error) not in complaints:
                log.error("run %s: %s", attempt.tag.run_id, error, exc_info=None if foreseen else error)
            complaints.add(str(error))

    def _announce_end(self, attempt: ActiveAttempt) -> None:
        """Tell the kernel that its collection has ended, once it has.

        Where that can't be written the kernel ends by itself after its stall time; the next cycle tries again before.
        """
        with self._at_its_own_cost(attempt):
            path = RunDirectory(attempt.run_directory).collection_end
            if not path.exists() and (end := self.store.collection_end(attempt.collection_uid)) is not None:
                write_atomically(path, json.dumps(end_to_json(end)) + "\n")

    def _take_in_files(self, attempt: ActiveAttempt) -> KernelProgress | None:
        """Record what the kernel and the job wrote; return the kernel's word, None where it can't be read."""
        directory = _directory(attempt)
        progress = None
        for task, here in directory.tasks().items():
            with self._at_its_own_cost(attempt):
                self._take_in_events(attempt, read_events(here.events), task)
        with self._at_its_own_cost(attempt):
            progress = newest_progress(directory)
            self._take_in_progress(attempt, progress)
        return progress

    def _take_in_progress(self, attempt: ActiveAttempt, progress: KernelProgress | None) -> None:
        if progress is None:
            return
        memory = self._memory[attempt.tag]
        if progress.counts != (memory.counts or attempt.counts):
            self.store.record_progress(attempt.tag.run_id, progress.counts, attempt=attempt.tag.attempt)
            memory.counts = progress.counts
        if progress.parameters and not memory.kernel_known:
            self.store.record_defaults(attempt.tag.run_id, progress.parameters, place="the kernel's")
            self.store.record_software(attempt.tag, {"loaded": dict(progress.software)})
            memory.kernel_known = True
        for moment in progress.inputs.keys() - memory.inputs_known:
            document = dict(progress.inputs[moment])
            identity = input_from_json(document, InputMoment(moment))
            self.store.record_input(attempt.tag.run_id, identity, attempt=attempt.tag.attempt)
            memory.inputs_known.add(moment)

    def _take_in_events(self, attempt: ActiveAttempt, events: Sequence[InJobEvent], task: int | None) -> None:
        read = self._memory[attempt.tag].events_read
        for event in events[read.get(task, 0) :]:
            detail = dict(event.detail) | ({} if task is None else {"task": task})
            sequence = event.sequence + (task or 0) * _EVENTS_PER_TASK
            self.store.record_event(attempt.tag, event.kind, detail, event.at, sequence=sequence)
            if event.kind == "begin" and isinstance(software := detail.get("software"), dict):
                self.store.record_software(attempt.tag, software)
            if event is of_newest_start(events, "outputs"):
                for output in _outputs(detail):
                    self.store.record_output(attempt.tag.run_id, output, attempt=attempt.tag.attempt)
            read[task] = event.sequence + 1

    # ------------------------------------------------------------------------------------------------- reports

    def _ask(self, active: Sequence[ActiveAttempt]) -> int:
        """Ask about all jobs and act on what is said; return how many runs ended."""
        if not active:
            return 0
        reports = dict(self.gateway.poll([attempt.identity for attempt in active]))
        absent = [attempt.identity for attempt in active if attempt.identity not in reports]
        accounted = self._ask_accounting(absent)
        reports |= accounted or {}
        ended = 0
        for attempt in active:
            with self._at_its_own_cost(attempt):
                ended += self._act(attempt, reports.get(attempt.identity), everybody_asked=accounted is not None)
        return ended

    def _ask_accounting(self, jobs: Sequence[JobIdentity]) -> Mapping[JobIdentity, JobReport] | None:
        """Ask accounting about jobs that the controller doesn't tell enough of; None when it can't be asked."""
        if not jobs:
            return {}
        try:
            answer = self.gateway.account(jobs)
        except GatewayUnavailable as error:
            if not self._accounting_silent:
                log.warning("accounting can't be asked about %d jobs: %s", len(jobs), error.full_text)
            self._accounting_silent = True
            return None
        self._accounting_silent = False
        return answer

    def _act(self, attempt: ActiveAttempt, report: JobReport | None, *, everybody_asked: bool) -> bool:
        """Record a report; conclude the run when its job has ended. Return whether it did."""
        memory = self._memory[attempt.tag]
        if report is None or _is_stale(report):
            stale, report = report, self._own_record(attempt)
            if report is None:
                return self._act_on_absence(attempt, stale) if everybody_asked else self._hinder(attempt, _NOT_ASKED)
        memory.missing_since = None
        report = with_memory_note(report, _directory(attempt).log)
        self._hinder(attempt, hindrance(report))
        if report != attempt.last_report:
            self.store.record_report(attempt.tag, report)
        if given_up(report) and (earlier := self.store.earlier_runs(attempt.tag.run_id)):
            return self._go_with_the_chain(attempt, report, earlier)
        if not report.state.ended:
            memory.ended_since = None
            return False
        return self._finish(attempt, report)

    def _hinder(self, attempt: ActiveAttempt, text: str) -> bool:
        """Say in the run's reason what keeps it from ending, nothing where nothing does; return False, for no end."""
        memory = self._memory[attempt.tag]
        if memory.hindrance is None:
            memory.hindrance = hindrance(attempt.last_report)
        if text != memory.hindrance:
            self.store.record_hindrance(attempt.tag, text)
            if text:
                log.warning("run %s: %s", attempt.tag.run_id, text)
        memory.hindrance = text
        return False

    def _act_on_absence(self, attempt: ActiveAttempt, stale: JobReport | None) -> bool:
        """Nobody knows the job and it said nothing: wait, then have it made again, or say that nothing is known.

        What accounting still says of a job that the controller has lost is no more than a trace of it (`stale`).
        A controller that is killed forgets the jobs of its last seconds. One that hasn't claimed its attempt has done
        nothing, so the attempt may be submitted again. Return whether this job is followed no more.
        """
        memory = self._memory[attempt.tag]
        self._cluster = self._cluster or self.gateway.check().cluster
        if attempt.identity.cluster != self._cluster:  # whom we ask has never heard of it
            return self._hinder(
                attempt,
                f"its job {attempt.identity} is one of cluster {attempt.identity.cluster}, and the {self.gateway.name} "
                f"gateway speaks with {self._cluster}: how it goes isn't known; see gateway.route and SLURM_CONF",
            )
        memory.missing_since = memory.missing_since or self.now()
        if self.now() - memory.missing_since < self.vanish_after:
            return False
        known = "is known neither to the controller nor to accounting"
        if stale is not None:
            known = f"is gone from the controller, and accounting still says {stale.words} (sacctmgr show runawayjobs)"
        seen = attempt.last_report.words if attempt.last_report else "submitted"
        reason = f"job {attempt.identity} {known}; it left no end record, and was last seen as {seen}"
        if not _has_begun(_directory(attempt)) and self._plan_again(attempt, reason):
            return True
        self._conclude(attempt, Conclusion(state=RunState.UNKNOWN, reason=reason))
        return True

    def _plan_again(self, attempt: ActiveAttempt, reason: str) -> bool:
        """Have a job made again that never began; return whether there is nothing more to conclude about it."""
        reason += "; it had not begun"
        state = self.store.plan_again_unbegun(attempt.tag, attempt.identity, reason)
        if state is RunState.PLANNED:
            log.warning("run %s: %s; submitting again", attempt.tag.run_id, reason)
        self._memory[attempt.tag].missing_since = None
        return state in {None, RunState.PLANNED}

    def _own_record(self, attempt: ActiveAttempt) -> JobReport | None:
        """Return what the job itself said about its end, as a report."""
        tasks = _directory(attempt).tasks().values()
        ends = [end for task in tasks if (end := of_newest_start(read_events(task.events), "end")) is not None]
        if len(ends) < len(tasks):
            return None
        end = next((one for one in ends if one.detail.get("exit_code") != 0), ends[-1])
        exit_code = end.detail.get("exit_code")
        return JobReport(
            identity=attempt.identity,
            name=attempt.tag.job_name,
            state=JobState.COMPLETED if exit_code == 0 else JobState.FAILED,
            words=f"ended with {exit_code}",
            evidence=Evidence.JOB_RECORD,
            exit_code=exit_code if isinstance(exit_code, int) else None,
            restarts=end.restarts,
            started_at=attempt.last_report.started_at if attempt.last_report else None,
            ended_at=end.at,
        )

    # --------------------------------------------------------------------------------------------- conclusions

    def _finish(self, attempt: ActiveAttempt, report: JobReport) -> bool:
        """Conclude the run of a job that has ended, unless more is to come; return whether it did."""
        if self._follow_owner(attempt):
            return False
        # Once more: the job may have written its last lines between this cycle's reading and its report.
        progress = self._take_in_files(attempt)
        memory = self._memory[attempt.tag]
        memory.ended_since = memory.ended_since or self.now()
        if may_say_more(report, progress) and self.now() - memory.ended_since < LAST_WORD_PATIENCE:
            return False
        own = self._own_record(attempt) if self.forgive_out_of_memory else None
        conclusion = conclude(report, progress, forgiven=own is not None and own.exit_code == 0)
        self._conclude(replace(attempt, last_report=report), conclusion, ended_at=report.ended_at)
        return True

    def _follow_owner(self, attempt: ActiveAttempt) -> bool:
        """Follow the job that has claimed the attempt, if that is another one; return whether there is such a job.

        A submission that was taken for lost can still make a job, and that one can be the first to begin: then the job
        we know of left at the fence, with exit code 0 and nothing done.
        """
        owner = claim_owner(_directory(attempt))
        if owner in {None, str(attempt.identity.job_id)}:
            return False
        for report in self.gateway.find(attempt.tag, since=attempt.intent_at - CLOCK_JUMP):
            if str(report.identity.job_id) == owner:
                job = SubmittedJob(identity=report.identity, gateway=self.gateway.name, adopted=True)
                self.store.record_submitted(attempt.tag, job)
                log.warning(
                    "run %s: job %s has its attempt, not %s", attempt.tag.run_id, job.identity, attempt.identity
                )
                return True
        return False

    def _conclude(self, attempt: ActiveAttempt, conclusion: Conclusion, ended_at: datetime | None = None) -> None:
        cause, decision = self._decide(attempt, conclusion)
        retry = decision if isinstance(decision, Retry) else None
        reason = conclusion.reason
        if isinstance(decision, NoRetry) and decision.reason:
            reason += f"; not tried again: {decision.reason}"
        if retry is not None:
            self._make_sure_of_the_end(attempt)
        end = AttemptEnd(state=conclusion.state, reason=reason, cause=cause, ended_at=ended_at or self.now())
        self._end_attempt(attempt, end, retry)

    def _end_attempt(self, attempt: ActiveAttempt, end: AttemptEnd, retry: Retry | None) -> None:
        reached(CrashPoint.BEFORE_CONCLUSION)
        state = self.store.end_attempt(attempt.tag, end, retry=retry)
        reached(CrashPoint.CONCLUDED)
        if self._late is not None:
            soon = self.now() + LATE_PATIENCE
            self._late[attempt.tag] = _Late(attempt=attempt, read_until=soon, ask_until=soon)
        level = logging.INFO if end.state is RunState.COMPLETE else logging.WARNING
        again = "; it is tried again" if state is RunState.PLANNED else ""
        log.log(level, "run %s is %s: %s%s", attempt.tag.run_id, end.state, end.reason, again)

    def _go_with_the_chain(self, attempt: ActiveAttempt, report: JobReport, earlier: Sequence[Earlier]) -> bool:
        """Deal with a job that was given up because of one that it comes after: its run does what that one's does.

        Return whether it was decided.
        """
        if not report.state.ended:
            self._make_sure_of_the_end(attempt)  # it would wait for ever
            return False
        verdict = decide_again(earlier, attempt.intent_at)
        if isinstance(verdict, Wait):
            return False
        retry = None
        reason = f"the job was given up ({report.words})"
        if isinstance(verdict, Never):
            reason = verdict.reason
        else:
            run = self.store.run(attempt.tag.run_id)
            same = _ended(run.attempts[-1], run.plan).resources
            retry = Retry(resources=same, because=f"{' and '.join(map(str, earlier))} had to be tried again")
        end = AttemptEnd(
            state=RunState.CANCELLED, reason=reason, cause=JobState.CANCELLED, ended_at=report.ended_at or self.now()
        )
        self._end_attempt(replace(attempt, last_report=report), end, retry)
        return True

    def _decide(self, attempt: ActiveAttempt, conclusion: Conclusion) -> tuple[JobState, Retry | NoRetry]:
        """Return why an attempt ended, and whether its run is tried again."""
        report = attempt.last_report
        if report is not None and conclusion.state in {RunState.COMPLETE, RunState.CANCELLED}:
            return report.state, NoRetry()
        run = self.store.run(attempt.tag.run_id)
        made = [_ended(one, run.plan) for one in run.attempts if one.tag.attempt <= attempt.tag.attempt]
        told = self._memory[attempt.tag].counts or attempt.counts
        cause = cause_of(report, conclusion, made[-1].resources, "" if told is None else told.ended_because)
        made[-1] = replace(made[-1], cause=cause, report=report)
        return cause, decide(run.plan, made, conclusion.state, self.now())

    def _make_sure_of_the_end(self, attempt: ActiveAttempt) -> None:
        """End a job before its run is tried again: SLURM may be about to requeue it, or it may be out of sight."""
        try:
            self.gateway.cancel(attempt.identity)
        except UnknownJob as error:
            log.info("run %s: its job needn't be ended: %s", attempt.tag.run_id, error)

    # ------------------------------------------------------------------------------------------- what comes late

    def _still_late(self) -> dict[RunTag, _Late]:
        """Return the runs of which something may still come; at first those that an earlier service left."""
        now = self.now()
        if self._late is None:
            ended = self.store.ended_attempts(now - USAGE_PATIENCE)
            recent = {attempt.tag for attempt in self.store.ended_attempts(now - LATE_PATIENCE)}
            soon = now + LATE_PATIENCE
            items = [
                _Late(attempt=attempt, read_until=soon if attempt.tag in recent else now, ask_until=soon)
                for attempt in ended
            ]
            self._late = {item.attempt.tag: item for item in items}
        self._late = {tag: item for tag, item in self._late.items() if now < item.read_until or self._wants(item)}
        return self._late

    def _wants(self, item: _Late) -> bool:
        return _lacks_usage(item.attempt.last_report) and self.now() < item.ask_until

    def _ask_what_is_not_urgent(self, active: Sequence[ActiveAttempt]) -> None:
        """Ask accounting, which lags, for the usage of jobs that have ended, and for how requeued ones ended before."""
        late = [item.attempt for item in self._still_late().values() if self._wants(item)]
        requeued = [attempt for attempt in active if self._lacks_earlier(attempt)]
        wanted = {attempt.identity: attempt for attempt in (*late, *requeued)}
        now = self.now()
        if not wanted or (self._usage_asked_at is not None and now - self._usage_asked_at < self._usage_pause):
            return
        self._usage_asked_at, was_silent = now, self._accounting_silent
        answer = self._ask_accounting(tuple(wanted))
        if answer is None:
            self._usage_pause = min(2 * self._usage_pause, USAGE_INTERVAL_MAX)
            self._late = {tag: item.patient() for tag, item in self._still_late().items()}
            return
        self._usage_pause = USAGE_INTERVAL
        if was_silent:  # what accounting missed reaches it a while after it is back
            soon = now + LATE_PATIENCE
            self._late = {tag: replace(item, ask_until=soon) for tag, item in self._still_late().items()}
        for identity, report in answer.items():
            with self._at_its_own_cost(wanted[identity]):
                self._take_in_accounting(wanted[identity], report)

    def _lacks_earlier(self, attempt: ActiveAttempt) -> bool:
        report = attempt.last_report
        return report is not None and report.restarts > self._memory[attempt.tag].earlier_known

    def _take_in_accounting(self, attempt: ActiveAttempt, report: JobReport) -> None:
        """Record what only accounting knows: how earlier starts ended, who cancelled, usage."""
        before, late = attempt.last_report, self._still_late().get(attempt.tag)
        # Accounting gets to know of a new start a while after it, and of a held one never.
        behind = before is not None and report.restarts < before.restarts
        starts = (*report.earlier, report) if behind else report.earlier
        for number, earlier in enumerate(starts):
            told: Json = {"words": earlier.words, "reason": earlier.reason, "nodes": earlier.nodes}
            self.store.record_event(attempt.tag, "earlier-start", told, earlier.ended_at or self.now(), sequence=number)
        self._memory[attempt.tag].earlier_known = len(starts)
        if late is None or before is None or behind or not (report.state.ended and report.usage):
            return
        told_now = replace(before, usage=report.usage)
        if report.words.startswith(f"{before.words} "):  # CANCELLED by 1000
            told_now = replace(told_now, words=report.words, evidence=report.evidence)
        self.store.record_report(attempt.tag, told_now)
        self._still_late()[attempt.tag] = replace(late, attempt=replace(attempt, last_report=told_now))


_NOT_ASKED = (
    "the controller doesn't know its job any more and accounting can't be asked: how it ended isn't known yet; "
    "see that slurmdbd runs"
)


def _directory(attempt: ActiveAttempt) -> AttemptDirectory:
    return RunDirectory(attempt.run_directory).attempt(attempt.tag.attempt)


def _ended(attempt: AttemptRecord, plan: JobPlan) -> Ended:
    return Ended(
        number=attempt.tag.attempt,
        cause=JobState.UNKNOWN if attempt.end is None else attempt.end.cause,
        resources=plan.resources if attempt.retry is None else attempt.retry.resources,
        report=attempt.last_report,
    )


def _has_begun(directory: AttemptDirectory) -> bool:
    """Whether a job has left anything of itself; one that claimed the attempt has, whether that can be read or not."""
    return any(path.exists() for path in (directory.claim, directory.events, directory.progress_of(0)))


def _is_stale(report: JobReport) -> bool:
    """Whether accounting says of a job that it lives, which the controller, asked before, would then have known.

    The controller can lose its state, or have told of an end that accounting hasn't heard of yet.
    """
    return report.evidence is Evidence.ACCOUNTING and not report.state.ended


def _lacks_usage(report: JobReport | None) -> bool:
    return report is not None and report.state.ended and not report.usage


def _outputs(detail: Mapping[str, Json]) -> list[OutputIdentity]:
    """Return the files that a job's end record names."""
    outputs = detail.get("outputs")
    return [
        OutputIdentity(
            path=Path(str(output["path"])),
            kind=str(output["kind"]),
            size=int(str(output["size"])),
            sha256=str(output["sha256"]),
        )
        for output in (outputs if isinstance(outputs, list) else [])
        if isinstance(output, dict)
    ]
