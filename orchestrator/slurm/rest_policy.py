"""Which limit of an account or QOS refused a job: one on the number of jobs, which passes, or one on their size. Pure.

In: what accounting says of QOS and associations, and how many jobs the user has. Out: the error to raise. SLURM has one
number for all these limits (2050, ``ESLURM_ACCOUNTING_POLICY``), and slurmrestd doesn't hand on the limit's name, which
sbatch prints. ``acct_policy_validate`` in ``acct_policy.c`` of slurmctld 22.05 to 26.11 says what can be told:

- size and time limits refuse a submission only where a QOS of the job has the flag ``DenyOnLimit``; elsewhere such a
  job is accepted and waits. Without that flag it was the number of jobs;
- a limit on the number of jobs is compared with the jobs that haven't ended. Those that the controller knows are at
  least as many, so one that isn't reached by them wasn't reached when the job was refused.

Where neither decides, the job isn't given up: the error says that others may be let by (`GatewayUnavailable.doubtful`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from orchestrator.errors import GatewayError, GatewayUnavailable, SubmitRefused
from orchestrator.records import Json
from orchestrator.slurm import arrays
from orchestrator.slurm.rest_documents import entries, found_at, whole
from orchestrator.slurm.script_options import ScriptOption, time_limit_s

POLICY = 2050
"""ESLURM_ACCOUNTING_POLICY"""
_DENIES = "DENY_LIMIT"
_FEWER = "wait until fewer jobs are submitted, or have the limit raised"
_SMALLER = "a limit of the account or QOS: ask for less; see `sacctmgr show qos` and `sacctmgr show associations`"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What accounting knows of limits."""

    qos: Json
    """Answer of ``/slurmdb/…/qos``."""
    associations: Json
    """Answer of ``/slurmdb/…/associations``."""


def meaning(
    said: str, limits: Limits, *, user: str, known_jobs: int, options: Mapping[str, ScriptOption]
) -> GatewayError:
    """Return the error that says what a refusal by policy means.

    Parameters
    ----------
    said
        What slurmrestd said.
    user
        Whose job it is.
    known_jobs
        How many jobs of the user's the controller knows, each task of an array for itself; ended ones too, since they
        may have gone on when it refused.
    options
        The script's.
    """
    qos = list(entries(limits.qos, "qos", "QOS"))
    strict = [one for one in qos if _DENIES in entries(one, "flags")]
    if qos and not strict:
        return GatewayUnavailable(said, remedy=_FEWER)
    if too_large := _too_large(qos, strict, options):
        return SubmitRefused(f"{said}: {too_large}", remedy=_SMALLER)
    own = [one for one in entries(limits.associations, "associations") if found_at(one, "user") == user]
    counts = [found_at(one, "max", "jobs", "total") for one in own]
    counts += [found_at(one, "limits", "max", "jobs", "per", "user") for one in qos]
    wanted = known_jobs + _tasks(options)
    if any(wanted > count for value in counts if (count := whole(value)) is not None) or not own or not qos:
        return doubtful(said)
    if any(_shared(qos, limits.associations)):
        return doubtful(said)
    return SubmitRefused(said, remedy=_SMALLER)


def doubtful(said: str) -> GatewayUnavailable:
    """Return the error for a refusal of which it can't be told whether it passes."""
    return GatewayUnavailable(
        f"{said}: it can't be told whether there are too many jobs or this one is too large",
        remedy=f"it will be tried again, and others are let by; {_FEWER}, or ask for less",
        doubtful=True,
    )


def _too_large(qos: list[Json], strict: list[Json], options: Mapping[str, ScriptOption]) -> str:
    """Return which option asks for more than any QOS allows that it could be under; nothing where that isn't sure."""
    time = time_limit_s(options["time"].value) if "time" in options else None
    tasks, per_task = (options[name].value if name in options else "1" for name in ("ntasks", "cpus-per-task"))
    cpus = int(tasks) * int(per_task) if tasks.isdigit() and per_task.isdigit() else None
    for asked, of, option, unit in (
        (None if time is None else time / 60, _wall_min, "--time", "minutes"),
        (cpus, _cpus, "--ntasks, --cpus-per-task", "processors"),
    ):
        allowed = [count for one in qos if (count := of(one)) is not None]
        if asked is not None and all(of(one) is not None for one in strict) and allowed and asked > max(allowed):
            return f"{option}: {asked:g} {unit} are asked for, and no QOS allows more than {max(allowed)}"
    return ""


def _wall_min(qos: Json) -> int | None:
    return whole(found_at(qos, "limits", "max", "wall_clock", "per", "job"))


def _cpus(qos: Json) -> int | None:
    resources = entries(found_at(qos, "limits", "max", "tres", "per"), "job")
    return next((whole(found_at(one, "count")) for one in resources if found_at(one, "type") == "cpu"), None)


def _shared(qos: list[Json], associations: Json) -> Iterator[bool]:
    """Say of each limit that other users' jobs count for, which may be hidden, whether it is there."""
    for one in qos:
        yield whole(found_at(one, "limits", "max", "jobs", "per", "account")) is not None
        # GrpSubmitJobs of a QOS; slurmrestd tells it from 0.0.42 on.
        together = found_at(one, "limits", "max", "jobs")
        yield not isinstance(together, dict) or "count" not in together or whole(together["count"]) is not None
    for one in entries(associations, "associations"):
        yield whole(found_at(one, "max", "jobs", "per", "submitted")) is not None


def _tasks(options: Mapping[str, ScriptOption]) -> int:
    return len(arrays.task_numbers(options["array"].value)) if "array" in options else 1
