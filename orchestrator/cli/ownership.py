"""Whose runs may be made again by whom: with a run its interpreter and its template run, as the one who asks."""

from __future__ import annotations

import getpass

from orchestrator.errors import InvalidInput
from orchestrator.provenance import RunDetail


def is_anothers(run: RunDetail) -> bool:
    """Whether a run was made with sbatch by another user: its interpreter and template would run as this one."""
    return run.made_by_hand and run.summary.requester != getpass.getuser()


def ours(run: RunDetail) -> RunDetail:
    """Return a run that this user may make again.

    Raises
    ------
    InvalidInput
        When another user made it by hand; with the way out.
    """
    if is_anothers(run):
        raise InvalidInput(
            f"run {run.summary.run_id} was made by {run.summary.requester} with sbatch: what ran there isn't run as "
            "another user",
            remedy=f"sbatch {run.summary.run_directory}/rerun.sbatch, or make run {run.summary.parent_run} again",
        )
    return run
