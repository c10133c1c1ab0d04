"""Inside the job of a ``rerun.sbatch``: the new run's directory, made from the parent's record and the edits.

    parameters | python -m orchestrator.rerunning --parent DIR --script FILE --input FILE --dataset PATH
        --because TEXT --template FILE --root DIR --drop DIR

Prints the new run's directory, in which everything is as the service would have made it; what is left is to run its
script. Needs neither the service nor its database. For them a file is left in the drop folder, whose owner is the
requester; where that isn't possible, a line on standard error says so and the run goes on: the service finds its job
in SLURM by its name (`orchestrator.unreported`). The job takes the comment that the service looks for.

A job that SLURM requeues is the same run again. Exit codes: 2 an edit is wrong, or the parent's record can't be used;
74 the new directory can't be written.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pwd
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.errors import InvalidInput, OrchestratorError, RunDirectoryUnavailable
from orchestrator.injob import EXIT_CANNOT_WRITE, JobHere
from orchestrator.kernel_parameters import check_parameters
from orchestrator.planning import repeated
from orchestrator.provenance import PlannedRun, plan_from_json, write_directory
from orchestrator.records import (
    JobIdentity,
    JobPlan,
    Json,
    RawMessage,
    RerunTag,
    Resources,
    Retries,
    RunTag,
    utc_now,
)
from orchestrator.rendering import render_recorded, rerun_script
from orchestrator.rendering.rerun import read_parameters
from orchestrator.rendering.template_folder import joined_texts, texts_by_name
from orchestrator.runs import RunDirectory, make_durable, write_atomically
from orchestrator.slurm.cli import CliGateway
from orchestrator.slurm.gateway import CLOCK_JUMP

_NAMESPACE = uuid.UUID("5f0f7f0c-7f0c-5b1c-8d86-2f6f3b0f9a77")
EXIT_WRONG_EDIT = 2
HOME_FOLDER = "orchestrator-reruns"
"""Below the requester's home, for those who may not write where the script says."""
ATTEMPT = 1
_BACKUP = "take the file from a backup of the run's directory"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the script hands over."""

    parent: Path
    script: Path
    input: Path
    dataset: str
    because: str
    template: Path | None
    root: Path
    drop: Path


def make_again(request: Request, parameters: str, job: JobHere) -> JobPlan:
    """Make the directory of the run that a job is, unless an earlier start of the job has made it; return its plan.

    Raises
    ------
    InvalidInput
        When the parent's record or an edit can't be used.
    RunDirectoryUnavailable
        When the new directory can't be written.
    """
    if not request.script.is_file():
        raise InvalidInput(f"{request.script}: isn't this script", remedy="hand it to bash or sbatch as a file")
    for name, value in (("input", request.input), ("dataset", request.dataset), ("root", request.root)):
        _check_encoding(name, str(value))
    parent = RunDirectory(request.parent)
    before = read_plan(parent)
    plan = _plan(request, before, read_parameters(parameters), job)
    directory = RunDirectory(plan.run_directory)
    if not directory.submitted.exists():
        check_parameters([plan])
        try:
            _write(plan, parent, request)
        except OSError as error:
            raise RunDirectoryUnavailable(
                f"{error.filename or directory.path}: {error.strerror}",
                remedy="correct root= in the script: a folder with space, in which you may write",
            ) from error
    return plan


def _check_encoding(name: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(
            f"{name}= in the script: {value!a} isn't UTF-8, which scripts and records are written in",
            remedy="rename it, or give a link to it whose name is UTF-8",
        ) from error


def read_plan(run: RunDirectory) -> JobPlan:
    """Return what was planned for a run, from its directory.

    Raises
    ------
    InvalidInput
        When it isn't there or can't be read; with the remedy.
    """
    try:
        text = run.plan.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            f"{run.plan}: {error}", remedy="if the run's directory was moved, correct parent= in the script"
        ) from error
    return parse_plan(run.plan, text)


def parse_plan(file: Path, text: str) -> JobPlan:
    """Return a plan from its file's text; `InvalidInput`, naming the file, when it isn't one."""
    try:
        return plan_from_json(json.loads(text))
    except ValueError as error:
        raise InvalidInput(f"{file}: {error}", remedy=_BACKUP) from error
    except InvalidInput as error:
        raise InvalidInput(f"{file}: {error}", remedy=error.remedy or _BACKUP) from error


def _plan(request: Request, before: JobPlan, parameters: Mapping[str, Json], job: JobHere) -> JobPlan:
    root = writable(request.root)
    for number in itertools.count():
        plan = repeated(
            before,
            parameters,
            run_id=rerun_id(before.run_id, job.cluster, job.job_id, number),
            root=root,
            requester=user_name(os.getuid()),
            because=request.because,
            file=request.input,
            dataset=request.dataset,
            template=None if request.template is None else request.template.name,
            resources=_resources(before.resources, os.environ),
        )
        _check_tasks(plan, os.environ)
        if not _is_another_job(RunDirectory(plan.run_directory), request, job):
            # The service can't submit as this user, so it tries nothing again.
            return replace(plan, retries=Retries(), submit_as=None)
    raise AssertionError("numbers end")


def rerun_id(parent: str, cluster: str, job_id: str, number: int = 0) -> str:
    """Return the id of the run that a job makes of another one; `number` counts the jobs that have had the same id."""
    return str(uuid.uuid5(_NAMESPACE, f"{parent} {cluster} {job_id} {number}"))


def _check_tasks(plan: JobPlan, environment: Mapping[str, str]) -> None:
    """See that a job array has a task for each value: whoever edits the list has to edit ``--array`` too."""
    tasks, array = environment.get("SLURM_ARRAY_TASK_COUNT"), plan.array
    if array is not None and tasks not in {None, str(len(array.values))}:
        raise InvalidInput(
            f"parameter {array.parameter} has {len(array.values)} values, and the job array has {tasks} tasks",
            remedy=f"write #SBATCH --array={array.slurm}",
        )


def _is_another_job(run: RunDirectory, request: Request, job: JobHere) -> bool:
    """Whether a directory was made for another job, which had the same id before SLURM's counter began anew."""
    if not run.submitted.exists():
        return False
    again = job.restarts > 0 or "SLURM_ARRAY_JOB_ID" in os.environ
    return not again or run.submitted.read_bytes() != request.script.read_bytes()


