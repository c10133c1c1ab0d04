"""Why a run that is under way hasn't started: what SLURM last said of its job, in plain words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from orchestrator.provenance import RunSummary, Store
from orchestrator.records import RunState
from orchestrator.slurm.waiting import why_waiting


def with_waiting_reasons(store: Store, runs: Sequence[RunSummary]) -> list[RunSummary]:
    """Return the runs; one whose job waits has SLURM's reason as its own, unless it had another already."""
    if not any(map(_silent, runs)):
        return list(runs)
    reports = {attempt.tag.run_id: attempt.last_report for attempt in store.active_attempts()}
    return [replace(run, reason=why_waiting(reports.get(run.run_id))) if _silent(run) else run for run in runs]


def _silent(run: RunSummary) -> bool:
    return run.state is RunState.PENDING and not run.reason
