"""Jobs of reruns that left no word, found by comparing what SLURM has with the store.

A ``rerun.sbatch`` leaves word of its run in the drop folder. Where it couldn't (the folder is full, the node died, an
edit was refused, it never began), SLURM knows its job all the same, and whose run it makes again. In: such jobs. Out: a
run, where its directory is found and is its owner's, as if the word had come; else an event at the run that it makes
again, which says who, when, how the job ended and what can be done. A run that isn't known isn't made up, nothing of
what users wrote is run, and a job that the store knows is left alone.

The controller is asked every time; accounting, where that question is dear, when a job has left the controller
meanwhile, and now and then for those that came and went unseen. Until when it was asked is kept in the drop folder, so
that the next service goes on there.
"""

from __future__ import annotations

import logging
import os
import pwd
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeAlias

from orchestrator.adopting import COMPARED, WORD_LIMIT, Adopter, content_of, read_run
from orchestrator.errors import InvalidInput, NotFound, RunDirectoryUnavailable, StoreUnavailable
from orchestrator.injob import EXIT_CANNOT_WRITE, SEEN_LATE_S
from orchestrator.planning import directory_of
from orchestrator.provenance import RunDetail
from orchestrator.records import JobReport, JobState, Json, RerunJob, utc_now
from orchestrator.rendering.rerun import EXIT_NO_MODULE, LOG, SAID
from orchestrator.rerunning import EXIT_WRONG_EDIT, HOME_FOLDER, rerun_id, user_name
from orchestrator.runs import RunDirectory, write_atomically

log = logging.getLogger(__name__)

LEASE = "comparing"
"""Name of the lease of the one service that compares."""

WORD_PATIENCE = timedelta(seconds=SEEN_LATE_S)
"""How long after a job's end its word may still come."""
BEGIN_PATIENCE = timedelta(minutes=5)
"""How long a job may take from its start to its word: modules and interpreters are loaded before."""
TOLD_FOR = timedelta(minutes=10)
"""How long what was told of a job stands, unless SLURM says something else of it; then its run is looked for."""
ACCOUNTED_EVERY = timedelta(hours=1)
"""How often accounting is asked for jobs that came and went unseen."""
ACCOUNTED_SOON = timedelta(minutes=5)
"""How soon it is asked again for a job that has left the controller, or after it gave no answer."""
ACCOUNTING_LAG = timedelta(minutes=15)
"""How late accounting may hear of something: so much of what was asked for is asked for again."""
FIRST_LOOK = timedelta(days=1)
"""How far back is looked where nobody has compared before."""
LONGEST_LOOK = timedelta(days=7)
"""How far back is looked after a long time without a service."""

_EXITS = {
    EXIT_WRONG_EDIT: "an edit in its script is wrong, or the record of this run can't be used",
    EXIT_NO_MODULE: "a module couldn't be loaded",
    EXIT_CANNOT_WRITE: "the new run's directory couldn't be written",
}
"""What ``rerun.sbatch`` means by its exit codes."""
_SAID = re.compile(f"^{re.escape(SAID[0])}(/.+?){re.escape(SAID[1])}", re.MULTILINE)

_Key: TypeAlias = tuple[str, int, str]
"""Cluster, job id and parent: a requeue changes a job's submit time."""


@dataclass(frozen=True)
class _Seen:
    """A job of which it isn't settled what becomes of it, and when SLURM last told of it."""

    job: RerunJob
    at: datetime


