"""The options on a script's ``#SBATCH`` lines, for routes to SLURM that don't read them themselves.

In: a script's text. Out: its options by their long names, each with the line it stands on. Reads as sbatch does: only
lines before the first command count, short and abbreviated names are understood, and the last of several decides.
Nothing is judged here but the spelling. Source: sbatch(1) and ``src/common/slurm_opt.c`` of SLURM 22.05.
"""

from __future__ import annotations

import getopt
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from orchestrator.errors import SubmitRefused
from orchestrator.sbatch_options import OPTIONS, flag

SCRIPT_BYTES_MAX = 4 * 1024 * 1024
"""SLURM's own limit (``max_script_size``), which a site may only raise."""

_SHORT = {
    "A": "account", "C": "constraint", "D": "chdir", "G": "gpus", "J": "job-name", "L": "licenses", "N": "nodes",
    "a": "array", "b": "begin", "c": "cpus-per-task", "d": "dependency", "e": "error", "i": "input", "n": "ntasks",
    "o": "output", "p": "partition", "q": "qos", "t": "time", "w": "nodelist", "x": "exclude",
}  # fmt: skip
_SHORT_FLAGS = {"H": "hold"}
# Beyond what templates may say, for scripts that people wrote themselves.
_MORE_WITH_VALUE = ("array", "input", "mincpus", "prefer", "tmp")
_MORE_FLAGS = ("hold",)
_WITH_VALUE = tuple(f"{name}=" for name in {*OPTIONS, *_MORE_WITH_VALUE} if OPTIONS.get(name) is not flag)
_FLAGS = tuple({*(name for name, check in OPTIONS.items() if check is flag), *_MORE_FLAGS})
_SPELLING = "".join(f"{letter}:" for letter in _SHORT) + "".join(_SHORT_FLAGS), [*_WITH_VALUE, *_FLAGS]
"""For getopt: short options and long ones."""
_LONG_NAME = {**_SHORT, **_SHORT_FLAGS}
_QUOTING = re.compile(r"[\"'\\#]")
_WORD = re.compile(r"[^ \t\r\n]+")
"""What shlex takes a long time to find, where nothing is quoted."""
_UNREADABLE = "correct the #SBATCH line, or leave the option out: it isn't known to this program"
_MAY_HAVE_VALUE = re.compile(r"--(exclusive|nice)(=.*)?")
_WITHOUT_VALUE = {"exclusive": "exclusive", "nice": "100"}
"""What the two options that may go without a value mean then."""


@dataclass(frozen=True, kw_only=True)
class ScriptOption:
    """One option as it stands on a script's line."""

    name: str
    """Long name without dashes."""
    value: str
    """Empty for an option that has none."""
    place: str
    """For error messages: ``line 3: #SBATCH --mem=4G``."""

    def refused(self, why: str, remedy: str = "") -> SubmitRefused:
        """Return the error that names this option and its line."""
        return SubmitRefused(f"{self.place}: {why}", remedy=remedy or f"correct the #SBATCH line: --{self.name}")


def read_options(script: str) -> Mapping[str, ScriptOption]:
    """Return the options of a script by their long names.

    Raises
    ------
    SubmitRefused
        When it is no script, is too long for SLURM, or has an option that can't be read; the line is named.
    """
    if not script.startswith("#!"):
        raise SubmitRefused("this does not look like a batch script", remedy="it must begin with #!/bin/bash")
    if "\r\n" in script:
        raise SubmitRefused("the script has DOS line breaks", remedy="write the template with \\n line ends")
    if (size := len(script.encode())) > SCRIPT_BYTES_MAX:
        said = f"the script has {size} bytes, and SLURM takes {SCRIPT_BYTES_MAX}"
        raise SubmitRefused(said, remedy="keep what is long in a file that the script reads")
    return {
        name: ScriptOption(name=name, value=value, place=_place(number, text))
        for number, text in sbatch_lines(script)
        for name, value in _options(number, text)
    }


def sbatch_lines(script: str) -> Iterator[tuple[int, str]]:
    """Give the number of each ``#SBATCH`` line that counts, and what stands behind the word."""
    for number, line in enumerate(script.split("\n"), start=1):
        if line.startswith("#SBATCH"):
            yield number, line.removeprefix("#SBATCH")
        elif line.strip() and not line.lstrip().startswith("#"):
            return


def _place(number: int, text: str) -> str:
    return f"line {number}: #SBATCH{text}"


def _options(number: int, text: str) -> Sequence[tuple[str, str]]:
    try:
        return _names_and_values(text)
    except (getopt.GetoptError, ValueError) as error:
        raise SubmitRefused(f"{_place(number, text)}: {error}", remedy=_UNREADABLE) from error


@lru_cache(maxsize=1024)
def _names_and_values(text: str) -> Sequence[tuple[str, str]]:
    """Return the options of a line; most lines of a site's scripts are the same again and again.

    Raises
    ------
    GetoptError, ValueError
        When they can't be read.
    """
    words = shlex.split(text, comments=True) if _QUOTING.search(text) else _WORD.findall(text)
    others = [word for word in words if not _MAY_HAVE_VALUE.fullmatch(word)]
    found, rest = getopt.getopt(others, *_SPELLING)
    if rest:
        raise ValueError(f"{rest[0]} is no option")
    without_getopt = [_without_getopt(word) for word in words if _MAY_HAVE_VALUE.fullmatch(word)]
    bare = ((name.lstrip("-"), value) for name, value in found)
    return (*without_getopt, *((_LONG_NAME.get(name, name), value) for name, value in bare))


def _without_getopt(word: str) -> tuple[str, str]:
    name, _, value = word.removeprefix("--").partition("=")
    return name, value or _WITHOUT_VALUE[name]


def time_limit_s(text: str) -> float | None:
    """Return sbatch's ``[days-][hours:]minutes[:seconds]`` in seconds; None where there is no limit."""
    if text in {"0", "UNLIMITED", "INFINITE"}:
        return None
    if found := re.fullmatch(r"(\d+)-(\d+)(?::(\d+)(?::(\d+))?)?", text):
        days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
        return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
    if found := re.fullmatch(r"(?:(\d+):)??(\d+)(?::(\d+))?", text):
        hours, minutes, seconds = (int(part or 0) for part in found.groups())
        return float((hours * 60 + minutes) * 60 + seconds)
    raise ValueError(f"--time: {text} isn't minutes, minutes:seconds, hours:minutes:seconds or days-hours")
