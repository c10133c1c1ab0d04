"""Runs in the alternatives' environment: submits jobs with one of them and prints the seconds that each took.

    python peers.py NAME NUMBER PARTITION FOLDER

NAME is ``submitit``, ``psij-python`` or ``zocalo``; the last takes slurmrestd's address from
ORCHESTRATOR_SLURMRESTD_URL and a token from SLURM_JWT. Nothing of ours is imported.
"""

from __future__ import annotations

import getpass
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

# Each of them is imported only where it is measured.
# ruff: noqa: PLC0415


def submitit_loop(partition: str, folder: Path) -> Callable[[], object]:
    """Submit with submitit: it pickles a function and calls sbatch."""
    import submitit

    executor = submitit.SlurmExecutor(folder=folder)
    executor.update_parameters(partition=partition, time=10, mem="100M")
    return lambda: executor.submit(time.sleep, 1)


def psij_loop(partition: str, folder: Path) -> Callable[[], object]:
    """Submit with psij-python: it writes a script and calls sbatch."""
    from datetime import timedelta

    import psij

    executor = psij.JobExecutor.get_instance("slurm")

    def submit() -> None:
        attributes = psij.JobAttributes(queue_name=partition, duration=timedelta(minutes=10))
        executor.submit(psij.Job(psij.JobSpec(executable="/bin/true", directory=folder, attributes=attributes)))

    return submit


def zocalo_loop(partition: str, folder: Path) -> Callable[[], object]:
    """Submit with zocalo's client of slurmrestd."""
    from zocalo.util.slurm import SlurmRestApi, models

    client = SlurmRestApi(
        url=os.environ["ORCHESTRATOR_SLURMRESTD_URL"],
        version="v0.0.38",
        user_name=getpass.getuser(),
        user_token=os.environ["SLURM_JWT"],
    )
    properties = models.JobProperties(
        name="zocalo",
        partition=partition,
        current_working_directory=str(folder),
        environment={"PATH": os.defpath},
        time_limit="10",
    )
    submission = models.JobSubmission(script="#!/bin/bash\n/bin/true\n", job=properties)

    def submit() -> None:
        answer = client.submit_job(submission)
        if not answer.job_id:
            raise SystemExit(f"zocalo: no job: {answer.errors}")

    return submit


LOOPS = {"submitit": submitit_loop, "psij-python": psij_loop, "zocalo": zocalo_loop}


def main() -> None:
    """Submit, and tell how long each took."""
    name, number, partition, folder = sys.argv[1:]
    submit = LOOPS[name](partition, Path(folder))
    seconds = []
    for _ in range(int(number)):
        began = time.perf_counter()
        submit()
        seconds.append(time.perf_counter() - began)
    sys.stdout.write(f"{json.dumps(seconds)}\n")
    sys.stdout.flush()
    os._exit(0)  # psij's and submitit's threads would go on watching jobs that never start


if __name__ == "__main__":
    main()
