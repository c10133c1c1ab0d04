"""Where in a shell script a value stands, and how it must be written there.

In: a script's text with placeholders, and the value of each. Out: the script with every value in its place as exactly
one word (a list as several), or `Misplaced`. A value is quoted only in plain shell; inside quotes, here-documents,
substitutions and arithmetic no quoting is right for all values, so it is refused there. The scanner is conservative:
what it can't follow with certainty it refuses, because a wrong guess would let a value be run.
Source: the Bash Reference Manual, 3.1.2 Quoting and 3.2 Shell Commands.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

_BARE = re.compile(r"[A-Za-z0-9_./:@%+,-]+")
_RESERVED = frozenset(
    "case coproc do done elif else esac fi for function if in select then time until while".split()  # noqa: SIM905
)
_MAY_PRECEDE = re.compile(r"""[\sA-Za-z0-9_=:/.,@%+;|&()<>"'}-]""")
_MAY_FOLLOW = re.compile(r"""[\sA-Za-z0-9_=:/.,@%+;|&)"'$-]""")
_SUBSCRIPT = re.compile(r"[A-Za-z0-9_]\[[^\]\n]*\Z")
_ELEMENT = re.compile(r"\[[^\]\n]*\Z"), re.compile(r"[^\]\n]*\]\+?=")
"""Around a value: the subscript of an element in ``name=([ … ]=x)``; with spaces it looks like a test."""
_HEREDOC = re.compile(
    r"<<(?P<tabs>-?)[ \t]*(?P<quote>['\"]?)(?P<word>[A-Za-z0-9_][A-Za-z0-9_ .-]*?)(?P=quote)(?=[ \t\n;&|()<>]|\Z)"
)
_NO_COMMENT = re.compile(r"(?:[?*+@!]\([^)]*|(?:\A|[\s(\w])\[[^\]]*)\Z")
"""Before a ``#``: a pattern or a subscript is open, in which bash may see no comment."""
_EVALUATES = re.compile(
    r"""(?:\A|[;&|({!]|\b(?:then|do|else|elif|if|while|until|time|builtin|command)[ \t])[ \t]*(?:\w+=\S*[ \t]+)*
    (?:(?:eval|trap|let|unset|read|mapfile|readarray|alias|getopts)[ \t][^;&|]*
    |(?:declare|typeset|local)[ \t](?:[^;&|]*[ \t])?(?:-[A-Za-z]*[in][A-Za-z]*[ \t][^;&|]*)?
    |(?:\[|test|printf)[ \t](?:[^;&|]*[ \t])?-v[ \t]+
    |(?:\S*/)?(?:bash|sh|dash|ksh|zsh)[ \t](?:[^;&|]*[ \t])?-[A-Za-z]*c[ \t]+)\Z""",
    re.VERBOSE,
)
"""Before a value: a command that takes its words for code, or for names, whose subscripts are code."""
_NAMES = {
    "'": "single quotes",
    "$'": "single quotes",
    '"': "double quotes",
    "`": "backticks",
    "$(": "a command substitution",
    "${": "a parameter expansion",
    "((": "an arithmetic expression",
    "[[": "a [[ ]] test",
    "(": "a group inside a substitution",
}


class Misplaced(Exception):
    """A value stands where none may stand, or the script is beyond what the scanner follows.

    Parameters
    ----------
    reason
        What is wrong, to be put behind the place.
    line
        Line of the script, counted from 1.
    value
        Number of the placeholder, None when it isn't about a value.
    """

    def __init__(self, reason: str, *, line: int, value: int | None = None, remedy: str = "") -> None:
        super().__init__(reason)
        self.line = line
        self.value = value
        self.remedy = remedy


def quote(text: str, *, bare: bool = True) -> str:
    r"""Return `text` as one word of bash, on one line, without quotes where they change nothing and `bare` allows it.

    Control characters are written as escapes (``$'a\nb'``): no line of a script ever begins with a part of a value.

    Raises
    ------
    ValueError
        When no word can hold it: a NUL, or half of a surrogate pair.
    """
    if "\0" in text:
        raise ValueError("contains a NUL character, which no word of a shell can hold")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(
            "contains half of a surrogate pair, as a name does that isn't UTF-8: rename it, or give a link to it"
        ) from None
    if bare and _BARE.fullmatch(text) and text not in _RESERVED:
        return text
    if text.isprintable():
        return "'" + text.replace("'", "'\\''") + "'"
    return "$'" + "".join(_escaped(character) for character in text) + "'"


