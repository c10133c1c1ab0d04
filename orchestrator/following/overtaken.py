"""When a job's own end record counts more than what SLURM says of it. Pure.

A controller that was killed goes on from what it had saved some seconds before. Of a job that ended in those seconds it
says that it runs (until its time limit), or starts it once more, which its fence sees to, or holds it because the node
knew it already. Of what it had been told it knows nothing more, and accounting believes it.
"""

from __future__ import annotations

from datetime import timedelta

from orchestrator.records import JobReport, JobState
from orchestrator.slurm.states import is_held_after_launch

_TIME_UP = frozenset({JobState.TIMEOUT, JobState.DEADLINE})
BY_SLURM = _TIME_UP | {JobState.NODE_FAIL, JobState.BOOT_FAIL, JobState.PREEMPTED, JobState.CANCELLED}
"""How SLURM ends jobs that haven't ended by themselves."""


def counts_more(own: JobReport, report: JobReport, *, patience: timedelta, age: timedelta) -> bool:
    """Whether a job that ended by itself is to be judged by its own word.

    Parameters
    ----------
    own
        What the job said of its end, to which nobody had told it.
    report
        What SLURM says of the job.
    patience
        How long SLURM may say that a job runs whose script has ended: what it made is being read, or a node is lost.
    age
        How long ago the job said so.
    """
    done, requeued = own.exit_code == 0, report.restarts > own.restarts
    if report.state is JobState.PENDING:
        return requeued and (done or is_held_after_launch(report.reason))
    if not report.state.ended:
        return not requeued and age >= patience
    # That a node was lost may be why the kernel failed: then the node counts.
    return report.state in BY_SLURM and (done or (report.state in _TIME_UP and not requeued))
