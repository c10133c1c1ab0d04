"""The kernels' parameter files: JSON, checked, unknown names refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from mpi_kernels.errors import InvalidParameters

Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")]
ImageSpec = Annotated[
    Name,
    Field(
        description="An image of the frame's shape: FILE.npy, FILE.edf, FILE.h5::/path[INDEX] or FILE.h5::/path[mean] "
        "(a stack without index means its mean). Relative paths count from the parameter file.",
    ),
]


class DetectorParameters(BaseModel):
    """Parameters of all kernels that take a detector's frames: which pixels count."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    detector: Name | None = Field(None, description="Path of the NXdetector group, where the input file has several.")
    mask: ImageSpec | None = Field(None, description="Image; pixels that aren't zero there are left out.")
    use_pixel_mask: bool = Field(True, description="Leave out the pixels that the NXdetector's pixel_mask marks.")
    saturation_value: Finite | None = Field(
        None, description="Pixels above it are left out; without: the NXdetector's saturation_value, if it has one."
    )


_TAKEN = {"data", "frames", "instrument", "reduction", "definition", "title", "start_time"}
FIRST_GROUP = "data"
"""Where the first patterns of a result stand."""


class FurtherReduction(BaseModel):
    """What another integration of the same frames has different from the first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bins: int | None = Field(None, ge=1, le=1_000_000, description="As above; without: as the first.")
    unit: Literal["q_nm^-1", "q_A^-1", "2th_deg", "2th_rad", "r_mm"] | None = Field(None, description="Likewise.")
    splitting: Literal["no", "bbox", "full"] | None = Field(None, description="Likewise.")
    radial_range: tuple[Finite, Finite] | None = Field(None, description="As above; without: all unmasked pixels.")
    azimuthal_range_deg: tuple[Finite, Finite] | None = Field(None, description="As above; without: all around.")


class AzimuthalParameters(DetectorParameters):
    """Parameters of azimuthal integration to one dimension."""

    model_config = ConfigDict(extra="forbid", frozen=True, title="azimuthal")

    bins: int = Field(1000, ge=1, le=1_000_000, description="Number of radial bins.")
    unit: Literal["q_nm^-1", "q_A^-1", "2th_deg", "2th_rad", "r_mm"] = Field(
        "q_nm^-1",
        description="Radial axis: q = 4π/λ sin θ in nm⁻¹ or Å⁻¹, the scattering angle 2θ, or r, the distance from the "
        "axis of the beam in millimetres.",
    )
    splitting: Literal["no", "bbox", "full"] = Field(
        "no",
        description="How a pixel counts in several bins: whole in its centre's bin (no), spread evenly over its "
        "bounding box (bbox), or over the area of its outline (full).",
    )
    radial_range: tuple[Finite, Finite] | None = Field(
        None, description="Lower and upper edge of the radial axis, in `unit`. Without: all unmasked pixels."
    )
    azimuthal_range_deg: tuple[Finite, Finite] | None = Field(
        None,
        description="Use only pixels whose centre has this azimuthal angle, from the x axis (fast, right) towards y "
        "(slow); the first may be larger than the second: then the sector goes through ±180°.",
    )
    error_model: Literal["poisson", "pyfai", "azimuthal", "none"] = Field(
        "poisson",
        description="Variance of a pixel: its counts (poisson), max(counts, 1) (pyfai), the scatter of the pixels in "
        "its bin (azimuthal), or no errors (none).",
    )
    solid_angle: bool = Field(True, description="Divide by the relative solid angle of each pixel, cos³ of incidence.")
    polarization_factor: Annotated[float, Field(ge=-1, le=1)] | None = Field(
        None, description="1 linear horizontal, 0 unpolarised, -1 linear vertical; without: no correction."
    )
    sensor_thickness_m: Positive | None = Field(
        None,
        description="Thickness of the sensor in metres: divide by what each pixel absorbs of photons that come "
        "obliquely, over what it does of those that come straight. Without: no correction.",
    )
    sensor_attenuation_per_m: Positive | None = Field(
        None, description="Linear attenuation coefficient of the sensor at this photon energy, in 1/m."
    )
    poni: Name | None = Field(
        None, description="PONI file (pyFAI) with the geometry. Without: the input file's NXdetector."
    )
    pixel_size_m: tuple[Positive, Positive] | None = Field(
        None, description="Pixel size (y, x) in metres, where the geometry doesn't say; wins over what it says."
    )
    wavelength_m: Positive | None = Field(
        None, description="Wavelength in metres, where the geometry doesn't say; wins over what it says."
    )
    dark: ImageSpec | None = Field(None, description="Image that is subtracted from frames and background.")
    flat: ImageSpec | None = Field(
        None, description="Image of relative pixel sensitivities; pixels at or below 0 are out."
    )
    background: ImageSpec | None = Field(
        None, description="Image that is scaled and subtracted, its errors propagated."
    )
    background_scale: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        1.0, description="The background is multiplied by this (ratio of exposures or transmissions)."
    )
    dead_time_s: Positive | None = Field(
        None, description="Dead time of a pixel in seconds; counts are corrected for it. Without: no correction."
    )
    dead_time_model: Literal["nonparalyzable", "paralyzable"] = Field(
        "nonparalyzable", description="A pulse during the dead time is lost, or makes the dead time longer as well."
    )
    count_time_s: Positive | None = Field(
        None, description="Counting time of a frame in seconds, for the correction for dead time."
    )
    transmission: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="Transmission of the sample, a share; intensities are divided by it."
    )
    transmission_dataset: Name | None = Field(
        None, description="Path of a dataset in the input file with the transmission of each frame."
    )
    monitor: Positive | None = Field(None, description="Incident flux of each frame; intensities are divided by it.")
    monitor_dataset: Name | None = Field(
        None, description="Path of a dataset in the input file with the incident flux of each frame."
    )
    thickness_m: Positive | None = Field(
        None, description="Thickness of the sample in metres; intensities are divided by it."
    )
    absolute_scale: Positive = Field(
        1.0, description="Intensities are multiplied by this: the factor to absolute units of a calibrated sample."
    )

    further: dict[Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")], FurtherReduction] = Field(
        default_factory=dict,
        description="More integrations of the same frames in the same pass, e.g. of sectors, by the name of the group "
        "in which their patterns stand.",
    )

    def each(self) -> Iterator[tuple[str, AzimuthalParameters]]:
        """Yield the groups of the result with the parameters of their patterns, the first one first."""
        yield FIRST_GROUP, self
        for group, other in self.further.items():
            own = {name: value for name, value in other.model_dump().items() if value is not None}
            ranges = {"radial_range": other.radial_range, "azimuthal_range_deg": other.azimuthal_range_deg}
            yield group, self.model_copy(update=own | ranges)

    @model_validator(mode="after")
    def _ranges_go_up(self) -> AzimuthalParameters:
        for group, each in self.each():
            place = "" if group == FIRST_GROUP else f"further.{group}."
            if each.radial_range is not None and not each.radial_range[0] < each.radial_range[1]:
                raise ValueError(f"{place}radial_range: the lower edge must be below the upper one")
        return self

    @model_validator(mode="after")
    def _groups_are_free(self) -> AzimuthalParameters:
        if taken := _TAKEN & self.further.keys():
            raise ValueError(f"further: {', '.join(sorted(taken))} stands for something else in the result")
        return self

    @model_validator(mode="after")
    def _parameters_fit_together(self) -> AzimuthalParameters:
        if (self.sensor_thickness_m is None) != (self.sensor_attenuation_per_m is None):
            raise ValueError("sensor_thickness_m and sensor_attenuation_per_m: give both or none")
        if self.dead_time_s is not None and self.count_time_s is None:
            raise ValueError("dead_time_s: needs count_time_s as well")
        for name in ("transmission", "monitor"):
            if getattr(self, name) is not None and getattr(self, f"{name}_dataset") is not None:
                raise ValueError(f"{name} and {name}_dataset: give one of them")
        return self


class ProjectionParameters(DetectorParameters):
    """Parameters of projection over all frames."""

    model_config = ConfigDict(extra="forbid", frozen=True, title="projection")

    window: int = Field(
        5, ge=3, le=31, description="Dead and hot pixels are told by the square of so many pixels around them; odd."
    )
    hot_factor: Positive = Field(
        10.0, description="A hot pixel's mean is larger than this factor times the median around it."
    )
    deviations: Positive = Field(
        6.0, description="A dead or hot pixel deviates from the median by more than so many standard deviations."
    )

    @model_validator(mode="after")
    def _window_has_a_middle(self) -> ProjectionParameters:
        if self.window % 2 == 0:
            raise ValueError("window: give an odd number of pixels")
        return self


class AverageParameters(BaseModel):
    """Parameters of averaging the patterns of a result."""

    model_config = ConfigDict(extra="forbid", frozen=True, title="average")

    first_frame: int = Field(0, ge=0, description="The first frame that counts.")
    last_frame: Annotated[int, Field(ge=0)] | None = Field(
        None, description="The last frame that counts; without: the last one of the result."
    )

    @model_validator(mode="after")
    def _range_goes_up(self) -> AverageParameters:
        if self.last_frame is not None and self.last_frame < self.first_frame:
            raise ValueError("last_frame: it is below first_frame")
        return self


Parameters = TypeVar("Parameters", bound=BaseModel)


def read_parameters(path: Path, kind: type[Parameters]) -> tuple[Parameters, str]:
    """Read and check a parameter file; return what it says, and the SHA-256 of the file.

    Raises
    ------
    InvalidParameters
        Naming the file and every parameter that is wrong.
    """
    remedy = f"python -m mpi_kernels {kind.model_config.get('title')} --schema prints what may stand there"
    try:
        content = path.read_bytes()
        return kind.model_validate(json.loads(content)), hashlib.sha256(content).hexdigest()
    except OSError as error:
        raise InvalidParameters(f"{path}: {error.strerror}", remedy="check --parameters") from error
    except ValueError as error:
        if isinstance(error, ValidationError):
            raise InvalidParameters(f"{path}: {problems(error, kind)}", remedy=remedy) from error
        raise InvalidParameters(f"{path}: no JSON: {error}", remedy=remedy) from error


def problems(error: ValidationError, kind: type[BaseModel]) -> str:
    """Word what is wrong with parameters, each with its name."""
    return "; ".join(_problem(item, kind) for item in error.errors())


def _problem(item: ErrorDetails, kind: type[BaseModel]) -> str:
    name = ".".join(str(part) for part in item["loc"])
    if item["type"] != "extra_forbidden":
        return f"{name}: {item['msg']}" if name else item["msg"]
    near = get_close_matches(name, kind.model_fields, n=1)
    return f"{name}: unknown" + (f", did you mean {near[0]}?" if near else "")
