"""The script that makes a run again: ``rerun.sbatch`` in the run's directory.

A scientist reads it, edits the block at its top, and hands it to sbatch. It holds no program: it asks
`orchestrator.rerunning` to make a new run's directory, from the parent's record and the edits, and goes on with the
script of that run. So the new job does what the parent's did, by the parent's own template.

The parameters stand in it as ``name = value``, values as JSON; `read_parameters` reads them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from orchestrator.errors import InvalidInput
from orchestrator.records import BatchScript, JobPlan, Json, RerunTag
from orchestrator.rendering.shell_quoting import quote
from orchestrator.sbatch_options import directive

LOG = "rerun-{job_id}.log"
"""What such a script prints, where it was handed over."""
SAID = ("The new run is in ", "; what its job prints ")
"""Before and after the new directory, in a line of that."""

EXIT_NO_MODULE = 69
"""With which it ends where a module can't be loaded."""

END_OF_PARAMETERS = "END_OF_PARAMETERS"

_OWN_OPTIONS = ("job-name", "comment", "chdir", "output", "open-mode")
"""What a job has of its own; everything else is asked for as the parent did."""
_DIRECTIVE = re.compile(r"#SBATCH --([a-z-]+)")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NAME = re.compile(rf"[ \t]*({_IDENTIFIER.pattern})[ \t]*=[ \t]*")
_REST_OF_LINE = re.compile(r"[ \t]*(#.*)?(?=\n|\Z)")


def rerun_script(plan: JobPlan, script: BatchScript, *, root: Path, drop: Path) -> str:
    """Return the script that makes a run again.

    Parameters
    ----------
    plan, script
        The run's, and the script of its newest attempt, whose options of sbatch it takes over.
    root
        Where the new run's directory is made.
    drop
        The folder in which it leaves word for the service.
    """
    tag = RerunTag(parent=plan.run_id)
    return f"""#!/bin/bash
# Makes a run again:  sbatch {_comment(quote(f"{plan.run_directory}/rerun.sbatch"))}
#
#   run        {plan.run_id}
#   recipe     {_comment(plan.recipe)}, kernel {_comment(plan.kernel)}
#   collection {_comment(plan.collection.uid)}
#
# From any login node, by whoever may read the input. Copy this file if you want to change something: the block below,
# and what SLURM is asked for. The new run gets a directory of its own with this one as its parent, and what you change
# is recorded as yours. The service and its database needn't run.{_without_slurm(plan)}
{directive("job-name", tag.job_name)}
{directive("comment", tag.comment)}
#SBATCH --output={LOG.replace("{job_id}", "%j")}
{chr(10).join(_taken_over(script.text))}

# ------------------------------------------------------------------------------------------- what you may change

# The kernel's parameters: text in double quotes, numbers, true, false, null, lists in []. Behind each stands who had
# decided it. A line that is taken out means the kernel's default. All there are: {_schema_of(plan.kernel)}
parameters() {{ cat << '{END_OF_PARAMETERS}'
{chr(10).join(_parameter_lines(plan))}
{END_OF_PARAMETERS}
}}
input={quote(str(plan.collection.file))}
dataset={quote(plan.collection.dataset)}
# Why you run it again, in a few words; it stands in the record.
because=
# A job template of your own in place of the parent's; empty for the parent's.
template=
# The new run's directory is made below this folder; where you may not write there, below ~/orchestrator-reruns.
root={quote(str(root))}

# ------------------------------------------------------------------------------------------- from here on: as it is

parent={quote(str(plan.run_directory))}
python={quote(str(plan.python))}
drop={quote(str(drop))}
# --export=NONE would be inherited by job steps.
export SLURM_EXPORT_ENV=ALL PYTHONSAFEPATH=1
{_modules(plan.modules)}{_job(plan)}
run=$(parameters | "$python" -m orchestrator.rerunning --parent "$parent" --script "$0" --input "$input" \\
    --dataset "$dataset" --because "$because" --template "$template" --root "$root" --drop "$drop") || exit
echo "{SAID[0]}$run{SAID[1]}is in attempts/1/job.log there."
cd "$run" || exit
exec bash script.sbatch >> attempts/1/job.log 2>&1
"""


