"""Which frames are ready: decided here, on one rank, for all.

A frame is ready when the writer says so (a key dataset: one whole number per frame, set when the frame is written, as
Diamond Light Source's writers do) and its chunks are in the file; without keys, when its chunks are in the file. Chunks
that hold several frames don't tell how many of them were written, so without keys a frame in such a chunk is ready when
the next chunk exists, and counts as provisional: it is read again when the writer has finished.
"""

from __future__ import annotations

import itertools
import math
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mpi_kernels.errors import NotThereYet, UnusableInput
from mpi_kernels.frame_dataset import FrameDataset
from mpi_kernels.frame_numbers import Numbers
from mpi_kernels.hdf5_files import Library, Place, WriterState, writer_state
from mpi_kernels.segments import Layout, Segment
from mpi_kernels.source import FrameSource

MOST_AT_ONCE = 4096
"""One look finds no more frames than this; the next goes on from there."""
_WINDOW = 64
"""How far ahead of the newest frame a poll looks; frames behind a longer gap are found by the next full poll."""
_NEAR = 16 * _WINDOW
"""Gaps are looked at by every poll when they are so near to the newest frame, or to the oldest gap."""
_FAR_AT_ONCE, _FAR_KEYS_AT_ONCE = 8192, 65536
"""A full poll looks at so many of the other frames, in turn: looking a chunk up that isn't there takes 20 µs."""
_MISSING_AT_ONCE = 8
"""A poll tries to open so many data files that weren't there; a full poll tries all."""
_KEY_NAMES = ("uid", "unique_keys", "unique_ids", "frame_uid")


@dataclass(frozen=True, order=True, slots=True)
class Ready:
    """A frame that can be read."""

    frame: int
    segment: int
    index: int
    provisional: bool
    live: bool


