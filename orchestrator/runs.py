"""The names of everything in a run's directory; no other module joins these paths.

A run's directory is the record that survives the database, and the meeting place of the service, the job and the
kernel. Its layout is part of the public interface: ``docs/reference/run-directory.md``.

    <runs root>/<beamline>/<visit>/<recipe>-<collection uid>-<first 8 of run id>/
        message.json          the collection-start message, byte for byte
        plan.json             the plan: every parameter with its origin, resources, input
        parameters.json       the kernel's parameter file
        script.sbatch         the script as submitted, byte for byte
        template.sbatch.j2    the template text it was rendered from
        provenance.json       all that is known about the run; written when it has ended, and when more becomes known
        rerun.sbatch          makes this run again, for whoever hands it to sbatch
        submitted.sbatch      the rerun.sbatch that made this run, as it was handed over; only of such runs
        collection-end.json   written when the collection has ended; the kernel watches for it
        result.nxs            the live result
        result-<t>.nxs, parameters-<t>.json  of each task, where the job is an array
        report.md, report.png the report of a chain's last step
        attempts/<n>/claim.json     who runs this attempt (the fence)
        attempts/<n>/retry.json     why there is this attempt after another one, and what it asks for
        attempts/<n>/script.sbatch, template.sbatch.j2  those of an attempt that another one followed
        attempts/<n>/packages.txt   all Python packages that were installed, with their versions
        attempts/<n>/job.log        what the job printed
        attempts/<n>/events.jsonl   begin and end, written inside the job
        attempts/<n>/progress.json  how the kernel stands; replaced atomically
        attempts/<n>/tasks/<t>/     claim, events and progress of each task, where the job is an array
        attempts/<n>/progress.<r>.json  the same after SLURM has requeued the job r times

This module does no input or output but `write_atomically`, which all writers of these files use, `make_durable`, and
`AttemptDirectory.tasks`. It needs the standard library only, because it runs inside jobs too.
"""

from __future__ import annotations

import os
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

RECORDS = "records"
"""Folder of the records of runs whose directories weren't the service's to write."""

_UNSAFE = re.compile(r"[^A-Za-z0-9._+=@-]+")


def safe_name(text: str, *, limit: int = 60) -> str:
    """Return `text` as one harmless path component: no separators, no leading dot, at most `limit` characters."""
    return _UNSAFE.sub("_", text).lstrip(".-")[:limit] or "_"


@dataclass(frozen=True)
class RunDirectory:
    """The paths of one run. `path` is absolute."""

    path: Path

    @classmethod
    def under(cls, root: Path, *, beamline: str, visit: str | None, recipe: str, uid: str, run_id: str) -> RunDirectory:
        """Name the directory of a run below the site's runs root; the same arguments always give the same name.

        A uid that can't stand there as it is gets the whole run id: eight digits are too few to tell it from another
        one that was chosen so that both come out the same.
        """
        part = safe_name(uid)
        leaf = f"{safe_name(recipe, limit=40)}-{part}-{run_id[:8] if part == uid else run_id}"
        return cls(root / safe_name(beamline) / safe_name(visit or "no-visit") / leaf)

    @property
    def message(self) -> Path:
        return self.path / "message.json"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def parameters(self) -> Path:
        return self.path / "parameters.json"

    @property
    def script(self) -> Path:
        return self.path / "script.sbatch"

    @property
    def template(self) -> Path:
        return self.path / "template.sbatch.j2"

    @property
    def provenance(self) -> Path:
        return self.path / "provenance.json"

    @property
    def rerun(self) -> Path:
        return self.path / "rerun.sbatch"

    @property
    def submitted(self) -> Path:
        return self.path / "submitted.sbatch"

    @property
    def collection_end(self) -> Path:
        return self.path / "collection-end.json"

    @property
    def result(self) -> Path:
        return self.path / "result.nxs"

    def result_of(self, task: int | None) -> Path:
        """Name the result of a job array's task; None for other jobs."""
        return self.result if task is None else self.path / f"result-{task}.nxs"

    def parameters_of(self, task: int | None) -> Path:
        """Name the parameter file of a job array's task; None for other jobs."""
        return self.parameters if task is None else self.path / f"parameters-{task}.json"

    @property
    def report(self) -> Path:
        return self.path / "report.md"

    @property
    def picture(self) -> Path:
        return self.path / "report.png"

    def attempt(self, number: int) -> AttemptDirectory:
        """Name the directory of one attempt (counted from 1)."""
        return AttemptDirectory(self.path / "attempts" / str(number))


@dataclass(frozen=True)
class AttemptDirectory:
    """The paths of one attempt of a run."""

    path: Path

    @property
    def claim(self) -> Path:
        return self.path / "claim.json"

    @property
    def retry(self) -> Path:
        return self.path / "retry.json"

    @property
    def script(self) -> Path:
        """The script of this attempt, once another one has followed; that of the newest is the run's."""
        return self.path / "script.sbatch"

    @property
    def template(self) -> Path:
        return self.path / "template.sbatch.j2"

    @property
    def packages(self) -> Path:
        return self.path / "packages.txt"

    @property
    def log(self) -> Path:
        return self.path / "job.log"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def progress(self) -> Path:
        return self.path / "progress.json"

    def task(self, number: int | None) -> AttemptDirectory:
        """Name the directory of a job array's task; this one for other jobs."""
        return self if number is None else AttemptDirectory(self.path / "tasks" / str(number))

    def tasks(self) -> dict[int | None, AttemptDirectory]:
        """Return the directories of a job array's tasks, by number; of another job this one, under None.

        They are made before the job is submitted.
        """
        try:
            names = [entry.name for entry in (self.path / "tasks").iterdir()]
        except FileNotFoundError:  # most runs; they are asked often
            return {None: self}
        return {number: self.task(number) for number in sorted(int(name) for name in names if name.isdigit())}

    def progress_of(self, restarts: int) -> Path:
        """Name the progress file of one start of a job that SLURM requeued `restarts` times before it.

        Each start has its own: the one before may live on, on a node that lost its daemon and not its file system.
        """
        return self.path / f"progress.{restarts}.json" if restarts else self.progress


def write_atomically(path: Path, content: bytes | str, *, mode: int = 0o644, durable: bool = True) -> None:
    """Write a file so that a reader sees the old content or the new, never half.

    Parameters
    ----------
    durable
        Whether it has to survive a loss of power right after the call; that takes some milliseconds.

    Raises
    ------
    OSError
        As the file system says (no space, no permission); nothing is left behind.
    """
    left = memoryview(content.encode() if isinstance(content, str) else content)
    name = f"{path.parent}/.{path.name}.{secrets.token_hex(6)}"
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            while left:
                left = left[os.write(descriptor, left) :]
            os.fchmod(descriptor, mode)
            # Before the file has its name: what has it is whole, after a loss of power too.
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(name, path)  # noqa: PTH105 - many files are written this way
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)  # noqa: PTH108
        raise


def make_durable(path: Path) -> None:
    """Have a file's content and its name survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
