"""Runs that people made with sbatch come home: from the drop folder into the store.

A ``rerun.sbatch`` leaves a file here whatever the service does (`orchestrator.rerunning`). Whose file it is, is who
asked for the run: the file system says so, not the file. What it names is read, never run: by the service's own account
nothing of it is submitted, now or later. What can't be used is put aside with the reason, and looked at by people.
"""

from __future__ import annotations

import difflib
import errno
import itertools
import logging
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from orchestrator.errors import GatewayUnavailable, InvalidInput, StoreUnavailable
from orchestrator.provenance import Intent, Store
from orchestrator.records import (
    BatchScript,
    JobIdentity,
    JobPlan,
    Json,
    Retries,
    RunTag,
    SubmittedJob,
    sha256_of,
)
from orchestrator.rerunning import ATTEMPT, parse_plan, user_name
from orchestrator.runs import RECORDS, RunDirectory, write_atomically
from orchestrator.settings import Settings
from orchestrator.slurm.gateway import CLOCK_JUMP, Gateway

log = logging.getLogger(__name__)

ASIDE = "refused"
"""Folder for what can't be used."""
COMPARED = "compared"
"""Folder of what `orchestrator.unreported` keeps."""
WORD_LIMIT, _FILE_LIMIT = 64 * 1024, 4 * 1024 * 1024
"""Bytes: of a file in the drop folder, and of one in a run's directory."""
_DIFF_LINES = 400
_MODE = 0o1777
"""Everybody may leave a file, nobody may take another's away."""


@dataclass(frozen=True, kw_only=True)
class Adopter:
    """The way from the drop folder to the store."""

    store: Store
    gateway: Gateway
    settings: Settings

    def prepare(self) -> None:
        """Make the drop folder, for everybody on the cluster, and those in it that are ours alone.

        Raises
        ------
        OSError
            When one can't be made, or somebody else has made one of ours.
        """
        drop = self.settings.reruns.drop
        new = not drop.exists()
        drop.mkdir(parents=True, exist_ok=True)
        for own in (drop / ASIDE, drop / RECORDS, drop / COMPARED):
            own.mkdir(exist_ok=True)
            if own.lstat().st_uid != os.getuid() or own.is_symlink():
                raise OSError(errno.EPERM, "somebody else's, and has to be the service's", str(own))
        if new:
            drop.chmod(_MODE)  # only now: before us nobody else can have put anything there

    def adopt_all(self) -> int:
        """Take in every run of which there is word; return how many are new.

        Raises
        ------
        StoreUnavailable
            When they can't be recorded; the next call finds the same again.
        """
        new, faults = 0, []
        for path in self._words():
            try:
                new += self._adopt(path)
            except StoreUnavailable:
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is, it is this word's, and raised in the end
                faults.append(error)
        for fault in faults:
            raise fault
        return new

    def _words(self) -> Iterator[Path]:
        try:
            with os.scandir(self.settings.reruns.drop) as entries:
                names = sorted(entry.name for entry in entries if not entry.is_dir(follow_symlinks=False))
        except FileNotFoundError:
            return
        yield from (self.settings.reruns.drop / name for name in names if name.endswith(".json") and name[0] != ".")

    def _adopt(self, path: Path) -> bool:
        try:
            word = _read(path)
            new = self._record(word)
        except InvalidInput as error:
            self._put_aside(path, error)
            return False
        path.unlink(missing_ok=True)
        if new:
            plan = word.run.plan
            log.info("run %s of %s came home: %s", plan.run_id, plan.requester, plan.run_directory)
        return new

    def _record(self, word: _Word) -> bool:
        return self.adopt(word.run, self._identity(word), word.job.submitted_at)

    def adopt(self, run: MadeRun, job: JobIdentity, at: datetime) -> bool:
        """Record a run that somebody made, and its job; return whether it is new.

        Raises
        ------
        InvalidInput
            When the job is another run's.
        """
        intent = Intent(tag=run.tag, script=run.script)
        submitted = SubmittedJob(identity=job, gateway=self.gateway.name, adopted=True)
        return self.store.record_adopted(run.plan, intent, submitted, run.made, at)

    def _identity(self, word: _Word) -> JobIdentity:
        """Return the job as SLURM knows it; as it named itself where SLURM doesn't know it any more."""
        if word.slurm:
            try:
                for report in self.gateway.find(word.run.tag, since=word.job.submitted_at - CLOCK_JUMP):
                    if report.identity.job_id == word.job.job_id:
                        return report.identity
            except GatewayUnavailable as error:
                log.info("run %s: %s; its own word is taken", word.run.tag.run_id, error)
        return word.job

    def _put_aside(self, path: Path, error: InvalidInput) -> None:
        log.warning("%s: %s; put into %s", path, error.full_text, path.parent / ASIDE)
        folder = path.parent / ASIDE
        write_atomically(folder / f"{path.name}.reason", f"{error.full_text}\n")
        path.replace(folder / path.name)


