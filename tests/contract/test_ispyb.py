"""What ISPyB on a real MariaDB gets of runs: one whose schema the ispyb package made, and a site's own, with rights to
no more than what is used."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import Engine, text

from orchestrator import crashpoints
from orchestrator.errors import InvalidSettings, IspybUnavailable, OrchestratorError
from orchestrator.ispyb import Mirror
from orchestrator.ispyb.tables import ADMIN_VAR, USED, grants
from orchestrator.provenance import AttemptEnd, IspybRun, Store
from orchestrator.records import JobState, Json, Predecessor, Resources, Retry, RunState, RunTag, utc_now
from orchestrator.service import Service
from orchestrator.settings import Settings, load_settings
from orchestrator.slurm.memory import MemoryGateway
from orchestrator.stack import processes
from orchestrator.stack.databases import accepts_connections, private_mariadb
from tests.unit.site_with_runs import NOON, SiteWithRuns

pytestmark = pytest.mark.stack("mariadbd", "mariadb-install-db")

ACCOUNT = "mirror"
PASSWORD = "a/b@c:d"  # has to be encoded in a URL

# A site's own: older, with single-byte text, and without the columns that came later.
OWN_SCHEMA = """
CREATE TABLE AdminVar (varId INT AUTO_INCREMENT PRIMARY KEY, name VARCHAR(32), value VARCHAR(1024));
CREATE TABLE DataCollection (dataCollectionId INT UNSIGNED AUTO_INCREMENT PRIMARY KEY, dataCollectionGroupId INT,
  imageDirectory VARCHAR(255), imagePrefix VARCHAR(45), fileTemplate VARCHAR(255), numberOfImages INT UNSIGNED,
  imageContainerSubPath VARCHAR(255), secret VARCHAR(20), KEY (imageDirectory));
CREATE TABLE ProcessingJob (processingJobId INT UNSIGNED AUTO_INCREMENT PRIMARY KEY, dataCollectionId INT UNSIGNED,
  displayName VARCHAR(80), comments VARCHAR(255), recordTimestamp TIMESTAMP NOT NULL DEFAULT current_timestamp(),
  recipe VARCHAR(50), automatic TINYINT(1),
  FOREIGN KEY (dataCollectionId) REFERENCES DataCollection (dataCollectionId));
CREATE TABLE ProcessingJobParameter (processingJobParameterId INT UNSIGNED AUTO_INCREMENT PRIMARY KEY,
  processingJobId INT UNSIGNED, parameterKey VARCHAR(80), parameterValue VARCHAR(255),
  FOREIGN KEY (processingJobId) REFERENCES ProcessingJob (processingJobId));
CREATE TABLE ProcessingJobImageSweep (processingJobImageSweepId INT UNSIGNED AUTO_INCREMENT PRIMARY KEY,
  processingJobId INT UNSIGNED, dataCollectionId INT UNSIGNED, startImage MEDIUMINT UNSIGNED,
  endImage MEDIUMINT UNSIGNED, FOREIGN KEY (processingJobId) REFERENCES ProcessingJob (processingJobId));
CREATE TABLE AutoProcProgram (autoProcProgramId INT UNSIGNED AUTO_INCREMENT PRIMARY KEY,
  processingCommandLine VARCHAR(255), processingPrograms VARCHAR(255), processingStatus TINYINT(1),
  processingMessage VARCHAR(255), processingStartTime DATETIME, processingEndTime DATETIME,
  processingEnvironment VARCHAR(255), recordTimeStamp DATETIME, processingJobId INT UNSIGNED,
  FOREIGN KEY (processingJobId) REFERENCES ProcessingJob (processingJobId));
CREATE TABLE AutoProcProgramMessage (autoProcProgramMessageId INT UNSIGNED AUTO_INCREMENT PRIMARY KEY,
  autoProcProgramId INT UNSIGNED, recordTimeStamp TIMESTAMP NOT NULL DEFAULT current_timestamp(),
  severity ENUM ('ERROR', 'WARNING', 'INFO') NOT NULL, message VARCHAR(200), description TEXT,
  FOREIGN KEY (autoProcProgramId) REFERENCES AutoProcProgram (autoProcProgramId));
CREATE TABLE AutoProcProgramAttachment (autoProcProgramAttachmentId INT UNSIGNED AUTO_INCREMENT PRIMARY KEY,
  autoProcProgramId INT UNSIGNED NOT NULL, fileType ENUM ('Log', 'Result', 'Graph', 'Debug', 'Input'),
  fileName VARCHAR(255), filePath VARCHAR(255), recordTimeStamp DATETIME,
  FOREIGN KEY (autoProcProgramId) REFERENCES AutoProcProgram (autoProcProgramId));
