"""Planned runs become jobs: rounds of batches, what makes a run ready, the calls to SLURM, what is remembered."""

from orchestrator.submitting.state import Memory
from orchestrator.submitting.submitter import Submitter, end

__all__ = ["Memory", "Submitter", "end"]
