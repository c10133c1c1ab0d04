"""Which frames are ready: decided here, on one rank, for all.

A frame is ready when the writer says so (a key dataset: one whole number per frame, set when the frame is written, as
Diamond Light Source's writers do) and its chunks are in the file; without keys, when its chunks are in the file. Chunks
that hold several frames don't tell how many of them were written, so without keys a frame in such a chunk is ready when
the next chunk exists, and counts as provisional: it is read again when the writer has finished.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mpi_kernels.errors import NotThereYet, UnusableInput
from mpi_kernels.hdf5_files import Library, WriterState, writer_state
from mpi_kernels.segments import Layout, Segment
from mpi_kernels.source import FrameDataset, FrameSource

_WINDOW = 64
"""How far ahead of the newest frame a poll looks; frames behind a longer gap are found by the next full poll."""
_KEY_NAMES = ("uid", "unique_keys", "unique_ids", "frame_uid")


@dataclass(frozen=True, order=True)
class Ready:
    """A frame that can be read."""

    frame: int
    segment: int
    index: int
    provisional: bool
    live: bool


class Keys:
    """A dataset with one whole number per frame; the fill value or zero means *not written*."""

    def __init__(self, dataset: h5py.Dataset, *, live: bool, by_frame: bool) -> None:
        self._id, self._dataset, self._live = dataset.id, dataset, live
        self.by_frame = by_frame
        """Counted by the frame's number, not by its position in the segment's dataset."""
        self._fill = dataset.fillvalue
        self._start = 0
        self._values: NDArray[Any] = np.empty(0, dataset.dtype)

    def look(self, start: int, stop: int) -> None:
        """Read the keys from `start` to before `stop`."""
        if self._live:
            self._dataset.refresh()
        if len(self._id.shape) > 1 and self._id.shape[1] > 1:  # a grid scan: counted in C order
            self._start, self._values = 0, self._dataset[...].reshape(-1)
        else:
            stop = min(stop, self._id.shape[0])
            self._start, self._values = start, self._dataset[start : max(start, stop)].reshape(-1)

    def has(self, number: int) -> bool:
        """Whether the frame was written, as far as the last look reached."""
        index = number - self._start
        if not 0 <= index < len(self._values):
            return False
        return bool(self._values[index] != 0 and self._values[index] != self._fill)


class SegmentWatch:
    """Finds the frames of one segment as they become ready."""

    def __init__(self, number: int, segment: Segment, dataset: FrameDataset, keys: Keys | None) -> None:
        self._number, self._segment, self._dataset, self._keys = number, segment, dataset, keys
        self._top = 0
        self._gaps: set[int] = set()
        self._provisional: set[int] = set()

    def poll(self, *, full: bool, final: bool) -> Iterator[Ready]:
        """Yield the frames that have become ready.

        Parameters
        ----------
        full
            Look at every frame that could be there, not only near the newest.
        final
            The writer has finished: whatever is in the file is complete.
        """
        self._dataset.refresh()
        final = final or not self._dataset.live
        limit = self._segment.positions.count_below(self._dataset.extent)
        limit = limit if self._segment.count is None else min(limit, self._segment.count)
        if self._keys is not None:
            self._look_at_keys(limit, full=full)
        if final and self._provisional:
            again, self._provisional = sorted(self._provisional), set()
            yield from (self._ready(index, provisional=False) for index in again)
        for index in self._candidates(limit, full=full or final):
            if self._is_ready(index, final=final):
                provisional = self._guesses and not final
                self._note(index, provisional=provisional)
                yield self._ready(index, provisional=provisional)

    @property
    def _guesses(self) -> bool:
        return self._keys is None and self._dataset.frames_per_chunk > 1

    def _ready(self, index: int, *, provisional: bool) -> Ready:
        return Ready(self._segment.frames.at(index), self._number, index, provisional, self._dataset.live)

    def _look_at_keys(self, limit: int, *, full: bool) -> None:
        assert self._keys is not None  # noqa: S101
        first = min(self._gaps, default=self._top)
        if not full and self._top - first > 16 * _WINDOW:  # an old gap is left to the full polls
            first = self._top
        last = limit if full else min(limit, self._top + 16 * _WINDOW)
        numbers = self._segment.frames if self._keys.by_frame else self._segment.positions
        if last > first:
            self._keys.look(numbers.at(first), numbers.at(last - 1) + 1)

    def _candidates(self, limit: int, *, full: bool) -> Iterator[int]:
        gaps = sorted(self._gaps)
        yield from gaps if full else gaps[:_WINDOW]
        index = self._top
        while index < limit and (full or index < self._top + _WINDOW):  # _top moves on as frames are found
            yield index
            index += 1

    def _note(self, index: int, *, provisional: bool) -> None:
        if index >= self._top:
            self._gaps.update(range(self._top, index))
            self._top = index + 1
        self._gaps.discard(index)
        if provisional:
            self._provisional.add(index)

    def _is_ready(self, index: int, *, final: bool) -> bool:
        position = self._segment.positions.at(index)
        if self._keys is not None:
            number = self._segment.frames.at(index) if self._keys.by_frame else position
            if final and self._dataset.frames_per_chunk == 1 and self._dataset.allocated_as_written:
                return self._keys.has(number) or self._dataset.has(position)  # a writer may die before the key
            return self._keys.has(number) and (final or self._dataset.has(position))
        if not self._dataset.allocated_as_written and not final:
            return False  # storage is there before the frames are
        if not self._dataset.has(position):
            return False
        return final or not self._guesses or self._next_chunk_exists(position)

    def _next_chunk_exists(self, position: int) -> bool:
        if len(self._dataset.scan_shape) != 1:
            return False
        depth = self._dataset.frames_per_chunk
        return self._dataset.has((position // depth + 1) * depth)


class Readiness:
    """Finds ready frames in all segments, and whether their writers have finished."""

    def __init__(self, library: Library, layout: Layout, source: FrameSource, keys_dataset: str | None) -> None:
        self._library, self._layout, self._source = library, layout, source
        self._keys_dataset = keys_dataset
        self._watches: dict[int, SegmentWatch] = {}

    def poll(self, file: Path, *, full: bool = False, final: bool = False) -> list[Ready]:
        """Return the frames that have become ready since the last poll, in frame order."""
        self._layout.extend()
        found: list[Ready] = []
        for number, segment in enumerate(self._layout.segments):
            if number not in self._watches:
                try:
                    self._watches[number] = self._watch(number, segment, file)
                except NotThereYet:
                    continue  # its file may still appear
            found.extend(self._watches[number].poll(full=full, final=final))
        return sorted(found, key=lambda ready: ready.frame)

    @property
    def segments(self) -> Sequence[Segment]:
        """All segments known so far; `Ready.segment` counts them."""
        return self._layout.segments

    def nothing_more_to_come(self, file: Path, *, finished: bool, stall_timeout_s: float) -> bool:
        """Whether every file that is there was closed by its writer, and no more is to be expected.

        Parameters
        ----------
        finished
            The caller says that the input is finished as it is.
        stall_timeout_s
            Missing files aren't expected any more when those that are there haven't changed for so long.
        """
        files = {self._layout.segments[number].file for number in self._watches} | {file}
        if any(writer_state(item) is not WriterState.CLOSED for item in files):
            return False
        if finished:
            return True
        missing = self._layout.open_ended or len(self._watches) < len(self._layout.segments)
        return not missing or all(time.time() - item.stat().st_mtime > stall_timeout_s for item in files)

    def _watch(self, number: int, segment: Segment, file: Path) -> SegmentWatch:
        dataset = self._source.dataset(segment)
        return SegmentWatch(number, segment, dataset, self._find_keys(segment, file))

    def _find_keys(self, segment: Segment, file: Path) -> Keys | None:
        if self._keys_dataset is not None:
            place = self._library.locate(file, self._keys_dataset)
            return self._keys(place.file, place.path, by_frame=True)
        parent = segment.dataset.rpartition("/")[0] or "/"
        group = self._library.file(segment.file)[parent]
        for name in _KEY_NAMES:
            if group.get(name, getclass=True) is h5py.Dataset:
                return self._keys(segment.file, f"{parent}/{name}", by_frame=False)
        return self._scan_keys(file)

    def _scan_keys(self, file: Path) -> Keys | None:
        """Return the keys of the whole scan, ``/entry/diamond_scan/keys/…``, if there is exactly one such dataset."""
        root = self._library.file(file)
        for entry in root:
            path = f"/{entry}/diamond_scan/keys"
            if isinstance(root.get(entry, getlink=True), h5py.HardLink) and path in root and len(root[path]) == 1:
                place = self._library.locate(file, f"{path}/{next(iter(root[path]))}")
                if self._library.mappings(place) is None:
                    return self._keys(place.file, place.path, by_frame=True)
        return None

    def _keys(self, file: Path, path: str, *, by_frame: bool) -> Keys:
        dataset = self._library.dataset(file, path)
        if dataset.dtype.kind not in "ui" or not dataset.shape:
            raise UnusableInput(
                f"{file}::{path}: {dataset.dtype} of shape {dataset.shape} can't be the frames' keys",
                remedy="give --keys-dataset a dataset of one whole number per frame",
            )
        live = self._library.is_live(self._library.locate(file, path).file)
        return Keys(dataset, live=live, by_frame=by_frame)
