"""Where a flat detector stands: distance, pixels, wavelength, beam centre, and the angles that follow from them.

The detector is perpendicular to the beam. The corner of the first pixel is (0, 0), the middle of that pixel
(0.5, 0.5), as in pyFAI and Fit2D; x is the fast axis (columns), y the slow one (rows).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

FloatImage = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class DetectorGeometry:
    """A flat detector perpendicular to the beam. The beam centre may lie outside the detector."""

    distance_m: float
    x_pixel_m: float
    y_pixel_m: float
    wavelength_angstrom: float
    beam_center_x_px: float
    beam_center_y_px: float

    def angles(self, shape: tuple[int, int]) -> tuple[FloatImage, FloatImage]:
        """Return scattering angle 2θ and azimuth χ (from +x towards +y) of each pixel's middle, radians, (y, x)."""
        y = (np.arange(shape[0]) + 0.5 - self.beam_center_y_px) * self.y_pixel_m
        x = (np.arange(shape[1]) + 0.5 - self.beam_center_x_px) * self.x_pixel_m
        two_theta = np.arctan2(np.hypot(y[:, None], x[None, :]), self.distance_m)
        chi = np.arctan2(np.broadcast_to(y[:, None], shape), np.broadcast_to(x[None, :], shape))
        return two_theta, chi


@dataclass(frozen=True, kw_only=True)
class GeometryOverrides:
    """What the user wants different from the default or the replayed file; None leaves it as it is."""

    distance_m: float | None = None
    pixel_m: float | None = None
    wavelength_angstrom: float | None = None
    beam_center_px: tuple[float, float] | None = None
    """(x, y)"""

    @property
    def complete(self) -> bool:
        """Whether they make a geometry without anything to change."""
        return None not in (self.distance_m, self.pixel_m, self.wavelength_angstrom, self.beam_center_px)

    def applied_to(self, geometry: DetectorGeometry) -> DetectorGeometry:
        """Return `geometry` with what is given here."""
        changes: dict[str, float | None] = {
            "distance_m": self.distance_m,
            "x_pixel_m": self.pixel_m,
            "y_pixel_m": self.pixel_m,
            "wavelength_angstrom": self.wavelength_angstrom,
            "beam_center_x_px": self.beam_center_px[0] if self.beam_center_px else None,
            "beam_center_y_px": self.beam_center_px[1] if self.beam_center_px else None,
        }
        return replace(geometry, **{name: value for name, value in changes.items() if value is not None})
