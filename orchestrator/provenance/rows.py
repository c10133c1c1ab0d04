"""What the store hands out and takes in besides the stations of `orchestrator.records`: frozen records, no database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TypeAlias

from orchestrator.records import (
    BatchScript,
    CollectionEnd,
    CollectionStart,
    FrameCounts,
    JobIdentity,
    JobPlan,
    JobReport,
    JobState,
    Json,
    Parameter,
    RawMessage,
    Retry,
    RunState,
    RunTag,
    SubmittedJob,
)

# ---------------------------------------------------------------------------------------------------- messages


class MessageKind(StrEnum):
    """What a message turned out to be."""

    START = "start"
    END = "end"
    UNREADABLE = "unreadable"


class MessageState(StrEnum):
    """Where a message stands."""

    WAITING = "waiting"
    """Understood, and nothing has been decided about it yet."""
    HANDLED = "handled"
    REJECTED = "rejected"


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """A message as it came, and what it says or why it can't be used."""

    raw: RawMessage
    understood: CollectionStart | CollectionEnd | None
    """None when it couldn't be read."""
    rejection: str | None = None
    """Why it is rejected; None when it is accepted. One of the two must be given."""
    note: str | None = None
    """What was decided about a collection-start; None when nothing has been decided yet."""
    plans: tuple[JobPlan, ...] = ()
    """The runs that this decision makes."""

    def __post_init__(self) -> None:
        if self.understood is None and self.rejection is None:
            raise ValueError("a message that wasn't understood needs a rejection")


@dataclass(frozen=True, kw_only=True)
class MessageReceipt:
    """The store's answer to a message: it is durable, and may be acknowledged."""

    message_id: int
    duplicate: bool
    """It was there before and has only been counted."""
    rejection: str | None
    """Why it was rejected, by the caller or because its uid belongs to another collection."""


@dataclass(frozen=True, kw_only=True)
class WaitingStart:
    """A collection-start about which nothing has been decided yet."""

    message_id: int
    raw: RawMessage
    start: CollectionStart


@dataclass(frozen=True, kw_only=True)
class MessageRecord:
    """Everything known about one message."""

    message_id: int
    raw: RawMessage
    kind: MessageKind
    state: MessageState
    uid: str | None
    rejection: str | None
    note: str
    """What was decided: which runs it made, or why it made none."""
    repeats: int
    """How many times it came again."""
    last_received_at: datetime
    handled_at: datetime | None


# -------------------------------------------------------------------------------------------------------- runs


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What was decided about a message."""

    message_id: int
    plans: tuple[JobPlan, ...]
    """The runs that it makes."""
    note: str


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A run that waits to be submitted."""

    plan: JobPlan
    tag: RunTag
    """The attempt to make next."""
    message: RawMessage | None
    live: bool
    """Its collection goes on, and nobody repeats it: it comes before others."""
    created_at: datetime
    reason: str
    """Why it waits: its last submission failed, or its directory can't be written; empty when nothing was tried."""
    retry: Retry | None = None
    """Why another attempt is made, and with which changes; None for the first."""

    @property
    def plan_of_attempt(self) -> JobPlan:
        """The plan with what this attempt asks for."""
        return self.plan if self.retry is None else replace(self.plan, resources=self.retry.resources)


class InputMoment(StrEnum):
    """When an input file was looked at."""

    OPEN = "open"
    END = "end"


@dataclass(frozen=True, kw_only=True)
class InputIdentity:
    """What an input file was at one moment."""

    at: InputMoment
    path: Path
    real_path: Path
    """With links resolved."""
    dataset: str | None = None
    size: int | None = None
    """Bytes."""
    mtime_ns: int | None = None
    """Modification time, nanoseconds since 1970."""
    inode: int | None = None
    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    chunks: tuple[int, ...] | None = None
    sources: tuple[Mapping[str, Json], ...] = ()
    """External and virtual source files: ``path``, ``size``, ``mtime_ns``, ``inode`` of each."""
    seal: Json = None
    """What was read of it: ``state``, ``algorithm``, ``digest``, ``frames``; None: the kernel hasn't told."""
    files: tuple[Mapping[str, Json], ...] = ()
    """Files that parameters name: ``parameter``, ``path``, ``real_path``, ``dataset``, ``size``, ``mtime_ns`` and
    ``sha256`` of each."""


