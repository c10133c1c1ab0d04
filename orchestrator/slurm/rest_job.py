"""From a script's ``#SBATCH`` options to slurmrestd's description of a job, in each version of its API. Pure.

slurmrestd doesn't read the script: what stands on its ``#SBATCH`` lines must be said again, in JSON. Up to 0.0.38 the
values are sbatch's own texts; from 0.0.39 on they have types (numbers as ``{set, infinite, number}``, lists of flags).
An option that a version can't say is refused with its line: nothing is left out silently. Source: ``job_params`` of
openapi v0.0.38 and ``PARSER_ARRAY(JOB_DESC_MSG)`` of data_parser v0.0.39 to v0.0.45, SLURM 22.05 to 26.05.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime

from orchestrator.records import Json, Submission
from orchestrator.slurm.directives import exported
from orchestrator.slurm.environment import for_jobs
from orchestrator.slurm.gateway import dependency
from orchestrator.slurm.rest_versions import FIRST_TYPED, SCRIPT_IN_JOB, ApiVersion
from orchestrator.slurm.script_options import ScriptOption, read_options, time_limit_s

Part = Mapping[str, Json]

_MEMORY = re.compile(r"(\d+)([KMGT]?)B?", re.IGNORECASE)
_IN_MB = {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024**2}
_MAIL = {
    "BEGIN": "BEGIN", "END": "END", "FAIL": "FAIL", "REQUEUE": "REQUEUE", "TIME_LIMIT": "TIME=100%",
    "TIME_LIMIT_90": "TIME=90%", "TIME_LIMIT_80": "TIME=80%", "TIME_LIMIT_50": "TIME=50%", "STAGE_OUT": "STAGE_OUT",
    "ARRAY_TASKS": "ARRAY_TASKS", "INVALID_DEPEND": "INVALID_DEPENDENCY",
}  # fmt: skip
_MAIL_ALL = ("BEGIN", "END", "FAIL", "REQUEUE", "INVALID_DEPEND", "STAGE_OUT")
_SIGNAL_TIME_S = 60
_FOR_THE_SCRIPT = re.compile(r"R?BR?:(?:SIG)?(?P<name>[A-Z0-9]+)(?:@(?P<time>\d+))?", re.IGNORECASE)
TERM_AFTER = "ORCHESTRATOR_TERM_AFTER_S"
"""Variable with the seconds after which a script sends itself TERM."""
_OURS = frozenset({"SLURM_CONF", "SLURM_JWT"})
"""How the service reaches the cluster is no business of the job's, and a token least of all."""


def job_request(submission: Submission, version: ApiVersion, environment: Mapping[str, str], *, own: bool) -> Json:
    """Return the document that submits a job.

    Parameters
    ----------
    environment
        The submitter's.
    own
        Whether the job is to belong to the submitter. Somebody else's job starts from that user's login environment,
        whatever ``--export`` says.

    Raises
    ------
    SubmitRefused
        When the script has an option that can't be read, or that this version of the API can't say.
    """
    options = read_options(submission.script.text)
    job: dict[str, Json] = {
        # The script's own --chdir decides; name and comment are what the job is found by.
        "current_working_directory": str(submission.working_directory),
        **_described(options, version),
        "name": submission.tag.job_name,
        "comment": submission.tag.comment,
        **_after(submission, version),
    }
    export = options["export"].value if "export" in options else "ALL"
    variables = _environment(environment, export if own else "NONE", str(job["current_working_directory"]))
    variables |= _told_by_itself(options, version, submission.script.text)
    if export != "ALL":
        variables["SLURM_EXPORT_ENV"] = export
    if version >= FIRST_TYPED:
        job["environment"] = [f"{name}={value}" for name, value in variables.items()]
    else:
        job["environment"] = dict(variables)
    script = submission.script.text
    return {"job": {**job, "script": script}} if version >= SCRIPT_IN_JOB else {"job": job, "script": script}


