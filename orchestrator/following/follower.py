"""The cycle: one question about all active jobs, and what is done about the answer.

A report that has been dealt with and that nothing depends on but itself is *settled*: as long as it stays the same,
its job costs a comparison. So a cycle's work grows with what changes, not with what is active.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from orchestrator.chaining import given_up
from orchestrator.errors import GatewayError, GatewayUnavailable, InvalidSettings, StoreUnavailable
from orchestrator.evidence import with_memory_note
from orchestrator.following.announcing import Announcements
from orchestrator.following.files import RunFiles, own_record
from orchestrator.following.late import Accounting, LateNews
from orchestrator.following.overtaken import BY_SLURM, counts_more
from orchestrator.following.roster import Followed, Roster
from orchestrator.following.verdicts import Verdicts
from orchestrator.provenance import Store
from orchestrator.provenance.attempts import heard
from orchestrator.provenance.database import batched
from orchestrator.records import Evidence, JobIdentity, JobReport, JobState, Json, RunTag, utc_now
from orchestrator.slurm.gateway import Gateway
from orchestrator.slurm.waiting import hindrance

log = logging.getLogger(__name__)

_NOT_ASKED = (
    "the controller doesn't know its job any more and accounting can't be asked: how it ended isn't known yet; "
    "see that slurmdbd runs"
)


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
    asked_s: float = field(default=0.0, init=False)
    """How long the controller took over the last question."""
    _cluster: str = field(default="", init=False)
    """Of the gateway; empty until it matters."""

    def __post_init__(self) -> None:
        self._roster = Roster(store=self.store, now=self.now)
        self._announcements = Announcements(store=self.store)
        self._files = RunFiles(store=self.store, now=self.now)
        self._accounting = Accounting(gateway=self.gateway)
        self._late = LateNews(store=self.store, files=self._files, accounting=self._accounting, now=self.now)
        self._verdicts = Verdicts(
            store=self.store,
            gateway=self.gateway,
            files=self._files,
            roster=self._roster,
            late=self._late,
            now=self.now,
            forgive_out_of_memory=self.forgive_out_of_memory,
        )

    def cycle(self) -> int:
        """Go once over all active jobs; return how many stay active.

        Raises
        ------
        GatewayUnavailable
            When the controller can't be asked; what kernels and jobs wrote has been taken in all the same.
        StoreUnavailable
            When the store can't be written; the next cycle finds the same again.
        """
        self._announcements.go_on(self._roster.refresh(), self._roster)
        self._late.read()
        try:
            self._ask()
        except GatewayUnavailable:
            for one in self._roster:
                self._files.look(one)
            raise
        self._files.look_at_all(self._roster)
        self._late.ask(one for one in self._roster if not one.waits)
        return len(self._roster)

    @property
    def remembered(self) -> frozenset[RunTag]:
        """The attempts of which anything is remembered: those that are active, or ended a short while ago."""
        return frozenset(one.attempt.tag for one in (*self._roster, *self._late))

    def _ask(self) -> None:
        """Ask about all jobs and act on what is said."""
        if not len(self._roster):
            return
        began_s = time.monotonic()
        told = self.gateway.poll(self._roster.identities)
        self.asked_s = time.monotonic() - began_s
        news = [one for one in self._roster if not _is_settled(one, told)]
        accounted = self._accounting.ask([one.attempt.identity for one in news if one.attempt.identity not in told])
        reports = {**told, **(accounted or {})}
        self._record(news, told)
        obstacles: list[GatewayError] = []
        for one in news:
            try:
                with one.at_its_own_cost():
                    self._act(one, reports.get(one.attempt.identity), everybody_asked=accounted is not None)
            except GatewayError as error:  # to a question about this run: the others go on
                obstacles.append(error)
        for obstacle in obstacles:
            raise obstacle

    def _record(self, news: Sequence[Followed], told: Mapping[JobIdentity, JobReport]) -> None:
        """Record what the controller says of many living jobs at once; what is left out `_act` records by itself."""
        for lot in batched([one for one in news if _is_news_of_a_living_job(one, told)]):
            reports = {one.attempt.tag: told[one.attempt.identity] for one in lot}
            try:
                self.store.record_reports(reports)
            except (StoreUnavailable, InvalidSettings):
                raise
            except Exception as error:  # noqa: BLE001 - each is tried again by itself, at its own cost
                log.debug("reports can't be recorded together: %s", error)
                continue
            for one in lot:
                known = heard(one.attempt.last_report, reports[one.attempt.tag])
                one.attempt = replace(one.attempt, last_report=known)

    def _act(self, one: Followed, given: JobReport | None, *, everybody_asked: bool) -> None:
        """Record a report; conclude the run when its job has ended."""
        attempt, report = one.attempt, given
        one.settle(None)
        if report is None or _is_stale(report):
            report = own_record(one)
            if report is None:
                self._act_on_absence(one, given) if everybody_asked else self._hinder(one, _NOT_ASKED)
                return
        elif one.ended_start is not None or report.state in BY_SLURM:
            report = self._own_word(one, report)
        one.missing_since = None
        report = with_memory_note(report, one.directory.log)
        self._hinder(one, hindrance(report))
        if (known := heard(attempt.last_report, report)) != attempt.last_report:
            self.store.record_report(attempt.tag, report)
            one.attempt = replace(attempt, last_report=known)
        if given_up(report) and (earlier := self.store.earlier_runs(attempt.tag.run_id)):
            self._verdicts.go_with_the_chain(one, report, earlier)
        elif report.state.ended:
            self._verdicts.finish(one, report)
        else:
            one.ended_since = None
            if one.ended_start is None or one.ended_start < report.restarts:
                one.settle(given)

    def _own_word(self, one: Followed, report: JobReport) -> JobReport:
        """Return what a job that has ended said of its end where that counts more than what SLURM says, else that."""
        own = own_record(one, by_itself=True)
        if own is None or own.ended_at is None:
            return report
        if not counts_more(own, report, patience=self.vanish_after, age=self.now() - own.ended_at):
            return report
        told: Json = {"words": report.words, "reason": report.reason, "restarts": report.restarts}
        if self.store.record_event(one.attempt.tag, "overruled", told, self.now(), sequence=report.restarts):
            log.warning(
                "run %s: SLURM calls its job %s %s; the job %s at %s, says its own record",
                one.attempt.tag.run_id, one.attempt.identity, report.words, own.words, own.ended_at.isoformat(),
            )  # fmt: skip
        if report.state is JobState.PENDING:  # nothing is left to be done by it
            self._verdicts.make_sure_of_the_end(one)
        return own

    def _hinder(self, one: Followed, text: str) -> None:
        """Say in the run's reason what keeps it from ending, nothing where nothing does."""
        if text != one.hindrance:
            self.store.record_hindrance(one.attempt.tag, text)
            if text:
                log.warning("run %s: %s", one.attempt.tag.run_id, text)
        one.hindrance = text

    def _act_on_absence(self, one: Followed, stale: JobReport | None) -> None:
        """Nobody knows the job and it said nothing: wait, then give it up.

        What accounting still says of a job that the controller has lost is no more than a trace of it (`stale`).
        """
        job = one.attempt.identity
        self._cluster = self._cluster or self.gateway.check().cluster
        if job.cluster != self._cluster:  # whom we ask has never heard of it
            self._hinder(
                one,
                f"its job {job} is one of cluster {job.cluster}, and the {self.gateway.name} gateway speaks with "
                f"{self._cluster}: how it goes isn't known; see gateway.route and SLURM_CONF",
            )
            return
        one.missing_since = one.missing_since or self.now()
        if self.now() - one.missing_since < self.vanish_after:
            return
        known = "is known neither to the controller nor to accounting"
        if stale is not None:
            known = f"is gone from the controller, and accounting still says {stale.words} (sacctmgr show runawayjobs)"
        self._verdicts.give_up(one, known)


def _is_settled(one: Followed, told: Mapping[JobIdentity, JobReport]) -> bool:
    """Whether a job was told of as before, and nothing is left to be done about that."""
    report = told.get(one.attempt.identity)
    return report is not None and (report is one.settled or report == one.settled)


def _is_news_of_a_living_job(one: Followed, told: Mapping[JobIdentity, JobReport]) -> bool:
    report, before = told.get(one.attempt.identity), one.attempt.last_report
    return report is not None and not report.state.ended and heard(before, report) != before


def _is_stale(report: JobReport) -> bool:
    """Whether accounting says of a job that it lives, which the controller, asked before, would then have known.

    The controller can lose its state, or have told of an end that accounting hasn't heard of yet.
    """
    return report.evidence is Evidence.ACCOUNTING and not report.state.ended
