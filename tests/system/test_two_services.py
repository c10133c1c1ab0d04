"""Two services on one queue, one database and one SLURM share the work; nothing is done twice, and one may die."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.demonstration import FRAMES_DATASET, shipped
from orchestrator.errors import StackError
from orchestrator.listening.broker import BrokerSession
from orchestrator.messages import start_document
from orchestrator.records import CollectionStart, RunState
from orchestrator.runs import RunDirectory
from orchestrator.stack import Stack
from orchestrator.stack.databases import private_mariadb, private_postgresql
from tests.system.beamline import ORCHESTRATOR, Beamline, slurm_jobs

pytestmark = pytest.mark.stack

COLLECTIONS = 30
FOLLOWS = "following jobs from now on"
QUICK = """#!/bin/bash
{% include "_sbatch.j2" %}

{% include "_begin.j2" %}

{% include "_progress.j2" %}
echo '{"state": "finished", "expected": 1, "written": 1, "processed": 1, "failed": 0}' > "$progress"
"""
"""Passes the fence, does nothing, and records its end."""


@dataclass
class Running:
    """One of the services: its process, and what it said."""

    process: subprocess.Popen[bytes]
    log: Path

    def said(self, words: str) -> int:
        return len(re.findall(words, self.log.read_text()))

    @property
    def jobs_made(self) -> int:
        return self.said(r"run \S+ is job ")


class Facility(Beamline):
    """A beamline with two services on one database."""

    def __init__(self, directory: Path, stack: Stack, database: str) -> None:
        templates = directory / "templates"
        shutil.copytree(shipped("jobtemplates"), templates)
        (templates / "azimuthal.sbatch.j2").write_text(QUICK)
        changes: Mapping[str, object] = {
            "database": database,
            "templates": str(templates),
            "stomp.queue": f"/queue/shared-{directory.name}",
            "stomp.prefetch": 5,
            "gateway.submit_deadline_s": 15,
            "gateway.absence_grace_s": 15,
            "defaults.resources.ntasks": 1,
            "defaults.resources.memory_mb": 100,
        }
        super().__init__(directory, stack, changes)
        self.name = directory.name
        self.running: list[Running] = []

    def start(self, name: str) -> Running:
        log = self.directory / f"{name}.log"
        environment = os.environ | self.environment
        with log.open("ab") as stream:
            command = [*ORCHESTRATOR, "serve", "--site", str(self.site)]
            process = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream)
        self.running.append(Running(process, log))
        self.eventually(lambda: self.running[-1].said("subscribed to"), within_s=60)
        return self.running[-1]

    def close(self) -> None:
        for running in self.running:
            running.process.kill()
            running.process.wait()
        super().close()

    def publish(self, uids: Sequence[str]) -> None:
        """Announce collections, all through one connection."""
        settings = self.settings.stomp
        assert settings is not None
        session = BrokerSession(settings, settings.addresses()[0])
        session.open()
        try:
            for uid in uids:
                start = CollectionStart(
                    uid=uid, beamline="demo", detector="simulated", file=self.file(uid), dataset=FRAMES_DATASET
                )
                session.send(settings.destination, start_document(start), {})
        finally:
            session.close()

    def eventually(self, holds: Callable[[], object], *, within_s: float) -> None:
        end = time.monotonic() + within_s
        while not holds():
            logs = "\n".join(f"--- {running.log.name}\n{running.log.read_text()}" for running in self.running)
            assert time.monotonic() < end, f"not within {within_s} s\n{logs}"
            time.sleep(0.2)

    @property
    def ended(self) -> int:
        return sum(run.state.ended for run in self.store.runs(limit=1000))


@pytest.fixture(params=[private_postgresql, private_mariadb], ids=["postgresql", "mariadb"])
def facility(request: pytest.FixtureRequest, tmp_path: Path, stack: Stack) -> Iterator[Facility]:
    with ExitStack() as cleanup:
        try:
            url = cleanup.enter_context(request.param(tmp_path / "server"))
        except StackError as missing:
            pytest.skip(f"NOT TESTED: {missing.full_text}")
        facility = Facility(tmp_path / request.node.callspec.id, stack, url)
        cleanup.callback(facility.close)
        yield facility


def test_two_services_share_the_work_and_one_killed_in_the_middle_is_replaced_by_the_other(
    facility: Facility, stack: Stack
) -> None:
    # Run ids come of uids: those of another database on the same SLURM would be taken for this one's jobs, and adopted.
    uids = [f"{facility.name}-{number}" for number in range(COLLECTIONS)]
    first, last = uids[: COLLECTIONS // 2], uids[COLLECTIONS // 2 :]
    one, other = facility.start("one"), facility.start("other")
    facility.eventually(lambda: one.said(FOLLOWS) + other.said(FOLLOWS) == 1, within_s=30)
    leader, survivor = (one, other) if one.said(FOLLOWS) else (other, one)

    facility.publish([*first, *first])
    facility.eventually(lambda: leader.jobs_made >= 2 and survivor.jobs_made >= 2, within_s=60)
    leader.process.send_signal(signal.SIGKILL)
    leader.process.wait()
    before = survivor.jobs_made
    facility.publish([*last, *first, *last])  # a sender that isn't sure sends again

    facility.eventually(lambda: facility.ended == COLLECTIONS, within_s=240)
    assert survivor.said(FOLLOWS) == 1
    assert survivor.jobs_made >= before + len(last)
    assert_each_collection_has_one_job(facility, stack, uids)


def assert_each_collection_has_one_job(facility: Facility, stack: Stack, uids: Sequence[str]) -> None:
    runs = facility.store.runs(limit=1000)
    assert sorted(run.collection_uid for run in runs) == sorted(uids)
    assert [(run.collection_uid, run.state, run.reason) for run in runs if run.state is not RunState.COMPLETE] == []
    jobs = Counter(slurm_jobs(stack))
    for run in runs:
        [attempt] = facility.store.run(run.run_id).attempts
        events = RunDirectory(run.run_directory).attempt(1).events.read_text().splitlines()
        kinds = [json.loads(line)["kind"] for line in events]
        assert kinds.count("begin") == 1
        # What the killed service had under way can still become a job; that one leaves at the fence.
        assert jobs[attempt.tag.job_name] == 1 + kinds.count("duplicate")
    messages = facility.store.messages(limit=1000)
    assert len(messages) == len(uids)
    assert all(message.repeats >= 1 for message in messages)


def test_the_service_that_follows_hands_over_when_it_ends_in_order(facility: Facility) -> None:
    one = facility.start("one")
    facility.eventually(lambda: one.said(FOLLOWS), within_s=30)
    other = facility.start("other")
    time.sleep(3)
    assert not other.said(FOLLOWS)
    one.process.terminate()
    assert one.process.wait(60) == 0
    facility.eventually(lambda: other.said(FOLLOWS), within_s=5)
    assert facility.store.leases().keys() >= {"following"}
