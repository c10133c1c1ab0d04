"""Parameters and input file to an integrator that is ready for frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpi_kernels.azimuthal import DeadTime, Integrator, PixelImages, Scaling, Split
from mpi_kernels.errors import InvalidParameters, UnusableInput
from mpi_kernels.geometry import Geometry, parse_poni
from mpi_kernels.hdf5_files import Library
from mpi_kernels.images import LoadedImage, is_measurement
from mpi_kernels.kernel import Frames
from mpi_kernels.nexus_geometry import DetectorFacts, InstrumentNames, read_detector, read_names
from mpi_kernels.parameters import FIRST_GROUP, AzimuthalParameters
from mpi_kernels.splitting import bounding_box, box_limits, full, outline_limits
from mpi_kernels.summing import Limits
from mpi_kernels.valid_pixels import measured_limits, parameter_image, valid_pixels


@dataclass(frozen=True)
class Setup:
    """Everything that is decided before the first frame.

    Parameters
    ----------
    integrations
        Parameters and integrator of the patterns by the group in which they stand; `data` is the first.
    """

    parameters: AzimuthalParameters
    integrations: Mapping[str, tuple[AzimuthalParameters, Integrator]]
    geometry: Geometry
    names: InstrumentNames
    masked_pixels: int

    @property
    def integrator(self) -> Integrator:
        """The first."""
        return next(iter(self.integrations.values()))[1]


def set_up(library: Library, frames: Frames, parameters: AzimuthalParameters) -> Setup:
    """Read geometry and images, and build the integrators.

    Raises
    ------
    UnusableInput
        When the input file lacks the geometry.
    InvalidParameters
        When a file named by the parameters can't be used, or no pixel is left.
    """
    facts = read_detector(
        library, frames.file, frames.dataset, parameters.detector, pixel_size_m=parameters.pixel_size_m
    )
    geometry = _geometry(facts, frames, parameters)
    images = _pixel_images(library, frames, parameters, facts, geometry)
    limits = measured_limits(frames, parameters, facts)
    integrations = {
        group: (
            each,
            _integrator(
                group,
                each,
                geometry,
                _of_reduction(images, geometry, each),
                limits=limits,
                dtype=frames.dtype,
            ),
        )
        for group, each in parameters.each()
    }
    masked = int(images.valid.size - np.count_nonzero(images.valid))
    return Setup(parameters, integrations, geometry, read_names(library, frames.file), masked)


def _integrator(
    group: str,
    parameters: AzimuthalParameters,
    geometry: Geometry,
    images: PixelImages,
    *,
    limits: Limits,
    dtype: np.dtype[Any],
) -> Integrator:
    if not images.valid.any():
        raise _no_pixel_left(group)
    integrator = Integrator(
        images,
        bins=parameters.bins,
        radial_range=parameters.radial_range,
        limits=limits,
        dtype=dtype,
        error_model=parameters.error_model,
        split=_split(parameters, geometry, images),
        busy=_busy(parameters),
        scaling=_scaling(parameters),
        group=group,
    )
    if integrator.pixels == 0:
        raise _no_pixel_left(group)
    return integrator


def _split(parameters: AzimuthalParameters, geometry: Geometry, images: PixelImages) -> Split | None:
    if parameters.splitting == "no":
        return None
    shape = images.valid.shape
    corners = geometry.corner_radial(shape, parameters.unit)
    if parameters.splitting == "bbox":
        return lambda edges: bounding_box(images.radial, corners, images.valid, edges)
    return lambda edges: full(corners, geometry.corner_azimuth(shape), images.valid, edges)


def _busy(parameters: AzimuthalParameters) -> DeadTime | None:
    if parameters.dead_time_s is None or parameters.count_time_s is None:
        return None
    return DeadTime(
        model=parameters.dead_time_model, dead_time_s=parameters.dead_time_s, time_s=parameters.count_time_s
    )


def _scaling(parameters: AzimuthalParameters) -> Scaling:
    numbers = {
        name: value
        for name in ("transmission", "monitor", "thickness_m", "absolute_scale")
        if (value := getattr(parameters, name)) is not None
    }
    datasets = {
        name: path
        for name in ("transmission", "monitor")
        if (path := getattr(parameters, f"{name}_dataset")) is not None
    }
    return Scaling(numbers=numbers, datasets=datasets)


def _no_pixel_left(group: str) -> InvalidParameters:
    place = "" if group == FIRST_GROUP else f"further.{group}: "
    return InvalidParameters(
        f"{place}masks, ranges, flat and dark together leave no pixel",
        remedy="check mask, use_pixel_mask, radial_range, azimuthal_range_deg and the images",
    )


def _geometry(facts: DetectorFacts, frames: Frames, parameters: AzimuthalParameters) -> Geometry:
    if parameters.poni is not None:
        geometry = _geometry_from_poni(facts, frames, parameters)
    elif facts.geometry is None:
        raise UnusableInput(
            f"no detector geometry: {facts.geometry_problem}",
            remedy="give the parameter poni, or complete the NXdetector",
        )
    else:
        geometry = facts.geometry
    known = (parameters.wavelength_m, geometry.wavelength_m, facts.wavelength_m)
    wavelength = next((value for value in known if value is not None), None)
    if wavelength is not None:
        geometry = geometry.with_wavelength(wavelength)
    geometry.check()
    return geometry


def _geometry_from_poni(facts: DetectorFacts, frames: Frames, parameters: AzimuthalParameters) -> Geometry:
    path = frames.base / str(parameters.poni)
    try:
        poni = parse_poni(path.read_text(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidParameters(f"poni: {path}: {error}", remedy="give a PONI file") from error
    if parameters.pixel_size_m is not None:
        poni = poni.with_pixel_size(parameters.pixel_size_m)
    elif poni.pixel1 is None and facts.pixel_size_m is not None:
        poni = poni.with_pixel_size(facts.pixel_size_m)
    return poni.geometry(frames.shape, str(path))


def _pixel_images(
    library: Library, frames: Frames, parameters: AzimuthalParameters, facts: DetectorFacts, geometry: Geometry
) -> PixelImages:
    dark, flat, background = (
        parameter_image(library, frames, parameters, name) for name in ("dark", "flat", "background")
    )
    valid = valid_pixels(library, frames, parameters, facts)
    norm = np.ones(frames.shape)
    if parameters.solid_angle:
        norm *= geometry.relative_solid_angle(frames.shape)
    if parameters.polarization_factor is not None:
        norm *= geometry.polarisation(frames.shape, parameters.polarization_factor)
    if parameters.sensor_thickness_m is not None and parameters.sensor_attenuation_per_m is not None:
        norm *= geometry.sensor_absorption(
            frames.shape, parameters.sensor_thickness_m, parameters.sensor_attenuation_per_m
        )
    if flat is not None:
        norm *= np.where(is_measurement(flat.values), flat.values, np.nan)
    offset, variance = _offset(dark, background, parameters.background_scale)
    valid &= np.isfinite(norm) & (norm > 0)
    if offset is not None:
        valid &= np.isfinite(offset)
    return PixelImages(
        radial=geometry.radial(frames.shape, parameters.unit),
        valid=valid,
        norm=np.where(valid, norm, 0.0),
        offset=None if offset is None else np.where(valid, offset, 0.0),
        offset_variance=None if variance is None else np.where(valid, variance, 0.0),
    )


def _of_reduction(images: PixelImages, geometry: Geometry, parameters: AzimuthalParameters) -> PixelImages:
    """Return the images of one of several reductions: its axis, and its sector's pixels."""
    shape, valid = images.valid.shape, images.valid
    if parameters.azimuthal_range_deg is not None:
        valid = valid & _in_sector(np.degrees(geometry.azimuth(shape)), *parameters.azimuthal_range_deg)
    radial = geometry.radial(shape, parameters.unit)
    return replace(images, radial=radial, valid=valid, extent=_extent(parameters, geometry, radial))


