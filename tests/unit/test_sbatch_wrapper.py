"""The route cli where `sbatch` is a script of the site around SLURM's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import GatewayUnavailable, OutcomeUnknown, SubmitRefused
from orchestrator.records import BatchScript, RunTag, Submission
from orchestrator.slurm.cli import CliGateway

BUSY = "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying"


def submit_through(wrapper: str, folder: Path, *, said: str = BUSY) -> None:
    scripts = {"scontrol": "echo ClusterName = c", "sbatch": f"echo '{said}' >&2\n{wrapper}"}
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    script = BatchScript(text="#!/bin/bash\ntrue\n", template_name="t", template_text="")
    submission = Submission(tag=RunTag(run_id="r", attempt=1), script=script, working_directory=folder)
    CliGateway(programs=folder).submit(submission)


@pytest.mark.parametrize("wrapper", ["kill -KILL $$", "sh -c 'kill -KILL $$'; exit $?"])
def test_an_sbatch_that_was_killed_leaves_the_outcome_open_whoever_says_so(wrapper: str, tmp_path: Path) -> None:
    with pytest.raises(OutcomeUnknown, match="ended by signal 9"):
        submit_through(wrapper, tmp_path)


def test_sbatchs_own_exit_code_for_a_wrong_option_is_no_signal(tmp_path: Path) -> None:
    wrong = "echo \"sbatch: unrecognized option '--nonsense'\" >&2; exit 255"
    with pytest.raises(SubmitRefused, match="nonsense"):
        submit_through(wrong, tmp_path, said="")


def test_an_sbatch_that_gave_up_on_a_busy_controller_made_no_job(tmp_path: Path) -> None:
    with pytest.raises(GatewayUnavailable, match="temporarily unable"):
        submit_through("exit 1", tmp_path)
