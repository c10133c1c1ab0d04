"""What the parameters ask for stands in the result: splitting, scale, numbers of each frame, several reductions."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from mpi_kernels.errors import ExitCode

from .harness import ENVIRONMENT, assert_same_results, run_kernel, write_in_own_process
from .writers import Spec

FRAMES = 8


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished scan with monitor counts and transmissions beside it; two monitor counts are missing."""
    path = tmp_path_factory.mktemp("scan") / "scan.h5"
    write_in_own_process(Spec(path=str(path), frames=FRAMES))
    with h5py.File(path, "r+") as file:
        file["entry/i0"] = 1000.0 + np.arange(FRAMES)
        file["entry/i0_incomplete"] = np.where(np.arange(FRAMES) < 6, 1000.0 + np.arange(FRAMES), np.nan)
        file["entry/transmission"] = np.full(FRAMES, 0.5)
    return path


def patterns(result: Path, group: str = "data") -> tuple[np.ndarray, np.ndarray]:
    with h5py.File(result) as file:
        return file[f"entry/{group}/I"][...], file[f"entry/{group}/I_errors"][...]


def processed(scan: Path, result: Path, **parameters: object) -> Path:
    done = run_kernel(scan, result, parameters=parameters)
    assert done.returncode == ExitCode.COMPLETE, done.stderr
    return result


def test_numbers_of_each_frame_scale_intensities_and_errors(scan: Path, tmp_path: Path) -> None:
    plain = patterns(processed(scan, tmp_path / "plain.nxs"))
    scaled = processed(
        scan,
        tmp_path / "scaled.nxs",
        monitor_dataset="/entry/i0",
        transmission_dataset="/entry/transmission",
        thickness_m=0.001,
        absolute_scale=3.0,
    )
    factors = 3.0 / (0.5 * (1000.0 + np.arange(FRAMES)) * 0.001)
    for before, after in zip(plain, patterns(scaled), strict=True):
        np.testing.assert_allclose(after, before * factors[:, None], rtol=1e-15)
    with h5py.File(scaled) as file:
        assert file["entry/monitor_applied"][()]


def test_frame_without_its_monitor_counts_is_failed_and_named(scan: Path, tmp_path: Path) -> None:
    result = tmp_path / "result.nxs"
    done = run_kernel(scan, result, parameters={"monitor_dataset": "/entry/i0_incomplete"})
    assert done.returncode == ExitCode.PARTIAL, done.stderr
    with h5py.File(result) as file:
        assert file["entry/frames/status"][...].tolist() == [1] * 6 + [2] * 2
        assert file["entry/frames/message"][7].decode() == f"{scan}::/entry/i0_incomplete[7]: no number there"


def test_monitor_dataset_that_is_not_there_ends_the_run_with_a_remedy(scan: Path, tmp_path: Path) -> None:
    done = run_kernel(scan, tmp_path / "result.nxs", parameters={"monitor_dataset": "/entry/i1"})
    assert done.returncode == ExitCode.UNUSABLE_INPUT
    assert "no /entry/i1" in done.stderr
    assert "give a dataset of one number per frame" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("splitting", ["no", "bbox", "full"])
def test_further_reductions_are_those_of_a_run_of_their_own(scan: Path, tmp_path: Path, splitting: str) -> None:
    sector = {"azimuthal_range_deg": [-30.0, 30.0], "bins": 25, "unit": "2th_deg", "splitting": splitting}
    both = processed(scan, tmp_path / "both.nxs", further={"equator": sector})
    alone = processed(scan, tmp_path / "alone.nxs", **sector)
    for ours, theirs in zip(patterns(both, "equator"), patterns(alone), strict=True):
        assert ours.tobytes() == theirs.tobytes()
    first = processed(scan, tmp_path / "first.nxs")
    for ours, theirs in zip(patterns(both), patterns(first), strict=True):
        assert ours.tobytes() == theirs.tobytes()
    with h5py.File(both) as file:
        group = file["entry/equator"]
        assert (group.attrs["NX_class"], group["radial_axis"].attrs["units"]) == ("NXdata", "degree")


def test_group_of_a_further_reduction_must_be_free(scan: Path, tmp_path: Path) -> None:
    done = run_kernel(scan, tmp_path / "result.nxs", parameters={"further": {"frames": {}}})
    assert done.returncode == ExitCode.WRONG_USE
    assert "further: frames stands for something else in the result" in done.stderr


@pytest.mark.mpi
@pytest.mark.parametrize(
    "parameters",
    [
        {"splitting": "bbox"},
        {"splitting": "full", "error_model": "azimuthal"},
        {"dead_time_s": 1e-5, "count_time_s": 0.1, "error_model": "pyfai"},
        {"unit": "r_mm", "sensor_thickness_m": 4.5e-4, "sensor_attenuation_per_m": 2000.0},
    ],
    ids=lambda parameters: "-".join(map(str, parameters.values())),
)
def test_any_number_of_ranks_and_either_way_to_read_give_the_same_bits(
    scan: Path, tmp_path: Path, parameters: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, four, without = (tmp_path / f"{name}.nxs" for name in ("one", "four", "without"))
    for result, ranks in ((one, None), (four, 4)):
        assert run_kernel(scan, result, ranks=ranks, parameters=dict(parameters)).returncode == ExitCode.COMPLETE
    monkeypatch.setitem(ENVIRONMENT, "MPI_KERNELS_NATIVE", "off")
    assert run_kernel(scan, without, parameters=dict(parameters)).returncode == ExitCode.COMPLETE
    assert_same_results(one, four)
    assert_same_results(one, without, besides=("frames/reading_route",))
