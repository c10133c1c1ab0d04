"""Runs made again by commands: by whom they may be, and as what they are planned.

With a run its interpreter and its template run, as the one who asks.
"""

from __future__ import annotations

import getpass
import uuid
from collections.abc import Mapping
from dataclasses import replace

from orchestrator.errors import InvalidInput
from orchestrator.planning import repeated
from orchestrator.provenance import RunDetail
from orchestrator.records import JobPlan, Json
from orchestrator.settings import Settings


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


def plan_again(
    run: RunDetail,
    parameters: Mapping[str, Json],
    settings: Settings,
    *,
    because: str,
    template: str | None = None,
    ntasks: int | None = None,
) -> JobPlan:
    """Return the plan of a run that this user makes again, with these parameters; see `planning.repeated`."""
    resources = run.plan.resources
    return repeated(
        run.plan,
        parameters,
        run_id=str(uuid.uuid4()),
        root=settings.runs_root,
        requester=getpass.getuser(),
        because=because,
        template=template,
        resources=resources if ntasks is None else replace(resources, ntasks=ntasks),
    )
