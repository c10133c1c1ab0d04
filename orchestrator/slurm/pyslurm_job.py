"""What a submission becomes for pyslurm: attributes of its job description, and the job's environment.

In: a submission. Out: `Description`, or a refusal that names line and option. pyslurm's own reading of ``#SBATCH``
lines isn't used: it skips what it can't read, has no partition, and forgets signals. What sbatch (SLURM 22.05) makes
of the same lines is the measure: a test compares the two jobs. Pure.
"""

from __future__ import annotations

import math
import re
import signal as signals
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import SubmitRefused
from orchestrator.records import Json, Submission
from orchestrator.slurm.gateway import dependency
from orchestrator.slurm.script_options import ScriptOption, read_options, time_limit_s

_OTHER_ROUTES = 'leave it out; or take another route: gateway.route = "cli"'
_MIN_CPUS_LIMIT = 65534
"""pyslurm keeps the number of processors in 16 bits."""
_NO_MOST = "4294967294"
"""NO_VAL as text: of the number, or of nothing at all, pyslurm would make a 1."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """What the helper is asked to submit."""

    script: str
    attributes: dict[str, Json]
    """For ``pyslurm.JobSubmitDescription``."""
    environment: dict[str, str]


# ------------------------------------------------------------------------------------------------ values of options


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{text!r} is no whole number from 1 up")
    return int(text)


def _minutes(text: str) -> Json:
    seconds = time_limit_s(text)
    return "UNLIMITED" if not seconds else math.ceil(seconds / 60)


def _megabytes(text: str) -> int:
    found = re.fullmatch(r"(\d+)([KMGT]?)B?", text.upper())
    if found is None:
        raise ValueError(f"{text!r} is no number with the unit K, M, G or T")
    size = math.ceil(int(found[1]) * {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024**2}[found[2]])
    if size == 0:
        raise ValueError("all memory of a node can't be asked for through pyslurm")
    return size


def _signal(text: str) -> Json:
    found = re.fullmatch(r"(?:(?P<flags>[BR]{1,2}):)?(?P<name>\w+)(?:@(?P<time>\d+))?", text)
    if found is None:
        raise ValueError(f"{text!r} isn't [R][B]:signal@seconds")
    name, flags = found["name"].upper().removeprefix("SIG"), found["flags"] or ""
    try:
        number = int(name) if name.isdecimal() else int(signals.Signals[f"SIG{name}"])
    except KeyError:
        raise ValueError(f"{found['name']!r} is no signal") from None
    return {
        "signal": number, "time": int(found["time"] or 60), "batch_only": "B" in flags,
        "allow_reservation_overlap": "R" in flags,
    }  # fmt: skip


def _node_range(text: str) -> tuple[int, int] | None:
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    return (int(found[1]), int(found[2] or found[1])) if found else None


def _nodes(text: str) -> Json:
    least, most = _node_range(text) or (0, 0)
    if least < 1 or most < least:
        raise ValueError(f"{text!r} is no number of nodes like 2 or 2-4")
    return {"min": least, "max": most}


def _counted(text: str) -> str:
    """Give each generic resource its number, which sbatch lets people leave out."""
    parts = (part.removeprefix("gres:") for part in text.split(","))
    return ",".join(part if re.search(r":\d+$", part) else f"{part}:1" for part in parts)


def _gpus(text: str) -> Json:
    return int(text) if text.isdecimal() else _counted(text)


def _gpus_per_node(text: str) -> str:
    return ",".join(f"gpu:{part}" for part in text.split(","))


def _open_mode(text: str) -> str:
    modes = {"a": "append", "append": "append", "t": "truncate", "truncate": "truncate"}
    if text not in modes:
        raise ValueError(f"{text!r} is neither append nor truncate")
    return modes[text]


def _sharing(text: str) -> str:
    return "no" if text == "exclusive" else text


_ATTRIBUTES: dict[str, tuple[str, Callable[[str], Json]]] = {
    "account": ("account", str),
    "array": ("array", str),
    "begin": ("begin_time", str),
    "chdir": ("working_directory", str),
    "cluster-constraint": ("cluster_constraints", str),
    "comment": ("comment", str),
    "constraint": ("constraints", str),
    "cpus-per-task": ("cpus_per_task", _count),
    "dependency": ("dependencies", str),
    "error": ("standard_error", str),
    "exclude": ("excluded_nodes", str),
    "exclusive": ("resource_sharing", _sharing),
    "gpus": ("gpus", _gpus),
    "gpus-per-node": ("gres_per_node", _gpus_per_node),
    "gpus-per-task": ("gpus_per_task", _gpus),
    "gres": ("gres_per_node", _counted),
    "hold": ("priority", lambda _text: 0),
    "input": ("standard_in", str),
    "job-name": ("name", str),
    "licenses": ("licenses", str),
    "mail-type": ("mail_types", lambda text: None if text == "NONE" else text),
    "mail-user": ("mail_user", str),
    "mem": ("memory_per_node", _megabytes),
    "mem-per-cpu": ("memory_per_cpu", _megabytes),
    "nice": ("nice", int),
    "no-requeue": ("is_requeueable", lambda _text: False),
    "nodelist": ("required_nodes", str),
    "nodes": ("nodes", _nodes),
    "ntasks": ("ntasks", _count),
    "ntasks-per-node": ("ntasks_per_node", _count),
    "open-mode": ("log_files_open_mode", _open_mode),
    "output": ("standard_output", str),
    "partition": ("partitions", str),
    "qos": ("qos", str),
    "requeue": ("is_requeueable", lambda _text: True),
    "reservation": ("reservations", str),
    "signal": ("signal", _signal),
    "threads-per-core": ("threads_per_core", _count),
    "time": ("time_limit", _minutes),
    "time-min": ("time_limit_min", _minutes),
    "tmp": ("temporary_disk_per_node", _megabytes),
    "wckey": ("wckey", str),
}
_TOLD = {
    "cpus-per-task": "SLURM_CPUS_PER_TASK", "gpus": "SLURM_GPUS", "gpus-per-node": "SLURM_GPUS_PER_NODE",
    "gpus-per-task": "SLURM_GPUS_PER_TASK", "ntasks": "SLURM_NTASKS", "ntasks-per-node": "SLURM_NTASKS_PER_NODE",
    "threads-per-core": "SLURM_THREADS_PER_CORE", "export": "SLURM_EXPORT_ENV",
}  # fmt: skip
"""Options that sbatch itself tells the job."""


# ----------------------------------------------------------------------------------------------------- the whole job


def describe(submission: Submission, environment: Mapping[str, str]) -> Description:
    """Say what to submit so that the job is the one that sbatch would make.

    Raises
    ------
    SubmitRefused
        For an option or a value that sbatch doesn't know, or that pyslurm can't hand on.
    """
    script, folder = submission.script.text, submission.working_directory
    options = read_options(script)
    _look_at(script)
    attributes = dict(_attribute(option) for option in options.values() if option.name != "export")
    attributes["working_directory"] = str(folder / str(attributes.get("working_directory", "")))
    attributes |= {"name": submission.tag.job_name, "comment": submission.tag.comment}
    attributes |= _numbers(options)
    if submission.after:
        attributes |= {"dependencies": dependency(submission.after), "kill_on_invalid_dependency": True}
    told = _told(options, attributes, folder)
    defaults: dict[str, Json] = {"standard_in": "/dev/null", "environment": "ALL"}
    return Description(script=script, attributes=defaults | attributes, environment=exported(environment, told))


def _look_at(script: str) -> None:
    for character, name in (("\r", "carriage return"), ("\0", "zero byte")):
        if character in script:
            line = script[: script.index(character)].count("\n") + 1
            raise SubmitRefused(f"line {line} of the script has a {name}", remedy="write it as an escape sequence")


def _attribute(option: ScriptOption) -> tuple[str, Json]:
    if option.name not in _ATTRIBUTES:
        raise option.refused(f"--{option.name} can't be asked for through pyslurm", remedy=_OTHER_ROUTES)
    attribute, convert = _ATTRIBUTES[option.name]
    try:
        return attribute, convert(option.value)
    except ValueError as error:
        raise option.refused(str(error)) from error


def _numbers(options: Mapping[str, ScriptOption]) -> dict[str, Json]:
    """Return tasks, nodes and processors as sbatch completes them."""
    given = {name: option.value for name, option in options.items()}
    tasks = _count(given["ntasks"]) if "ntasks" in given else None
    least, most = _node_range(given.get("nodes", "")) or (hosts(given.get("nodelist", "")), None)
    if tasks is not None and tasks < least:
        if "nodelist" in options:
            raise options["nodelist"].refused("it names more nodes than there are tasks")
        least = most = tasks
    numbers: dict[str, Json] = {"nodes": {"min": least, "max": most or _NO_MOST}} if least else {}
    if tasks is None and "ntasks-per-node" in given:
        tasks = numbers["ntasks"] = max(least, 1) * _count(given["ntasks-per-node"])
    processors = (tasks or max(least, 1)) * int(given.get("cpus-per-task", 1))
    if processors > _MIN_CPUS_LIMIT:
        raise SubmitRefused(f"pyslurm can't ask for {processors} processors", remedy=_OTHER_ROUTES)
    # pyslurm's name for it; it is the number for the whole job.
    return numbers | {"min_cpus_per_node": processors}


def hosts(node_list: str) -> int:
    """Return how many nodes ``n[1-4,7],m2`` has."""
    total = 0
    for name in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", node_list):
        count = 1
        for ranges in re.findall(r"\[([^\]]*)\]", name):
            pairs = (part.partition("-") for part in ranges.split(","))
            count *= sum(int(last or first) - int(first) + 1 for first, _, last in pairs)
        total += count
    return total


def _told(options: Mapping[str, ScriptOption], attributes: Mapping[str, Json], folder: Path) -> dict[str, str]:
    told = {variable: options[name].value for name, variable in _TOLD.items() if name in options}
    if told.get("SLURM_EXPORT_ENV") == "ALL":
        del told["SLURM_EXPORT_ENV"]
    if "log_files_open_mode" in attributes:
        told["SLURM_OPEN_MODE"] = str(attributes["log_files_open_mode"])[0]
    if "SLURM_NTASKS" in told:
        told["SLURM_NPROCS"] = told["SLURM_NTASKS"]
    return told | {"SLURM_JOB_NAME": str(attributes["name"]), "SLURM_SUBMIT_DIR": str(folder)}


def exported(environment: Mapping[str, str], told: Mapping[str, str]) -> dict[str, str]:
    """Return the job's environment as ``--export`` says, with what sbatch itself tells the job."""
    words = told.get("SLURM_EXPORT_ENV", "ALL").split(",")
    if "ALL" in words:
        chosen = dict(environment)
    else:
        chosen = {name: value for name, value in environment.items() if name.startswith("SLURM_")}
    for word in words:
        name, given, value = word.partition("=")
        if given:
            chosen[name] = value
        elif name in environment:
            chosen[name] = environment[name]
    # Then the node takes what the user's login gives.
    login = {} if words in (["ALL"], ["NIL"]) else {"SLURM_GET_USER_ENV": "1"}
    return chosen | dict(told) | login
