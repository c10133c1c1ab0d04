"""The folder of job templates: what is read from it, and what a template may consist of.

In: template files. Out: compiled templates in which every ``{{ value }}`` passes through a placeholder filter that
knows its file and line, and the text of all that was read. Statements whose output could be handled as text before it
is quoted (macros, captured blocks, filters over blocks) are refused.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from pathlib import Path
from types import CodeType
from typing import ClassVar

from jinja2 import Environment, FileSystemLoader, Template, nodes
from jinja2.utils import LRUCache

from orchestrator.errors import InvalidTemplate

PARTIAL = "_sbatch.j2"
"""The only template that writes ``#SBATCH`` lines."""

_REFUSED: tuple[type[nodes.Node], ...] = (
    nodes.Macro, nodes.CallBlock, nodes.FilterBlock, nodes.AssignBlock, nodes.Import, nodes.FromImport,
    nodes.ScopedEvalContextModifier, nodes.EvalContextModifier, nodes.Pow,
)  # fmt: skip


class TemplateFolder(FileSystemLoader):
    """Loads templates from one folder, checks them, and remembers what it loaded.

    Files are read anew each time, so that an edit counts at once; a text that was compiled before isn't compiled again.
    All environments that use this loader must have the same options and filters.
    """

    PLACEHOLDER_FILTER: ClassVar[str] = "placeholder for a value"
    """Not a name that a template could write."""
    COUNTED_FILTER: ClassVar[str] = "rounds of a loop"
    _codes: ClassVar[LRUCache] = LRUCache(256)
    """Compiled templates by name, file and text."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.path = path
        self.latest = ""
        """Name of the template that was asked for last."""
        self._loaded: dict[str, str] = {}

    def names(self) -> list[str]:
        """Return the names of the templates that plans may use: partials begin with an underscore."""
        return sorted(name for name in self.list_templates() if not name.startswith("_") and name.endswith(".j2"))

    def text_of_all_loaded(self) -> str:
        """Return the text of every template loaded so far, each headed by its name, in the order of loading."""
        return "".join(f"{{# ---- {name} ---- #}}\n{text}" for name, text in self._loaded.items())

    def load(self, environment: Environment, name: str, globals: Mapping[str, object] | None = None) -> Template:  # noqa: A002
        """Read, check and compile one template."""
        self.latest = name
        source, filename, uptodate = self.get_source(environment, name)
        code = self._codes.get((name, filename, source))
        if code is None:
            code = self._codes[name, filename, source] = self._compiled(environment, source, name, filename)
        self._loaded[name] = source
        return environment.template_class.from_code(environment, code, dict(globals or {}), uptodate)

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


__all__ = ["PARTIAL", "TemplateFolder"]
