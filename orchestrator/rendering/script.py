"""Renders a plan's script.

In: a `JobPlan`, the attempt's number, the folder of templates. Out: a `BatchScript`. This module reads the templates
and nothing else, and writes nothing. Templates are Jinja2, sandboxed, and an undefined variable is an error. Whoever
writes one doesn't think about quoting: every ``{{ value }}`` becomes one word of the shell (a list becomes several),
and is refused where no quoting would be right. ``#SBATCH`` lines come from ``sbatch(option, value)`` in the partial
``_sbatch.j2`` alone, each value checked against its option's type.

Each ``{{ … }}`` is compiled into a placeholder. After rendering, the text is scanned as shell and every placeholder is
replaced according to where it stands, so that no filter, concatenation or macro can smuggle raw text into the script.
"""

from __future__ import annotations

import re
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, TemplateNotFound, TemplateSyntaxError, pass_context
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from orchestrator.errors import InvalidTemplate
from orchestrator.records import BatchScript, JobPlan, RunTag
from orchestrator.rendering.shell_quoting import Misplaced, Spot, place_values, quote
from orchestrator.rendering.template_folder import PARTIAL, Reading, TemplateFolder, template_names, texts_by_name
from orchestrator.runs import RunDirectory
from orchestrator.sbatch_options import PathText, directive, shown

MAX_SCRIPT_BYTES = 4 * 1024 * 1024
"""What slurmctld takes by default (SchedulerParameters=max_script_size)."""

MAX_ROUNDS = 10_000
"""Rounds of all loops of a script together; a template with more has a mistake that would hold up the service."""

_SHEBANG = re.compile(r"#!(/usr)?/bin/(env )?bash\n")
_COMMAND = re.compile(r"^(?![#\x02]).*\S", re.MULTILINE)
"""A line that is neither a comment nor a value of its own."""
_DIRECTIVE = re.compile(r"[ \t]*#(SBATCH|PBS|BSUB)")
"""What sbatch reads as options; it takes those of PBS and LSF too."""


_PLACE = re.compile(r"\x02([0-9a-f]{16}):(\d+)\x03")
_PLACE_ON_ITS_LINE = re.compile(rf"^{_PLACE.pattern}\n", re.MULTILINE)
"""A placeholder; its first group tells whose it is."""
_CONTROL_CHARACTER = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


class Verbatim(str):
    """An ``#SBATCH`` line that this module built and checked; the only text that isn't quoted."""

    __slots__ = ()


def render(plan: JobPlan, attempt: int, templates: Path) -> BatchScript:
    """Render the script of one attempt of a plan.

    Parameters
    ----------
    plan
        What is to run.
    attempt
        Number of the attempt, from 1.
    templates
        Folder that holds the plan's template and the partials.

    Raises
    ------
    InvalidTemplate
        Naming the template's file and line: it doesn't exist, has a syntax error or an undefined variable, puts a value
        where none may stand, or hands ``sbatch()`` a value that its option doesn't take.
    """
    rendering = _Rendering(templates)
    text = rendering.script(plan.template, template_variables(plan, attempt))
    return BatchScript(text=text, template_name=plan.template, template_text=rendering.all_texts())


