"""The files of a run's directory that are there before its job is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.provenance.documents import encoded, plan_to_json
from orchestrator.provenance.rows import PlannedRun
from orchestrator.records import BatchScript, Json
from orchestrator.runs import RunDirectory, write_atomically


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
        files[attempt.retry] = json.dumps(encoded(planned.retry), indent=2) + "\n"
    if planned.message is not None:
        files[directory.message] = planned.message.body
    for path, content in files.items():
        write_atomically(path, content, durable=False)
    for path, text in ((directory.script, script.text), (directory.rerun, rerun)):
        write_atomically(path, text, mode=0o755, durable=False)
    return _write_parameters(planned)


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
