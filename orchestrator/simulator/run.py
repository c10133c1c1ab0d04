"""A scan from beginning to end: prepare the frames, create the files, write on schedule, misbehave if told to."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import OrchestratorError
from orchestrator.simulator.encoding import FrameEncoder
from orchestrator.simulator.frames import FrameSource, SyntheticFrames
from orchestrator.simulator.misbehaviour import due_s, writing_order
from orchestrator.simulator.nexus import Scan
from orchestrator.simulator.replay import ReplayedFrames
from orchestrator.simulator.settings import DEFAULT_NUMBER, ReplaySettings, SimulationSettings
from orchestrator.simulator.writers import DetectorWriter, make_room, open_writer

DEATH_EXIT_CODE = 70
"""Exit code of a process that was told to die (``--die-after``)."""


@dataclass(frozen=True, kw_only=True)
class SimulationReport:
    """What was written."""

    files: tuple[Path, ...]
    frames_expected: int
    frames_written: int
    duration_s: float
    latest_s: float
    """The most by which a frame was later than its schedule; 0 at an infinite rate, which has none."""

    @property
    def rate_hz(self) -> float:
        """Frames per second as they came to be."""
        return self.frames_written / self.duration_s if self.duration_s > 0 else 0.0


@contextmanager
def open_frames(settings: SimulationSettings) -> Iterator[FrameSource]:
    """Open the source of the scan's frames."""
    if isinstance(settings.frames, ReplaySettings):
        with ReplayedFrames(settings.frames) as replayed:
            yield replayed
    else:
        yield SyntheticFrames(settings.frames)


def announced(settings: SimulationSettings, source: FrameSource) -> int:
    """Return how many frames the scan announces."""
    if settings.number is not None:
        return settings.number
    return source.distinct if isinstance(settings.frames, ReplaySettings) else DEFAULT_NUMBER


def simulate(
    settings: SimulationSettings,
    on_frame: Callable[[int], None] = lambda _: None,
    on_start: Callable[[int], None] = lambda _: None,
    sleep: Callable[[float], None] = time.sleep,
) -> SimulationReport:
    """Write a scan, on schedule, while others read.

    Parameters
    ----------
    on_frame
        Called after each frame with the number of frames written so far.
    on_start
        Called once with the number of frames announced, when the file exists and SWMR has begun.
    sleep
        Called before each frame with the seconds until it is due, 0 if it is late; what it raises ends the scan, and
        the files are closed.

    Raises
    ------
    InvalidInput
        Settings, the replayed file or the output can't be used.
    OrchestratorError
        Writing failed half-way, e.g. the disk is full.
    """
    with open_frames(settings) as source, FrameEncoder(source, settings.compression) as encoder:
        number = announced(settings, source)
        settings.check_against(number)
        make_room(settings)
        encoder.prepare(number)
        order = writing_order(number, settings.misbehaviour)
        scan = Scan(source=source, number=number, frame_time_s=1 / settings.rate_hz)
        with open_writer(settings, scan, order) as writer:
            on_start(number)
            began = time.monotonic()
            latest_s = _write_all(settings, encoder, writer, order, on_frame=on_frame, sleep=sleep)
            writer.finish()
            return SimulationReport(
                files=tuple(writer.files),
                frames_expected=number,
                frames_written=len(order),
                duration_s=time.monotonic() - began,
                latest_s=latest_s,
            )


def _write_all(
    settings: SimulationSettings,
    encoder: FrameEncoder,
    writer: DetectorWriter,
    order: list[int],
    *,
    on_frame: Callable[[int], None],
    sleep: Callable[[float], None],
) -> float:
    """Write the frames in `order`, each when it is due; return by how much the latest was late, in seconds."""
    wrong = settings.misbehaviour
    start = time.monotonic()
    latest_s = 0.0
    for position, index in enumerate(order):
        if position == wrong.die_after:
            os._exit(DEATH_EXIT_CODE)
        chunk = encoder.encoded(index)
        wait_s = start + due_s(position, settings.rate_hz, wrong) - time.monotonic()
        sleep(max(wait_s, 0))
        if math.isfinite(settings.rate_hz):
            latest_s = max(latest_s, -wait_s)
        try:
            writer.write(index, chunk)
        except (OSError, RuntimeError) as error:
            raise OrchestratorError(
                f"{writer.path}: writing frame {index} failed: {error}", remedy="see whether the disk is full"
            ) from error
        on_frame(position + 1)
    if wrong.die_after is not None:
        os._exit(DEATH_EXIT_CODE)
    return latest_s
