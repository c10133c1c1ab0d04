"""The stack that everything is measured on, and our program's site on it.

The partition is down: SLURM takes jobs and never starts them, so that the machine's time goes to submitting.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.demonstration import Demonstration, write_site
from orchestrator.settings import Settings, load_settings
from orchestrator.stack import Stack

PARTITION = "live"
ROUTES = ("pyslurm", "rest", "cli")
"""The gateways to SLURM, the fastest first."""


def routes_of(options: argparse.Namespace) -> dict[str, dict[str, object]]:
    """Return the routes to measure, each with what its site file needs; the private stack must be up."""
    rest: dict[str, object] = {
        "gateway.rest.url": os.environ["ORCHESTRATOR_SLURMRESTD_URL"],
        "gateway.rest.token_command": ["scontrol", "token", "lifespan=3600"],
    }
    pyslurm: dict[str, object] = (
        {"gateway.pyslurm_python": str(options.pyslurm_python)} if options.pyslurm_python else {}
    )
    needs: dict[str, dict[str, object]] = {"pyslurm": pyslurm, "rest": rest, "cli": {}}
    return {route: needs[route] for route in ROUTES if route in options.routes}


@contextmanager
def private_stack(folder: Path) -> Iterator[Stack]:
    """Bring up SLURM with accounting, slurmrestd and the broker; this process speaks to them inside the block."""
    stack = Stack(folder / "stack")
    before = dict(os.environ)
    try:
        # More jobs than SLURM's 10,000.
        stack.up({"slurm", "accounting", "rest", "broker"}, nodes=1, slurm_settings={"MaxJobCount": "50000"})
        os.environ.update(stack.environment())
        slurm("scontrol", "update", f"PartitionName={PARTITION}", "State=DOWN")
        yield stack
    finally:
        os.environ.clear()
        os.environ.update(before)
        stack.down()


def slurm(*command: str) -> str:
    """Run one of SLURM's commands and return what it printed."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def clear_queue() -> None:
    """Cancel all jobs and wait until they are gone from the queue."""
    slurm("scancel", "--me")
    while slurm("squeue", "--noheader"):
        time.sleep(0.1)


def settings_for(route: str, folder: Path, changes: dict[str, object]) -> Settings:
    """Return the settings of a site that uses one route, in a folder of its own."""
    directory = folder / route
    (directory / "data").mkdir(parents=True, exist_ok=True)
    always: dict[str, object] = {
        "gateway.route": route,
        "stomp.queue": f"bench.{route}",
        "defaults.resources.partition": PARTITION,
    }
    demonstration = Demonstration(directory=directory, embedded=False)
    return load_settings(write_site(demonstration, os.environ, always | changes))
