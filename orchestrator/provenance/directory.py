"""The files of a run's directory that are there before its job is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.provenance.documents import encoded, plan_to_json
from orchestrator.provenance.rows import PlannedRun
from orchestrator.records import BatchScript, Json
from orchestrator.runs import RunDirectory, write_atomically


def write_directory(planned: PlannedRun, script: BatchScript) -> Sequence[Path]:
    """Write all that is known of a run before its job into its directory.

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
    write_atomically(directory.script, script.text, mode=0o755, durable=False)
    tasks: Sequence[int | None] = [None]
    if planned.plan.array is not None:
        tasks = range(len(planned.plan.array.values))
        for number in tasks:
            attempt.task(number).path.mkdir(parents=True, exist_ok=True)
    needed = [directory.parameters_of(task) for task in tasks]
    for task, path in zip(tasks, needed, strict=True):
        write_atomically(path, _document(planned.plan.parameter_values(task)), durable=False)
    return needed


def _document(values: Mapping[str, Json]) -> str:
    """Return a JSON object with a line for each member: to indent it all would take five times as long."""
    lines = (f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in values.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"
