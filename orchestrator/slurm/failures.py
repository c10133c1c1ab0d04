"""What SLURM says when it says no, and what that means for a submission: refused, not reached, or not known.

In: what sbatch wrote to standard error. Out: the error to raise. The hard question is whether a job may exist:
only a text that is known to come before anything was sent, or from the controller's own refusal, counts as *no job*;
whatever isn't in the tables is `OutcomeUnknown`. Source of the texts: ``slurm_errno.c`` of SLURM 22.05 and 26.05.
"""

from __future__ import annotations

import re

from orchestrator.errors import GatewayError, GatewayUnavailable, OutcomeUnknown, SubmitRefused

_FAILED = re.compile(r"Batch job submission failed: (.*)")
_NEVER_SIGNED = re.compile(r"Munge encode failed|auth_g_create")
_HUNG_UP = re.compile(r"Zero Bytes were transmitted or received|Failed to unpack SLURM_PERSIST_INIT")
_KEYS = (
    "the daemon hung up on us: where it always does, this host's munge key or clock differs from the daemon's "
    "(`munge -n | ssh CONTROLLER unmunge`), or the two releases of SLURM are too far apart"
)
_MUNGE = "start munged on this host; `munge -n | unmunge` must work"

# The request was never sent, or the controller answered that it is to be sent again later.
_NO_EFFECT: tuple[tuple[str, str], ...] = (
    (r"[Cc]onnect(ion)? failure|Connection refused", "see that slurmctld runs (`scontrol ping`)"),
    (r"Could not establish a configuration source|Unable to (process|open) config|resolve_ctls_from_dns_srv",
     "set SLURM_CONF, or put slurm.conf into /etc/slurm"),
    (r"[Uu]nable to resolve|Can't find an address", "see that SlurmctldHost in slurm.conf can be resolved"),
    (r"temporarily unable to accept job|Resource temporarily unavailable", "SLURM is busy; it will be tried again"),
    (r"Slurm job queue full|MaxJobCount limit", "as many jobs exist as MaxJobCount allows; it will be tried again"),
    (r"Rate limit exceeded", "the controller limits the rate of calls; it will be tried again"),
    (r"standby mode", "the backup controller answered; see that slurmctld runs: `scontrol ping`"),
    (r"System submissions disabled", "an administrator has closed the queue; it will be tried again"),
    (r"I/O error writing script/environment", "the controller can't write its StateSaveLocation"),
    (r"Required partition not available", "the partition is closed at present; it will be tried again"),
    (r"Requested nodes are busy|Job creation temporarily disabled", "it will be tried again"),
)  # fmt: skip

# The controller, or sbatch before asking it, refused for good.
_REFUSED: tuple[tuple[str, str], ...] = (
    (r"Invalid partition|invalid partition|No partition specified", "--partition: choose one that `sinfo -s` lists"),
    (r"group not permitted to use this partition", "--partition: this user's group may not use it"),
    (r"Invalid account", "--account: choose one that `sacctmgr show associations user=$USER` lists"),
    (r"Invalid qos", "--qos: choose one that `sacctmgr show qos` lists"),
    (r"Invalid feature", "--constraint: choose features that `sinfo -o '%f'` lists"),
    (r"reservation", "--reservation: choose one that `scontrol show reservation` lists"),
    (r"Memory (specification|required)", "--mem, --mem-per-cpu: ask for less; see `sinfo -o '%P %m'`"),
    (r"Requested node configuration is not available",
     "--ntasks, --cpus-per-task, --mem, --nodes, --constraint: no node has all; `sinfo -o '%P %c %m'`"),
    (r"Requested partition configuration not available", "--partition: it is closed, or its limits are lower"),
    (r"[Nn]ode count specification", "--nodes: the partition allows another number; `sinfo -s`"),
    (r"node name|nodes not in this partition", "--nodelist, --exclude: name nodes that `sinfo -N` lists"),
    (r"More processors requested|CPU count|Task count|Job size", "--ntasks, --cpus-per-task: ask for fewer"),
    (r"[Tt]ime limit is invalid|Invalid --time|time-min", "--time: the partition allows less; `sinfo -s`"),
    (r"[Dd]ependency", "--dependency: name jobs that exist"),
    (r"license", "--licenses: choose one that `scontrol show licenses` lists"),
    (r"gres|GRES|TRES", "--gres, --gpus: choose what `sinfo -o '%G'` lists"),
    (r"Pathname .* too long",
     "a script may have 4 MB (max_script_size in slurm.conf); if it is shorter: --chdir, --output: shorten the path"),
    (r"accounting/QOS policy", "a limit of the account or QOS: ask for less, or wait until fewer jobs are submitted"),
    (r"[Pp]ermission denied|Invalid user id|Access denied", "this user may not do it; ask an administrator"),
    (r"DOS line breaks", "write the template with \\n line ends"),
    (r"does not look like a batch script|script is empty|script not specified", "it must begin with #!/bin/bash"),
    (r"unrecognized option|invalid option|requires an argument|option '.*' is ambiguous", "correct the #SBATCH line"),
    (r"[Ii]nvalid .*(specification|--)|Invalid argument", "correct the #SBATCH line"),
    (r"Unable to open file", "the script's file isn't readable"),
    (r"Unspecified error", "the site's job_submit plugin refuses it; ask an administrator"),
    (r"not supported on this system|presently disabled|node config", "leave out what this cluster hasn't got"),
)  # fmt: skip