def _environment(environment: Mapping[str, str], export: str, folder: str) -> dict[str, str]:
    """Return the job's variables as sbatch would send them; ``SLURM_GET_USER_ENV`` adds the login environment."""
    said = {"SLURM_SUBMIT_DIR": folder}
    if export == "NIL":
        return said
    if export == "NONE":
        return {**said, "SLURM_GET_USER_ENV": "1"}
    sent = {name: value for name, value in for_jobs(environment).items() if name not in _OURS}
    if "ALL" in export.split(","):
        return exported(sent, export) | said
    named = {word.partition("=")[0] for word in export.split(",")}
    chosen = {name: value for name, value in exported(sent, export).items() if name in named}
    return {**chosen, **said, "SLURM_GET_USER_ENV": "1"}


def _told_by_itself(options: Mapping[str, ScriptOption], version: ApiVersion, script: str) -> dict[str, str]:
    """Return the variable by which a script tells itself that its time is nearly up, where slurmrestd can't say it.

    Up to 0.0.38 slurmrestd knows the ``B:`` of ``--signal`` only if its program were called sbatch (``get_signal_opts``
    in ``proc_args.c`` of SLURM 22.05). Without it the steps would get the signal, and the script not.
    """
    signal = options.get("signal")
    if signal is None or not _only_the_script_knows(signal, version):
        return {}
    found = _FOR_THE_SCRIPT.fullmatch(signal.value)
    assert found is not None  # noqa: S101 - for mypy: just tried
    limit_s = time_limit_s(options["time"].value) if "time" in options else None
    if found["name"].upper() != "TERM" or limit_s is None or TERM_AFTER not in script:
        raise signal.refused(
            f"version {version} of slurmrestd's API can't have the script itself signalled (B:)",
            f"let it be B:TERM with a --time, in a script that minds {TERM_AFTER} as _begin.j2 does; or take the route "
            "cli or pyslurm",
        )
    return {TERM_AFTER: str(max(0, int(limit_s) - int(found["time"] or _SIGNAL_TIME_S)))}


def _after(submission: Submission, version: ApiVersion) -> Part:
    if not submission.after:
        return {}
    waits: dict[str, Json] = {"dependency": dependency(submission.after)}
    if version < FIRST_TYPED:
        return {**waits, "kill_on_invalid_dependency": True}
    return {**waits, "flags": ["KILL_INVALID_DEPENDENCY"]}


def _described(options: Mapping[str, ScriptOption], version: ApiVersion) -> dict[str, Json]:
    table = _typed(version) if version >= FIRST_TYPED else _AS_TEXT
    job: dict[str, Json] = {}
    for option in options.values():
        if option.name == "export" or (option.name == "signal" and _only_the_script_knows(option, version)):
            continue
        if option.name not in table:
            raise option.refused(
                f"version {version} of slurmrestd's API has nothing for --{option.name}",
                f"leave --{option.name} out, or use the route cli or pyslurm for this recipe",
            )
        try:
            said = table[option.name](option.value)
        except ValueError as error:
            raise option.refused(f"--{option.name}: {error}") from error
        job |= {key: _joined(job[key], value) if key in job else value for key, value in said.items()}
    return {**job, **_sizes(options, version)}


def _only_the_script_knows(signal: ScriptOption, version: ApiVersion) -> bool:
    return version < FIRST_TYPED and _FOR_THE_SCRIPT.fullmatch(signal.value) is not None


def _joined(one: Json, other: Json) -> Json:
    """Two options for one field: resources per node are a list with commas, anything else is replaced."""
    return f"{one},{other}" if isinstance(one, str) and isinstance(other, str) else other


