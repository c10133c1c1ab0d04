"""The process in which libslurm is called: pyslurm, spoken to in lines of JSON.

Run as a file by the interpreter that has pyslurm (3.8 or newer), which needn't have the orchestrator: nothing of it is
imported here. In: a request per line on standard input, ``[conversation, begin by, [call, {argument: value}]]``. Out:
an answer per line on what was standard output, ``{"answer": …}`` or ``{"error": {…}}``, with what libslurm printed
meanwhile; the first line says which releases meet here, or that pyslurm can't be imported.

After a call that failed no other one of its conversation is made, nor one that waited beyond the time by which it was
to begin (of the monotonic clock, or null), nor any after that: the answer to those is null.

A call can hang, and holds the interpreter's lock all the time; the gateway then kills this process. It ends with the
service, even in the middle of a call: the first argument is the descriptor of a pipe whose other end the service holds.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_LIMITS = ("CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE", "MEMLOCK", "AS")
"""What sbatch hands over of its own limits; which of them a job gets is PropagateResourceLimits' business."""
_NO_LIMIT = 2**64 - 1
_ANY_NUMBER = "4294967294"
"""NO_VAL as text: of the number, or of nothing at all, pyslurm would make a 1."""
_BEFORE_SENDING = (ValueError, TypeError, OverflowError)
"""What pyslurm raises while it puts a job together; SLURM's own answers come as its RPCError."""
_STANDARD_ERROR = 2
_WITHOUT_EXIT_CODE = frozenset({"PENDING", "RUNNING", "SUSPENDED", "COMPLETED"})


def load() -> tuple[Any, Mapping[str, Any]]:
    """Import pyslurm, which reads slurm.conf, and say what was found."""
    # This file's folder has a module with pyslurm's name.
    here = Path(__file__).resolve().parent
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != here]
    os.environ["SLURM_BITSTR_LEN"] = "0"  # lists of array tasks are written whole
    try:
        pyslurm = importlib.import_module("pyslurm")
    except ImportError as error:
        return None, {"error": {"text": str(error), "missing": error.name or "pyslurm"}}
    year, month = pyslurm.slurm_api_version()[:2]
    return pyslurm, {"answer": {"pyslurm": pyslurm.__version__, "api": f"{year:02d}.{month:02d}"}}


class NotReadBack(Exception):
    """The job is there, its submit time isn't known."""

    def __init__(self, job_id: int, why: str) -> None:
        super().__init__(why)
        self.accepted = job_id


class Calls:
    """What may be asked for; every public method is a call."""

    def __init__(self, pyslurm: Any) -> None:
        self._pyslurm = pyslurm
        self._description = _description_of(pyslurm)

    def config(self) -> Mapping[str, Any]:
        """Return what is needed of the controller's configuration."""
        config = self._pyslurm.config().get()
        return {name: config.get(name) or "" for name in ("cluster_name", "version", "accounting_storage_type")}

    def submit(self, script: str, attributes: Mapping[str, Any], environment: Mapping[str, str]) -> Mapping[str, Any]:
        """Hand a script over; return the job's id and submit time (seconds since 1970)."""
        description = self._description(**attributes)
        with _as_file(script) as description.script, _environment(environment):
            job_id = description.submit()
        try:
            return {"id": job_id, "submit": self._pyslurm.Job.load(job_id).submit_time}
        except Exception as error:  # whatever it is, the job is there
            raise NotReadBack(job_id, str(error)) from error

    def jobs(
        self, uid: int, ids: list[int] | None = None, name: str | None = None, comment: str | None = None
    ) -> list[Mapping[str, Any]]:
        """Return a row for each of a user's jobs: those with `ids`, or with either `name` or `comment`."""
        wanted = set(ids or ())
        rows = []
        for job in self._pyslurm.Jobs.load().values():
            if job.user_id != uid or (ids is not None and not wanted & {job.id, job.array_id}):
                continue
            try:
                if ids is not None or job.name == name or job.comment == comment:
                    rows.append(self._row(job))
            except (UnicodeDecodeError, LookupError):
                continue  # a name that isn't UTF-8 is none of ours; a job that is gone by now is absent
        return rows

    def cancel(self, job_id: int) -> None:
        """End a job, of an array all tasks that are known."""
        for job in self._pyslurm.Jobs.load().values():
            if job_id in {job.id, job.array_id}:
                # pyslurm takes an older call's error for this one's.
                self._pyslurm.slurm_seterrno(0)
                job.cancel()

    def _row(self, job: Any) -> Mapping[str, Any]:
        return {
            "id": job.id, "array": job.array_id, "tasks": _tasks(job), "state": job.state,
            "reason": job.state_reason, "submit": job.submit_time, "start": job.start_time, "end": job.end_time,
            "exit": self._exit_code(job), "signal": job.exit_code_signal, "restarts": job.requeue_count,
            "nodes": job.allocated_nodes, "name": job.name, "comment": job.comment,
        }  # fmt: skip

    def _exit_code(self, job: Any) -> int:
        """Return the exit code; pyslurm takes 128 from those above 127, the older interface doesn't."""
        if job.exit_code_signal or job.state in _WITHOUT_EXIT_CODE:
            return int(job.exit_code)
        try:
            same = self._pyslurm.job().find_id(job.id)
        except ValueError as error:
            raise LookupError(job.id) from error
        return int(next(each["exit_code"] for each in same if each["job_id"] == job.id).partition(":")[0])


