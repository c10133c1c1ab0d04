"""A long queue asked for whole now and then, and for what has begun in between: nothing that changed is lost."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest

from orchestrator.errors import GatewayUnavailable
from orchestrator.records import JobIdentity, JobReport, JobState
from orchestrator.slurm.cli import CliGateway
from orchestrator.slurm.parsing import SEPARATOR
from orchestrator.slurm.queue_view import BEGUN, QueueView

SUBMITTED_S = 1_795_392_585


def record(job: str, state: str = "PENDING", *, reason: str = "Priority", submitted_s: int = SUBMITTED_S) -> str:
    begun = state != "PENDING"
    start, end, node = (str(submitted_s + 1), str(submitted_s + 9), "n1") if begun else ("N/A", "N/A", "")
    fields = (job, state, "None" if begun else reason, str(submitted_s), start, end, "0", "0", node, f"job-{job}", "")
    return "".join(f"{field}{SEPARATOR}" for field in fields)


def queue(*records: str) -> str:
    return "".join(f"{each}\n" for each in records)


def identity(job_id: int) -> JobIdentity:
    return JobIdentity(cluster="c", job_id=job_id, submitted_at=datetime.fromtimestamp(SUBMITTED_S, UTC))


A, B, C = JOBS = tuple(map(identity, (1, 2, 3)))


def view_of(*records: str, before: QueueView | None = None) -> QueueView:
    return QueueView.of_whole(queue(*records), JOBS, cluster="c", at_s=0, before=before)


def states(view: QueueView | None) -> Mapping[int, JobState]:
    assert view is not None
    return {job.job_id: report.state for job, report in view.told_of(JOBS).items()}


def test_jobs_that_have_begun_are_told_and_those_that_wait_stay_as_they_were() -> None:
    whole = view_of(record("1"), record("2"), record("3"))
    later = whole.moved(queue(record("2", "RUNNING"), record("3", "FAILED")))
    assert states(later) == {1: JobState.PENDING, 2: JobState.RUNNING, 3: JobState.FAILED}
    assert later is not None
    assert later.told_of([A])[A] is whole.told_of([A])[A]
    assert states(whole) == dict.fromkeys((1, 2, 3), JobState.PENDING)


def test_an_answer_without_news_changes_nothing() -> None:
    whole = view_of(record("1"), record("2", "RUNNING"))
    assert whole.moved(queue(record("2", "RUNNING"))) is whole
    assert view_of(record("1")).moved("") is not None


def test_a_job_that_is_again_as_it_was_before_is_told() -> None:
    suspended = view_of(record("1", "RUNNING")).moved(queue(record("1", "SUSPENDED")))
    assert states(suspended) == {1: JobState.SUSPENDED}
    assert suspended is not None
    assert states(suspended.moved(queue(record("1", "RUNNING")))) == {1: JobState.RUNNING}


def test_only_the_whole_queue_tells_of_a_job_that_waits_again_or_was_purged() -> None:
    running = view_of(record("1"), record("2", "RUNNING"))
    assert running.moved("") is None
    began = view_of(record("1"), record("2")).moved(queue(record("2", "COMPLETED")))
    assert began is not None
    assert began.moved("") is None
    assert states(view_of(record("1"), before=began)) == {1: JobState.PENDING}


def test_only_the_whole_queue_tells_of_the_tasks_of_an_array_that_still_wait() -> None:
    whole = view_of(record("1_[0-3]"), record("2"))
    assert whole.moved(queue(record("1_0", "COMPLETED"))) is None
    assert whole.moved(queue(record("7_0", "COMPLETED"))) is not None, "an array of which nobody asked"


def test_another_job_under_the_same_id_is_not_taken_for_ours() -> None:
    later = view_of(record("1"), record("2")).moved(queue(record("2", "COMPLETED", submitted_s=SUBMITTED_S + 999)))
    assert states(later) == {1: JobState.PENDING}


def test_what_a_purge_left_of_a_job_that_waited_is_gone_with_the_next_whole_answer() -> None:
    before = view_of(record("1"), record("2"))
    assert states(before.moved("")) == dict.fromkeys((1, 2), JobState.PENDING)
    assert states(view_of(record("2"), before=before)) == {2: JobState.PENDING}


# ------------------------------------------------------------------------------------------------- what is asked

SQUEUE = """#!/bin/sh
echo "$*" >> asked
[ ! -e down ] || { echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1; }
case "$*" in
    *--jobs=*) cat named 2> /dev/null || { echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1; };;
    *--states=all*) cat whole;;
    *) cat begun;;
