"""The files of a run's directory that are there before its job is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.provenance.documents import encoded, plan_to_json
from orchestrator.provenance.rows import PlannedRun
from orchestrator.records import BatchScript, Json
from orchestrator.runs import RunDirectory, make_durable, write_atomically


def write_directory(planned: PlannedRun, script: BatchScript) -> None:
    """Write all that is known of a run before its job into its directory; what the job needs is durable afterwards.

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
    # The only file that the job needs: SLURM keeps the script, the database all of it. Made durable under its name,
    # its folders are so too.
    array = planned.plan.array
    tasks: Sequence[int | None] = [None] if array is None else range(len(array.values))
    for task in tasks:
        attempt.task(task).path.mkdir(parents=True, exist_ok=True)
        parameters = _document(planned.plan.parameter_values(task))
        write_atomically(directory.parameters_of(task), parameters, durable=False)
    for task in tasks:
        make_durable(directory.parameters_of(task))


def _document(values: Mapping[str, Json]) -> str:
    """Return a JSON object with a line for each member: to indent it all would take five times as long."""
    lines = (f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in values.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"