"""


@dataclass(frozen=True)
class Ispyb:
    """An ISPyB: seen by its administrator, and the address that the service gets."""

    admin: Engine
    url: str
    directory: Path

    def rows(self, statement: str, **values: object) -> list[dict[str, Any]]:
        with self.admin.connect() as connection:
            return [dict(row) for row in connection.execute(text(statement), values).mappings()]

    def do(self, *statements: str, **values: object) -> int:
        """Execute statements; return the id that the last one made."""
        with self.admin.begin() as connection:
            for statement in statements:
                made = connection.execute(text(statement), values)
            return int(made.lastrowid)

    def data_collection(self, folder: Path, template: str, *, images: int | None = 200) -> int:
        return self.do(
            "INSERT INTO DataCollection (dataCollectionGroupId, imageDirectory, fileTemplate, numberOfImages, "
            "imageContainerSubPath) VALUES (1, :directory, :template, :images, '/entry/data')",
            directory=f"{folder}/",
            template=template,
            images=images,
        )

    def asks(self, collection: int | None, recipe: str, *sweeps: tuple[int, int], **parameters: str) -> int:
        """Ask for reprocessing as SynchWeb does."""
        job = self.do(
            "INSERT INTO ProcessingJob (dataCollectionId, displayName, comments, automatic, recipe, recordTimestamp) "
            "VALUES (:collection, 'again', 'with fewer bins', 0, :recipe, NOW() - INTERVAL 20 SECOND)",
            collection=collection,
            recipe=recipe,
        )
        for name, value in parameters.items():
            self.do(
                "INSERT INTO ProcessingJobParameter (processingJobId, parameterKey, parameterValue) "
                "VALUES (:job, :name, :value)",
                job=job,
                name=name,
                value=value,
            )
        for first, last in sweeps:
            self.do(
                "INSERT INTO ProcessingJobImageSweep (processingJobId, dataCollectionId, startImage, endImage) "
                "VALUES (:job, :collection, :first, :last)",
                job=job,
                collection=collection,
                first=first,
                last=last,
            )
        return job

    def jobs_of(self, collection: int) -> list[dict[str, Any]]:
        return self.rows("SELECT * FROM ProcessingJob WHERE dataCollectionId = :id ORDER BY 1", id=collection)

    def program_of(self, job: int) -> dict[str, Any]:
        (program,) = self.rows("SELECT * FROM AutoProcProgram WHERE processingJobId = :id", id=job)
        return program

    def parameters_of(self, job: int) -> dict[str, str]:
        rows = self.rows("SELECT * FROM ProcessingJobParameter WHERE processingJobId = :id", id=job)
        assert len({row["parameterKey"] for row in rows}) == len(rows)
        return {row["parameterKey"]: row["parameterValue"] for row in rows}

    def sweeps_of(self, job: int) -> list[tuple[int, int, int]]:
        rows = self.rows("SELECT * FROM ProcessingJobImageSweep WHERE processingJobId = :id", id=job)
        return [(row["dataCollectionId"], row["startImage"], row["endImage"]) for row in rows]

    def messages_of(self, program: int) -> list[tuple[str, str]]:
        rows = self.rows("SELECT * FROM AutoProcProgramMessage WHERE autoProcProgramId = :id ORDER BY 1", id=program)
        return [(row["severity"], row["message"]) for row in rows]

    def files_of(self, program: int) -> dict[str, set[str]]:
        """Return the attached files by their type."""
        files: dict[str, set[str]] = {}
        for row in self.rows("SELECT * FROM AutoProcProgramAttachment WHERE autoProcProgramId = :id", id=program):
            files.setdefault(row["fileType"], set()).add(f"{row['filePath']}/{row['fileName']}")
        return files

    def content_of(self, collection: int) -> list[object]:
        """Return all that stands there of a data collection's runs, but for ids and for times that ISPyB gives."""
        content: list[object] = []
        for job in self.jobs_of(collection):
            program = self.program_of(job["processingJobId"])
            number = program["autoProcProgramId"]
            told = {name: value for name, value in (job | program).items() if "Id" not in name}
            told = {name: value for name, value in told.items() if name.lower() != "recordtimestamp"}
            images = [(first, last) for _, first, last in self.sweeps_of(job["processingJobId"])]
            parameters = self.parameters_of(job["processingJobId"])
            content.append([told, parameters, images, self.messages_of(number), self.files_of(number)])
        return content


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    directory = tmp_path_factory.mktemp("ispyb")
    with private_mariadb(directory) as url:
        yield url, directory


def _new_database(url: str, name: str) -> Engine:
    server = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} CHARACTER SET {'utf8mb4' if 'models' in name else 'latin1'}"))
    server.dispose()
    return sqlalchemy.create_engine(sqlalchemy.make_url(url).set(database=name), pool_pre_ping=True)