@dataclass(frozen=True, kw_only=True)
class MadeRun:
    """What is known of a run that somebody made with ``rerun.sbatch``."""

    plan: JobPlan
    script: BatchScript
    made: Json
    """How it came about."""

    @property
    def tag(self) -> RunTag:
        """Its only attempt."""
        return RunTag(run_id=self.plan.run_id, attempt=ATTEMPT)


@dataclass(frozen=True, kw_only=True)
class _Word:
    """What was left in the drop folder, and the run that it names."""

    run: MadeRun
    job: JobIdentity
    slurm: bool
    """Whether it is SLURM's job, and not a process that somebody started."""


class _Told(BaseModel):
    """A file of the drop folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run_id: str
    run_directory: Path
    parent_directory: Path
    cluster: str
    job_id: int
    submitted_at: AwareDatetime
    slurm: bool


def _read(path: Path) -> _Word:
    """Read a word and what it names.

    Raises
    ------
    InvalidInput
        When one of the files can't be used, or isn't the requester's: a link could lead anywhere.
    """
    content, owner = content_of(path, WORD_LIMIT)
    try:
        told = _Told.model_validate_json(content)
    except ValidationError as error:
        places = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise InvalidInput(f"{path}: {places}", remedy="rerun.sbatch writes these files; run it again") from error
    parent, user = RunDirectory(told.parent_directory), user_name(owner)
    return _Word(
        run=read_run(RunDirectory(told.run_directory), told.run_id, parent, user),
        job=JobIdentity(cluster=told.cluster, job_id=told.job_id, submitted_at=told.submitted_at),
        slurm=told.slurm,
    )


def read_run(run: RunDirectory, run_id: str, parent: RunDirectory, user: str) -> MadeRun:
    """Read a run that a user made of another one, from its directory.

    Raises
    ------
    InvalidInput
        When one of its files can't be used, isn't the user's, or is another run's.
    """
    plan_text, script, template = (_own_text(file, user) for file in (run.plan, run.script, run.template))
    submitted = _own(run.submitted, user)
    plan = parse_plan(run.plan, plan_text)
    if (plan.run_id, plan.run_directory) != (run_id, run.path) or plan.parent_run is None:
        raise InvalidInput(f"{run.plan}: isn't the plan of run {run_id} in this place", remedy="run it again")
    return MadeRun(
        # Trying again is for what the service decided itself: it would run what others wrote.
        plan=replace(plan, requester=user, retries=Retries(), submit_as=None),
        script=BatchScript(text=script, template_name=plan.template, template_text=template),
        made=_made(parent, plan, submitted),
    )


def _made(parent: RunDirectory, plan: JobPlan, submitted: bytes) -> Json:
    """Return how a run came about: what was handed to sbatch, and what had been edited in it."""
    told: dict[str, Json] = {
        "how": "sbatch",
        "because": plan.because,
        "submitted_sha256": sha256_of(submitted),
    }
    try:
        before = parent.rerun.read_bytes()
    except OSError as error:
        return told | {"edits_unknown_because": f"{parent.rerun}: {error}"}
    # An editor may have written its user's comments in another encoding.
    first, second = (text.decode(errors="backslashreplace").splitlines() for text in (before, submitted))
    lines = difflib.unified_diff(first, second, "rerun.sbatch", "as submitted", n=1, lineterm="")
    edits = list(itertools.islice(lines, _DIFF_LINES))
    return told | {"parent_sha256": sha256_of(before), "edits": "\n".join(edits)}


def _own_text(path: Path, user: str) -> str:
    try:
        return _own(path, user).decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path}: {error}", remedy="see who changed it, and run it again") from error


def _own(path: Path, user: str) -> bytes:
    content, owner = content_of(path, _FILE_LIMIT)
    if user_name(owner) != user:
        raise InvalidInput(
            f"{path}: is {user_name(owner)}'s, and the job, or the word for it, is {user}'s",
            remedy="who runs rerun.sbatch has to own what it writes",
        )
    return content


def content_of(path: Path, limit: int) -> tuple[bytes, int]:
    """Return what is in a file, and whose it is, without following a link.

    Raises
    ------
    InvalidInput
        When it can't be read, isn't a file, or has more than `limit` bytes.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_size > limit:
                raise InvalidInput(f"{path}: no file, or one of more than {limit} bytes", remedy="run it again")
            return stream.read(limit), found.st_uid
    except OSError as error:
        raise InvalidInput(f"{path}: {error}", remedy="see whether the run's directory was moved or removed") from error
