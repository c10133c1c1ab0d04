"""A beamline for system tests: site file, service as a process that can be killed, detectors, messages, store."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from orchestrator.demonstration import FRAMES_DATASET, Demonstration, write_site
from orchestrator.listening.spool import drop
from orchestrator.listening.stomp import publish
from orchestrator.messages import end_document, start_document
from orchestrator.provenance import RunDetail, Store
from orchestrator.records import CollectionEnd, CollectionOutcome, CollectionStart
from orchestrator.service import open_store
from orchestrator.settings import load_settings
from orchestrator.stack import Stack

ORCHESTRATOR = (sys.executable, "-m", "orchestrator")


class Beamline:
    """Everything below one folder; with a stack through SLURM and ActiveMQ, without one embedded."""

    def __init__(self, directory: Path, stack: Stack | None, changes: Mapping[str, object] | None = None) -> None:
        self.directory = directory
        (directory / "data").mkdir(parents=True)
        self.environment = {} if stack is None else stack.environment()
        self.site = write_site(Demonstration(directory=directory, embedded=stack is None), self.environment, changes)
        self.settings = load_settings(self.site)
        self.store: Store = open_store(self.settings, create=True)
        self._service: subprocess.Popen[bytes] | None = None

    def close(self) -> None:
        self.stop_service()
        self.store.close()

    # ----------------------------------------------------------------------------------------------- processes

    def start_service(self) -> None:
        with (self.directory / "service.log").open("ab") as log:
            self._service = subprocess.Popen(
                [*ORCHESTRATOR, "serve", "--site", str(self.site)],
                env=os.environ | self.environment,
                stdout=log,
                stderr=log,
            )

    def kill_service(self) -> None:
        """End the service as a crash would."""
        assert self._service is not None
        self._service.send_signal(signal.SIGKILL)
        self._service.wait()
        self._service = None

    def stop_service(self) -> None:
        if self._service is not None:
            self._service.terminate()
            assert self._service.wait(60) == 0, self.log()
            self._service = None

    def log(self) -> str:
        return (self.directory / "service.log").read_text()

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*ORCHESTRATOR, *arguments],
            env=os.environ | self.environment | {"ORCHESTRATOR_SITE": str(self.site)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    @contextmanager
    def detector(self, uid: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
        """Write a collection; the file is named after it."""
        arguments = [*ORCHESTRATOR, "simulate", str(self.file(uid)), "--json", "--shape", "128x128", *options]
        with (self.directory / "detector.log").open("ab") as log:
            process = subprocess.Popen(arguments, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)

    # ------------------------------------------------------------------------------------------------ messages

    def file(self, uid: str) -> Path:
        return self.directory / "data" / f"{uid}.nxs"

    def announce(
        self, uid: str, expected: int | None, *, file: Path | None = None, dataset: str = FRAMES_DATASET
    ) -> None:
        start = CollectionStart(
            uid=uid,
            beamline="demo",
            detector="simulated",
            file=file or self.file(uid),
            dataset=dataset,
            frames_expected=expected,
        )
        self.send(start_document(start), f"{uid}-start")

    def announce_end(self, uid: str, written: int, outcome: CollectionOutcome = CollectionOutcome.FINISHED) -> None:
        self.send(end_document(CollectionEnd(uid=uid, outcome=outcome, frames_written=written)), f"{uid}-end")

    def send(self, body: bytes, name: str = "message") -> None:
        if self.settings.stomp is not None:
            publish(self.settings.stomp, body)
        if self.settings.spool is not None:
            self.settings.spool.folder.mkdir(exist_ok=True)
            drop(self.settings.spool.folder, body, f"{name}.json")

    # --------------------------------------------------------------------------------------------------- asking

    def run(self, uid: str) -> RunDetail | None:
        runs = self.store.runs(uid=uid)
        assert len(runs) <= 1
        return self.store.run(runs[0].run_id) if runs else None

    def wait_for(self, uid: str, condition: Callable[[RunDetail], bool], *, within_s: float = 60) -> RunDetail:
        deadline = time.monotonic() + within_s
        while True:
            detail = self.run(uid)
            if detail is not None and condition(detail):
                return detail
            state = None if detail is None else detail.summary
            assert time.monotonic() < deadline, f"{uid}: still {state}\n{self.log()}"
            time.sleep(0.2)

    def wait_for_end(self, uid: str, *, within_s: float = 60) -> RunDetail:
        return self.wait_for(uid, lambda detail: detail.summary.state.ended, within_s=within_s)


def processed(number: int) -> Callable[[RunDetail], bool]:
    """Whether so many frames have been processed."""
    return lambda detail: detail.summary.counts is not None and detail.summary.counts.processed >= number


def slurm(stack: Stack, *command: str) -> str:
    """Run one of SLURM's commands against a stack; return what it printed."""
    environment = os.environ | stack.environment()
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def slurm_jobs(stack: Stack) -> list[str]:
    """Names of all jobs that the controller remembers."""
    return slurm(stack, "squeue", "--all", "--states=all", "--noheader", "--format=%j").split()