def render_recorded(plan: JobPlan, attempt: int, template_text: str) -> BatchScript:
    """Render the script of a plan from the text of its templates as a `BatchScript` keeps it; see `render`."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in texts_by_name(template_text).items():
            (Path(folder) / name).write_text(text)
        return render(plan, attempt, Path(folder))


def compile_template(name: str, templates: Path) -> None:
    """Check one template by itself: that it can be read, has no syntax error and uses nothing that isn't allowed.

    Raises
    ------
    InvalidTemplate
        Naming the template's file and line.
    """
    _Rendering(templates).compile(name)


def template_variables(plan: JobPlan, attempt: int) -> dict[str, object]:
    """Return what a template may use; ``docs/how-to/write-a-job-template.md`` lists it."""
    tag = RunTag(run_id=plan.run_id, attempt=attempt)
    run = RunDirectory(plan.run_directory)
    here = run.attempt(attempt)
    job = {"name": tag.job_name, "comment": tag.comment, "attempt": attempt}
    paths = {
        "run": run.path,
        "parameters": run.parameters,
        "result": run.result,
        "report": run.report,
        "picture": run.picture,
        "collection_end": run.collection_end,
        "log": here.log,
        "progress": here.progress,
    }
    values = dict(vars(plan))
    collection, resources = values.pop("collection"), values.pop("resources")
    values["parameters"] = plan.parameter_values()
    del values["after"], values["array"]
    before = [(one, RunDirectory(one.run_directory)) for one in plan.after]
    after = {one.recipe: {"run_id": one.run_id, "run": run.path, "result": run.result} for one, run in before}
    names = {"job": job, "paths": paths, "plan": values, "collection": collection, "resources": resources,
             "after": after, "array": _array(plan, run, attempt)}  # fmt: skip
    return {name: _plain(value) for name, value in names.items()}


def _array(plan: JobPlan, run: RunDirectory, attempt: int) -> dict[str, object] | None:
    """Return what a job array's template may use: the tasks, and the files of each, by task number."""
    if plan.array is None:
        return None
    tasks = range(len(plan.array.values))
    return {
        "tasks": plan.array.slurm,
        "results": [run.result_of(task) for task in tasks],
        "parameters": [run.parameters_of(task) for task in tasks],
        "progress": [run.attempt(attempt).task(task).progress for task in tasks],
    }


_PLAIN = {str, int, float, bool, type(None)}