@dataclass(frozen=True, kw_only=True)
class UsedFile:
    """A file that a run read, or made."""

    run_id: str
    role: str
    """``input``, ``source``, or the parameter that names it; of one that was made its kind."""
    path: Path
    sha256: str | None
    """Of the whole file; None where the run hasn't told."""


@dataclass(frozen=True, kw_only=True)
class Ingredients:
    """What a run was made from, as far as it can change."""

    input: InputIdentity | None
    """As it was last seen; None where the kernel hasn't told."""
    template_name: str
    template_sha256: str
    template_text: str
    container: Mapping[str, Json] = field(default_factory=dict)
    """The image that its job ran in, as the record has it; empty where it ran in none."""


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What a validator said of a finished file, or why none was asked."""

    validator: str = ""
    """Name and version."""
    definitions: str = ""
    """Version of the NeXus definitions that it has."""
    application: str | None = None
    """The application definition that the file names; None where it names none: then only base classes count."""
    errors: int = 0
    warnings: int = 0
    texts: tuple[str, ...] = ()
    """The first errors, each with its place in the file."""
    obstacle: str = ""
    """Why it wasn't validated; empty when it was."""

    @property
    def valid(self) -> bool:
        return not self.obstacle and not self.errors

    @property
    def words(self) -> str:
        """The verdict in a sentence."""
        if self.obstacle:
            return f"not validated, because {self.obstacle}"
        verdict = "valid NeXus" if self.valid else "NOT valid NeXus"
        counts = f"{_number(self.errors, 'error')}, {_number(self.warnings, 'warning')}"
        application = f"{self.application}, " if self.application else ""
        return f"{verdict}: {counts} ({application}{self.validator}, definitions {self.definitions})"


