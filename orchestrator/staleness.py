"""Whether what a run was made from is still what it was: input, files that parameters name, template, container image.

Looked at when somebody asks, by what the file system tells; no data is read but small files whose time is another now.
Whether the frames themselves are the same is told by ``orchestrator verify``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from orchestrator.injob import file_sha256
from orchestrator.provenance import Ingredients, RunSummary, Store
from orchestrator.provenance.lineage import IMAGE
from orchestrator.records import sha256_of
from orchestrator.rendering.template_folder import joined_texts, texts_by_name

WRITER_CLOSES_WITHIN = timedelta(minutes=1)
"""How long after a run's end its input may be written to: detectors close their files when the last frame is out."""

_SMALL_BYTES = 64 * 1024 * 1024


@dataclass
class Staleness:
    """Answers for many runs, which share templates and files."""

    store: Store
    templates: Path
    _current: dict[str, str] = field(default_factory=dict)
    """Digests of templates as they are now, by those that were recorded."""

    def reasons(self, runs: Sequence[RunSummary]) -> Mapping[str, tuple[str, ...]]:
        """Return why runs are stale, by their ids; those that aren't, or haven't ended, are left out."""
        ended = {run.run_id: run for run in runs if run.state.ended}
        known = self.store.ingredients_of(ended)
        found = {run_id: tuple(self._reasons(ended[run_id], known[run_id])) for run_id in known}
        return {run_id: reasons for run_id, reasons in found.items() if reasons}

    def _reasons(self, run: RunSummary, known: Ingredients) -> Iterator[str]:
        if known.input is not None:
            ended_at = run.ended_at or run.created_at
            yield from _input(known.input.real_path, known.input.size, known.input.inode, ended_at)
            for source in known.input.sources:
                yield from _input(Path(str(source.get("path"))), source.get("size"), source.get("inode"), ended_at)
            for named in known.input.files:
                yield from _named(named)
        if texts_by_name(known.template_text) and self._now(known) != known.template_sha256:
            yield f"template {known.template_name} was changed since"
        if "sha256" in known.container:  # else it may never have been in sight from here
            yield from _named({**known.container, "parameter": IMAGE})

    def _now(self, known: Ingredients) -> str:
        """Return the digest that the text of a run's templates has now; no text where one is gone."""
        if known.template_sha256 not in self._current:
            try:
                texts = {name: (self.templates / name).read_text() for name in texts_by_name(known.template_text)}
                digest = sha256_of(joined_texts(texts))
            except (OSError, UnicodeDecodeError):
                digest = ""
            self._current[known.template_sha256] = digest
        return self._current[known.template_sha256]


def _input(path: Path, size: Any, inode: Any, ended_at: datetime) -> Iterator[str]:
    try:
        there = path.stat()
    except OSError as error:
        yield f"input {path}: {error.strerror}"
        return
    modified = datetime.fromtimestamp(there.st_mtime, UTC)
    if inode is not None and there.st_ino != inode:
        yield f"input {path} was replaced by another file since"
    elif (size is not None and there.st_size < size) or modified > ended_at + WRITER_CLOSES_WITHIN:
        yield f"input {path} was changed since, {modified:%Y-%m-%d %H:%M:%S}Z"


def _named(named: Mapping[str, Any]) -> Iterator[str]:
    path, parameter = Path(str(named.get("real_path") or named.get("path"))), named.get("parameter")
    try:
        there = path.stat()
        if (there.st_size, there.st_mtime_ns) == (named.get("size"), named.get("mtime_ns")):
            return
        same = there.st_size == named.get("size")
        if same and there.st_size <= _SMALL_BYTES and file_sha256(path) == named.get("sha256"):
            return
    except OSError as error:
        yield f"{parameter} {path}: {error.strerror}"
    else:
        yield f"{parameter} {path} was changed since"