@dataclass(kw_only=True)
class Comparison:
    """Compares SLURM's jobs of reruns with the store, again and again."""

    adopter: Adopter
    now: Callable[[], datetime] = utc_now
    _open: dict[_Key, _Seen] = field(default_factory=dict)
    _asked_at: datetime | None = None
    """When accounting was last asked."""
    _answered_at: datetime | None = None
    """Until when it has told."""
    _told: dict[_Key, tuple[str, datetime]] = field(default_factory=dict)
    """What SLURM said of jobs when they were told of, and when that was."""
    _strangers: set[_Key] = field(default_factory=set)
    """Jobs whose parents aren't here."""

    def look(self) -> int:
        """Compare once; return how many runs came home.

        Raises
        ------
        GatewayUnavailable
            When a place that had to be asked couldn't be; the others have been.
        StoreUnavailable
            When something can't be recorded; the next look finds the same again.
        RunDirectoryUnavailable
            When it can't be kept how far was looked; everything else is done.
        """
        now = self.now()
        self._told = {key: (words, at) for key, (words, at) in self._told.items() if now - at < TOLD_FOR}
        queued = self.adopter.gateway.queued_reruns()
        found = self._take(queued, now)
        gone = self._open.keys() - map(_key, queued)
        pause = ACCOUNTED_SOON if gone or self._answered_at != self._asked_at else ACCOUNTED_EVERY
        if self._asked_at is None or now - self._asked_at >= pause:
            found += self._ask_accounting({_key(job) for job in queued}, now)
        for seen in [self._open[key] for key in gone if key in self._open]:
            if now - seen.at >= ACCOUNTING_LAG:  # nobody knows it any more: what was last heard of it counts
                found += self._settle(seen.job, forgotten=True)
        return found

    def _ask_accounting(self, queued: Collection[_Key], now: datetime) -> int:
        self._asked_at = now
        since = self._answered_at or self._kept() or now - FIRST_LOOK
        since = max(min(since, now) - ACCOUNTING_LAG, now - LONGEST_LOOK)
        accounted = self.adopter.gateway.accounted_reruns(since=since)
        found = self._take([job for job in accounted if _key(job) not in queued], now)
        self._answered_at = now
        self._keep(now)
        return found

    def _take(self, jobs: Sequence[RerunJob], now: datetime) -> int:
        """Settle what can be settled of jobs, and remember the others; return how many runs came home."""
        return sum(self._settle(job) for job in self._unknown(jobs) if not self._may_wait(job, now))

    def _unknown(self, jobs: Sequence[RerunJob]) -> list[RerunJob]:
        """Return the jobs of which the store has no run, and forget the others."""
        known = self.adopter.store.known_reruns([job.report.identity for job in jobs])
        for key in known & self._open.keys():
            del self._open[key]
        return [job for job in jobs if _key(job) not in known]

    def _may_wait(self, job: RerunJob, now: datetime) -> bool:
        """Whether nothing is to be done about a job now; it is remembered while more of it is to come."""
        due, told = _is_due(job.report, now), self._told.get(_key(job))
        stands = told is not None and told[0] == job.report.words
        if not due or (stands and not job.report.state.ended):
            self._open[_key(job)] = _Seen(job, now)
        return not due or stands

    def _settle(self, job: RerunJob, *, forgotten: bool = False) -> bool:
        """Take a job's run home, or tell of the job at its parent; return whether there is a new run."""
        try:
            return self._find_or_tell(job, forgotten=forgotten)
        except StoreUnavailable:
            raise
        except Exception:  # whatever it is, it is this job's: the others go on, and how far was looked
            log.exception("job %s of %s, which made run %s again, can't be dealt with", *_names(job), job.tag.parent)
            return False

    def _find_or_tell(self, job: RerunJob, *, forgotten: bool) -> bool:
        try:
            parent = self.adopter.store.run(job.tag.parent)
        except NotFound:
            self._open.pop(_key(job), None)
            self._name_stranger(job)
            return False
        obstacles: list[InvalidInput] = []
        for place in self._places(job, parent):
            try:
                new = self._bring_home(job, parent, place)
            except InvalidInput as error:
                obstacles.append(error)
            else:
                self._open.pop(_key(job), None)
                return new
        self._tell(job, parent, obstacles, forgotten=forgotten)
        return False

    def _name_stranger(self, job: RerunJob) -> None:
        if _key(job) not in self._strangers:
            log.info("job %s of %s makes run %s again, which isn't here", *_names(job), job.tag.parent)
        self._strangers.add(_key(job))

    # ------------------------------------------------------------------------------------------- taken home

    def _places(self, job: RerunJob, parent: RunDetail) -> Iterator[RunDirectory]:
        """Give the directories that the run may have, as far as they are there and may be seen."""
        said = _said(job)
        found = [said] if said is not None else [run for run in self._usual(job, parent) if os.path.lexists(run.path)]
        yield from found

    def _usual(self, job: RerunJob, parent: RunDetail) -> Iterator[RunDirectory]:
        """Give where `orchestrator.rerunning` makes the run unless the script says otherwise."""
        roots = [self.adopter.settings.reruns.root]
        with suppress(KeyError):  # an account that this machine doesn't know
            roots.append(Path(pwd.getpwnam(job.user).pw_dir) / HOME_FOLDER)
        for root in roots:
            yield directory_of(root, parent.plan.collection, parent.plan.recipe, _run_id(job))

    def _bring_home(self, job: RerunJob, parent: RunDetail, place: RunDirectory) -> bool:
        run = read_run(place, _run_id(job), RunDirectory(parent.summary.run_directory), job.user)
        if run.plan.parent_run != job.tag.parent:
            raise InvalidInput(f"{place.plan}: isn't a plan to make run {job.tag.parent} again")
        identity = job.report.identity
        new = self.adopter.adopt(run, identity, identity.submitted_at)
        if new:
            log.warning(
                "run %s: job %s of %s left no word of it; it was found in %s",
                run.plan.run_id, *_names(job), run.plan.run_directory,
            )  # fmt: skip
        return new

    # ------------------------------------------------------------------------------------------- told of

    def _tell(self, job: RerunJob, parent: RunDetail, obstacles: Sequence[InvalidInput], *, forgotten: bool) -> None:
        report = job.report
        self._told[_key(job)] = report.words, self.now()
        told = _told(job, obstacles, forgotten=forgotten)
        if report.state.ended or forgotten:
            self._open.pop(_key(job), None)
        else:  # its end is to be told as well
            self._open[_key(job)] = _Seen(job, self.now())
        at = report.ended_at or report.started_at or report.identity.submitted_at
        if self.adopter.store.record_lost_rerun(parent.summary.run_id, report.identity, told, at):
            log.warning(
                "run %s: job %s of %s made it again, %s: %s", parent.summary.run_id, *_names(job), report.words,
                told["because"],
            )  # fmt: skip

    # ------------------------------------------------------------------------------------------- how far was looked

    @property
    def _note(self) -> Path:
        return self.adopter.settings.reruns.drop / COMPARED / "until"

    def _kept(self) -> datetime | None:
        """Return until when a service before this one has compared; None where that isn't known."""
        try:
            content, owner = content_of(self._note, WORD_LIMIT)
            return datetime.fromisoformat(content.decode().strip()) if owner == os.getuid() else None
        except (InvalidInput, ValueError):
            return None

    def _keep(self, until: datetime) -> None:
        try:
            self.adopter.prepare()
            write_atomically(self._note, f"{until.isoformat()}\n", durable=False)
        except OSError as error:
            raise RunDirectoryUnavailable(
                f"{error.filename or self._note}: {error.strerror}",
                remedy="correct its rights, or [reruns] drop in the site file; the next service looks a day back",
            ) from error


