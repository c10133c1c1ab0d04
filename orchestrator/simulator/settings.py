"""What a simulation is to do: frozen, checked when made; an error names the command's option."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from orchestrator.errors import InvalidInput
from orchestrator.simulator.geometry import GeometryOverrides
from orchestrator.simulator.physics import Calibrant

DEFAULT_NUMBER = 200


class Layout(StrEnum):
    """How frames are spread over files."""

    SINGLE = "single"
    """One file holds everything."""
    MASTER = "master"
    """A NeXus master with a virtual dataset and external links over several data files."""


class Compression(StrEnum):
    """The filter that each frame passes through."""

    BITSHUFFLE_LZ4 = "bitshuffle-lz4"
    GZIP = "gzip"
    NONE = "none"


class PixelType(StrEnum):
    """Integer type of a pixel."""

    UINT16 = "uint16"
    UINT32 = "uint32"
    INT32 = "int32"


def refuse(option: str, value: object, must: str) -> InvalidInput:
    """Return the error for an option whose value can't be."""
    return InvalidInput(f"{option} {value}: must be {must}", remedy=f"give {option} another value")


def _need(ok: bool, option: str, value: object, must: str) -> None:
    if not ok:
        raise refuse(option, value, must)


@dataclass(frozen=True, kw_only=True)
class SyntheticFramesSettings:
    """Powder rings with Poisson noise. The defaults are a Medipix3 quad: 2 x 2 chips of 256 x 256 pixels of 55 µm."""

    calibrant: Calibrant = Calibrant.AGBH
    shape: tuple[int, int] = (515, 515)
    """(y, x)"""
    pixel_type: PixelType = PixelType.UINT32
    geometry: GeometryOverrides = field(default_factory=GeometryOverrides)
    peak_counts: float = 100.0
    background_counts: float = 1.0
    ring_fwhm_px: float = 4.0
    module_gaps: bool = True
    pool: int = 64
    """Different frames; after so many they repeat."""
    seed: int = 0

    def __post_init__(self) -> None:
        _need(min(self.shape) >= 1, "--shape", f"{self.shape[0]}x{self.shape[1]}", "at least 1x1")
        ceiling = 30_000 if self.pixel_type is PixelType.UINT16 else 1_000_000_000
        _need(0 < self.peak_counts <= ceiling, "--peak-counts", self.peak_counts, f"above 0 and at most {ceiling}")
        _need(0 <= self.background_counts <= 1000, "--background-counts", self.background_counts, "from 0 to 1000")
        _need(0.5 <= self.ring_fwhm_px <= 1000, "--ring-fwhm-px", self.ring_fwhm_px, "from 0.5 to 1000 pixels")
        _need(self.pool >= 1, "--pool", self.pool, "at least 1")
        _need(self.seed >= 0, "--seed", self.seed, "0 or more")
        check_geometry(self.geometry)


@dataclass(frozen=True, kw_only=True)
class ReplaySettings:
    """The frames of a real file. What the file says about its geometry is kept unless it is given here."""

    file: Path
    dataset: str
    geometry: GeometryOverrides = field(default_factory=GeometryOverrides)

    def __post_init__(self) -> None:
        check_geometry(self.geometry)


def check_geometry(geometry: GeometryOverrides) -> None:
    """Refuse lengths that aren't."""
    for option, value in (
        ("--distance-mm", geometry.distance_m),
        ("--pixel-um", geometry.pixel_m),
        ("--wavelength-angstrom", geometry.wavelength_angstrom),
    ):
        _need(value is None or (value > 0 and math.isfinite(value)), option, value, "above 0 and finite")
    centre = geometry.beam_center_px
    _need(centre is None or all(map(math.isfinite, centre)), "--beam-center", centre, "two finite numbers")


@dataclass(frozen=True, kw_only=True)
class Misbehaviour:
    """What goes wrong. Numbers count frames written, in the order of writing."""

    stall_after: int | None = None
    stall_for_s: float = 0.0
    die_after: int | None = None
    """The process ends on the spot after so many frames: nothing is closed, the file keeps its SWMR mark."""
    write_only: int | None = None
    """Frames from this index on are never written; the scan ends in order."""
    gaps: frozenset[int] = frozenset()
    """Indices of frames that are never written; their keys stay 0."""
    shuffle_within: int = 1
    """Frames are written in random order within blocks of this many."""

    def __post_init__(self) -> None:
        for option, value in (
            ("--stall-after", self.stall_after),
            ("--die-after", self.die_after),
            ("--write-only", self.write_only),
        ):
            _need(value is None or value >= 0, option, value, "0 or more")
        stalls = self.stall_for_s > 0 and math.isfinite(self.stall_for_s)
        _need(stalls or self.stall_after is None, "--stall-for", self.stall_for_s, "above 0 s with --stall-after")
        _need(not stalls or self.stall_after is not None, "--stall-for", self.stall_for_s, "given with --stall-after")
        _need(self.shuffle_within >= 1, "--shuffle-within", self.shuffle_within, "at least 1")


@dataclass(frozen=True, kw_only=True)
class SimulationSettings:
    """A scan of a simulated detector."""

    output: Path
    frames: SyntheticFramesSettings | ReplaySettings = field(default_factory=SyntheticFramesSettings)
    number: int | None = None
    """Frames announced; None: 200, or as many as the replayed file has."""
    rate_hz: float = 20.0
    """Infinity: as fast as the disk allows."""
    layout: Layout = Layout.SINGLE
    frames_per_file: int = 100
    preallocate: bool | None = None
    """Whether frame datasets have their full size from the start; None: in the layout `master` only.

    HDF5 can't read a virtual dataset at all where a source that exists is shorter than its mapping; where the source
    has its size but no chunk, readers get zeros.
    """
    compression: Compression = Compression.BITSHUFFLE_LZ4
    overwrite: bool = False
    misbehaviour: Misbehaviour = field(default_factory=Misbehaviour)

    def __post_init__(self) -> None:
        _need(self.number is None or self.number >= 1, "--number", self.number, "at least 1")
        _need(self.rate_hz > 0, "--rate", self.rate_hz, "above 0 Hz (inf: as fast as the disk allows)")
        _need(self.frames_per_file >= 1, "--frames-per-file", self.frames_per_file, "at least 1")

    @property
    def preallocates(self) -> bool:
        """Whether frame datasets have their full size from the start."""
        return self.layout is Layout.MASTER if self.preallocate is None else self.preallocate

    def check_against(self, number: int) -> None:
        """Refuse misbehaviour that `number` frames have no room for, so that a typo can't pass for a good run."""
        wrong = self.misbehaviour
        for option, value in (
            ("--stall-after", wrong.stall_after),
            ("--die-after", wrong.die_after),
            ("--write-only", wrong.write_only),
        ):
            _need(value is None or value <= number, option, value, f"at most the number of frames, {number}")
        outside = sorted(index for index in wrong.gaps if not 0 <= index < number)
        _need(not outside, "--gaps", ",".join(map(str, outside)), f"frame indices from 0 to {number - 1}")
