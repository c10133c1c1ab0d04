"""Frames of a real HDF5 file, with its dtype, its geometry and its mask. The file is only read.

The geometry is looked for where NeXus puts it, in NXmx and NXsas ways: an NXdetector with distance, pixel sizes and
beam centre; the wavelength in NXbeam or NXmonochromator, there also as an energy.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import h5py
import hdf5plugin  # noqa: F401 - importing it registers the filters that real files use
import numpy as np

from orchestrator.errors import InvalidInput
from orchestrator.simulator.frames import Frame, PixelMask
from orchestrator.simulator.geometry import DetectorGeometry
from orchestrator.simulator.settings import ReplaySettings

_METRES: Mapping[str, float] = {
    "m": 1.0, "metre": 1.0, "meter": 1.0, "cm": 1e-2, "mm": 1e-3, "um": 1e-6, "µm": 1e-6, "micron": 1e-6,
    "nm": 1e-9, "angstrom": 1e-10, "å": 1e-10, "a": 1e-10, "pm": 1e-12,
}  # fmt: skip
_KEV: Mapping[str, float] = {"kev": 1.0, "ev": 1e-3, "j": 1 / 1.602176634e-16}
_HC_KEV_ANGSTROM = 12.398419843320026  # h c / e, exact in the SI of 2019
_PIXELS = {"pixel", "px", ""}


class ReplayedFrames:
    """The frames of a dataset ``(…, y, x)``, one after the other."""

    def __init__(self, settings: ReplaySettings) -> None:
        self._where = f"--input {settings.file}"
        self._file = _open(settings)
        self._frames = self._find_frames(settings.dataset)
        self.title = f"Replay of {settings.file.name}:{settings.dataset}"
        self.sample = "replayed"
        self.shape: tuple[int, int] = self._frames.shape[-2:]
        self.dtype: np.dtype[Any] = self._frames.dtype
        self.distinct = int(np.prod(self._frames.shape[:-2], dtype=np.int64))
        if not self.distinct:
            raise self._wrong(f"dataset {settings.dataset} has no frames", "give a file that has some")
        top = self._file[settings.dataset.strip("/").split("/")[0]]
        entry = top if isinstance(top, h5py.Group) else self._file
        detector = _first_with(entry, "NXdetector", "distance")
        self.geometry = self._find_geometry(entry, detector, settings)
        self.pixel_mask = self._find_mask(detector)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def frame(self, number: int) -> Frame:
        """Return frame `number`, counted through all leading axes, as it is stored."""
        leading = np.unravel_index(number, self._frames.shape[:-2]) if self._frames.ndim > 2 else ()
        frame: Frame = self._frames[tuple(map(int, leading))]
        return frame

    def _wrong(self, what: str, remedy: str) -> InvalidInput:
        return InvalidInput(f"{self._where}: {what}", remedy=remedy)

    def _find_frames(self, name: str) -> h5py.Dataset:
        found = self._file.get(name)
        if not isinstance(found, h5py.Dataset):
            raise self._wrong(f"no dataset {name}", "give --dataset another path; h5ls -r lists them")
        if found.ndim < 2 or found.dtype.kind not in "iu":
            raise self._wrong(
                f"dataset {name} is {found.dtype} with shape {found.shape}", "give a dataset of integers, (…, y, x)"
            )
        return found

    def _find_geometry(
        self, entry: h5py.Group, detector: h5py.Group | None, settings: ReplaySettings
    ) -> DetectorGeometry:
        given = settings.geometry
        pixel_x = given.pixel_m or _length_m(detector, "x_pixel_size")
        pixel_y = given.pixel_m or _length_m(detector, "y_pixel_size")
        found = {
            "distance_m": given.distance_m or _length_m(detector, "distance"),
            "x_pixel_m": pixel_x,
            "y_pixel_m": pixel_y,
            "wavelength_angstrom": given.wavelength_angstrom or _wavelength_angstrom(entry),
            "beam_center_x_px": given.beam_center_px[0] if given.beam_center_px else _pixels(detector, "x", pixel_x),
            "beam_center_y_px": given.beam_center_px[1] if given.beam_center_px else _pixels(detector, "y", pixel_y),
        }
        missing = [name for name, value in found.items() if value is None]
        if missing:
            raise self._wrong(
                f"its NeXus geometry lacks {', '.join(missing)}",
                "give --distance-mm, --pixel-um, --wavelength-angstrom, --beam-center",
            )
        return DetectorGeometry(**{name: value for name, value in found.items() if value is not None})

    def _find_mask(self, detector: h5py.Group | None) -> PixelMask | None:
        mask = None if detector is None else detector.get("pixel_mask")
        if not isinstance(mask, h5py.Dataset) or mask.shape[-2:] != self.shape:
            return None
        first: PixelMask = np.asarray(mask[...], dtype=np.uint32).reshape(-1, *self.shape)[0]
        return first


def _open(settings: ReplaySettings) -> h5py.File:
    try:
        return h5py.File(settings.file, "r")
    except OSError as error:
        raise InvalidInput(f"--input {settings.file}: {error}", remedy="give an HDF5 file that can be read") from error


def _groups(entry: h5py.Group, nx_class: str) -> list[h5py.Group]:
    found: list[h5py.Group] = []

    def look(_: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Group) and _text(item.attrs.get("NX_class", "")) == nx_class:
            found.append(item)

    entry.visititems(look)
    return found


def _first_with(entry: h5py.Group, nx_class: str, name: str) -> h5py.Group | None:
    return next((item for item in _groups(entry, nx_class) if name in item), None)


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _number(parent: h5py.Group, name: str) -> tuple[float, str]:
    item = parent[name]
    units = _text(item.attrs.get("units", "")).strip().lower()
    return float(np.ravel(item[()])[0]), units if units in _METRES or units in _KEV else units.removesuffix("s")


def _length_m(parent: h5py.Group | None, name: str) -> float | None:
    if parent is None or name not in parent:
        return None
    value, units = _number(parent, name)
    return value * _METRES[units] if units in _METRES else None


def _pixels(detector: h5py.Group | None, axis: str, pixel_m: float | None) -> float | None:
    name = f"beam_center_{axis}"
    if detector is None or name not in detector or pixel_m is None:
        return None
    value, units = _number(detector, name)
    if units in _PIXELS:
        return value
    return value * _METRES[units] / pixel_m if units in _METRES else None


def _wavelength_angstrom(entry: h5py.Group) -> float | None:
    for nx_class, name in (("NXbeam", "incident_wavelength"), ("NXmonochromator", "wavelength")):
        length = _length_m(_first_with(entry, nx_class, name), name)
        if length is not None:
            return length * 1e10
    for nx_class, name in (("NXbeam", "incident_energy"), ("NXmonochromator", "energy")):
        parent = _first_with(entry, nx_class, name)
        if parent is not None:
            value, units = _number(parent, name)
            if units in _KEV:
                return _HC_KEV_ANGSTROM / (value * _KEV[units])
    return None
