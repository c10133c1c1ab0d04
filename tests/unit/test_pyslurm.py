"""The pyslurm route without SLURM: what is submitted, and what is said where pyslurm is missing or doesn't fit."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from threading import Timer

import pytest

from orchestrator.errors import GatewayUnavailable, OutcomeUnknown, SubmitRefused
from orchestrator.records import BatchScript, JobIdentity, RunTag, Submission, SubmittedJob, utc_now
from orchestrator.slurm.gateway import LOOK_AHEAD_S
from orchestrator.slurm.pyslurm import PyslurmGateway
from orchestrator.slurm.pyslurm_job import describe, hosts
from orchestrator.slurm.pyslurm_process import Conversation, HelperProcess, NoAnswer

TAG = RunTag(run_id="7f", attempt=2)

# A package of that name that gives no more than its releases: the wrong one can't be had beside the right one.
OTHER_RELEASE = """
__version__ = "23.2.2"
def slurm_api_version(): return 23, 2, 7
class JobSubmitDescription: pass
class config:
    def get(self):
        return {"cluster_name": "c", "version": "22.05.8", "accounting_storage_type": "accounting_storage/none"}
"""


def submission(*lines: str, folder: Path = Path("/data")) -> Submission:
    text = "\n".join(["#!/bin/bash", *(f"#SBATCH {line}" for line in lines), "true", ""])
    return Submission(
        tag=TAG, script=BatchScript(text=text, template_name="t", template_text=""), working_directory=folder
    )


def gateway(package: Path | None = None, python: Path = Path(sys.executable)) -> PyslurmGateway:
    environment = {**os.environ, "PYTHONPATH": str(package)} if package else dict(os.environ)
    return PyslurmGateway(python=python, submit_timeout_s=20, query_timeout_s=20, environment=environment)


def package(folder: Path, text: str) -> Path:
    (folder / "pyslurm").mkdir()
    (folder / "pyslurm" / "__init__.py").write_text(text)
    return folder


# ---------------------------------------------------------------------------------------------- what doesn't fit here


def test_pyslurm_of_another_release_is_named_with_both_releases_and_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(GatewayUnavailable, match=r"pyslurm 23\.2\.2 of SLURM 23\.02 .* SLURM 22\.05\.8") as error:
        gateway(package(tmp_path, OTHER_RELEASE)).check()
    assert "script/build-pyslurm" in error.value.remedy


def test_missing_pyslurm_is_told_with_the_way_to_get_it(tmp_path: Path) -> None:
    text = "raise ModuleNotFoundError(\"No module named 'pyslurm'\", name='pyslurm')"
    with pytest.raises(GatewayUnavailable, match="No module named 'pyslurm'") as error:
        gateway(package(tmp_path, text)).check()
    assert "script/build-pyslurm" in error.value.remedy


def test_pyslurm_whose_library_is_missing_says_which(tmp_path: Path) -> None:
    text = "raise ImportError('libslurm.so.38: cannot open shared object file: No such file or directory')"
    with pytest.raises(GatewayUnavailable, match=r"libslurm\.so\.38") as error:
        gateway(package(tmp_path, text)).check()
    assert "script/build-pyslurm" in error.value.remedy


def test_python_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(GatewayUnavailable, match="absent/python: No such file"):
        gateway(python=tmp_path / "absent" / "python").check()


def test_what_libslurm_says_while_it_is_loaded_arrives(tmp_path: Path) -> None:
    text = "import os; os.write(2, b'python: fatal: Could not establish a configuration source\\n'); os._exit(1)"
    with pytest.raises(GatewayUnavailable, match="Could not establish a configuration source") as error:
        gateway(package(tmp_path, text)).check()
    assert "SLURM_CONF" in error.value.remedy


def test_submission_whose_helper_never_started_had_no_effect(tmp_path: Path) -> None:
    with pytest.raises(GatewayUnavailable):
        gateway(package(tmp_path, "raise ImportError('x')")).submit(submission(folder=tmp_path))


def test_thousands_of_calls_are_all_answered_by_the_same_helper(tmp_path: Path) -> None:
    helper = HelperProcess(Path(sys.executable), {**os.environ, "PYTHONPATH": str(package(tmp_path, OTHER_RELEASE))})
    helper.call("config", timeout_s=20)
    process = helper._process
    for _ in range(5000):
        assert helper.call("config", timeout_s=20)["cluster_name"] == "c"
    assert helper._process is process
    helper.close()


def test_answer_to_a_call_that_was_broken_off_is_not_taken_for_the_next_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> bytes:
        raise KeyboardInterrupt

    helper = HelperProcess(Path(sys.executable), {**os.environ, "PYTHONPATH": str(package(tmp_path, OTHER_RELEASE))})
    helper.call("config", timeout_s=20)
    with monkeypatch.context() as patch:
        patch.setattr(Conversation, "_next", interrupted)
        with pytest.raises(KeyboardInterrupt):
            helper.call("no such call", timeout_s=20)
    assert helper.call("config", timeout_s=20)["cluster_name"] == "c"
    helper.close()


def test_helper_that_dies_before_it_has_read_a_request_leaves_the_outcome_open(tmp_path: Path) -> None:
    helper = HelperProcess(Path(sys.executable), {**os.environ, "PYTHONPATH": str(package(tmp_path, OTHER_RELEASE))})
    helper.call("config", timeout_s=20)
    process = helper._process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    Timer(0.5, process.kill).start()
    with pytest.raises(NoAnswer):
        helper.call("submit", timeout_s=20, script="x" * 1_000_000)
    helper.close()


SUBMITS = """
import os, time
class RPCError(Exception):
    def __init__(self, errno, msg): self.errno = errno; super().__init__(msg)
