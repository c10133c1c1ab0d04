"""The demonstration: a detector writes, a message announces it, SLURM runs the kernel, the result grows.

Everything is real and lives in one folder: the private stack (`orchestrator.stack`; not when embedded), a site file of
its own, the service as its own process, the simulated detector as another. This module starts them, watches, and ends
them; it does nothing that a beamline wouldn't do by the same commands.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import tomlkit

from orchestrator.errors import NotFound, StackError
from orchestrator.evidence import newest_progress
from orchestrator.listening.spool import drop
from orchestrator.listening.stomp import publish
from orchestrator.messages import end_document, start_document
from orchestrator.pictures import draw_result, frame_lags_s
from orchestrator.provenance import RunDetail, Store
from orchestrator.records import CollectionEnd, CollectionOutcome, CollectionStart, FrameCounts, RunState, utc_now
from orchestrator.runs import RunDirectory
from orchestrator.service import open_store
from orchestrator.settings import Settings, load_settings
from orchestrator.stack import Stack

BEAMLINE = "demo"
FRAMES_DATASET = "/entry/data/data"


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """What is to be shown."""

    directory: Path
    frames: int | None = None
    """None: 200, or as many as the replayed file has."""
    rate_hz: float | None = None
    """None: 20, or 2 for a replayed file, which may have few frames and is to be followed while it grows."""
    ranks: int = 2
    embedded: bool = False
    """Without SLURM and broker: spool folder, local route."""
    input: Path | None = None
    """A real file to replay."""
    input_dataset: str | None = None
    keep: bool = False
    """Leave stack and service running."""
    timeout_s: float = 300.0
    """Longest time from the last frame to the end of the run."""

    @property
    def frames_per_second(self) -> float:
        """How fast the detector writes."""
        if self.rate_hz is not None:
            return self.rate_hz
        return 20.0 if self.input is None else 2.0


@dataclass(frozen=True, kw_only=True)
class View:
    """How far it has come, for progress bars."""

    phase: str
    expected: int | None = None
    written: int = 0
    counts: FrameCounts | None = None
    state: RunState | None = None
    job: str = ""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What came out; the field names are those of the demonstration's JSON file."""

    run: str
    gateway: str
    slurm_job_id: int | None
    state: str
    reason: str
    frames_expected: int | None
    frames_written: int
    frames_processed: int
    frames_failed: int
    lag_median_s: float | None
    """Seconds from the detector's flush of a frame to its result being readable."""
    lag_max_s: float | None
    message_to_job_start_s: float | None
    result: str
    picture: str | None
    site: str
    service_pid: int | None
    """The service's process where it was left running."""
    complete: bool


Watch = Callable[[View], None]


def run(demonstration: Demonstration, watch: Watch) -> Summary:
    """Show everything once.

    Raises
    ------
    StackError
        When the stack, the service or the detector doesn't do its part; the message has the end of its log.
    """
    demonstration.directory.mkdir(parents=True, exist_ok=True)
    with ExitStack() as cleanup:
        environment: Mapping[str, str] = {}
        if not demonstration.embedded:
            watch(View(phase="starting SLURM and ActiveMQ"))
            environment = cleanup.enter_context(_stack(demonstration))
        site = write_site(demonstration, environment)
        settings = load_settings(site)
        watch(View(phase="starting the service"))
        service = cleanup.enter_context(_service(demonstration, site, environment))
        store = cleanup.enter_context(open_store(settings, create=True))
        detector = cleanup.enter_context(_detector(demonstration))
        collection = _Collection(demonstration, settings, store, service, detector)
        detail = collection.follow(watch)
        return _summary(demonstration, site, detail, service)


# ------------------------------------------------------------------------------------------------ what is started


@contextmanager
def _stack(demonstration: Demonstration) -> Iterator[Mapping[str, str]]:
    stack = Stack(demonstration.directory / "stack")
    try:
        stack.up({"slurm", "broker", "accounting"}, nodes=2)
        yield stack.environment()
    finally:
        if not demonstration.keep:
            stack.down()
            shutil.rmtree(stack.directory)


def shipped(*parts: str) -> Path:
    """Return the path of a site file or job template that came with the program, installed or in its checkout.

    Raises
    ------
    NotFound
        When it isn't there.
    """
    package = Path(__file__).resolve().parent
    for base in (package / "_shipped", package.parent):
        if (path := base.joinpath(*parts)).exists():
            return path
    raise NotFound(f"{'/'.join(parts)} did not come with this installation", remedy="install the program again")


