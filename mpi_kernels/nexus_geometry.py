"""Detector geometry from a NeXus file: NXdetector with NXbeam or NXmonochromator.

Three forms are understood: ``depends_on`` with NXdetector_module vectors; ``distance`` and ``beam_center_x/y`` with a
detector across the beam; and the latter in the older NXsas layout (beam centre as a length). Units are honoured; a beam
centre without units, or in pixels, counts pixels from the outer corner of the first one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mpi_kernels.errors import InvalidParameters, UnusableInput
from mpi_kernels.geometry import Geometry, energy_to_wavelength_m, from_beam_centre
from mpi_kernels.hdf5_files import Library

_METRES = {
    "m": 1.0,
    "metre": 1.0,
    "meter": 1.0,
    "mm": 1e-3,
    "millimetre": 1e-3,
    "millimeter": 1e-3,
    "cm": 1e-2,
    "um": 1e-6,
    "µm": 1e-6,
    "μm": 1e-6,
    "micron": 1e-6,
    "nm": 1e-9,
    "angstrom": 1e-10,
    "å": 1e-10,
    "a": 1e-10,
    "pm": 1e-12,
}
_KEV = {"ev": 1e-3, "kev": 1.0, "mev": 1e3, "j": 6.241509074460763e15}
_RADIANS = {"deg": np.pi / 180, "degree": np.pi / 180, "°": np.pi / 180, "rad": 1.0, "radian": 1.0, "mrad": 1e-3}
_PIXELS = {"", "pixel", "px", "none", "dimensionless"}


@dataclass(frozen=True)
class DetectorFacts:
    """What a NeXus file says about the detector, besides its frames."""

    group: str
    geometry: Geometry | None
    geometry_problem: str
    """Why there is no geometry, empty if there is one."""
    pixel_size_m: tuple[float, float] | None
    wavelength_m: float | None
    pixel_mask: NDArray[Any] | None
    saturation_value: float | None
    underload_value: float | None


@dataclass(frozen=True)
class InstrumentNames:
    """Names that the result repeats; empty where the file doesn't say."""

    instrument: str
    source: str
    source_type: str
    probe: str


def read_detector(
    library: Library,
    file: Path,
    dataset: str,
    detector: str | None,
    *,
    pixel_size_m: tuple[float, float] | None = None,
) -> DetectorFacts:
    """Read what the file says about the detector that took `dataset`.

    Raises
    ------
    InvalidParameters
        When `detector` names no group.
    """
    root = library.file(file)
    group = _find_detector(root, dataset, detector, file)
    wavelength = _wavelength_m(root, dataset)
    if group is None:
        problem = f"{file}: no NXdetector group"
        return DetectorFacts("", None, problem, None, wavelength, None, None, None)
    pixel = pixel_size_m or _pixel_size_m(group)
    places = (group, group.get("detectorSpecific"))  # DECTRIS writers keep the mask in the second
    geometry: Geometry | None = None
    problem = ""
    try:
        geometry = _geometry(group, pixel, wavelength, f"{file}::{group.name}")
    except UnusableInput as error:
        problem = str(error)
    return DetectorFacts(
        group.name,
        geometry,
        problem,
        pixel,
        wavelength,
        next((mask for place in places if (mask := _array(place, "pixel_mask")) is not None), None),
        _number(group, "saturation_value"),
        _number(group, "underload_value"),
    )


def read_names(library: Library, file: Path) -> InstrumentNames:
    """Read the names of instrument and source."""
    root = library.file(file)
    instrument = _first_of_class(root, "NXinstrument")
    source = _first_of_class(root, "NXsource")
    return InstrumentNames(
        _text(instrument, "name"), _text(source, "name"), _text(source, "type"), _text(source, "probe")
    )


# ----------------------------------------------------------------------------------------------------- finding groups


def _find_detector(root: h5py.File, dataset: str, detector: str | None, file: Path) -> h5py.Group | None:
    if detector is not None:
        if root.get(detector, getclass=True) is not h5py.Group:
            raise InvalidParameters(
                f"{file}: detector: no group {detector}", remedy="give the path of an NXdetector group"
            )
        return root[detector]
    for parent in _parents(dataset):
        if root.get(parent, getclass=True) is h5py.Group and _class_of(root[parent]) == "NXdetector":
            return root[parent]
    found = _groups_of_class(root, "NXdetector")
    holders = [group for group in found if _holds_same_object(root, group, dataset)]
    if len(holders) == 1 or len(found) == 1:
        return (holders or found)[0]
    if found:
        names = ", ".join(group.name for group in found)
        raise InvalidParameters(f"{file}: several NXdetector groups ({names})", remedy="give the parameter detector")
    return None


def _holds_same_object(root: h5py.File, group: h5py.Group, dataset: str) -> bool:
    parent, _, name = dataset.rstrip("/").rpartition("/")
    if root.get(parent or "/", getclass=True) is not h5py.Group:
        return False
    wanted = _target(root[parent or "/"], name)
    return wanted is not None and any(_target(group, member) == wanted for member in group)


