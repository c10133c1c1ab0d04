"""Azimuthal integration gives what pyFAI gives without pixel splitting: equal sums, intensities to 1e-6."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from pyFAI.integrator.azimuthal import AzimuthalIntegrator

from mpi_kernels.azimuthal import UPPER_EDGE
from mpi_kernels.azimuthal_setup import Setup, set_up
from mpi_kernels.hdf5_files import Library
from mpi_kernels.kernel import Frames
from mpi_kernels.parameters import AzimuthalParameters, read_parameters

from .writers import PIXEL_M, Spec, add_geometry, frame_of

REAL = Path(__file__).parents[3] / "shared" / "data" / "nxsas-in625-775C.hdf5"
SPEC = Spec(path="unused", shape=(120, 150), dtype="int32")
METHOD = ("no", "histogram", "cython")

PONIS = {
    "straight": {"Distance": 0.2, "Poni1": 0.006, "Poni2": 0.0075, "Rot1": 0, "Rot2": 0, "Rot3": 0},
    "tilted": {"Distance": 0.05, "Poni1": 0.004, "Poni2": 0.009, "Rot1": 0.31, "Rot2": -0.12, "Rot3": 0.7},
}


def write_poni(path: Path, values: dict[str, float], orientation: int = 3) -> Path:
    config = {"pixel1": PIXEL_M, "pixel2": PIXEL_M, "max_shape": None, "orientation": orientation}
    lines = ["# Nota: C-Order", "poni_version: 2.1", "Detector: Detector", f"Detector_config: {json.dumps(config)}"]
    lines += [f"{name}: {value}" for name, value in values.items()] + ["Wavelength: 1e-10"]
    path.write_text("\n".join(lines) + "\n")
    return path


def prepared_for(folder: Path, parameters: dict[str, object], shape: tuple[int, int], dtype: str, file: Path) -> Setup:
    (folder / "parameters.json").write_text(json.dumps(parameters))
    library = Library()
    try:
        frames = Frames(file, "/entry/data/frames", shape, np.dtype(dtype), folder)
        return set_up(library, frames, read_parameters(folder / "parameters.json", AzimuthalParameters)[0])
    finally:
        library.close()


def assert_agrees(
    prepared: Setup, reference: AzimuthalIntegrator, frame: np.ndarray, *, mask: np.ndarray, **options: object
) -> None:
    """Compare one frame with pyFAI on the same bins; `options` are integrate1d_ng's."""
    integrator = prepared.integrator
    edges = integrator.edges
    if "dark" in options:  # pyFAI's own model forgets the dark's variance on this route
        options["variance"] = np.maximum(frame, 1) + np.asarray(options["dark"])
    else:
        options["error_model"] = "poisson"
    result = reference.integrate1d_ng(
        frame,
        integrator.bins,
        unit=prepared.parameters.unit,
        method=METHOD,
        mask=mask,
        radial_range=(edges[0], edges[-1] / UPPER_EDGE),
        polarization_factor=prepared.parameters.polarization_factor,
        correctSolidAngle=prepared.parameters.solid_angle,
        **options,
    )
    ours, sums = integrator.integrate(frame), integrator.sums(frame)
    filled = result.count > 0
    assert filled.sum() > integrator.bins // 2
    assert np.array_equal(filled, np.isfinite(ours.intensity))
    np.testing.assert_allclose(integrator.centres, result.radial, rtol=2e-7)
    np.testing.assert_allclose(ours.intensity[filled], result.intensity[filled], rtol=1e-6, atol=1e-12)
    if prepared.parameters.error_model == "pyfai":
        np.testing.assert_allclose(ours.sigma[filled], result.sigma[filled], rtol=1e-6)
    exact = "dark" not in options
    np.testing.assert_allclose(sums.signal, result.sum_signal, rtol=0 if exact else 1e-6, atol=0 if exact else 1e-4)
    np.testing.assert_allclose(sums.norm, result.sum_normalization, rtol=1e-6)


def pyfai_for(poni: Path) -> AzimuthalIntegrator:
    import pyFAI  # noqa: PLC0415  slow to import; only these tests need it

    return pyFAI.load(str(poni))


@pytest.fixture
def frames_file(tmp_path: Path) -> Path:
    path = tmp_path / "frames.h5"
    with h5py.File(path, "w") as file:
        add_geometry(file, SPEC)
    return path


CORRECTIONS: dict[str, dict[str, object]] = {
    "plain": {"solid_angle": False},
    "solid angle": {"solid_angle": True},
    "horizontal polarisation": {"polarization_factor": 0.99},
    "no polarisation": {"polarization_factor": 0.0},
    "vertical polarisation": {"polarization_factor": -1.0},
    "q in inverse angstrom": {"unit": "q_A^-1"},
    "two theta in degrees": {"unit": "2th_deg"},
    "two theta in radians": {"unit": "2th_rad"},
}


@pytest.mark.parametrize("poni", PONIS)
@pytest.mark.parametrize("correction", CORRECTIONS)
def test_every_correction_agrees_on_synthetic_frames(
    tmp_path: Path, frames_file: Path, poni: str, correction: str
) -> None:
    path = write_poni(tmp_path / "a.poni", PONIS[poni])
    parameters = {"poni": "a.poni", "bins": 80, "error_model": "pyfai", **CORRECTIONS[correction]}
    prepared = prepared_for(tmp_path, parameters, SPEC.shape, SPEC.dtype, frames_file)
    for number in range(3):
        frame = frame_of(SPEC, number)
        assert_agrees(prepared, pyfai_for(path), frame, mask=frame < 0)


