"""Writes frames on schedule as a detector does, in SWMR mode, and notes when each of them became visible.

    python live_writer.py SOURCE OUTPUT FRAMES RATE FLUSH_EVERY READY NOTES

Geometry and stored frames are SOURCE's, which must be a finished file of `kernel_files`; nothing is compressed here.
Frames begin when the file READY is there. NOTES (.npy) gets two rows: when each frame's flush had returned, and when it
should have been written, both in seconds of the wall clock.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import h5py
import numpy as np

from orchestrator.simulator.encoding import FILTERS
from orchestrator.simulator.nexus import FINISHED, FRAMES, KEYS, LIBVER
from orchestrator.simulator.settings import Compression

SETTLE_S = 0.5
PATIENCE_S = 60


class LiveFile:
    """The growing file: frames, a key for each of them, and a flag that says when all are there."""

    def __init__(self, path: Path, source: h5py.File, frames: int) -> None:
        self._file = h5py.File(path, "w", libver=LIBVER)
        source.copy("/entry/instrument", self._file.create_group("entry"))
        shape, dtype = source[FRAMES].shape[1:], source[FRAMES].dtype
        self._frames = self._file.create_dataset(
            FRAMES,
            shape=(0, *shape),
            maxshape=(None, *shape),
            chunks=(1, *shape),
            dtype=dtype,
            **FILTERS[Compression.BITSHUFFLE_LZ4],
        )
        self._keys = self._file.create_dataset(KEYS, data=np.zeros(frames, np.int64), chunks=(1024,), maxshape=(None,))
        self._finished = self._file.create_dataset(FINISHED, data=np.zeros(1, np.int32), chunks=(1,), maxshape=(None,))
        self._file.swmr_mode = True

    def append(self, index: int, chunk: bytes) -> None:
        """Write a frame; it isn't visible yet."""
        self._frames.resize(index + 1, axis=0)
        self._frames.id.write_direct_chunk((index, 0, 0), chunk)

    def show(self, first: int, stop: int) -> float:
        """Make frames visible, then their keys; return when the frames were."""
        self._frames.flush()
        visible_s = time.time()
        self._keys[first:stop] = np.arange(first, stop) + 1
        self._keys.flush()
        return visible_s

    def finish(self) -> None:
        """Say that all is written."""
        self._finished[0] = 1
        self._finished.flush()
        self._file.close()


def write(file: LiveFile, chunks: list[bytes], *, frames: int, rate_hz: float, flush_every: int) -> np.ndarray:
    """Write all frames when they are due; return when each was visible, and when it was due."""
    due_s = time.time() + np.arange(frames) / rate_hz
    visible_s = np.empty(frames)
    shown = 0
    for index in range(frames):
        time.sleep(max(0.0, due_s[index] - time.time()))
        file.append(index, chunks[index % len(chunks)])
        if index + 1 - shown == flush_every or index + 1 == frames:
            visible_s[shown : index + 1] = file.show(shown, index + 1)
            shown = index + 1
    return np.stack([visible_s, due_s])


def main() -> None:
    """Write the file."""
    source_path, output, frames, rate, flush_every, ready, notes = sys.argv[1:]
    with h5py.File(source_path) as source:
        distinct = min(int(frames), len(source[FRAMES]))
        chunks = [source[FRAMES].id.read_direct_chunk((index, 0, 0))[1] for index in range(min(distinct, 32))]
        file = LiveFile(Path(output), source, int(frames))
    give_up = time.monotonic() + PATIENCE_S
    while not Path(ready).exists():
        if time.monotonic() > give_up:
            raise SystemExit(f"{ready} wasn't there within {PATIENCE_S} s")
        time.sleep(0.01)
    time.sleep(SETTLE_S)
    noted = write(file, chunks, frames=int(frames), rate_hz=float(rate), flush_every=int(flush_every))
    file.finish()
    np.save(notes, noted)


if __name__ == "__main__":
    main()
