"""The folder of the local route when its disk has faults."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from orchestrator.errors import GatewayUnavailable
from orchestrator.records import BatchScript, RunTag, Submission
from orchestrator.slurm import local_queue
from orchestrator.slurm.local import LocalGateway


def test_a_job_that_could_not_be_made_durable_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_folder: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    gateway = LocalGateway(tmp_path / "state")
    script = BatchScript(text="#!/bin/bash\ntouch ran\n", template_name="t", template_text="")
    submission = Submission(tag=RunTag(run_id="r", attempt=1), script=script, working_directory=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(local_queue, "_make_durable", failing)
        with pytest.raises(GatewayUnavailable, match="Input/output error"):
            gateway.submit(submission)
    assert list((tmp_path / "state" / "jobs").iterdir()) == []