class Keys:
    """A dataset with one whole number per frame; the fill value or zero means *not written*.

    Parameters
    ----------
    dataset
        Its handle.
    numbers
        Which of them belongs to which frame of the segment.
    """

    def __init__(self, dataset: h5py.Dataset, numbers: Numbers, *, live: bool) -> None:
        self._id, self._dataset, self._numbers, self._live = dataset.id, dataset, numbers, live
        self._fill = dataset.fillvalue
        self._start = 0
        self._values: NDArray[Any] = np.empty(0, dataset.dtype)

    def look(self, first: int, last: int) -> None:
        """Read the keys of the segment's frames from `first` to before `last`."""
        if self._live:
            self._dataset.refresh()
        start, stop = self._numbers.span(first, last)
        row = math.prod(self._id.shape[1:])  # a grid scan is counted in C order
        top, end = (0, 0) if row == 0 else (start // row, min(-(-stop // row), self._id.shape[0]))
        self._start, self._values = top * row, self._dataset[top : max(top, end)].reshape(-1)

    def has(self, index: int) -> bool:
        """Whether the segment's frame was written, as far as the last look reached."""
        place = self._numbers.at(index) - self._start
        if not 0 <= place < len(self._values):
            return False
        return bool(self._values[place] != 0 and self._values[place] != self._fill)


class SegmentWatch:
    """Finds the frames of one segment as they become ready."""

    def __init__(self, number: int, segment: Segment, dataset: FrameDataset, keys: Sequence[Keys]) -> None:
        self._number, self._segment, self._dataset, self._keys = number, segment, dataset, keys
        self._found = np.zeros(_WINDOW, bool)
        self._low = 0  # the lowest frame that wasn't found yet
        self._top = 0  # one above the highest that was
        self._found_count = self._looked_at = 0
        self._turn = 0
        self._provisional = array("q")

    @property
    def live(self) -> bool:
        """Whether the segment's file was opened while somebody wrote it."""
        return self._dataset.live

    @property
    def files(self) -> set[Path]:
        """The files that hold the segment's frames."""
        return {holder.file for holder in self._dataset.holders}

    @property
    def caught_up(self) -> bool:
        """Whether everything that had its place in the file at the last look was found."""
        return self._low >= self._limit() and not self._provisional

    def poll(self, *, full: bool, final: bool) -> Iterator[Ready]:
        """Yield the frames that have become ready; it may be left before its end.

        Parameters
        ----------
        full
            Look farther than near the newest: in turn at every frame that could be there.
        final
            The writer has finished: whatever is in the file is complete.
        """
        if self._segment.count is not None and self._low >= self._segment.count and not self._provisional:
            return
        self._dataset.refresh()
        rescan = self._dataset.live or (final and bool(self._keys))
        candidates = self._candidates(full=full, final=final) if rescan else self._not_looked_at()
        final = final or not self._dataset.live
        limit = self._limit()
        if self._keys:
            self._look_at_keys(self._low if rescan else self._looked_at, limit, full=full or final)
        while final and self._provisional:
            yield self._ready(self._provisional.pop(), provisional=False)
        for index in candidates:
            if self._is_ready(index, final=final):
                provisional = self._guesses and not final
                self._note(index, provisional=provisional)
                yield self._ready(index, provisional=provisional)

    def _limit(self) -> int:
        limit = self._segment.positions.count_below(self._dataset.extent)
        return limit if self._segment.count is None else min(limit, self._segment.count)

    @property
    def _guesses(self) -> bool:
        return not self._keys and self._dataset.frames_per_chunk > 1

    def _ready(self, index: int, *, provisional: bool) -> Ready:
        return Ready(self._segment.frames.at(index), self._number, index, provisional, self._dataset.live)

    def _look_at_keys(self, first: int, limit: int, *, full: bool) -> None:
        if not full and self._top - first > _NEAR:  # an old gap is left to the full polls
            first = self._top - _NEAR
        last = limit if full else min(limit, self._top + _NEAR)
        for keys in self._keys if last > first else ():
            keys.look(first, last)

    def _candidates(self, *, full: bool, final: bool) -> Iterator[int]:
        limit = self._limit()
        middle = min(self._low + _NEAR, self._top)
        yield from self._gaps(self._low, middle)[:_WINDOW].tolist()
        yield from self._gaps(max(middle, self._top - _NEAR), self._top)[-_WINDOW:].tolist()
        index = self._top
        while index < limit and index < self._top + _WINDOW:  # _top moves on as frames are found
            yield index
            index += 1
        stored = self._stored_frames() if full or final else 0
        if stored <= self._found_count:
            return
        far = np.concatenate([self._gaps(self._low, self._top), np.arange(self._top, limit)])
        if not final:
            at_once = _FAR_AT_ONCE if not self._keys else _FAR_KEYS_AT_ONCE
            start = self._turn % max(1, len(far))
            self._turn = start + at_once
            far = far[start : start + at_once]
        for index in far.tolist():
            yield index
            if stored <= self._found_count:
                return

    def _stored_frames(self) -> float:
        """Return an upper bound of how many frames are in the file."""
        return math.inf if self._keys or self._guesses else self._dataset.stored_frames

    def _gaps(self, start: int, stop: int) -> NDArray[np.intp]:
        return start + np.flatnonzero(~self._found[start:stop])

    def _not_looked_at(self) -> Iterator[int]:
        """Yield each frame once: a file that nobody writes doesn't change."""
        limit = self._limit()
        while self._looked_at < limit:
            self._looked_at += 1
            yield self._looked_at - 1

    def _note(self, index: int, *, provisional: bool) -> None:
        if index >= len(self._found):
            self._found = np.concatenate([self._found, np.zeros(index + 1, bool)])
        self._found_count += not self._found[index]
        self._found[index] = True
        self._top = max(self._top, index + 1)
        while self._low < self._top and self._found[self._low]:
            self._low += 1
        if provisional:
            self._provisional.append(index)

    def _is_ready(self, index: int, *, final: bool) -> bool:
        position = self._segment.positions.at(index)
        if self._keys:
            written = all(keys.has(index) for keys in self._keys)
            if final and self._dataset.frames_per_chunk == 1 and self._dataset.allocated_as_written:
                return written or self._dataset.has(position)  # a writer may die before the key
            return written and (final or self._dataset.has(position))
        if not self._dataset.allocated_as_written and not final:
            return False  # storage is there before the frames are
        if not self._dataset.has(position):
            return False
        return final or not self._guesses or self._dataset.has_later_chunk(position)


class Readiness:
    """Finds ready frames in all segments, and whether their writers have finished."""

    def __init__(
        self, library: Library, layout: Layout, source: FrameSource, keys_dataset: str | None, *, finished: bool
    ) -> None:
        self._library, self._layout, self._source = library, layout, source
        self._keys_dataset = keys_dataset
        self._finished = finished  # the caller says that the input is finished as it is
        self._watches: dict[int, SegmentWatch] = {}
        self._missing: list[int] = []  # segments whose file isn't there, or may be opened again
        self._done: set[int] = set()
        self._known = 0
        self._being_written: Path | None = None

    def poll(self, file: Path, *, full: bool = False, final: bool = False) -> list[Ready]:
        """Return frames that have become ready since the last poll, in frame order; no more than `MOST_AT_ONCE`."""
        self._layout.extend()
        self._missing.extend(range(self._known, len(self._layout.segments)))
        self._known = len(self._layout.segments)
        self._open_missing(file, full=full, final=final)
        frames = itertools.islice(self._poll_each(full=full, final=final), MOST_AT_ONCE)
        return sorted(frames, key=lambda ready: ready.frame)

    def _poll_each(self, *, full: bool, final: bool) -> Iterator[Ready]:
        for number, watch in self._watches.items():
            if number in self._done and not full:
                continue
            complete = self._layout.is_complete(number)  # before the look
            yield from watch.poll(full=full, final=final)
            if complete and watch.caught_up:
                self._done.add(number)

    def _open_missing(self, file: Path, *, full: bool, final: bool) -> None:
        for number in self._missing[: None if full else _MISSING_AT_ONCE]:
            # otherwise its file may still appear
            with suppress(NotThereYet):
                self._watches[number] = self._watch(number, self._layout.segments[number], file, final=final)
        self._missing = [number for number in self._missing if number not in self._watches]

    @property
    def segments(self) -> Sequence[Segment]:
        """All segments known so far; `Ready.segment` counts them."""
        return self._layout.segments

    @property
    def lacks_files(self) -> bool:
        """Whether data files that the input names have never appeared."""
        return self._layout.open_ended or bool(self._missing)

    def nothing_more_to_come(self, file: Path, *, stall_timeout_s: float) -> bool:
        """Whether every file that is there was closed by its writer, and no more is to be expected.

        Parameters
        ----------
        stall_timeout_s
            Missing files aren't expected any more when those that are there haven't changed for so long.
        """
        if self._being_written is not None and writer_state(self._being_written) is not WriterState.CLOSED:
            return False  # with thousands of files, asking all of them each time takes long
        files = {found for watch in self._watches.values() for found in watch.files} | {file}
        self._being_written = next((item for item in files if writer_state(item) is not WriterState.CLOSED), None)
        if self._being_written is not None:
            return False
        if self._finished or not self.lacks_files:
            return True
        return all(time.time() - item.stat().st_mtime > stall_timeout_s for item in files)

    def _watch(self, number: int, segment: Segment, file: Path, *, final: bool) -> SegmentWatch:
        if not (final or self._finished) and self._source.let_go_of_unfinished(segment):
            raise NotThereYet(f"{segment}: closed, but frames are missing")
        dataset = self._source.dataset(segment)
        return SegmentWatch(number, segment, dataset, self._find_keys(segment, dataset, file))

    def _find_keys(self, segment: Segment, dataset: FrameDataset, file: Path) -> list[Keys]:
        """Return the keys beside the frames, of every dataset that has any, or else those of the whole scan."""
        if self._keys_dataset is not None:
            return [self._keys(self._library.locate(file, self._keys_dataset), segment.frames)]
        beside = []
        for holder in dataset.holders:
            if holder.positions is None:
                continue
            parent = holder.path.rpartition("/")[0] or "/"
            group = self._library.file(holder.file)[parent]
            name = next((name for name in _KEY_NAMES if group.get(name, getclass=True) is h5py.Dataset), None)
            if name is not None:
                beside.append(self._keys(self._library.locate(holder.file, f"{parent}/{name}"), holder.positions))
        return beside or self._scan_keys(segment, file)

    def _scan_keys(self, segment: Segment, file: Path) -> list[Keys]:
        """Return the keys of the whole scan, ``/entry/diamond_scan/keys/…``, if there is exactly one such dataset."""
        root = self._library.file(file)
        for entry in root:
            path = f"/{entry}/diamond_scan/keys"
            if isinstance(root.get(entry, getlink=True), h5py.HardLink) and path in root and len(root[path]) == 1:
                place = self._library.locate(file, f"{path}/{next(iter(root[path]))}")
                if self._library.virtual(place) is None:
                    return [self._keys(place, segment.frames)]
        return []

    def _keys(self, place: Place, numbers: Numbers) -> Keys:
        dataset = self._library.dataset(place.file, place.path)
        if dataset.dtype.kind not in "ui" or not dataset.shape:
            raise UnusableInput(
                f"{place}: {dataset.dtype} of shape {dataset.shape} can't be the frames' keys",
                remedy="give --keys-dataset a dataset of one whole number per frame",
            )
        return Keys(dataset, numbers, live=self._library.is_live(place.file))