def _plain(value: object) -> object:
    """Reduce a value to text, numbers, lists and mappings: nothing that a template could act with."""
    if type(value) in _PLAIN:  # most of all
        return value
    if isinstance(value, Path):
        return PathText(value)
    if is_dataclass(value):
        return _plain(vars(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value)


class _Placeholder(str):
    """What stands for a value until the script is scanned."""

    __slots__ = ()


@dataclass(frozen=True)
class _Value:
    """A ``{{ … }}`` that was reached, and where it stands."""

    value: object
    template: str
    line: int


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which ``*`` and ``%`` are for numbers: with text a typo could fill the memory."""

    intercepted_binops = frozenset({"*", "%"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Multiply or divide, having checked that both are numbers."""
        if not (isinstance(left, int | float) and isinstance(right, int | float)):
            raise SecurityError(f"{operator} is for numbers")
        return super().call_binop(context, operator, left, right)


class _Rendering(Reading):
    """One rendering; holds the values until they are put into the script."""

    def __init__(self, templates: Path) -> None:
        super().__init__()
        self._environment, self.folder = _environment(templates)
        self._nonce = secrets.token_hex(8)
        self._values: list[_Value] = []
        self._rounds = 0

    def script(self, template: str, variables: Mapping[str, object]) -> str:
        text = self._without_unset_directives(self._rendered(template, variables))
        self._refuse_control_characters(text, template)
        # Scripts of one template differ in the nonce alone until values are put in: the scan of one does for all.
        alike = text.replace(self._nonce, "0" * len(self._nonce))
        try:
            script = place_values(alike, self._spots(text), lambda spot, context: self._written(spot, context, text))
        except Misplaced as error:
            raise self._invalid(error, template) from error
        _check_script(script, template)
        self._check_directives(script, template)
        return script

    def compile(self, template: str) -> Template:
        with self._readable(template):
            return self._environment.get_template(template)

    def _rendered(self, template: str, variables: Mapping[str, object]) -> str:
        compiled = self.compile(template)
        try:
            with self._readable(template):  # those that it includes
                return compiled.render(variables)
        except (TemplateError, ValueError, TypeError, ArithmeticError, LookupError, AttributeError) as error:
            name, line = self.folder.place_of(error, default=template)
            raise InvalidTemplate(
                f"{self.folder.path / name}, line {line}: {error}",
                remedy=f"a template may use: {', '.join(sorted(variables))}; see docs/how-to/write-a-job-template.md",
            ) from error

    @contextmanager
    def _readable(self, template: str) -> Iterator[None]:
        """Have the templates belong to this rendering; word what is wrong with one as a file or as a program."""
        before = _current.set(self)
        try:
            yield
        except TemplateNotFound as error:
            raise self._not_found(error) from error
        except TemplateSyntaxError as error:
            raise _syntax_error(error) from error
        except OSError as error:
            raise InvalidTemplate(
                f"{error.filename or template}: {error.strerror}", remedy="check its rights"
            ) from error
        except UnicodeDecodeError as error:
            line, byte = error.object.count(b"\n", 0, error.start) + 1, error.object[error.start]
            raise InvalidTemplate(
                f"{self.folder.path / self.latest}, line {line}: byte 0x{byte:02x} isn't UTF-8",
                remedy="save the template in UTF-8",
            ) from error
        except (RecursionError, MemoryError, SyntaxError) as error:
            raise InvalidTemplate(
                f"{self.folder.path / template}: nested too deeply or too large: {error}",
                remedy="a template may not include itself, and needs few levels of blocks and parentheses",
            ) from error
        finally:
            _current.reset(before)

    def _not_found(self, error: TemplateNotFound) -> InvalidTemplate:
        return InvalidTemplate(
            f"{self.folder.path}: there is no template {error.name!r}",
            remedy=f"its templates are: {', '.join(template_names(self.folder.path)) or 'none'}",
        )

    # ------------------------------------------------------------------------------------------- placeholders

    def placeholder(self, value: object, template: str, line: int) -> _Placeholder:
        """Keep a value and return what stands for it."""
        if isinstance(value, StrictUndefined):
            str(value)  # raises, with the name that isn't defined
        self._values.append(_Value(value, template, line))
        return _Placeholder(f"\x02{self._nonce}:{len(self._values) - 1}\x03")

    def counted(self, values: Iterable[object]) -> Iterator[object]:
        """Give the values of a loop, as long as the script has few rounds."""
        for value in values:
            self._rounds += 1
            if self._rounds > MAX_ROUNDS:
                raise SecurityError(f"the loops of this script go round more than {MAX_ROUNDS} times")
            yield value

    def _spots(self, text: str) -> list[Spot]:
        found = (match for match in _PLACE.finditer(text) if match[1] == self._nonce)
        return [Spot(int(match[2]), match.start(), match.end()) for match in found]

    def _without_unset_directives(self, text: str) -> str:
        def kept(match: re.Match[str]) -> str:
            value = self._values[int(match[2])].value if match[1] == self._nonce else None
            return "" if type(value) is Verbatim and not value else match[0]

        return _PLACE_ON_ITS_LINE.sub(kept, text)

    def _refuse_control_characters(self, text: str, template: str) -> None:
        """Refuse what would forge a placeholder, and what bash doesn't read as it stands, such as NUL."""
        own = _PLACE.sub(lambda match: "" if match[1] == self._nonce else match[0], text)
        for found in _CONTROL_CHARACTER.finditer(own):
            line = own.count("\n", 0, found.start()) + 1
            raise InvalidTemplate(
                f"{self.folder.path / template} (line {line} of the script): the control character {found[0]!a}",
                remedy="remove it from the template; in bash it can be written as $'\\x1b'",
            )

    def _check_directives(self, script: str, template: str) -> None:
        """Refuse lines that sbatch would read and that don't come from ``sbatch()``, be they literal or a comment."""
        ours = {str(value.value) for value in self._values if type(value.value) is Verbatim}
        for number, line in enumerate(script.split("\n"), start=1):
            if _DIRECTIVE.match(line) and line not in ours:
                raise InvalidTemplate(
                    f"{self.folder.path / template} (line {number} of the script): a literal {line.split()[0]} line",
                    remedy=f"write {{{{ sbatch('option', value) }}}} in {PARTIAL}; no other place writes such lines",
                )

    # ------------------------------------------------------------------------------------------------- values

    def _written(self, spot: Spot, context: str, text: str) -> str:
        value = self._values[spot.number].value
        before, after = text[spot.start - 1 : spot.start] or "\n", text[spot.end : spot.end + 1] or "\n"
        try:
            if type(value) is Verbatim:
                return _directive_line(value, context, text[: spot.start], after)
            if isinstance(value, list | tuple):
                return _words(value, context, alone=before in " \t\n(" and after in " \t\n);")
            word = self._text(value)
            if context == "comment":
                return _comment_text(word)
            return quote(word, bare=before.isspace() or before in "=:/,")
        except ValueError as error:
            raise Misplaced(
                f"the value {shown(value)} {error}", line=text.count("\n", 0, spot.start) + 1, value=spot.number
            ) from error

    def _text(self, value: object) -> str:
        text = _word(value)
        if self._nonce in text:
            raise ValueError("was put together from other {{ … }}, which can't be quoted again")
        return text

    def _invalid(self, error: Misplaced, template: str) -> InvalidTemplate:
        if error.value is None:
            place = f"{self.folder.path / template} (line {error.line} of the script)"
        else:
            value = self._values[error.value]
            place = f"{self.folder.path / value.template}, line {value.line}"
        return InvalidTemplate(f"{place}: {error}", remedy=error.remedy)


# ------------------------------------------------------------------------------------- what all renderings share

_current: ContextVar[_Rendering] = ContextVar("rendering")


@lru_cache(maxsize=32)
def _environment(templates: Path) -> tuple[_Sandbox, TemplateFolder]:
    folder = TemplateFolder(templates, _current.get)
    environment = _Sandbox(
        loader=folder, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
        finalize=_only_placeholders, autoescape=False, cache_size=0,
    )  # fmt: skip
    environment.filters[folder.PLACEHOLDER_FILTER] = _placeholder
    environment.filters[folder.COUNTED_FILTER] = _counted
    environment.globals = {"sbatch": _sbatch, "range": environment.globals["range"]}
    return environment, folder


# Filters that take the context are never called while compiling.


@pass_context
def _placeholder(_context: Context, value: object, template: str, line: int) -> _Placeholder:
    return _current.get().placeholder(value, template, line)


@pass_context
def _counted(_context: Context, values: Iterable[object]) -> Iterator[object]:
    return _current.get().counted(values)


def _only_placeholders(value: object) -> object:
    if type(value) is not _Placeholder:
        raise TypeError(f"{shown(value)} reached the script in a way that isn't {{{{ value }}}}")
    return value


def _syntax_error(error: TemplateSyntaxError) -> InvalidTemplate:
    return InvalidTemplate(
        f"{error.filename or error.name}, line {error.lineno}: {error.message}",
        remedy="see docs/how-to/write-a-job-template.md",
    )


def _sbatch(option: str, value: object = True) -> Verbatim:
    return Verbatim(directive(option, value))


def _word(value: object) -> str:
    """Return a single value as text."""
    if value is None:
        raise ValueError("is no value; test it with {% if … is not none %}")
    if value is True or value is False:
        raise ValueError("is true or false, which the shell has no word for; test it with {% if %}")
    if not isinstance(value, str | int | float):
        raise ValueError(f"is a {type(value).__name__}, not a text, number or list")  # noqa: TRY004 - one kind of error
    return str(value)


def _words(values: list[object] | tuple[object, ...], context: str, *, alone: bool) -> str:
    if context != "plain" or not alone:
        raise ValueError("is a list, which must stand alone between spaces")
    return " ".join(quote(_word(value)) for value in values)


def _comment_text(text: str) -> str:
    if not text.isprintable():
        raise ValueError("has a newline or control character and stands in a comment")
    return text


def _directive_line(line: Verbatim, context: str, before: str, after: str) -> str:
    """Return a directive, having checked that sbatch will see it: in the head, at the start of a line of its own."""
    if context != "plain" or not (before.endswith("\n") and after == "\n"):
        raise ValueError("must stand alone on its line")
    if _COMMAND.search(before):
        raise ValueError("stands behind the first command, where sbatch doesn't look any more")
    return str(line)


def _check_script(script: str, template: str) -> None:
    if not _SHEBANG.match(script):
        raise InvalidTemplate(
            f"{template}: the script doesn't begin with #!/bin/bash",
            remedy="make #!/bin/bash the template's first line; values are quoted for bash",
        )
    size = len(script.encode())
    if size > MAX_SCRIPT_BYTES:
        raise InvalidTemplate(
            f"{template}: the script has {size} bytes, SLURM takes {MAX_SCRIPT_BYTES}",
            remedy="hand large values over in the parameter file",
        )
