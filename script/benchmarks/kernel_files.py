"""The files that the kernels are measured on: synthetic Eiger-1M frames, bitshuffle-LZ4, one frame per chunk.

In: a folder and how many frames. Out: files as the simulated detector writes them, finished. Some tens of different
frames are repeated, so that a file of thousands is made in seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from orchestrator.simulator.nexus import FRAMES
from orchestrator.simulator.run import simulate
from orchestrator.simulator.settings import PixelType, SimulationSettings, SyntheticFramesSettings

DATASET = FRAMES
SHAPE, QUICK_SHAPE = (1028, 1062), (257, 266)
BINS = 1000
_BLOCK_BYTES = 1 << 24
_DISTINCT, _QUICK_DISTINCT = 32, 4


@dataclass(frozen=True, kw_only=True)
class Load:
    """One kind of frames.

    Parameters
    ----------
    peak_counts, background_counts
        Expected counts of the strongest ring's crest, and between the rings.
    share
        How many frames a file of it has, beside one of the middle load: hot frames take more room.
    """

    name: str
    pixel_type: PixelType
    peak_counts: float
    background_counts: float
    share: float = 1.0


def _loads() -> dict[str, Load]:
    counts = {"middle": (300.0, 3.0, 1.0), "sparse": (1.0, 0.02, 1.0), "hot": (30_000.0, 1000.0, 0.5)}
    loads = [
        Load(
            name=f"{name} {pixel_type.value}",
            pixel_type=pixel_type,
            peak_counts=peak,
            background_counts=background,
            share=share,
        )
        for pixel_type in (PixelType.UINT32, PixelType.UINT16)
        for name, (peak, background, share) in counts.items()
    ]
    return {load.name: load for load in loads}


LOADS = _loads()
MIDDLE, HOT_16 = "middle uint32", "hot uint16"
"""The load that most is measured with (a stored frame has 575 kB, 1/7.6), and that of the target for hot frames."""


@dataclass(frozen=True, kw_only=True)
class FrameFile:
    """A finished file of one load."""

    path: Path
    load: Load
    frames: int
    distinct: int
    """Frame i holds what frame ``i % distinct`` holds."""

    @property
    def stored_bytes(self) -> float:
        """Mean size of a stored frame."""
        return self.path.stat().st_size / self.frames

    def into_memory(self) -> None:
        """Read it once, so that it is in the page cache: some systems take back what wasn't used for a while."""
        block = bytearray(_BLOCK_BYTES)
        with self.path.open("rb", buffering=0) as stream:
            while stream.readinto(block):
                pass


class FrameFiles:
    """Makes the files when they are asked for, and keeps them.

    Parameters
    ----------
    folder
        Files that are already there, from an earlier run, are taken.
    frames
        Frames of a file of the middle load.
    quick
        Small frames, for a look whether everything works.
    """

    def __init__(self, folder: Path, *, frames: int, quick: bool) -> None:
        self._folder, self._frames = folder, frames
        self._shape = QUICK_SHAPE if quick else SHAPE
        self._distinct = _QUICK_DISTINCT if quick else _DISTINCT

    def of(self, name: str, *, length: float = 1.0) -> FrameFile:
        """Return the file of a load; `length` makes it shorter than it is by default, or longer."""
        load = LOADS[name]
        frames = max(self._distinct, math.ceil(self._frames * load.share * length))
        size = "x".join(map(str, self._shape))
        path = self._folder / f"{name.replace(' ', '-')}-{size}-{frames}.h5"
        file = FrameFile(path=path, load=load, frames=frames, distinct=self._distinct)
        if not path.exists():
            self._make(file)
        return file

    def _make(self, file: FrameFile) -> None:
        unfinished = file.path.with_suffix(".making")
        frames = SyntheticFramesSettings(
            shape=self._shape,
            pixel_type=file.load.pixel_type,
            peak_counts=file.load.peak_counts,
            background_counts=file.load.background_counts,
            pool=file.distinct,
        )
        simulate(
            SimulationSettings(output=unfinished, frames=frames, number=file.frames, rate_hz=math.inf, overwrite=True)
        )
        unfinished.rename(file.path)
