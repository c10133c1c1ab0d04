"""``orchestrator lineage``: where a file comes from, and what was made from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from orchestrator.cli.common import JsonOption, SiteOption, out, print_json, says_errors
from orchestrator.lineage import FileNode, RunNode, lineage_of
from orchestrator.service import open_store
from orchestrator.settings import load_settings

_WIDE = 10_000
"""Columns where the output isn't a terminal: each line whole."""


@says_errors
def lineage(
    *,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A result, raw data, or any file that a run made or read.")
    ],
    site: SiteOption,
    as_json: JsonOption = False,
) -> None:
    """Walk from a file back to the raw data and the messages, and forward to everything made from it.

    A file that was moved or copied is known by its digest, which takes the time to read it.

    - where does this come from? `orchestrator lineage result.nxs`
    - what is to be made again after a wrong mask: `orchestrator lineage mask.h5`
    """
    with open_store(load_settings(site)) as store:
        found = lineage_of(store, file)
    if as_json:
        print_json(found)
        return
    console = Console(highlight=False, width=None if out.is_terminal else _WIDE)
    for title, node in (("Made from", found.back), ("Made from it", found.forward)):
        if node.runs:
            tree = Tree(Text(f"{title}: {node.path}", style="bold", overflow="fold"))
            _add_runs(tree, node)
            console.print(tree)


def _add_runs(tree: Tree, node: FileNode) -> None:
    for one in node.runs:
        branch = tree.add(Text(_run(one), overflow="fold"))
        for file in one.files:
            _add_runs(branch.add(Text(f"{file.role}: {file.path}", overflow="fold")), file)


def _run(node: RunNode) -> str:
    run = node.run
    asked = f"asked for by {node.message}" if node.message else f"asked for by {run.requester}"
    parent = f", made again from {run.parent_run[:8]}" if run.parent_run else ""
    recorded = run.created_at.astimezone().strftime("%Y-%m-%d %H:%M")
    return f"run {run.run_id[:8]} ({run.recipe}, {run.state}), {recorded}, {asked}{parent}"
