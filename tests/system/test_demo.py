"""The demonstration as a new user runs it: real SLURM and broker, or embedded; simulated frames, or real ones."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest
from nexusformat.nexus.validate import validate_application, validate_file
from pyFAI.detectors import Detector
from pyFAI.integrator.azimuthal import AzimuthalIntegrator

from mpi_kernels.azimuthal import UPPER_EDGE
from orchestrator.stack import processes
from tests.system.beamline import ORCHESTRATOR

REAL = Path(__file__).parents[3] / "shared" / "data" / "nxsas-in625-775C.hdf5"


def run_demo(folder: Path, *options: str) -> tuple[subprocess.CompletedProcess[str], dict[str, object]]:
    summary = folder / "summary.json"
    arguments = [*ORCHESTRATOR, "demo", "--directory", str(folder / "demo"), "--json", str(summary), *options]
    outcome = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=280)
    assert summary.exists(), outcome.stderr
    return outcome, json.loads(summary.read_text())


def assert_whole(outcome: subprocess.CompletedProcess[str], summary: dict[str, object], frames: int) -> None:
    assert outcome.returncode == 0, outcome.stderr
    counts = [summary[f"frames_{name}"] for name in ("expected", "written", "processed", "failed")]
    assert counts == [frames, frames, frames, 0]
    assert (summary["state"], summary["complete"]) == ("complete", True)
    assert Path(str(summary["picture"])).read_bytes().startswith(b"\x89PNG")
    lag_median_s, lag_max_s = summary["lag_median_s"], summary["lag_max_s"]
    assert isinstance(lag_median_s, float)
    assert isinstance(lag_max_s, float)
    assert 0 < lag_median_s <= lag_max_s


def assert_nothing_runs(folder: Path) -> None:
    """No process is left that names this demonstration's folder."""
    named = str(folder / "demo").encode()
    assert list(processes.processes_where(lambda process: named in (process / "cmdline").read_bytes())) == []


@pytest.mark.stack
@pytest.mark.mpi
def test_a_message_over_a_real_broker_leads_to_a_complete_result_of_a_real_slurm_job(tmp_path: Path) -> None:
    outcome, summary = run_demo(tmp_path, "--frames", "60")
    assert_whole(outcome, summary, 60)
    assert (summary["gateway"], summary["slurm_job_id"]) == ("cli", 1)
    assert_nothing_runs(tmp_path)
    assert not (tmp_path / "demo" / "stack").exists()
    for command in ("show", "log"):
        shown = subprocess.run(
            [*ORCHESTRATOR, command, str(summary["run"]), "--site", str(summary["site"])],
            capture_output=True,
            text=True,
            check=False,
        )
        assert shown.returncode == 0, shown.stderr


@pytest.mark.mpi
def test_embedded_needs_neither_slurm_nor_a_broker(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome, summary = run_demo(tmp_path, "--embedded", "--frames", "60")
    assert_whole(outcome, summary, 60)
    assert summary["gateway"] == "local"
    assert validate_application(str(summary["result"])) == (0, 0), capsys.readouterr().out
    _warnings, errors = validate_file(str(summary["result"]))
    assert errors == 0, capsys.readouterr().out
    assert_nothing_runs(tmp_path)


@pytest.mark.stack
@pytest.mark.mpi
def test_a_replayed_real_file_agrees_with_pyfai_frame_by_frame(tmp_path: Path) -> None:
    if not REAL.exists():
        pytest.skip(f"NOT TESTED: the real detector data aren't there: {REAL}")
    outcome, summary = run_demo(tmp_path, "--input", str(REAL), "--dataset", "/entry/data/frames")
    assert_whole(outcome, summary, 10)
    with h5py.File(REAL) as file:
        frames = file["/entry/data/frames"][()]
    with h5py.File(Path(str(summary["result"]))) as file:
        intensity, edges = file["entry/data/I"][()], file["entry/data/radial_axis_edges"][()]
        corrected = bool(file["entry/solid_angle_applied"][()])
    # As the beamline wrote it into the file, not through our own reader of geometries.
    reference = AzimuthalIntegrator(
        dist=0.5408,
        poni1=-0.9718e-3,
        poni2=17.1914e-3,
        detector=Detector(0.172e-3, 0.172e-3, max_shape=frames.shape[1:]),
        wavelength=0.590402242180138e-10,
    )
    assert intensity.shape == (10, edges.size - 1)
    for frame, ours in zip(frames, intensity, strict=True):
        theirs = reference.integrate1d_ng(
            frame,
            edges.size - 1,
            unit="q_nm^-1",
            method=("no", "histogram", "cython"),
            mask=frame < 0,
            radial_range=(edges[0], edges[-1] / UPPER_EDGE),
            correctSolidAngle=corrected,
        )
        filled = theirs.count > 0
        assert filled.sum() > ours.size // 2
        np.testing.assert_allclose(ours[filled], theirs.intensity[filled], rtol=1e-6)
