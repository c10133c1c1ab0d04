"""SLURM's words for states and reasons."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from orchestrator.records import JobState
from orchestrator.slurm.states import COMPACT, FLAGS, REASONS, STATES, end_reason, job_state, pending_reason

RELEASES = (Path(__file__).parent / "slurm_texts" / "words-by-release.txt").read_text()
BY_RELEASE = [line.split() for line in RELEASES.splitlines() if not line.startswith("#")]
NOT_STATES = {"?", "UNINITIALISED", "END"}
"""SLURM's own words for not knowing, and the end of its table."""


def words_of(kind: str) -> set[str]:
    return {word for what, word, _ in BY_RELEASE if what == kind}


def test_the_tables_have_every_state_of_every_release_and_none_besides() -> None:
    states, flags = words_of("state") | words_of("json"), words_of("flag")
    assert (states | flags) - NOT_STATES == STATES.keys() | FLAGS.keys()
    assert words_of("compact") - NOT_STATES == COMPACT.keys()
    assert all(job_state(word) is JobState.UNKNOWN for word in NOT_STATES)


@pytest.mark.parametrize("flag", sorted(words_of("flag")))
def test_every_flag_of_every_release_is_understood_beside_a_state(flag: str) -> None:
    assert job_state(f"RUNNING,{flag}") is job_state(["RUNNING", flag])
    assert (job_state(f"RUNNING,{flag}") is JobState.UNKNOWN) == (flag == "REVOKED")
    assert not job_state(f"PENDING,{flag}").ended


@pytest.mark.parametrize("word", sorted(words_of("reason")))
def test_every_reason_of_every_release_is_told_in_plain_words(word: str) -> None:
    texts = {pending_reason(word).text, end_reason(word)} - {word}
    assert texts
    assert all(" " in text for text in texts)


@pytest.mark.parametrize(
    ("words", "state"),
    [
        ("PENDING", JobState.PENDING),
        ("RUNNING", JobState.RUNNING),
        ("SUSPENDED", JobState.SUSPENDED),
        ("COMPLETED", JobState.COMPLETED),
        ("CANCELLED", JobState.CANCELLED),
        ("CANCELLED by 1000", JobState.CANCELLED),
        ("CANCELLED+", JobState.CANCELLED),
        ("FAILED", JobState.FAILED),
        ("TIMEOUT", JobState.TIMEOUT),
        ("NODE_FAIL", JobState.NODE_FAIL),
        ("PREEMPTED", JobState.PREEMPTED),
        ("BOOT_FAIL", JobState.BOOT_FAIL),
        ("DEADLINE", JobState.DEADLINE),
        ("OUT_OF_MEMORY", JobState.OUT_OF_MEMORY),
        ("COMPLETING", JobState.COMPLETING),
        ("CONFIGURING", JobState.PENDING),
        ("REQUEUED", JobState.PENDING),
        ("REQUEUE_HOLD", JobState.PENDING),
        ("REQUEUE_FED", JobState.PENDING),
        ("SPECIAL_EXIT", JobState.PENDING),
        ("RESV_DEL_HOLD", JobState.PENDING),
        ("EXPEDITING", JobState.PENDING),
        ("RESIZING", JobState.RUNNING),
        ("SIGNALING", JobState.RUNNING),
        ("STAGE_OUT", JobState.COMPLETING),
        ("STOPPED", JobState.SUSPENDED),
        ("REVOKED", JobState.UNKNOWN),
        ("COMPLETED|COMPLETING", JobState.COMPLETING),
        ("RUNNING,CONFIGURING,POWER_UP_NODE", JobState.PENDING),
        ("RUNNING,SIGNALING", JobState.RUNNING),
        ("SUSPENDED,SIGNALING", JobState.SUSPENDED),
        ("RUNNING,STOPPED", JobState.SUSPENDED),
        ("FAILED,LAUNCH_FAILED", JobState.FAILED),
        ("FAILED,LAUNCH_FAILED,REQUEUED", JobState.PENDING),
        ("PENDING,REQUEUED,COMPLETING", JobState.COMPLETING),
        ("completed", JobState.COMPLETED),
    ],
)
def test_every_word_of_slurm_has_its_state(words: str, state: JobState) -> None:
    assert job_state(words) is state


