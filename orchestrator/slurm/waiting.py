"""Why a job doesn't go on, in plain words: what SLURM last said of it. Pure."""

from __future__ import annotations

from orchestrator.records import JobReport, JobState
from orchestrator.slurm.states import FLAGS, pending_reason


def why_waiting(report: JobReport | None) -> str:
    """Word why a job waits; empty where it doesn't, or nobody has said why."""
    if report is None or report.state is not JobState.PENDING or report.reason in {"", "None"}:
        return ""
    reason = pending_reason(report.reason)
    word = "" if reason.text == reason.word else f" ({reason.word})"
    if reason.hopeless:
        remedy = "cancel the run, or have job, limit or cluster changed"
        return f"its job will wait for ever: {reason.text}{word}; {remedy}"
    return f"its job waits: {reason.text}{word}"


def is_hopeless(report: JobReport) -> bool:
    """Whether a job waits for something that won't come by itself."""
    return report.state is JobState.PENDING and pending_reason(report.reason).hopeless


def hindrance(report: JobReport | None) -> str:
    """Word what keeps a job from ever ending by itself, or from being understood; empty when nothing does.

    Waiting for its turn is none.
    """
    if report is None:
        return ""
    if report.state is JobState.SUSPENDED:
        return f"its job is suspended ({report.words}): it goes on when somebody resumes it (scontrol resume)"
    if report.state is JobState.UNKNOWN:
        return _not_understood(report.words)
    return why_waiting(report) if is_hopeless(report) else ""


def _not_understood(words: str) -> str:
    if "REVOKED" in words:
        return f"a sibling cluster of the federation runs its job ({words}), for which this one can't speak"
    known = "" if words in FLAGS else ", which this program doesn't know"
    return f"SLURM calls its job's state {words!r}{known}; the run stays open until SLURM says something else of it"