def write_site(
    demonstration: Demonstration, environment: Mapping[str, str], more_changes: Mapping[str, object] | None = None
) -> Path:
    """Write the demonstration's own site file: the shipped one, with this folder and these addresses.

    Parameters
    ----------
    environment
        What the stack told to export; empty when embedded.
    more_changes
        Values by their dotted keys, in place of the shipped ones.
    """
    template = shipped("site-configs", "embedded.toml" if demonstration.embedded else "demo.toml")
    document = tomlkit.parse(template.read_text())
    directory = demonstration.directory
    changes: dict[str, object] = {
        "database": f"sqlite:///{directory}/provenance.sqlite",
        "runs_root": str(directory / "runs"),
        "allowed_roots": [str(directory / "data")],
        "templates": str(shipped("jobtemplates")),
        "python": sys.executable,
        "defaults.resources.ntasks": demonstration.ranks,
    }
    if demonstration.embedded:
        changes |= {"spool.folder": str(directory / "spool"), "gateway.local_state": str(directory / "jobs")}
    else:
        changes |= {
            "stomp.brokers": [environment["ORCHESTRATOR_BROKER"]],
            "stomp.credentials_file": environment["ORCHESTRATOR_BROKER_CREDENTIALS"],
        }
    for dotted, value in (changes | dict(more_changes or {})).items():
        _set(document, dotted.split("."), value)
    site = directory / "site.toml"
    site.write_text(tomlkit.dumps(document))
    return site


def _set(table: tomlkit.TOMLDocument, keys: list[str], value: object) -> None:
    for key in keys[:-1]:
        table = table.setdefault(key, tomlkit.table())
    table[keys[-1]] = value


@contextmanager
def _process(name: str, arguments: list[str], log: Path, environment: Mapping[str, str]) -> Iterator[_Process]:
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator", *arguments],
            env=os.environ | dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    yield _Process(name=name, process=process, log=log)


@dataclass(frozen=True, kw_only=True)
class _Process:
    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def ended(self) -> bool:
        """Whether it has ended in order.

        Raises
        ------
        StackError
            When it has failed.
        """
        code = self.process.poll()
        if code:
            last = "\n".join(self.log.read_text(errors="replace").splitlines()[-12:])
            raise StackError(f"{self.name} ended with {code}; the end of {self.log}:\n{last}")
        return code is not None

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@contextmanager
def _service(demonstration: Demonstration, site: Path, environment: Mapping[str, str]) -> Iterator[_Process]:
    log = demonstration.directory / "service.log"
    with _process("the service", ["serve", "--site", str(site)], log, environment) as process:
        try:
            yield process
        finally:
            if not demonstration.keep:
                process.end()


@contextmanager
def _detector(demonstration: Demonstration) -> Iterator[_Process]:
    directory = demonstration.directory
    output = _detector_file(demonstration)
    output.parent.mkdir(exist_ok=True)
    arguments = ["simulate", str(output), "--overwrite", "--rate", str(demonstration.frames_per_second), "--json"]
    arguments += ["--progress-file", str(directory / "detector.json")]
    if demonstration.frames is not None:
        arguments += ["--number", str(demonstration.frames)]
    if demonstration.input is not None:
        arguments += ["--input", str(demonstration.input), "--dataset", str(demonstration.input_dataset)]
    (directory / "detector.json").unlink(missing_ok=True)
    with _process("the detector", arguments, directory / "detector.log", {}) as process:
        try:
            yield process
        finally:
            process.end()


def _detector_file(demonstration: Demonstration) -> Path:
    return demonstration.directory / "data" / "collection.nxs"


# ---------------------------------------------------------------------------------------------------- the course


