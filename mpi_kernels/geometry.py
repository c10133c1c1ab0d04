"""Detector geometry to the quantities that integration needs, per pixel. Pure: no files, no MPI.

The laboratory frame has its origin at the sample, z along the beam; x and y span the plane across it, x in the
horizontal plane (the plane of polarisation). A flat detector is an origin (the outer corner of the first pixel) and two
vectors, one pixel along the fast and one along the slow axis. PONI files (pyFAI), NeXus beam centres and NeXus
transformations all come down to that.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mpi_kernels.errors import InvalidParameters, UnusableInput

Vector: TypeAlias = NDArray[np.float64]
Image: TypeAlias = NDArray[np.float64]
Unit: TypeAlias = Literal["q_nm^-1", "q_A^-1", "2th_deg", "2th_rad", "r_mm"]

HC_KEV_ANGSTROM = 12.398419843320026
"""Planck's constant times the speed of light (exact in the SI of 2019)."""


@dataclass(frozen=True)
class Geometry:
    """A flat detector before a beam.

    Parameters
    ----------
    origin_m
        Outer corner of the first pixel, laboratory frame, shape ``(3,)``.
    fast_m, slow_m
        From one pixel to the next along the last and the last but one dimension of a frame, shape ``(3,)``.
    wavelength_m
        None when nobody said; then only 2θ can be computed.
    source
        Where it was read, for the result's process note.
    """

    origin_m: Vector
    fast_m: Vector
    slow_m: Vector
    wavelength_m: float | None
    source: str

    def check(self) -> None:
        """Make sure that pixels have places, and a wavelength that can be.

        Raises
        ------
        UnusableInput
            Naming what can't be.
        """
        wavelength = self.wavelength_m
        if wavelength is not None and not 0 < wavelength < np.inf:
            raise UnusableInput(
                f"{self.source}: a wavelength of {wavelength:g} m",
                remedy="correct it, or give the parameter wavelength_m",
            )
        vectors = {"first pixel's corner": self.origin_m, "fast axis": self.fast_m, "slow axis": self.slow_m}
        for name, vector in vectors.items():
            if not np.isfinite(vector).all():
                raise UnusableInput(
                    f"{self.source}: the detector's {name} is at {vector.tolist()}", remedy="correct its geometry"
                )
        normal = np.cross(self.fast_m, self.slow_m)
        if not normal.any():
            raise UnusableInput(
                f"{self.source}: its pixels have no area", remedy="correct the pixel size, or give pixel_size_m"
            )
        if np.dot(normal, self.origin_m) == 0:
            raise UnusableInput(
                f"{self.source}: the plane of the detector goes through the sample",
                remedy="correct the distance and the detector's rotations",
            )

    def positions(self, shape: tuple[int, int]) -> NDArray[np.float64]:
        """Return the pixel centres in metres, shape ``(3, y, x)``."""
        slow, fast = (np.arange(size, dtype=np.float64) + 0.5 for size in shape)
        return self._places(slow, fast)

    def corners(self, shape: tuple[int, int]) -> NDArray[np.float64]:
        """Return the pixel corners in metres, shape ``(3, y + 1, x + 1)``.

        Pixel ``[y, x]`` has the corners ``[y, x]``, ``[y + 1, x]``, ``[y + 1, x + 1]`` and ``[y, x + 1]``.
        """
        slow, fast = (np.arange(size + 1, dtype=np.float64) for size in shape)
        return self._places(slow, fast)

    def _places(self, slow: Vector, fast: Vector) -> NDArray[np.float64]:
        return (
            self.origin_m[:, None, None]
            + slow[None, :, None] * self.slow_m[:, None, None]
            + fast[None, None, :] * self.fast_m[:, None, None]
        )

    def two_theta(self, shape: tuple[int, int]) -> Image:
        """Return the scattering angle in radians, shape ``(y, x)``."""
        return _two_theta(self.positions(shape))

    def azimuth(self, shape: tuple[int, int]) -> Image:
        """Return the azimuthal angle in radians from the x axis towards y, in (-π, π], shape ``(y, x)``."""
        return _azimuth(self.positions(shape))

    def corner_azimuth(self, shape: tuple[int, int]) -> Image:
        """Return the azimuthal angle at the pixel corners, shape ``(y + 1, x + 1)``."""
        return _azimuth(self.corners(shape))

    def radial(self, shape: tuple[int, int], unit: Unit) -> Image:
        """Return the radial coordinate of the pixel centres, shape ``(y, x)``.

        That is q = 4π/λ sin θ, 2θ, or r, the distance from the axis of the beam (pyFAI's r).

        Raises
        ------
        UnusableInput
            When q is wanted and the wavelength isn't known.
        """
        return self._radial(self.positions(shape), unit)

    def corner_radial(self, shape: tuple[int, int], unit: Unit) -> Image:
        """Return the radial coordinate of the pixel corners, shape ``(y + 1, x + 1)``; as `radial` else."""
        return self._radial(self.corners(shape), unit)

    def _radial(self, places: NDArray[np.float64], unit: Unit) -> Image:
        if unit == "r_mm":
            return np.asarray(np.hypot(places[0], places[1])) * 1e3
        two_theta = _two_theta(places)
        if unit == "2th_rad":
            return two_theta
        if unit == "2th_deg":
            return np.asarray(np.degrees(two_theta))
        if self.wavelength_m is None:
            raise UnusableInput(
                f"{self.source}: no wavelength",
                remedy="give the parameter wavelength_m, or a unit of 2th_deg, 2th_rad or r_mm",
            )
        per_metre = 4 * np.pi / self.wavelength_m * np.sin(two_theta / 2)
        return np.asarray(per_metre) * (1e-9 if unit == "q_nm^-1" else 1e-10)

    def relative_solid_angle(self, shape: tuple[int, int]) -> Image:
        """Return the solid angle of each pixel over that of one at the point of normal incidence, cos³ of incidence.

        Bösecke & Diat, J. Appl. Cryst. 30 (1997) 867-871, as in pyFAI.
        """
        return np.asarray(self._cosine_of_incidence(shape) ** 3)

    def sensor_absorption(self, shape: tuple[int, int], thickness_m: float, attenuation_per_m: float) -> Image:
        """Return the share of photons each pixel absorbs over that at normal incidence, shape ``(y, x)``.

        (1 - exp(-μt / cos i)) / (1 - exp(-μt)) at the angle of incidence i: Wu, Rodrigues & Coppens, J. Appl. Cryst. 35
        (2002) 356-359, and the angular efficiency of Pauw et al., J. Appl. Cryst. 50 (2017) 1800-1811; pyFAI's
        ``calc_transmission``. What is absorbed is taken to count in the pixel where it entered (no parallax).
        """
        depth = thickness_m * attenuation_per_m
        return np.asarray(np.expm1(-depth / self._cosine_of_incidence(shape)) / np.expm1(-depth))

    def _cosine_of_incidence(self, shape: tuple[int, int]) -> Image:
        positions = self.positions(shape)
        normal = np.cross(self.fast_m, self.slow_m)
        normal /= np.linalg.norm(normal)
        return np.asarray(np.abs(np.tensordot(normal, positions, 1)) / np.sqrt((positions**2).sum(axis=0)))

    def polarisation(self, shape: tuple[int, int], factor: float) -> Image:
        """Return the polarisation factor of scattering, 1 on the beam, shape ``(y, x)``.

        ½ (1 + cos²2θ - f cos 2χ sin²2θ), Kahn et al., J. Appl. Cryst. 15 (1982) 330-337; `factor` is 1 for linear
        horizontal, 0 for no and -1 for linear vertical polarisation.
        """
        square = np.cos(self.two_theta(shape)) ** 2
        return np.asarray(0.5 * (1 + square - factor * np.cos(2 * self.azimuth(shape)) * (1 - square)))

    def with_wavelength(self, wavelength_m: float) -> Geometry:
        """Return the same detector with another wavelength."""
        return replace(self, wavelength_m=wavelength_m)