@pytest.fixture(scope="module")
def of_models(server: tuple[str, Path]) -> Ispyb:
    """Return an ISPyB as the ispyb package's models make it; the service may do everything there."""
    schema = pytest.importorskip("ispyb.sqlalchemy", reason="NOT TESTED: the package ispyb isn't installed")
    url, directory = server
    admin = _new_database(url, "models")
    tables = [schema.Base.metadata.tables[table.name] for table in (ADMIN_VAR, *USED)]
    tables.append(schema.Base.metadata.tables["DataCollectionGroup"])
    with admin.begin() as connection:  # the other two hundred tables would take half a minute
        connection.execute(text("SET FOREIGN_KEY_CHECKS = 0"))
        schema.Base.metadata.create_all(connection, tables=tables)
    ispyb = Ispyb(
        admin=admin, url=admin.url.set(drivername="mariadb").render_as_string(hide_password=False), directory=directory
    )
    ispyb.do("INSERT INTO AdminVar (name, value) VALUES ('schemaVersion', :version)", version=schema.__schema_version__)
    ispyb.do(
        "SET FOREIGN_KEY_CHECKS = 0", "INSERT INTO DataCollectionGroup (dataCollectionGroupId, sessionId) VALUES (1, 1)"
    )
    return ispyb


@pytest.fixture(scope="module")
def of_site(server: tuple[str, Path]) -> Ispyb:
    """Return a site's own ISPyB, in which the service has the rights that it needs and no others."""
    url, directory = server
    admin = _new_database(url, "own")
    account = f"'{ACCOUNT}'@'127.0.0.1'"
    statements = [one for one in OWN_SCHEMA.split(";") if one.strip()]
    lacking = ("parentAutoProcProgramId", "jobUuid", "importanceRank")
    narrow = list(grants("own", account))
    for name in lacking:
        narrow = [one.replace(f", {name}", "") for one in narrow]
    ispyb = Ispyb(
        admin=admin,
        url=f"mariadb://{ACCOUNT}:a%2Fb%40c%3Ad@127.0.0.1:{admin.url.port}/own",
        directory=directory,
    )
    ispyb.do(*statements, f"CREATE USER {account} IDENTIFIED BY '{PASSWORD.replace(':', chr(92) + ':')}'", *narrow)
    ispyb.do("INSERT INTO AdminVar (name, value) VALUES ('schemaVersion', '4.11.0')")
    return ispyb


@pytest.fixture(params=["of_models", "of_site"])
def ispyb(request: pytest.FixtureRequest) -> Ispyb:
    found: Ispyb = request.getfixturevalue(request.param)
    return found


class Site(SiteWithRuns):
    """A site that mirrors to an ISPyB."""

    ispyb: Ispyb

    def settings(self, **changes: Any) -> Settings:
        table: dict[str, Json] = {
            "url": self.ispyb.url,
            "schema_versions": ["5.2.*", "4.11.0"],
            "take_requests": ["azimuthal"],
            "time_zone": "Asia/Tokyo",
            "timeout_s": 2,
            "poll_interval_s": 0.2,
        }
        return load_settings(self.file, {"ispyb": table | changes})

    def mirror(self, **changes: Any) -> Mirror:
        return Mirror(self.store, self.settings(**changes))

    def mirrored(self, tag: RunTag) -> IspybRun:
        found = self.store.ispyb_run(tag.run_id)
        assert found is not None
        return found

    def with_data_collection(self, uid: str, **changes: Any) -> int:
        return self.ispyb.data_collection(self.folder, f"{uid}.h5", **changes)


@pytest.fixture
def site(tmp_path: Path, ispyb: Ispyb) -> Iterator[Site]:
    site = Site(tmp_path)
    site.ispyb = ispyb
    yield site
    site.store.close()


@contextmanager
def closing(mirror: Mirror) -> Iterator[Mirror]:
    try:
        yield mirror
    finally:
        mirror.close()


def mirrored_once(site: Site, **changes: Any) -> None:
    with closing(site.mirror(**changes)) as mirror:
        while mirror.step():
            pass


# --------------------------------------------------------------------------------------------------------- rows


