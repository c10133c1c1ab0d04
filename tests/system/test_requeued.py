"""A job that is killed at random moments and requeued by SLURM gives the same bits as one that nobody disturbs."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from orchestrator.records import RunState
from orchestrator.runs import RunDirectory
from orchestrator.stack import Stack
from tests.system.beamline import Beamline, processed, slurm

pytestmark = [pytest.mark.stack, pytest.mark.mpi]

REQUEUES = int(os.environ.get("ORCHESTRATOR_TEST_REQUEUES", "2"))
"""How often the job is killed; more for those who want to be sure."""
FRAMES_PER_REQUEUE = 270
"""At ten a second: it takes SLURM some 25 seconds from the kill of a job to its next frame."""


def kernel_processes(result: Path) -> list[int]:
    """Return the processes of the kernel that writes a result, and of its launcher."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended meanwhile
            continue
        if b"mpi_kernels" in words and str(result).encode() in words:
            found.append(int(entry.name))
    return found


def kill_and_requeue(stack: Stack, job: int, result: Path) -> None:
    slurm(stack, "scontrol", "requeue", str(job))
    for process in kernel_processes(result):
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue
    slurm(stack, "scontrol", "update", f"JobId={job}", "StartTime=now")  # SLURM would wait for two minutes


def values(result: Path) -> dict[str, bytes]:
    with h5py.File(result) as file:
        names = ["data/I", "data/I_errors", "data/radial_axis", "data/norm", "frames/status", "frames/frame_index"]
        return {name: file[f"entry/{name}"][...].tobytes() for name in names}


def test_killed_and_requeued_job_gives_the_bits_of_an_undisturbed_one(tmp_path: Path, stack: Stack) -> None:
    beamline = Beamline(tmp_path, stack)
    beamline.start_service()
    moments = np.random.default_rng(5)
    number = REQUEUES * FRAMES_PER_REQUEUE
    try:
        with beamline.detector("requeued", "--number", str(number), "--rate", "10"):
            beamline.announce("requeued", number)
            detail = beamline.wait_for("requeued", processed(5))
            job, result = detail.summary.job, RunDirectory(detail.summary.run_directory).result
            assert job is not None
            for _ in range(REQUEUES):
                before = count_of_rows(result)
                deadline = time.monotonic() + 60
                while count_of_rows(result) <= before and time.monotonic() < deadline:
                    time.sleep(0.1)
                time.sleep(2 * moments.random())
                kill_and_requeue(stack, job.job_id, result)
            detail = beamline.wait_for_end("requeued", within_s=120)
        assert detail.summary.state is RunState.COMPLETE, (detail.summary.reason, beamline.log())
        assert detail.attempts[0].last_report is not None
        assert detail.attempts[0].last_report.restarts == REQUEUES
        beamline.announce("again", number, file=beamline.file("requeued"))
        again = beamline.wait_for_end("again", within_s=90)
        assert again.summary.state is RunState.COMPLETE
        assert values(result) == values(RunDirectory(again.summary.run_directory).result)
    finally:
        beamline.close()


def count_of_rows(result: Path) -> int:
    try:
        with h5py.File(result, "r", swmr=True, locking=False) as file:
            return int(np.count_nonzero(file["entry/frames/status"][...] == 1))
    except OSError:
        return 0
