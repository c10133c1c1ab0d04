"""A site whose store is filled by hand, and the command line over it, for tests of the commands for people."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.cli.common import ExitCode
from orchestrator.messages import start_document
from orchestrator.provenance import InputIdentity, InputMoment, OutputIdentity, Store
from orchestrator.records import (
    BatchScript,
    CollectionStart,
    Evidence,
    FrameCounts,
    JobIdentity,
    JobPlan,
    JobReport,
    JobState,
    Origin,
    Parameter,
    RawMessage,
    Resources,
    RunState,
    RunTag,
    SubmittedJob,
    sha256_of,
)
from orchestrator.runs import AttemptDirectory, RunDirectory

AT_NS = 1_795_348_800_000_000_000
"""When the files that runs read were written; nanoseconds since 1970."""
NOON = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
SCRIPT = BatchScript(text="#!/bin/bash\necho µ\n", template_name="azimuthal.sbatch.j2", template_text="{{ plan }}\n")
SOFTWARE = {
    "python": "3.11.2",
    "interpreter": "/opt/venv/bin/python",
    "packages": {"orchestrator": "0.1.0", "numpy": "2.4.6", "h5py": "3.16.0"},
    "modules": ["openmpi/4.1"],
    "commit": "0123456789abcdef0123456789abcdef01234567",
    "dirty": True,
}
SITE = """
name = "i22"
database = "sqlite:///{folder}/store.sqlite"
runs_root = "{folder}/runs"
allowed_roots = ["{folder}"]
templates = "{templates}"

[gateway]
route = "local"

[spool]
folder = "{folder}/spool"