__version__ = "22.5.3"
def slurm_api_version(): return 22, 5, 8
class config:
    def get(self):
        return {"cluster_name": "c", "version": "22.05.8", "accounting_storage_type": ""}
class JobSubmitDescription:
    def __init__(self, **attributes): pass
    def submit(self):
        %s
"""


@pytest.mark.parametrize(
    ("happens", "error", "words"),
    [
        ("raise ValueError('Invalid Mail type')", SubmitRefused, "Invalid Mail type"),
        ("raise RPCError(2000, 'Invalid partition name specified')", SubmitRefused, "partition"),
        ("raise RPCError(2987, 'a text of a later release')", SubmitRefused, "later release"),
        ("raise RPCError(1800, 'Unable to contact slurm controller (connect failure)')", GatewayUnavailable, "contact"),
        ("raise RPCError(5004, 'Socket timed out on send/recv operation')", OutcomeUnknown, "timed out"),
        ("raise RPCError(1802, 'Unable to contact slurm controller (receive failure)')", OutcomeUnknown, "receive"),
        ("os._exit(1)", OutcomeUnknown, "ended in the middle"),
        ("raise KeyError('x')", OutcomeUnknown, "x"),
    ],
)
def test_failures_of_a_submission_are_told_apart(
    tmp_path: Path, happens: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        gateway(package(tmp_path, SUBMITS % happens)).submit(submission(folder=tmp_path))


def test_job_that_was_accepted_is_never_called_refused_whatever_goes_wrong_afterwards(tmp_path: Path) -> None:
    unreadable = "\nclass Job:\n    def load(job_id): raise ValueError('no text')\n"
    with pytest.raises(OutcomeUnknown, match=r"accepted job 7, .* no text"):
        gateway(package(tmp_path, SUBMITS % "return 7" + unreadable)).submit(submission(folder=tmp_path))


# ---------------------------------------------------------------------------------------------- one after another

ONE_AFTER_ANOTHER = """
    made = 0
    def __init__(self, **attributes): self.name = attributes["name"]
    def submit(self):
        JobSubmitDescription.made += 1
        with open(os.environ["MADE"], "a") as file: file.write(self.name + "\\n")
        %s
        return JobSubmitDescription.made
class Job:
    submit_time = 1700000000
    def load(job_id): return Job()
