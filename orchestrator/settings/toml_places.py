"""Which line of a TOML text a key stands on; used for error messages only.

tomllib gives values without places. This reads the lines once more, tolerantly: a key inside an inline table or an
array of several lines is found at the line of the key that holds it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

_PART = r"""(?:[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')"""
_KEY = rf"{_PART}(?:[ \t]*\.[ \t]*{_PART})*"
_HEADER = re.compile(rf"[ \t]*\[\[?[ \t]*({_KEY})[ \t]*\]\]?")
_ASSIGNMENT = re.compile(rf"[ \t]*({_KEY})[ \t]*=")

Key = tuple[str, ...]


def keys_with_lines(text: str) -> Iterator[tuple[Key, int]]:
    """Yield every table header and key of a TOML text with its line, counted from 1."""
    table: Key = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            table = _parts(header[1])
            yield table, number
        elif assignment := _ASSIGNMENT.match(line):
            yield table + _parts(assignment[1]), number


def lines_of(text: str, key: Sequence[str]) -> list[int]:
    """Return all lines that name exactly this key, or else those of the nearest table around it that has any."""
    found = list(keys_with_lines(text))
    for length in range(len(key), 0, -1):
        lines = [line for name, line in found if name == tuple(key[:length])]
        if lines:
            return lines
    return []


def _parts(dotted: str) -> Key:
    return tuple(part.strip("\"'") for part in re.findall(_PART, dotted))
