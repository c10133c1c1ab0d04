"""The fence and the in-job records: one job per attempt, whatever was submitted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import pytest

from orchestrator.contents import content_digest
from orchestrator.evidence import read_events
from orchestrator.injob import (
    EXIT_CANNOT_WRITE,
    EXIT_TAKEN,
    HDF5_SIGNATURE,
    Claim,
    JobHere,
    claim,
    file_sha256,
    recorded_environment,
)
from orchestrator.runs import RunDirectory

RUN_ID = "5f0c2f3e-0000-5000-8000-000000000000"


def run_injob(run: RunDirectory, command: str, *extra: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], **variables}
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "orchestrator.injob",
            command,
            "--run-directory",
            str(run.path),
            "--attempt",
            "1",
            *extra,
        ],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path)
    directory.script.write_text("#!/bin/bash\n")
    return directory


def events(run: RunDirectory) -> list[dict[str, object]]:
    return [json.loads(line) for line in run.attempt(1).events.read_text().splitlines()]


def test_of_many_jobs_at_once_exactly_one_gets_the_attempt(run: RunDirectory) -> None:
    attempt = run.attempt(1)
    attempt.path.mkdir(parents=True)
    jobs = [JobHere(cluster="c", job_id=str(number), restarts=0) for number in range(64)]
    with ThreadPoolExecutor(32) as pool:
        claimed = list(pool.map(lambda job: claim(attempt, job), jobs))
    assert (claimed.count(Claim.NEW), claimed.count(Claim.TAKEN)) == (1, 63)
    assert json.loads(attempt.claim.read_text())["job_id"] == str(claimed.index(Claim.NEW))
    assert [path.name for path in attempt.path.iterdir()] == ["claim.json"]


def test_a_second_job_leaves_without_doing_anything_and_is_recorded(run: RunDirectory) -> None:
    assert run_injob(run, "begin", "--run-id", RUN_ID, SLURM_JOB_ID="7", SLURM_CLUSTER_NAME="c").returncode == 0
    second = run_injob(run, "begin", "--run-id", RUN_ID, SLURM_JOB_ID="8", SLURM_CLUSTER_NAME="c")
    assert second.returncode == EXIT_TAKEN
    assert "another job" in second.stderr
    assert [event["kind"] for event in events(run)] == ["begin", "duplicate"]


def test_a_requeued_job_gets_its_attempt_again(run: RunDirectory) -> None:
    run_injob(run, "begin", "--run-id", RUN_ID, SLURM_JOB_ID="7", SLURM_CLUSTER_NAME="c")
    again = run_injob(
        run, "begin", "--run-id", RUN_ID, SLURM_JOB_ID="7", SLURM_CLUSTER_NAME="c", SLURM_RESTART_COUNT="1"
    )
    assert again.returncode == 0
    assert [event["job"]["restarts"] for event in events(run)] == [0, 1]  # type: ignore[index]


def began(run: RunDirectory, *, restarts: int = 0) -> int:
    """Start job 7, and return the exit code of its fence."""
    count = {"SLURM_RESTART_COUNT": str(restarts)} if restarts else {}
    return run_injob(run, "begin", "--run-id", RUN_ID, SLURM_JOB_ID="7", SLURM_CLUSTER_NAME="c", **count).returncode


def ended(run: RunDirectory, code: int, *extra: str) -> None:
    run_injob(run, "end", "--exit-code", str(code), *extra, SLURM_JOB_ID="7", SLURM_CLUSTER_NAME="c")


def test_a_lost_jobs_id_is_no_key_to_its_attempt(run: RunDirectory) -> None:
    assert [began(run), began(run)] == [0, EXIT_TAKEN]
    assert [event["kind"] for event in events(run)] == ["begin", "duplicate"]
    assert [began(run, restarts=1), began(run, restarts=1)] == [0, EXIT_TAKEN]


def test_a_start_that_a_controller_makes_twice_ends_as_it_did_before(run: RunDirectory) -> None:
    assert began(run) == 0
    ended(run, 7)
    assert began(run) == 7
    assert [event["kind"] for event in events(run)] == ["begin", "end", "duplicate"]


@pytest.mark.parametrize(
    ("code", "extra", "again"),
    [(0, [], EXIT_TAKEN), (0, ["--interrupted"], 0), (4, ["--interrupted"], 0), (1, [], 0)],
)
def test_a_requeue_does_again_what_was_not_done(run: RunDirectory, code: int, extra: list[str], again: int) -> None:
    began(run)
    ended(run, code, *extra)
    assert began(run, restarts=1) == again


@pytest.mark.parametrize(
    ("progress", "again"),
    [
        ({"state": "finished", "ended_because": "collection ended"}, EXIT_TAKEN),
        ({"state": "finished", "ended_because": "terminated"}, 0),
        ({"state": "running", "ended_because": ""}, 0),
    ],
)
def test_an_exit_code_0_without_the_kernels_own_end_is_not_done(
    run: RunDirectory, progress: dict[str, str], again: int
) -> None:
    began(run)
    run.attempt(1).progress.write_text(json.dumps(progress))
    ended(run, 0)
    assert began(run, restarts=1) == again


def test_tasks_of_an_array_share_the_claim_of_the_whole_and_each_starts_once(run: RunDirectory) -> None:
    array = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_CLUSTER_NAME": "c"}
    codes = [
        run_injob(run, "begin", "--run-id", RUN_ID, "--task", task, SLURM_JOB_ID=job, **array).returncode
        for task, job in (("0", "8"), ("1", "7"), ("0", "9"))
    ]
    assert codes == [0, 0, EXIT_TAKEN]


def test_the_same_id_on_another_cluster_is_another_job(run: RunDirectory) -> None:
    run_injob(run, "begin", "--run-id", RUN_ID, SLURM_JOB_ID="7", SLURM_CLUSTER_NAME="c")
    other = run_injob(run, "begin", "--run-id", RUN_ID, SLURM_JOB_ID="7", SLURM_CLUSTER_NAME="d")
    assert other.returncode == EXIT_TAKEN


def test_the_end_record_carries_exit_code_and_the_results_digest(run: RunDirectory) -> None:
    run_injob(run, "begin", "--run-id", RUN_ID, SLURM_JOB_ID="7")
    run.result.write_bytes(b"result")
    assert run_injob(run, "end", "--exit-code", "4", SLURM_JOB_ID="7").returncode == 0
    end, outputs = events(run)[-2:]
    assert end["detail"] == {"exit_code": 4}
    run_injob(run, "end", "--exit-code", "4", "--interrupted", SLURM_JOB_ID="7")
    assert {"exit_code": 4, "interrupted": True} in [event["detail"] for event in events(run)]
    assert outputs["detail"] == {
        "outputs": [{"kind": "result", "path": str(run.result), "size": 6, "sha256": file_sha256(run.result)}],
    }


def test_an_hdf5_result_has_a_digest_of_its_content_and_others_have_none(run: RunDirectory) -> None:
    run_injob(run, "begin", "--run-id", RUN_ID, SLURM_JOB_ID="7")
    with h5py.File(run.result, "w") as file:
        file["x"] = 1
    run.report.write_text("text")
    run_injob(run, "end", "--exit-code", "0", SLURM_JOB_ID="7")
    result, report = events(run)[-1]["detail"]["outputs"]  # type: ignore[index]
    assert result["content_sha256"] == content_digest(run.result).sha256
    assert "content_sha256" not in report


def test_a_result_whose_content_cannot_be_read_keeps_its_other_digests(run: RunDirectory) -> None:
    run_injob(run, "begin", "--run-id", RUN_ID, SLURM_JOB_ID="7")
    run.result.write_bytes(HDF5_SIGNATURE + b"cut off")
    run.report.write_text("text")
    run_injob(run, "end", "--exit-code", "0", SLURM_JOB_ID="7")
    result, report = events(run)[-1]["detail"]["outputs"]  # type: ignore[index]
    assert result["sha256"] == file_sha256(run.result)
    assert result["content_sha256"] is None
    assert str(run.result) in result["content_unknown_because"]
    assert report["sha256"] == file_sha256(run.report)


def test_it_needs_nothing_but_the_standard_library_until_a_result_is_digested() -> None:
    program = "import sys, orchestrator.injob; print({'h5py', 'numpy', 'sqlalchemy'} & sys.modules.keys())"
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "set()\n"
    )


def test_secrets_of_the_environment_are_not_recorded(run: RunDirectory) -> None:
    assert recorded_environment({"PATH": "/bin", "SLURM_JWT": "x", "PASSWORD": "y", "OMP_NUM_THREADS": "1"}) == {
        "OMP_NUM_THREADS": "1",
        "PATH": "/bin",
    }
    run_injob(run, "begin", "--run-id", RUN_ID, SLURM_JOB_ID="7", SLURM_JWT="secret-token", AWS_SECRET_ACCESS_KEY="k")
    assert "secret-token" not in run.attempt(1).events.read_text()


def test_a_directory_that_cannot_be_written_is_said_and_not_taken_for_a_claim(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    outcome = run_injob(RunDirectory(blocker), "begin", "--run-id", RUN_ID)
    assert outcome.returncode == EXIT_CANNOT_WRITE
    assert outcome.stderr.startswith("error: the run's directory can't be used")


def test_the_end_is_recorded_before_a_large_result_is_read_and_even_if_it_cannot_be(run: RunDirectory) -> None:
    run_injob(run, "begin", "--run-id", RUN_ID, SLURM_JOB_ID="7")
    run.result.symlink_to("/proc/self/mem")  # a file that can't be read
    ended = run_injob(run, "end", "--exit-code", "0", SLURM_JOB_ID="7")
    assert "result.nxs" in ended.stderr
    assert [event["kind"] for event in events(run)] == ["begin", "end"]


def test_a_note_that_cannot_be_written_does_not_cost_the_job(run: RunDirectory) -> None:
    run.attempt(1).events.mkdir(parents=True)  # opening it for writing fails, like on a full disk
    first = run_injob(run, "begin", "--run-id", RUN_ID, SLURM_JOB_ID="7")
    assert first.returncode == 0
    assert "events.jsonl" in first.stderr
    assert run_injob(run, "begin", "--run-id", RUN_ID, SLURM_JOB_ID="8").returncode == EXIT_TAKEN


@pytest.mark.parametrize("content", ["", "{", "[]", '{"job_id": "7"}\0'])
def test_a_claim_that_cannot_be_read_is_said_and_nothing_runs(run: RunDirectory, content: str) -> None:
    run.attempt(1).path.mkdir(parents=True)
    run.attempt(1).claim.write_text(content)
    outcome = run_injob(run, "begin", "--run-id", RUN_ID, SLURM_JOB_ID="7")
    assert outcome.returncode == EXIT_CANNOT_WRITE
    assert "claim.json" in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_a_file_system_without_hard_links_is_named(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    run.attempt(1).path.mkdir(parents=True)

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted", "link")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(PermissionError, match="Operation not permitted"):
        claim(run.attempt(1), JobHere(cluster="c", job_id="7", restarts=0))
    assert list(run.attempt(1).path.iterdir()) == []


def test_a_claim_that_does_not_fit_on_the_disk_leaves_nothing(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.attempt(1).path.mkdir(parents=True)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        claim(run.attempt(1), JobHere(cluster="c", job_id="7", restarts=0))
    assert list(run.attempt(1).path.iterdir()) == []


def test_an_event_after_a_line_that_was_cut_off_begins_a_new_line(run: RunDirectory) -> None:
    run_injob(run, "begin", "--run-id", RUN_ID, SLURM_JOB_ID="7")
    with run.attempt(1).events.open("a") as stream:
        stream.write('{"kind": "du')
    run_injob(run, "end", "--exit-code", "0", SLURM_JOB_ID="7")
    assert [event.kind for event in read_events(run.attempt(1).events)] == ["begin", "unreadable", "end"]
