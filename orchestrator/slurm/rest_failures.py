"""What slurmrestd answers when something went wrong, and what that means: refused, not reached, or not known.

In: an HTTP status and the errors of the answer. Out: the error to raise. As in `failures`, the hard question is whether
a job may exist: *no* counts only where slurmrestd itself turned the request away, where it never reached the
controller, or where the controller refused. SLURM's numbers decide; where there is none, the words do. Source:
``slurm_errno.h`` of SLURM 22.05 and 26.05, and ``operations.c`` of slurmrestd.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from orchestrator.errors import GatewayError, GatewayUnavailable, OutcomeUnknown, SubmitRefused
from orchestrator.slurm.failures import submit_failure
from orchestrator.slurm.rest_documents import RestError

NOT_FOUND = frozenset({2017, 2021})
"""ESLURM_INVALID_JOB_ID, ESLURM_ALREADY_DONE."""
NOTHING_FOUND = frozenset({9003})
"""ESLURM_REST_EMPTY_RESULT: an answer, not a failure."""
_REJECTED = frozenset({1007, 6000, 6001, 9008})
"""SLURM_PROTOCOL_AUTHENTICATION_ERROR, ESLURM_AUTH_CRED_INVALID, ESLURM_AUTH_EXPIRED, ESLURM_REST_AUTH_FAIL."""
_LEFT_OPEN = frozenset({-1, 5005})
"""What the controller of SLURM 22.05 says to a token that it rejects, but not only then: it hangs up."""

_CONTROLLER = "see that slurmctld runs (`scontrol ping` on slurmrestd's host)"
_ACCOUNTING = "see that slurmdbd runs (`sacctmgr ping`, or `sacctmgr show cluster`, on slurmrestd's host)"

_NEVER_SENT: dict[int, str] = {
    1001: _CONTROLLER,  # SLURM_COMMUNICATIONS_CONNECTION_ERROR
    1021: _CONTROLLER,  # SLURM_COMMUNICATIONS_CONNECT_TIMEOUT
    1800: _CONTROLLER,  # SLURMCTLD_COMMUNICATIONS_CONNECTION_ERROR
    1804: "the controller limits the rate of calls; it will be tried again",  # SLURMCTLD_COMMUNICATIONS_BACKOFF
    2007: "as many jobs exist as MaxJobCount allows; it will be tried again",  # ESLURM_MAX_JOB_COUNT
    2016: "it will be tried again",  # ESLURM_NODES_BUSY
    2019: "the controller can't write its StateSaveLocation",  # ESLURM_WRITING_TO_FILE
    2027: "the backup controller answered; " + _CONTROLLER,  # ESLURM_IN_STANDBY_MODE
    2070: "the partition is closed at present; it will be tried again",  # ESLURM_PARTITION_NOT_AVAIL
    2105: "an administrator has closed the queue; it will be tried again",  # ESLURM_SUBMISSIONS_DISABLED
    2131: "the backup controller answered; " + _CONTROLLER,  # ESLURM_IN_STANDBY_USE_BACKUP
    7000: _ACCOUNTING,  # ESLURM_DB_CONNECTION
}

_OF_A_QUEUE = frozenset({2016, 2070})
"""Of these: jobs that ask for something else may be taken."""

# The request may have reached the controller: only looking for the job tells.
_MAY_BE_SENT = frozenset({
    1000, 1002, 1003, 1004, 1013, 1017, 1018, 1020, 1022, 1023,  # SLURM_COMMUNICATIONS_*: send, receive, shutdown, …
    1801, 1802, 1803, 1805,  # SLURMCTLD_COMMUNICATIONS_*
    5000, 5001, 5002, 5003, 5004, 5005,  # SLURM_PROTOCOL_SOCKET_*: incomplete, timed out, nothing received
})  # fmt: skip

NO_SUCH_ADDRESS = frozenset({404, 405})
_TURNED_AWAY: dict[int, str] = {
    401: "slurmrestd doesn't let this token in",
    403: "slurmrestd doesn't let this token in",
    **dict.fromkeys(NO_SUCH_ADDRESS, "slurmrestd has lost this version of its API; it will be asked again"),
}
"""HTTP status with which slurmrestd answers before it looks at the request."""

_VERSION = "slurmrestd and slurmctld are of releases that can't speak with each other: install the same"
_REFUSED: dict[int, str] = {
    1005: _VERSION,  # SLURM_PROTOCOL_VERSION_ERROR
    2000: "--partition: choose one that `sinfo -s` lists",
    2001: "--partition: name one, the cluster has no default",
    2002: "this user may not do it; ask an administrator",
    2003: "--partition: this user's group may not use it",
    2004: "--nodelist: the nodes aren't in this partition; see `sinfo -N`",
    2005: "--ntasks, --cpus-per-task: ask for fewer",
    2006: "--nodes: the partition allows another number; `sinfo -s`",
    2009: "the script is empty",
    2012: "--chdir, --output: shorten the path",
    2014: "--ntasks, --cpus-per-task, --mem, --nodes, --constraint: no node has all; `sinfo -o '%P %c %m'`",
    2015: "--partition: it is closed, or its limits are lower",
    2018: "--nodelist, --exclude: name nodes that `sinfo -N` lists",
    2025: "--ntasks: ask for another number",
    2029: "--constraint: choose features that `sinfo -o '%f'` lists",
    2036: "leave out what this cluster hasn't got",
    2037: "leave out what is switched off on this cluster",
    2038: "--dependency: name jobs that exist",
    2044: "--mem, --mem-per-cpu: ask for less; see `sinfo -o '%P %m'`",
    2045: "--account: choose one that `sacctmgr show associations user=$USER` lists",
    2048: "--licenses: choose one that `scontrol show licenses` lists",
    2051: "--time: the partition allows less; `sinfo -s`",
    2052: "--reservation: this user may not use it",
    2053: "--reservation: choose one that `scontrol show reservation` lists",
    2056: "--reservation: it can't be used now; see `scontrol show reservation`",
    2057: "--wckey: choose one that `sacctmgr show wckey` lists",
    2066: "--qos: choose one that `sacctmgr show qos` lists",
    2069: "--ntasks, --cpus-per-task: ask for fewer",
    2071: "--dependency: it goes round in a circle",
    2072: "--gres, --gpus: choose what `sinfo -o '%G'` lists",
    2081: "--array: correct it; `scontrol show config | grep MaxArraySize` is the limit",
    2115: "--gres, --gpus: choose what `sinfo -o '%G'` lists",
    2119: "--gres, --gpus: choose what `sinfo -o '%G'` lists",
    2122: "--gres, --gpus: choose what `sinfo -o '%G'` lists",
    2123: "--nice: choose another number",
    2127: "slurmrestd wants an environment: this is a fault of this program",
}


def submission_failure(status: int, errors: Sequence[RestError], *, plain: str, options: Iterable[str]) -> GatewayError:
    """Return the error that says what a failed submission means.

    Parameters
    ----------
    status
        HTTP status of the answer.
    errors
        From the answer's document; none when it had no document.
    plain
        The answer's text where it isn't a document.
    options
        Names of the options that the script has, for when slurmrestd doesn't say which one it can't read.
    """
    said = sentence(status, errors, plain)
    numbers = [error.number for error in errors if error.number > 0]
    if _MAY_BE_SENT.intersection(numbers):
        return _unknown(said)
    if remedy := _looked_up(_NEVER_SENT, numbers):
        return GatewayUnavailable(said, remedy=remedy, everywhere=not _OF_A_QUEUE.intersection(numbers))
    if remedy := _TURNED_AWAY.get(status):
        return GatewayUnavailable(said, remedy=remedy)
    if remedy := _looked_up(_REFUSED, numbers):
        return SubmitRefused(said, remedy=remedy)
    # Another number beside its own, of the operating system say, may be of the way to the controller.
    if status in {400, 413, 415, 422} or (numbers and all(number // 100 in {90, 92} for number in numbers)):
        # slurmrestd itself couldn't read the request: nothing was sent on.
        names = ", ".join(f"--{name}" for name in options)
        return SubmitRefused(said, remedy=f"correct the #SBATCH lines, one of: {names}")
    return submit_failure("\n".join(error.text for error in errors)) if errors else _unknown(said)


def query_failure(status: int, errors: Sequence[RestError], *, plain: str, what: str) -> GatewayUnavailable:
    """Return the error for a question that wasn't answered; questions have no effect."""
    numbers = [error.number for error in errors if error.number > 0]
    accounting = _ACCOUNTING if "slurmdb" in what else _CONTROLLER
    otherwise = _TURNED_AWAY.get(status, accounting)
    remedy = _looked_up(_NEVER_SENT, numbers) or (_VERSION if 1005 in numbers else otherwise)
    return GatewayUnavailable(f"{what}: {sentence(status, errors, plain)}", remedy=remedy)


def token_verdict(status: int, errors: Iterable[RestError]) -> bool | None:
    """Return whether the token was rejected; None where the answer leaves it open."""
    numbers = {error.number for error in errors}
    if status in {401, 403} or numbers & _REJECTED:
        return True
    return None if status >= 500 and numbers and numbers <= _LEFT_OPEN else False


def _looked_up(table: dict[int, str], numbers: Iterable[int]) -> str | None:
    return next((table[number] for number in numbers if number in table), None)


def sentence(status: int, errors: Sequence[RestError], plain: str) -> str:
    """Return what was said in one line, without what only repeats that the request failed."""
    telling = [error for error in errors if error.number not in {9001, -1}] or list(errors)
    said = "; ".join(dict.fromkeys(map(str, telling))) or " ".join(plain.split())[:300]
    return f"slurmrestd: {said}" if said else f"slurmrestd answered HTTP {status} without a word"


def _unknown(said: str) -> OutcomeUnknown:
    return OutcomeUnknown(said, remedy="look for the job by its tag before submitting it again")
