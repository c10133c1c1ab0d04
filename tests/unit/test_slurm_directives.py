"""#SBATCH lines and the environment, as the local route honours them."""

from __future__ import annotations

import getpass
from pathlib import Path

import pytest

from orchestrator.errors import SubmitRefused
from orchestrator.slurm.directives import exported, file_name, read_directives
from orchestrator.slurm.environment import for_jobs


def script(*lines: str) -> str:
    return "\n".join(["#!/bin/bash", *lines, ""])


def test_lines_up_to_the_first_command_count_as_with_sbatch() -> None:
    asked = read_directives(
        script("# about", "#SBATCH --output=/a/%j.log  # where", "", "#SBATCH -t 5", "echo", "#SBATCH --time=99")
    )
    assert asked.output == "/a/%j.log"
    assert asked.time_limit_s == 300


def test_every_spelling_of_an_option_is_read() -> None:
    asked = read_directives(
        script('#SBATCH -D "/a b" -e /e', "#SBATCH --open-mode truncate --export=NONE", "#SBATCH --exclusive=user -N 1")
    )
    assert (asked.chdir, asked.error, asked.append, asked.export) == (Path("/a b"), "/e", False, "NONE")


def test_script_without_options_gets_sbatchs_defaults() -> None:
    asked = read_directives(script("echo"))
    assert (asked.output, asked.error, asked.chdir, asked.time_limit_s) == ("slurm-%j.out", None, None, None)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("5", 300), ("0:01", 1), ("1:30", 90), ("1:02:03", 3723), ("2-3", 183600), ("1-0:30", 88200), ("1-1:1:1", 90061),
     ("0", None), ("UNLIMITED", None)],
)  # fmt: skip
def test_time_limits_are_read_as_sbatch_reads_them(value: str, seconds: float | None) -> None:
    assert read_directives(script(f"#SBATCH --time={value}")).time_limit_s == seconds


@pytest.mark.parametrize(
    "line",
    [
        "--array=1-3000",
        "--array=some",
        "--dependency=afterok:1",
        "--nonsense",
        "--time=soon",
        "--nodes=2",
        "stray",
        '--output="open',
        "-t",
    ],
)
def test_what_cannot_be_honoured_is_refused_by_its_line(line: str) -> None:
    with pytest.raises(SubmitRefused, match="line 3") as refusal:
        read_directives(script("", f"#SBATCH {line}"))
    assert refusal.value.remedy


def test_text_that_is_no_script_is_refused() -> None:
    with pytest.raises(SubmitRefused, match="batch script"):
        read_directives("echo hello\n")


def test_patterns_in_file_names_are_replaced() -> None:
    assert file_name("/%x/%5j-%A.%u.%%j", job_id=7, job_name="run") == f"/run/00007-7.{getpass.getuser()}.%j"


def test_export_chooses_what_the_job_sees() -> None:
    environment = {"HOME": "/h", "A": "1", "B": "2"}
    assert exported(environment, "ALL") == environment
    assert exported(environment, "ALL,A=9") == {"HOME": "/h", "A": "9", "B": "2"}
    assert exported(environment, "NONE") == {"HOME": "/h", "PATH": "/usr/local/bin:/usr/bin:/bin"}
    assert exported(environment, "B,C=x=y,D").items() >= {"B": "2", "C": "x=y", "HOME": "/h"}.items()
    assert "A" not in exported(environment, "B")


def test_what_another_job_or_sbatch_call_left_is_taken_out_and_the_way_to_the_cluster_stays() -> None:
    stays = {"PATH": "/bin", "SLURM_CONF": "/etc/slurm.conf", "SLURM_JWT": "t", "PIPELINE": "x", "PIP_X": "y"}
    leaks = {"SLURM_JOB_ID": "1", "SBATCH_PARTITION": "x", "SRUN_DEBUG": "3", "PMI_RANK": "0", "PMIX_RANK": "0",
             "SQUEUE_FORMAT": "%i", "ORCHESTRATOR_LOCAL_JOB_ID": "3"}  # fmt: skip
    assert for_jobs(stays | leaks) == stays
