"""Which route to SLURM a site takes, and why.

``auto`` takes the best that answers: libslurm, then slurmrestd, then SLURM's commands. Where none answers just now it
takes what the site has all the same: jobs of a site whose controller is down wait for it, they never land on the
service's own machine. That one is taken only where there is no sign of SLURM at all.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import GatewayError
from orchestrator.settings import Settings
from orchestrator.slurm.cli import CliGateway
from orchestrator.slurm.gateway import Gateway
from orchestrator.slurm.local import LocalGateway
from orchestrator.slurm.pyslurm import PyslurmGateway
from orchestrator.slurm.rest import RestGateway

_PROGRAMS = ("sbatch", "squeue", "scontrol", "slurmd", "slurmctld")
CONFIGURATIONS = tuple(map(Path, ("/etc/slurm/slurm.conf", "/etc/slurm-llnl/slurm.conf", "/run/slurm/conf/slurm.conf")))
"""Where SLURM's packages, and slurmd without a configuration of its own, have it."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A route, ready to be used."""

    gateway: Gateway
    reason: str
    """Why this one; what was said by those before it."""


def choose(settings: Settings) -> Choice:
    """Choose and make the site's route.

    With ``auto`` each route that the site has is asked in turn, so this may last as long as a few questions to a
    controller that doesn't answer.
    """
    makers: dict[str, Callable[[Settings], Gateway]] = {
        "pyslurm": _pyslurm, "rest": _rest, "cli": _cli, "local": _local
    }  # fmt: skip
    route = settings.gateway.route
    if route != "auto":
        return Choice(gateway=makers[route](settings), reason="the site file says so")
    silent: list[tuple[Gateway, str]] = []
    for make in (makers[name] for name in _present(settings)):
        gateway = make(settings)
        try:
            info = gateway.check()
        except GatewayError as error:
            silent.append((gateway, f"{gateway.name}: {error}"))
            continue
        said = f"it answers: cluster {info.cluster}, SLURM {info.release}"
        return _taken(gateway, said, silent)
    # Whether pyslurm fits can't be known now, and the route must not change while jobs run.
    if lasting := [gateway for gateway, _ in silent if gateway.name != "pyslurm"]:
        return _taken(lasting[0], "this site has it, although nothing answers at present", silent)
    if silent:
        return _taken(silent[0][0], "this site has nothing else of SLURM", silent)
    return Choice(gateway=_local(settings), reason="no sign of SLURM: no commands, no slurm.conf, no gateway.rest")


def _taken(gateway: Gateway, reason: str, silent: list[tuple[Gateway, str]]) -> Choice:
    for other, _ in silent:
        if other is not gateway:
            other.close()
    return Choice(gateway=gateway, reason="; ".join([reason, *(said for _, said in silent)]))


def _present(settings: Settings) -> Iterator[str]:
    """Give the routes that this site has, best first."""
    if settings.gateway.pyslurm_python is not None or importlib.util.find_spec("pyslurm") is not None:
        yield "pyslurm"
    if settings.gateway.rest is not None:
        yield "rest"
    if _has_slurm():
        yield "cli"


def _has_slurm() -> bool:
    """Whether this machine belongs to a cluster, sbatch being on the PATH or not: then jobs don't belong here."""
    programs = any(shutil.which(name) for name in _PROGRAMS)
    return programs or "SLURM_CONF" in os.environ or any(path.exists() for path in CONFIGURATIONS)


def _pyslurm(settings: Settings) -> PyslurmGateway:
    python = settings.gateway.pyslurm_python or Path(sys.executable)
    return PyslurmGateway(python=python, submit_timeout_s=settings.gateway.submit_deadline_s)


def _rest(settings: Settings) -> RestGateway:
    rest = settings.gateway.rest
    assert rest is not None  # noqa: S101 - for mypy: the settings see to it
    return RestGateway(
        url=rest.url,
        socket=rest.socket,
        user=rest.user,
        token_file=rest.token_file,
        token_command=rest.token_command,
        ca_file=rest.ca_file,
        cluster=rest.cluster,
        submit_timeout_s=settings.gateway.submit_deadline_s,
        query_timeout_s=rest.query_timeout_s,
    )


def _cli(settings: Settings) -> CliGateway:
    return CliGateway(submit_timeout_s=settings.gateway.submit_deadline_s)


def _local(settings: Settings) -> LocalGateway:
    return LocalGateway(settings.gateway.local_state, parallel=settings.gateway.local_jobs_max)
