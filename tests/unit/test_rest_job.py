"""From a script's #SBATCH lines to slurmrestd's description of a job."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from orchestrator.errors import GatewayUnavailable, SubmitRefused
from orchestrator.records import BatchScript, JobIdentity, RunTag, Submission
from orchestrator.sbatch_options import OPTIONS
from orchestrator.slurm.rest_job import TERM_AFTER, job_request
from orchestrator.slurm.rest_versions import NEWEST, OLDEST, ApiVersion, negotiated
from orchestrator.slurm.script_options import SCRIPT_BYTES_MAX, read_options

TAG = RunTag(run_id="7c1", attempt=2)
TYPED = ApiVersion(40)
# One value for each option that a template may write.
VALUES = {
    "begin": "2026-01-31T16:00:00", "constraint": "avx512", "dependency": "afterok:5", "error": "/e", "export": "NONE",
    "gpus": "2", "gpus-per-node": "a100:2", "gpus-per-task": "1", "gres": "gpu:1,shard:2", "hint": "nomultithread",
    "mail-type": "END,FAIL", "mem": "4G", "mem-per-cpu": "100M", "open-mode": "truncate", "output": "/o",
    "signal": "R:TERM@60", "time": "1-02:00:30", "time-min": "00:10:00", "chdir": "/data", "array": "0-3",
}  # fmt: skip
FLAGS = {"exclusive", "requeue", "no-requeue"}


def described(*lines: str, version: ApiVersion = TYPED, **more: Any) -> dict[str, Any]:
    text = "\n".join(["#!/bin/bash", *(f"#SBATCH {line}" for line in lines), "date"])
    script = BatchScript(text=text, template_name="t", template_text="")
    submission = Submission(tag=TAG, script=script, working_directory=Path("/run"), **more)
    return cast("dict[str, Any]", job_request(submission, version, {"A": "b"}, own=True))


def number(value: int) -> dict[str, Any]:
    return {"set": True, "infinite": False, "number": value}


@pytest.mark.parametrize("version", [ApiVersion(n) for n in range(OLDEST.number, NEWEST.number + 1)], ids=str)
@pytest.mark.parametrize("option", sorted(OPTIONS))
def test_every_option_that_a_template_may_write_is_said_in_every_version(option: str, version: ApiVersion) -> None:
    line = f"--{option}" if option in FLAGS else f"--{option}={VALUES.get(option, '3')}"
    before, after = described(version=version)["job"], described(line, version=version)["job"]
    overruled = {"comment", "job-name"}  # by the tag
    assert option in overruled or before != after


def test_script_and_environment_stand_where_the_version_wants_them() -> None:
    old, typed, new = (described(version=ApiVersion(n)) for n in (38, 39, 40))
    assert old["script"] == typed["script"] == new["job"]["script"]
    assert "script" not in new
    assert old["job"]["environment"] == {"A": "b", "SLURM_SUBMIT_DIR": "/run"}
    assert typed["job"]["environment"] == new["job"]["environment"] == ["A=b", "SLURM_SUBMIT_DIR=/run"]


def test_values_have_their_types_from_0_0_39_on() -> None:
    job = described(
        "--time=1-00:00:30 --mem=4G", "--mem-per-cpu=1500K", "--nodelist=n[1,3]", "--exclusive=user", "--no-requeue",
        "--mail-type=ALL", "--signal=B:USR1@90", "--open-mode=append",
    )["job"]  # fmt: skip
    assert job["time_limit"] == number(1441)
    assert job["memory_per_node"] == number(4096)
    assert job["memory_per_cpu"] == number(2)
    assert job["required_nodes"] == ["n[1,3]"]
    assert job["shared"] == ["user"]
    assert job["requeue"] is False
    assert job["mail_type"] == ["BEGIN", "END", "FAIL", "REQUEUE", "INVALID_DEPENDENCY", "STAGE_OUT"]
    assert (job["kill_warning_signal"], job["kill_warning_delay"]) == ("USR1", number(90))
    assert job["kill_warning_flags"] == ["BATCH_JOB"]
    assert job["open_mode"] == ["APPEND"]


def test_unlimited_time_is_infinite() -> None:
    assert described("--time=UNLIMITED")["job"]["time_limit"]["infinite"] is True


def test_resources_of_several_options_are_one_list() -> None:
    assert described("--gpus-per-node=2", "--gres=shard:1")["job"]["tres_per_node"] == "gres/gpu:2,gres/shard:1"
    assert described("--gpus=a100:2", version=ApiVersion(39))["job"]["tres_per_job"] == "gres:gpu:a100:2"


def test_tasks_are_worked_out_from_nodes_as_sbatch_does() -> None:
    job = described("--nodes=2 --ntasks-per-node=4 -c 3")["job"]
    assert (job["tasks"], job["minimum_cpus"], job["nodes"]) == (8, 24, "2")
    assert described("--nodes=2 --ntasks-per-node=4", version=OLDEST)["job"]["tasks"] == 8


def test_tag_decides_over_the_scripts_name_and_comment() -> None:
    job = described("--job-name=mine --comment=mine")["job"]
    assert (job["name"], job["comment"]) == (TAG.job_name, TAG.comment)


def test_job_that_comes_after_others_waits_for_them_and_is_killed_when_they_failed() -> None:
    earlier = JobIdentity(cluster="c", job_id=5, submitted_at=datetime(2026, 1, 1, tzinfo=UTC))
    job = described("--dependency=singleton", after=(earlier,))["job"]
    assert (job["dependency"], job["flags"]) == ("afterok:5", ["KILL_INVALID_DEPENDENCY"])
    assert described(version=OLDEST, after=(earlier,))["job"]["kill_on_invalid_dependency"] is True


def environment_of(export: str, variables: dict[str, str], *, own: bool = True) -> dict[str, str]:
    text = f"#!/bin/bash\n#SBATCH --export={export}\n"
    script = BatchScript(text=text, template_name="t", template_text="")
    submission = Submission(tag=TAG, script=script, working_directory=Path("/run"))
    request = cast("dict[str, Any]", job_request(submission, OLDEST, variables, own=own))
    return dict(request["job"]["environment"])


def test_environment_is_what_sbatch_would_send() -> None:
    here = {"A": "1", "B": "2", "SLURM_JWT": "secret", "SLURM_CONF": "/c", "SBATCH_QOS": "q", "PATH": "/bin"}
    login = {"SLURM_SUBMIT_DIR": "/run", "SLURM_GET_USER_ENV": "1"}
    assert environment_of("NONE", here) == login | {"SLURM_EXPORT_ENV": "NONE"}
    assert environment_of("NIL", here) == {"SLURM_SUBMIT_DIR": "/run", "SLURM_EXPORT_ENV": "NIL"}
    assert environment_of("ALL", here) == {"A": "1", "B": "2", "PATH": "/bin", "SLURM_SUBMIT_DIR": "/run"}
    assert environment_of("A,C=3", here) == login | {"A": "1", "C": "3", "SLURM_EXPORT_ENV": "A,C=3"}


def test_somebody_elses_job_starts_from_that_users_login_environment() -> None:
    assert environment_of("ALL", {"A": "1"}, own=False) == {"SLURM_SUBMIT_DIR": "/run", "SLURM_GET_USER_ENV": "1"}


def with_signal(*lines: str, body: str = f"echo ${TERM_AFTER}") -> dict[str, Any]:
    text = "\n".join(["#!/bin/bash", *(f"#SBATCH {line}" for line in lines), body])
    script = BatchScript(text=text, template_name="t", template_text="")
    submission = Submission(tag=TAG, script=script, working_directory=Path("/run"))
    request = cast("dict[str, Any]", job_request(submission, OLDEST, {}, own=True))
    return cast("dict[str, Any]", request["job"])


def test_script_tells_itself_where_slurmrestd_cannot_have_it_signalled() -> None:
    job = with_signal("--time=60", "--signal=B:TERM@90")
    assert "signal" not in job
    assert job["environment"][TERM_AFTER] == str(3600 - 90)
    assert with_signal("--time=60", "--signal=B:TERM")["environment"][TERM_AFTER] == str(3600 - 60)
    of_the_steps = with_signal("--time=60", "--signal=USR1@90")
    assert of_the_steps["signal"] == "USR1@90"
    assert TERM_AFTER not in of_the_steps["environment"]
    assert TERM_AFTER not in str(described("--time=60", "--signal=B:TERM@90")["job"]["environment"])


@pytest.mark.parametrize(
    ("lines", "body"),
    [
        (["--time=60", "--signal=B:TERM@90"], "date"),
        (["--time=60", "--signal=B:USR1@90"], f"echo ${TERM_AFTER}"),
        (["--signal=B:TERM@90"], f"echo ${TERM_AFTER}"),
        (["--time=0", "--signal=B:TERM@90"], f"echo ${TERM_AFTER}"),
    ],
)
def test_signal_that_nobody_would_send_is_refused_with_its_line(lines: list[str], body: str) -> None:
    with pytest.raises(SubmitRefused, match=r"#SBATCH --signal=B:.*API can't") as refusal:
        with_signal(*lines, body=body)
    assert "cli" in refusal.value.remedy


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--nonsense=1", "line 2: #SBATCH --nonsense=1"),
        ("--hint=multithread", "--hint"),
        ("--begin=now+1hour", "--begin"),
        ("--time=soon", "--time"),
        ("--mem=much", "--mem"),
        ("--ntasks=many", "many is no whole number"),
        ("--mail-type=SOMETIMES", "SOMETIMES"),
        ("--exclusive=maybe", "maybe"),
        ("word", "word is no option"),
        ('--comment="open', "No closing quotation"),
    ],
)
def test_option_that_cannot_be_said_is_refused_with_its_line(line: str, said: str) -> None:
    with pytest.raises(SubmitRefused) as refusal:
        described(line)
    assert said in str(refusal.value)
    assert str(refusal.value).startswith("line 2: #SBATCH ")
    assert refusal.value.remedy


def test_script_over_slurms_limit_is_refused() -> None:
    with pytest.raises(SubmitRefused, match=f"and SLURM takes {SCRIPT_BYTES_MAX}"):
        read_options("#!/bin/bash\n" + "#" * SCRIPT_BYTES_MAX)


def test_short_and_abbreviated_options_are_understood_and_the_last_one_decides() -> None:
    options = read_options("#!/bin/bash\n#SBATCH -n4 --part=a\n\n#SBATCH -p b -H # remark\ndate\n#SBATCH --mem=1\n")
    assert {name: option.value for name, option in options.items()} == {"ntasks": "4", "partition": "b", "hold": ""}


# -------------------------------------------------------------------------------------------------- versions


def paths(*numbers: int, accounting: bool = True) -> list[str]:
    found = [f"/slurm/v0.0.{n}/job/submit" for n in numbers]
    return found + [f"/slurmdb/v0.0.{n}/jobs/" for n in numbers if accounting]


@pytest.mark.parametrize(
    ("offered", "taken"),
    [((36, 37, 38), 38), ((37, 38, 39), 39), ((41, 42, 43, 44), 44), ((42, 43, 44, 45), 45), ((45, 46, 47), 45)],
)
def test_newest_version_that_both_know_is_taken(offered: tuple[int, ...], taken: int) -> None:
    assert negotiated(paths(*offered), "s").version == ApiVersion(taken)


def test_server_without_accounting_is_known_by_its_paths() -> None:
    assert negotiated(paths(38), "s").accounting
    assert not negotiated(paths(38, accounting=False), "s").accounting


@pytest.mark.parametrize(("offered", "said"), [((36, 37), "0.0.36, 0.0.37"), ((46,), "0.0.46"), ((), "no way")])
def test_server_of_an_unsupported_version_is_told_with_what_it_offers(offered: tuple[int, ...], said: str) -> None:
    with pytest.raises(GatewayUnavailable, match=rf"offers {said}.*0.0.38 to 0.0.45"):
        negotiated(paths(*offered), "s")