def _extent(
    parameters: AzimuthalParameters, geometry: Geometry, radial: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    if parameters.splitting == "no":
        return None
    corners = geometry.corner_radial(radial.shape, parameters.unit)
    return box_limits(radial, corners) if parameters.splitting == "bbox" else outline_limits(corners)


def _offset(
    dark: LoadedImage | None, background: LoadedImage | None, scale: float
) -> tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]:
    """Return what is subtracted from the counts, (1 - s) D + s B, and its variance."""
    terms = [(image, weight) for image, weight in ((background, scale), (dark, 1.0)) if image is not None]
    if not terms:
        return None, None
    if background is not None and dark is not None:
        terms = [(background, scale), (dark, 1.0 - scale)]
    offset = sum(weight * _measured(image) for image, weight in terms)
    variance = sum(weight**2 * np.maximum(_measured(image), 0) / image.frames for image, weight in terms)
    return np.asarray(offset), np.asarray(variance)


def _measured(image: LoadedImage) -> NDArray[np.float64]:
    return np.where(is_measurement(image.values), image.values, np.nan).astype(np.float64)


def _in_sector(azimuth: NDArray[np.float64], start: float, stop: float) -> NDArray[np.bool_]:
    if stop - start >= 360:
        return np.ones(azimuth.shape, bool)
    return np.asarray((azimuth - start) % 360 <= (stop - start) % 360)
