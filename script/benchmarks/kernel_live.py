"""How soon after a frame became visible in a growing file its result was there, at several rates; and was it right.

A writer, the kernel, and a reader of the result run as processes of their own, as they would at a beamline. Lags are
differences of the wall clock on one machine: *computed* from the writer's flush to the time that the kernel noted when
it had the frame's result (``frames/computed_time``; where a result lacks it, when it wrote the row), *visible* to the
reader's seeing it. Then the finished file is processed again, and each row compared bit for bit.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from kernel_files import FrameFile
from kernel_programs import (
    CHECKOUT,
    COMPUTED_TIME,
    PATIENCE_S,
    PROCESSED,
    PROCESSED_TIME,
    STATUS,
    azimuthal,
    wait_for,
)
from numpy.typing import NDArray

from orchestrator.errors import OrchestratorError

SECONDS, QUICK_SECONDS = 5.0, 0.5
MOST_FRAMES = 4500
"""2.5 GB: more than that at once, and the system makes the writer wait for the disk."""
_HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How a live file is written, and read."""

    frames_per_s: int
    flush_every: int
    ranks: int

    @property
    def name(self) -> str:
        """As it is called in tables."""
        return f"live {self.frames_per_s}/s, {self.ranks} rank{'s' * (self.ranks > 1)}"


RATES = [
    Rate(frames_per_s=frames_per_s, flush_every=flush_every, ranks=ranks)
    for frames_per_s, flush_every in ((20, 1), (100, 1), (500, 10), (1500, 20))
    for ranks in (1, 2)
]


def measure(rate: Rate, source: FrameFile, folder: Path, *, seconds: float) -> dict[str, Any]:
    """Write and process one live file in an empty folder.

    Raises
    ------
    OrchestratorError
        When the writer, the kernel or the reader failed.
    """
    frames = min(MOST_FRAMES, max(2, round(rate.frames_per_s * seconds)))
    os.sync()  # a disk that is still busy with earlier files would hold up the writer
    file, result, again = (folder / name for name in ("live.h5", "live-result.h5", "live-again.h5"))
    written, seen = folder / "written.npy", folder / "seen.npy"
    kernel = azimuthal(ranks=rate.ranks)
    write = _start("live_writer", source.path, file, frames, rate.frames_per_s, rate.flush_every, result, written)
    watch = _start("live_watcher", result, frames, seen)
    try:
        with kernel.running(file, result, "--mode", "auto", "--expected", str(frames)) as process:
            wait_for(process)
        _wait(write, "the writer")
        _wait(watch, "the reader of the result")
    finally:
        for helper in (write, watch):
            if helper.poll() is None:
                helper.terminate()
                helper.wait()
    azimuthal().run(file, again, "--mode", "finished")
    visible_s, due_s = np.load(written)
    figures = _lags(result, visible_s, np.load(seen))
    return figures | {
        "frames": frames,
        "frames_per_s": rate.frames_per_s,
        "ranks": rate.ranks,
        "wrong": wrong_frames(result, again, frames),
        "writer_late_ms": float((visible_s - due_s)[rate.flush_every - 1 :: rate.flush_every].max() * 1e3),
    }


def _start(program: str, *arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(_HERE / f"{program}.py"), *map(str, arguments)]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(CHECKOUT)})


def _wait(process: subprocess.Popen[bytes], who: str) -> None:
    try:
        code = process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired as error:
        raise OrchestratorError(f"{who} hadn't ended after {PATIENCE_S} s") from error
    if code:
        raise OrchestratorError(f"{who} ended with {code}")


def _lags(result: Path, visible_s: NDArray[np.float64], seen_s: NDArray[np.float64]) -> dict[str, Any]:
    with h5py.File(result) as file:
        stamp = COMPUTED_TIME if COMPUTED_TIME in file else PROCESSED_TIME
        computed_s = file[stamp][()]
    if len(computed_s) != len(visible_s):
        raise OrchestratorError(f"{len(computed_s)} rows for {len(visible_s)} frames")
    if np.isnan(seen_s).any():
        raise OrchestratorError(f"{np.isnan(seen_s).sum()} of {len(seen_s)} frames never became visible in the result")
    return {
        "stamp": stamp.rpartition("/")[2],
        "computed_ms": ((computed_s - visible_s) * 1e3).round(3).tolist(),
        "visible_ms": ((seen_s - visible_s) * 1e3).round(3).tolist(),
    }


def wrong_frames(result: Path, other: Path, frames: int) -> int:
    """Return how many frames have no result, or one that differs in any bit from that of the other file."""
    with h5py.File(result) as ours, h5py.File(other) as theirs:
        wrong = ours[STATUS][:frames] != PROCESSED
        for name, dataset in ours["entry/data"].items():
            if dataset.ndim and dataset.maxshape[0] is None:  # a row for each frame
                wrong |= (_bits(dataset, frames) != _bits(theirs["entry/data"][name], frames)).any(axis=1)
    return int(wrong.sum())


def _bits(dataset: h5py.Dataset, frames: int) -> NDArray[np.uint8]:
    return np.ascontiguousarray(dataset[:frames]).view(np.uint8).reshape(frames, -1)
