"""Messages from a folder: the door that needs no broker.

People write a document under a hidden or temporary name (``.x``, ``x.tmp``, ``x.part``) and rename it into the folder.
Files are taken in the order of their modification times. Afterwards they lie in ``done/`` or ``rejected/``, there with
the reason beside them. A crash between the commit and the move only means that the file is handled once more.

This module never deletes a document and never overwrites one.
"""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from orchestrator.crashpoints import CrashPoint, reached
from orchestrator.errors import DoorUnavailable, InvalidInput
from orchestrator.listening.door import TOGETHER_BYTES, Accepted, Door, Handler, Rejected, Verdict, backoff, raw_message
from orchestrator.messages import MAX_BYTES
from orchestrator.records import RawMessage
from orchestrator.runs import write_atomically
from orchestrator.settings import SpoolSettings

_UNFINISHED_SUFFIXES = (".tmp", ".part")
_TOGETHER = 20
"""Most files that are handed over at once."""

_MAX_NAME_BYTES = 200
"""Leaves room for numbers and ``.reason.txt`` within the 255 bytes of most file systems."""


def drop(folder: Path, document: bytes, name: str) -> Path:
    """Put a document into a spool folder, whole or not at all, and never over another one.

    Returns
    -------
    Path
        The file; ``-2``, ``-3``, … is added to the stem where `name` is taken.

    Raises
    ------
    InvalidInput
        When the door would overlook a file of this name.
    DoorUnavailable
        When the folder can't be written.
    """
    if not name or _overlooked(name) or Path(name).name != name:
        raise InvalidInput(f"{name!r} isn't a name the spool takes", remedy="use a plain file name ending in .json")
    hidden = folder / f".{uuid.uuid4()}.tmp"
    try:
        write_atomically(hidden, document)
        try:
            return _link_free(hidden, folder, name)
        finally:
            hidden.unlink()
    except OSError as error:
        raise DoorUnavailable(
            f"{folder}: {error.strerror}", remedy="check that the folder exists and may be written"
        ) from error


@dataclass(frozen=True, kw_only=True, order=True)
class _Waiting:
    """A file in the folder; equal only while nobody replaced it."""

    modified_ns: int
    name: str
    inode: int
    size_bytes: int = field(compare=False)
    is_file: bool = field(compare=False)


