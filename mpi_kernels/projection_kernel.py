"""The kernel `projection`: exact sums over all frames, totals of each, and the map of dead and hot pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mpi_kernels.errors import InvalidParameters
from mpi_kernels.hdf5_files import Library
from mpi_kernels.kernel import Array, Column, Frames, Kernel, Prepared, Reduced
from mpi_kernels.named_files import named_files
from mpi_kernels.native.library import CHUNKS_SIDE_BY_SIDE, Chunk
from mpi_kernels.native.projecting import FrameTotals
from mpi_kernels.nexus import group
from mpi_kernels.nexus_geometry import read_detector
from mpi_kernels.parameters import ProjectionParameters
from mpi_kernels.pixel_statistics import PixelFlag, pixel_statistics
from mpi_kernels.projection import Accumulation, Projector
from mpi_kernels.summing import Limits
from mpi_kernels.valid_pixels import measured_limits, valid_pixels

_SUMS = ("total", "squares_low", "squares_high", "counted")
_COLUMNS = {"total": ("counts", "counts"), "largest": ("largest value", "counts"), "excluded": ("pixels", "")}

_ABOUT = {
    "mean": {"long_name": "mean counts per frame", "units": "counts"},
    "sum": {"long_name": "sum over all frames", "units": "counts"},
    "largest": {"long_name": "largest value", "units": "counts"},
    "variance": {"long_name": "variance over frames", "units": "counts^2"},
    "counted": {"long_name": "frames in which the pixel counts", "units": ""},
    "pixel_mask": {"long_name": ", ".join(f"{flag.value}: {flag.name}".lower() for flag in PixelFlag), "units": ""},
    "frames": {"long_name": "frames in these images", "units": ""},
}


class Projection:
    """A `kernel.Reduction` that also gathers: `kernel.Accumulating`.

    Parameters
    ----------
    valid
        Which pixels count, shape ``(y, x)``.
    limits, dtype
        Which values are measurements, and their type.
    parameters
        What tells dead and hot pixels.
    """

    def __init__(
        self, valid: NDArray[np.bool_], limits: Limits, dtype: np.dtype[Any], parameters: ProjectionParameters
    ) -> None:
        self._valid, self._limits, self._dtype, self._parameters = valid, limits, dtype, parameters
        self._taken = _nothing(valid)
        Projector(valid, limits, dtype)  # refuses what can't be projected, before anything is made

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_projector"}

    @cached_property
    def _projector(self) -> Projector:
        return Projector(self._valid, self._limits, self._dtype)

    @property
    def columns(self) -> Sequence[Column]:
        """Totals of each frame."""
        return [
            Column(group="totals", name=name, dtype=np.int64, fill=0, attributes={"long_name": text, "units": units})
            for name, (text, units) in _COLUMNS.items()
        ]

    @property
    def per_frame(self) -> Mapping[str, str]:
        """Nothing."""
        return {}

    @property
    def takes_chunks(self) -> bool:
        """Whether stored chunks can be added without a frame in between."""
        return self._projector.takes_chunks

    @property
    def chunks_at_once(self) -> int:
        """Many: the sums of all pixels are read and written once for all of them."""
        return 4 * CHUNKS_SIDE_BY_SIDE

    def get_ready(self) -> None:
        """Make room for the sums."""
        _ = self._projector

    def of_chunks(self, chunks: Sequence[Chunk], given: Sequence[Mapping[str, float]]) -> Reduced:  # noqa: ARG002
        """Add frames that are stored as one chunk of bitshuffle-LZ4 each."""
        return _reduced(self._projector.add_chunks(chunks))

    def of_frames(self, frames: Sequence[Array], given: Sequence[Mapping[str, float]]) -> Reduced:  # noqa: ARG002
        """Add frames, each of shape ``(y, x)``."""
        return _reduced(self._projector.add_frames(frames))

    def take(self) -> dict[str, Array]:
        """Hand out the sums since the last time."""
        parts = _parts(self._projector.accumulation())
        del self._projector
        return parts

    def parts(self) -> dict[str, Array]:
        """Return the sums that were brought together."""
        return _parts(self._taken)

    def add(self, part: Mapping[str, Array]) -> None:
        """Add sums that were handed out."""
        frames = int(part["frames"][0])
        images = {name: values for name, values in part.items() if name != "frames"}
        self._taken += Accumulation(frames=frames, **images)

    def operations(self) -> Mapping[str, str]:
        """Return how ranks' sums come together."""
        return dict.fromkeys(("frames", *_SUMS), "sum") | {"largest": "max"}

    def pictures(self, *, final: bool) -> Mapping[str, Array]:
        """Return images of what was brought together; those that take long only in the end."""
        sums, shape = self._taken, self._valid.shape
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = np.where(sums.counted > 0, sums.total / sums.counted, np.nan)
        variance, mask = np.full(shape, np.nan), np.zeros(shape, np.uint32)
        if final:
            given = self._parameters
            statistics = pixel_statistics(
                sums, window=given.window, factor=given.hot_factor, deviations=given.deviations
            )
            mean, variance, mask = statistics.mean, statistics.variance, statistics.pixel_mask
        return {
            "data/mean": mean,
            "data/sum": sums.total,
            "data/largest": sums.largest,
            "data/variance": variance,
            "data/counted": sums.counted,
            "data/pixel_mask": mask,
            "data/frames": np.array([sums.frames], np.int64),
        }


