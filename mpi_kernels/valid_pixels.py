"""Which pixels of a detector count at all, and which of their values are measurements."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpi_kernels.errors import UnusableInput
from mpi_kernels.hdf5_files import Library
from mpi_kernels.images import LoadedImage, load_image
from mpi_kernels.kernel import Frames
from mpi_kernels.nexus_geometry import DetectorFacts
from mpi_kernels.parameters import DetectorParameters
from mpi_kernels.summing import Limits


def parameter_image(library: Library, frames: Frames, parameters: DetectorParameters, name: str) -> LoadedImage | None:
    """Return the image that a parameter names; None when it names none."""
    text = getattr(parameters, name)
    return None if text is None else load_image(library, text, frames.base, frames.shape, name)


def valid_pixels(
    library: Library, frames: Frames, parameters: DetectorParameters, facts: DetectorFacts
) -> NDArray[np.bool_]:
    """Return which pixels neither the parameters' mask nor the detector's own one leaves out, shape ``(y, x)``.

    Raises
    ------
    UnusableInput
        When the detector's mask has another shape than its frames.
    """
    valid = np.ones(frames.shape, bool)
    mask = parameter_image(library, frames, parameters, "mask")
    if mask is not None:
        valid &= mask.values == 0
    if parameters.use_pixel_mask and facts.pixel_mask is not None:
        if facts.pixel_mask.shape != frames.shape:
            raise UnusableInput(
                f"{facts.group}/pixel_mask has shape {facts.pixel_mask.shape}, the frames have {frames.shape}",
                remedy="set use_pixel_mask to false",
            )
        valid &= facts.pixel_mask == 0
    return valid


def measured_limits(frames: Frames, parameters: DetectorParameters, facts: DetectorFacts) -> Limits:
    """Return which values are measurements."""
    saturation = facts.saturation_value if parameters.saturation_value is None else parameters.saturation_value
    return Limits.of(frames.dtype, saturation, facts.underload_value)