def _two_theta(places: NDArray[np.float64]) -> Image:
    x, y, z = places
    return np.asarray(np.arctan2(np.hypot(x, y), z))


def _azimuth(places: NDArray[np.float64]) -> Image:
    return np.asarray(np.arctan2(places[1], places[0]))


def from_beam_centre(
    *,
    distance_m: float,
    pixel_m: tuple[float, float],
    centre_px: tuple[float, float],
    wavelength_m: float | None,
    source: str,
) -> Geometry:
    """Return the geometry of a detector across the beam.

    Parameters
    ----------
    pixel_m, centre_px
        ``(y, x)``; the centre counts from the outer corner of the first pixel.
    """
    (pixel_y, pixel_x), (centre_y, centre_x) = pixel_m, centre_px
    return Geometry(
        origin_m=np.array([-centre_x * pixel_x, -centre_y * pixel_y, distance_m]),
        fast_m=np.array([pixel_x, 0.0, 0.0]),
        slow_m=np.array([0.0, pixel_y, 0.0]),
        wavelength_m=wavelength_m,
        source=source,
    )


def energy_to_wavelength_m(energy_kev: float) -> float:
    """Return the wavelength of photons."""
    return HC_KEV_ANGSTROM / energy_kev * 1e-10


# ----------------------------------------------------------------------------------------------- PONI files (pyFAI)


