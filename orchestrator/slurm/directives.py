"""The ``#SBATCH`` lines of a script, as far as the local route honours them.

In: a script's text. Out: `Directives`, or a refusal that names the option. sbatch's rules are kept: only lines before
the first command count, and ``%`` patterns are replaced in file names. Source: sbatch(1) of SLURM 22.05.
"""

from __future__ import annotations

import getopt
import getpass
import re
import shlex
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import SubmitRefused
from orchestrator.slurm.arrays import task_numbers
from orchestrator.slurm.script_options import sbatch_lines, time_limit_s

_SHORT = {
    "A": "account", "C": "constraint", "D": "chdir", "J": "job-name", "N": "nodes", "a": "array",
    "c": "cpus-per-task", "e": "error", "n": "ntasks", "o": "output", "p": "partition", "q": "qos", "t": "time",
}  # fmt: skip
_WITH_VALUE = (
    "account", "array", "chdir", "comment", "constraint", "cpus-per-task", "error", "exclude", "export", "gpus",
    "gpus-per-node", "gpus-per-task", "gres", "hint", "job-name", "licenses", "mail-type", "mail-user", "mem",
    "mem-per-cpu", "nice", "nodelist", "nodes", "ntasks", "ntasks-per-node", "open-mode", "output", "partition", "qos",
    "reservation", "signal", "threads-per-core", "time", "time-min", "wckey",
)  # fmt: skip
_FLAGS = ("exclusive", "no-requeue", "requeue")
_KEPT_WITHOUT_EXPORT = ("HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ")
_PLAIN_PATH = "/usr/local/bin:/usr/bin:/bin"


@dataclass(frozen=True, kw_only=True)
class Directives:
    """What a script asks for itself. A cluster's other options mean nothing on one machine."""

    output: str = "slurm-%j.out"
    error: str | None = None
    chdir: Path | None = None
    time_limit_s: float | None = None
    export: str = "ALL"
    append: bool = True
    tasks: tuple[int, ...] = ()
    """Numbers of a job array's tasks; none for other jobs."""


MAX_ARRAY_SIZE = 1001
"""One more than the largest number a task may have; SLURM's default (MaxArraySize)."""


def read_directives(script: str) -> Directives:
    """Read the ``#SBATCH`` lines of a script.

    Raises
    ------
    SubmitRefused
        For an option that sbatch or this machine doesn't have, or a value that can't be read; the line is named.
    """
    if not script.startswith("#!"):
        raise SubmitRefused("this does not look like a batch script", remedy="it must begin with #!/bin/bash")
    values: dict[str, str] = {}
    for number, text in sbatch_lines(script):
        try:
            values |= _options(text)
        except (getopt.GetoptError, ValueError) as error:
            raise SubmitRefused(f"line {number}: #SBATCH{text}: {error}", remedy="correct the #SBATCH line") from error
    return Directives(
        output=values.get("output", Directives.output),
        error=values.get("error"),
        chdir=Path(values["chdir"]) if "chdir" in values else None,
        time_limit_s=time_limit_s(values["time"]) if "time" in values else None,
        export=values.get("export", Directives.export),
        append=values.get("open-mode", "append") == "append",
        tasks=_array(values.get("array", "")),
    )


def array_tasks(script: str) -> tuple[int, ...]:
    """Return the task numbers of a script's ``--array``; none when it isn't the script of an array."""
    lines = (text for _, text in sbatch_lines(script) if "-a" in text)
    found = [match for text in lines if (match := re.search(r"(?:^|\s)(?:--array[= ]|-a\s*)(\S+)", text))]
    return _array(found[-1][1]) if found else ()


def _array(text: str) -> tuple[int, ...]:
    numbers = task_numbers(text)
    if numbers and numbers[-1] >= MAX_ARRAY_SIZE:
        raise ValueError(f"--array: {numbers[-1]} is above the largest task number, {MAX_ARRAY_SIZE - 1}")
    return numbers


def _options(text: str) -> dict[str, str]:
    words = [re.sub(r"^--exclusive=.*", "--exclusive", word) for word in shlex.split(text, comments=True)]
    short = "".join(f"{letter}:" for letter in _SHORT)
    found, rest = getopt.getopt(words, short, [*(f"{name}=" for name in _WITH_VALUE), *_FLAGS])
    if rest:
        raise ValueError(f"{rest[0]} is no option")
    options = {_SHORT.get(name.lstrip("-"), name.lstrip("-")): value for name, value in found}
    if options.get("nodes", "1") not in {"1", "1-1"}:
        raise ValueError("--nodes: the local route has one node, this machine")
    if "time" in options:
        time_limit_s(options["time"])
    _array(options.get("array", ""))
    return options


def file_name(pattern: str, *, job_id: int, job_name: str, task: int | None = None) -> str:
    """Return a file name with sbatch's ``%`` patterns replaced."""
    if task is not None and pattern == Directives.output:
        pattern = "slurm-%A_%a.out"
    host = socket.gethostname().partition(".")[0]
    numbers = {"j": job_id, "J": job_id, "A": job_id, "a": task or 0, "n": 0, "s": 0, "t": 0}
    texts = {"x": job_name, "u": getpass.getuser(), "N": host, "h": host, "%": "%"}

    def replaced(found: re.Match[str]) -> str:
        width, letter = found.groups()
        return f"{numbers[letter]:0{width or 0}d}" if letter in numbers else texts[letter]

    return re.sub(r"%(\d{0,2})([%AJNahjnstux])", replaced, pattern)


def exported(environment: Mapping[str, str], export: str) -> dict[str, str]:
    """Return the job's environment as ``--export`` says: ``ALL``, ``NONE``, ``NIL``, or names with commas."""
    words = export.split(",")
    chosen = dict(environment) if "ALL" in words else _least(environment)
    for word in words:
        name, given, value = word.partition("=")
        if given:
            chosen[name] = value
        elif name in environment:
            chosen[name] = environment[name]
    return chosen


def _least(environment: Mapping[str, str]) -> dict[str, str]:
    kept = {name: environment[name] for name in _KEPT_WITHOUT_EXPORT if name in environment}
    return {"PATH": _PLAIN_PATH, **kept}