[recipes.azimuthal]
kernel = "azimuthal"
template = "azimuthal.sbatch.j2"
match = {{ beamline = "i22" }}
"""


@dataclass
class SiteWithRuns:
    """A site file and its store below one folder."""

    folder: Path

    def __post_init__(self) -> None:
        self.file = self.folder / "site.toml"
        templates = Path(__file__).parents[2] / "jobtemplates"
        self.file.write_text(SITE.format(folder=self.folder, templates=templates))
        self.store = Store.open(f"sqlite:///{self.folder}/store.sqlite")

    # ------------------------------------------------------------------------------------------ the command line

    def call(self, *words: str, code: ExitCode = ExitCode.OK) -> str:
        """Call a command; return what it printed to standard output."""
        result = CliRunner(env={"ORCHESTRATOR_SITE": str(self.file)}).invoke(app, list(words))
        assert result.exit_code == code, result.output + result.stderr
        self.said = result.stderr
        return result.stdout

    def told(self, *words: str, code: ExitCode = ExitCode.OK) -> Any:
        """Call a command that prints JSON."""
        return json.loads(self.call(*words, code=code))

    # ------------------------------------------------------------------------------------------------- the store

    def planned(self, uid: str = "c-1", **changes: Any) -> RunTag:
        start = CollectionStart(
            uid=uid,
            beamline=changes.pop("beamline", "i22"),
            detector="pilatus",
            file=self.folder / f"{uid}.h5",
            dataset="/entry/data",
            visit=changes.pop("visit", "cm1-1"),
            frames_expected=200,
            started_at=NOON,
            metadata={"sample": "AgBeh [1]"},
        )
        run_id = changes.pop("run_id", str(uuid4()))
        plan = JobPlan(
            run_id=run_id,
            recipe=changes.pop("recipe", "azimuthal"),
            kernel="azimuthal",
            template="azimuthal.sbatch.j2",
            launcher="mpirun",
            collection=start,
            parameters=(
                Parameter(name="bins", value=1000, origin=Origin.RECIPE, place="i22.toml: recipes.azimuthal.bins"),
                Parameter(name="range", value=[0.1, 3.5], origin=Origin.MESSAGE, place="message: metadata.range"),
            ),
            resources=Resources(ntasks=2, memory_mb=500, partition="live"),
            run_directory=self.folder / "runs" / run_id,
            python=Path("/opt/venv/bin/python"),
            stall_timeout_s=300.0,
            appear_timeout_s=120.0,
        )
        message = RawMessage(body=start_document(start), source="stomp:/queue/i22", received_at=NOON)
        receipt = self.store.record_message(message, understood=start)
        self.store.record_runs(receipt.message_id, [replace(plan, **changes)], note="planned azimuthal")
        return RunTag(run_id=run_id, attempt=1)

    def submitted(self, uid: str = "c-1", *, job_id: int = 42, **changes: Any) -> RunTag:
        tag = self.planned(uid, **changes)
        self.attempt_submitted(tag, job_id)
        return tag

    def attempt_submitted(self, tag: RunTag, job_id: int = 42) -> None:
        self.attempt(tag).path.mkdir(parents=True)
        assert self.store.record_intent(tag, SCRIPT, gateway="cli")
        identity = JobIdentity(cluster="live", job_id=job_id, submitted_at=NOON)
        assert self.store.record_submitted(tag, SubmittedJob(identity=identity, gateway="cli"))

    def begun(self, tag: RunTag, *, script_sha256: str = SCRIPT.sha256) -> None:
        """Record what the job says when it begins."""
        detail = {
            "script_sha256": script_sha256,
            "host": "n1",
            "user": "gda",
            "machine": {"cpu": "EPYC", "cores": 64, "system": "Linux"},
            "environment": {"SLURM_JOB_PARTITION": "live", "SLURM_JOB_ACCOUNT": "i22"},
        }
        self.store.record_event(tag, "begin", detail, NOON + timedelta(seconds=2), sequence=0)
        self.store.record_software(tag, SOFTWARE)
        self.report(tag, JobState.RUNNING)

    def report(self, tag: RunTag, state: JobState, **changes: Any) -> None:
        (attempt,) = (one for one in self.store.run(tag.run_id).attempts if one.tag == tag)
        assert attempt.identity is not None
        plain = JobReport(
            identity=attempt.identity,
            name=tag.job_name,
            state=state,
            words=state.name,
            evidence=Evidence.CONTROLLER,
            nodes="n[1-2]",
            started_at=NOON,
        )
        self.store.record_report(tag, replace(plain, **changes))

    def counts(self, tag: RunTag, **changes: Any) -> None:
        plain = FrameCounts(expected=200, written=200, processed=200, failed=0, lag_median_s=0.004, lag_max_s=1.5)
        self.store.record_progress(tag.run_id, replace(plain, finished=True, ended_because="file finished", **changes))

    def inputs(self, tag: RunTag) -> None:
        """Make the files that a run reads, and record what they were."""
        frames, source = (self._as_it_was(self.folder / "disk7" / name, 44_000_000) for name in ("c-1.h5", "c-1_1.h5"))
        mask = self._as_it_was(self.folder / "calib" / "mask.npy", 1000)
        for moment, size in ((InputMoment.OPEN, 4_000), (InputMoment.END, 44_000_000)):
            sealed = {"state": "sealed", "algorithm": "sha256(xxh3-128)", "digest": "d" * 64, "frames": 200}
            identity = InputIdentity(
                at=moment,
                seal=sealed if moment is InputMoment.END else None,
                files=({"parameter": "mask", "path": str(mask), "size": 1000, "mtime_ns": AT_NS, "sha256": "e" * 64},),
                path=self.folder / "c-1.h5",
                real_path=frames,
                dataset="/entry/data",
                size=size,
                mtime_ns=AT_NS,
                inode=frames.stat().st_ino,
                shape=(200, 515, 512),
                dtype="uint32",
                chunks=(1, 515, 512),
                sources=({"path": str(source), "size": 9, "mtime_ns": AT_NS, "inode": source.stat().st_ino},),
            )
            self.store.record_input(tag.run_id, identity)

    @staticmethod
    def _as_it_was(path: Path, size: int) -> Path:
        path.parent.mkdir(exist_ok=True)
        with path.open("ab") as file:
            file.truncate(size)
        os.utime(path, ns=(AT_NS, AT_NS))
        return path

    def result(self, tag: RunTag, content: bytes = b"a result") -> Path:
        """Write a result, and record it."""
        path = self.directory(tag).result
        path.write_bytes(content)
        digests = {"sha256": sha256_of(content), "content_sha256": "c" * 64}
        output = OutputIdentity(path=path, kind="result", size=len(content), **digests)
        self.store.record_output(tag.run_id, output)
        return path

    def kernel_told(self, tag: RunTag) -> None:
        """Record what the kernel tells about itself."""
        self.store.record_defaults(tag.run_id, {"bins": 1000, "unit": "q_nm^-1", "mask": None}, place="the kernel's")
        self.store.record_software(tag, {"loaded": {"hdf5": "2.0.0", "mpi": "Open MPI v4.1.4"}})

    def complete(self, uid: str = "c-1", **changes: Any) -> RunTag:
        """Put a run into the store that has gone all the way."""
        tag = self.submitted(uid, **changes)
        self.begun(tag)
        self.kernel_told(tag)
        self.inputs(tag)
        self.counts(tag)
        self.result(tag)
        self.store.record_event(tag, "end", {"exit_code": 0}, NOON + timedelta(seconds=20), sequence=1)
        usage = {"elapsed_s": 125.0, "cpu_s": 3.25, "max_rss_bytes": 99_975_168}
        ended_at = NOON + timedelta(seconds=21)
        self.report(tag, JobState.COMPLETED, exit_code=0, ended_at=ended_at, usage=usage)
        self.ended(tag, RunState.COMPLETE, "200 of 200 written frames processed")
        return tag

    def ended(self, tag: RunTag, state: RunState, reason: str = "") -> None:
        assert self.store.finish_run(tag.run_id, state, reason, NOON + timedelta(seconds=21))

    # ------------------------------------------------------------------------------------------- the directories

    def directory(self, tag: RunTag) -> RunDirectory:
        return RunDirectory(self.folder / "runs" / tag.run_id)

    def attempt(self, tag: RunTag) -> AttemptDirectory:
        return self.directory(tag).attempt(tag.attempt)

    def kernel_says(self, tag: RunTag, processed: int) -> None:
        told = {"state": "running", "expected": 200, "written": processed + 2, "processed": processed, "failed": 0}
        self.attempt(tag).progress.write_text(json.dumps(told))
