"""Which outcomes are tried again: the tables ``[defaults.retries]`` and ``[recipes.NAME.retries]`` of a site file.

Each key by itself is taken from the recipe, then from the defaults, then from `BUILT_IN`.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.records import JobState, Retries, RetryRule

Factor = Annotated[float, Field(ge=1, le=100, allow_inf_nan=False)]
Times = Annotated[int, Field(ge=0, le=100)]

MOST = 3
"""How often a run is tried again in all, unless a site says otherwise."""

BUILT_IN = MappingProxyType(
    {
        JobState.OUT_OF_MEMORY: RetryRule(times=2, memory_factor=2.0),
        JobState.TIMEOUT: RetryRule(times=1, time_factor=1.5),
        JobState.NODE_FAIL: RetryRule(times=2, avoid_nodes=True),
        JobState.BOOT_FAIL: RetryRule(times=2, avoid_nodes=True),
        JobState.PREEMPTED: RetryRule(times=3),
        JobState.DEADLINE: RetryRule(),
        JobState.FAILED: RetryRule(),
        JobState.UNKNOWN: RetryRule(),
    }
)
"""What happens where a site file says nothing. A cancelled job has no rule: somebody didn't want it."""


class RetryRequest(BaseModel):
    """What is done after one cause; see `orchestrator.records.RetryRule`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    times: Times | None = None
    delay_s: float | None = Field(default=None, ge=0, le=7 * 24 * 3600, allow_inf_nan=False)
    memory_factor: Factor | None = None
    memory_max_mb: int | None = Field(default=None, ge=1)
    time_factor: Factor | None = None
    time_max_min: int | None = Field(default=None, ge=1)
    avoid_nodes: bool | None = None


class FailedRetryRequest(RetryRequest):
    """The same after the program's own failure, which has an exit code."""

    exit_codes: tuple[Annotated[int, Field(ge=1, le=255)], ...] | None = None


class RetriesRequest(BaseModel):
    """A rule for each cause, by the name of the state in which such a job ends."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=lambda name: name.replace("_", "-"))

    most: Times | None = None
    out_of_memory: RetryRequest = RetryRequest()
    timeout: RetryRequest = RetryRequest()
    node_fail: RetryRequest = RetryRequest()
    boot_fail: RetryRequest = RetryRequest()
    preempted: RetryRequest = RetryRequest()
    deadline: RetryRequest = RetryRequest()
    failed: FailedRetryRequest = FailedRetryRequest()
    unknown: RetryRequest = RetryRequest()

    def rule(self, cause: JobState) -> dict[str, Any]:
        """Return what is said about a cause, by `RetryRule`'s names."""
        request: RetryRequest = getattr(self, cause.value.replace("-", "_"))
        return request.model_dump(exclude_none=True)


def retries_of(own: RetriesRequest, defaults: RetriesRequest) -> Retries:
    """Return what holds for a recipe, from what it says itself and what the defaults say."""
    rules = {}
    for cause, built_in in BUILT_IN.items():
        said = defaults.rule(cause) | own.rule(cause)
        rules[cause] = RetryRule(**{**vars(built_in), **said})
    most = own.most if own.most is not None else defaults.most
    return Retries(most=MOST if most is None else most, rules=rules)
