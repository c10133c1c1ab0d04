"""The environment a job starts from: the submitter's, without what another job or sbatch call left in it."""

from __future__ import annotations

import re
from collections.abc import Mapping

_LEAKS = re.compile(
    r"(SLURM|SLURMD|SLURMCTLD|SBATCH|SALLOC|SRUN|SQUEUE|SACCT|SCANCEL|SINFO|PMI|ORCHESTRATOR_LOCAL)_.*|PMIX_(?!MCA_).*"
)
_TO_REACH_THE_CLUSTER = frozenset({"SLURM_CONF", "SLURM_JWT"})


def for_jobs(environment: Mapping[str, str]) -> dict[str, str]:
    """Return `environment` without the variables that would change what is submitted or what runs in the job.

    ``SLURM_CONF`` and ``SLURM_JWT`` stay: they say where the cluster is and who asks.
    """
    return {
        name: value
        for name, value in environment.items()
        if name in _TO_REACH_THE_CLUSTER or not _LEAKS.fullmatch(name)
    }
