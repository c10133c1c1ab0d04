"""The options of sbatch that a script may carry, and what each one's value may be.

In: an option's name and a value. Out: one ``#SBATCH`` line. Such a line is no shell: variables and shell quotes mean
nothing there, a newline ends it and hands the rest to bash, ``#`` begins a comment, and ``%`` patterns are replaced in
file names. sbatch itself understands double quotes around a value with spaces, and nothing else is relied upon.
Source: the sbatch manual page, SLURM 22.05 to 25.05.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable

Value = object
Check = Callable[[Value], str]

UNQUOTED = re.compile(r"[A-Za-z0-9_./:@%+,=*&|\[\]()!-]+")
"""What sbatch reads as one word without quotes."""


class PathText(str):
    """A path as text. On a line that takes file name patterns its percent signs are taken literally."""

    __slots__ = ()


def directive(option: str, value: Value) -> str:
    """Return the ``#SBATCH`` line of `option`, without its newline; empty when `value` is None or False.

    Raises
    ------
    ValueError
        When the option isn't known or the value isn't of its type; the text says why.
    """
    if option not in OPTIONS:
        near = difflib.get_close_matches(option, OPTIONS, n=1)
        hint = f"; did you mean --{near[0]}?" if near else ""
        raise ValueError(f"--{option} isn't an option that this program knows{hint}")
    if value is None or value is False:
        return ""
    if value is True and OPTIONS[option] is flag:
        return f"#SBATCH --{option}"
    text = checked(option, value)
    quotes = "" if UNQUOTED.fullmatch(text) else '"'
    return f"#SBATCH --{option}={quotes}{text}{quotes}"


def checked(option: str, value: Value) -> str:
    """Return `value` as the text that `option` takes.

    Raises
    ------
    ValueError
        When the value isn't of the option's type; the text names the option, the value and what it may be.
    """
    try:
        text = OPTIONS[option](value)
        _one_line(text)
    except ValueError as error:
        raise ValueError(f"--{option}: {shown(value)} {error}") from None
    return text


def shown(value: Value, limit: int = 60) -> str:
    """Return `value` for an error message: escaped and not too long."""
    text = ascii(value)
    return text if len(text) <= limit else f"{text[:limit]}…"


def _kind_of(character: str) -> str:
    if "\ud800" <= character <= "\udfff":
        return "half of a surrogate pair, as a name does that isn't UTF-8: rename it, or give a link to it"
    return f"the control character {character!a}"


def _one_line(text: str) -> None:
    if UNQUOTED.fullmatch(text) and not text.startswith("-"):
        return  # most of all
    for character in text:
        if character in "\r\n":
            raise ValueError("contains a newline, which would end the #SBATCH line")
        if not character.isprintable():
            raise ValueError(f"contains {_kind_of(character)}")
        if character in "\"'\\`":
            raise ValueError(f"contains {character}, which sbatch would take for quoting")
    if not text:
        raise ValueError("is empty")
    if text.startswith("-"):
        raise ValueError("begins with a dash, as an option does")


def flag(_value: Value) -> str:
    """Refuse every value: the option has none (True and False are dealt with before)."""
    raise ValueError("isn't true or false")


def _text(value: Value) -> str:
    if not isinstance(value, str):
        raise ValueError("isn't text")  # noqa: TRY004 - one kind of error
    return str(value)


def _count(value: Value) -> str:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("isn't a whole number from 1 up")
    return str(value)


def _pattern(expression: str, meaning: str) -> Check:
    compiled = re.compile(expression)

    def check(value: Value) -> str:
        text = _text(value)
        _one_line(text)
        if not compiled.fullmatch(text):
            raise ValueError(f"isn't {meaning}")
        return text

    return check


def _time(value: Value) -> str:
    """Take whole minutes, or SLURM's own ``[days-]hours:minutes:seconds``."""
    if isinstance(value, str):
        return _pattern(r"(\d+-)?\d{1,2}:\d{2}:\d{2}", "a time as [days-]hours:minutes:seconds")(value)
    minutes = int(_count(value))
    days, minutes = divmod(minutes, 24 * 60)
    prefix = f"{days}-" if days else ""
    return f"{prefix}{minutes // 60:02d}:{minutes % 60:02d}:00"


