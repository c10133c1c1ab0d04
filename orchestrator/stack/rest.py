"""slurmrestd, which lets in whoever has a token (JWT) signed with this stack's key."""

from __future__ import annotations

import os
import pwd
import urllib.error
import urllib.request

from orchestrator.stack import processes
from orchestrator.stack.daemon import Daemon
from orchestrator.stack.layout import Layout
from orchestrator.stack.ports import LOOPBACK
from orchestrator.stack.programs import find_program

PROGRAMS = ("slurmrestd",)


def url(layout: Layout) -> str:
    """Return the address of slurmrestd."""
    return f"http://{LOOPBACK}:{layout.ports['slurmrestd']}"


def token(layout: Layout, *, lifespan_s: int = 1800) -> str:
    """Return a new token for the present user.

    Raises
    ------
    StackError
        slurmctld gave none.
    """
    command = [find_program("scontrol"), "token", f"lifespan={lifespan_s}"]
    said = processes.run(command, environment=layout.slurm_environment())
    return said.strip().removeprefix("SLURM_JWT=")


def daemon(layout: Layout) -> Daemon:
    """Return the description of slurmrestd."""
    return Daemon(
        name="slurmrestd",
        command=(find_program("slurmrestd"), "-a", "rest_auth/jwt", f"{LOOPBACK}:{layout.ports['slurmrestd']}"),
        log=layout.log("slurmrestd"),
        # It won't run as SLURM's own user, because a fault in it would then open the whole cluster. A private stack
        # has one user.
        environment={**layout.slurm_environment(), "SLURMRESTD_SECURITY": "disable_user_check", "SLURM_JWT": "daemon"},
        ready=lambda: _answers(layout),
        port=layout.ports["slurmrestd"],
        after=("slurmctld",),
    )


def _answers(layout: Layout) -> bool:
    headers = {"X-SLURM-USER-NAME": pwd.getpwuid(os.geteuid()).pw_name, "X-SLURM-USER-TOKEN": token(layout)}
    request = urllib.request.Request(f"{url(layout)}/openapi/v3", headers=headers)  # noqa: S310 -- ours, and http
    try:
        with urllib.request.urlopen(request, timeout=5) as reply:  # noqa: S310 -- as above
            return bool(reply.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
