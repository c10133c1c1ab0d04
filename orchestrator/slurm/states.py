"""SLURM's words for what a job is doing and why it waits, translated in one place.

In: a word as squeue, sacct, slurmrestd or libslurm give it, of SLURM 22.05 to 26.05. Out: `JobState`, or a pending
reason in plain words. An unknown word is no error: that one job becomes `JobState.UNKNOWN`, and its word is kept in the
report. Source: ``job_state_string_complete`` in SLURM's ``slurm_protocol_defs.c`` and ``job_state_reason.c``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

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
class Reason:
    """What SLURM gives as the reason for a job's state."""

    word: str
    text: str
    hopeless: bool = False
    """It will wait for ever unless somebody changes the job, a limit or the cluster."""


_KINDS = (
    r"(Cpu|CPU|Mem|Memory|Node|GRES|Billing|Energy|License|BB|Unknown)"
    r"(Limit|Minutes|Minute|RunMinutes|RunMins|NotSatisfied)*"
)
"""What SLURM limits, and for how long."""

REASONS: tuple[tuple[str, str, bool], ...] = (
    ("None", "it hasn't been looked at yet", False),
    ("Inva(il|li)dReason", "SLURM itself has no word for it", False),
    ("BlockFreeAction|BlockMaxError", "a block of an IBM BlueGene isn't ready", False),
    ("Priority", "jobs of higher priority go first", False),
    ("Resources", "it waits for nodes to become free", False),
    ("Dependency", "it waits for another job", False),
    ("DependencyNeverSatisfied", "the job it depends on ended in a way that rules it out", True),
    ("Prolog", "its nodes are being prepared", False),
    ("Cleaning", "its last run is being cleaned up", False),
    ("SchedDefer", "the scheduler looks at new jobs later", False),
    ("BeginTime", "its begin time hasn't come yet (a requeued job waits a while)", False),
    ("JobHeldUser", "it is held by its user until somebody releases it (scontrol release)", False),
    ("JobHeldAdmin", "it is held by an administrator until somebody releases it", False),
    ("JobHoldMaxRequeue", "it was requeued too often and is held until somebody releases it", False),
    ("[Jj]ob_requeued_in_held_state", "it was requeued and is held until somebody releases it", False),
    ("launch_failed_requeued_held", "it couldn't be launched and is held until somebody releases it", False),
    ("ReqNodeNotAvail.*", "a node it needs is down, drained or reserved at present", False),
    ("Nodes_required_for_job_are_DOWN.*", "nodes it needs are down, drained or reserved at present", False),
    ("NodeDown", "a node it needs is down at present", False),
    ("FrontEndDown", "no front-end node is up at present", False),
    ("SystemFailure", "SLURM itself failed while it dealt with the job; an administrator's matter", False),
    ("Reservation", "it waits for its reservation to begin", False),
    ("ReservationDeleted", "its reservation was deleted", True),
    ("ReservationInvalid.*", "its reservation can't be used by this job", True),
    ("PartitionDown|PartitionInactive", "its partition is closed at present", False),
    ("PartitionTimeLimit", "it asks for more time than its partition allows", True),
    ("PartitionNodeLimit", "it asks for more or fewer nodes than its partition allows", True),
    ("PartitionConfig", "its partition can't offer what it asks for", True),
    ("Constraints|BadConstraints", "no node has what it asks for", True),
    ("InvalidAccount", "its account is not valid any more", True),
    ("InvalidQOS|QOSNotAllowed", "its quality of service (QOS) may not be used here", True),
    ("AccountNotAllowed", "its account may not use this partition", True),
    ("QOSUsageThreshold", "its account has used up its share (UsageThreshold of its QOS); shares recover", False),
    ("DeadLine", "it can't end before its deadline", True),
    ("Licenses", "it waits for a licence", False),
    ("PowerNotAvail|PowerReserved", "there isn't enough electrical power for it at present", False),
    ("MaxPoweredUpNodes", "as many nodes are powered up as the site allows", False),
    ("BurstBufferResources", "it waits for room in the burst buffer", False),
    ("BurstBufferStageIn", "its files are being copied into the burst buffer", False),
    ("BurstBufferOperation", "an operation on the burst buffer failed; it is held until somebody releases it", False),
    ("FedJobLock", "the clusters of the federation are agreeing on which one runs it", False),
    ("NvidiaImexChannels", "other jobs use all NVIDIA IMEX channels", False),
    ("MpiPortsBusy", "other jobs use all ports for MPI", False),
    ("JobArrayTaskLimit", "as many tasks of its array run as it allows itself", False),
    ("MaxMemPerLimit", "it asks for more memory than a node or CPU may give", True),
    ("Association(Job|Resource|Time)Limit|AccountingPolicy", "as much is in use as its account allows", False),
    ("QOS(Job|Resource|Time)Limit", "as much is in use as its quality of service (QOS) allows", False),
    ("(QOS|Assoc)(Max|Grp).*Submit.*|MaxSubmitJobsPer.*", "as many jobs are submitted as the limit allows", False),
    (f"QOSMin{_KINDS}", "it asks for less than its quality of service (QOS) demands", True),
    (f"(QOS|Assoc)Max({_KINDS}|WallDuration)Per(Job|Node)(Limit)?", "it asks for more than one job may have", True),
    (f"(QOS)?Max({_KINDS}|Jobs)Per(User|Account)(Limit)?", "as much is in use as one user or account may have", False),
    ("AssocMaxJobsLimit", "as many jobs run as its account allows", False),
    (f"QOSGrp({_KINDS}|JobsLimit|WallLimit)", "as much is in use as its quality of service (QOS) allows in all", False),
    (f"AssocGrp({_KINDS}|JobsLimit|WallLimit)", "as much is in use as its account allows in all", False),
)  # fmt: skip
"""Of SLURM 22.05 to 26.05; ``job_state_reason.c``, and the free texts of ``job_ptr->state_desc``."""

