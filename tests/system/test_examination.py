"""After a live run its record says how valid the result is, and in which container image it was made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.injob import file_sha256
from orchestrator.provenance import RunDetail, detail_of
from orchestrator.records import RunState
from orchestrator.runs import RunDirectory
from tests.system.beamline import Beamline
from tests.unit.images import IDENTIFIER, sif

pytestmark = pytest.mark.mpi

FRAMES = 40


def examined(run: RunDetail) -> bool:
    """Whether all that is found out after a run's end stands in its own directory."""
    record = RunDirectory(run.summary.run_directory).provenance
    if not run.summary.state.ended or not record.exists():
        return False
    told = detail_of(json.loads(record.read_bytes()))
    return bool(told.outputs) and not told.unvalidated and not told.undigested


def test_a_live_run_records_no_errors_and_the_image_that_it_ran_in(tmp_path: Path) -> None:
    image = sif(tmp_path / "reduction.sif", content=b"a system")
    inside = {"defaults.environment.APPTAINER_CONTAINER": str(image)}
    beamline = Beamline(tmp_path / "site", None, inside)
    beamline.start_service()
    try:
        for uid in ("first", "second"):
            with beamline.detector(uid, "--number", str(FRAMES), "--rate", "20"):
                beamline.announce(uid, FRAMES)
                run = beamline.wait_for(uid, examined)
            assert run.summary.state is RunState.COMPLETE, (run.summary.reason, beamline.log())
            (validation,) = [one.validation for one in run.outputs if one.kind == "result"]
            assert validation is not None
            assert (validation.errors, validation.texts, validation.obstacle) == (0, (), "")
            assert validation.application == "NXazint1d"
            shown = beamline.command("show", run.summary.run_id).stdout
            assert validation.words in shown
            assert validation.words.startswith("valid NeXus: 0 errors, ")
            assert f"{image}, SIF {IDENTIFIER}, sha256 {file_sha256(image)}" in shown
            sif(image, content=b"another system")
        first, second = (beamline.store.runs(uid=uid)[0].run_id for uid in ("first", "second"))
        assert "container.sha256" in beamline.command("diff", first, second).stdout
        assert f"container image {image} was changed since" in beamline.command("show", first).stdout
    finally:
        beamline.close()
