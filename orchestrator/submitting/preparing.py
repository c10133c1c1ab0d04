"""A planned run becomes ready: its script is rendered, the jobs before it are known, its directory is written."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.chaining import Go, Never, Wait, decide
from orchestrator.crashpoints import CrashPoint, reached
from orchestrator.errors import InvalidInput, NotFound
from orchestrator.provenance import PlannedRun, Store, write_directory
from orchestrator.records import BatchScript, JobIdentity, RunState, Submission
from orchestrator.rendering import render, render_recorded, rerun_script
from orchestrator.runs import make_durable
from orchestrator.settings import Settings
from orchestrator.submitting.state import Ready
from orchestrator.template_origins import TemplateOrigins

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What makes runs ready."""

    store: Store
    settings: Settings
    origins: TemplateOrigins

    def made_ready(self, planned: PlannedRun) -> Ready | None:
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
        return Ready(planned=planned, submission=submission, rerun=rerun)

    def _rendered(self, planned: PlannedRun) -> BatchScript:
        plan, attempt = planned.plan_of_attempt, planned.tag.attempt
        if plan.template_of is None:
            script = render(plan, attempt, self.settings.templates)
            return replace(script, template_origin=self.origins.of(script, self.settings.templates))
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


def write_directories(items: Sequence[Ready]) -> list[tuple[Ready, OSError | None]]:
    """Write the directories of runs; return with each what stood in the way."""
    written = [_try_to_write(item) for item in items]
    if len(items) < 2:
        obstacles = [_try_to_make_durable(needed) for needed in written]
    else:  # side by side, because the file system makes many files durable in the time of one
        with ThreadPoolExecutor(4) as pool:
            obstacles = list(pool.map(_try_to_make_durable, written))
    reached(CrashPoint.DIRECTORY_WRITTEN)
    return list(zip(items, obstacles, strict=True))


def _try_to_write(item: Ready) -> Sequence[Path] | OSError:
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