def _sizes(options: Mapping[str, ScriptOption], version: ApiVersion) -> Part:
    """Return what sbatch works out before it submits: tasks from nodes, and processors from tasks."""

    def count(name: str) -> int | None:
        text = options[name].value if name in options else ""
        return int(text) if text.isdigit() else None

    nodes, per_node, tasks = count("nodes"), count("ntasks-per-node"), count("ntasks")
    if tasks is None and per_node is not None:
        tasks = per_node * (nodes or 1)
    if version < FIRST_TYPED:
        return {} if tasks is None else {"tasks": tasks}
    cpus_per_task = count("cpus-per-task")
    if tasks is None and cpus_per_task is None:
        return {}
    return {"tasks": tasks or nodes or 1, "minimum_cpus": (tasks or nodes or 1) * (cpus_per_task or 1)}


# ------------------------------------------------------------------------------------------- up to 0.0.38: texts


def _text(key: str) -> Callable[[str], Part]:
    return lambda value: {key: value}


def _always(key: str, value: Json) -> Callable[[str], Part]:
    return lambda _: {key: value}


def _whole(key: str) -> Callable[[str], Part]:
    def said(value: str) -> Part:
        if not re.fullmatch(r"-?\d+", value):
            raise ValueError(f"{value} is no whole number")
        return {key: int(value)}

    return said


def _checked_time(key: str) -> Callable[[str], Part]:
    def said(value: str) -> Part:
        time_limit_s(value)
        return {key: value}

    return said


_ALIKE: dict[str, Callable[[str], Part]] = {
    "account": _text("account"),
    "array": _text("array"),
    "chdir": _text("current_working_directory"),
    "cluster-constraint": _text("cluster_constraint"),
    "comment": _text("comment"),
    "constraint": _text("constraints"),
    "cpus-per-task": _whole("cpus_per_task"),
    "dependency": _text("dependency"),
    "error": _text("standard_error"),
    "hold": _always("hold", True),
    "input": _text("standard_input"),
    "job-name": _text("name"),
    "licenses": _text("licenses"),
    "mail-user": _text("mail_user"),
    "mincpus": _whole("minimum_cpus_per_node"),
    "nice": _whole("nice"),
    "nodes": _text("nodes"),
    "ntasks": _whole("tasks"),
    "ntasks-per-node": _whole("tasks_per_node"),
    "output": _text("standard_output"),
    "partition": _text("partition"),
    "prefer": _text("prefer"),
    "qos": _text("qos"),
    "requeue": _always("requeue", True),
    "reservation": _text("reservation"),
    "threads-per-core": _whole("threads_per_core"),
    "wckey": _text("wckey"),
}
"""What every version says in the same way."""

_AS_TEXT: dict[str, Callable[[str], Part]] = _ALIKE | {
    "begin": _text("begin_time"),
    "exclude": _text("exclude_nodes"),
    "exclusive": _text("exclusive"),
    "gpus": _text("gpus"),
    "gpus-per-node": _text("gpus_per_node"),
    "gpus-per-task": _text("gpus_per_task"),
    "gres": _text("gres"),
    "hint": _text("cpu_binding_hint"),
    "mail-type": _text("mail_type"),
    "mem": _text("memory_per_node"),
    "mem-per-cpu": _text("memory_per_cpu"),
    "no-requeue": _always("no_requeue", True),
    "nodelist": _text("nodelist"),
    "open-mode": _text("open_mode"),
    "signal": _text("signal"),
    "time": _checked_time("time_limit"),
    "time-min": _checked_time("time_minimum"),
    "tmp": _text("temporary_disk_per_node"),
}


# ------------------------------------------------------------------------------------------ from 0.0.39 on: types


def number(value: int | None) -> Json:
    """Return a number as the API has it from 0.0.39 on; None is without limit."""
    return {"set": True, "infinite": value is None, "number": value or 0}


