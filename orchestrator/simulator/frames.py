"""Where frames come from: computed powder rings, or a real file (see `replay`). In: settings. Out: arrays (y, x)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from orchestrator.errors import InvalidInput
from orchestrator.simulator.geometry import DetectorGeometry
from orchestrator.simulator.physics import Calibrant, powder_pattern
from orchestrator.simulator.settings import PixelType, SyntheticFramesSettings

Frame = npt.NDArray[np.integer[Any]]
PixelMask = npt.NDArray[np.uint32]

CHIP_PX = 256
CHIP_GAP_PX = 3
_BREATHING = 0.5

DEFAULT_PIXEL_M = 55e-6
_DEFAULT_DISTANCE_AND_WAVELENGTH: Mapping[Calibrant, tuple[float, float]] = {
    Calibrant.AGBH: (0.150, 1.0),
    Calibrant.LAB6: (0.060, 0.4),
}
_PIXEL_TYPES: Mapping[PixelType, np.dtype[Any]] = {name: np.dtype(name.value) for name in PixelType}


class FrameSource(Protocol):
    """Frames and what must be known about them to write a NeXus file."""

    @property
    def title(self) -> str:
        """One line about the frames."""
        ...

    @property
    def sample(self) -> str: ...

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def geometry(self) -> DetectorGeometry: ...

    @property
    def pixel_mask(self) -> PixelMask | None:
        """Bits as NXdetector defines them (bit 0: no sensor); None where nothing is masked."""
        ...

    @property
    def distinct(self) -> int:
        """How many different frames there are; scan frame i shows number ``i % distinct``."""
        ...

    def frame(self, number: int) -> Frame:
        """Return one of the distinct frames, (y, x)."""
        ...


def default_geometry(calibrant: Calibrant, shape: tuple[int, int]) -> DetectorGeometry:
    """Return a geometry that puts some rings of `calibrant` on a detector of `shape`, the beam off its middle."""
    distance_m, wavelength_angstrom = _DEFAULT_DISTANCE_AND_WAVELENGTH[calibrant]
    return DetectorGeometry(
        distance_m=distance_m,
        x_pixel_m=DEFAULT_PIXEL_M,
        y_pixel_m=DEFAULT_PIXEL_M,
        wavelength_angstrom=wavelength_angstrom,
        beam_center_x_px=round(0.47 * shape[1], 1),
        beam_center_y_px=round(0.53 * shape[0], 1),
    )


def chip_gaps(shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return where a detector tiled of chips has no sensor: True in the 3 pixels between two 256-pixel chips."""
    period = CHIP_PX + CHIP_GAP_PX
    rows, columns = (np.arange(size) % period >= CHIP_PX for size in shape)
    return rows[:, None] | columns[None, :]


def sentinel(dtype: np.dtype[Any]) -> int:
    """Return what detectors write where there is no sensor: the largest unsigned value, or -1."""
    limits = np.iinfo(dtype)
    return -1 if limits.min < 0 else int(limits.max)


class SyntheticFrames:
    """Powder rings with Poisson noise; the rings breathe by ±50 % over the pool, so that a live plot is seen to live.

    Frame `number` depends on the settings and `number` only: the same seed gives the same frames.
    """

    def __init__(self, settings: SyntheticFramesSettings) -> None:
        self._settings = settings
        self.title = f"Simulated powder rings of {settings.calibrant}"
        self.sample = {Calibrant.AGBH: "silver behenate", Calibrant.LAB6: "LaB6 (SRM 660c)"}[settings.calibrant]
        self.shape = settings.shape
        self.dtype = _PIXEL_TYPES[settings.pixel_type]
        self.geometry = settings.geometry.applied_to(default_geometry(settings.calibrant, settings.shape))
        self.distinct = settings.pool
        self._gaps = chip_gaps(self.shape) if settings.module_gaps else None
        self.pixel_mask: PixelMask | None = None if self._gaps is None else self._gaps.astype(np.uint32)
        self._pattern = powder_pattern(
            settings.calibrant,
            self.geometry,
            self.shape,
            peak_counts=settings.peak_counts,
            background_counts=settings.background_counts,
            ring_fwhm_px=settings.ring_fwhm_px,
        )
        if not self._pattern.rings.any():
            raise InvalidInput(
                f"no ring of {settings.calibrant} falls on the detector",
                remedy="change --distance-mm, --wavelength-angstrom or --beam-center",
            )

    def expected(self, number: int) -> npt.NDArray[np.float64]:
        """Return the expected counts of frame `number`, (y, x), gaps included."""
        strength = 1 + _BREATHING * np.sin(2 * np.pi * number / self.distinct)
        expected: npt.NDArray[np.float64] = self._pattern.rings * strength + self._pattern.background
        return expected

    def frame(self, number: int) -> Frame:
        """Return distinct frame `number` with its noise, gaps holding the sentinel."""
        generator = np.random.default_rng([self._settings.seed, number])
        frame = generator.poisson(self.expected(number)).astype(self.dtype)
        if self._gaps is not None:
            frame[self._gaps] = sentinel(self.dtype)
        return frame
