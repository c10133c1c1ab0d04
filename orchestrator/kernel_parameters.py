"""Whether a kernel takes parameters: asked of the kernels themselves, before a job is made for them.

This program imports none of the kernels: they belong to the jobs' interpreter.
"""

from __future__ import annotations

import json
import logging
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.errors import InvalidInput
from orchestrator.records import JobPlan, Json

log = logging.getLogger(__name__)

_PATIENCE_S = 60


def check_parameters(plans: Sequence[JobPlan]) -> None:
    """See that the kernels of planned runs take their parameters.

    A kernel that can't be asked, because it isn't one of ours or its interpreter isn't here, decides in its job.

    Raises
    ------
    InvalidInput
        When one doesn't; with what is wrong.
    """
    sets: dict[tuple[Path, str], dict[str, Mapping[str, Json]]] = {}
    for plan in plans:
        asked = sets.setdefault((plan.python, plan.kernel), {})
        for task in (None,) if plan.array is None else range(len(plan.array.values)):
            values = plan.parameter_values(task)
            asked[json.dumps(values, sort_keys=True)] = values
    for (python, kernel), values_by_text in sets.items():
        if wrong := _ask(python, kernel, list(values_by_text.values())):
            raise InvalidInput(
                f"kernel {kernel}: {'; '.join(dict.fromkeys(wrong))}",
                remedy=f"`orchestrator schema kernel/{kernel}` has what it takes",
            )


def _ask(python: Path, kernel: str, sets: Sequence[Mapping[str, Json]]) -> Sequence[str]:
    """Return what is wrong with sets of parameters, as far as the kernel can be asked."""
    command = [str(python), "-P", "-m", "mpi_kernels.checking", kernel]
    question = json.dumps(sets)
    try:
        done = subprocess.run(command, input=question, capture_output=True, text=True, check=False, timeout=_PATIENCE_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        log.info("kernel %s isn't asked about its parameters: %s", kernel, error)
        return ()
    return done.stdout.splitlines() if done.returncode else ()
