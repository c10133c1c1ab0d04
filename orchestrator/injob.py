"""What runs inside a job besides the kernel: the fence before it, the record after it.

    python -m orchestrator.injob begin --run-directory D --run-id U --attempt N [--after D0]…
    python -m orchestrator.injob end   --run-directory D --attempt N --exit-code C [--interrupted]

``begin`` claims the attempt: exactly one job gets it, however many were submitted for it. A job that SLURM requeued is
the same job and gets it again, unless an earlier start of it has done the work; a start that was made before is no new
one. SLURM makes both when its controller has lost what it knew last. Exit codes: 0 the attempt is ours; 75 another job
has it, or the work is done, leave without doing anything; that of the earlier start where this one is no other; 74 the
run's directory can't be written; 76 a run that this one comes after hasn't ended with 0, by its own record. SLURM looks
at that too, but takes a job that it has forgotten for one that succeeded.

Both append to the attempt's ``events.jsonl``, which the service reads: ``begin`` or ``duplicate``; ``end``, and then
``outputs``, because the digest of a large result takes time. A claimed attempt goes on even where the event can't be
written. Nothing here talks to the service, the database or SLURM, so it works when they are down. Standard library
only: it runs on compute nodes, before modules and MPI are known to work. What needs more, the digest of a result's
content, is imported at the very end, and its absence is recorded.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import platform
import pwd
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import Enum
from importlib import metadata
from pathlib import Path
from typing import Any

from orchestrator.containers import container
from orchestrator.errors import InvalidInput
from orchestrator.runs import AttemptDirectory, RunDirectory, write_atomically

EXIT_CANNOT_WRITE = 74
EXIT_TAKEN = 75
EXIT_PREDECESSOR = 76

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"

SEEN_LATE_S = 60.0
"""How long another node's last words may take to be seen here: NFS shows files as they were up to a minute ago."""