_OF_A_QUEUE = re.compile(r"[Pp]artition|nodes are busy")
"""Jobs that ask for something else may be taken."""

# A number of jobs, which shrinks by itself, and a size, which doesn't, share one text; the limit's name tells them.
_POLICY = "accounting/QOS policy"
_SHRINKS = re.compile(r"(QOS|Assoc)\w*Submit\w*|MaxSubmitJobs\w*")


def submit_failure(stderr: str) -> GatewayError:
    """Return the error that says what sbatch's failure means.

    Returns
    -------
    GatewayUnavailable
        Surely no job, and the same call may work later.
    SubmitRefused
        Surely no job, and never with this script.
    OutcomeUnknown
        Anything else: a job may exist.
    """
    said = _sentence(stderr)
    answers = _FAILED.findall(stderr)
    # Only the last answer counts: the remarks before it may tell of earlier tries of the same sbatch.
    text = answers[-1] if answers else stderr
    if "Protocol authentication error" in text and _NEVER_SIGNED.search(stderr):
        return GatewayUnavailable(said, remedy=_MUNGE)
    if _POLICY in text and _SHRINKS.search(stderr):
        return GatewayUnavailable(said, remedy="wait until fewer jobs are submitted, or have the limit raised")
    if remedy := _look_up(_NO_EFFECT, text):
        return GatewayUnavailable(said, remedy=remedy, everywhere=not _OF_A_QUEUE.search(text))
    if _look_up(_REFUSED, text):
        # The remarks before a refusal are often more precise than the refusal.
        return SubmitRefused(said, remedy=_look_up(_REFUSED, stderr) or "")
    look = "look for the job by its tag before submitting it again"
    return OutcomeUnknown(said, remedy=f"{look}; {_KEYS}" if _HUNG_UP.search(text) else look)


def query_failure(program: str, stderr: str) -> GatewayUnavailable:
    """Return the error for a question that SLURM didn't answer; questions have no effect."""
    unsigned = _MUNGE if _NEVER_SIGNED.search(stderr) else None
    hung_up = _KEYS if _HUNG_UP.search(stderr) else None
    told = unsigned or hung_up or _look_up(_NO_EFFECT, stderr)
    remedy = told or "see that slurmctld and slurmdbd run: `scontrol ping`"
    return GatewayUnavailable(_sentence(stderr) or f"{program} failed without a word", remedy=remedy)


def _look_up(table: tuple[tuple[str, str], ...], text: str) -> str | None:
    return next((remedy for pattern, remedy in table if re.search(pattern, text)), None)


def _sentence(stderr: str) -> str:
    """Return what was said in one line, each program's ``error:`` prefix and repeats left out."""
    lines = (re.sub(r"^\w+: (error|fatal): ", "", line).strip() for line in stderr.splitlines())
    return "; ".join(dict.fromkeys(line for line in lines if line))
