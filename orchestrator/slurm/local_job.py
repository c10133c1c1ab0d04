"""Runs one job of the local route, and says how it ended: ``python -m orchestrator.slurm.local_job JOB-FOLDER``.

A process of its own, one per running job: it outlives the service. It starts the job's script once, ends it at its time
limit or when somebody cancels it, ends what the script left behind, writes the end, and starts the next waiting job. If
it is killed, its lock is released and whoever looks next finds the job lost.
"""

from __future__ import annotations

import json
import os
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from orchestrator.records import utc_now
from orchestrator.slurm.arrays import WORST_FIRST
from orchestrator.slurm.directives import file_name
from orchestrator.slurm.local_queue import MARKER, JobFolder, LocalJob, LocalQueue, Status
from orchestrator.slurm.states import job_state

_LOOK_EVERY_S = 0.25
"""How often a running job's supervisor looks whether the job is to be cancelled."""


def supervise(folder: JobFolder) -> None:
    """Run the job in `folder` from its beginning to its end."""
    job = folder.job()
    begun = Status(words="RUNNING", started_at=utc_now(), supervisor_pid=os.getpid())
    environment = json.loads(folder.environment.read_text())
    # From here on the job has begun: if this process dies now, the job is lost, and never begun a second time.
    folder.write_status(begun)
    folder.environment.unlink()
    if job.tasks:
        _run_tasks(folder, job, environment, begun)
    else:
        folder.write_status(_run(folder, job, environment, begun, tell=folder.write_status))


def _run_tasks(folder: JobFolder, job: LocalJob, environment: dict[str, str], begun: Status) -> None:
    """Run the tasks of a job array one after another, also behind one that fails, until somebody cancels the job."""
    done: dict[int, Status] = {}
    for number in job.tasks:
        if folder.cancel.exists():
            break

        def tell(status: Status, number: int = number) -> None:
            folder.write_status(replace(begun, script_pid=status.script_pid, tasks={**done, number: status}))

        variables = environment | _array_variables(job, number)
        done[number] = _run(folder, job, variables, replace(begun, started_at=utc_now()), tell=tell, task=number)
    worst = min(done.values(), key=lambda status: WORST_FIRST.index(job_state(status.words)), default=begun)
    words = worst.words if len(done) == len(job.tasks) else "CANCELLED"
    ended = replace(begun, words=words, exit_code=worst.exit_code, signal=worst.signal, ended_at=utc_now(), tasks=done)
    folder.write_status(ended)


def _array_variables(job: LocalJob, task: int) -> dict[str, str]:
    """Return what SLURM tells a task of a job array, under its names."""
    values = {"JOB_ID": job.job_id, "TASK_ID": task, "TASK_COUNT": len(job.tasks), "TASK_MIN": job.tasks[0],
              "TASK_MAX": job.tasks[-1]}  # fmt: skip
    return {f"SLURM_ARRAY_{name}": str(value) for name, value in values.items()}


def _run(
    folder: JobFolder,
    job: LocalJob,
    environment: dict[str, str],
    begun: Status,
    *,
    tell: Callable[[Status], None],
    task: int | None = None,
) -> Status:
    """Run the script once, telling of its start; return how it ended."""
    try:
        script = _start_script(folder, job, environment, task)
    except OSError as error:
        reason = f"JobLaunchFailure: {error}"
        return replace(begun, words="FAILED", exit_code=1, reason=reason, ended_at=utc_now())
    running = replace(begun, script_pid=script.pid)
    tell(running)
    words = _wait(folder, job, script)
    return _ended(running, script, words)


def _start_script(
    folder: JobFolder, job: LocalJob, environment: dict[str, str], task: int | None
) -> subprocess.Popen[bytes]:
    own = {
        "ORCHESTRATOR_LOCAL_JOB_ID": str(job.job_id),
        "ORCHESTRATOR_LOCAL_CLUSTER": job.cluster,
        MARKER: str(folder.path),
    }

    def named(pattern: str) -> Path:
        return Path(job.working_directory) / file_name(pattern, job_id=job.job_id, job_name=job.name, task=task)

    home = Path(job.working_directory)
    mode = "ab" if job.append else "wb"
    with named(job.output).open(mode) as output:
        errors = output if job.error is None else named(job.error).open(mode)
        with errors:
            return subprocess.Popen(
                [*_interpreter(folder.script), str(folder.script)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                cwd=home,
                env=environment | own,
                start_new_session=True,
            )


def _interpreter(script: Path) -> list[str]:
    """Read the script's first line, so that it runs on file systems that forbid execution."""
    first = script.read_text(errors="replace").partition("\n")[0]
    return shlex.split(first.removeprefix("#!"))


def _wait(folder: JobFolder, job: LocalJob, script: subprocess.Popen[bytes]) -> str:
    """Wait until the script has ended and left nothing behind; return the state if it didn't end by itself."""
    words = ""
    deadline = time.monotonic() + (job.time_limit_s or float("inf"))
    watch = os.pidfd_open(script.pid)
    try:
        while not select.select([watch], [], [], min(_LOOK_EVERY_S, max(deadline - time.monotonic(), 0)))[0]:
            if folder.cancel.exists():
                words = "CANCELLED"
            elif time.monotonic() >= deadline:
                words = "TIMEOUT"
            if words:
                break
    finally:
        os.close(watch)
    _end_processes(folder, patience_s=job.kill_wait_s)
    return words


def _end_processes(folder: JobFolder, *, patience_s: float) -> None:
    """End every process of the job: SIGTERM, and SIGKILL for those still there after `patience_s`, as slurmd does."""
    deadline = time.monotonic() + patience_s
    left = folder.signal_processes(signal.SIGTERM)
    while left:
        time.sleep(0.05)
        left = folder.signal_processes(signal.SIGKILL if time.monotonic() >= deadline else 0)


def _ended(running: Status, script: subprocess.Popen[bytes], words: str) -> Status:
    _, wait_status, usage = os.wait4(script.pid, 0)
    code = os.waitstatus_to_exitcode(wait_status)
    script.returncode = code
    ended_at = utc_now()
    return replace(
        running,
        words=words or ("COMPLETED" if code == 0 else "FAILED"),
        ended_at=ended_at,
        exit_code=max(code, 0),
        signal=-code if code < 0 else None,
        usage={
            "elapsed_s": round(_seconds(running.started_at, ended_at), 3),
            "cpu_s": round(usage.ru_utime + usage.ru_stime, 3),
            "max_rss_bytes": usage.ru_maxrss * 1024,
        },
    )


def _seconds(begin: datetime | None, end: datetime) -> float:
    return (end - begin).total_seconds() if begin else 0.0


def main(arguments: list[str]) -> None:
    """Supervise the job whose folder is named, then start the next one that waits."""
    folder = JobFolder(Path(arguments[0]))
    supervise(folder)
    LocalQueue(folder.path.parent.parent).start_waiting()


if __name__ == "__main__":
    main(sys.argv[1:])
