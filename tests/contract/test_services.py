"""What two services on one database keep, on PostgreSQL and MariaDB: they share the work, and ask SLURM once."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import sqlalchemy

from orchestrator.demonstration import shipped
from orchestrator.errors import StackError
from orchestrator.messages import start_document
from orchestrator.provenance import Store
from orchestrator.records import (
    CollectionStart,
    JobIdentity,
    JobReport,
    Json,
    RawMessage,
    RunState,
    Submission,
    SubmittedJob,
)
from orchestrator.service import Service
from orchestrator.settings import Settings, load_settings
from orchestrator.slurm.memory import MemoryGateway
from orchestrator.stack.databases import private_mariadb, private_postgresql

pytestmark = pytest.mark.stack


class Cluster(MemoryGateway):
    """A SLURM in memory that both services talk to; a submission takes its time."""

    def __init__(self) -> None:
        super().__init__()
        self.asked_by: list[int] = []

    def poll(self, jobs: Sequence[JobIdentity]) -> Mapping[JobIdentity, JobReport]:
        self.asked_by.append(threading.get_ident())
        return super().poll(jobs)

    def submit(self, submission: Submission) -> SubmittedJob:
        time.sleep(0.1)
        return super().submit(submission)


@pytest.fixture(scope="module", params=[private_postgresql, private_mariadb], ids=["postgresql", "mariadb"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with ExitStack() as cleanup:
        try:
            yield cleanup.enter_context(request.param(tmp_path_factory.mktemp("server")))
        except StackError as missing:
            pytest.skip(f"NOT TESTED: {missing.full_text}")


@pytest.fixture
def settings(url: str, tmp_path: Path) -> Settings:
    changes: dict[str, Json] = {
        "database": url,
        "runs_root": str(tmp_path / "runs"),
        "allowed_roots": [str(tmp_path)],
        "gateway.poll_interval_s": 0.3,
    }
    return load_settings(shipped("site-configs", "demo.toml"), changes)


@contextmanager
def serving(settings: Settings, cluster: Cluster) -> Iterator[Service]:
    store = Store.open(settings.database, create=True)
    store.become_service()
    with Service(settings=settings, store=store, gateway=cluster, doors=()) as service:
        yield service


def eventually(holds: Callable[[], object], *, within_s: float = 30) -> None:
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end, f"not within {within_s} s"
        time.sleep(0.05)


def test_two_services_share_a_burst_submit_each_run_once_and_ask_about_all_jobs_once(
    settings: Settings, tmp_path: Path
) -> None:
    cluster = Cluster()
    bodies = [
        start_document(
            CollectionStart(uid=f"c-{number}", beamline="b", detector="d", file=tmp_path / "x.h5", dataset="/d")
        )
        for number in range(60)
    ]
    with serving(settings, cluster) as one, serving(settings, cluster) as other:
        for service in (one, other):  # each message reaches both
            service._handler()([RawMessage(body=body, source="test") for body in bodies])
        eventually(lambda: len(one.store.active_attempts()) == 60)
        eventually(lambda: len(cluster.asked_by) >= 5, within_s=90)
        assert len(set(cluster.asked_by)) == 1
        work = {name for name in one.store.leases() if not name.startswith("service/")}
        assert work == {"comparing", "following"}
        assert {run.state for run in one.store.runs(limit=100)} == {RunState.PENDING}
        with one.store.reading() as session:
            shares = Counter(session.scalars(sqlalchemy.text("SELECT holder FROM attempts")))
    assert len({job.name for job in cluster.jobs}) == len(cluster.jobs) == 60
    assert set(shares) == {one.store.holder, other.store.holder}
