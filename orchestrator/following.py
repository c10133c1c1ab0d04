"""Active jobs followed to their end: states, progress, results -> store.

One cycle asks the controller once about all active jobs, reads what kernels and jobs left in the runs' directories, and
writes to the store what changed. Evidence is ranked: controller, then accounting, then the job's own end record; a job
that none of them knows is *unknown*, never a success.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

from orchestrator.errors import GatewayUnavailable
from orchestrator.evidence import Conclusion, KernelProgress, conclude, read_events, read_progress
from orchestrator.provenance import (
    ActiveAttempt,
    InputMoment,
    OutputIdentity,
    Store,
    end_to_json,
    input_from_json,
)
from orchestrator.records import Evidence, JobIdentity, JobReport, JobState, Json, RunState, RunTag, utc_now
from orchestrator.runs import AttemptDirectory, RunDirectory, write_atomically
from orchestrator.slurm.gateway import Gateway

log = logging.getLogger(__name__)

USAGE_PATIENCE = timedelta(minutes=2)
"""How long accounting may lag behind the controller before a finished job's usage is given up."""


@dataclass(kw_only=True)
class Follower:
    """Follows the jobs of one store through one gateway."""

    store: Store
    gateway: Gateway
    vanish_after: timedelta
    """How long a job may be known to nobody before its run is called unknown."""
    now: Callable[[], datetime] = utc_now
    _missing_since: dict[JobIdentity, datetime] = field(default_factory=dict)
    _usage_wanted: dict[JobIdentity, tuple[ActiveAttempt, datetime]] = field(default_factory=dict)
    _events_read: dict[AttemptDirectory, int] = field(default_factory=dict)
    _accounting_silent: bool = False
    _inputs_known: set[tuple[RunTag, str]] = field(default_factory=set)

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
        for attempt in active:
            self._announce_end(attempt)
            self._take_in_files(attempt)
        ended = self._ask(active)
        self._ask_for_usage()
        return len(active) - ended

    # ------------------------------------------------------------------------------------- the run's directory

    def _announce_end(self, attempt: ActiveAttempt) -> None:
        """Tell the kernel that its collection has ended, once it has."""
        path = RunDirectory(attempt.run_directory).collection_end
        if path.exists():
            return
        end = self.store.collection_end(attempt.collection_uid)
        if end is None:
            return
        try:
            write_atomically(path, json.dumps(end_to_json(end)) + "\n")
        except OSError as error:
            # The kernel ends by itself after its stall time; the next cycle tries again before that.
            log.error("run %s: the end of its collection can't be announced: %s", attempt.tag.run_id, error)

    def _take_in_files(self, attempt: ActiveAttempt) -> KernelProgress | None:
        """Record what the kernel and the job wrote; a broken file costs its own news only."""
        directory = RunDirectory(attempt.run_directory).attempt(attempt.tag.attempt)
        try:
            self._take_in_events(attempt, directory)
            progress = read_progress(directory.progress)
        except (OSError, ValueError) as error:
            log.error("run %s: %s", attempt.tag.run_id, error)
            return None
        if progress is not None and progress.counts != attempt.counts:
            self.store.record_progress(attempt.tag.run_id, progress.counts)
        self._take_in_inputs(attempt, progress)
        return progress

    def _take_in_inputs(self, attempt: ActiveAttempt, progress: KernelProgress | None) -> None:
        """Record what the kernel's input was at open and at end, each once."""
        for moment, document in (progress.inputs if progress is not None else {}).items():
            known = (attempt.tag, moment)
            if known not in self._inputs_known:
                self.store.record_input(attempt.tag.run_id, input_from_json(dict(document), InputMoment(moment)))
                self._inputs_known.add(known)

    def _take_in_events(self, attempt: ActiveAttempt, directory: AttemptDirectory) -> None:
        known = self._events_read.get(directory, 0)
        for event in read_events(directory.events)[known:]:
            detail = dict(event.detail)
            self.store.record_event(attempt.tag, event.kind, detail, event.at, sequence=event.sequence)
            if event.kind == "begin":
                self.store.record_software(attempt.tag, detail.get("software"))
            if event.kind == "end":
                for output in _outputs(detail):
                    self.store.record_output(attempt.tag.run_id, output)
            self._events_read[directory] = event.sequence + 1

    # ------------------------------------------------------------------------------------------------- reports

    def _ask(self, active: Sequence[ActiveAttempt]) -> int:
        """Ask about all jobs and act on what is said; return how many runs ended."""
        if not active:
            return 0
        reports = dict(self.gateway.poll([attempt.identity for attempt in active]))
        absent = [attempt.identity for attempt in active if attempt.identity not in reports]
        accounted = self._ask_accounting(absent)
        reports |= accounted or {}
        return sum(
            self._act(attempt, reports.get(attempt.identity), everybody_asked=accounted is not None)
            for attempt in active
        )

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
        if report is None:
            return self._act_on_absence(attempt, everybody_asked=everybody_asked)
        self._missing_since.pop(attempt.identity, None)
        if report != attempt.last_report:
            self.store.record_report(attempt.tag, report)
        if not report.state.ended:
            return False
        self._finish(attempt, report)
        return True

    def _act_on_absence(self, attempt: ActiveAttempt, *, everybody_asked: bool) -> bool:
        """Nobody knows the job: believe its own end record, else wait, else say that nothing is known."""
        report = self._own_record(attempt)
        if report is not None:
            self.store.record_report(attempt.tag, report)
            self._finish(attempt, report)
            return True
        if not everybody_asked:
            return False
        since = self._missing_since.setdefault(attempt.identity, self.now())
        if self.now() - since < self.vanish_after:
            return False
        reason = (
            f"job {attempt.identity} is known neither to the controller nor to accounting, and left no end record; "
            f"last seen as {attempt.last_report.words if attempt.last_report else 'submitted'}"
        )
        self._conclude(attempt, Conclusion(state=RunState.UNKNOWN, reason=reason))
        return True

    def _own_record(self, attempt: ActiveAttempt) -> JobReport | None:
        """Return what the job itself said about its end, as a report."""
        directory = RunDirectory(attempt.run_directory).attempt(attempt.tag.attempt)
        try:
            ends = [event for event in read_events(directory.events) if event.kind == "end"]
        except (OSError, ValueError) as error:
            log.error("run %s: %s", attempt.tag.run_id, error)
            return None
        if not ends:
            return None
        exit_code = ends[-1].detail.get("exit_code")
        return JobReport(
            identity=attempt.identity,
            name=attempt.tag.job_name,
            state=JobState.COMPLETED if exit_code == 0 else JobState.FAILED,
            words=f"ended with {exit_code}",
            evidence=Evidence.JOB_RECORD,
            exit_code=exit_code if isinstance(exit_code, int) else None,
            started_at=attempt.last_report.started_at if attempt.last_report else None,
            ended_at=ends[-1].at,
        )

    # --------------------------------------------------------------------------------------------- conclusions

    def _finish(self, attempt: ActiveAttempt, report: JobReport) -> None:
        # Once more: the job may have written its last lines between this cycle's reading and its report.
        progress = self._take_in_files(attempt)
        self._conclude(attempt, conclude(report, progress), ended_at=report.ended_at)
        if not report.usage:
            self._usage_wanted[attempt.identity] = (replace(attempt, last_report=report), self.now())

    def _conclude(self, attempt: ActiveAttempt, conclusion: Conclusion, ended_at: datetime | None = None) -> None:
        self.store.finish_run(attempt.tag.run_id, conclusion.state, conclusion.reason, ended_at or self.now())
        self._missing_since.pop(attempt.identity, None)
        self._events_read.pop(RunDirectory(attempt.run_directory).attempt(attempt.tag.attempt), None)
        self._inputs_known = {known for known in self._inputs_known if known[0] != attempt.tag}
        level = logging.INFO if conclusion.state is RunState.COMPLETE else logging.WARNING
        log.log(level, "run %s is %s: %s", attempt.tag.run_id, conclusion.state, conclusion.reason)

    def _ask_for_usage(self) -> None:
        """Ask accounting, which lags, for the usage of jobs that have ended."""
        if not self._usage_wanted:
            return
        for identity, report in (self._ask_accounting(tuple(self._usage_wanted)) or {}).items():
            attempt, _ = self._usage_wanted[identity]
            if report.state.ended and attempt.last_report is not None:
                self.store.record_report(attempt.tag, replace(attempt.last_report, usage=report.usage))
                del self._usage_wanted[identity]
        too_late = self.now() - USAGE_PATIENCE
        self._usage_wanted = {job: wanted for job, wanted in self._usage_wanted.items() if wanted[1] > too_late}


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