class _Collection:
    """One collection, from its announcement to the end of its run."""

    def __init__(
        self, demonstration: Demonstration, settings: Settings, store: Store, service: _Process, detector: _Process
    ) -> None:
        self.demonstration, self.settings, self.store = demonstration, settings, store
        self.service, self.detector = service, detector
        self.uid = f"demo-{uuid.uuid4().hex[:8]}"

    def follow(self, watch: Watch) -> RunDetail:
        """Announce the collection, show how it goes, and return the run's record once it has ended."""
        watch(View(phase="the detector prepares its frames"))
        while (expected := self._written()[1]) is None:
            self._alive()
        self._announce(expected)
        deadline, end_sent = None, False
        while True:
            detector_done = self._alive()
            written, _ = self._written()
            if detector_done and not end_sent:
                self._announce_end(written)
                end_sent, deadline = True, time.monotonic() + self.demonstration.timeout_s
            view = self._view(expected, written)
            watch(view)
            if end_sent and view.state is not None and view.state.ended:
                return self.store.run(self._run_id())
            if deadline is not None and time.monotonic() > deadline:
                raise StackError(
                    f"{self.demonstration.timeout_s:.0f} s after the last frame the run is still {view.state}",
                    remedy=f"look into {self.service.log}",
                )

    def _alive(self) -> bool:
        """Wait a moment; return whether the detector is done. The service must go on."""
        time.sleep(0.1)
        if self.service.ended():
            raise StackError(f"the service has ended by itself; see {self.service.log}")
        return self.detector.ended()

    def _announce(self, expected: int) -> None:
        start = CollectionStart(
            uid=self.uid,
            beamline=BEAMLINE,
            visit="demo-1",
            detector="simulated",
            scan_type="time-series",
            file=_detector_file(self.demonstration),
            dataset=FRAMES_DATASET,
            frames_expected=expected,
            started_at=utc_now(),
        )
        self._send(start_document(start), "start")

    def _announce_end(self, written: int) -> None:
        end = CollectionEnd(
            uid=self.uid, outcome=CollectionOutcome.FINISHED, frames_written=written, ended_at=utc_now()
        )
        self._send(end_document(end), "end")

    def _send(self, document: bytes, kind: str) -> None:
        if self.settings.stomp is not None:
            publish(self.settings.stomp, document)
        if self.settings.spool is not None:
            self.settings.spool.folder.mkdir(parents=True, exist_ok=True)
            drop(self.settings.spool.folder, document, f"{self.uid}-{kind}.json")

    def _written(self) -> tuple[int, int | None]:
        """Return how many frames the detector has written, and how many it will; None before it knows."""
        try:
            progress = json.loads((self.demonstration.directory / "detector.json").read_bytes())
        except FileNotFoundError:
            return 0, None
        return progress["written"], progress["expected"]

    def _run_id(self) -> str:
        return self.store.runs(uid=self.uid)[0].run_id

    def _view(self, expected: int, written: int) -> View:
        view = View(phase="collecting", expected=expected, written=written)
        runs = self.store.runs(uid=self.uid)
        if not runs:
            return view
        run = runs[0]
        progress = newest_progress(RunDirectory(run.run_directory).attempt(max(run.attempts, 1)))
        counts = run.counts if progress is None else progress.counts
        return replace(view, state=run.state, counts=counts, job=str(run.job or ""))


# --------------------------------------------------------------------------------------------------- the summary


def _summary(demonstration: Demonstration, site: Path, detail: RunDetail, service: _Process) -> Summary:
    summary = detail.summary
    counts = summary.counts or FrameCounts(expected=None, written=0, processed=0, failed=0)
    result = RunDirectory(summary.run_directory).result
    lags = frame_lags_s(_detector_file(demonstration), result) if result.exists() else ()
    picture = demonstration.directory / "result.png"
    if result.exists() and counts.processed:
        draw_result(result, picture, title=f"{summary.recipe}: {counts.processed} frames, {summary.state}")
    return Summary(
        run=summary.run_id,
        gateway=detail.attempts[-1].gateway if detail.attempts else "",
        slurm_job_id=None if summary.job is None else summary.job.job_id,
        state=summary.state,
        reason=summary.reason,
        frames_expected=counts.expected,
        frames_written=counts.written,
        frames_processed=counts.processed,
        frames_failed=counts.failed,
        lag_median_s=sorted(lags)[len(lags) // 2] if lags else None,
        lag_max_s=max(lags, default=None),
        message_to_job_start_s=_start_delay_s(detail),
        result=str(result),
        picture=str(picture) if picture.exists() else None,
        site=str(site),
        service_pid=service.process.pid if demonstration.keep else None,
        complete=summary.state is RunState.COMPLETE and counts.complete,
    )


def _start_delay_s(detail: RunDetail) -> float | None:
    """Seconds from the message's arrival to the first line that ran inside the job."""
    begins = [event.at for event in detail.events if event.kind == "begin"]
    if not begins or detail.message is None:
        return None
    return (min(begins) - detail.message.raw.received_at).total_seconds()
