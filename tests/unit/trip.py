"""A dispatcher and a follower over a SQLite store and the SLURM in memory, for tests of the whole trip."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

from orchestrator.demonstration import shipped
from orchestrator.dispatching import Dispatcher
from orchestrator.following import Follower
from orchestrator.listening.door import Verdict
from orchestrator.messages import end_document, start_document
from orchestrator.provenance import RunDetail, Store
from orchestrator.records import CollectionEnd, CollectionOutcome, CollectionStart, JobIdentity, RawMessage, utc_now
from orchestrator.runs import AttemptDirectory, RunDirectory
from orchestrator.settings import Settings, load_settings
from orchestrator.slurm.memory import MemoryGateway


@dataclass
class Clock:
    """A clock that tests put forward."""

    ahead: timedelta = timedelta(0)

    def __call__(self) -> datetime:
        return utc_now() + self.ahead

    def steady_s(self) -> float:
        """Seconds on a clock that isn't set when this one is."""
        return time.monotonic() + self.ahead.total_seconds()


@dataclass
class Trip:
    """Everything below one folder."""

    folder: Path
    gateway: MemoryGateway = field(default_factory=MemoryGateway)
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.settings: Settings = load_settings(
            shipped("site-configs", "demo.toml"),
            {
                "database": f"sqlite:///{self.folder}/store.sqlite",
                "runs_root": str(self.folder / "runs"),
                "allowed_roots": [str(self.folder)],
            },
        )
        self.store = Store.open(self.settings.database)
        self.dispatcher = self.new_dispatcher()
        self.follower = self.new_follower()

    def new_dispatcher(self) -> Dispatcher:
        """Return a dispatcher that remembers nothing, as after a restart."""
        return Dispatcher(
            store=self.store,
            gateway=self.gateway,
            settings=self.settings,
            now=self.clock,
            clock=self.clock.steady_s,
        )

    def site_says(self, **defaults: object) -> None:
        """Change tables below ``[defaults]`` for what is planned from now on, e.g. ``retries={"most": 0}``."""
        document = self.settings.model_dump(by_alias=True, exclude_unset=True)
        document["defaults"] = {**document.get("defaults", {}), **defaults}
        self.settings = Settings.model_validate(document | {"source": self.settings.source})
        self.dispatcher = replace(self.dispatcher, settings=self.settings)

    def new_follower(self) -> Follower:
        """Return a follower that remembers nothing, as after a restart."""
        return Follower(store=self.store, gateway=self.gateway, vanish_after=timedelta(minutes=10), now=self.clock)

    def start(self, uid: str = "c1", *, frames: int = 3, detector: str = "d", file: str = "x.h5") -> Verdict:
        start = CollectionStart(
            uid=uid, beamline="b", detector=detector, file=self.folder / file, dataset="/d", frames_expected=frames
        )
        return self.receive(start_document(start))

    def end(self, uid: str = "c1", *, frames: int = 3) -> Verdict:
        end = CollectionEnd(uid=uid, outcome=CollectionOutcome.FINISHED, frames_written=frames)
        return self.receive(end_document(end))

    def receive(self, body: bytes) -> Verdict:
        """Take one message as a door does."""
        [verdict] = self.dispatcher.receive([RawMessage(body=body, source="test")])
        return verdict

    def submitted(self, uid: str = "c1") -> JobIdentity:
        """Take a collection as far as SLURM; return its job."""
        self.start(uid)
        self.dispatcher.plan_waiting()
        self.dispatcher.submit_planned()
        job = self.run(uid).summary.job
        assert job is not None
        return job

    def run(self, uid: str = "c1") -> RunDetail:
        (summary,) = self.store.runs(uid=uid)
        return self.store.run(summary.run_id)

    def directory(self, uid: str = "c1") -> RunDirectory:
        return RunDirectory(self.run(uid).summary.run_directory)

    def attempt(self, uid: str = "c1") -> AttemptDirectory:
        return self.directory(uid).attempt(1)

    def kernel_says(
        self, uid: str = "c1", *, state: str = "finished", processed: int = 3, restarts: int = 0, **more: object
    ) -> None:
        """Write the kernel's progress file."""
        told = {"state": state, "expected": 3, "written": 3, "processed": processed, "failed": 0, **more}
        self.attempt(uid).progress_of(restarts).write_text(json.dumps(told))

    def job_begins(self, uid: str = "c1", *, restarts: int = 0) -> None:
        """Write the job's own begin record."""
        self._note(uid, "begin", restarts, {"software": {"python": "3"}})

    def job_ends(
        self, exit_code: int, uid: str = "c1", *, restarts: int = 0, sha256: str = "ab", interrupted: bool = False
    ) -> None:
        """Write the job's own end record, and what it left."""
        self._note(uid, "end", restarts, {"exit_code": exit_code} | ({"interrupted": True} if interrupted else {}))
        output = {"kind": "result", "path": "/r", "size": 5, "sha256": sha256}
        self._note(uid, "outputs", restarts, {"outputs": [output]})

    def _note(self, uid: str, kind: str, restarts: int, detail: dict[str, object]) -> None:
        job = {"cluster": "memory", "job_id": "1", "restarts": restarts}
        event = {"kind": kind, "at": utc_now().isoformat(), "job": job, "detail": detail}
        with self.attempt(uid).events.open("a") as stream:
            stream.write(json.dumps(event) + "\n")
