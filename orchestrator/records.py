"""The stations a piece of data passes through, frozen.

A record is never filled in on the way: each station makes a new one from the last.

    RawMessage -> CollectionStart | CollectionEnd -> JobPlan -> BatchScript -> SubmittedJob -> JobReport -> FrameCounts

Times are timezone-aware UTC. Nothing here does input or output.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import ClassVar, TypeAlias

from typing_extensions import TypeAliasType

# Named, so that what reads and writes documents can follow a type that contains itself.
Json = TypeAliasType("Json", "None | bool | int | float | str | list[Json] | dict[str, Json]")
Scalar: TypeAlias = bool | int | float | str


def utc_now() -> datetime:
    """Return the present time, timezone-aware."""
    return datetime.now(UTC)


def sha256_of(content: bytes | str) -> str:
    """Return the lower-case hexadecimal SHA-256 of `content` (text as UTF-8)."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


# ---------------------------------------------------------------------------------------------------- messages


@dataclass(frozen=True, kw_only=True)
class RawMessage:
    """A message as it came in, before anybody tried to understand it."""

    body: bytes
    source: str
    """Where it came from: ``stomp:collection`` or ``spool:/path/file.json`` or ``command``."""
    headers: Mapping[str, str] = field(default_factory=dict)
    received_at: datetime = field(default_factory=utc_now)

    @property
    def sha256(self) -> str:
        """Digest of the body."""
        return sha256_of(self.body)


@dataclass(frozen=True, kw_only=True)
class CollectionStart:
    """A detector has begun to write frames."""

    uid: str
    """The collection's identity at the facility; start and end are paired by it."""
    beamline: str
    detector: str
    file: Path
    dataset: str
    visit: str | None = None
    scan_type: str | None = None
    frames_expected: int | None = None
    """Frames announced; None when the control system doesn't know."""
    started_at: datetime | None = None
    metadata: Mapping[str, Scalar] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    """Fields of the document that this version doesn't know, by their dotted names."""


class CollectionOutcome(StrEnum):
    """How a collection ended at the detector."""

    FINISHED = "finished"
    ABORTED = "aborted"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class CollectionEnd:
    """A detector has stopped writing frames."""

    uid: str
    outcome: CollectionOutcome
    frames_written: int | None = None
    ended_at: datetime | None = None
    ignored: tuple[str, ...] = ()


# ---------------------------------------------------------------------------------------------------- planning


class Origin(StrEnum):
    """Who decided a parameter's value; later ones win over earlier ones."""

    DEFAULT = "default"
    SITE = "site"
    RECIPE = "recipe"
    MESSAGE = "message"
    USER = "user"


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A value handed to a kernel, and who decided it."""

    name: str
    value: Json
    origin: Origin
    place: str
    """Where to look it up, e.g. ``demo.toml: recipes.azimuthal.parameters.bins``."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a job asks of SLURM, in SLURM's own spelling and units as the names say."""

    ntasks: int = 1
    nodes: int | None = None
    cpus_per_task: int = 1
    memory_mb: int | None = None
    """Memory per node."""
    time_limit_min: int = 60
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    exclusive: bool = False
    requeue: bool = True
    exclude: str | None = None
    """Nodes that it must not run on, in SLURM's bracket notation."""


@dataclass(frozen=True, kw_only=True)
class RetryRule:
    """What is done after attempts that ended from one cause."""

    times: int = 0
    """How often a run is tried again because of it."""
    delay_s: float = 0.0
    """How long the next attempt waits before it is submitted."""
    memory_factor: float = 1.0
    """The next attempt asks for so many times the memory of this one, but not for more than `memory_max_mb`."""
    memory_max_mb: int | None = None
    time_factor: float = 1.0
    """The next attempt asks for so many times the time of this one, but not for more than `time_max_min`."""
    time_max_min: int | None = None
    avoid_nodes: bool = False
    """Whether the next attempt keeps away from the nodes of this one."""
    exit_codes: tuple[int, ...] = ()
    """Only after these exit codes; after all but the kernel's *ended in order, frames missing* when empty."""


@dataclass(frozen=True, kw_only=True)
class Retries:
    """Which outcomes of a run's attempts are tried again: causes that aren't there never are."""

    most: int = 0
    """How often a run is tried again in all, whatever the causes."""
    rules: Mapping[JobState, RetryRule] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Retry:
    """The decision that a run gets another attempt."""

    AVOIDS: ClassVar[str] = "not on "
    """Begins the change that names nodes to keep away from."""

    resources: Resources
    """What the next attempt asks for."""
    because: str
    """What became of the attempt before, in plain words."""
    changes: tuple[str, ...] = ()
    """What is different, each in words with units: ``memory 4000 → 8000 MB``."""
    not_before: datetime | None = None
    """When it may be submitted; None for at once."""