def _minutes(key: str) -> Callable[[str], Part]:
    def said(value: str) -> Part:
        limit_s = time_limit_s(value)
        return {key: number(None if limit_s is None else -int(-limit_s // 60))}

    return said


def _megabytes(value: str) -> int:
    if (found := _MEMORY.fullmatch(value)) is None:
        raise ValueError(f"{value} is no size in K, M, G or T")
    return -int(-int(found[1]) * _IN_MB[found[2].upper()] // 1)


def _memory(key: str) -> Callable[[str], Part]:
    return lambda value: {key: number(_megabytes(value))}


def _signal(value: str) -> Part:
    found = re.fullmatch(r"(?:([BR]{1,2}):)?(?:SIG)?([A-Z0-9]+)(?:@(\d+))?", value, re.IGNORECASE)
    if found is None:
        raise ValueError(f"{value} is no signal like B:TERM@60")
    flags = {"B": "BATCH_JOB", "R": "RESERVATION_JOB"}
    return {
        "kill_warning_signal": found[2].upper(),
        "kill_warning_delay": number(int(found[3] or _SIGNAL_TIME_S)),
        "kill_warning_flags": [flags[letter] for letter in (found[1] or "").upper()],
    }


def _mail(value: str) -> Part:
    words = [word.upper() for word in value.split(",")]
    chosen = [w for word in words for w in (_MAIL_ALL if word == "ALL" else () if word == "NONE" else (word,))]
    if unknown := [word for word in chosen if word not in _MAIL]:
        raise ValueError(f"{unknown[0]} is none of {', '.join(_MAIL)}, ALL and NONE")
    return {"mail_type": [_MAIL[word] for word in dict.fromkeys(chosen)]}


def _exclusive(value: str) -> Part:
    modes = {"exclusive": "none", "user": "user", "mcs": "mcs", "topo": "topo"}
    if value not in modes:
        raise ValueError(f"{value} is none of user, mcs and topo")
    return {"shared": [modes[value]]}


def _open_mode(value: str) -> Part:
    modes = {"a": "APPEND", "t": "TRUNCATE"}
    if value[:1] not in modes:
        raise ValueError(f"{value} is neither append nor truncate")
    return {"open_mode": [modes[value[:1]]]}


def _hint(value: str) -> Part:
    if value != "nomultithread":
        raise ValueError(f"slurmrestd has no word for {value}")
    return {"threads_per_core": 1}


def _begin(value: str) -> Part:
    try:
        # Without an offset it is this machine's local time, as for sbatch.
        at = datetime.fromisoformat(value).astimezone()
    except ValueError:
        raise ValueError(f"{value} isn't a time like 2026-01-31T16:00:00, the only form for slurmrestd") from None
    return {"begin_time": number(int(at.timestamp()))}


def _resources(key: str, prefix: str, kind: str = "") -> Callable[[str], Part]:
    """Say generic resources, each with its prefix: ``gpu:2,shard:1`` becomes ``gres/gpu:2,gres/shard:1``."""
    return lambda value: {key: ",".join(f"{prefix}{kind}{_bare(part)}" for part in value.split(","))}


def _bare(part: str) -> str:
    return re.sub(r"^gres[:/]", "", part)


def _typed(version: ApiVersion) -> Mapping[str, Callable[[str], Part]]:
    # SLURM 23.02 has another separator than the later ones.
    prefix = "gres:" if version == FIRST_TYPED else "gres/"
    return _ALIKE | {
        "begin": _begin,
        "exclude": lambda value: {"excluded_nodes": [value]},
        "exclusive": _exclusive,
        "gpus": _resources("tres_per_job", prefix, "gpu:"),
        "gpus-per-node": _resources("tres_per_node", prefix, "gpu:"),
        "gpus-per-task": _resources("tres_per_task", prefix, "gpu:"),
        "gres": _resources("tres_per_node", prefix),
        "hint": _hint,
        "mail-type": _mail,
        "mem": _memory("memory_per_node"),
        "mem-per-cpu": _memory("memory_per_cpu"),
        "no-requeue": _always("requeue", False),
        "nodelist": lambda value: {"required_nodes": [value]},
        "open-mode": _open_mode,
        "signal": _signal,
        "time": _minutes("time_limit"),
        "time-min": _minutes("time_minimum"),
        "tmp": lambda value: {"temporary_disk_per_node": _megabytes(value)},
    }