@dataclass(frozen=True)
class Poni:
    """A pyFAI calibration: Kieffer & Karkoulis, J. Phys. Conf. Ser. 425 (2013) 202012; lengths in metres, radians."""

    distance: float
    poni1: float
    poni2: float
    rot1: float
    rot2: float
    rot3: float
    wavelength: float | None
    pixel1: float | None
    pixel2: float | None
    orientation: int

    def with_pixel_size(self, pixel_m: tuple[float, float]) -> Poni:
        """Return the same calibration for pixels of another size ``(y, x)``."""
        return replace(self, pixel1=pixel_m[0], pixel2=pixel_m[1])

    def geometry(self, shape: tuple[int, int], source: str) -> Geometry:
        """Return the geometry of a detector with frames of `shape` ``(y, x)``.

        Raises
        ------
        InvalidParameters
            When nobody said how large a pixel is.
        """
        if self.pixel1 is None or self.pixel2 is None:
            raise InvalidParameters(f"{source}: no pixel size", remedy="give the parameter pixel_size_m: [y, x]")
        # pyFAI's axes 1 (slow, up), 2 (fast), 3 (beam) are y, x, z here
        turn = _rotation(self.rot1, self.rot2, self.rot3)
        slow_sign, fast_sign = _directions(self.orientation, source)
        origin = np.array([-self.poni1, -self.poni2, self.distance])
        if slow_sign < 0:
            origin[0] += shape[0] * self.pixel1
        if fast_sign < 0:
            origin[1] += shape[1] * self.pixel2
        slow, fast = np.array([slow_sign * self.pixel1, 0, 0]), np.array([0, fast_sign * self.pixel2, 0])
        swap = [1, 0, 2]
        return Geometry((turn @ origin)[swap], (turn @ fast)[swap], (turn @ slow)[swap], self.wavelength, source)


def _directions(orientation: int, source: str) -> tuple[int, int]:
    # Exif orientations, as in pyFAI since 2024: 3 (also 0) counts up along both axes
    table = {0: (1, 1), 1: (-1, -1), 2: (-1, 1), 3: (1, 1), 4: (1, -1)}
    if orientation not in table:
        raise InvalidParameters(f"{source}: detector orientation {orientation}", remedy="pyFAI knows 1, 2, 3 and 4")
    return table[orientation]


def _rotation(rot1: float, rot2: float, rot3: float) -> NDArray[np.float64]:
    """Return pyFAI's rotation: about axis 1 and 2 left-handed, about axis 3 right-handed, in this order."""
    (c1, c2, c3), (s1, s2, s3) = np.cos([rot1, rot2, rot3]), np.sin([rot1, rot2, rot3])
    about1 = np.array([[1, 0, 0], [0, c1, s1], [0, -s1, c1]])
    about2 = np.array([[c2, 0, -s2], [0, 1, 0], [s2, 0, c2]])
    about3 = np.array([[c3, -s3, 0], [s3, c3, 0], [0, 0, 1]])
    return np.asarray(about3 @ about2 @ about1)


def parse_poni(text: str, source: str) -> Poni:
    """Parse a PONI file, versions 1, 2 and 2.1; later lines win over earlier ones, as in pyFAI.

    Raises
    ------
    InvalidParameters
        Naming the missing field or the line that is no number.
    """
    lines = (line.partition(":") for line in text.splitlines() if ":" in line and not line.lstrip().startswith("#"))
    fields = {name.strip().lower(): value.strip() for name, _, value in lines}
    config = _detector_config(fields.get("detector_config", ""), source)

    def number(name: str, *, required: bool = True) -> float | None:
        value = fields.get(name)
        if value in {None, "None", ""}:
            if required:
                raise InvalidParameters(f"{source}: no {name}", remedy="save the PONI file again from pyFAI-calib2")
            return None
        return _to_float(str(value), f"{source}: {name}")

    def needed(name: str) -> float:
        value = number(name)
        assert value is not None  # noqa: S101  required
        return value

    return Poni(
        distance=needed("distance"),
        poni1=needed("poni1"),
        poni2=needed("poni2"),
        rot1=number("rot1", required=False) or 0.0,
        rot2=number("rot2", required=False) or 0.0,
        rot3=number("rot3", required=False) or 0.0,
        wavelength=number("wavelength", required=False),
        pixel1=config.get("pixel1", number("pixelsize1", required=False)),
        pixel2=config.get("pixel2", number("pixelsize2", required=False)),
        orientation=int(config.get("orientation", 0)),
    )


def _detector_config(text: str, source: str) -> dict[str, float]:
    try:
        config = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise InvalidParameters(
            f"{source}: Detector_config is no JSON: {error}", remedy="save the file again"
        ) from error
    names = ("pixel1", "pixel2", "orientation")
    return {name: _to_float(str(config[name]), f"{source}: {name}") for name in names if config.get(name) is not None}


def _to_float(text: str, place: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise InvalidParameters(f"{place}: {text!r} is no number", remedy="save the file again") from error