@dataclass(frozen=True, kw_only=True)
class ArrayPlan:
    """A run's job is a job array: a task for each value of one of the kernel's parameters."""

    parameter: str
    values: tuple[Json, ...]
    at_most: int | None = None
    """How many tasks may run at once; None for as many as SLURM starts."""

    @property
    def slurm(self) -> str:
        """The tasks as ``--array`` takes them."""
        return f"0-{len(self.values) - 1}" + (f"%{self.at_most}" if self.at_most else "")


@dataclass(frozen=True, kw_only=True)
class Predecessor:
    """A run that another one comes after: it begins when that one's job has ended with exit code 0."""

    recipe: str
    run_id: str
    run_directory: Path


@dataclass(frozen=True, kw_only=True)
class JobPlan:
    """One run as it was decided, before any script was written."""

    run_id: str
    """UUID. For automatic runs derived from collection and recipe, so that a repeated message names the same run."""
    recipe: str
    kernel: str
    template: str
    launcher: str
    collection: CollectionStart
    parameters: tuple[Parameter, ...]
    resources: Resources
    run_directory: Path
    launcher_options: tuple[str, ...] = ()
    """Extra words for the launcher, e.g. ``--oversubscribe``."""
    modules: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    python: Path
    """The interpreter that runs the kernel in the job."""
    stall_timeout_s: float
    appear_timeout_s: float
    requester: str = "automatic"
    parent_run: str | None = None
    because: str = ""
    """Why a run is repeated, in the words of who asked for it."""
    template_of: str | None = None
    """Id of the run whose template, as it was then, is rendered; None for the site's as it is now."""
    retries: Retries = Retries()
    after: tuple[Predecessor, ...] = ()
    """The runs of the same collection that this one comes after."""
    submit_as: str | None = None
    """Whose job it is to be; None for the service's own user."""
    array: ArrayPlan | None = None

    def parameter_values(self, task: int | None = None) -> dict[str, Json]:
        """Return the kernel's parameters without their origins; of an array's task, with the task's own value."""
        values = {parameter.name: parameter.value for parameter in self.parameters}
        if self.array is not None and task is not None:
            values[self.array.parameter] = self.array.values[task]
        return values


# --------------------------------------------------------------------------------------------------- rendering


@dataclass(frozen=True, kw_only=True)
class BatchScript:
    """A script as it is submitted, byte for byte, and the template text it came from."""

    text: str
    template_name: str
    template_text: str
    """The template and all it includes, each headed by its file's name."""
    template_origin: Mapping[str, Json] = field(default_factory=dict)
    """Where it was read: ``folder``, and its ``commit`` and whether it is ``dirty`` where that is a checkout."""

    @property
    def sha256(self) -> str:
        """Digest of the script."""
        return sha256_of(self.text)

    @property
    def template_sha256(self) -> str:
        """Digest of the template text."""
        return sha256_of(self.template_text)


# -------------------------------------------------------------------------------------------------------- jobs


@dataclass(frozen=True, kw_only=True)
class RunTag:
    """What a job carries so that it can be found again: in its name, its comment and its script."""

    run_id: str
    attempt: int

    @property
    def job_name(self) -> str:
        """SLURM job name; unique to the attempt."""
        return f"run-{self.run_id}.{self.attempt}"

    @classmethod
    def of_job_name(cls, name: str) -> RunTag | None:
        """Return the tag that a job of this name carries; None when it is no name of ours."""
        found = re.fullmatch(r"run-(.+)\.(\d+)", name)
        return cls(run_id=found[1], attempt=int(found[2])) if found else None

    @property
    def comment(self) -> str:
        """SLURM job comment."""
        return f"orchestrator run={self.run_id} attempt={self.attempt}"


@dataclass(frozen=True, kw_only=True)
class RerunTag:
    """What a job of a ``rerun.sbatch`` carries: which run it makes again.

    Its name says so to the end, in accounting too. Who renames the job before it begins leaves the comment.
    """

    parent: str

    @property
    def job_name(self) -> str:
        """SLURM job name."""
        return f"rerun-{self.parent}"

    @property
    def comment(self) -> str:
        """SLURM job comment, until the job has made its run and takes that run's."""
        return f"orchestrator rerun={self.parent}"

    @classmethod
    def of_job(cls, name: str, comment: str) -> RerunTag | None:
        """Return the tag of a job with this name and comment; None when it isn't one of a ``rerun.sbatch``."""
        found = _RERUN_NAME.fullmatch(name) or _RERUN_COMMENT.fullmatch(comment)
        return cls(parent=found[1]) if found else None


_RUN_ID = "([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"
_RERUN_NAME = re.compile(f"rerun-{_RUN_ID}")
_RERUN_COMMENT = re.compile(f"orchestrator rerun={_RUN_ID}")


@dataclass(frozen=True, kw_only=True)
class Submission:
    """One attempt of a run, ready for a gateway."""

    tag: RunTag
    script: BatchScript
    working_directory: Path
    after: tuple[JobIdentity, ...] = ()
    """Jobs that must end with exit code 0 before this one starts (``--dependency=afterok``)."""
    user: str | None = None
    """Whose job it is to be; None for the service's own user."""