@pytest.mark.parametrize("words", ["", "?", "UNINITIALISED", "NEW", "COMPLETED,NEWFLAG", "COMPLETED FAILED"])
def test_what_is_not_in_the_table_is_unknown_and_never_a_success(words: str) -> None:
    assert job_state(words) is JobState.UNKNOWN
    assert not job_state(words).ended


def test_lists_of_words_are_read_as_the_newer_interfaces_give_them() -> None:
    assert job_state(["RUNNING", "SIGNALING"]) is JobState.RUNNING
    assert job_state(["COMPLETED"]) is JobState.COMPLETED
    assert job_state([]) is JobState.UNKNOWN


def test_every_compact_code_stands_for_a_word_of_the_tables() -> None:
    for code, word in COMPACT.items():
        assert word in STATES or word in FLAGS
        assert job_state(code) is job_state(word)


@pytest.mark.parametrize(
    ("word", "hopeless"),
    [
        ("Priority", False),
        ("Resources", False),
        ("(Resources)", False),
        ("ReqNodeNotAvail", False),
        ("ReqNodeNotAvail, UnavailableNodes:n[1-2]", False),
        ("Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions", False),
        ("JobHeldUser", False),
        ("DependencyNeverSatisfied", True),
        ("PartitionTimeLimit", True),
        ("PartitionConfig", True),
        ("BadConstraints", True),
        ("AssocMaxWallDurationPerJobLimit", True),
        ("QOSMaxCpuPerJobLimit", True),
        ("QOSMaxCpuPerUserLimit", False),
        ("AssocGrpCPUMinutesLimit", False),
        ("AssocMaxJobsLimit", False),
        ("QOSMaxSubmitJobPerUserLimit", False),
        ("QOSMinGRES", True),
        ("MaxCpuPerAccount", False),
        ("MaxGRESRunMinsPerUser", False),
        ("AssocMaxMemPerNode", True),
        ("QOSMaxGRESMinutesPerJob", True),
        ("QOSUsageThreshold", False),
        ("ReservationInvalid", True),
        ("JobHeldAdmin", False),
        ("job requeued in held state", False),
        ("launch failed requeued held", False),
    ],
)
def test_reasons_are_told_in_plain_words_and_the_hopeless_ones_are_marked(word: str, hopeless: bool) -> None:
    reason = pending_reason(word)
    assert reason.hopeless is hopeless
    assert " " in reason.text
    assert reason.text != reason.word


def test_reason_that_is_not_in_the_table_keeps_its_own_word() -> None:
    reason = pending_reason("SomethingNew")
    assert (reason.word, reason.text, reason.hopeless) == ("SomethingNew", "SomethingNew", False)


# ------------------------------------------------------------------------------------------- the page about it

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "job-states.md").read_text()


def rows_of(title: str) -> list[list[str]]:
    """Return the rows of all tables of a section of the page, cells stripped."""
    section = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_page_has_exactly_the_states_and_flags_of_the_tables() -> None:
    told = {words.strip("`"): meaning for words, meaning, *_ in rows_of("States")}
    flags = {word: "(the state decides)" if state is None else state.value for word, state in FLAGS.items()}
    assert told == {word: state.value for word, state in STATES.items()} | flags


def test_the_page_tells_every_reason_as_the_program_does() -> None:
    rows = rows_of("Why a job waits")
    assert [(text, waits == "for ever") for _, text, waits in rows] == [(text, ever) for _, text, ever in REASONS]
    patterns = [(word, text) for words, text, _ in rows for word in words.replace("`", "").split(", ")]
    for known in words_of("reason"):
        first = next((text for word, text in patterns if fnmatchcase(known, word)), known)
        assert pending_reason(known).text == first, known
    for word, text in patterns:
        assert any(text == pending_reason(known).text for known in (*words_of("reason"), word.strip("*"))), word


def test_the_page_tells_why_jobs_end_as_the_program_does() -> None:
    for word, text in rows_of("Why a job ended"):
        assert end_reason(word.strip("`")) == text
