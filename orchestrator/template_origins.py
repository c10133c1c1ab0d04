"""Of which commit the templates are that a script was rendered from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.injob import commit
from orchestrator.records import BatchScript, Json


@dataclass
class TemplateOrigins:
    """What is known of the origins of templates; git is asked once for each text, not for each script."""

    _known: dict[str, Mapping[str, Json]] = field(default_factory=dict)

    def of(self, script: BatchScript, folder: Path) -> Mapping[str, Json]:
        """Return the folder of a script's templates, and its commit where it is in a checkout."""
        text = script.template_sha256
        if text not in self._known:
            self._known[text] = {"folder": str(folder), **_commit(folder)}
        return self._known[text]


def _commit(folder: Path) -> Mapping[str, Json]:
    checkout = next((path for path in (folder, *folder.parents) if (path / ".git").exists()), None)
    return {} if checkout is None else commit(checkout, below=folder)
