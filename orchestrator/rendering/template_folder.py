"""The folder of job templates: what is read from it, and what a template may consist of.

In: template files. Out: compiled templates in which every ``{{ value }}`` passes through a placeholder filter that
knows its file and line, and the text of all that was read. Statements whose output could be handled as text before it
is quoted (macros, captured blocks, filters over blocks) are refused.
"""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import ClassVar

from jinja2 import Environment, FileSystemLoader, Template, nodes

from orchestrator.errors import InvalidTemplate

PARTIAL = "_sbatch.j2"
"""The only template that writes ``#SBATCH`` lines."""

_STEP_NS = 2_000_000_000
"""The longest step of a file system's clock."""

_REFUSED: tuple[type[nodes.Node], ...] = (
    nodes.Macro, nodes.CallBlock, nodes.FilterBlock, nodes.AssignBlock, nodes.Import, nodes.FromImport,
    nodes.ScopedEvalContextModifier, nodes.EvalContextModifier, nodes.Pow,
)  # fmt: skip


class Reading:
    """What one rendering reads."""

    def __init__(self) -> None:
        self.latest = ""
        """Name of the template that was asked for last."""
        self._texts: dict[str, str] = {}

    def note(self, name: str, text: str) -> None:
        """Keep the text of a template."""
        self._texts[name] = text

    def all_texts(self) -> str:
        """Return the text of every template read so far, each headed by its name, in the order of reading."""
        return joined_texts(self._texts)


def joined_texts(texts: Mapping[str, str]) -> str:
    """Return templates in one text, each headed by its name."""
    return "".join(f"{{# ---- {name} ---- #}}\n{text}" for name, text in texts.items())


_HEAD = re.compile(r"^\{# ---- ([A-Za-z0-9_.-]+) ---- #\}\n", re.MULTILINE)


def texts_by_name(all_texts: str) -> dict[str, str]:
    """Return the templates that `joined_texts` put together, by their names and in their order."""
    heads = list(_HEAD.finditer(all_texts))
    ends = [*(head.start() for head in heads), len(all_texts)][1:]
    return {head[1]: all_texts[head.end() : end] for head, end in zip(heads, ends, strict=True)}


@dataclass(frozen=True)
class _Known:
    state: tuple[int, ...] | None
    text: str
    template: Template


class TemplateFolder(FileSystemLoader):
    """Loads templates from one folder, checks them, and tells the rendering that asks for them what it loaded.

    An edit of a file counts at once. For one environment, whose templates are shared by all renderings.
    """

    PLACEHOLDER_FILTER: ClassVar[str] = "placeholder for a value"
    """Not a name that a template could write."""
    COUNTED_FILTER: ClassVar[str] = "rounds of a loop"

    def __init__(self, path: Path, reading: Callable[[], Reading]) -> None:
        super().__init__(path)
        self.path = path
        self._reading = reading
        self._known: dict[str, _Known] = {}

    def load(self, environment: Environment, name: str, globals: Mapping[str, object] | None = None) -> Template:  # noqa: A002
        """Read, check and compile one template, unless its file is the one that was read before."""
        reading = self._reading()
        reading.latest = name
        state, known = _state(self.path / name), self._known.get(name)
        if known is None or known.state is None or known.state != state:
            source, filename, uptodate = self.get_source(environment, name)
            code = self._compiled(environment, source, name, filename)
            template = environment.template_class.from_code(environment, code, dict(globals or {}), uptodate)
            # The state is of before: what is edited in between is read again the next time.
            known = self._known[name] = _Known(state, source, template)
        reading.note(name, known.text)
        return known.template

    def _compiled(self, environment: Environment, source: str, name: str, filename: str) -> CodeType:
        tree = environment.parse(source, name, filename)
        self._check(tree, name)
        for output in tree.find_all(nodes.Output):
            output.nodes = [self._through_placeholder(node, name) for node in output.nodes]
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, self.COUNTED_FILTER, [], [], None, None, lineno=loop.lineno)
        return environment.compile(tree, name, filename)

    def place_of(self, error: BaseException, *, default: str) -> tuple[str, int]:
        """Return the template and the line in which an error arose while rendering."""
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            if Path(frame.filename).parent == self.path and frame.lineno is not None:
                return Path(frame.filename).name, frame.lineno
        return default, 1

    def _through_placeholder(self, node: nodes.Expr, name: str) -> nodes.Expr:
        if isinstance(node, nodes.TemplateData):
            return node
        place: list[nodes.Expr] = [nodes.Const(name, lineno=node.lineno), nodes.Const(node.lineno, lineno=node.lineno)]
        return nodes.Filter(node, self.PLACEHOLDER_FILTER, place, [], None, None, lineno=node.lineno)

    def _check(self, tree: nodes.Template, name: str) -> None:
        for node in tree.find_all(_REFUSED):
            raise InvalidTemplate(
                f"{self.path / name}, line {node.lineno}: a job template may not use {type(node).__name__}",
                remedy="use if, for, set with a value, include, extends and block; values are quoted by themselves",
            )
        for loop in tree.find_all(nodes.For):
            if loop.recursive:
                raise InvalidTemplate(f"{self.path / name}, line {loop.lineno}: a job template may not use recursive")
        for used in tree.find_all(nodes.Name):
            if used.name in {"super", "self"}:
                raise InvalidTemplate(
                    f"{self.path / name}, line {used.lineno}: a job template may not use {used.name}",
                    remedy="put the common part into a partial and include it",
                )
            if used.name == "sbatch" and name != PARTIAL:
                raise InvalidTemplate(
                    f"{self.path / name}, line {used.lineno}: only {PARTIAL} writes #SBATCH lines",
                    remedy=f"move the line there and include {PARTIAL} near the top",
                )


def _state(path: Path) -> tuple[int, ...] | None:
    """Return what changes with a file's content; None where that can't be relied upon."""
    try:
        found = path.stat()
    except OSError:
        return None
    # The clock of a file system has steps: within one, two edits look alike.
    settled = abs(time.time_ns() - found.st_mtime_ns) > _STEP_NS
    return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns) if settled else None


def template_names(path: Path) -> list[str]:
    """Return the names of a folder's templates that plans may use: partials begin with an underscore."""
    names = FileSystemLoader(path).list_templates()
    return sorted(name for name in names if not name.startswith("_") and name.endswith(".j2"))


__all__ = ["PARTIAL", "Reading", "TemplateFolder", "template_names"]
