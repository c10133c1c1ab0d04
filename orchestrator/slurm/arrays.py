"""A job array is one job: the reports of its tasks, made into one report of the whole.

In: rows, as SLURM's commands, slurmrestd and libslurm give them: a `JobReport` per task, or per several pending tasks.
A row says by its `tasks` for which of them it speaks, and carries the array's job id in its identity, not the task's
own. Out: one `JobReport` of the array. Pure.

What a source doesn't list can't be folded: a controller forgets the tasks of an array one by one (MinJobAge), so a
report that says ``completed`` speaks for the tasks it names and no others. Who knows how many there are has to compare.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime

from orchestrator.records import JobReport, JobState, Scalar

_GOES_ON = (JobState.RUNNING, JobState.COMPLETING, JobState.SUSPENDED, JobState.PENDING, JobState.UNKNOWN)
"""Of an array that isn't over, the first of these that a task is in."""

WORST_FIRST = (
    # Somebody's will; then what would happen again; then what the cluster did.
    JobState.CANCELLED,
    JobState.FAILED,
    JobState.OUT_OF_MEMORY,
    JobState.TIMEOUT,
    JobState.DEADLINE,
    JobState.NODE_FAIL,
    JobState.BOOT_FAIL,
    JobState.PREEMPTED,
    JobState.COMPLETED,
)
"""Of an array that is over, the first of these that a task ended in."""

_ORDER = (*_GOES_ON, *WORST_FIRST)
_SUMMED = frozenset({"elapsed_s", "cpu_s"})
_LARGEST = frozenset({"max_rss_bytes", "requested_memory_bytes"})
_RANGE = re.compile(r"(\d+)(?:-(\d+)(?::(\d+))?)?")


def task_numbers(text: str) -> tuple[int, ...]:
    """Return the numbers in ``7``, ``[4-10%2]``, ``0-8:4,12`` or the bitmap ``0x1F``; none of ``N/A`` or nothing.

    Raises
    ------
    ValueError
        When it is none of these. SLURM shortens long lists with dots unless ``SLURM_BITSTR_LEN=0``.
    """
    bare = text.strip().strip("[]").partition("%")[0]
    if bare in {"", "N/A", "(null)"}:
        return ()
    if bare.lower().startswith("0x"):
        bits = int(bare, 16)
        return tuple(number for number in range(bits.bit_length()) if bits >> number & 1)
    numbers: set[int] = set()
    for part in bare.split(","):
        if (found := _RANGE.fullmatch(part)) is None:
            raise ValueError(f"{text!r} is no list of array tasks")
        first, last, step = found.groups()
        numbers.update(range(int(first), int(last or first) + 1, int(step or 1)))
    return tuple(sorted(numbers))


def row(report: JobReport, *, array_job_id: int, tasks: str) -> JobReport:
    """Return `report` as a row of its array: under the array's id, and saying for which tasks it speaks.

    A report of a job that is no array (`tasks` is empty or ``N/A``) is returned as it is.
    """
    numbers = task_numbers(tasks)
    if not numbers:
        return report
    identity = replace(report.identity, job_id=array_job_id)
    return replace(report, identity=identity, tasks=dict.fromkeys(numbers, report.state))


def folded(rows: Iterable[JobReport]) -> list[JobReport]:
    """Return one report per job, in the order in which they appear; rows of the same array become one."""
    jobs: dict[tuple[str, int, int | None], list[JobReport]] = defaultdict(list)
    for number, one in enumerate(rows):
        # Jobs that are no arrays may share an id (accounting after the counter wrapped) and stay apart.
        jobs[one.identity.cluster, one.identity.job_id, None if one.tasks else number].append(one)
    return [fold(some) if some[0].tasks else some[0] for some in jobs.values()]


def fold(rows: Sequence[JobReport]) -> JobReport:
    """Make one report of an array from the rows of its tasks; no task may be in two of them.

    Its state is that of the task that comes first in: running, completing, suspended, pending, unknown, and when all
    are over, `WORST_FIRST`: completed only when all are. Words, reason, exit code and signal are that task's. It
    started with its first task, and ended with its last one when all have. Processor seconds and elapsed seconds are
    summed, memory is the largest task's.
    """
    deciding = min(rows, key=lambda one: _ORDER.index(one.state))
    ends = [one.ended_at for one in rows if one.ended_at is not None]
    return replace(
        deciding,
        identity=replace(rows[0].identity, submitted_at=min(one.identity.submitted_at for one in rows)),
        comment=next((one.comment for one in rows if one.comment), ""),
        restarts=max(one.restarts for one in rows),
        nodes=",".join(dict.fromkeys(one.nodes for one in rows if one.nodes)),
        started_at=_earliest(one.started_at for one in rows),
        ended_at=max(ends) if ends and deciding.state.ended else None,
        tasks=dict(sorted((number, state) for one in rows for number, state in one.tasks.items())),
        usage=_usage(rows, deciding),
    )


def _earliest(times: Iterable[datetime | None]) -> datetime | None:
    return min((at for at in times if at is not None), default=None)


def _usage(rows: Sequence[JobReport], deciding: JobReport) -> dict[str, Scalar]:
    usage = dict(deciding.usage)
    for name in {name for one in rows for name in one.usage}:
        values = [one.usage[name] for one in rows if name in one.usage]
        numbers = [value for value in values if not isinstance(value, str)]
        if name in _SUMMED:
            usage[name] = sum(numbers)
        elif name in _LARGEST:
            usage[name] = max(numbers)
    return usage