def _target(group: h5py.Group, name: str) -> object:
    """Return what a link points to, comparable, without opening it."""
    link = group.get(name, getlink=True)
    if isinstance(link, h5py.ExternalLink):
        return (link.filename, link.path)
    if isinstance(link, h5py.SoftLink):
        parent, _, last = link.path.rpartition("/")
        holder = group.file if link.path.startswith("/") else group
        return _target(holder[parent or "/"] if parent else holder, last) if (parent or "/") in holder else None
    return None if link is None else group.id.links.get_info(name.encode()).u


def _parents(path: str) -> list[str]:
    parts = [part for part in path.split("/") if part]
    return ["/" + "/".join(parts[:length]) for length in range(len(parts) - 1, 0, -1)]


def _class_of(group: h5py.Group) -> str:
    value = group.attrs.get("NX_class", b"")
    return value.decode() if isinstance(value, bytes) else str(value)


def _groups_of_class(root: h5py.Group, nx_class: str, depth: int = 5) -> list[h5py.Group]:
    """Return the groups of a class, through hard links only: other files aren't opened."""
    found: list[h5py.Group] = []
    for name in root:
        if (
            not isinstance(root.get(name, getlink=True), h5py.HardLink)
            or root.get(name, getclass=True) is not h5py.Group
        ):
            continue
        group = root[name]
        if _class_of(group) == nx_class:
            found.append(group)
        elif depth > 1:
            found.extend(_groups_of_class(group, nx_class, depth - 1))
    return found


def _first_of_class(root: h5py.Group, nx_class: str) -> h5py.Group | None:
    return next(iter(_groups_of_class(root, nx_class)), None)


# ------------------------------------------------------------------------------------------------------ reading values


def _array(group: h5py.Group | None, name: str) -> NDArray[Any] | None:
    if group is None or group.get(name, getclass=True) is not h5py.Dataset:
        return None
    return np.asarray(group[name][()])


def _text(group: h5py.Group | None, name: str) -> str:
    value = _array(group, name)
    if value is None or value.size != 1:
        return ""
    item = value.reshape(-1)[0]
    return item.decode(errors="replace") if isinstance(item, bytes) else str(item)


def _number(group: h5py.Group | None, name: str) -> float | None:
    value = _array(group, name)
    if value is None or value.size == 0 or value.dtype.kind not in "uif" or np.isnan(value).all():
        return None
    if not np.all(value == value.reshape(-1)[0]):
        assert group is not None  # noqa: S101  there is a value
        raise UnusableInput(f"{group.name}/{name}: changes during the scan", remedy="give the geometry as a PONI file")
    return float(value.reshape(-1)[0])


def _units(group: h5py.Group, name: str) -> str:
    value = group[name].attrs.get("units", "")
    if isinstance(value, np.ndarray):
        value = value.reshape(-1)[0] if value.size else ""
    text = value.decode() if isinstance(value, bytes) else str(value)
    return text.strip().lower()


def _factor(units: str, table: dict[str, float], place: str) -> float:
    for name in (units, units.removesuffix("s"), units.removesuffix("es")):
        if name in table:
            return table[name]
    raise UnusableInput(f"{place}: units {units!r}", remedy=f"one of {', '.join(table)}")


def _length_m(group: h5py.Group, name: str) -> float | None:
    value = _number(group, name)
    # NeXus requires units; without them SI is meant in practice
    return None if value is None else value * _factor(_units(group, name) or "m", _METRES, f"{group.name}/{name}")


def _wavelength_m(root: h5py.File, dataset: str) -> float | None:
    """Return the wavelength from the entry's NXbeam or NXmonochromator; NXbeam wins."""
    entry_name = next((part for part in dataset.split("/") if part), "")
    entry = root[entry_name] if root.get(entry_name, getclass=True) is h5py.Group else root
    for nx_class, prefix in (("NXbeam", "incident_"), ("NXmonochromator", "")):
        for group in _groups_of_class(entry, nx_class):
            wavelength = _length_in(group, f"{prefix}wavelength", default="angstrom")
            if wavelength is not None:
                return wavelength
            energy = _number(group, f"{prefix}energy")
            if energy is not None:
                name = f"{prefix}energy"
                factor = _factor(_units(group, name) or "ev", _KEV, f"{group.name}/{name}")
                return energy_to_wavelength_m(energy * factor) if energy else np.inf
    return None


def _length_in(group: h5py.Group, name: str, *, default: str) -> float | None:
    value = _number(group, name)
    return None if value is None else value * _factor(_units(group, name) or default, _METRES, f"{group.name}/{name}")


def _pixel_size_m(group: h5py.Group) -> tuple[float, float] | None:
    y, x = _length_m(group, "y_pixel_size"), _length_m(group, "x_pixel_size")
    return None if y is None or x is None else (y, x)


# -------------------------------------------------------------------------------------------------------- the geometry