@pytest.mark.parametrize("orientation", [1, 2, 3, 4])
def test_detector_orientation_of_the_poni_file_agrees(tmp_path: Path, frames_file: Path, orientation: int) -> None:
    path = write_poni(tmp_path / "a.poni", PONIS["tilted"], orientation)
    parameters = {"poni": "a.poni", "bins": 80, "error_model": "pyfai", "polarization_factor": 0.5}
    prepared = prepared_for(tmp_path, parameters, SPEC.shape, SPEC.dtype, frames_file)
    frame = frame_of(SPEC, 1)
    reference = pyfai_for(path)
    reference.detector.shape = reference.detector.max_shape = SPEC.shape
    assert_agrees(prepared, reference, frame, mask=frame < 0)


@pytest.mark.parametrize("kind", ["npy", "edf", "h5"])
def test_mask_dark_and_flat_agree(tmp_path: Path, frames_file: Path, kind: str) -> None:
    rng = np.random.default_rng(3)
    images = {
        "mask": (rng.random(SPEC.shape) < 0.1).astype(np.uint8),
        "dark": rng.poisson(4, SPEC.shape).astype(np.float32),
        "flat": rng.normal(1, 0.05, SPEC.shape).astype(np.float32),
    }
    names = {name: save_image(tmp_path, name, image, kind) for name, image in images.items()}
    path = write_poni(tmp_path / "a.poni", PONIS["tilted"])
    parameters = {"poni": "a.poni", "bins": 80, "error_model": "pyfai", **names}
    prepared = prepared_for(tmp_path, parameters, SPEC.shape, SPEC.dtype, frames_file)
    frame = frame_of(SPEC, 2)
    mask = (images["mask"] != 0) | (frame < 0)
    assert_agrees(prepared, pyfai_for(path), frame, mask=mask, dark=images["dark"], flat=images["flat"])


def save_image(folder: Path, name: str, image: np.ndarray, kind: str) -> str:
    if kind == "npy":
        np.save(folder / f"{name}.npy", image)
    elif kind == "edf":
        import fabio  # noqa: PLC0415  only this test needs it

        fabio.edfimage.EdfImage(image).write(str(folder / f"{name}.edf"))
    else:
        with h5py.File(folder / "images.h5", "a") as file:
            file[name] = image
        return f"images.h5::/{name}"
    return f"{name}.{kind}"


def test_background_is_scaled_and_subtracted_as_a_dark_would_be(tmp_path: Path, frames_file: Path) -> None:
    background = np.random.default_rng(5).poisson(6, (4, *SPEC.shape)).astype(np.int32)
    with h5py.File(tmp_path / "background.h5", "w") as file:
        file["entry/data"] = background
    path = write_poni(tmp_path / "a.poni", PONIS["straight"])
    frame = frame_of(SPEC, 2)
    for choice, image in (("[mean]", background.mean(axis=0)), ("[2]", background[2])):
        parameters = {
            "poni": "a.poni",
            "bins": 80,
            "background": f"background.h5::/entry/data{choice}",
            "background_scale": 0.5,
        }
        prepared = prepared_for(tmp_path, parameters, SPEC.shape, SPEC.dtype, frames_file)
        assert_agrees(prepared, pyfai_for(path), frame, mask=frame < 0, dark=0.5 * image)


def test_real_frames_agree_with_geometry_from_the_nexus_file(tmp_path: Path) -> None:
    if not REAL.is_file():
        pytest.skip(f"the real frames aren't there: {REAL}")
    with h5py.File(REAL) as file:
        frames, blank = file["/entry/data/frames"][()], file["/entry/data/blank"][()]
    parameters = {
        "bins": 120,
        "unit": "q_A^-1",
        "error_model": "pyfai",
        "polarization_factor": 0.95,
        "dark": f"{REAL}::/entry/data/blank",
    }
    prepared = prepared_for(tmp_path, parameters, frames.shape[1:], "int32", REAL)
    pixel = 0.172e-3
    reference = AzimuthalIntegrator(
        dist=0.5408,
        poni1=-0.9718e-3,
        poni2=17.1914e-3,
        pixel1=pixel,
        pixel2=pixel,
        wavelength=0.59040224e-10,
    )
    mask = blank < 0
    for frame in frames:
        assert_agrees(prepared, reference, frame, mask=mask | (frame < 0), dark=blank)


@pytest.mark.parametrize("sector", [(20.0, 100.0), (-150.0, -35.0)])
@pytest.mark.parametrize("poni", PONIS)
def test_sector_agrees(tmp_path: Path, frames_file: Path, poni: str, sector: tuple[float, float]) -> None:
    path = write_poni(tmp_path / "a.poni", PONIS[poni])
    parameters = {"poni": "a.poni", "bins": 50, "azimuthal_range_deg": sector}
    prepared = prepared_for(tmp_path, parameters, SPEC.shape, SPEC.dtype, frames_file)
    frame = frame_of(SPEC, 1)
    assert_agrees(prepared, pyfai_for(path), frame, mask=frame < 0, azimuth_range=sector)


def test_sector_may_go_through_180_degrees(tmp_path: Path, frames_file: Path) -> None:
    write_poni(tmp_path / "a.poni", PONIS["straight"])
    pixels = {}
    for sector in ((170.0, -170.0), (170.0, 180.0), (-180.0, -170.0), (-180.0, 180.0)):
        parameters = {"poni": "a.poni", "azimuthal_range_deg": sector}
        prepared = prepared_for(tmp_path, parameters, SPEC.shape, SPEC.dtype, frames_file)
        pixels[sector] = prepared.integrator.pixels
    assert pixels[170.0, -170.0] == pixels[170.0, 180.0] + pixels[-180.0, -170.0]
    assert pixels[-180.0, 180.0] == SPEC.shape[0] * SPEC.shape[1]
