"""How a job's end, or its absence, ends its run: concluded, tried again, or unknown.

In: an attempt and the last report on its job. Out: what the store keeps, and True when the attempt is over. The rules
themselves are pure and elsewhere: `evidence.conclude`, `retrying.decide`, `chaining.decide_again`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from orchestrator.chaining import Earlier, Never, Wait, decide_again
from orchestrator.crashpoints import CrashPoint, reached
from orchestrator.errors import UnknownJob
from orchestrator.evidence import Conclusion, KernelProgress, claim_owner, conclude, may_say_more
from orchestrator.following.files import RunFiles, own_record
from orchestrator.following.late import LateNews
from orchestrator.following.roster import Followed, Roster
from orchestrator.provenance import AttemptEnd, AttemptRecord, Store
from orchestrator.records import JobPlan, JobReport, JobState, Retry, RunState, SubmittedJob
from orchestrator.retrying import Ended, NoRetry, cause_of, decide
from orchestrator.runs import AttemptDirectory
from orchestrator.slurm.gateway import CLOCK_JUMP, Gateway

log = logging.getLogger(__name__)

LAST_WORD_PATIENCE = timedelta(seconds=60)
"""How long the last word of a kernel that ended in order may take to be seen: NFS shows files as they were up to a
minute ago (acregmax, acdirmax; nfs(5))."""

OWNER_PATIENCE = timedelta(minutes=10)
"""How long SLURM may know nothing of a job that has claimed an attempt: accounting that was down hears of it late."""


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """Ends attempts."""

    store: Store
    gateway: Gateway
    files: RunFiles
    roster: Roster
    late: LateNews
    now: Callable[[], datetime]
    forgive_out_of_memory: bool

    def finish(self, one: Followed, report: JobReport) -> None:
        """Conclude the run of a job that has ended, unless more is to come."""
        if not self._left_to_owner(one):
            self._finish(one, report)

    def _left_to_owner(self, one: Followed) -> bool:
        """Go by the job that has claimed the attempt where it is another one; return whether it is."""
        owner = claim_owner(one.directory)
        if owner in {None, str(one.attempt.identity.job_id)}:
            return False
        if not self._follow_owner(one, owner):
            self._finish_for_owner(one, owner)
        return True

    def _finish_for_owner(self, one: Followed, owner: str | None) -> None:
        """Conclude an attempt of a job that nobody can tell of (yet); the one we know of left at its fence.

        Accounting may hear of that job late, so what it said itself is the only evidence there is.
        """
        one.ended_since = one.ended_since or self.now()
        if (own := own_record(one)) is not None:
            self._finish(one, own)
        elif self.now() - one.ended_since >= OWNER_PATIENCE:
            told = f"job {owner} has the attempt and left no end record; SLURM doesn't know of it"
            self._conclude(one, Conclusion(state=RunState.UNKNOWN, reason=told))

    def _finish(self, one: Followed, report: JobReport) -> None:
        # Now: the job may have written its last lines between the cycle's last reading and its report.
        progress = self.files.take_in(one)
        one.ended_since = one.ended_since or self.now()
        if may_say_more(report, progress) and self.now() - one.ended_since < LAST_WORD_PATIENCE:
            return
        one.attempt = replace(one.attempt, last_report=report)
        self._conclude(one, self._conclusion(one, report, progress), ended_at=report.ended_at)

    def _conclusion(self, one: Followed, report: JobReport, progress: KernelProgress | None) -> Conclusion:
        own = own_record(one) if self.forgive_out_of_memory else None
        return conclude(report, progress, forgiven=own is not None and own.exit_code == 0)

    def give_up(self, one: Followed, known: str) -> None:
        """End the run of a job that nobody knows any more and that said nothing, or have it made again.

        A controller that is killed forgets the jobs of its last seconds. One that hasn't claimed its attempt has done
        nothing, so the attempt may be submitted again.

        Parameters
        ----------
        known
            What is known about the job.
        """
        self.files.take_in(one)
        if self._left_to_owner(one):
            return
        attempt = one.attempt
        seen = attempt.last_report.words if attempt.last_report else "submitted"
        reason = f"job {attempt.identity} {known}; it left no end record, and was last seen as {seen}"
        if _has_begun(one.directory) or not self._plan_again(one, f"{reason}; it had not begun"):
            self._conclude(one, Conclusion(state=RunState.UNKNOWN, reason=reason))

    def _plan_again(self, one: Followed, reason: str) -> bool:
        """Have a job made again that never began; return whether there is nothing more to conclude about it."""
        attempt = one.attempt
        state = self.store.plan_again_unbegun(attempt.tag, attempt.identity, reason)
        if state is RunState.PLANNED:
            log.warning("run %s: %s; submitting again", attempt.tag.run_id, reason)
        if state not in {None, RunState.PLANNED}:
            return False
        self.roster.drop(one)
        return True

    def go_with_the_chain(self, one: Followed, report: JobReport, earlier: Sequence[Earlier]) -> None:
        """Deal with a job that was given up because of one that it comes after: its run does what that one's does."""
        if not report.state.ended:
            self.make_sure_of_the_end(one)  # it would wait for ever
            return
        verdict = decide_again(earlier, one.attempt.intent_at, report=report)
        if isinstance(verdict, Wait):
            return
        retry = None
        reason = f"the job was given up ({report.words})"
        if isinstance(verdict, Never):
            reason = verdict.reason
        else:
            run = self.store.run(one.attempt.tag.run_id)
            same = _ended(run.attempts[-1], run.plan).resources
            retry = Retry(resources=same, because=f"{' and '.join(map(str, earlier))} had to be tried again")
        one.attempt = replace(one.attempt, last_report=report)
        ended_at = report.ended_at or self.now()
        end = AttemptEnd(state=RunState.CANCELLED, reason=reason, cause=JobState.CANCELLED, ended_at=ended_at)
        self._end_attempt(one, end, retry)

    def _follow_owner(self, one: Followed, owner: str | None) -> bool:
        """Follow the job that has claimed the attempt, which is another one; return whether SLURM knows of it.

        A submission that was taken for lost can still make a job, and that one can be the first to begin: then the job
        we know of left at the fence, with exit code 0 and nothing done.
        """
        attempt = one.attempt
        for report in self.gateway.find(attempt.tag, since=attempt.intent_at - CLOCK_JUMP):
            if str(report.identity.job_id) == owner:
                job = SubmittedJob(identity=report.identity, gateway=self.gateway.name, adopted=True)
                self.store.record_submitted(attempt.tag, job)
                self.roster.change_job(one, job.identity)
                log.warning(
                    "run %s: job %s has its attempt, not %s", attempt.tag.run_id, job.identity, attempt.identity
                )
                return True
        return False

    def _conclude(self, one: Followed, conclusion: Conclusion, ended_at: datetime | None = None) -> None:
        cause, decision = self._decide(one, conclusion)
        retry = decision if isinstance(decision, Retry) else None
        reason = conclusion.reason
        if isinstance(decision, NoRetry) and decision.reason:
            reason += f"; not tried again: {decision.reason}"
        if retry is not None:
            self.make_sure_of_the_end(one)
        end = AttemptEnd(state=conclusion.state, reason=reason, cause=cause, ended_at=ended_at or self.now())
        self._end_attempt(one, end, retry)

    def _decide(self, one: Followed, conclusion: Conclusion) -> tuple[JobState, Retry | NoRetry]:
        """Return why an attempt ended, and whether its run is tried again."""
        report, tag = one.attempt.last_report, one.attempt.tag
        if report is not None and conclusion.state in {RunState.COMPLETE, RunState.CANCELLED}:
            return report.state, NoRetry()
        run = self.store.run(tag.run_id)
        made = [_ended(each, run.plan) for each in run.attempts if each.tag.attempt <= tag.attempt]
        told = one.counts or one.attempt.counts
        cause = cause_of(report, conclusion, made[-1].resources, "" if told is None else told.ended_because)
        made[-1] = replace(made[-1], cause=cause, report=report)
        return cause, decide(run.plan, made, conclusion.state, self.now())

    def make_sure_of_the_end(self, one: Followed) -> None:
        """End a job whose run is over or tried again: SLURM may be about to requeue it, or it may be out of sight."""
        try:
            self.gateway.cancel(one.attempt.identity)
        except UnknownJob as error:
            log.info("run %s: its job needn't be ended: %s", one.attempt.tag.run_id, error)

    def _end_attempt(self, one: Followed, end: AttemptEnd, retry: Retry | None) -> None:
        tag = one.attempt.tag
        reached(CrashPoint.BEFORE_CONCLUSION)
        state = self.store.end_attempt(tag, one.attempt.identity, end, retry=retry)
        reached(CrashPoint.CONCLUDED)
        self.roster.drop(one)
        if state is None:
            log.info("run %s: attempt %d isn't ours to end any more", tag.run_id, tag.attempt)
            return
        self.late.add(one)
        level = logging.INFO if end.state is RunState.COMPLETE else logging.WARNING
        again = "; it is tried again" if state is RunState.PLANNED else ""
        log.log(level, "run %s is %s: %s%s", tag.run_id, end.state, end.reason, again)


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