def _resources(planned: Resources, environment: Mapping[str, str]) -> Resources:
    """Return what this job has got, as far as SLURM says so: who edits ``#SBATCH`` lines means the new run."""

    def number(name: str, default: int | None) -> int | None:
        return int(text) if (text := environment.get(name, "")).isdigit() else default

    return replace(
        planned,
        ntasks=number("SLURM_NTASKS", planned.ntasks) or 1,
        nodes=number("SLURM_JOB_NUM_NODES", planned.nodes) if planned.nodes else None,
        cpus_per_task=number("SLURM_CPUS_PER_TASK", planned.cpus_per_task) or 1,
        memory_mb=number("SLURM_MEM_PER_NODE", planned.memory_mb),
        partition=environment.get("SLURM_JOB_PARTITION", planned.partition),
        account=environment.get("SLURM_JOB_ACCOUNT", planned.account),
        qos=environment.get("SLURM_JOB_QOS", planned.qos),
    )


def _write(plan: JobPlan, parent: RunDirectory, request: Request) -> None:
    script = render_recorded(plan, ATTEMPT, _template_text(parent, request.template))
    message = None
    if parent.message.exists():
        message = RawMessage(body=parent.message.read_bytes(), source=f"run:{plan.parent_run}")
    planned = PlannedRun(
        plan=plan,
        tag=RunTag(run_id=plan.run_id, attempt=ATTEMPT),
        message=message,
        live=False,
        created_at=utc_now(),
        reason="",
    )
    rerun = rerun_script(plan, script, root=request.root, drop=request.drop)
    for path in write_directory(planned, script, rerun=rerun):
        make_durable(path)
    directory = RunDirectory(plan.run_directory)
    if parent.collection_end.exists():
        write_atomically(directory.collection_end, parent.collection_end.read_bytes())
    write_atomically(directory.submitted, request.script.read_bytes())  # last: says that all the others are there