"""


def one_after_another(
    tmp_path: Path, number: int, happens: str = "pass", *, timeout_s: float = 20, text: str = ""
) -> tuple[list[object], list[str]]:
    """Submit so many; return the answers, jobs by their ids, and the numbers of those that pyslurm was asked for."""
    here, made = tmp_path / "package", tmp_path / "made"
    here.mkdir()
    lines = SUBMITS[: SUBMITS.index("    def __init__(self, **")] + ONE_AFTER_ANOTHER % happens
    environment = {**os.environ, "PYTHONPATH": str(package(here, lines)), "MADE": str(made)}
    route = PyslurmGateway(python=Path(sys.executable), submit_timeout_s=timeout_s, environment=environment)
    one = replace(
        submission(folder=tmp_path),
        script=BatchScript(text=f"#!/bin/bash\n{text}", template_name="t", template_text=""),
    )
    each = (replace(one, tag=RunTag(run_id=str(count), attempt=1)) for count in range(number))
    answers = [
        answer.identity.job_id if isinstance(answer, SubmittedJob) else answer for answer in route.submit_each(each)
    ]
    route.close()
    return answers, [line.removeprefix("run-").removesuffix(".1") for line in made.read_text().split()]


def test_each_is_made_once_and_in_order(tmp_path: Path) -> None:
    assert one_after_another(tmp_path, 30) == (list(range(1, 31)), [str(number) for number in range(30)])


def test_large_scripts_follow_each_other_too(tmp_path: Path) -> None:
    answers, made = one_after_another(tmp_path, 4, text=f"# {'x' * 1_000_000}\n")
    assert (answers, made) == ([1, 2, 3, 4], ["0", "1", "2", "3"])


@pytest.mark.parametrize(
    ("happens", "error"),
    [
        ("raise RPCError(2000, 'Invalid partition name specified')", SubmitRefused),
        ("raise RPCError(5004, 'Socket timed out on send/recv operation')", OutcomeUnknown),
        ("os._exit(1)", OutcomeUnknown),
        ("time.sleep(60)", OutcomeUnknown),
    ],
)
def test_what_was_sent_ahead_of_one_that_failed_is_not_made(
    tmp_path: Path, happens: str, error: type[Exception]
) -> None:
    answers, made = one_after_another(tmp_path, 5, f"if self.made == 2: {happens}", timeout_s=3)
    assert (answers[0], type(answers[1]), answers[2:]) == (1, error, [None])
    assert made == ["0", "1"]


def test_what_waited_for_long_is_not_made(tmp_path: Path) -> None:
    answers, made = one_after_another(tmp_path, 5, f"if self.made == 2: time.sleep({LOOK_AHEAD_S} + 0.5)")
    assert answers[:2] == [1, 2]
    assert set(answers[2:]) == {None}
    assert made == ["0", "1"]


def test_answers_that_came_before_the_helper_was_ended_count_and_the_call_after_them_is_open(tmp_path: Path) -> None:
    helper = HelperProcess(Path(sys.executable), {**os.environ, "PYTHONPATH": str(package(tmp_path, OTHER_RELEASE))})
    with helper.conversation(timeout_s=20) as conversation:
        conversation.send("config")
        conversation.send("config")
        time.sleep(1)  # both answers are in the pipe
        said = [conversation._break_off("the time is over"), *(conversation._next() for _ in range(3))]
    assert [item["answer"]["cluster_name"] for item in said[:2] if isinstance(item, dict)] == ["c", "c"]
    assert isinstance(said[2], NoAnswer)
    assert said[3] == {"answer": None}
    assert helper.call("config", timeout_s=20)["cluster_name"] == "c"
    helper.close()


# -------------------------------------------------------------------------------------------------- what is submitted


def attributes(*lines: str) -> dict[str, object]:
    return dict(describe(submission(*lines), {}).attributes)


def test_tag_and_folder_win_over_the_script_and_a_relative_folder_counts_from_the_submitters() -> None:
    said = attributes("--job-name=other --comment=other --chdir=below")
    assert (said["name"], said["comment"]) == (TAG.job_name, TAG.comment)
    assert said["working_directory"] == "/data/below"


@pytest.mark.parametrize(
    ("line", "processors"),
    [("", 1), ("-n 8", 8), ("-n 8 -c 4", 32), ("-N 2", 2), ("-N 2 --ntasks-per-node=16", 32), ("-w n[1-3]", 3)],
)
def test_processors_are_those_that_sbatch_asks_for(line: str, processors: int) -> None:
    assert attributes(line)["min_cpus_per_node"] == processors


def test_more_processors_than_pyslurm_can_count_are_refused() -> None:
    with pytest.raises(SubmitRefused, match="70000 processors"):
        attributes("-n 70000")


@pytest.mark.parametrize(
    ("text", "number"), [("", 0), ("n1", 1), ("n[1-4,7],m2", 6), ("r[1-2]n[01-10]", 20), ("n[1,3],n[5-6]", 4)]
)
def test_nodes_of_a_list_are_counted(text: str, number: int) -> None:
    assert hosts(text) == number


@pytest.mark.parametrize(
    ("line", "attribute", "value"),
    [
        ("--mem=4G", "memory_per_node", 4096),
        ("--mem=1500K", "memory_per_node", 2),
        ("--mem-per-cpu=100", "memory_per_cpu", 100),
        ("--time=1-12", "time_limit", 36 * 60),
        ("--time=0:30", "time_limit", 1),
        ("--time=0", "time_limit", "UNLIMITED"),
        ("--gres=gpu:a100,shm:2", "gres_per_node", "gpu:a100:1,shm:2"),
        ("--gpus=2", "gpus", 2),
        ("--gpus-per-node=a100:2", "gres_per_node", "gpu:a100:2"),
        ("--exclusive", "resource_sharing", "no"),
        ("--nice", "nice", 100),
        ("-a 0-7%2", "array", "0-7%2"),
        ("--signal=B:TERM@30", "signal",
         {"signal": 15, "time": 30, "batch_only": True, "allow_reservation_overlap": False}),
    ],
)  # fmt: skip
def test_value_becomes_what_pyslurm_takes(line: str, attribute: str, value: object) -> None:
    assert attributes(line)[attribute] == value


def test_jobs_it_comes_after_must_succeed() -> None:
    before = JobIdentity(cluster="c", job_id=7, submitted_at=utc_now())
    said = describe(replace(submission(), after=(before, replace(before, job_id=8))), {}).attributes
    assert said["dependencies"] == "afterok:7:8"
    assert said["kill_on_invalid_dependency"] is True


@pytest.mark.parametrize("line", ["--mem=0", "--mem=4X", "--nodes=4-2", "--nodes=0", "--ntasks=-1", "--open-mode=x",
                                  "--signal=NONE", "--time=soon", "--hint=multithread", "-n1 -w n[1-2]"])  # fmt: skip
def test_refusal_names_the_line(line: str) -> None:
    with pytest.raises(SubmitRefused, match=r"line 2: #SBATCH ") as refusal:
        attributes(line)
    assert refusal.value.remedy