def _escaped(character: str) -> str:
    if character in "\\'":
        return "\\" + character
    if " " <= character <= "~":
        return character
    # As bytes: what \u means to bash depends on the locale, and so does whether a backslash belongs to the character
    # before it.
    return {"\n": "\\n", "\t": "\\t"}.get(character) or "".join(f"\\x{byte:02x}" for byte in character.encode())


@dataclass(frozen=True)
class Spot:
    """One placeholder in the text."""

    number: int
    start: int
    end: int


@dataclass
class _Scanner:
    """Walks a script once, from left to right, knowing at each placeholder what surrounds it."""

    text: str
    spots: Mapping[int, Spot]
    """By start."""
    position: int = 0
    placed: list[tuple[Spot, str]] = field(default_factory=list)
    stack: list[str] = field(default_factory=list)
    heredocs: list[tuple[str, bool]] = field(default_factory=list)
    arithmetic_depth: int = 0
    word_start: bool = True

    def __post_init__(self) -> None:
        self.starts = sorted(self.spots)
        self.ends = {spot.end: spot for spot in self.spots.values()}

    def run(self) -> tuple[tuple[Spot, str], ...]:
        while self.position < len(self.text):
            spot = self.spots.get(self.position)
            if spot is not None:
                self._value(spot)
            else:
                self._step()
        if self.heredocs:
            raise self._fault(f"the here-document {self.heredocs[0][0]} has no end")
        if self.stack:
            raise self._fault(f"{_NAMES[self.stack[-1]]} begun earlier never end")
        return tuple(self.placed)

    # ------------------------------------------------------------------------------------------------ values

    def _value(self, spot: Spot) -> None:
        if self.stack:
            raise self._misplaced(spot, _NAMES[self.stack[-1]])
        before, after = self.text[spot.start - 1 : spot.start] or "\n", self.text[spot.end : spot.end + 1] or "\n"
        if _SUBSCRIPT.search(self._line_before(spot.start)):
            raise self._misplaced(spot, "an array's subscript, which is arithmetic")
        if _ELEMENT[0].search(self._line_before(spot.start)) and _ELEMENT[1].match(self.text, spot.end):
            raise self._misplaced(spot, "an array's subscript, which is arithmetic")
        if _EVALUATES.search(self._command_before(spot.start)):
            raise self._misplaced(
                spot, "a command that takes its words for code (eval, trap, bash -c, read, test -v …)"
            )
        if not _MAY_PRECEDE.fullmatch(before) and self._previous(spot) is None:
            raise self._misplaced(spot, f"a word behind {before!r}")
        if not _MAY_FOLLOW.fullmatch(after) and spot.end not in self.spots:
            raise self._misplaced(spot, f"a word before {after!r}")
        self._put(spot, "plain")
        self.word_start = False

    def _previous(self, spot: Spot) -> Spot | None:
        return self.ends.get(spot.start)

    def _put(self, spot: Spot, context: str) -> None:
        self.placed.append((spot, context))
        self.position = spot.end

    # ------------------------------------------------------------------------------------------------ shell

    def _step(self) -> None:
        top = self.stack[-1] if self.stack else ""
        if top in {"'", "$'", "`"}:
            self._until_end_of_quote(top)
        elif top == '"':
            self._in_double_quotes()
        elif top == "${":
            self._in_expansion()
        elif top == "((":
            self._in_arithmetic()
        else:
            self._in_shell(top)

    def _until_end_of_quote(self, top: str) -> None:
        if self._at("\\") and top != "'":
            self._skip(2)
        elif self._at(top[-1]):
            self._pop()
        else:
            self._skip(1)

    def _in_double_quotes(self) -> None:
        if self._at("\\"):
            self._skip(2)
        elif self._at('"'):
            self._pop()
        elif not self._expansion_begins():
            self._skip(1)

    def _in_expansion(self) -> None:
        if self._at("\\"):
            self._skip(2)
        elif self._at("}"):
            self._pop()
        elif self._at("$'") and '"' not in self.stack:
            self._push("$'", 2)
        elif self._at("<(") or self._at(">("):
            raise self._fault("a process substitution in ${…} can't be followed with certainty")
        elif self._at("'") and '"' in self.stack:
            raise self._fault("a single quote in ${…} inside double quotes can't be followed with certainty")
        elif self._at("'") or self._at('"'):
            self._push(self.text[self.position], 1)
        elif not self._expansion_begins():
            self._skip(1)

    def _in_arithmetic(self) -> None:
        if self._at("("):
            self.arithmetic_depth += 1
            self._skip(1)
        elif self._at(")") and self.arithmetic_depth:
            self.arithmetic_depth -= 1
            self._skip(1)
        elif self._at("))#"):
            raise self._fault("'))#' can't be followed with certainty; put a space before the comment")
        elif self._at("))"):
            self._pop(2)
        elif self._at(")"):
            raise self._fault("'((' without '))' can't be followed with certainty; put a space between the parentheses")
        elif self._at("'") or self._at('"') or self._at("\\"):
            raise self._fault("a quote inside an arithmetic expression can't be followed with certainty")
        elif not self._expansion_begins():
            self._skip(1)

    def _in_shell(self, top: str) -> None:
        """Follow one step of commands: at the top level, in ``$(…)``, or in ``[[ … ]]``."""
        if self._at("\n"):
            self._newline()
        elif self._at("\\\n"):
            self._continued(top)
        elif self._at("\\"):
            self._skip(2)
        elif self._at("#") and self.word_start:
            self._comment(top)
        elif not (self._expansion_begins() or self._quote_begins() or self._group(top) or self._heredoc(top)):
            self._plain_character(top)

    def _continued(self, top: str) -> None:
        before = self.text[self.position - 1 : self.position]
        if before in set("$<>([]") or (top and not self.word_start):
            raise self._fault("a line that is continued in the middle of a word can't be followed with certainty")
        self.position += 2

    def _plain_character(self, top: str) -> None:
        if self.word_start and top in {"$(", "("} and re.compile(r"case\b").match(self.text, self.position):
            raise self._fault("'case' inside $(…) can't be followed with certainty; put it into a function")
        ends_word = self.text[self.position] in " \t;&|()<>"
        self.position += 1
        self.word_start = ends_word

    def _expansion_begins(self) -> bool:
        if self._at("$["):
            raise self._fault("$[…] can't be followed with certainty", remedy="write $((…))")
        if self._at("$(("):
            self._push_arithmetic(3)
        elif self._at("$("):
            self._push("$(", 2)
        elif re.compile(r"\$\{[\s|(]").match(self.text, self.position):
            raise self._fault("a command inside ${…} can't be followed with certainty", remedy="write $(…)")
        elif self._at("${"):
            self._push("${", 2)
        elif self._at("`"):
            self._push("`", 1)
        elif self._at("$") and self.position + 1 in self.spots:
            raise self._misplaced(self.spots[self.position + 1], "a word behind '$'")
        else:
            return False
        return True

    def _quote_begins(self) -> bool:
        if self._at("$'"):
            self._push("$'", 2)
        elif self._at("'"):
            self._push("'", 1)
        elif self._at('"'):
            self._push('"', 1)
        else:
            return False
        return True

    def _group(self, top: str) -> bool:
        if self._at("<(") or self._at(">("):
            self._push("$(", 2)
        elif top != "[[" and self._at("(("):
            self._push_arithmetic(2)
        elif self.word_start and re.compile(r"\[\[\s").match(self.text, self.position):
            self._push("[[", 2)
        elif top == "[[" and self.word_start and re.compile(r"\]\](?=[\s;&|()<>]|\Z)").match(self.text, self.position):
            self._pop(2)
        elif top in {"$(", "("} and self._at("("):
            self._push("(", 1)
        elif top in {"$(", "("} and self._at(")"):
            if self.heredocs:
                raise self._fault("a here-document that begins in $(…) and goes on behind it can't be followed")
            self._pop()
            self.word_start = top == "("
        else:
            return False
        return True

    def _heredoc(self, top: str) -> bool:
        if not self._at("<<"):
            return False
        if top == "[[":
            raise self._fault("'<<' inside [[ … ]] can't be followed with certainty")
        if self._at("<<<"):
            self.position += 3
            self.word_start = True
            return True
        found = _HEREDOC.match(self.text, self.position)
        value = re.compile(r"<<-?[^\s;&|()<>]*?(?=\x02)|<<-?[ \t]+(?=\x02)").match(self.text, self.position)
        if value is not None and value.end() in self.spots:
            raise self._misplaced(self.spots[value.end()], "the name of a here-document")
        if found is None or (" " in found["word"] and not found["quote"]):
            raise self._fault("the name of a here-document can't be read", remedy="write its name as a plain word")
        self.heredocs.append((found["word"], bool(found["tabs"])))
        self.position = found.end()
        self.word_start = False
        return True

    def _newline(self) -> None:
        self.position += 1
        self.word_start = True
        waiting, self.heredocs = self.heredocs, []
        for index, (name, tabs) in enumerate(waiting):
            if not self._skip_heredoc(name, tabs=tabs):
                self.heredocs = waiting[index:]
                return

    def _skip_heredoc(self, name: str, *, tabs: bool) -> bool:
        while self.position < len(self.text):
            end = self.text.find("\n", self.position)
            end = len(self.text) if end < 0 else end
            for spot in self._spots_before(end):
                raise self._misplaced(spot, f"the here-document {name}")
            line = self.text[self.position : end]
            if line.endswith("\\"):
                raise self._fault("a line of a here-document that ends in a backslash can't be followed with certainty")
            self.position = min(end + 1, len(self.text))
            if (line.lstrip("\t") if tabs else line) == name:
                return True
        return False

    def _comment(self, top: str) -> None:
        if top == "[[" or _NO_COMMENT.search(self._line_before(self.position)):
            raise self._fault("'#' behind an open bracket can't be followed with certainty; put it on another line")
        end = self.text.find("\n", self.position)
        end = len(self.text) if end < 0 else end
        for spot in self._spots_before(end):
            self._put(spot, "comment")
        self.position = end

    # ------------------------------------------------------------------------------------------------ helpers

    def _spots_before(self, end: int) -> list[Spot]:
        """Return the spots from the present position up to `end`."""
        found = self.starts[bisect_left(self.starts, self.position) : bisect_left(self.starts, end)]
        return [self.spots[start] for start in found]

    def _line_before(self, position: int) -> str:
        return self.text[self.text.rfind("\n", 0, position) + 1 : position]

    def _command_before(self, position: int) -> str:
        """Return the line before a position, with the lines that it continues."""
        lines = [self._line_before(position)]
        start = position - len(lines[0])
        while self.text.endswith("\\\n", 0, start):
            start -= 2
            lines.insert(0, self._line_before(start))
            start -= len(lines[0])
        return " ".join(lines)

    def _at(self, token: str) -> bool:
        return self.text.startswith(token, self.position)

    def _skip(self, count: int) -> None:
        for start in range(self.position + 1, self.position + count):
            if start in self.spots:
                raise self._misplaced(self.spots[start], "a word behind a backslash")
        self.position += count
        self.word_start = False

    def _push(self, context: str, length: int) -> None:
        self.stack.append(context)
        self.position += length
        self.word_start = context in {"$(", "(", "[["}

    def _push_arithmetic(self, length: int) -> None:
        self.arithmetic_depth = 0
        if "((" in self.stack:
            raise self._fault("an arithmetic expression inside another can't be followed with certainty")
        self._push("((", length)

    def _pop(self, length: int = 1) -> None:
        self.stack.pop()
        self.position += length
        self.word_start = False

    def _line(self, position: int) -> int:
        return self.text.count("\n", 0, position) + 1

    def _fault(self, reason: str, *, remedy: str = "") -> Misplaced:
        return Misplaced(reason, line=self._line(self.position), remedy=remedy)

    def _misplaced(self, spot: Spot, where: str) -> Misplaced:
        remedy = 'give it to a variable first (name={{ … }}) and use "$name" there'
        if where.endswith("quotes"):
            remedy = "remove the quotes around {{ … }}: values are quoted by themselves"
        elif any(word in where for word in ("arithmetic", "[[", "for code")):
            # A variable doesn't help: bash evaluates what is in it, down to commands in a subscript.
            remedy = 'calculate in the template ({{ a + 1 }}), compare with [ {{ a }} = "$b" ] or {% if %}'
        inside = "as" if where.startswith(("a word", "the name")) else "inside"
        return Misplaced(
            f"the value stands {inside} {where}", line=self._line(spot.start), value=spot.number, remedy=remedy
        )


def place_values(text: str, spots: Sequence[Spot], write: Callable[[Spot, str], str]) -> str:
    """Return `text` with what `write` makes of each spot, given its context: ``plain`` or ``comment``.

    Raises
    ------
    Misplaced
        When a value stands anywhere else, or the script can't be followed with certainty.
    """
    out: list[str] = []
    copied = 0
    for spot, context in _contexts(text, tuple(spots)):
        out += (text[copied : spot.start], write(spot, context))
        copied = spot.end
    return "".join((*out, text[copied:]))


@lru_cache(maxsize=32)
def _contexts(text: str, spots: tuple[Spot, ...]) -> tuple[tuple[Spot, str], ...]:
    """Return the context of each spot, in their order; it depends on no value, so scripts of one template share it."""
    return _Scanner(text, {spot.start: spot for spot in spots}).run()