@dataclass(frozen=True, kw_only=True)
class JobIdentity:
    """A job's name in the world; the bare id is reused when SLURM's counter wraps or its state is lost."""

    cluster: str
    job_id: int
    submitted_at: datetime
    """Whole seconds, as SLURM keeps it."""
    name: str = field(default="", compare=False, repr=False)
    """The job's name where the one who asks knows it: a requeue changes the submit time, and then the name tells."""

    def __str__(self) -> str:
        return f"{self.cluster}:{self.job_id}"


@dataclass(frozen=True, kw_only=True)
class SubmittedJob:
    """A job that the gateway's other side has accepted."""

    identity: JobIdentity
    gateway: str
    adopted: bool = False
    """Found by its tag after the answer to the submission was lost."""


class JobState(StrEnum):
    """The program's own words for what a job is doing; every word of SLURM's maps onto one of these."""

    PENDING = "pending"
    RUNNING = "running"
    SUSPENDED = "suspended"
    COMPLETING = "completing"
    COMPLETED = "completed"
    FAILED = "failed"
    TIMEOUT = "timeout"
    OUT_OF_MEMORY = "out-of-memory"
    NODE_FAIL = "node-fail"
    PREEMPTED = "preempted"
    CANCELLED = "cancelled"
    BOOT_FAIL = "boot-fail"
    DEADLINE = "deadline"
    UNKNOWN = "unknown"
    """A word that isn't in the table, or a job that no source knows any more. Never a success."""

    @property
    def ended(self) -> bool:
        """Whether the job can't run any more."""
        return self not in _LIVE_STATES


_LIVE_STATES = frozenset(
    {JobState.PENDING, JobState.RUNNING, JobState.SUSPENDED, JobState.COMPLETING, JobState.UNKNOWN}
)


class Evidence(StrEnum):
    """Who says so; earlier ones are believed over later ones."""

    CONTROLLER = "controller"
    ACCOUNTING = "accounting"
    JOB_RECORD = "job record"
    ABSENCE = "absence"


@dataclass(frozen=True, kw_only=True)
class JobReport:
    """What one source said about one job at one time."""

    identity: JobIdentity
    name: str
    state: JobState
    words: str
    """The state in the source's own words, flags included."""
    evidence: Evidence
    reason: str = ""
    exit_code: int | None = None
    signal: int | None = None
    restarts: int = 0
    nodes: str = ""
    """Node list in SLURM's bracket notation."""
    started_at: datetime | None = None
    ended_at: datetime | None = None
    comment: str = ""
    tasks: Mapping[int, JobState] = field(default_factory=dict)
    """State of each task of a job array, by its number; empty for other jobs. The report is of the whole array."""
    usage: Mapping[str, Scalar] = field(default_factory=dict)
    """From accounting: ``elapsed_s``, ``cpu_s``, ``max_rss_bytes`` and the like."""
    earlier: tuple[JobReport, ...] = ()
    """From accounting: the job's starts before this one, which SLURM ended to requeue it; the oldest first."""


@dataclass(frozen=True, kw_only=True)
class RerunJob:
    """A job of a ``rerun.sbatch`` that somebody handed to sbatch, as SLURM tells of it."""

    report: JobReport
    tag: RerunTag
    user: str
    """Whose job it is."""
    working_directory: Path | None
    """Where it was handed over."""


# ----------------------------------------------------------------------------------------------------- results


@dataclass(frozen=True, kw_only=True)
class FrameCounts:
    """How a kernel stands with its frames. ``processed + failed`` never exceeds ``written``."""

    expected: int | None
    written: int
    processed: int
    failed: int
    lag_median_s: float | None = None
    lag_max_s: float | None = None
    """Seconds from a frame being readable to its result being readable."""
    finished: bool = False
    ended_because: str = ""

    @property
    def complete(self) -> bool:
        """Whether every frame that was announced and written has its result."""
        return (
            self.finished
            and self.failed == 0
            and self.processed == self.written
            and (self.expected is None or self.processed >= self.expected)
        )


class RunState(StrEnum):
    """Where a run stands."""

    PLANNED = "planned"
    SUBMITTING = "submitting"
    """The intent is committed; whether SLURM has the job isn't known yet."""
    PENDING = "pending"
    RUNNING = "running"
    COMPLETE = "complete"
    PARTIAL = "partial"
    """It ended in order, but frames are missing or failed."""
    FAILED = "failed"
    CANCELLED = "cancelled"
    REFUSED = "refused"
    """No job was made: the input, the template or SLURM said no."""
    UNKNOWN = "unknown"
    """The job is gone and nothing says how it ended."""

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen by itself."""
        return self not in {RunState.PLANNED, RunState.SUBMITTING, RunState.PENDING, RunState.RUNNING}