def _without_slurm(plan: JobPlan) -> str:
    return " Without SLURM: bash rerun.sbatch" if plan.array is None else ""


def _job(plan: JobPlan) -> str:
    """Return the lines that say which job this is."""
    if plan.array is None:
        here = '[ -n "${SLURM_JOB_ID:-}" ] || export ORCHESTRATOR_LOCAL_JOB_ID=$$'
        return f"# Without SLURM this process is the job.\n{here}"
    refuse = '{ echo "error: the run is a job array: hand this script to sbatch" >&2; exit 2; }'
    return f'[ -n "${{SLURM_ARRAY_TASK_ID:-}}" ] || {refuse}'


def _taken_over(script: str) -> list[str]:
    lines = [line for line in script.split("\n") if line.startswith("#SBATCH ")]
    return [line for line in lines if (match := _DIRECTIVE.match(line)) is None or match[1] not in _OWN_OPTIONS]


def _comment(text: str) -> str:
    """Return text that can't leave its line."""
    return text if text.isprintable() else ascii(text)


def _schema_of(kernel: str) -> str:
    return f"orchestrator schema kernel/{_comment(kernel)}"


def _parameter_lines(plan: JobPlan) -> Iterator[str]:
    array = "" if plan.array is None else plan.array.parameter
    texts = [(parameter, _value(parameter.value)) for parameter in plan.parameters]
    width = max((len(f"{parameter.name} = {text}") for parameter, text in texts if len(text) < 40), default=0)
    for parameter, text in texts:
        each = "; a task for each, see --array above" if parameter.name == array else ""
        if not _IDENTIFIER.fullmatch(parameter.name):
            yield f"# {parameter.name!a} is no name of a parameter"
            continue
        yield f"{f'{parameter.name} = {text}':{width}}  # {parameter.origin}{each}"


def _value(value: Json) -> str:
    """Return a value on one line that a file can hold: half of a surrogate pair is no text, and stays escaped."""
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(value)


def _modules(modules: Sequence[str]) -> str:
    words = " ".join(map(quote, modules))
    failed = f'{{ echo "error: a module could not be loaded" >&2; exit {EXIT_NO_MODULE}; }}'
    return f"module load {words} || {failed}\n" if modules else ""


def read_parameters(text: str) -> Mapping[str, Json]:
    """Read the block of parameters.

    Raises
    ------
    InvalidInput
        Naming the line of the block and the remedy.
    """
    values: dict[str, Json] = {}
    place = 0
    while place < len(text):
        end = _REST_OF_LINE.match(text, place)
        if end is not None:  # blank, or a comment
            place = end.end() + 1
            continue
        name = _NAME.match(text, place)
        if name is None:
            raise _invalid(text, place, "isn't name = value")
        try:
            value, place = _DECODER.raw_decode(text, name.end())
        except (ValueError, RecursionError) as error:
            raise _invalid(text, name.end(), f"the value of {name[1]} isn't JSON: {error}") from error
        end = _REST_OF_LINE.match(text, place)
        if end is None:
            raise _invalid(text, place, f"something stands behind the value of {name[1]}")
        if name[1] in values:
            raise _invalid(text, name.start(), f"{name[1]} is there a second time")
        values[name[1]], place = value, end.end() + 1
    return values


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} isn't a value")


def _finite(number: str) -> float:
    if math.isinf(value := float(number)):
        raise ValueError(f"{number} is too large")
    return value


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)


def read_value(text: str) -> Json:
    """Return one value from its JSON; `ValueError` when it is none."""
    value: Json = _DECODER.decode(text)
    return value


def _invalid(text: str, place: int, what: str) -> InvalidInput:
    number = text.count("\n", 0, place) + 1
    line = text.split("\n")[number - 1].strip()
    return InvalidInput(
        f"parameters, line {number} ({line[:80]!r}): {what}",
        remedy='write for example bins = 500, unit = "q_A^-1", mask = null, or radial_range = [0.5, 4]',
    )