def _number(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


@dataclass(frozen=True, kw_only=True)
class OutputIdentity:
    """A file that a run made."""

    path: Path
    kind: str
    """``result``, ``log``, ``image`` …"""
    size: int
    """Bytes."""
    sha256: str
    content_sha256: str | None = None
    """Of what is in it, whatever the way it was written (`orchestrator.contents`); None: no HDF5, or unreadable."""
    validation: Validation | None = None
    """None for what is no result, and before the service has come to it."""


# ---------------------------------------------------------------------------------------------------- attempts


class AttemptStage(StrEnum):
    """How far an attempt's submission came."""

    INTENDED = "intended"
    """Committed before the call; whether SLURM has the job isn't known."""
    SUBMITTED = "submitted"
    FAILED = "failed"
    """Surely no job was made; the run may try again."""
    REFUSED = "refused"
    """SLURM said no for good."""


@dataclass(frozen=True, kw_only=True)
class Intent:
    """An attempt that is about to be submitted."""

    tag: RunTag
    script: BatchScript


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """An intent became a job."""

    tag: RunTag
    job: SubmittedJob


@dataclass(frozen=True, kw_only=True)
class NotSubmitted:
    """An intent surely made no job."""

    tag: RunTag
    reason: str
    refused: bool = False
    """SLURM said no for good."""
    given_back: bool = False
    """Something else stood in the way before its turn came: no event of its own."""
    intent_at: datetime | None = None
    """The intent that it is about: it says nothing of a later one of the same attempt. None for the present one."""


@dataclass(frozen=True, kw_only=True)
class Unanswered:
    """Whether an intent made a job isn't known."""

    tag: RunTag
    reason: str
    """What was heard instead of an answer."""
    intent_at: datetime | None = None
    """As for `NotSubmitted`."""


Outcome: TypeAlias = Submitted | NotSubmitted | Unanswered


@dataclass(frozen=True, kw_only=True)
class UnsettledAttempt:
    """An intent whose outcome isn't known: look for its tag before anything else."""

    tag: RunTag
    gateway: str
    intent_at: datetime
    """The first one: a job of this attempt can't be older."""
    latest_intent_at: datetime
    """Later than `intent_at` where an earlier submission surely made no job."""
    run_directory: Path
    run_state: RunState
    """Ended when the run was cancelled meanwhile: its job must not stay, if there is one."""
    reason: str
    """What was heard instead of an answer; empty when nothing was."""


@dataclass(frozen=True, kw_only=True)
class ActiveAttempt:
    """A job that is to be followed."""

    tag: RunTag
    identity: JobIdentity
    gateway: str
    run_directory: Path
    run_state: RunState
    collection_uid: str
    frames_expected: int | None
    """Announced by the collection-start."""
    counts: FrameCounts | None
    """As last recorded."""
    last_report: JobReport | None
    hindrance: str
    """The reason that stands at its run: what was last said of why it doesn't go on."""
    intent_at: datetime


@dataclass(frozen=True, kw_only=True)
class AttemptEnd:
    """How an attempt ended."""

    state: RunState
    """In which its run ends, unless another attempt follows."""
    reason: str
    cause: JobState
    """For which it would be tried again."""
    ended_at: datetime


MADE = "made"
"""Kind of the event of a run that somebody made with sbatch: how that came about."""


LOST = "rerun-lost"
"""Kind of the event of a run that a job of somebody's made again, or was to, without a run coming home."""
CAME_HOME = "came_home_as"
"""What says in such an event which run it was, once that has come home after all."""


@dataclass(frozen=True, kw_only=True)
class JobEvent:
    """Something that happened to a job."""

    attempt: int
    """0 where the run had none yet."""
    kind: str
    sequence: int
    at: datetime
    recorded_at: datetime
    detail: Json


@dataclass(frozen=True, kw_only=True)
class AttemptRecord:
    """Everything known about one attempt."""

    tag: RunTag
    gateway: str
    stage: AttemptStage
    failure: str
    """Why the submission failed; empty when it didn't."""
    template_name: str
    template_sha256: str
    template_text: str
    template_origin: Json
    """Where it was read: ``folder``, and its ``commit`` and whether it is ``dirty`` where that is a checkout."""
    script_sha256: str
    script_text: str
    packages: str
    """All Python packages that were installed where the job ran, a line for each; empty before it has begun."""
    intent_at: datetime
    identity: JobIdentity | None
    adopted: bool
    last_report: JobReport | None
    """The best that is known about the job: state, exit code, nodes, times, usage."""
    software: Json
    events: tuple[JobEvent, ...]
    retry: Retry | None = None
    """Why it was made after another one, and with which changes; None for the first."""
    end: AttemptEnd | None = None
    """None before it has ended, and for those that ended with their run by somebody's wish."""

    @property
    def container(self) -> Mapping[str, Json]:
        """The container image that its job ran in, as far as it told; empty where it told of none."""
        return container_of(self.software)


def container_of(software: Json) -> Mapping[str, Json]:
    """Return the container image that an attempt's software tells of; empty where it tells of none."""
    found = software.get("container") if isinstance(software, dict) else None
    return found if isinstance(found, dict) else {}


# ----------------------------------------------------------------------------------------------------- queries


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """A run as a line of a listing."""

    run_id: str
    state: RunState
    reason: str
    recipe: str
    kernel: str
    beamline: str
    visit: str | None
    collection_uid: str
    file: Path
    run_directory: Path
    requester: str
    parent_run: str | None
    created_at: datetime
    ended_at: datetime | None
    attempts: int
    job: JobIdentity | None
    """Of the newest attempt."""
    nodes: str
    counts: FrameCounts | None


@dataclass(frozen=True, kw_only=True)
class RunDetail:
    """Everything the database knows about one run."""

    summary: RunSummary
    message: MessageRecord | None
    plan: JobPlan
    parameters: tuple[Parameter, ...]
    attempts: tuple[AttemptRecord, ...]
    events: tuple[JobEvent, ...]
    """Of all attempts, in the order they became known."""
    inputs: tuple[InputIdentity, ...]
    outputs: tuple[OutputIdentity, ...]

    @property
    def made_by_hand(self) -> bool:
        """Whether somebody made it with sbatch: what ran there was theirs, not the service's."""
        return any(event.kind == MADE for event in self.events)

    @property
    def unvalidated(self) -> tuple[OutputIdentity, ...]:
        """Results that nobody has validated yet."""
        return tuple(one for one in self.outputs if one.kind == "result" and one.validation is None)

    @property
    def undigested(self) -> tuple[AttemptRecord, ...]:
        """Attempts of whose container image nobody has taken the digest yet, or said why there is none."""
        told = {"sha256", "sha256_unknown_because"}
        return tuple(one for one in self.attempts if "path" in one.container and not told & one.container.keys())

    @property
    def unexamined(self) -> bool:
        """Whether there is anything of those."""
        return bool(self.unvalidated or self.undigested)