def _tasks(job: Any) -> str:
    if job.array_id is None:
        return ""
    # Number 0 comes as None.
    return job.array_tasks_waiting or str(job.array_task_id or 0)


def _description_of(pyslurm: Any) -> Any:
    class Description(pyslurm.JobSubmitDescription):  # type: ignore[misc]
        """pyslurm's, made to send what sbatch would: no numbers that weren't given, and the signal."""

        def _set_defaults(self) -> None:
            self.nodes: Any = self.nodes or {"min": _ANY_NUMBER, "max": _ANY_NUMBER}

        def _set_gres_binding(self) -> None:
            super()._set_gres_binding()
            self._set_signal()

    return Description


@contextmanager
def _as_file(text: str) -> Iterator[str]:
    """Give the script a path that nobody else can write to: as text pyslurm takes a short one only."""
    descriptor = os.memfd_create("script")
    try:
        with open(descriptor, "w", encoding="utf-8", newline="", closefd=False) as file:
            file.write(text)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Make the process's environment the job's, byte for byte, during the submission: libslurm takes it from there."""
    mask = os.umask(0)
    os.umask(mask)
    jobs = {**variables, "SLURM_SUBMIT_HOST": socket.gethostname(), "SLURM_UMASK": f"{mask:04o}"}
    jobs.update(SLURM_PRIO_PROCESS=str(os.getpriority(os.PRIO_PROCESS, 0)), **_limits())
    own = dict(os.environ)
    try:
        _become(jobs)
        yield
    finally:
        _become(own)


def _become(wanted: Mapping[str, str]) -> None:
    """Change what differs: most variables of a job are the process's own."""
    for name in os.environ.keys() - wanted.keys():
        del os.environ[name]
    for name, value in wanted.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def _limits() -> dict[str, str]:
    soft = {name: resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[0] for name in _LIMITS}
    return {f"SLURM_RLIMIT_{name}": str(_NO_LIMIT if limit == -1 else limit) for name, limit in soft.items()}


def _end_with(lifeline: int) -> None:
    """Have the kernel end this process, whatever holds the interpreter, when the other end of a pipe is closed.

    Nothing is ever written to that pipe: the signal would come for data too, and late.
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)


def answer(calls: Calls, call: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the answer to one request."""
    try:
        return {"answer": getattr(calls, call)(**arguments)}
    except Exception as error:  # noqa: BLE001 - every failure is told to the gateway, which knows what it means
        text, number = str(error), getattr(error, "errno", None)
        if isinstance(error, ValueError) and len(error.args) == 2:  # the older interface
            text, number = error.args
        built, accepted = not isinstance(error, _BEFORE_SENDING), getattr(error, "accepted", None)
        return {"error": {"said": text, "number": number, "built": built, "accepted": accepted}}


def answers(calls: Calls, requests: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    """Give the answer to each request."""
    over = None
    for line in requests:
        conversation, begin_by, (call, arguments) = json.loads(line)
        if begin_by is not None and time.monotonic() > begin_by:
            over = conversation
        said = {"answer": None} if conversation == over else answer(calls, call, arguments)
        if "error" in said:
            over = conversation
        yield {**said, "remarks": _remarks()}


def _remarks() -> str:
    """Return what libslurm printed since the last time."""
    size = os.fstat(_STANDARD_ERROR).st_size
    if size == 0:
        return ""
    text = os.pread(_STANDARD_ERROR, size, 0).decode(errors="replace")
    os.lseek(_STANDARD_ERROR, 0, os.SEEK_SET)
    os.ftruncate(_STANDARD_ERROR, 0)
    return text


def main() -> None:
    """Answer requests until there are no more."""
    channel = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(_STANDARD_ERROR, 1)
    _end_with(int(sys.argv[1]))
    pyslurm, said = load()
    channel.write(f"{json.dumps(said)}\n")
    channel.flush()
    if pyslurm is None:
        return
    for said in answers(Calls(pyslurm), sys.stdin):
        channel.write(f"{json.dumps(said)}\n")
        channel.flush()


if __name__ == "__main__":
    main()