_END_REASONS: dict[str, str] = {
    "NonZeroExitCode": "its script ended with an exit code that isn't 0",
    "RaisedSignal": "its script was ended by a signal",
    "JobLaunchFailure": "its script couldn't be started, or was ended by a signal: SLURM has one word for both",
    "TimeLimit": "its time was up",
    "OutOfMemory": "it used more memory than it had asked for",
    "NodeDown": "a node it ran on failed",
    "BadConstraints": "no node has what it asks for",
    "DeadLine": "its deadline came first",
    "InactiveLimit": "nothing happened in it for longer than the site allows",
    "SystemFailure": "SLURM itself failed while it dealt with the job",
    "Prolog": "its nodes couldn't be prepared",
}
"""Of jobs that have ended."""


LAUNCH_FAILED = "launch_failed_requeued_held"
"""SLURM's word for a job that a node refused to start, the node's daemon knowing one of that id, say."""


def is_held_after_launch(word: str) -> bool:
    """Whether a job waits for hands because a node couldn't start it."""
    return word.strip().strip("()").replace(" ", "_") == LAUNCH_FAILED


@lru_cache(maxsize=1024)  # thousands of jobs wait for a few reasons
def pending_reason(word: str) -> Reason:
    """Return a pending reason in plain words; one that isn't in the table keeps its own."""
    bare = word.strip().strip("()")
    for pattern, text, hopeless in REASONS:
        if re.fullmatch(pattern, bare.replace(" ", "_")):  # squeue writes some reasons either way
            return Reason(word=bare, text=text, hopeless=hopeless)
    return Reason(word=bare, text=bare)


def end_reason(word: str) -> str:
    """Return in plain words why a job ended as it did; one that isn't in the table keeps its own."""
    return _END_REASONS.get(word.strip().strip("()"), word)