esac
"""


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CliGateway:
    """Return a gateway whose squeue prints the files *whole* or *begun*, and fails while there is a file *down*.

    Of jobs that are named by their ids it knows those in *named*.
    """
    monkeypatch.chdir(tmp_path)
    for name, text in {"squeue": SQUEUE, "scontrol": "#!/bin/sh\necho 'ClusterName = c'\n"}.items():
        Path(name).write_text(text)
        Path(name).chmod(0o755)
    Path("whole").write_text(queue(record("1"), record("2"), record("3")))
    Path("begun").write_text("")
    return CliGateway(programs=tmp_path, long_queue=3)


def asked() -> list[str]:
    """Say what squeue was asked for, since the last time."""
    lines = Path("asked").read_text().splitlines()
    Path("asked").write_text("")
    return ["named" if "--jobs=" in line else "begun" if f"--states={BEGUN}" in line else "whole" for line in lines]


def told(gateway: CliGateway, jobs: tuple[JobIdentity, ...] = JOBS) -> Mapping[int, JobReport]:
    return {job.job_id: report for job, report in gateway.poll(jobs).items()}


def test_a_long_queue_is_asked_for_whole_once_and_then_for_what_has_begun(gateway: CliGateway) -> None:
    first = told(gateway)
    Path("begun").write_text(queue(record("2", "RUNNING")))
    later = told(gateway)
    assert asked() == ["whole", "begun"]
    assert later[2].state is JobState.RUNNING
    assert later[1] is first[1]


def test_a_short_queue_is_asked_for_whole_each_time(gateway: CliGateway) -> None:
    Path("whole").write_text(queue(record("1"), record("2")))
    told(gateway, (A, B))
    told(gateway, (A, B))
    assert asked() == ["whole", "whole"]


def test_jobs_that_are_not_this_users_are_asked_for_by_their_ids(gateway: CliGateway) -> None:
    Path("whole").write_text(queue(record("1")))
    Path("named").write_text(queue(record("2", "RUNNING"), record("3", submitted_s=SUBMITTED_S - 9)))
    later = told(gateway)
    assert {job: report.state for job, report in later.items()} == {1: JobState.PENDING, 2: JobState.RUNNING}
    assert asked() == ["whole", "named"]
    Path("named").unlink()
    assert set(told(gateway)) == {1}


def test_a_change_that_happens_while_an_answer_is_lost_is_in_the_next_one(gateway: CliGateway) -> None:
    told(gateway)
    Path("begun").write_text(queue(record("2", "RUNNING")))
    told(gateway)
    Path("down").touch()
    with pytest.raises(GatewayUnavailable):
        told(gateway)
    Path("down").unlink()
    Path("whole").write_text(queue(record("1", reason="Resources"), record("2")))  # requeued; the third is forgotten
    Path("begun").write_text("")
    later = told(gateway)
    assert asked() == ["whole", "begun", "begun", "whole", "named"]
    assert {job: report.state for job, report in later.items()} == dict.fromkeys((1, 2), JobState.PENDING)
    assert later[1].reason == "Resources"


def test_a_job_that_was_not_asked_about_before_is_looked_for_in_the_whole_queue(gateway: CliGateway) -> None:
    told(gateway, (A, B))
    assert set(told(gateway, (A, B, C))) == {1, 2, 3}
    assert set(told(gateway, (A, C))) == {1, 3}
    assert asked() == ["whole", "whole", "begun"]


def test_a_job_that_is_requeued_is_told_by_the_same_call(gateway: CliGateway) -> None:
    Path("whole").write_text(queue(record("1"), record("2"), record("3", "RUNNING")))
    Path("begun").write_text(queue(record("3", "RUNNING")))
    told(gateway)
    told(gateway)
    Path("whole").write_text(queue(record("1"), record("2"), record("3")))
    Path("begun").write_text("")
    assert told(gateway)[3].state is JobState.PENDING
    assert asked() == ["whole", "begun", "begun", "whole"]


def test_the_whole_queue_is_asked_for_again_when_the_last_answer_is_old(
    gateway: CliGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(gateway)
    monkeypatch.setattr("orchestrator.slurm.cli.WAITING_AGE_S", 0.0)
    Path("whole").write_text(queue(record("1"), record("2", reason="PartitionDown"), record("3")))
    assert told(gateway)[2].reason == "PartitionDown"
    assert asked() == ["whole", "whole"]
