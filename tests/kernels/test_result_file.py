"""The result is a valid NXazint1d file that says how it was made."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from nexusformat.nexus.validate import validate_application, validate_file

from mpi_kernels.decode import decompress
from mpi_kernels.native.library import PATH as NATIVE
from orchestrator.contents import compare

from .harness import assert_rows_are_the_frames, progress_of, run_kernel
from .writers import Spec, add_geometry, frame_of, write

REAL = Path(__file__).parents[3] / "shared" / "data" / "nxsas-in625-775C.hdf5"
PARAMETERS = {"bins": 30, "unit": "q_A^-1", "polarization_factor": 0.9, "background": None}


@pytest.fixture
def result(tmp_path: Path) -> Path:
    spec = Spec(path=str(tmp_path / "scan.h5"))
    write(spec)
    with h5py.File(spec.path, "r+") as file:
        source = file["entry/instrument"].create_group("source")
        source.attrs["NX_class"] = "NXsource"
        for name, text in (("name", "a ring"), ("type", "Synchrotron X-ray Source"), ("probe", "x-ray")):
            source[name] = text
    path = tmp_path / "result.nxs"
    done = run_kernel(Path(spec.path), path, parameters=PARAMETERS, run_id="run-7", expected=12)
    assert (done.returncode, done.stderr) == (0, "")
    return path


def test_nexus_validator_finds_nothing_wrong_with_the_application_definition(
    result: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert validate_application(str(result)) == (0, 0), capsys.readouterr().out


def test_nexus_validator_finds_no_error_in_the_base_classes(result: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _warnings, errors = validate_file(str(result))
    assert errors == 0, capsys.readouterr().out


def test_nexus_validator_finds_nothing_wrong_with_the_average_of_a_result(
    result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    average = tmp_path / "average.nxs"
    assert run_kernel(result, average, kernel="average", dataset="/entry/data").returncode == 0
    assert validate_application(str(average)) == (0, 0), capsys.readouterr().out
    _warnings, errors = validate_file(str(average))
    assert errors == 0, capsys.readouterr().out


def test_opens_as_a_line_plot_by_default(result: Path) -> None:
    with h5py.File(result) as file:
        data = file[file.attrs["default"]][file[file.attrs["default"]].attrs["default"]]
        assert data.attrs["signal"] == "I"
        assert list(data.attrs["axes"]) == [".", "radial_axis"]
        assert data.attrs["interpretation"] == data["I"].attrs["interpretation"] == "spectrum"
        assert data["I"].shape == data["I_errors"].shape == (12, 30)
        assert (data["radial_axis"].attrs["long_name"], data["radial_axis"].attrs["units"]) == ("q", "1/angstrom")
        assert data["radial_axis_edges"].shape == (31,)


def test_process_note_says_how_it_was_made(result: Path) -> None:
    with h5py.File(result) as file:
        process = file["entry/reduction"]
        given = {name: dataset[()] for name, dataset in process["input"].items()}
        assert process["program"].asstr()[()] == "mpi_kernels azimuthal"
        assert json.loads(given["parameters_json"])["polarization_factor"] == 0.9
        assert given["made_run_id"] == b"run-7"
        assert given["made_ranks"] == 1
        assert b"--run-id run-7" in given["made_command_line"]
        geometry = json.loads(given["geometry_json"])
        assert geometry["origin_m"] == pytest.approx([-0.004, -0.003, 0.2])
        assert geometry["wavelength_m"] == pytest.approx(1e-10)
        assert file["entry/polarization_applied"][()]
        route = file["entry/frames/reading_route"].asstr()[0]
    if decompress is None and NATIVE is None:  # both need a compiler; without it HDF5's own filters decode
        assert route.startswith("HDF5 pipeline (bitshuffle-lz4, chunks ")
    else:
        assert route == "direct chunk read (bitshuffle-lz4)"


def test_process_has_the_parameters_as_a_note(result: Path) -> None:
    with h5py.File(result) as file:
        process = file["entry/reduction"]
        note = process["configuration"]
        assert (process["input"].attrs["NX_class"], note.attrs["NX_class"]) == ("NXparameters", "NXnote")
        assert note["type"].asstr()[()] == "application/json"
        assert json.loads(note["data"][()])["bins"] == 30
        assert process["sequence_index"][()] == note["sequence_index"][()] == 1


def test_parameter_with_a_unit_says_so(tmp_path: Path) -> None:
    spec = Spec(path=str(tmp_path / "scan.h5"), frames=1)
    write(spec)
    parameters = {"thickness_m": 0.001, "solid_angle": True}
    assert run_kernel(Path(spec.path), tmp_path / "r.nxs", parameters=parameters).returncode == 0
    with h5py.File(tmp_path / "r.nxs") as file:
        given = file["entry/reduction/input"]
        assert given["thickness_m"].attrs["units"] == "m"
        assert "units" not in given["count_time_s"].attrs  # none
        assert "units" not in given["solid_angle"].attrs


def test_content_digest_is_of_frames_and_parameters_and_not_of_place_and_time(result: Path, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    scan = shutil.copy(tmp_path / "scan.h5", folder / "again.h5")
    assert run_kernel(scan, folder / "again.nxs", parameters=PARAMETERS).returncode == 0
    assert compare(result, folder / "again.nxs").differences == ()
    with h5py.File(scan, "r+") as file:
        file["entry/instrument/detector/data"][3, 20, 30] += 1
    assert run_kernel(scan, folder / "again.nxs", parameters=PARAMETERS).returncode == 0
    changed = {difference.path: difference for difference in compare(result, folder / "again.nxs").differences}
    assert changed["/entry/data/I"].values.index[0] == 3
    parameters = PARAMETERS | {"polarization_factor": 0.91}
    assert run_kernel(tmp_path / "scan.h5", folder / "again.nxs", parameters=parameters).returncode == 0
    changed = {difference.path: difference for difference in compare(result, folder / "again.nxs").differences}
    assert changed["/entry/reduction/input/polarization_factor"].second == "0.91"


def test_progress_file_says_with_which_parameters_and_software(result: Path) -> None:
    progress = progress_of(result)
    with h5py.File(result) as file:
        assert progress["parameters"] == json.loads(file["entry/reduction/input/parameters_json"][()])
    assert progress["parameters"]["solid_angle"] is True  # a default
    assert progress["software"]["h5py"] == h5py.__version__
    assert set(progress["software"]) == {
        "python", "numpy", "h5py", "hdf5", "hdf5plugin", "mpi4py", "mpi", "decoder", "source_sha256",
    }  # fmt: skip
    assert progress["parameters_sha256"] == hashlib.sha256(result.with_suffix(".json").read_bytes()).hexdigest()


def test_files_that_parameters_name_are_told_and_their_names_are_no_content(result: Path, tmp_path: Path) -> None:
    results = []
    for name in ("mask.npy", "same.npy"):
        np.save(tmp_path / name, np.zeros((60, 80), bool))
        results.append(tmp_path / f"{name}.nxs")
        done = run_kernel(tmp_path / "scan.h5", results[-1], parameters=PARAMETERS | {"mask": str(tmp_path / name)})
        assert (done.returncode, done.stderr) == (0, "")
    [mask] = progress_of(results[1])["files"]
    assert (mask["parameter"], mask["path"]) == ("mask", str(tmp_path / "same.npy"))
    with h5py.File(results[1]) as file:
        assert json.loads(file["entry/reduction/input/made_files_json"][()]) == [mask]
    assert compare(*results).differences == ()


def test_frames_are_accounted_for(result: Path) -> None:
    with h5py.File(result) as file:
        frames = {name: dataset[()] for name, dataset in file["entry/frames"].items()}
    assert [int(frames[name][0]) for name in ("expected", "written", "processed", "failed", "finished")] == [
        12,
        12,
        12,
        0,
        1,
    ]
    assert (frames["status"] == 1).all()
    assert (frames["frame_index"] == np.arange(12)).all()
    assert (np.diff(frames["processed_time"]) >= 0).all()


@pytest.mark.parametrize(("model", "variance"), [("poisson", 0.0), ("pyfai", 1.0)])
def test_error_model_decides_the_errors_of_empty_pixels(tmp_path: Path, model: str, variance: float) -> None:
    spec = Spec(path=str(tmp_path / "scan.h5"), frames=1)
    write(spec)
    with h5py.File(spec.path, "r+") as file:
        file["entry/instrument/detector/data"][0] = 0
    parameters = {"bins": 10, "error_model": model, "solid_angle": False}
    assert run_kernel(Path(spec.path), tmp_path / "r.nxs", parameters=parameters).returncode == 0
    with h5py.File(tmp_path / "r.nxs") as file:
        errors, norm = file["entry/data/I_errors"][0], file["entry/data/norm"][()]
    np.testing.assert_allclose(errors, np.sqrt(variance * norm) / norm)


def test_result_without_errors_has_no_errors(tmp_path: Path) -> None:
    spec = Spec(path=str(tmp_path / "scan.h5"), frames=1)
    write(spec)
    assert run_kernel(Path(spec.path), tmp_path / "r.nxs", parameters={"error_model": "none"}).returncode == 0
    with h5py.File(tmp_path / "r.nxs") as file:
        assert "I_errors" not in file["entry/data"]


SHAPES = {
    "one frame": ((60, 80), {}),
    "contiguous": ((4, 60, 80), {}),
    "four dimensions": ((2, 2, 60, 80), {"chunks": (1, 1, 60, 80), "compression": "gzip"}),
    "two frames per chunk along the fast scan axis": ((2, 2, 60, 80), {"chunks": (1, 2, 30, 80)}),
}


@pytest.mark.parametrize("dtype", ["u2", "i4", "f4"])
@pytest.mark.parametrize("kind", SHAPES)
def test_stacks_of_any_rank_storage_and_type_are_read(tmp_path: Path, kind: str, dtype: str) -> None:
    shape, options = SHAPES[kind]
    spec = Spec(path=str(tmp_path / "scan.h5"), dtype="int32")
    frames = np.stack([frame_of(spec, number) for number in range(int(np.prod(shape[:-2])))])
    marker = {"u2": 65535, "i4": -1, "f4": np.nan}[dtype]
    with h5py.File(spec.path, "w") as file:  # the oldest file format: nothing says whether it is being written
        detector = add_geometry(file, spec)
        stored = np.where(frames < 0, marker, frames).astype(dtype).reshape(shape)
        detector.create_dataset("data", data=stored, **options)
    result = tmp_path / "result.nxs"
    done = run_kernel(Path(spec.path), result)
    assert (done.returncode, done.stderr) == (0, "")
    assert_rows_are_the_frames(result, spec, list(range(len(frames))))


@pytest.mark.parametrize("kind", ["pixel_mask", "detectorSpecific/pixel_mask", "saturation_value"])
def test_detector_knows_its_bad_pixels(tmp_path: Path, kind: str) -> None:
    spec = Spec(path=str(tmp_path / "scan.h5"), frames=1)
    write(spec)
    with h5py.File(spec.path, "r+") as file:
        detector = file["entry/instrument/detector"]
        frame = detector["data"][0]
        frame[10:20, 10:20] = 60_000
        detector["data"][0] = frame
        detector[kind] = (frame == 60_000).astype("u4") * 8 if "mask" in kind else 50_000
    assert run_kernel(Path(spec.path), tmp_path / "r.nxs").returncode == 0
    with h5py.File(tmp_path / "r.nxs") as file:
        assert np.nanmax(file["entry/data/I"][0]) < 200


@pytest.mark.mpi
def test_real_frames_come_out_the_same_on_one_and_two_ranks(tmp_path: Path) -> None:
    if not REAL.is_file():
        pytest.skip(f"the real frames aren't there: {REAL}")
    for ranks in (1, 2):
        done = run_kernel(REAL, tmp_path / f"{ranks}.nxs", ranks=ranks, dataset="/entry/data/frames")
        assert (done.returncode, done.stderr) == (0, "")
    with h5py.File(tmp_path / "1.nxs") as one, h5py.File(tmp_path / "2.nxs") as two:
        intensity = one["entry/data/I"][()]
        assert intensity.tobytes() == two["entry/data/I"][()].tobytes()
        assert intensity.shape == (10, 40)
        assert one["entry/frames/reading_route"][0] == b"direct chunk read (gzip, chunks (2, 25, 122))"
        assert one["entry/instrument/name"].asstr()[()] == "APS 9-ID-C USAXS pinSAXS"
        assert one["entry/instrument/monochromator/wavelength"][()] == pytest.approx(0.59040224)
    assert validate_application(str(tmp_path / "1.nxs")) == (0, 0)


def test_series_of_data_files_behind_a_master_is_one_stack(tmp_path: Path) -> None:
    """DECTRIS masters: a group of external links data_000001, data_000002, …"""
    specs = [Spec(path=str(tmp_path / f"part{part}.h5"), frames=frames) for part, frames in ((1, 5), (2, 5), (3, 2))]
    with h5py.File(tmp_path / "master.h5", "w", libver="latest") as master:
        for part, spec in enumerate(specs, start=1):
            write(spec)
            if part == 1:
                with h5py.File(spec.path) as file:
                    file.copy("entry/instrument", master.require_group("entry"))
            name = f"entry/data/data_{part:06d}"
            master[name] = h5py.ExternalLink(f"part{part}.h5", "/entry/instrument/detector/data")
    result = tmp_path / "r.nxs"
    assert run_kernel(tmp_path / "master.h5", result, dataset="/entry/data", expected=12).returncode == 0
    single = tmp_path / "single.nxs"
    assert run_kernel(Path(specs[0].path), single).returncode == 0
    with h5py.File(result) as file, h5py.File(single) as first:
        rows, part = file["entry/data/I"][()], first["entry/data/I"][()]
    for start, length in ((0, 5), (5, 5), (10, 2)):
        assert rows[start : start + length].tobytes() == part[:length].tobytes()
