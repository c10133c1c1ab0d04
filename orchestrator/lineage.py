"""From a file back to the raw data and the messages, and forward to all that was made from it.

In: a store and a file. Out: two trees whose nodes are files and runs in turn. A file that lies elsewhere now than when
it was made is known by its digest; a file that a run only read, such as raw data, by its path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from orchestrator.errors import NotFound
from orchestrator.injob import file_sha256
from orchestrator.provenance import RunSummary, Store, UsedFile

Files: TypeAlias = Callable[[str], Sequence[UsedFile]]
"""Files next to a run, by its id."""

MOST_NODES = 2000
"""Of a tree: a calibration can be behind every run of a year."""


@dataclass(frozen=True, kw_only=True)
class FileNode:
    """A file, and the runs next to it: that made it, on the way back; that read it, on the way forward."""

    path: Path
    role: str
    """To the run next to it."""
    runs: tuple[RunNode, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunNode:
    """A run, and the files next to it: that it read, on the way back; that it made, on the way forward."""

    run: RunSummary
    message: str | None
    """Where the message that asked for it came from; None where none did."""
    files: tuple[FileNode, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """Where a file comes from, and where it went."""

    back: FileNode
    forward: FileNode


def lineage_of(store: Store, file: Path) -> Lineage:
    """Return a file's lineage.

    Raises
    ------
    NotFound
        When no run has made or read such a file.
    """
    path = file.resolve()
    walk = _Walk(store)
    sha256 = None
    if not store.makers_of(path) and not store.users_of(path):
        sha256 = file_sha256(path) if path.is_file() else None
    back, forward = walk.back(path, sha256, "", ()), _Walk(store).forward(path, sha256, "", ())
    if not back.runs and not forward.runs:
        known = "neither its path nor its digest is" if sha256 else "it isn't there, and its path isn't"
        raise NotFound(
            f"{path}: {known} one of a file that a run made or read", remedy="see `orchestrator runs --text`"
        )
    return Lineage(back=back, forward=forward)


class _Walk:
    """One walk through the store; a run is looked into once, however many ways lead to it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._left = MOST_NODES
        self._seen: set[str] = set()

    def back(self, path: Path, sha256: str | None, role: str, above: tuple[str, ...]) -> FileNode:
        """Return a file and the run that made it, with all that this one read."""
        makers = [made for made in self._store.makers_of(path, sha256) if made.run_id not in above]
        runs = [self._made_by(makers[0], above)] if makers else []
        return FileNode(path=path, role=role, runs=tuple(runs))

    def _made_by(self, made: UsedFile, above: tuple[str, ...]) -> RunNode:
        used = self._unless_seen(made.run_id, self._store.used_by)
        inside = (*above, made.run_id)
        files = tuple(self.back(one.path, one.sha256, one.role, inside) for one in used)
        return self._node(made.run_id, files)

    def forward(self, path: Path, sha256: str | None, role: str, above: tuple[str, ...]) -> FileNode:
        """Return a file and the runs that read it, with all that these made."""
        users = {used.run_id: used for used in self._store.users_of(path, sha256) if used.run_id not in above}
        runs = [self._used_by(used, above) for used in users.values() if self._left > 0]
        return FileNode(path=path, role=role, runs=tuple(runs))

    def _used_by(self, used: UsedFile, above: tuple[str, ...]) -> RunNode:
        made = self._unless_seen(used.run_id, self._made)
        inside = (*above, used.run_id)
        files = tuple(self.forward(one.path, one.sha256, one.role, inside) for one in made)
        return self._node(used.run_id, files)

    def _made(self, run_id: str) -> Sequence[UsedFile]:
        outputs = self._store.run(run_id).outputs
        return [
            UsedFile(run_id=run_id, role=one.kind, path=one.path, sha256=one.sha256)
            for one in outputs
            if one.kind != "log"
        ]

    def _unless_seen(self, run_id: str, files: Files) -> Sequence[UsedFile]:
        self._left -= 1
        if run_id in self._seen or self._left < 0:
            return ()
        self._seen.add(run_id)
        return files(run_id)

    def _node(self, run_id: str, files: tuple[FileNode, ...]) -> RunNode:
        detail = self._store.run(run_id)
        source = None if detail.message is None else detail.message.raw.source
        return RunNode(run=detail.summary, message=source, files=files)