# An allow-list, because environments hold secrets: what can change a result or explain where it was made.
RECORDED_VARIABLES = (
    "PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV", "CONDA_PREFIX", "LOADEDMODULES", "HDF5_PLUGIN_PATH",
    "HDF5_USE_FILE_LOCKING", "LANG", "LC_ALL", "TZ", "TMPDIR",
)  # fmt: skip
RECORDED_PREFIXES = ("OMP_", "OMPI_", "UCX_", "MPICH_", "NUMBA_NUM", "MKL_NUM", "OPENBLAS_")
RECORDED_SLURM_VARIABLES = (
    "SLURM_CLUSTER_NAME", "SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_JOB_PARTITION", "SLURM_JOB_ACCOUNT", "SLURM_JOB_QOS",
    "SLURM_JOB_NODELIST", "SLURM_JOB_NUM_NODES", "SLURM_NTASKS", "SLURM_CPUS_PER_TASK", "SLURM_MEM_PER_NODE",
    "SLURM_RESTART_COUNT", "SLURM_SUBMIT_HOST",
)  # fmt: skip
RECORDED_PACKAGES = (
    "orchestrator", "numpy", "h5py", "hdf5plugin", "mpi4py", "openmpi", "dectris-compression", "jinja2",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class JobHere:
    """The job this process runs in."""

    cluster: str
    job_id: str
    restarts: int

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> JobHere:
        """Read it from what SLURM, or the local route, puts into a job's environment."""
        if "SLURM_JOB_ID" in environment:
            return cls(
                cluster=environment.get("SLURM_CLUSTER_NAME", ""),
                # Of an array the whole is the job; each of its tasks claims a directory of its own.
                job_id=environment.get("SLURM_ARRAY_JOB_ID", environment["SLURM_JOB_ID"]),
                restarts=int(environment.get("SLURM_RESTART_COUNT") or 0),
            )
        return cls(
            cluster=environment.get("ORCHESTRATOR_LOCAL_CLUSTER", socket.gethostname()),
            job_id=environment.get("ORCHESTRATOR_LOCAL_JOB_ID", f"process-{os.getppid()}"),
            restarts=0,
        )

    def same_job_as(self, other: Mapping[str, object]) -> bool:
        """Whether a claim was made by this job, maybe before SLURM requeued it."""
        return (other.get("cluster"), other.get("job_id")) == (self.cluster, self.job_id)


class Claim(Enum):
    """What came of a claim."""

    NEW = "new"
    AGAIN = "again"
    """The job has the attempt already: SLURM has requeued it, or has forgotten that it had started it."""
    TAKEN = "taken"
    """Another job has the attempt."""


def claim(attempt: AttemptDirectory, job: JobHere) -> Claim:
    """Claim an attempt for a job, atomically also over NFS.

    A complete file is hard-linked into place: unlike exclusive creation, nobody can see a claim without its owner,
    and the link count tells whether a link whose answer was lost did happen (open(2), O_EXCL).
    """
    draft = attempt.path / f".claim.{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex}"
    try:
        with draft.open("w") as stream:
            stream.write(json.dumps(asdict(job) | {"host": socket.gethostname(), "claimed_at": _now()}))
            stream.flush()
            os.fsync(stream.fileno())  # or a node that dies now leaves an empty claim behind
        try:
            os.link(draft, attempt.claim)
        except OSError:
            if draft.stat().st_nlink == 2:
                return Claim.NEW
            if not attempt.claim.exists():
                raise  # nobody has it: the file system refuses links
            return Claim.AGAIN if job.same_job_as(claimed(attempt)) else Claim.TAKEN
        return Claim.NEW
    finally:
        draft.unlink(missing_ok=True)


def claimed(attempt: AttemptDirectory) -> Mapping[str, object]:
    """Return who has an attempt.

    Raises
    ------
    ValueError
        When that can't be read: then nobody may work on it.
    """
    try:
        owner: dict[str, object] = json.loads(attempt.claim.read_text())
        return {name: owner[name] for name in ("cluster", "job_id", "restarts")}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{attempt.claim}: not a claim: {error!r}; remove it if no job has this attempt") from error


def append_event(attempt: AttemptDirectory, kind: str, job: JobHere, detail: Mapping[str, object]) -> None:
    """Append one event as one line, durably; a single write keeps lines of several jobs whole."""
    line = json.dumps({"kind": kind, "at": _now(), "job": asdict(job), "detail": detail}) + "\n"
    descriptor = os.open(attempt.events, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":  # the line before was cut off by a full disk
            line = f"\n{line}"
        if os.write(descriptor, line.encode()) < len(line.encode()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(attempt.events))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def note(attempt: AttemptDirectory, kind: str, job: JobHere, detail: Callable[[], Mapping[str, object]]) -> None:
    """Append an event if it can be done: a job isn't lost because something about it couldn't be written down."""
    try:
        append_event(attempt, kind, job, detail())
    except (OSError, ValueError) as error:
        sys.stderr.write(f"warning: '{kind}' can't be recorded: {error}\n")


def begin(
    directory: Path,
    run_id: str,
    number: int,
    *,
    task: int | None = None,
    after: Sequence[Path] = (),
    patience_s: float = SEEN_LATE_S,
) -> int:
    """Claim the attempt and record where and with what it runs; return the exit code.

    Parameters
    ----------
    task
        Number of this task, where the job is an array: each claims its own part of the array's attempt.
    after
        Directories of the runs that have to have succeeded.
    patience_s
        How long their records are waited for.
    """
    run, job = RunDirectory(directory), JobHere.from_environment(os.environ)
    attempt = run.attempt(number).task(task)
    attempt.path.mkdir(parents=True, exist_ok=True)
    if unfinished := _unfinished([RunDirectory(path) for path in after], patience_s):
        names = ", ".join(str(one.path) for one in unfinished)
        note(attempt, "not-begun", job, lambda: {"after": names})
        sys.stderr.write(f"error: this run comes after {names}, where no job ended with exit code 0\n")
        return EXIT_PREDECESSOR
    # An array claims the attempt as a whole before its tasks claim their parts: two arrays could share the tasks, and
    # the one that is ended as the second would take its share with it.
    whole = Claim.NEW if task is None else claim(run.attempt(number), job)
    ours = Claim.TAKEN if whole is Claim.TAKEN else claim(attempt, job)
    code, because = (EXIT_TAKEN, "belongs to another job") if ours is Claim.TAKEN else (None, "")
    if ours is Claim.AGAIN:
        code, because = _left_to_do(attempt, job)
    if code is not None:
        note(attempt, "duplicate", job, lambda: {"owner": claimed(run.attempt(number)), "because": because})
        sys.stderr.write(f"attempt {number} of run {run_id} {because}; leaving without doing anything\n")
        return code or EXIT_TAKEN
    note(attempt, "begin", job, lambda: {"run_id": run_id, **where_and_with_what(run), **_packages(attempt)})
    return 0


def _packages(attempt: AttemptDirectory) -> dict[str, object]:
    """Write down all installed packages; return the digest of the list."""
    packages = installed_packages(sys.path)
    write_atomically(attempt.packages, packages)
    return {"packages_sha256": hashlib.sha256(packages.encode()).hexdigest()}


def _left_to_do(attempt: AttemptDirectory, job: JobHere) -> tuple[int | None, str]:
    """Return with which exit code a start leaves whose job has claimed the attempt before, and why; None to go on.

    A requeue counts the restarts up. A start that has the number of an earlier one was made by a controller that lost
    its state, or is another job, to which such a controller gave a lost job's id.
    """
    own = [event for event in _events(attempt) if job.same_job_as(event["job"])]
    begun = max((event["job"]["restarts"] for event in own if event["kind"] == "begin"), default=0)
    ends = [event for event in own if event["kind"] == "end"]
    end = max(ends, key=lambda event: int(event["job"]["restarts"]), default=None)
    detail = {} if end is None else end["detail"]
    if detail.get("exit_code") == 0 and not detail.get("interrupted"):
        return 0, "has been done by an earlier start of this job"
    if job.restarts > max(begun, int(str(claimed(attempt)["restarts"]))):
        return None, ""
    if end is not None and end["job"]["restarts"] >= job.restarts:
        return detail.get("exit_code"), "has been tried by this very start"
    return 0, "is being done by this very start"


def _unfinished(runs: Sequence[RunDirectory], patience_s: float) -> list[RunDirectory]:
    deadline = time.monotonic() + patience_s
    while left := [run for run in runs if not succeeded(run)]:
        if time.monotonic() >= deadline:
            return left
        time.sleep(min(1.0, patience_s))
    return []


def succeeded(run: RunDirectory) -> bool:
    """Whether the newest job of a run recorded that it ended with exit code 0."""
    attempts = [int(path.name) for path in run.attempt(1).path.parent.glob("*") if path.name.isdigit()]
    return bool(attempts) and all(map(_ended_well, run.attempt(max(attempts)).tasks().values()))


def _ended_well(attempt: AttemptDirectory) -> bool:
    ends = [
        (event["job"]["restarts"], event["detail"]["exit_code"]) for event in _events(attempt) if event["kind"] == "end"
    ]
    newest = max((restarts for restarts, _ in ends), default=0)
    return [code for restarts, code in ends if restarts == newest][-1:] == [0]


def _events(attempt: AttemptDirectory) -> Iterator[dict[str, Any]]:
    text = attempt.events.read_text() if attempt.events.exists() else ""
    for line in text.splitlines():
        # A line may be cut off, by a full disk.
        with suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict) and event.get("kind") in {"begin", "end"}:
                yield event


def where_and_with_what(run: RunDirectory) -> dict[str, object]:
    """Return what is recorded of the place and the programs of this job."""
    return {
        "host": socket.gethostname(),
        "user": _user(),
        "directory": str(run.path),
        "script_sha256": file_sha256(run.script),
        "software": software(),
        "machine": {"cpu": _cpu_model(), "cores": os.cpu_count(), "system": platform.platform()},
        "environment": recorded_environment(os.environ),
    }


def end(directory: Path, number: int, exit_code: int, task: int | None = None, *, interrupted: bool = False) -> int:
    """Record how the kernel ended, then what it left: a job that has to go may not get to the second.

    Parameters
    ----------
    interrupted
        Whether the job had been told to end before.
    """
    run, job = RunDirectory(directory), JobHere.from_environment(os.environ)
    attempt = run.attempt(number).task(task)
    interrupted = interrupted or (exit_code == 0 and _cut_off(attempt.progress_of(job.restarts)))
    append_event(attempt, "end", job, {"exit_code": exit_code} | ({"interrupted": True} if interrupted else {}))
    made = {"result": run.result_of(task), "report": run.report, "picture": run.picture}
    there = {kind: path for kind, path in made.items() if path.is_file()}
    if there:
        note(attempt, "outputs", job, lambda: {"outputs": [output(kind, path) for kind, path in there.items()]})
    return 0


def _cut_off(progress: Path) -> bool:
    """Whether a kernel hadn't come to its own end: mpirun that SLURM has ended with its node leaves with 0."""
    try:
        said = json.loads(progress.read_bytes())
    except FileNotFoundError:
        return False  # a step without a kernel
    except ValueError:
        return True
    return not isinstance(said, dict) or said.get("state") != "finished" or said.get("ended_because") == "terminated"


def output(kind: str, path: Path) -> dict[str, object]:
    """Return the identity of a file that the job made; of HDF5 files also the digest of their content."""
    try:
        made = {"kind": kind, "path": str(path), "size": path.stat().st_size, "sha256": file_sha256(path)}
        return made | (_content(path) if _is_hdf5(path) else {})
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # reading doesn't name the file


def _is_hdf5(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(HDF5_SIGNATURE)) == HDF5_SIGNATURE


def _content(path: Path) -> dict[str, object]:
    """Return the digest of what is in an HDF5 file, or why there is none."""
    try:
        from orchestrator.contents import content_digest  # noqa: PLC0415  this module must work without h5py

        return {"content_sha256": content_digest(path).sha256}
    except (ImportError, InvalidInput) as error:
        return {"content_sha256": None, "content_unknown_because": str(error)}


def recorded_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the part of an environment that is recorded."""
    wanted = {*RECORDED_VARIABLES, *RECORDED_SLURM_VARIABLES}
    return {
        name: value
        for name, value in sorted(environment.items())
        if name in wanted or name.startswith(RECORDED_PREFIXES)
    }


def software() -> dict[str, object]:
    """Return what runs here: interpreter, package versions, and this program's commit where it is a checkout."""
    installed = {}
    for package in RECORDED_PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    checkout = Path(__file__).resolve().parent.parent
    return {
        "python": platform.python_version(),
        "interpreter": sys.executable,
        "packages": installed,
        "modules": [name for name in os.environ.get("LOADEDMODULES", "").split(":") if name],
        **commit(checkout),
        **locked_environment(checkout),
        **container(os.environ),
    }


def locked_environment(checkout: Path) -> dict[str, object]:
    """Return the digest of the lock files that an installation was made by; empty where there are none."""
    locks = sorted((checkout / "requirements").glob("*.txt"))
    whole = hashlib.sha256()
    for lock in locks:
        whole.update(f"{lock.name} {file_sha256(lock)}\n".encode())
    return {"locks_sha256": whole.hexdigest()} if locks else {}


def installed_packages(path: Sequence[str]) -> str:
    """Return all installed packages with their versions, as ``pip freeze`` does, a line for each.

    The names of their folders are enough: to read what is in each of them takes a job a tenth of a second.
    """
    found: dict[str, str] = {}
    for folder in path:
        with suppress(OSError):
            for installed in Path(folder).glob("*.dist-info"):
                package, separator, version = installed.name.removesuffix(".dist-info").partition("-")
                if separator:
                    found.setdefault(package.lower().replace("_", "-"), version)
    return "".join(f"{package}=={version}\n" for package, version in sorted(found.items()))


def commit(checkout: Path, *, below: Path | None = None) -> dict[str, Any]:
    """Return the git commit of a checkout and whether it was changed since; empty where there is none.

    Parameters
    ----------
    below
        Only what was changed below this folder counts.
    """
    if not (checkout / ".git").exists():
        return {}
    git = ["git", "-c", f"safe.directory={checkout}", "-C", str(checkout)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=20)
        status = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no", "--", str(below or checkout)],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return {"commit": None, "commit_unknown_because": str(error)}
    return {"commit": head.stdout.strip(), "dirty": bool(status.stdout.strip())}


def file_sha256(path: Path) -> str:
    """Return a file's SHA-256 as lower-case hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _now() -> str:
    return datetime.now(UTC).isoformat()


def main(arguments: list[str] | None = None) -> int:
    """Run one of the two commands."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.injob", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("begin", "end"):
        command = commands.add_parser(name)
        command.add_argument("--run-directory", type=Path, required=True)
        command.add_argument("--attempt", type=int, required=True)
        command.add_argument("--task", type=int)
        if name == "begin":
            command.add_argument("--run-id", required=True)
            command.add_argument("--after", type=Path, action="append", default=[])
        else:
            command.add_argument("--exit-code", type=int, required=True)
            command.add_argument("--interrupted", action="store_true")
    options = parser.parse_args(arguments)
    try:
        if options.command == "begin":
            run_directory, run_id, attempt = options.run_directory, options.run_id, options.attempt
            return begin(run_directory, run_id, attempt, task=options.task, after=options.after)
        number, code, interrupted = options.attempt, options.exit_code, options.interrupted
        return end(options.run_directory, number, code, options.task, interrupted=interrupted)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: the run's directory can't be used: {error}\n")
        return EXIT_CANNOT_WRITE


if __name__ == "__main__":
    sys.exit(main())