def _nothing(valid: NDArray[np.bool_]) -> Accumulation:
    whole, wide = np.zeros(valid.shape, np.int64), np.zeros(valid.shape, np.uint64)
    return Accumulation(0, whole, wide, wide, np.zeros(valid.shape, np.uint32), whole)


def _parts(sums: Accumulation) -> dict[str, Array]:
    images = {name: getattr(sums, name) for name in (*_SUMS, "largest")}
    return {"frames": np.array([sums.frames], np.int64), **images}


def _reduced(totals: FrameTotals) -> Reduced:
    columns: dict[str, Array] = {
        "totals/total": totals.counts,
        "totals/largest": totals.largest,
        "totals/excluded": totals.excluded,
    }
    return Reduced(columns, {index: text for index, text in enumerate(totals.errors) if text is not None})


def _prepare(library: Library, frames: Frames, parameters: ProjectionParameters) -> Prepared:
    facts = read_detector(library, frames.file, frames.dataset, parameters.detector)
    valid = valid_pixels(library, frames, parameters, facts)
    if not valid.any():
        raise InvalidParameters("the masks leave no pixel", remedy="check mask and use_pixel_mask")
    return Prepared(
        reduction=Projection(valid, measured_limits(frames, parameters, facts), frames.dtype, parameters),
        definition="",
        title="projection",
        reference="docs/reference/projection.md",
        note="sums of whole numbers over all frames in which a pixel's value is a measurement; exact",
        describe=_describe,
        attributes={f"data/{name}": about | {"interpretation": "image"} for name, about in _ABOUT.items()},
        notes={"masked_pixels": int(valid.size - np.count_nonzero(valid))},
        files=named_files(parameters, ("mask",), frames.base),
    )


KERNEL = Kernel(
    summary="exact sum, mean, variance and maximum of each pixel over all frames; dead and hot pixels; frame totals",
    parameters=ProjectionParameters,
    prepare=_prepare,
)


def _describe(entry: h5py.Group) -> None:
    data = group(entry, "data", "NXdata")
    data.attrs["signal"] = "mean"
    data.attrs["axes"] = [".", "."]
    data.attrs["auxiliary_signals"] = ["sum", "largest", "variance", "counted", "pixel_mask"]
    totals = group(entry, "totals", "NXdata")
    totals.attrs["signal"] = "total"
    totals.attrs["axes"] = ["."]
