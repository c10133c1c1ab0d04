"""A recipe for projection runs on the stack from a collection-start message; its result is an image by default."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from nexusformat.nexus.validate import validate_file

from orchestrator.demonstration import FRAMES_DATASET
from orchestrator.records import RunState
from orchestrator.runs import RunDirectory
from orchestrator.stack import Stack
from tests.system.beamline import Beamline

pytestmark = [pytest.mark.stack, pytest.mark.mpi]

RECIPES = {"pixels": {"kernel": "projection", "template": "projection.sbatch.j2", "match": {"beamline": "*"}}}
FRAMES = 60


def test_collection_is_projected_live_to_the_sums_of_its_frames(
    tmp_path: Path, stack: Stack, capsys: pytest.CaptureFixture[str]
) -> None:
    beamline = Beamline(tmp_path, stack, {"recipes": RECIPES})
    beamline.start_service()
    try:
        with beamline.detector("pixels", "--number", str(FRAMES), "--rate", "20"):
            beamline.announce("pixels", FRAMES)
            detail = beamline.wait_for_end("pixels")
    finally:
        beamline.close()
    assert detail.summary.state is RunState.COMPLETE, (detail.summary.reason, beamline.log())
    result = RunDirectory(detail.summary.run_directory).result
    with h5py.File(beamline.file("pixels")) as file:
        frames = file[FRAMES_DATASET][...].astype(np.int64)
    with h5py.File(result) as file:
        entry = file[file.attrs["default"]]
        shown = entry[entry.attrs["default"]]
        assert shown[shown.attrs["signal"]].shape == (128, 128)
        counted = shown["counted"][...]
        assert counted.max() == shown["frames"][0] == FRAMES
        measured = counted > 0
        np.testing.assert_array_equal(shown["sum"][...][measured], frames.sum(axis=0)[measured])
        np.testing.assert_array_equal(
            entry["totals/total"][...], np.where(measured, frames, 0).sum(axis=(1, 2), dtype=np.int64)
        )
    _warnings, errors = validate_file(str(result))
    assert errors == 0, capsys.readouterr().out
