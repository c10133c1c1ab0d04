"""A job array is one job: what is said of the whole when its tasks stand so and so."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.records import Evidence, JobIdentity, JobReport, JobState
from orchestrator.slurm.arrays import WORST_FIRST, fold, folded, row, task_numbers
from orchestrator.slurm.states import job_state

BEGUN = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def report(words: str, *, job_id: int = 123, **fields: object) -> JobReport:
    identity = JobIdentity(cluster="c", job_id=job_id, submitted_at=BEGUN)
    state = job_state(words)
    fields = {"name": "run-1", "evidence": Evidence.CONTROLLER, **fields}
    return JobReport(identity=identity, state=state, words=words, **fields)  # type: ignore[arg-type]


def array(*words: str) -> JobReport:
    return fold([row(report(word, job_id=123 + n), array_job_id=123, tasks=str(n)) for n, word in enumerate(words)])


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("7", (7,)),
        ("[4-6%2]", (4, 5, 6)),
        ("0-8:4,12", (0, 4, 8, 12)),
        ("1,3,5", (1, 3, 5)),
        ("0x15%2", (0, 2, 4)),
        ("N/A", ()),
        ("", ()),
    ],
)
def test_every_way_in_which_slurm_lists_tasks_is_read(text: str, numbers: tuple[int, ...]) -> None:
    assert task_numbers(text) == numbers


def test_shortened_list_of_tasks_is_no_list() -> None:
    with pytest.raises(ValueError, match="1,3,5"):
        task_numbers("1,3,5,...")


@pytest.mark.parametrize(
    ("words", "state"),
    [
        (("COMPLETED", "COMPLETED", "COMPLETED"), JobState.COMPLETED),
        (("COMPLETED", "RUNNING", "FAILED"), JobState.RUNNING),
        (("PENDING", "RUNNING", "COMPLETING"), JobState.RUNNING),
        (("COMPLETED", "PENDING", "FAILED"), JobState.PENDING),
        (("COMPLETED", "COMPLETED|COMPLETING", "PENDING"), JobState.COMPLETING),
        (("COMPLETED", "SUSPENDED", "PENDING"), JobState.SUSPENDED),
        (("COMPLETED", "NONSENSE", "FAILED"), JobState.UNKNOWN),
        (("COMPLETED", "FAILED", "OUT_OF_MEMORY"), JobState.FAILED),
        (("TIMEOUT", "COMPLETED", "OUT_OF_MEMORY"), JobState.OUT_OF_MEMORY),
        (("FAILED", "CANCELLED by 1000", "COMPLETED"), JobState.CANCELLED),
    ],
)
def test_state_of_the_whole_is_that_of_the_task_that_decides(words: tuple[str, ...], state: JobState) -> None:
    whole = array(*words)
    assert whole.state is state
    assert whole.words in words
    assert whole.tasks == {number: job_state(word) for number, word in enumerate(words)}


def test_every_state_has_its_place_in_the_order() -> None:
    for state in JobState:
        assert state.ended == (state in WORST_FIRST)


def test_whole_array_has_the_arrays_identity_and_the_failing_tasks_end() -> None:
    hour = timedelta(hours=1)
    ended = [
        report("COMPLETED", job_id=124, exit_code=0, nodes="n1", started_at=BEGUN + hour, ended_at=BEGUN + 4 * hour,
               usage={"max_rss_bytes": 7, "cpu_s": 1.5, "allocated": "cpu=1"}),
        report("FAILED", job_id=125, exit_code=3, nodes="n2", reason="NonZeroExitCode", restarts=1, comment="tag",
               started_at=BEGUN, ended_at=BEGUN + 2 * hour, usage={"max_rss_bytes": 5, "cpu_s": 2.0}),
        report("COMPLETED", job_id=123, exit_code=0, nodes="n1", started_at=BEGUN + hour, ended_at=BEGUN + 3 * hour),
    ]  # fmt: skip
    whole = fold([row(one, array_job_id=123, tasks=str(number)) for number, one in enumerate(ended)])
    assert whole.identity == JobIdentity(cluster="c", job_id=123, submitted_at=BEGUN)
    assert (whole.words, whole.exit_code, whole.reason, whole.restarts) == ("FAILED", 3, "NonZeroExitCode", 1)
    assert (whole.started_at, whole.ended_at) == (BEGUN, BEGUN + 4 * hour)
    assert (whole.nodes, whole.comment) == ("n1,n2", "tag")
    assert whole.usage["max_rss_bytes"] == 7
    assert whole.usage["cpu_s"] == 3.5


def test_array_of_which_a_task_goes_on_has_not_ended() -> None:
    rows = [row(report("COMPLETED", ended_at=BEGUN), array_job_id=123, tasks="0")]
    rows.append(row(report("PENDING"), array_job_id=123, tasks="[1-900%2]"))
    whole = fold(rows)
    assert whole.ended_at is None
    assert len(whole.tasks) == 901


def test_rows_of_one_array_become_one_report_and_other_jobs_stay_as_they_are() -> None:
    alone = report("RUNNING", job_id=7)
    rows = [row(report("RUNNING", job_id=9), array_job_id=8, tasks="0"), row(alone, array_job_id=7, tasks="N/A")]
    rows.append(row(report("PENDING", job_id=8), array_job_id=8, tasks="[1-2]"))
    first, second = folded(rows)
    assert (first.identity.job_id, sorted(first.tasks)) == (8, [0, 1, 2])
    assert second == alone
