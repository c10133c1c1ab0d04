"""What a powder should give on a flat detector: expected counts per pixel, from stated physics. No noise, no files.

For each reflection a Gaussian line at the Bragg angle, ``λ = 2 d sin θ``, whose intensity per length of its ring is

    m |F|² / (sin² θ cos θ) · P(2θ, χ)

with multiplicity `m`, structure factor `F`, the Lorentz factor of a powder seen along its ring, and polarisation `P`
(B. E. Warren, *X-ray Diffraction*, Dover 1990, section 4.5). A flat detector's pixel sees the solid angle
``cos³ 2θ`` of the one at the beam centre. Polarisation as for a synchrotron, nearly all horizontal:
``P = ½ (1 + cos² 2θ - f cos 2χ sin² 2θ)``, f = 0.99 (R. Kahn et al., *J. Appl. Cryst.* 15 (1982) 330).

Neglected: absorption, anomalous dispersion, thermal motion in LaB6, detector efficiency and point spread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import product
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from orchestrator.simulator.geometry import DetectorGeometry, FloatImage

AGBH_D001_ANGSTROM = 58.380
"""Silver behenate's long period: T. C. Huang et al., *J. Appl. Cryst.* 26 (1993) 180."""
LAB6_A_ANGSTROM = 4.156826
"""Lattice parameter of LaB6 at 22.5 °C: NIST certificate of Standard Reference Material 660c."""

_AGBH_SHEET_ROUGHNESS_ANGSTROM = 1.5
_LAB6_BORON_X = 0.20
# Neutral atoms, International Tables for Crystallography C, table 6.1.1.4: f(s) = Σ a exp(-b s²) + c, s = sin θ / λ.
_FORM_FACTORS: Mapping[str, tuple[tuple[float, ...], tuple[float, ...], float]] = {
    "La": ((20.5780, 19.5990, 11.3727, 3.28719), (2.94817, 0.244475, 18.7726, 133.124), 2.14678),
    "B": ((2.0545, 1.3326, 1.0979, 0.7068), (23.2185, 1.0210, 60.3498, 0.1403), -0.1932),
}
_POLARISATION = 0.99
_LEAST_TWO_THETA = 1e-6  # radians; keeps the pixel under the beam finite


class Calibrant(StrEnum):
    """Powders whose line positions are known."""

    AGBH = "agbh"
    """Silver behenate: equidistant rings at small angles."""
    LAB6 = "lab6"
    """Lanthanum hexaboride, NIST SRM 660c: rings at wide angles."""


@dataclass(frozen=True, kw_only=True)
class Reflection:
    """One powder ring: lattice spacing in ångström, multiplicity, squared structure factor (arbitrary scale)."""

    hkl: tuple[int, int, int]
    d_angstrom: float
    multiplicity: int
    structure_factor_squared: float

    def two_theta(self, wavelength_angstrom: float) -> float:
        """Bragg angle 2θ in radians."""
        return float(2 * np.arcsin(wavelength_angstrom / (2 * self.d_angstrom)))


def atomic_form_factor(element: str, s: float) -> float:
    """Return f in electrons at ``s = sin θ / λ`` in Å⁻¹, from the four-Gaussian fit of the International Tables."""
    a, b, c = _FORM_FACTORS[element]
    return float(np.dot(a, np.exp(-np.asarray(b) * s**2)) + c)


def _agbh(d_min_angstrom: float) -> list[Reflection]:
    """Orders 00l of a stack of thin, slightly rough silver sheets: ``|F|² = exp(-q² u²)``, u = 1.5 Å."""
    orders = range(1, int(AGBH_D001_ANGSTROM / d_min_angstrom) + 1)
    return [
        Reflection(
            hkl=(0, 0, order),
            d_angstrom=AGBH_D001_ANGSTROM / order,
            multiplicity=2,
            structure_factor_squared=float(
                np.exp(-((2 * np.pi * order / AGBH_D001_ANGSTROM * _AGBH_SHEET_ROUGHNESS_ANGSTROM) ** 2))
            ),
        )
        for order in orders
    ]


def _lab6_structure_factor(h: int, k: int, l: int) -> float:  # noqa: E741 - Miller indices have these names
    """Pm-3m, La at the origin, B at (±x ½ ½) and permutations: real, since the structure has a centre."""
    s = np.sqrt(h * h + k * k + l * l) / (2 * LAB6_A_ANGSTROM)
    phase = 2 * np.pi * _LAB6_BORON_X
    boron = 2 * (
        np.cos(phase * h) * (-1) ** (k + l) + np.cos(phase * k) * (-1) ** (h + l) + np.cos(phase * l) * (-1) ** (h + k)
    )
    return atomic_form_factor("La", s) + atomic_form_factor("B", s) * float(boron)