class SpoolDoor(Door):
    """Takes messages from a folder."""

    def __init__(self, settings: SpoolSettings, *, name: str = "spool") -> None:
        super().__init__(name)
        self._folder = settings.folder
        self._done = settings.folder / "done"
        self._rejected = settings.folder / "rejected"
        self._poll_interval_s = settings.poll_interval_s
        self._settled: dict[_Waiting, Verdict] = {}
        """Files that are handled but could not be moved yet."""
        self._problem = ""

    def _run(self, handler: Handler) -> None:
        while not self._stopping.is_set():
            for delay_s in backoff(initial_s=self._poll_interval_s, longest_s=5.0):
                try:
                    waiting = self._look()
                    break
                except OSError as error:
                    self._say(f"{error.filename}: {error.strerror}; trying again", connected=False)
                if self._stopping.wait(delay_s):
                    return
            problem = self._take_all(handler, waiting)
            self._say(f"watching {self._folder}{problem}", connected=True)
            self._stopping.wait(self._poll_interval_s)

    def _look(self) -> list[_Waiting]:
        for folder in (self._folder, self._done, self._rejected):
            folder.mkdir(parents=True, exist_ok=True)
        return sorted(self._waiting())

    def _take_all(self, handler: Handler, waiting: list[_Waiting]) -> str:
        """Take the files in turn; one that can't be read or moved now is tried again later and doesn't stop others."""
        there = set(waiting)
        self._settled = {entry: verdict for entry, verdict in self._settled.items() if entry in there}
        self._problem = ""
        for portion in _portions(waiting):
            if self._stopping.is_set():
                break
            self._handle(handler, [entry for entry in portion if entry not in self._settled])
            for entry in portion:
                if entry in self._settled:
                    with self._at_its_own_cost(entry):
                        self._put_away(entry, self._settled[entry])
                        del self._settled[entry]
        return self._problem

    @contextmanager
    def _at_its_own_cost(self, entry: _Waiting) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            pass  # its owner, or a second service, took it away
        except OSError as error:
            self._problem = f"; trying again: {entry.name}: {error.strerror}"

    def _waiting(self) -> Iterator[_Waiting]:
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if _overlooked(entry.name):
                    continue
                with suppress(FileNotFoundError):
                    facts = entry.stat(follow_symlinks=False)
                    if not stat.S_ISDIR(facts.st_mode):
                        yield _Waiting(
                            modified_ns=facts.st_mtime_ns,
                            name=entry.name,
                            inode=facts.st_ino,
                            size_bytes=facts.st_size,
                            is_file=stat.S_ISREG(facts.st_mode),
                        )

    def _handle(self, handler: Handler, entries: Sequence[_Waiting]) -> None:
        """Read the files and hand them over together; what became of each is kept until it is put away."""
        raws: dict[_Waiting, RawMessage] = {}
        for entry in entries:
            with self._at_its_own_cost(entry):
                if entry.is_file:
                    body, size_bytes = _read(self._folder / entry.name)
                    raws[entry] = raw_message(body, source=self._source(entry), headers={}, size_bytes=size_bytes)
                else:  # a link could lead anywhere, a pipe could block for good
                    self._settled[entry] = Rejected(reason="isn't a regular file")
                    self._count(received=1)
                    self._count_verdict(self._settled[entry], self._source(entry))
        if raws:
            verdicts = self._settle(handler, list(raws.values()), still_ours=lambda: self._all_there(raws))
            if verdicts is not None:
                self._settled |= zip(raws, verdicts, strict=True)

    def _source(self, entry: _Waiting) -> str:
        return f"spool:{os.fsencode(self._folder / entry.name).decode(errors='backslashreplace')}"

    def _all_there(self, entries: Iterable[_Waiting]) -> bool:
        return all((self._folder / entry.name).exists() for entry in entries)

    def _put_away(self, entry: _Waiting, verdict: Verdict) -> None:
        path = self._folder / entry.name
        facts = path.lstat()
        if (facts.st_ino, facts.st_mtime_ns) != (entry.inode, entry.modified_ns):
            return  # somebody has put another document in its place: that one's turn comes
        target = _reserve(self._done if isinstance(verdict, Accepted) else self._rejected, entry.name)
        try:
            if isinstance(verdict, Rejected):
                write_atomically(target.with_name(f"{target.name}.reason.txt"), f"{verdict.reason}\n")
            reached(CrashPoint.BEFORE_ACKNOWLEDGEMENT)
            path.rename(target)
            reached(CrashPoint.ACKNOWLEDGED)
        except BaseException:
            target.unlink()
            raise
        if target.lstat().st_ino != entry.inode:  # another document has come into its place at the last moment
            target.rename(self._folder / f"{uuid.uuid4().hex}-{target.name}")


def _portions(waiting: Sequence[_Waiting]) -> Iterator[list[_Waiting]]:
    """Part files into those that are handed over together, in their order."""
    portion: list[_Waiting] = []
    for entry in waiting:
        too_large = sum(other.size_bytes for other in portion) + entry.size_bytes > TOGETHER_BYTES
        if portion and (too_large or len(portion) == _TOGETHER):
            yield portion
            portion = []
        portion.append(entry)
    if portion:
        yield portion


def _overlooked(name: str) -> bool:
    return name.startswith(".") or name.endswith(_UNFINISHED_SUFFIXES)


def _read(path: Path) -> tuple[bytes, int]:
    """Return the beginning of a file, enough to see that it is too large, and its size in bytes."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as stream:
        return stream.read(MAX_BYTES + 1), os.fstat(descriptor).st_size


def _reserve(folder: Path, name: str) -> Path:
    """Create an empty file of a free name, for a rename to replace.

    Links would need no placeholder, but the kernel refuses links to other people's files (fs.protected_hardlinks).
    """
    for candidate in _names(name):
        try:
            (folder / candidate).touch(exist_ok=False)
        except FileExistsError:
            continue
        return folder / candidate
    raise AssertionError("names don't end")


def _link_free(source: Path, folder: Path, name: str) -> Path:
    for candidate in _names(name):
        try:
            (folder / candidate).hardlink_to(source)
        except FileExistsError:
            continue
        return folder / candidate
    raise AssertionError("names don't end")


def _names(name: str) -> Iterator[str]:
    plain = Path(os.fsdecode(os.fsencode(name)[:_MAX_NAME_BYTES]))
    yield plain.name
    for number in count(2):
        yield f"{plain.stem}-{number}{plain.suffix}"
