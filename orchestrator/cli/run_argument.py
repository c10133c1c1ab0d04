"""The argument RUN of commands, which the shell can complete from the site's store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.errors import OrchestratorError
from orchestrator.service import open_store
from orchestrator.settings import load_settings

OFFERED = 200
"""Most runs that are looked at for a completion."""


def complete_run(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Offer the shell the newest runs whose ids begin so, from the store of ``--site`` or ``ORCHESTRATOR_SITE``."""
    site = context.params.get("site")
    if site is None:
        return []
    try:
        with open_store(load_settings(Path(site))) as store:
            runs = store.runs(id_begins=incomplete, limit=OFFERED)
    except OrchestratorError:
        return []  # a shell that completes has no place for errors; the command itself will tell
    return [(run.run_id, f"{run.state}, {run.recipe} of {run.file.name}") for run in runs]


RunArgument = Annotated[
    str,
    typer.Argument(metavar="RUN", help="A run's id, the beginning of one, or `latest`.", autocompletion=complete_run),
]