def _template_text(parent: RunDirectory, own: Path | None) -> str:
    """Return the parent's templates, in one text as they were recorded; with `own` in the place of one, or added."""
    try:
        recorded = parent.template.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{parent.template}: {error}", remedy="correct parent= in the script") from error
    if own is None:
        return recorded
    try:
        return joined_texts(texts_by_name(recorded) | {own.name: own.read_text()})
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{own}: {error}", remedy="correct template= in the script") from error


def writable(root: Path) -> Path:
    """Return a folder for runs in which this user may write: the given one, or one at home."""
    there = next(path for path in (root, *root.parents) if path.exists())
    return root if os.access(there, os.W_OK | os.X_OK) else Path.home() / HOME_FOLDER


def user_name(uid: int) -> str:
    """Return a user's name; the number of one that this machine doesn't know."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


# ------------------------------------------------------------------------------------------- word for the service


def leave_word(plan: JobPlan, job: JobHere, request: Request) -> None:
    """Tell the service where the run is, if only by a file that it finds later.

    Raises
    ------
    OSError
        When the drop folder can't be written.
    """
    identity = _known_to_slurm(plan) if job.job_id.isdigit() and "SLURM_JOB_ID" in os.environ else None
    told = {
        "run_id": plan.run_id,
        "run_directory": str(plan.run_directory),
        "parent_directory": str(request.parent),
        "cluster": job.cluster if identity is None else identity.cluster,
        "job_id": int(job.job_id),
        "submitted_at": (utc_now().replace(microsecond=0) if identity is None else identity.submitted_at).isoformat(),
        "slurm": "SLURM_JOB_ID" in os.environ,
    }
    write_atomically(request.drop / f"{plan.run_id}.json", json.dumps(told, indent=2) + "\n")


def _known_to_slurm(plan: JobPlan) -> JobIdentity | None:
    """Give the job the comment of its run, and return its identity; None where SLURM doesn't do that.

    Its name goes on saying which run was made again, or says so from now on: not every accounting keeps comments.
    """
    tag = RunTag(run_id=plan.run_id, attempt=ATTEMPT)
    name = RerunTag(parent=str(plan.parent_run)).job_name
    job_id = os.environ.get("SLURM_ARRAY_JOB_ID", os.environ["SLURM_JOB_ID"])
    update = ["scontrol", "update", f"JobId={job_id}", f"Name={name}", f"Comment={tag.comment}"]
    try:
        subprocess.run(update, check=True, capture_output=True, text=True, timeout=30)
        found = CliGateway(query_timeout_s=30).find(tag, since=utc_now() - CLOCK_JUMP)
    except subprocess.CalledProcessError as error:
        _warn(f"the job couldn't take the comment {tag.comment!r}: {error.stderr.strip()}")
    except (OSError, subprocess.SubprocessError, OrchestratorError) as error:
        _warn(f"SLURM couldn't be asked about this job: {error}")
    else:
        return next((report.identity for report in found if str(report.identity.job_id) == job_id), None)
    return None


def _warn(text: str) -> None:
    sys.stderr.write(f"warning: {text}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.rerunning", description=__doc__.splitlines()[0])
    for name in ("parent", "script", "input", "root", "drop"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("dataset", "because", "template"):
        parser.add_argument(f"--{name}", required=name == "dataset", default="")
    given = vars(parser.parse_args(arguments))
    # Whoever wrote it in another encoding is understood all the same.
    given["because"] = os.fsencode(given["because"]).decode(errors="backslashreplace")
    request = Request(**given | {"template": Path(given["template"]) if given["template"] else None})
    job = JobHere.from_environment(os.environ)
    try:
        plan = make_again(request, sys.stdin.read(), job)
    except RunDirectoryUnavailable as error:
        return _refuse(error, EXIT_CANNOT_WRITE)
    except OrchestratorError as error:
        return _refuse(error, EXIT_WRONG_EDIT)
    try:
        leave_word(plan, job, request)
    except OSError as error:
        _warn(f"{request.drop}: {error.strerror}: no word for the service; it looks for this job in SLURM")
    sys.stdout.write(f"{plan.run_directory}\n")
    return 0


def _refuse(error: OrchestratorError, code: int) -> int:
    sys.stderr.write(f"error: {error}\n" + (f"remedy: {error.remedy}\n" if error.remedy else ""))
    return code


if __name__ == "__main__":
    sys.exit(main())