def test_a_complete_run_stands_there_with_its_files_and_its_data_collection(site: Site) -> None:
    collection = site.with_data_collection("c-1")
    tag = site.complete("c-1")
    mirrored_once(site)
    (job,) = site.ispyb.jobs_of(collection)
    assert (job["displayName"], job["recipe"], job["automatic"], job["comments"]) == (
        "azimuthal",
        "orch-azimuthal",
        1,
        "automatic",
    )
    parameters = site.ispyb.parameters_of(job["processingJobId"])
    assert parameters["orchestrator_run"] == tag.run_id
    assert parameters["bins"] == "1000"
    assert parameters["range"] == "[0.1, 3.5]"
    assert parameters["unit"] == "q_nm^-1"
    assert site.ispyb.sweeps_of(job["processingJobId"]) == [(collection, 1, 200)]
    program = site.ispyb.program_of(job["processingJobId"])
    assert program["processingStatus"] == 1
    assert program["processingMessage"] == "complete: 200 of 200 written frames processed"
    assert program["processingStartTime"] == datetime(2026, 11, 22, 21, 0, 0)  # noqa: DTZ001 - Tokyo's, as ISPyB has it
    assert program["processingEndTime"] == datetime(2026, 11, 22, 21, 0, 21)  # noqa: DTZ001
    assert program["processingEnvironment"] == "nodes=n[1-2], ntasks=2, cpus_per_task=1, job=live:42"
    directory = site.directory(tag)
    assert site.ispyb.files_of(program["autoProcProgramId"]) == {
        "Result": {str(directory.result)},
        "Input": {str(site.folder / "c-1.h5"), str(directory.plan)},
        "Log": {str(directory.attempt(1).log), str(directory.path / "provenance.json")},
    }
    assert site.ispyb.messages_of(program["autoProcProgramId"]) == [
        ("INFO", "complete: 200 of 200 written frames processed")
    ]
    assert site.mirrored(tag).due_at is None  # it ended long ago
    events = [event.detail for event in site.store.run(tag.run_id).events if event.kind == "ispyb"]
    assert events == [{"processing_job": job["processingJobId"], "program": program["autoProcProgramId"]}]


def test_a_living_run_has_no_status_and_gets_one_in_the_same_rows(site: Site) -> None:
    collection = site.with_data_collection("c-1")
    tag = site.planned("c-1")
    mirrored_once(site)
    (job,) = site.ispyb.jobs_of(collection)
    seen = [site.ispyb.program_of(job["processingJobId"])]
    site.attempt_submitted(tag)
    site.begun(tag)
    mirrored_once(site)
    seen.append(site.ispyb.program_of(job["processingJobId"]))
    site.report(tag, JobState.FAILED, exit_code=3)
    site.ended(tag, RunState.FAILED, "the kernel ended with exit code 3")
    mirrored_once(site)
    seen.append(site.ispyb.program_of(job["processingJobId"]))
    assert [row["processingStatus"] for row in seen] == [None, None, 0]
    assert [row["processingMessage"] for row in seen] == [
        "planned",
        "running",
        "failed: the kernel ended with exit code 3",
    ]
    assert [row["processingStartTime"] is None for row in seen] == [True, False, False]
    assert len({row["autoProcProgramId"] for row in seen}) == 1
    assert site.ispyb.messages_of(seen[-1]["autoProcProgramId"]) == [
        ("ERROR", "failed: the kernel ended with exit code 3")
    ]


def test_cancelled_partial_refused_and_unknown_runs_say_so(site: Site) -> None:
    said = {}
    for state in (RunState.CANCELLED, RunState.PARTIAL, RunState.REFUSED, RunState.UNKNOWN):
        collection = site.with_data_collection(f"c-{state}")
        tag = site.planned(f"c-{state}")
        if state is RunState.CANCELLED:
            site.store.record_event(tag, "cancel", {"by": "mona"}, utc_now())
        site.ended(tag, state, "because")
        mirrored_once(site)
        (job,) = site.ispyb.jobs_of(collection)
        program = site.ispyb.program_of(job["processingJobId"])
        said[state] = (program["processingStatus"], site.ispyb.messages_of(program["autoProcProgramId"]))
    assert said == {
        RunState.CANCELLED: (0, [("INFO", "cancelled by mona"), ("ERROR", "cancelled: because")]),
        RunState.PARTIAL: (1, [("WARNING", "partial: because")]),
        RunState.REFUSED: (0, [("ERROR", "refused: because")]),
        RunState.UNKNOWN: (0, [("ERROR", "unknown: because")]),
    }


def test_a_run_that_is_tried_again_stays_one_program_that_tells_of_the_first_attempt(site: Site) -> None:
    collection = site.with_data_collection("c-1")
    tag = site.submitted("c-1")
    site.begun(tag)
    mirrored_once(site)
    job = site.store.run(tag.run_id).summary.job
    assert job is not None
    end = AttemptEnd(state=RunState.FAILED, reason="out of memory", cause=JobState.OUT_OF_MEMORY, ended_at=NOON)
    retry = Retry(
        resources=Resources(memory_mb=1000), because="attempt 1 ran out of memory", changes=("500 → 1000 MB",)
    )
    assert site.store.end_attempt(tag, job, end, retry=retry) is RunState.PLANNED
    mirrored_once(site)
    (row,) = site.ispyb.jobs_of(collection)
    between = site.ispyb.program_of(row["processingJobId"])
    assert between["processingStatus"] is None
    assert between["processingMessage"].startswith("planned: attempt 1 ran out of memory, attempt 2 follows")
    second = replace(tag, attempt=2)
    site.attempt_submitted(second, 43)
    site.ended(tag, RunState.COMPLETE, "200 of 200 written frames processed")
    mirrored_once(site)
    (row,) = site.ispyb.jobs_of(collection)
    program = site.ispyb.program_of(row["processingJobId"])
    assert program["processingStatus"] == 1
    assert ("WARNING", "attempt 1 failed: out of memory") in site.ispyb.messages_of(program["autoProcProgramId"])
    logs = {str(site.directory(tag).attempt(number).log) for number in (1, 2)}
    assert logs <= site.ispyb.files_of(program["autoProcProgramId"])["Log"]