def _geometry(group: h5py.Group, pixel: tuple[float, float] | None, wavelength: float | None, place: str) -> Geometry:
    module = _first_of_class(group, "NXdetector_module")
    if module is not None and "fast_pixel_direction" in module and "slow_pixel_direction" in module:
        return _from_module(module, wavelength, place)
    if pixel is None:
        raise UnusableInput(f"{place}: no x_pixel_size and y_pixel_size", remedy="give pixel_size_m")
    centre = (_centre_px(group, "beam_center_y", pixel[0]), _centre_px(group, "beam_center_x", pixel[1]))
    distance = _length_m(group, "distance")
    if distance is None:
        distance = _distance_by_transformations(group)
    if distance is None or centre[0] is None or centre[1] is None:
        lacking = [
            name
            for name, value in (("distance", distance), ("beam_center_y", centre[0]), ("beam_center_x", centre[1]))
            if value is None
        ]
        raise UnusableInput(f"{place}: no {', '.join(lacking)}", remedy="give a PONI file")
    return from_beam_centre(
        distance_m=distance,
        pixel_m=pixel,
        centre_px=(centre[0], centre[1]),
        wavelength_m=wavelength,
        source=place,
    )


def _centre_px(group: h5py.Group, name: str, pixel_m: float) -> float | None:
    value = _number(group, name)
    if value is None:
        return None
    units = _units(group, name)
    if units.removesuffix("s") in _PIXELS:
        return value
    return value * _factor(units, _METRES, f"{group.name}/{name}") / pixel_m


def _distance_by_transformations(group: h5py.Group) -> float | None:
    """Return the distance of a detector across the beam from its chain of translations."""
    chain = _text(group, "depends_on")
    if chain in {"", "."}:
        return None
    matrix = _chain_matrix(group, chain)
    if not np.allclose(matrix[:3, :3], np.eye(3), atol=1e-12):
        raise UnusableInput(
            f"{group.name}: turned by its depends_on chain, but without an NXdetector_module",
            remedy="give the geometry as a PONI file",
        )
    return float(matrix[2, 3])


def _from_module(module: h5py.Group, wavelength: float | None, place: str) -> Geometry:
    """Return the geometry of a module from its pixel directions (NXdetector_module).

    The offset of the module is the centre of its first pixel; the NeXus frame (x left as seen along the beam, y up,
    z along the beam) becomes the laboratory frame by its name: x in the horizontal plane.
    """
    fast, fast_frame = _pixel_vector(module, "fast_pixel_direction")
    slow, slow_frame = _pixel_vector(module, "slow_pixel_direction")
    origin_frame = fast_frame
    if "module_offset" in module:
        origin_frame = _chain_matrix(module, "module_offset")
    first_centre = origin_frame[:3, 3]
    fast, slow = fast_frame[:3, :3] @ fast, slow_frame[:3, :3] @ slow
    return Geometry(first_centre - fast / 2 - slow / 2, fast, slow, wavelength, place)


def _pixel_vector(module: h5py.Group, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    length = _length_m(module, name)
    attributes = module[name].attrs
    vector = np.asarray(attributes["vector"], float)
    chain = attributes.get("depends_on", ".")
    frame = _chain_matrix(module, chain.decode() if isinstance(chain, bytes) else str(chain))
    return vector / np.linalg.norm(vector) * (length or 0.0), frame


def _chain_matrix(group: h5py.Group, path: str) -> NDArray[np.float64]:
    """Return the 4 × 4 matrix of a depends_on chain (NeXus manual, NXtransformations)."""
    matrix = np.eye(4)
    for _ in range(32):
        if path in {"", "."}:
            return matrix
        holder = group.file if path.startswith("/") else group
        if holder.get(path, getclass=True) is not h5py.Dataset:
            raise UnusableInput(f"{group.name}: depends_on {path}: no such dataset", remedy="give a PONI file")
        axis = holder[path]
        matrix = _axis_matrix(axis) @ matrix
        following = axis.attrs.get("depends_on", ".")
        path = following.decode() if isinstance(following, bytes) else str(following)
        group = axis.parent
    raise UnusableInput(f"{group.name}: depends_on goes in a circle", remedy="give a PONI file")


def _axis_matrix(axis: h5py.Dataset) -> NDArray[np.float64]:
    parent, name = axis.parent, axis.name.rpartition("/")[2]
    value = _number(parent, name)
    kind = axis.attrs.get("transformation_type", b"translation")
    kind = kind.decode() if isinstance(kind, bytes) else str(kind)
    vector = np.asarray(axis.attrs.get("vector", (0, 0, 1)), float)
    matrix = np.eye(4)
    if kind == "rotation":
        matrix[:3, :3] = _about(vector, (value or 0.0) * _factor(_units(parent, name) or "deg", _RADIANS, axis.name))
    else:
        factor = _factor(_units(parent, name) or "m", _METRES, axis.name)
        matrix[:3, 3] = vector / np.linalg.norm(vector) * (value or 0.0) * factor
    if "offset" in axis.attrs:
        units = axis.attrs.get("offset_units", "m")
        units = (units.decode() if isinstance(units, bytes) else str(units)).strip().lower()
        matrix[:3, 3] += np.asarray(axis.attrs["offset"], float) * _factor(units, _METRES, axis.name)
    return matrix


def _about(vector: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    """Return the matrix of a right-handed rotation (Rodrigues)."""
    x, y, z = vector / np.linalg.norm(vector)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.asarray(np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross)
