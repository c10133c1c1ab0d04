"""SLURM's words for what a job is doing and why it waits, translated in one place.

In: a word as squeue, sacct, slurmrestd or libslurm give it, of SLURM 22.05 to 26.05. Out: `JobState`, or a pending
reason in plain words. An unknown word is no error: that one job becomes `JobState.UNKNOWN`, and its word is kept in the
report. Source: ``job_state_string_complete`` in SLURM's ``slurm_protocol_defs.c`` and ``job_state_reason.c``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.records import JobState

STATES: dict[str, JobState] = {
    "PENDING": JobState.PENDING,
    "RUNNING": JobState.RUNNING,
    "SUSPENDED": JobState.SUSPENDED,
    "COMPLETED": JobState.COMPLETED,
    "CANCELLED": JobState.CANCELLED,
    "FAILED": JobState.FAILED,
    "TIMEOUT": JobState.TIMEOUT,
    "NODE_FAIL": JobState.NODE_FAIL,
    "PREEMPTED": JobState.PREEMPTED,
    "BOOT_FAIL": JobState.BOOT_FAIL,
    "DEADLINE": JobState.DEADLINE,
    "OUT_OF_MEMORY": JobState.OUT_OF_MEMORY,
}
"""The base states; a job is in exactly one of them."""

FLAGS: dict[str, JobState | None] = {
    "COMPLETING": JobState.COMPLETING,
    "STAGE_OUT": JobState.COMPLETING,
    "REQUEUE_HOLD": JobState.PENDING,
    "SPECIAL_EXIT": JobState.PENDING,
    "RESV_DEL_HOLD": JobState.PENDING,
    "REQUEUED": JobState.PENDING,
    "REQUEUE_FED": JobState.PENDING,
    "EXPEDITING": JobState.PENDING,
    "CONFIGURING": JobState.PENDING,
    "POWER_UP_NODE": JobState.PENDING,
    "STOPPED": JobState.SUSPENDED,
    # The federation runs it on a sibling cluster, which this one can't speak for.
    "REVOKED": JobState.UNKNOWN,
    # Squeue shows these instead of RUNNING, which they imply.
    "RESIZING": JobState.RUNNING,
    "SIGNALING": JobState.RUNNING,
    # These only say how the base state came about.
    "LAUNCH_FAILED": None,
    "RECONFIG_FAIL": None,
    "UPDATE_DB": None,
}
"""What may stand beside a base state, or instead of it; the first of this order decides. None: the base state does."""

COMPACT: dict[str, str] = {
    "PD": "PENDING", "R": "RUNNING", "S": "SUSPENDED", "CD": "COMPLETED", "CA": "CANCELLED", "F": "FAILED",
    "TO": "TIMEOUT", "NF": "NODE_FAIL", "PR": "PREEMPTED", "BF": "BOOT_FAIL", "DL": "DEADLINE", "OOM": "OUT_OF_MEMORY",
    "CG": "COMPLETING", "SO": "STAGE_OUT", "CF": "CONFIGURING", "RS": "RESIZING", "RQ": "REQUEUED",
    "RF": "REQUEUE_FED", "RH": "REQUEUE_HOLD", "SE": "SPECIAL_EXIT", "ST": "STOPPED", "RV": "REVOKED",
    "RD": "RESV_DEL_HOLD", "SI": "SIGNALING",
}  # fmt: skip

_BY_SOMEONE = re.compile(r"\s+by\s+\S+$", re.IGNORECASE)
_SEPARATOR = re.compile(r"[|,+\s]+")


def job_state(words: str | Iterable[str]) -> JobState:
    """Translate a state with its flags: ``CANCELLED by 1000``, ``COMPLETED|COMPLETING``, or a list of words."""
    text = words if isinstance(words, str) else ",".join(words)
    found = [COMPACT.get(word, word) for word in _SEPARATOR.split(_BY_SOMEONE.sub("", text.strip().upper())) if word]
    bases = [STATES[word] for word in found if word in STATES]
    if not found or len(bases) > 1 or any(word not in STATES and word not in FLAGS for word in found):
        return JobState.UNKNOWN
    base = bases[0] if bases else None
    deciding = (state for flag, state in FLAGS.items() if flag in found and state is not None)
    return _refined(base, next(deciding, None))


def _refined(base: JobState | None, flag: JobState | None) -> JobState:
    if flag is JobState.RUNNING and base is not None:
        return base
    return flag or base or JobState.UNKNOWN


@dataclass(frozen=True, kw_only=True)
class PendingReason:
    """Why a job waits."""

    word: str
    text: str
    hopeless: bool = False
    """It will wait for ever unless somebody changes the job, a limit or the cluster."""


_REASONS: tuple[tuple[str, str, bool], ...] = (
    ("Priority", "jobs of higher priority go first", False),
    ("Resources", "it waits for nodes to become free", False),
    ("Dependency", "it waits for another job", False),
    ("DependencyNeverSatisfied", "the job it depends on ended in a way that rules it out", True),
    ("JobHeldUser", "it is held by its user until somebody releases it (scontrol release)", False),
    ("JobHeldAdmin", "it is held by an administrator until somebody releases it", False),
    ("JobHoldMaxRequeue", "it was requeued too often and is held until somebody releases it", False),
    ("BeginTime", "its begin time hasn't come yet", False),
    ("ReqNodeNotAvail.*", "a node it needs is down, drained or reserved at present", False),
    ("Nodes_required_for_job_are_DOWN.*", "nodes it needs are down, drained or reserved at present", False),
    ("NodeDown", "a node it needs is down at present", False),
    ("Reservation", "it waits for its reservation to begin", False),
    ("ReservationDeleted", "its reservation was deleted", True),
    ("ReservationInvalidConstraints", "its reservation has no nodes of the kind it asks for", True),
    ("PartitionDown|PartitionInactive", "its partition is closed at present", False),
    ("PartitionTimeLimit", "it asks for more time than its partition allows", True),
    ("PartitionNodeLimit", "it asks for more or fewer nodes than its partition allows", True),
    ("PartitionConfig", "its partition can't offer what it asks for", True),
    ("BadConstraints", "no node has what it asks for", True),
    ("InvalidAccount", "its account is not valid any more", True),
    ("InvalidQOS|QOSNotAllowed", "its quality of service (QOS) may not be used here", True),
    ("AccountNotAllowed", "its account may not use this partition", True),
    ("DeadLine", "it can't end before its deadline", True),
    ("Licenses", "it waits for a licence", False),
    ("Cleaning", "its last run is being cleaned up", False),
    ("JobArrayTaskLimit", "as many tasks of its array run as it allows itself", False),
    ("MaxMemPerLimit", "it asks for more memory than a node or CPU may give", True),
    ("(QOS|Assoc)(Max|Grp).*Submit.*", "as many jobs are submitted as the limit allows", False),
    ("QOSMin.*", "it asks for less than its quality of service (QOS) demands", True),
    ("(QOS|Assoc)Max.*Per(Job|Node)(Limit)?", "it asks for more than one job may have", True),
    ("QOSMax.*Per(User|Account).*|Max.*Per(User|Account)", "as much is in use as one user or account may have", False),
    ("AssocMax.*", "as much is in use as its account allows", False),
    ("QOSGrp.*", "as much is in use as its quality of service (QOS) allows in all", False),
    ("AssocGrp.*", "as much is in use as its account allows in all", False),
    ("None", "it hasn't been looked at yet", False),
)


def pending_reason(word: str) -> PendingReason:
    """Return a pending reason in plain words; one that isn't in the table keeps its own."""
    bare = word.strip().strip("()")
    for pattern, text, hopeless in _REASONS:
        if re.fullmatch(pattern, bare.replace(" ", "_")):  # squeue writes some reasons either way
            return PendingReason(word=bare, text=text, hopeless=hopeless)
    return PendingReason(word=bare, text=bare)