def test_a_rerun_is_a_job_of_its_own_that_names_its_parent(site: Site) -> None:
    collection = site.with_data_collection("c-1")
    parent = site.complete("c-1")
    rerun = site.planned("c-1", parent_run=parent.run_id, requester="mona", because="too few bins")
    mirrored_once(site)
    jobs = {
        site.ispyb.parameters_of(job["processingJobId"])["orchestrator_run"]: job
        for job in site.ispyb.jobs_of(collection)
    }
    assert jobs.keys() == {parent.run_id, rerun.run_id}
    row = jobs[rerun.run_id]
    assert (row["automatic"], row["comments"]) == (0, f"rerun of run {parent.run_id} by mona: too few bins")
    assert site.ispyb.parameters_of(row["processingJobId"])["orchestrator_parent_run"] == parent.run_id


def test_a_run_of_a_chain_hangs_on_the_program_of_the_one_before(of_models: Ispyb, tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.ispyb = of_models
    collection = site.with_data_collection("c-1")
    first = site.complete("c-1")
    before = Predecessor(recipe="azimuthal", run_id=first.run_id, run_directory=site.directory(first).path)
    mirrored_once(site)
    site.planned("c-1", after=(before,))
    mirrored_once(site)
    earlier, later = (of_models.program_of(job["processingJobId"]) for job in of_models.jobs_of(collection))
    assert later["parentAutoProcProgramId"] == earlier["autoProcProgramId"]
    assert earlier["parentAutoProcProgramId"] is None
    assert earlier["jobUuid"].hex() == first.run_id.replace("-", "")
    site.store.close()


def test_what_does_not_fit_is_shortened_where_people_see_it_and_the_server_never_cuts(site: Site) -> None:
    collection = site.with_data_collection("c-1")
    tag = site.planned("c-1", requester="ж" * 250)
    site.ended(tag, RunState.FAILED, "µ ж \U0001d518" + "x" * 5000)
    mirrored_once(site)
    (job,) = site.ispyb.jobs_of(collection)
    assert job["comments"].endswith("… (whole: plan.json)")
    assert len(job["comments"]) == 255
    program = site.ispyb.program_of(job["processingJobId"])
    assert len(program["processingMessage"]) == 255
    assert program["processingMessage"].endswith("… (whole: its messages)")
    (message,) = site.ispyb.rows(
        "SELECT * FROM AutoProcProgramMessage WHERE autoProcProgramId = :id", id=program["autoProcProgramId"]
    )
    assert len(message["message"]) == 200
    assert message["message"].endswith("… (whole: description)")
    assert message["description"].endswith("x" * 5000)


# ------------------------------------------------------------------------------------------------ data collections


def test_the_data_collection_of_the_message_comes_before_that_of_the_path(site: Site) -> None:
    site.with_data_collection("c-1")
    named = site.ispyb.data_collection(Path("/elsewhere"), "other.h5")
    tag = site.planned("c-1")
    plan = site.store.run(tag.run_id).plan
    start = replace(plan.collection, metadata={"ispyb_dcid": str(named)})
    run = replace(plan, run_id="11111111-1111-4111-8111-111111111111", collection=start)
    site.store.record_runs(None, [run], note="")
    mirrored_once(site)
    (job,) = site.ispyb.jobs_of(named)
    assert site.ispyb.parameters_of(job["processingJobId"])["orchestrator_run"] == run.run_id


def test_a_run_without_its_data_collection_waits_tells_why_and_is_there_when_that_comes(site: Site) -> None:
    tag = site.planned("late")
    other = site.planned("c-2")
    collection = site.with_data_collection("c-2")
    mirrored_once(site)
    assert len(site.ispyb.jobs_of(collection)) == 1  # nobody waits for another one's data collection
    waiting = site.mirrored(tag)
    assert f"imageDirectory {site.folder}/ and fileTemplate late.h5" in waiting.obstacle
    assert waiting.due_at is not None
    assert timedelta(0) < waiting.due_at - utc_now() <= timedelta(seconds=10)
    assert site.mirrored(other).obstacle == ""
    for _ in range(5):  # asked again, it says the same: that is no news
        site.store.mirror_again([tag.run_id], utc_now())
        mirrored_once(site)
    events = [event for event in site.store.run(tag.run_id).events if event.kind == "ispyb"]
    assert len(events) == 1
    late = site.ispyb.data_collection(site.folder, "late.h5")
    site.store.mirror_again([tag.run_id], utc_now())
    mirrored_once(site)
    assert len(site.ispyb.jobs_of(late)) == 1
    assert site.mirrored(tag).obstacle == ""


def test_a_data_collection_that_never_comes_is_given_up(site: Site) -> None:
    tag = site.planned("never")
    mirrored_once(site)
    with site.store.writing() as session:
        session.execute(
            text("UPDATE ispyb_runs SET due_at = '2000-01-01', waiting_since = '2000-01-01 00:00:00.000000'")
        )
    mirrored_once(site)
    assert site.mirrored(tag).due_at is None
    assert site.mirrored(tag).obstacle.startswith("given up after 72 h: ISPyB has no data collection")
    assert site.store.ispyb_counts() == {"active": 0, "waiting": 0, "given_up": 1}


# ------------------------------------------------------------------------------------------------------- obstacles


def test_mirroring_again_changes_nothing(site: Site) -> None:
    collection = site.with_data_collection("c-1")
    tag = site.complete("c-1")
    mirrored_once(site)
    before = site.ispyb.content_of(collection)
    site.store.mirror_again([tag.run_id], utc_now())
    mirrored_once(site)
    assert site.ispyb.content_of(collection) == before


def test_a_run_that_came_back_after_a_lost_database_stands_there_once(site: Site) -> None:
    collection = site.with_data_collection("c-1")
    site.complete("c-1")
    mirrored_once(site)
    before = site.ispyb.content_of(collection)
    with site.store.writing() as session:  # an import doesn't know what was mirrored
        session.execute(text("DELETE FROM ispyb_runs"))
    mirrored_once(site)
    assert site.ispyb.content_of(collection) == before


def test_a_service_that_dies_between_the_two_commits_makes_no_second_job(site: Site) -> None:
    collection = site.with_data_collection("c-1")
    tag = site.complete("c-1")
    table = {"url": site.ispyb.url, "schema_versions": ["*"], "time_zone": "Asia/Tokyo"}
    program = (
        "from pathlib import Path\n"
        "from orchestrator.ispyb import Mirror; from orchestrator.provenance import Store\n"
        "from orchestrator.settings import load_settings\n"
        f"settings = load_settings(Path({str(site.file)!r}), {{'ispyb': {table!r}}})\n"
        "Mirror(Store.open(settings.database), settings).step()\n"
    )
    # The third writing transaction is the one that keeps what stands in ISPyB.
    environment = os.environ | {crashpoints.VARIABLE: f"{crashpoints.CrashPoint.BEFORE_COMMIT}:3"}
    died = subprocess.run([sys.executable, "-c", program], env=environment, check=False)
    assert died.returncode == -signal.SIGKILL
    assert len(site.ispyb.jobs_of(collection)) == 1
    assert site.mirrored(tag).ids.processing_job is None
    before = site.ispyb.content_of(collection)
    mirrored_once(site)
    assert site.ispyb.content_of(collection) == before
    assert site.mirrored(tag).ids.processing_job == site.ispyb.jobs_of(collection)[0]["processingJobId"]


def test_two_mirrors_at_once_make_one_job(site: Site) -> None:
    collection = site.with_data_collection("c-1")
    site.complete("c-1")
    site.store.enter_for_ispyb(utc_now())
    mirrors = [site.mirror() for _ in range(2)]
    threads = [threading.Thread(target=mirror.step) for mirror in mirrors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mirror in mirrors:
        mirror.close()
    assert len(site.ispyb.jobs_of(collection)) == 1
    assert len(site.ispyb.content_of(collection)) == 1


def test_of_two_services_on_one_database_one_mirrors(of_site: Ispyb, server: tuple[str, Path], tmp_path: Path) -> None:
    admin = _new_database(server[0], "ours")
    url = admin.url.set(drivername="mariadb").render_as_string(hide_password=False)
    site = Site(tmp_path)
    site.ispyb = of_site
    site.store.close()
    with Store.open(url, create=True) as store, Store.open(url) as other:
        site.store = store
        collection = site.with_data_collection("c-1")
        with closing(site.mirror()) as mirror, closing(Mirror(other, site.settings())) as idle:
            mirror.step()
            site.complete("c-1")
            idle.step()
            assert of_site.jobs_of(collection) == []
            mirror.step()
            assert len(of_site.jobs_of(collection)) == 1
            store.resign()
            site.planned("c-1", recipe="other")
            idle.step()
            assert len(of_site.jobs_of(collection)) == 2


def test_an_ispyb_that_does_not_answer_is_left_after_its_time_and_written_later(site: Site) -> None:
    collection = site.with_data_collection("c-1")
    tag = site.complete("c-1")
    with closing(site.mirror(timeout_s=1)) as mirror, site.ispyb.admin.connect() as other:
        mirror.checked_schema()
        other.execute(text("LOCK TABLES AutoProcProgram WRITE"))
        began = time.monotonic()
        with pytest.raises(OrchestratorError, match="Lock wait timeout"):
            mirror.step()
        assert time.monotonic() - began < 10
        other.execute(text("UNLOCK TABLES"))
        site.store.mirror_again([tag.run_id], utc_now())
        mirror.step()
    assert len(site.ispyb.jobs_of(collection)) == 1


def test_another_schema_version_is_named_with_the_remedy_and_nothing_is_written(site: Site) -> None:
    collection = site.with_data_collection("c-1")
    site.complete("c-1")
    with pytest.raises(
        InvalidSettings, match=r"has schema [45][\d.]+, the site file wants 9\.\*: nothing is mir"
    ) as said:
        mirrored_once(site, schema_versions=["9.*"])
    assert "ispyb.schema_versions" in said.value.remedy
    assert site.ispyb.jobs_of(collection) == []
    mirrored_once(site)
    assert len(site.ispyb.jobs_of(collection)) == 1


def test_rights_that_are_missing_are_named_and_nothing_is_lost(of_site: Ispyb, tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.ispyb = of_site
    collection = site.with_data_collection("c-1")
    site.complete("c-1")
    account = "'reader'@'127.0.0.1'"
    of_site.do(f"CREATE USER {account} IDENTIFIED BY 'x'", f"GRANT SELECT ON own.* TO {account}")
    reader = of_site.url.replace(f"{ACCOUNT}:a%2Fb%40c%3Ad", "reader:x")
    with pytest.raises(IspybUnavailable, match=r"ProcessingJob: INSERT \(dataCollectionId, .*AutoProcProgram: INSERT"):
        mirrored_once(site, url=reader)
    of_site.do("SET GLOBAL read_only = 1")
    try:
        with pytest.raises(IspybUnavailable, match="read-only"):
            mirrored_once(site)
    finally:
        of_site.do("SET GLOBAL read_only = 0")
    mirrored_once(site)
    assert len(of_site.jobs_of(collection)) == 1
    site.store.close()


# -------------------------------------------------------------------------------------------------------- requests


def test_a_request_made_in_ispyb_becomes_one_run_that_hangs_on_it(site: Site) -> None:
    collection = site.with_data_collection("c-1")
    original = site.complete("c-1")
    mirrored_once(site)
    job = site.ispyb.asks(collection, "orch-azimuthal", (1, 200), bins="50", mask="none")
    foreign = site.ispyb.asks(collection, "autoprocessing-xia2", (1, 200))
    mirrored_once(site)
    mirrored_once(site)
    assert site.ispyb.rows("SELECT * FROM AutoProcProgram WHERE processingJobId = :id", id=foreign) == []
    (run_id,) = {run.run_id for run in site.store.runs()} - {original.run_id}
    run = site.store.run(run_id)
    assert {one.name: (one.value, one.origin) for one in run.parameters} == {
        "bins": (50, "user"),
        "mask": ("none", "user"),
    }
    assert (run.summary.requester, run.plan.because) == (f"ISPyB ProcessingJob {job}", "with fewer bins")
    assert run.plan.collection == site.store.run(original.run_id).plan.collection
    assert run.summary.run_directory != site.store.run(original.run_id).summary.run_directory
    program = site.ispyb.program_of(job)
    assert (program["processingStatus"], program["processingMessage"]) == (None, "planned")
    site.ended(RunTag(run_id=run_id, attempt=0), RunState.COMPLETE, "all")
    mirrored_once(site)
    assert site.ispyb.program_of(job)["processingStatus"] == 1
    assert site.ispyb.parameters_of(job) == {"bins": "50", "mask": "none", "orchestrator_run": run_id}
    assert site.ispyb.sweeps_of(job) == [(collection, 1, 200)]
    (row,) = [row for row in site.ispyb.jobs_of(collection) if row["processingJobId"] == job]
    assert (row["displayName"], row["comments"]) == ("again", "with fewer bins")


def test_a_collection_that_had_no_run_is_taken_as_ispyb_knows_it(site: Site) -> None:
    collection = site.with_data_collection("c-9")
    job = site.ispyb.asks(collection, "orch-azimuthal")
    mirrored_once(site)
    (run,) = site.store.runs()
    assert (run.file, run.beamline, run.collection_uid) == (site.folder / "c-9.h5", "i22", f"ispyb-{collection}")
    assert site.ispyb.program_of(job)["processingStatus"] is None


@pytest.mark.parametrize(
    ("recipe", "sweeps", "parameters", "reason"),
    [
        ("orch-nosuch", [], {}, "recipe 'nosuch' can't be asked for here (ask for azimuthal)"),
        ("orch-azimuthal", [(1, 50)], {}, "it wants images 1 to 50 of 200"),
        ("orch-azimuthal", [], {"mask": "/etc/passwd"}, "parameter mask: /etc/passwd: outside the allowed roots"),
        ("orch-azimuthal", [], {"binz": "5"}, "kernel azimuthal: binz: unknown, did you mean bins?"),
        ("orch-azimuthal", [], {"mask": '["/etc/x"]'}, "parameter mask: /etc/x: outside the allowed roots"),
    ],
)
def test_a_request_that_cannot_be_run_is_refused_where_it_was_made(
    site: Site, recipe: str, sweeps: list[tuple[int, int]], parameters: Mapping[str, str], reason: str
) -> None:
    collection = site.with_data_collection("c-1")
    job = site.ispyb.asks(collection, recipe, *sweeps, **parameters)
    mirrored_once(site)
    mirrored_once(site)
    program = site.ispyb.program_of(job)
    assert program["processingStatus"] == 0
    assert reason in program["processingMessage"]
    ((severity, message),) = site.ispyb.messages_of(program["autoProcProgramId"])
    assert severity == "ERROR"
    assert message.startswith("refused: ")
    assert site.store.runs() == []


def test_a_request_is_left_alone_until_its_parameters_can_be_there(site: Site) -> None:
    collection = site.with_data_collection("c-1")
    job = site.ispyb.asks(collection, "orch-azimuthal")
    site.ispyb.do("UPDATE ProcessingJob SET recordTimestamp = NOW() WHERE processingJobId = :id", id=job)
    mirrored_once(site)
    assert site.store.runs() == []
    site.ispyb.do(
        "UPDATE ProcessingJob SET recordTimestamp = NOW() - INTERVAL 2 DAY WHERE processingJobId = :id", id=job
    )
    mirrored_once(site)
    assert site.store.runs() == []


# -------------------------------------------------------------------------------------------------- down for a while


def test_runs_made_while_mariadb_is_down_stand_there_afterwards_as_if_it_had_not_been(
    tmp_path: Path, of_site: Ispyb
) -> None:
    (tmp_path / "site").mkdir()
    site = Site(tmp_path / "site")
    site.ispyb = of_site
    own = tmp_path / "server"
    with private_mariadb(own) as url:
        admin = _new_database(url, "own")
        lost = Ispyb(
            admin=admin, url=admin.url.set(drivername="mariadb").render_as_string(hide_password=False), directory=own
        )
        lost.do(*[one for one in OWN_SCHEMA.split(";") if one.strip()])
        lost.do("INSERT INTO AdminVar (name, value) VALUES ('schemaVersion', '4.11.0')")
        collections = {
            uid: (site.with_data_collection(uid), lost.data_collection(site.folder, f"{uid}.h5")) for uid in _UIDS
        }
        settings = site.settings(url=lost.url)
        with serving(site, settings):
            for uid in _UIDS[:5]:
                site.complete(uid)
            eventually(lambda: len(lost.rows("SELECT 1 FROM AutoProcProgram")) == 5)
            command = _killed(own)
            began = time.monotonic()
            for uid in _UIDS[5:]:
                site.complete(uid)
            assert time.monotonic() - began < 10  # nothing waits for it
            time.sleep(10)
            again = processes.launch(command, log=own / "again.log", directory=own)
            try:
                assert processes.wait_until(lambda: accepts_connections(url), timeout_s=60)
                eventually(lambda: len(lost.rows("SELECT 1 FROM AutoProcProgram")) == len(_UIDS), within_s=60)
                site.store.mirror_again([run.run_id for run in site.store.runs(limit=100)], utc_now())
                eventually(lambda: not any(site.store.ispyb_counts().values()))
                after = {uid: lost.content_of(there) for uid, (_, there) in collections.items()}
            finally:
                processes.end([again])
        mirrored_again(site)
        without = {uid: of_site.content_of(here) for uid, (here, _) in collections.items()}
        assert after == without
    site.store.close()


_UIDS = [f"c-{number}" for number in range(20)]


def mirrored_again(site: Site) -> None:
    """Mirror all runs to the site's other ISPyB, which was never down."""
    with site.store.writing() as session:
        session.execute(text("DELETE FROM ispyb_runs"))
    mirrored_once(site)


def _killed(directory: Path) -> list[str]:
    named = os.fsencode(directory)
    (server,) = processes.processes_where(lambda folder: named in (folder / "cmdline").read_bytes())
    command = (processes.PROC / str(server.pid) / "cmdline").read_text().rstrip("\0").split("\0")
    processes.kill(server)
    return command


@contextmanager
def serving(site: Site, settings: Settings) -> Iterator[Service]:
    store = Store.open(settings.database)
    store.become_service()
    with Service(settings=settings, store=store, gateway=MemoryGateway(), doors=()) as service:
        yield service


def eventually(holds: Any, *, within_s: float = 30) -> None:
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end, f"not within {within_s} s"
        time.sleep(0.05)
