"""What comes after the verdict, and what only accounting knows: usage, who cancelled, how earlier starts ended.

Accounting lags, and may be away for hours; what isn't urgent is asked for at its pace, all in one question.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from orchestrator.errors import GatewayUnavailable
from orchestrator.following.files import RunFiles
from orchestrator.following.roster import Followed
from orchestrator.provenance import Store
from orchestrator.records import JobIdentity, JobReport, Json, RunTag
from orchestrator.slurm.gateway import Gateway

log = logging.getLogger(__name__)

LATE_PATIENCE = timedelta(minutes=5)
"""How long after a run's end what is still missing is looked for: usage, because accounting lags, and last lines."""

USAGE_INTERVAL = timedelta(seconds=10)
"""Shortest time between two questions to accounting about what isn't urgent: it may have none to tell."""

USAGE_INTERVAL_MAX = timedelta(minutes=5)
"""Longest time between two such questions while accounting can't be asked."""

USAGE_PATIENCE = timedelta(days=1)
"""How long after a run's end usage is looked for when accounting can't be asked before."""

_READ_EVERY = timedelta(minutes=1)
"""How often the files of a run that has ended are read although they look unchanged."""


@dataclass(kw_only=True)
class Accounting:
    """The gateway's accounting; that it can't be asked is said once."""

    gateway: Gateway
    silent: bool = False

    def ask(self, jobs: Sequence[JobIdentity]) -> Mapping[JobIdentity, JobReport] | None:
        """Ask about jobs that the controller doesn't tell enough of; None when it can't be asked."""
        if not jobs:
            return {}
        try:
            answer = self.gateway.account(jobs)
        except GatewayUnavailable as error:
            if not self.silent:
                log.warning("accounting can't be asked about %d jobs: %s", len(jobs), error.full_text)
            self.silent = True
            return None
        self.silent = False
        return answer


@dataclass(kw_only=True)
class _Late:
    """A run that has ended, and how long something may still come."""

    one: Followed
    read_until: datetime
    """From its files."""
    ask_until: datetime
    """From accounting."""

    def wants_usage(self, now: datetime) -> bool:
        report = self.one.attempt.last_report
        return report is not None and report.state.ended and not report.usage and now < self.ask_until


@dataclass(kw_only=True)
class LateNews:
    """The runs of which something may still come."""

    store: Store
    files: RunFiles
    accounting: Accounting
    now: Callable[[], datetime]
    _late: dict[RunTag, _Late] | None = None
    _asked_at: datetime | None = None
    _pause: timedelta = field(default=USAGE_INTERVAL)

    def __iter__(self) -> Iterator[Followed]:
        return iter([item.one for item in (self._late or {}).values()])

    def add(self, one: Followed) -> None:
        """Take in a run that has just ended."""
        if self._late is not None:
            soon = self.now() + LATE_PATIENCE
            self._late[one.attempt.tag] = _Late(one=one, read_until=soon, ask_until=soon)

    def read(self) -> None:
        """Take in what came into the directories of runs that have ended; first those that an earlier service left."""
        now = self.now()
        if self._late is None:
            self._late = self._left_by_others(now)
        self._late = {tag: item for tag, item in self._late.items() if now < item.read_until or item.wants_usage(now)}
        for item in self._late.values():
            if now < item.read_until:
                self.files.look(item.one, read_every=_READ_EVERY)

    def _left_by_others(self, now: datetime) -> dict[RunTag, _Late]:
        recent = {attempt.tag for attempt in self.store.ended_attempts(now - LATE_PATIENCE)}
        soon = now + LATE_PATIENCE
        return {
            attempt.tag: _Late(
                one=Followed(attempt=attempt), read_until=soon if attempt.tag in recent else now, ask_until=soon
            )
            for attempt in self.store.ended_attempts(now - USAGE_PATIENCE)
        }

    def ask(self, active: Iterable[Followed]) -> None:
        """Ask accounting for the usage of jobs that have ended, and for how requeued ones ended before."""
        now, late = self.now(), (self._late or {}).values()
        if self._asked_at is not None and now - self._asked_at < self._pause:
            return
        wanted = {item.one.attempt.identity: item.one for item in late if item.wants_usage(now)}
        wanted |= {one.attempt.identity: one for one in active if one.lacks_earlier}
        if not wanted:
            return
        self._asked_at, was_silent = now, self.accounting.silent
        answer = self.accounting.ask(tuple(wanted))
        if answer is None:
            self._pause = min(2 * self._pause, USAGE_INTERVAL_MAX)
            for item in late:
                item.ask_until = item.read_until + USAGE_PATIENCE
            return
        self._pause = USAGE_INTERVAL
        if was_silent:  # what accounting missed reaches it a while after it is back
            for item in late:
                item.ask_until = now + LATE_PATIENCE
        for identity, report in answer.items():
            with wanted[identity].at_its_own_cost():
                self._take_in(wanted[identity], report)

    def _take_in(self, one: Followed, report: JobReport) -> None:
        attempt, before = one.attempt, one.attempt.last_report
        # Accounting gets to know of a new start a while after it, and of a held one never.
        behind = before is not None and report.restarts < before.restarts
        starts = (*report.earlier, report) if behind else report.earlier
        for number, earlier in enumerate(starts):
            told: Json = {"words": earlier.words, "reason": earlier.reason, "nodes": earlier.nodes}
            self.store.record_event(attempt.tag, "earlier-start", told, earlier.ended_at or self.now(), sequence=number)
        one.earlier_known = len(starts)
        late = attempt.tag in (self._late or {})
        if not late or before is None or behind or not (report.state.ended and report.usage):
            return
        told_now = replace(before, usage=report.usage)
        if report.words.startswith(f"{before.words} "):  # CANCELLED by 1000
            told_now = replace(told_now, words=report.words, evidence=report.evidence)
        self.store.record_report(attempt.tag, told_now)
        one.attempt = replace(attempt, last_report=told_now)
