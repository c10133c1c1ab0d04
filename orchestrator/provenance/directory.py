"""The files of a run's directory that are there before its job is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from orchestrator.provenance.documents import encoded, plan_to_json
from orchestrator.provenance.rows import PlannedRun
from orchestrator.records import BatchScript, Json
from orchestrator.runs import AttemptDirectory, RunDirectory, write_atomically


def write_plan(planned: PlannedRun) -> None:
    """Write what a run is to be into its directory, long before its job.

    Raises
    ------
    OSError
        As the file system says.
    """
    directory = RunDirectory(planned.plan.run_directory)
    directory.path.mkdir(parents=True, exist_ok=True)
    if planned.message is not None:
        write_atomically(directory.message, planned.message.body, durable=False)
    write_atomically(directory.plan, _document(plan_to_json(planned.plan)), durable=False)


def write_directory(planned: PlannedRun, script: BatchScript, *, rerun: str) -> Sequence[Path]:
    """Write all that is known of a run before its job into its directory.

    Parameters
    ----------
    rerun
        The script that makes the run again.

    Returns
    -------
    Sequence[Path]
        What the job needs: SLURM keeps the script, the database all of it. It has to be made durable before there may
        be a job; under its name, so that its folders are so too.

    Raises
    ------
    OSError
        As the file system says.
    """
    directory = RunDirectory(planned.plan.run_directory)
    attempt = directory.attempt(planned.tag.attempt)
    directory.path.mkdir(parents=True, exist_ok=True)
    for folder in (attempt.path.parent, attempt.path):
        folder.mkdir(exist_ok=True)
    files: dict[Path, bytes | str] = {
        directory.plan: _document(plan_to_json(planned.plan)),
        directory.template: script.template_text,
    }
    if planned.retry is not None:
        _keep_texts(directory, directory.attempt(planned.tag.attempt - 1))
        files[attempt.retry] = json.dumps(encoded(planned.retry), indent=2) + "\n"
    if planned.message is not None:
        files[directory.message] = planned.message.body
    for path, content in files.items():
        write_atomically(path, content, durable=False)
    for path, text in ((directory.script, script.text), (directory.rerun, rerun)):
        write_atomically(path, text, mode=0o755, durable=False)
    return _write_parameters(planned)


def _keep_texts(directory: RunDirectory, former: AttemptDirectory) -> None:
    """Keep the script and the template of the attempt before, whose place the new ones take."""
    for path, kept in ((directory.script, former.script), (directory.template, former.template)):
        # It is there since a try of this attempt that made no job; or somebody has removed what was to be kept.
        with suppress(FileExistsError, FileNotFoundError):
            kept.hardlink_to(path)


def _write_parameters(planned: PlannedRun) -> Sequence[Path]:
    """Write the parameter file, of a job array one for each task, whose folder is made as well."""
    directory, array = RunDirectory(planned.plan.run_directory), planned.plan.array
    tasks: Sequence[int | None] = [None] if array is None else range(len(array.values))
    needed = [directory.parameters_of(task) for task in tasks]
    for task, path in zip(tasks, needed, strict=True):
        directory.attempt(planned.tag.attempt).task(task).path.mkdir(parents=True, exist_ok=True)
        write_atomically(path, _document(planned.plan.parameter_values(task)), durable=False)
    return needed


def _document(values: Mapping[str, Json]) -> str:
    """Return a JSON object with a line for each member: to indent it all would take five times as long."""
    lines = (f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in values.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"