def _key(job: RerunJob) -> _Key:
    identity = job.report.identity
    return identity.cluster, identity.job_id, job.tag.parent


def _names(job: RerunJob) -> tuple[str, str]:
    return str(job.report.identity), job.user


def _run_id(job: RerunJob) -> str:
    return rerun_id(job.tag.parent, job.report.identity.cluster, str(job.report.identity.job_id))


def _is_due(report: JobReport, now: datetime) -> bool:
    """Whether a job should have left its word by now."""
    if report.state.ended:
        return report.ended_at is None or now - report.ended_at >= WORD_PATIENCE
    begun = report.state is not JobState.PENDING and report.started_at is not None
    return begun and report.started_at is not None and now - report.started_at >= BEGIN_PATIENCE


def _log_of(job: RerunJob) -> Path | None:
    """Return where a job printed what it did, unless its script was edited there."""
    name = LOG.format(job_id=job.report.identity.job_id)
    return None if job.working_directory is None else job.working_directory / name


def _said(job: RerunJob) -> RunDirectory | None:
    """Return the new run's directory as the job named it in its log; None where it didn't, or the log isn't its own."""
    path = _log_of(job)
    try:
        content, owner = (b"", 0) if path is None else content_of(path, WORD_LIMIT)
    except InvalidInput:
        return None
    found = _SAID.search(content.decode(errors="replace")) if user_name(owner) == job.user else None
    return RunDirectory(Path(found[1])) if found else None


def _told(job: RerunJob, obstacles: Sequence[InvalidInput], *, forgotten: bool) -> dict[str, Json]:
    """Return what is kept of a job that left no run: whose, how it ended, why no run is known, what can be done."""
    report, path = job.report, _log_of(job)
    facts: dict[str, Json] = {
        "user": job.user,
        "state": str(report.state),
        "words": report.words,
        "evidence": str(report.evidence),
        "reason": report.reason,
        "exit_code": report.exit_code,
        "signal": report.signal,
        "nodes": report.nodes,
        "started_at": None if report.started_at is None else report.started_at.isoformat(),
        "ended_at": None if report.ended_at is None else report.ended_at.isoformat(),
        "log": None if path is None else str(path),
        "because": _because(report, obstacles, forgotten=forgotten),
        "remedy": _remedy(report, path, obstacles),
    }
    return {name: value for name, value in facts.items() if value not in (None, "")}


def _because(report: JobReport, obstacles: Sequence[InvalidInput], *, forgotten: bool) -> str:
    if obstacles:
        return "; ".join(map(str, obstacles))
    if forgotten:
        return "it left no word, and SLURM doesn't know it any more"
    if not report.state.ended:
        return "it has left no word, and its run's directory isn't where it would be"
    if report.started_at is None:
        return "it never began"
    if report.exit_code in _EXITS and not report.signal:
        return _EXITS[report.exit_code]
    return "it left no word, and its run's directory isn't where it would be"


def _remedy(report: JobReport, path: Path | None, obstacles: Sequence[InvalidInput]) -> str:
    if report.state.ended and report.started_at is None:
        return "hand rerun.sbatch to sbatch again"
    if obstacles:
        return obstacles[-1].remedy or "run it again"
    where = "what it printed" if path is None else str(path)
    there = "if it names a new run's directory, `orchestrator db import` reads that"
    return f"{where} says more: correct that and run it again; {there}"
