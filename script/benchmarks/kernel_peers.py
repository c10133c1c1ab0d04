"""What people use today: ``d[i]`` and then pyFAI or azint. Prints the frames per second.

    python kernel_peers.py NAME FILE SECONDS

Geometry and mask are taken from the file, as the kernels do. Building tables, which each of them does with its first
frame or before, isn't counted. Nothing of ours is imported: azint may live in an environment of its own.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

# Each of them is imported only where it is measured.
# ruff: noqa: PLC0415
import h5py
import hdf5plugin  # noqa: F401 - without it h5py knows no bitshuffle

BINS = 1000
DATASET = "/entry/data/data"
DETECTOR = "/entry/instrument/detector"
WAVELENGTH = "/entry/instrument/beam/incident_wavelength"
LEAST_FRAMES = 4

Integrate = Callable[[Any], object]


def poni_of(file: h5py.File) -> dict[str, float]:
    """Return pyFAI's description of the geometry, in metres."""
    detector = file[DETECTOR]
    pixel1, pixel2 = float(detector["y_pixel_size"][()]), float(detector["x_pixel_size"][()])
    return {
        "dist": float(detector["distance"][()]),
        "poni1": float(detector["beam_center_y"][()]) * pixel1,
        "poni2": float(detector["beam_center_x"][()]) * pixel2,
        "pixel1": pixel1,
        "pixel2": pixel2,
        "wavelength": float(file[WAVELENGTH][()]) * 1e-10,
    }


def pyfai(file: h5py.File, **method: object) -> Integrate:
    """Integrate with pyFAI; without a method as it is out of the box, with its default."""
    from pyFAI.integrator.azimuthal import AzimuthalIntegrator

    integrator = AzimuthalIntegrator(**poni_of(file))
    mask = file[f"{DETECTOR}/pixel_mask"][()].astype("int8")
    return lambda frame: integrator.integrate1d_ng(frame, BINS, mask=mask, error_model="poisson", **method)


def azint(file: h5py.File, splitting: int) -> Integrate:
    """Integrate with azint, each pixel split into `splitting` × `splitting` parts."""
    from azint import AzimuthalIntegrator, Poni
    from azint.detector import Detector

    geometry = poni_of(file)
    detector = Detector(geometry["pixel1"], geometry["pixel2"], file[DATASET].shape[1:])
    position = [geometry[name] for name in ("dist", "poni1", "poni2")]
    poni = Poni(detector, *position, 0.0, 0.0, 0.0, geometry["wavelength"])
    mask = file[f"{DETECTOR}/pixel_mask"][()].astype("uint8")  # a signed one times unsigned counts is refused
    integrate: Integrate = AzimuthalIntegrator(poni, splitting, BINS, mask=mask, error_model="poisson").integrate
    return integrate


PEERS: dict[str, Callable[[h5py.File], Integrate]] = {
    "pyFAI out of the box": pyfai,
    "pyFAI, its fastest": lambda file: pyfai(file, method=("no", "histogram", "cython")),
    "azint, no splitting": lambda file: azint(file, 1),
    "azint, 4 x 4 subpixels": lambda file: azint(file, 4),
}


def main() -> None:
    """Integrate the file's frames in turn for so long."""
    name, path, seconds = sys.argv[1:]
    with h5py.File(path) as file:
        dataset = file[DATASET]
        integrate = PEERS[name](file)
        integrate(dataset[0])
        frames, began_s = 0, time.perf_counter()
        while (spent_s := time.perf_counter() - began_s) < float(seconds) or frames < LEAST_FRAMES:
            integrate(dataset[frames % len(dataset)])
            frames += 1
    sys.stdout.write(f"{json.dumps(frames / spent_s)}\n")


if __name__ == "__main__":
    main()
