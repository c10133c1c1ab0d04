"""Provenance: what came in, what was decided, what ran and what came out, so that it can be explained and repeated."""

from orchestrator.provenance.documents import (
    end_from_json,
    end_to_json,
    input_from_json,
    plan_from_json,
    plan_to_json,
    start_from_json,
    start_to_json,
)
from orchestrator.provenance.rows import (
    ActiveAttempt,
    AttemptRecord,
    AttemptStage,
    InputIdentity,
    InputMoment,
    JobEvent,
    MessageKind,
    MessageReceipt,
    MessageRecord,
    MessageState,
    OutputIdentity,
    PlannedRun,
    RunDetail,
    RunSummary,
    UnsettledAttempt,
    WaitingStart,
)
from orchestrator.provenance.schema import SchemaStatus
from orchestrator.provenance.store import Store

__all__ = [
    "ActiveAttempt",
    "AttemptRecord",
    "AttemptStage",
    "InputIdentity",
    "InputMoment",
    "JobEvent",
    "MessageKind",
    "MessageReceipt",
    "MessageRecord",
    "MessageState",
    "OutputIdentity",
    "PlannedRun",
    "RunDetail",
    "RunSummary",
    "SchemaStatus",
    "Store",
    "UnsettledAttempt",
    "WaitingStart",
    "end_from_json",
    "end_to_json",
    "input_from_json",
    "plan_from_json",
    "plan_to_json",
    "start_from_json",
    "start_to_json",
]