def _memory(value: Value) -> str:
    """Take whole megabytes, or a number with its unit."""
    if isinstance(value, str):
        return _pattern(r"\d+[KMGT]?", "a number with the unit K, M, G or T")(value)
    return f"{_count(value)}M"


def _folder(value: Value) -> str:
    text = _text(value)
    if not text.startswith("/"):
        raise ValueError("isn't an absolute path")
    return text


def _file_pattern(value: Value) -> str:
    """Take a path literally (`PathText`), or text in which ``%`` patterns mean what the manual says."""
    text = _folder(value)
    if isinstance(value, PathText):
        return text.replace("%", "%%")
    if re.search(r"%(?!%|\d{0,2}[AaJjNnstux])", text):
        raise ValueError("has a % that begins none of sbatch's file name patterns; write %% for the sign itself")
    return text


_NAME = r"[A-Za-z0-9_.+@-]+"
_name = _pattern(_NAME, "a name (letters, digits and _ . + @ -)")
_names = _pattern(rf"{_NAME}(,{_NAME})*", "a name or several with commas between")
_gres = _pattern(r"[A-Za-z0-9_.:,/=*-]+", "a resource like gpu:1")
_node_list = _pattern(r"[A-Za-z0-9_.,\[\]-]+", "a node list like node[1-4,7]")

OPTIONS: dict[str, Check] = {
    "account": _name,
    "array": _pattern(r"\d+(-\d+(:\d+)?)?(,\d+(-\d+(:\d+)?)?)*(%\d+)?", "tasks like 0-9 or 1,3,5-7%2"),
    "begin": _pattern(r"[A-Za-z0-9:+T-]+", "a time like 2026-01-31T16:00:00 or now+1hour"),
    "chdir": _folder,
    "cluster-constraint": _names,
    "comment": _text,
    "constraint": _pattern(r"!?[A-Za-z0-9_.&|,*\[\]()-]+", "features like avx512&ib"),
    "cpus-per-task": _count,
    "dependency": _pattern(
        r"singleton|\w+(:\d+(_\d+|_\*)?(\+\d+)?)+([,?]\w+(:\d+(_\d+|_\*)?(\+\d+)?)+)*", "a dependency like afterok:123"
    ),
    "error": _file_pattern,
    "exclude": _node_list,
    "exclusive": flag,
    "export": _pattern(r"ALL|NONE|NIL", "ALL, NONE or NIL"),
    "gpus": _gres,
    "gpus-per-node": _gres,
    "gpus-per-task": _gres,
    "gres": _gres,
    "hint": _pattern(r"compute_bound|memory_bound|multithread|nomultithread", "one of sbatch's hints"),
    "job-name": _name,
    "licenses": _gres,
    "mail-type": _names,
    "mail-user": _names,
    "mem": _memory,
    "mem-per-cpu": _memory,
    "nice": _count,
    "no-requeue": flag,
    "nodelist": _node_list,
    "nodes": _count,
    "ntasks": _count,
    "ntasks-per-node": _count,
    "open-mode": _pattern(r"append|truncate", "append or truncate"),
    "output": _file_pattern,
    "partition": _names,
    "qos": _name,
    "requeue": flag,
    "reservation": _names,
    "signal": _pattern(r"([BR]{1,2}:)?(SIG)?[A-Z0-9]+(@\d+)?", "a signal like B:TERM@60"),
    "threads-per-core": _count,
    "time": _time,
    "time-min": _time,
    "wckey": _name,
}
"""Every option that may stand on an ``#SBATCH`` line, and the check of its value."""