def _form(h: int, k: int, l: int) -> tuple[int, int, int]:  # noqa: E741
    """Return the one of the equivalent reflections of the cubic class m-3m that stands for them all."""
    smallest, middle, largest = sorted((abs(h), abs(k), abs(l)))
    return largest, middle, smallest


def _lab6(d_min_angstrom: float) -> list[Reflection]:
    """Every reflection of the simple cubic lattice; those with the same h² + k² + l² but another form stay apart."""
    largest = int(LAB6_A_ANGSTROM / d_min_angstrom)
    forms = Counter(_form(*hkl) for hkl in product(range(-largest, largest + 1), repeat=3) if any(hkl))
    reflections = [
        Reflection(
            hkl=hkl,
            d_angstrom=LAB6_A_ANGSTROM / float(np.linalg.norm(hkl)),
            multiplicity=multiplicity,
            structure_factor_squared=_lab6_structure_factor(*hkl) ** 2,
        )
        for hkl, multiplicity in forms.items()
    ]
    return sorted((r for r in reflections if r.d_angstrom >= d_min_angstrom), key=lambda r: -r.d_angstrom)


_REFLECTIONS: Mapping[Calibrant, Callable[[float], list[Reflection]]] = MappingProxyType(
    {Calibrant.AGBH: _agbh, Calibrant.LAB6: _lab6}
)


def reflections(calibrant: Calibrant, *, d_min_angstrom: float) -> list[Reflection]:
    """Return the rings of `calibrant` with lattice spacings of at least `d_min_angstrom`, from the innermost out."""
    return _REFLECTIONS[calibrant](d_min_angstrom)


@dataclass(frozen=True, kw_only=True)
class PowderPattern:
    """Expected counts per pixel and frame, (y, x); the sum is what the detector sees on average."""

    rings: FloatImage
    background: FloatImage


def powder_pattern(
    calibrant: Calibrant,
    geometry: DetectorGeometry,
    shape: tuple[int, int],
    *,
    peak_counts: float,
    background_counts: float,
    ring_fwhm_px: float,
) -> PowderPattern:
    """Compute the expected image of a powder.

    Parameters
    ----------
    shape
        (y, x) in pixels.
    peak_counts
        Expected counts on the crest of the strongest ring, before polarisation and solid angle.
    background_counts
        Flat background; air scatter, ten times that at the beam and falling off within a third of the first ring's
        angle, is added to it.
    ring_fwhm_px
        Full width of a ring at half maximum, in pixels at the beam centre.
    """
    two_theta, chi = geometry.angles(shape)
    np.maximum(two_theta, _LEAST_TWO_THETA, out=two_theta)
    sigma = ring_fwhm_px / np.sqrt(8 * np.log(2)) * geometry.x_pixel_m / geometry.distance_m
    lines = _lines(_rings_on(calibrant, geometry, two_theta, sigma), two_theta, sigma, geometry.wavelength_angstrom)
    crest = float(lines.max())
    innermost = reflections(calibrant, d_min_angstrom=1.0)[0].two_theta(geometry.wavelength_angstrom)
    air = 10 * background_counts * np.exp(-two_theta / (innermost / 3))
    seen = _polarisation(two_theta, chi) * np.cos(two_theta) ** 3
    return PowderPattern(
        rings=lines * (peak_counts / crest if crest > 0 else 0.0) * seen, background=(background_counts + air) * seen
    )


def _rings_on(
    calibrant: Calibrant, geometry: DetectorGeometry, two_theta: FloatImage, sigma: float
) -> list[Reflection]:
    """Return the rings of which a detector that covers `two_theta` sees more than the far tail."""
    least, most = float(two_theta.min()) - 4 * sigma, min(float(two_theta.max()) + 4 * sigma, np.pi)
    d_min_angstrom = geometry.wavelength_angstrom / (2 * np.sin(most / 2))
    rings = reflections(calibrant, d_min_angstrom=d_min_angstrom)
    return [ring for ring in rings if ring.two_theta(geometry.wavelength_angstrom) >= least]


def _lines(
    rings: list[Reflection], two_theta: FloatImage, sigma: float, wavelength_angstrom: float
) -> npt.NDArray[np.float64]:
    lines = np.zeros_like(two_theta)
    for ring in rings:
        centre = ring.two_theta(wavelength_angstrom)
        lorentz = 1 / (np.sin(centre / 2) ** 2 * np.cos(centre / 2))
        strength = ring.multiplicity * ring.structure_factor_squared * lorentz
        lines += strength * np.exp(-0.5 * ((two_theta - centre) / sigma) ** 2)
    return lines


def _polarisation(two_theta: FloatImage, chi: FloatImage) -> FloatImage:
    factor: FloatImage = 0.5 * (1 + np.cos(two_theta) ** 2 - _POLARISATION * np.cos(2 * chi) * np.sin(two_theta) ** 2)
    return factor
