"""What every route to SLURM must do: one contract, and one subclass per route.

The routes that run scripts run real ones; the one in memory is told what happened to the job. Nothing waits for a fixed
time: everything that takes its time is polled, with a deadline.
"""

from __future__ import annotations

import errno
import itertools
import os
import pwd
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import ClassVar, NoReturn, TypeVar

import pytest

from orchestrator.errors import GatewayUnavailable, OutcomeUnknown, SubmitRefused, UnknownJob
from orchestrator.records import (
    BatchScript,
    Evidence,
    JobIdentity,
    JobReport,
    JobState,
    RerunJob,
    RerunTag,
    RunTag,
    Submission,
    SubmittedJob,
    utc_now,
)
from orchestrator.sbatch_options import directive
from orchestrator.slurm.cli import CliGateway
from orchestrator.slurm.gateway import Gateway
from orchestrator.slurm.local import LocalGateway
from orchestrator.slurm.local_queue import KEPT_FOR
from orchestrator.slurm.memory import Meets, MemoryGateway
from orchestrator.slurm.pyslurm import PyslurmGateway
from orchestrator.slurm.rest import RestGateway
from orchestrator.stack import Stack

T = TypeVar("T")
Play = Callable[[MemoryGateway, JobIdentity], None]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a job does: the script's body, and the same told to the gateway in memory."""

    body: str
    play: Play
    lines: str = ""
    """Further #SBATCH lines."""


def plays(words: str, exit_code: int | None = None, signal: int | None = None) -> Play:
    def play(gateway: MemoryGateway, job: JobIdentity) -> None:
        gateway.set_state(job, "RUNNING")
        gateway.set_state(job, words, exit_code=exit_code, signal=signal)

    return play


def stays_pending(_gateway: MemoryGateway, _job: JobIdentity) -> None:
    """Nothing happens to the job."""


SUCCEEDS = Work(body="echo done", play=plays("COMPLETED", 0))
FAILS = Work(body="exit 3", play=plays("FAILED", 3))
IS_KILLED = Work(body="kill -9 $$", play=plays("FAILED", 0, 9))
GOES_ON = Work(body="sleep 600", play=lambda gateway, job: gateway.set_state(job, "RUNNING"))


AN_ARRAY = "#SBATCH --array=0-2"
ARRAY_SUCCEEDS = Work(body="echo $SLURM_ARRAY_TASK_ID", lines=AN_ARRAY, play=plays("COMPLETED", 0))


def second_task_fails(gateway: MemoryGateway, job: JobIdentity) -> None:
    plays("COMPLETED", 0)(gateway, job)
    gateway.set_state(job, "FAILED", exit_code=3, task=1)


ARRAY_FAILS = Work(body='[ "$SLURM_ARRAY_TASK_ID" != 1 ] || exit 3', lines=AN_ARRAY, play=second_task_fails)


def some_tag(attempt: int = 1) -> RunTag:
    return RunTag(run_id=str(uuid.uuid4()), attempt=attempt)


def submission_of(folder: Path, work: Work, tag: RunTag) -> Submission:
    text = f"#!/bin/bash\n#SBATCH --output={folder}/job-%j.log\n{work.lines}\n{work.body}\n"
    script = BatchScript(text=text, template_name="test", template_text="")
    return Submission(tag=tag, script=script, working_directory=folder)


def eventually(ask: Callable[[], T | None], *, within_s: float = 60.0) -> T:
    """Return the first answer that isn't None."""
    deadline = time.monotonic() + within_s
    while (answer := ask()) is None:
        assert time.monotonic() < deadline, f"nothing within {within_s} s"
        time.sleep(0.1)
    return answer


def reaches(gateway: Gateway, job: JobIdentity, *states: JobState, within_s: float = 60.0) -> JobReport:
    """Poll until the job is in one of the states."""
    return eventually(lambda: _if_in(gateway.poll([job]), job, states), within_s=within_s)


def is_accounted(gateway: Gateway, job: JobIdentity, *states: JobState, within_s: float = 60.0) -> JobReport:
    """Ask accounting, which lags, until the job is in one of the states."""
    return eventually(lambda: _if_in(gateway.account([job]), job, states), within_s=within_s)


def _if_in(
    reports: Mapping[JobIdentity, JobReport], job: JobIdentity, states: tuple[JobState, ...]
) -> JobReport | None:
    report = reports.get(job)
    return report if report is not None and report.state in states else None


def _if_hopeless(report: JobReport) -> JobReport | None:
    """Return the report of a job that won't run any more, because it is cancelled or waits for what can't come."""
    hopeless = report.state is JobState.CANCELLED or "NeverSatisfied" in report.reason
    return report if hopeless else None


def some_rerun() -> RerunTag:
    return RerunTag(parent=str(uuid.uuid4()))


def _of(jobs: Sequence[RerunJob], tag: RerunTag) -> RerunJob | None:
    return next((job for job in jobs if job.tag == tag), None)


def _if_ended(jobs: Sequence[RerunJob], tag: RerunTag) -> RerunJob | None:
    job = _of(jobs, tag)
    return job if job is not None and job.report.state.ended else None


class GatewayContract:
    """What holds for every route. Subclasses bring a fixture `gateway`."""

    refused: ClassVar[str] = "#SBATCH --partition=nonsense"
    """An #SBATCH line that this route refuses."""
    held: ClassVar[str] = ""
    """An #SBATCH line that keeps a job waiting."""
    limit: ClassVar[str] = "#SBATCH --time=0:01"
    running_within_s: ClassVar[float] = 60.0
    three_in_accounting: ClassVar[int | None] = 3
    """What accounting says of a job that ended with exit code 3."""

    def submit(self, gateway: Gateway, folder: Path, work: Work, tag: RunTag | None = None) -> SubmittedJob:
        return gateway.submit(submission_of(folder, work, tag or some_tag()))

    def test_check_names_the_cluster_that_identities_carry(self, gateway: Gateway, tmp_path: Path) -> None:
        info = gateway.check()
        assert info.gateway == gateway.name
        assert info.release
        assert self.submit(gateway, tmp_path, SUCCEEDS).identity.cluster == info.cluster

    def test_job_that_succeeds_ends_completed_with_exit_code_0(self, gateway: Gateway, tmp_path: Path) -> None:
        before = utc_now().replace(microsecond=0)
        tag = some_tag()
        job = self.submit(gateway, tmp_path, SUCCEEDS, tag)
        assert job.gateway == gateway.name
        assert not job.adopted
        assert before <= job.identity.submitted_at <= utc_now()
        report = reaches(gateway, job.identity, JobState.COMPLETED)
        assert (report.exit_code, report.signal) == (0, None)
        assert (report.name, report.comment) == (tag.job_name, tag.comment)
        assert report.evidence is Evidence.CONTROLLER
        assert report.started_at is not None
        assert report.ended_at is not None
        assert report.started_at <= report.ended_at
        assert report.nodes

    def test_job_that_waits_or_runs_is_not_reported_as_ended(self, gateway: Gateway, tmp_path: Path) -> None:
        job = self.submit(gateway, tmp_path, GOES_ON).identity
        report = reaches(gateway, job, JobState.RUNNING)
        assert (report.exit_code, report.signal, report.ended_at) == (None, None, None)
        gateway.cancel(job)

    def test_exit_code_of_a_failing_script_arrives(self, gateway: Gateway, tmp_path: Path) -> None:
        job = self.submit(gateway, tmp_path, FAILS).identity
        report = reaches(gateway, job, JobState.FAILED)
        assert (report.exit_code, report.signal) == (3, None)

    def test_signal_that_killed_a_script_arrives(self, gateway: Gateway, tmp_path: Path) -> None:
        job = self.submit(gateway, tmp_path, IS_KILLED).identity
        assert reaches(gateway, job, JobState.FAILED).signal == signal.SIGKILL

    def test_cancelled_job_is_cancelled_and_cancelling_again_is_harmless(
        self, gateway: Gateway, tmp_path: Path
    ) -> None:
        job = self.submit(gateway, tmp_path, GOES_ON).identity
        reaches(gateway, job, JobState.RUNNING)
        gateway.cancel(job)
        reaches(gateway, job, JobState.CANCELLED)
        gateway.cancel(job)
        assert gateway.poll([job])[job].state is JobState.CANCELLED

    def test_cancelling_an_ended_job_does_not_change_how_it_ended(self, gateway: Gateway, tmp_path: Path) -> None:
        job = self.submit(gateway, tmp_path, FAILS).identity
        reaches(gateway, job, JobState.FAILED)
        gateway.cancel(job)
        assert gateway.poll([job])[job].state is JobState.FAILED

    def test_cancelling_a_job_nobody_knows_is_told(self, gateway: Gateway) -> None:
        with pytest.raises(UnknownJob):
            gateway.cancel(JobIdentity(cluster=gateway.check().cluster, job_id=987654, submitted_at=utc_now()))

    def test_cancelling_under_a_reused_id_spares_the_other_job(self, gateway: Gateway, tmp_path: Path) -> None:
        job = self.submit(gateway, tmp_path, GOES_ON).identity
        reaches(gateway, job, JobState.RUNNING)
        with pytest.raises(UnknownJob):
            gateway.cancel(replace(job, submitted_at=job.submitted_at - timedelta(days=400)))
        assert gateway.poll([job])[job].state is JobState.RUNNING
        gateway.cancel(job)

    def test_job_over_its_time_limit_ends_as_timeout(self, gateway: Gateway, tmp_path: Path) -> None:
        work = Work(body="sleep 600", lines=self.limit, play=plays("TIMEOUT", 0, 15))
        job = self.submit(gateway, tmp_path, work).identity
        reaches(gateway, job, JobState.TIMEOUT, within_s=200)

    def test_every_job_with_the_tag_is_found(self, gateway: Gateway, tmp_path: Path) -> None:
        before, tag = utc_now(), some_tag()
        jobs = {self.submit(gateway, tmp_path, SUCCEEDS, tag).identity for _ in range(2)}
        self.submit(gateway, tmp_path, SUCCEEDS, replace(tag, attempt=2))
        found = gateway.find(tag, since=before)
        assert {report.identity for report in found} == jobs
        assert len(found) == 2

    def test_ended_job_is_found_too(self, gateway: Gateway, tmp_path: Path) -> None:
        before, tag = utc_now(), some_tag()
        job = self.submit(gateway, tmp_path, FAILS, tag).identity
        reaches(gateway, job, JobState.FAILED)
        (found,) = gateway.find(tag, since=before)
        assert (found.identity, found.state) == (job, JobState.FAILED)

    def test_jobs_submitted_before_the_window_are_not_found(self, gateway: Gateway, tmp_path: Path) -> None:
        tag = some_tag()
        job = self.submit(gateway, tmp_path, SUCCEEDS, tag).identity
        assert gateway.find(tag, since=job.submitted_at + timedelta(seconds=1)) == ()

    def test_tag_that_no_job_carries_is_not_found(self, gateway: Gateway) -> None:
        assert gateway.find(some_tag(), since=utc_now() - timedelta(days=1)) == ()

    def test_two_hundred_jobs_are_asked_about_in_one_call(self, gateway: Gateway, tmp_path: Path) -> None:
        work = Work(body="sleep 600", lines=self.held, play=stays_pending)
        jobs = [self.submit(gateway, tmp_path, work).identity for _ in range(200)]
        begun = time.monotonic()
        reports = gateway.poll(jobs)
        assert time.monotonic() - begun < 2.0
        assert set(reports) == set(jobs)
        assert all(report.state in {JobState.PENDING, JobState.RUNNING} for report in reports.values())
        self.cancel_all(gateway, jobs)

    def cancel_all(self, gateway: Gateway, jobs: list[JobIdentity]) -> None:
        for job in reversed(jobs):
            gateway.cancel(job)

    def test_no_jobs_no_reports(self, gateway: Gateway) -> None:
        assert gateway.poll([]) == {}
        assert gateway.account([]) == {}

    def test_unknown_and_reused_ids_are_left_out_and_the_others_reported(
        self, gateway: Gateway, tmp_path: Path
    ) -> None:
        job = self.submit(gateway, tmp_path, SUCCEEDS).identity
        reaches(gateway, job, JobState.COMPLETED)
        unknown = replace(job, job_id=job.job_id + 100_000)
        elsewhere = replace(job, cluster="elsewhere")
        older = replace(job, submitted_at=job.submitted_at - timedelta(days=400))
        assert set(gateway.poll([unknown, job, older, elsewhere])) == {job}
        assert gateway.poll([unknown]) == {}
        is_accounted(gateway, job, JobState.COMPLETED)
        assert set(gateway.account([unknown, job, older, elsewhere])) == {job}

    def test_accounting_agrees_with_the_controller(self, gateway: Gateway, tmp_path: Path) -> None:
        job = self.submit(gateway, tmp_path, FAILS).identity
        said = reaches(gateway, job, JobState.FAILED)
        accounted = is_accounted(gateway, job, JobState.FAILED)
        assert accounted.evidence is Evidence.ACCOUNTING
        assert (accounted.exit_code, accounted.signal, accounted.restarts) == (self.three_in_accounting, None, 0)
        assert (accounted.started_at, accounted.ended_at) == (said.started_at, said.ended_at)

    @pytest.mark.parametrize("odd", ["a|b;c", "q'uote", "% %j %x", "é ü 漢", "$(touch x) `id` && x", "a, b"])
    def test_odd_characters_in_name_and_comment_arrive(self, gateway: Gateway, tmp_path: Path, odd: str) -> None:
        before, tag = utc_now(), RunTag(run_id=f"{uuid.uuid4()} {odd}", attempt=1)
        job = self.submit(gateway, tmp_path, SUCCEEDS, tag).identity
        report = gateway.poll([job])[job]
        assert (report.name, report.comment) == (tag.job_name, tag.comment)
        assert [found.identity for found in gateway.find(tag, since=before)] == [job]

    # ------------------------------------------------------------------------------------------- job arrays

    def test_array_ends_completed_when_all_its_tasks_did(self, gateway: Gateway, tmp_path: Path) -> None:
        before, tag = utc_now(), some_tag()
        job = self.submit(gateway, tmp_path, ARRAY_SUCCEEDS, tag).identity
        report = reaches(gateway, job, JobState.COMPLETED)
        assert report.tasks == dict.fromkeys(range(3), JobState.COMPLETED)
        assert (report.exit_code, report.signal) == (0, None)
        assert (report.name, report.comment) == (tag.job_name, tag.comment)
        assert report.started_at is not None
        assert report.ended_at is not None
        assert report.started_at <= report.ended_at
        (found,) = gateway.find(tag, since=before)
        assert found.identity == job
        accounted = is_accounted(gateway, job, JobState.COMPLETED)
        assert eventually(lambda: t if len(t := gateway.account([job])[job].tasks) == 3 else None) == report.tasks
        assert accounted.evidence is Evidence.ACCOUNTING

    def test_array_with_a_failing_task_fails_when_all_have_ended_and_says_which(
        self, gateway: Gateway, tmp_path: Path
    ) -> None:
        job = self.submit(gateway, tmp_path, ARRAY_FAILS).identity
        report = reaches(gateway, job, JobState.FAILED)
        assert report.tasks == {0: JobState.COMPLETED, 1: JobState.FAILED, 2: JobState.COMPLETED}
        assert report.exit_code == 3
        accounted = is_accounted(gateway, job, JobState.FAILED)
        assert accounted.exit_code == self.three_in_accounting

    def test_array_of_which_a_task_runs_is_running_and_cancelling_ends_all_tasks(
        self, gateway: Gateway, tmp_path: Path
    ) -> None:
        def first_runs(gateway: MemoryGateway, job: JobIdentity) -> None:
            gateway.set_state(job, "RUNNING", task=0)

        job = self.submit(gateway, tmp_path, Work(body="sleep 600", lines=f"{AN_ARRAY}%1", play=first_runs)).identity
        report = reaches(gateway, job, JobState.RUNNING)
        assert sorted(report.tasks.values()) == [JobState.PENDING, JobState.PENDING, JobState.RUNNING]
        assert report.ended_at is None
        gateway.cancel(job)
        assert set(reaches(gateway, job, JobState.CANCELLED).tasks.values()) == {JobState.CANCELLED}

    def test_array_that_waits_is_pending_with_all_its_tasks(self, gateway: Gateway, tmp_path: Path) -> None:
        first = self.submit(gateway, tmp_path, replace(GOES_ON, play=stays_pending)).identity
        work = replace(ARRAY_SUCCEEDS, lines="#SBATCH --array=0-98:2%2", play=stays_pending)
        job = gateway.submit(replace(submission_of(tmp_path, work, some_tag()), after=(first,))).identity
        report = gateway.poll([job])[job]
        assert report.state is JobState.PENDING
        assert report.tasks == dict.fromkeys(range(0, 99, 2), JobState.PENDING)
        for waiting in (job, first):
            gateway.cancel(waiting)

    # --------------------------------------------------------------------------------------------- one after another

    def test_job_after_another_waits_until_that_one_has_ended_well(self, gateway: Gateway, tmp_path: Path) -> None:
        slow = Work(body=f"sleep 2; touch {tmp_path}/made", play=stays_pending)
        first = self.submit(gateway, tmp_path, slow).identity
        needs_it = Work(body=f"test -e {tmp_path}/made", play=stays_pending)
        second = gateway.submit(replace(submission_of(tmp_path, needs_it, some_tag()), after=(first,))).identity
        assert gateway.poll([second])[second].state is JobState.PENDING
        self.goes_on(gateway, first, SUCCEEDS)
        reaches(gateway, first, JobState.COMPLETED)
        self.goes_on(gateway, second, SUCCEEDS)
        assert reaches(gateway, second, JobState.COMPLETED, JobState.FAILED).state is JobState.COMPLETED

    @pytest.mark.parametrize("ends", [FAILS, ARRAY_FAILS], ids=["a job", "an array"])
    def test_job_after_one_that_failed_never_runs(self, gateway: Gateway, tmp_path: Path, ends: Work) -> None:
        first = self.submit(gateway, tmp_path, replace(ends, play=stays_pending)).identity
        work = Work(body=f"touch {tmp_path}/ran", play=stays_pending)
        second = gateway.submit(replace(submission_of(tmp_path, work, some_tag()), after=(first,))).identity
        self.goes_on(gateway, first, ends)
        report = eventually(lambda: _if_hopeless(gateway.poll([second])[second]))
        assert "Dependency" in report.reason
        gateway.cancel(second)
        reaches(gateway, second, JobState.CANCELLED)
        assert not (tmp_path / "ran").exists()

    def foretell(self, gateway: Gateway, work: Work) -> None:
        """Tell the gateway in memory what is to become of a submission; the others find out by themselves."""

    def goes_on(self, gateway: Gateway, job: JobIdentity, work: Work) -> None:
        """Let the gateway in memory play a job; the others run it by themselves."""

    # ------------------------------------------------------------------------------------ reruns that people hand over

    def hand_over(self, gateway: Gateway, folder: Path, work: Work, tag: RerunTag) -> int:
        """Hand a script to sbatch as a user does; return the job's id."""
        raise NotImplementedError

    def test_jobs_of_reruns_are_listed_with_user_folder_and_parent(self, gateway: Gateway, tmp_path: Path) -> None:
        before, tag = utc_now(), some_rerun()
        self.submit(gateway, tmp_path, SUCCEEDS)
        job_id = self.hand_over(gateway, tmp_path, FAILS, tag)
        job = eventually(lambda: _if_ended(gateway.queued_reruns(), tag))
        assert (job.report.identity.cluster, job.report.identity.job_id) == (gateway.check().cluster, job_id)
        assert before.replace(microsecond=0) <= job.report.identity.submitted_at <= utc_now()
        assert (job.tag, job.user, job.working_directory) == (tag, pwd.getpwuid(os.getuid()).pw_name, tmp_path)
        assert (job.report.state, job.report.exit_code, job.report.signal) == (JobState.FAILED, 3, None)
        assert (job.report.name, job.report.evidence) == (tag.job_name, Evidence.CONTROLLER)
        assert job.report.ended_at is not None
        accounted = eventually(lambda: _if_ended(gateway.accounted_reruns(since=before), tag))
        assert accounted.report.evidence is Evidence.ACCOUNTING
        assert (accounted.report.identity, accounted.report.state) == (job.report.identity, JobState.FAILED)
        assert (accounted.tag, accounted.user, accounted.working_directory) == (tag, job.user, tmp_path)
        assert accounted.report.exit_code == self.three_in_accounting
        assert accounted.report.ended_at == job.report.ended_at

    def test_rerun_that_never_began_is_listed_with_its_end(self, gateway: Gateway, tmp_path: Path) -> None:
        tag = some_rerun()
        self.hand_over(gateway, tmp_path, Work(body="true", lines=self.held, play=stays_pending), tag)
        waiting = eventually(lambda: _of(gateway.queued_reruns(), tag))
        assert waiting.report.state is JobState.PENDING
        gateway.cancel(waiting.report.identity)
        job = eventually(lambda: _if_ended(gateway.queued_reruns(), tag))
        assert (job.report.state, job.report.started_at) == (JobState.CANCELLED, None)

    def test_reruns_that_ended_before_the_window_are_not_listed_from_accounting(
        self, gateway: Gateway, tmp_path: Path
    ) -> None:
        tag = some_rerun()
        self.hand_over(gateway, tmp_path, SUCCEEDS, tag)
        job = eventually(lambda: _if_ended(gateway.queued_reruns(), tag))
        eventually(lambda: _if_ended(gateway.accounted_reruns(since=job.report.identity.submitted_at), tag))
        assert job.report.ended_at is not None
        assert _of(gateway.accounted_reruns(since=job.report.ended_at + timedelta(seconds=2)), tag) is None

    # ----------------------------------------------------------------------------------------------- refusals

    def test_refused_submission_says_why_and_leaves_no_job(self, gateway: Gateway, tmp_path: Path) -> None:
        before, tag = utc_now(), some_tag()
        with pytest.raises(SubmitRefused) as refusal:
            self.submit(gateway, tmp_path, replace(SUCCEEDS, lines=self.refused), tag)
        assert str(refusal.value)
        assert refusal.value.remedy
        assert gateway.find(tag, since=before) == ()

    # -------------------------------------------------------------------------------------------- one after another

    def test_submissions_that_follow_each_other_become_jobs_in_their_order(
        self, gateway: Gateway, tmp_path: Path
    ) -> None:
        before, tags = utc_now(), [some_tag() for _ in range(5)]
        answers = list(gateway.submit_each(submission_of(tmp_path, SUCCEEDS, tag) for tag in tags))
        jobs = [answer.identity for answer in answers if isinstance(answer, SubmittedJob)]
        assert len(jobs) == len(tags)
        assert [job.job_id for job in jobs] == sorted(job.job_id for job in jobs)
        found = [gateway.find(tag, since=before) for tag in tags]
        assert [tuple(report.identity for report in reports) for reports in found] == [(job,) for job in jobs]

    def test_after_one_that_is_refused_none_is_sent(self, gateway: Gateway, tmp_path: Path) -> None:
        before, tags, taken = utc_now(), [some_tag() for _ in range(4)], list[RunTag]()
        works = [SUCCEEDS, replace(SUCCEEDS, lines=self.refused), SUCCEEDS, SUCCEEDS]

        def submissions() -> Iterator[Submission]:
            for tag, work in zip(tags, works, strict=True):
                taken.append(tag)
                self.foretell(gateway, work)
                yield submission_of(tmp_path, work, tag)

        job, refusal, *others = gateway.submit_each(submissions())
        assert isinstance(job, SubmittedJob)
        assert isinstance(refusal, SubmitRefused)
        assert others == [None] * (len(taken) - 2)
        assert [len(gateway.find(tag, since=before)) for tag in tags] == [1, 0, 0, 0]
        assert self.submit(gateway, tmp_path, SUCCEEDS).identity.job_id > job.identity.job_id

    def test_with_nothing_to_submit_nothing_is_done(self, gateway: Gateway) -> None:
        assert list(gateway.submit_each(iter(()))) == []


class ScriptsRun(GatewayContract):
    """What holds where scripts really run. Subclasses bring `make_gateway`, which takes the submitter's environment."""

    def test_output_goes_where_the_script_says_and_it_runs_in_its_folder(
        self, gateway: Gateway, tmp_path: Path
    ) -> None:
        job = self.submit(gateway, tmp_path, replace(SUCCEEDS, body="pwd; echo wrong >&2")).identity
        reaches(gateway, job, JobState.COMPLETED)
        assert (tmp_path / f"job-{job.job_id}.log").read_text() == f"{tmp_path}\nwrong\n"

    def test_submitters_slurm_variables_do_not_leak_and_others_arrive(
        self, make_gateway: Callable[[Mapping[str, str]], Gateway], tmp_path: Path
    ) -> None:
        leaks = {"SLURM_FOO": "leak", "SLURM_JOB_NAME": "leak", "SBATCH_PARTITION": "nonsense", "SBATCH_TIMELIMIT": "x"}
        gateway = make_gateway({**os.environ, **leaks, "BEAMLINE": "b21 'x'"})
        job = self.submit(gateway, tmp_path, replace(SUCCEEDS, body="env -0")).identity
        reaches(gateway, job, JobState.COMPLETED)
        words = (tmp_path / f"job-{job.job_id}.log").read_text().split("\0")
        environment = dict(word.split("=", 1) for word in words if "=" in word)
        assert environment["BEAMLINE"] == "b21 'x'"
        assert "SLURM_FOO" not in environment
        assert environment.get("SLURM_JOB_NAME") != "leak"
        assert not any(name.startswith("SBATCH_") for name in environment)

    def test_missing_working_directory_is_no_refusal_for_good(self, gateway: Gateway, tmp_path: Path) -> None:
        before, tag, folder = utc_now(), some_tag(), tmp_path / "absent"
        submission = replace(submission_of(tmp_path, SUCCEEDS, tag), working_directory=folder)
        with pytest.raises(GatewayUnavailable, match="absent") as error:
            gateway.submit(submission)
        assert error.value.doubtful  # so others are let by
        assert gateway.find(tag, since=before) == ()
        folder.mkdir()
        assert gateway.submit(submission).identity.job_id


def processes_with(word: str) -> list[int]:
    """Return the living processes that have `word` as an argument."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and word.encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


class TestMemory(GatewayContract):
    @pytest.fixture
    def gateway(self) -> MemoryGateway:
        return MemoryGateway()

    def submit(self, gateway: Gateway, folder: Path, work: Work, tag: RunTag | None = None) -> SubmittedJob:
        assert isinstance(gateway, MemoryGateway)
        self.foretell(gateway, work)
        job = super().submit(gateway, folder, work, tag)
        work.play(gateway, job.identity)
        return job

    def foretell(self, gateway: Gateway, work: Work) -> None:
        assert isinstance(gateway, MemoryGateway)
        gateway.upcoming.append(Meets.REFUSAL if work.lines == self.refused else Meets.ACCEPTANCE)

    def goes_on(self, gateway: Gateway, job: JobIdentity, work: Work) -> None:
        assert isinstance(gateway, MemoryGateway)
        work.play(gateway, job)

    def hand_over(self, gateway: Gateway, folder: Path, work: Work, tag: RerunTag) -> int:
        assert isinstance(gateway, MemoryGateway)
        job = gateway.hand_over(tag, user=pwd.getpwuid(os.getuid()).pw_name, working_directory=folder)
        work.play(gateway, job)
        return job.job_id

    def test_job_that_comes_after_another_cannot_be_told_to_run_before(
        self, gateway: MemoryGateway, tmp_path: Path
    ) -> None:
        first = self.submit(gateway, tmp_path, GOES_ON).identity
        second = gateway.submit(replace(submission_of(tmp_path, SUCCEEDS, some_tag()), after=(first,))).identity
        with pytest.raises(ValueError, match="comes after"):
            gateway.set_state(second, "RUNNING")

    def test_lost_reply_leaves_a_job_to_be_found_and_lost_request_leaves_none(
        self, gateway: MemoryGateway, tmp_path: Path
    ) -> None:
        before = utc_now()
        for meets, count in ((Meets.LOST_REPLY, 1), (Meets.LOST_REQUEST, 0), (Meets.LATE_ACCEPTANCE, 0)):
            tag = some_tag()
            gateway.upcoming.append(meets)
            with pytest.raises(OutcomeUnknown):
                gateway.submit(submission_of(tmp_path, SUCCEEDS, tag))
            assert len(gateway.find(tag, since=before)) == count
        gateway.accept_late()
        assert len(gateway.find(tag, since=before)) == 1

    def test_unavailable_submission_leaves_no_job(self, gateway: MemoryGateway, tmp_path: Path) -> None:
        gateway.upcoming.append(Meets.UNAVAILABLE)
        with pytest.raises(GatewayUnavailable):
            gateway.submit(submission_of(tmp_path, SUCCEEDS, some_tag()))
        assert gateway.jobs == ()

    def test_purged_job_is_left_to_accounting_and_its_id_used_again_is_another(
        self, gateway: MemoryGateway, tmp_path: Path
    ) -> None:
        now = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
        gateway = MemoryGateway(clock=lambda: now)
        old = self.submit(gateway, tmp_path, SUCCEEDS).identity
        gateway.purge(old)
        assert gateway.poll([old]) == {}
        assert gateway.account([old])[old].state is JobState.COMPLETED
        gateway.next_id, now = old.job_id, now + timedelta(hours=1)
        new = self.submit(gateway, tmp_path, FAILS).identity
        assert new.job_id == old.job_id
        assert set(gateway.poll([old, new])) == {new}
        gateway.purge(old, accounting=True)
        assert gateway.account([old]) == {}

    def test_requeued_job_keeps_its_identity_and_counts_its_restarts(
        self, gateway: MemoryGateway, tmp_path: Path
    ) -> None:
        job = self.submit(gateway, tmp_path, GOES_ON).identity
        gateway.requeue(job)
        report = gateway.poll([job])[job]
        assert (report.state, report.restarts, report.started_at) == (JobState.PENDING, 1, None)

    def test_outages_are_told(self, gateway: MemoryGateway, tmp_path: Path) -> None:
        job = self.submit(gateway, tmp_path, SUCCEEDS).identity
        gateway.accounting_up = False
        assert gateway.poll([job])
        with pytest.raises(GatewayUnavailable):
            gateway.account([job])
        gateway.controller_up = False
        with pytest.raises(GatewayUnavailable):
            gateway.poll([job])

    def test_no_accounting_is_no_outage(self, tmp_path: Path) -> None:
        gateway = MemoryGateway(accounting=False)
        job = self.submit(gateway, tmp_path, SUCCEEDS).identity
        assert gateway.account([job]) == {}


class TestLocal(ScriptsRun):
    refused: ClassVar[str] = "#SBATCH --nodes=3"

    @pytest.fixture
    def make_gateway(self, tmp_path: Path) -> Iterator[Callable[[Mapping[str, str]], LocalGateway]]:
        made: list[LocalGateway] = []

        def make(environment: Mapping[str, str] = os.environ, parallel: int = 2) -> LocalGateway:
            folder = tmp_path / "local"
            made.append(LocalGateway(folder, parallel=parallel, kill_wait_s=1.0, environment=environment))
            return made[-1]

        yield make
        self.end_all(made[-1:])

    def hand_over(self, gateway: Gateway, folder: Path, work: Work, tag: RerunTag) -> NoReturn:  # noqa: ARG002 - the contract's
        pytest.skip("without SLURM a rerun is a process that somebody started, and no job")

    def test_no_job_of_a_rerun_is_known(self, gateway: LocalGateway, tmp_path: Path) -> None:
        self.submit(gateway, tmp_path, SUCCEEDS)
        assert gateway.queued_reruns() == ()
        assert gateway.accounted_reruns(since=utc_now() - timedelta(days=1)) == ()

    def end_all(self, gateways: list[LocalGateway]) -> None:
        for gateway in gateways:
            gateway.check()
            folders = gateway._queue.folders()
            for folder in reversed(folders):
                gateway._queue.cancel(folder)
            eventually(lambda fs=folders: True if not any(folder.is_supervised() for folder in fs) else None)

    @pytest.fixture
    def gateway(self, make_gateway: Callable[..., LocalGateway]) -> LocalGateway:
        return make_gateway()

    def test_jobs_over_the_limit_wait_and_start_in_order(
        self, make_gateway: Callable[..., LocalGateway], tmp_path: Path
    ) -> None:
        gateway = make_gateway(parallel=1)
        work = replace(SUCCEEDS, body=f"echo $ORCHESTRATOR_LOCAL_JOB_ID >> {tmp_path}/order; sleep 0.2")
        jobs = [self.submit(gateway, tmp_path, work).identity for _ in range(4)]
        assert gateway.poll(jobs)[jobs[3]].state is JobState.PENDING
        reaches(gateway, jobs[3], JobState.COMPLETED)
        assert (tmp_path / "order").read_text().split() == [str(job.job_id) for job in jobs]

    def test_waiting_jobs_start_without_anybody_asking(
        self, make_gateway: Callable[..., LocalGateway], tmp_path: Path
    ) -> None:
        gateway = make_gateway(parallel=1)
        for _ in range(3):
            self.submit(gateway, tmp_path, replace(SUCCEEDS, body=f"echo >> {tmp_path}/done"))
        eventually(lambda: True if (p := tmp_path / "done").exists() and len(p.read_text()) == 3 else None)

    def test_new_gateway_finds_the_jobs_of_the_one_before(
        self, make_gateway: Callable[..., LocalGateway], tmp_path: Path
    ) -> None:
        before, tag = utc_now(), some_tag()
        job = self.submit(make_gateway(), tmp_path, replace(SUCCEEDS, body="sleep 0.5"), tag).identity
        later = make_gateway()
        assert [report.identity for report in later.find(tag, since=before)] == [job]
        reaches(later, job, JobState.COMPLETED)

    def test_job_outlives_a_killed_service(self, tmp_path: Path, make_gateway: Callable[..., LocalGateway]) -> None:
        tag, before = some_tag(), utc_now()
        submission = submission_of(tmp_path, replace(SUCCEEDS, body="sleep 1; echo alive"), tag)
        service = f"""
import os, signal
from pathlib import Path
from orchestrator.records import *
from orchestrator.slurm.local import LocalGateway
script = BatchScript(text={submission.script.text!r}, template_name="", template_text="")
LocalGateway(Path({str(tmp_path / "local")!r})).submit(Submission(
    tag=RunTag(run_id={tag.run_id!r}, attempt=1), script=script,
    working_directory=Path({str(tmp_path)!r})))
os.killpg(os.getpgid(0), signal.SIGKILL)
"""
        done = subprocess.run([sys.executable, "-c", service], start_new_session=True, check=False)
        assert done.returncode == -signal.SIGKILL
        (found,) = make_gateway().find(tag, since=before)
        reaches(make_gateway(), found.identity, JobState.COMPLETED)
        assert (tmp_path / f"job-{found.identity.job_id}.log").read_text() == "alive\n"

    @pytest.mark.parametrize("delay_s", [0.0, 0.013, 0.031, 0.057, 0.11])
    def test_job_is_there_wholly_and_runs_once_or_is_not_there_when_its_submitter_is_killed(
        self, make_gateway: Callable[..., LocalGateway], tmp_path: Path, delay_s: float
    ) -> None:
        before, run_id, ran = utc_now(), str(uuid.uuid4()), tmp_path / "ran"
        submission = submission_of(
            tmp_path, replace(SUCCEEDS, body=f"echo $ORCHESTRATOR_LOCAL_JOB_ID >> {ran}"), some_tag()
        )
        service = f"""
from pathlib import Path
from orchestrator.records import *
from orchestrator.slurm.local import LocalGateway
script = BatchScript(text={submission.script.text!r}, template_name="", template_text="")
gateway = LocalGateway(Path({str(tmp_path / "local")!r}), parallel=2)
print("ready", flush=True)
for attempt in range(1, 1000):
    tag = RunTag(run_id={run_id!r}, attempt=attempt)
    gateway.submit(Submission(tag=tag, script=script, working_directory=Path({str(submission.working_directory)!r})))
"""
        with subprocess.Popen([sys.executable, "-c", service], stdout=subprocess.PIPE) as submitter:
            assert submitter.stdout is not None
            assert submitter.stdout.readline() == b"ready\n"
            time.sleep(delay_s)
            submitter.kill()
        assert submitter.returncode == -signal.SIGKILL
        gateway = make_gateway()
        tags = (RunTag(run_id=run_id, attempt=attempt) for attempt in range(1, 1000))
        found = [gateway.find(tag, since=before) for tag in itertools.takewhile(lambda t: _found(gateway, t), tags)]
        jobs = [reports[0].identity for reports in found]
        assert all(len(reports) == 1 for reports in found)
        assert len(jobs) == len(gateway._queue.folders())
        for job in jobs:
            reaches(gateway, job, JobState.COMPLETED)
        lines = ran.read_text().split() if jobs else []
        assert sorted(lines, key=int) == [str(job.job_id) for job in jobs]

    def test_two_services_on_one_folder_run_every_job_once(
        self, make_gateway: Callable[..., LocalGateway], tmp_path: Path
    ) -> None:
        ran = tmp_path / "ran"
        work = replace(SUCCEEDS, body=f"echo $ORCHESTRATOR_LOCAL_JOB_ID >> {ran}")

        def serve(gateway: LocalGateway) -> list[JobIdentity]:
            return [self.submit(gateway, tmp_path, work).identity for _ in range(10)]

        services = [make_gateway(), make_gateway()]
        with ThreadPoolExecutor() as pool:
            first, second = pool.map(serve, services)
        assert len({*first, *second}) == 20
        for job in (*first, *second):
            reaches(services[0], job, JobState.COMPLETED)
        assert sorted(map(int, ran.read_text().split())) == sorted(job.job_id for job in (*first, *second))

    def test_job_whose_supervisor_was_killed_is_a_node_failure_and_nothing_of_it_goes_on(
        self, gateway: LocalGateway, tmp_path: Path
    ) -> None:
        mark = f"84{uuid.uuid4().int % 10**7}"
        job = self.submit(gateway, tmp_path, replace(GOES_ON, body=f"sleep {mark}")).identity
        eventually(lambda: processes_with(mark) or None)
        status = gateway._queue.folder(job.job_id).status()
        assert status is not None
        assert status.supervisor_pid is not None
        os.kill(status.supervisor_pid, signal.SIGKILL)
        report = reaches(gateway, job, JobState.NODE_FAIL)
        assert report.exit_code is None
        assert report.ended_at is not None
        assert not processes_with(mark)

    def test_job_added_but_never_started_is_found_and_started_by_whoever_looks_next(
        self, gateway: LocalGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before, tag = utc_now(), some_tag()
        gateway.check()
        with without_program(monkeypatch, tmp_path):
            job = self.submit(gateway, tmp_path, SUCCEEDS, tag).identity
            with pytest.raises(GatewayUnavailable, match="setsid"):
                gateway.poll([job])
        assert [report.identity for report in gateway.find(tag, since=before)] == [job]
        reaches(gateway, job, JobState.COMPLETED)

    def test_what_a_script_leaves_running_ends_with_the_job(self, gateway: LocalGateway, tmp_path: Path) -> None:
        mark = f"86{uuid.uuid4().int % 10**7}"
        job = self.submit(gateway, tmp_path, replace(SUCCEEDS, body=f"setsid sleep {mark} &\nsleep 0.2")).identity
        reaches(gateway, job, JobState.COMPLETED)
        eventually(lambda: True if not processes_with(mark) else None)

    def test_cancelling_ends_what_moved_to_a_session_of_its_own(self, gateway: LocalGateway, tmp_path: Path) -> None:
        mark = f"85{uuid.uuid4().int % 10**7}"
        job = self.submit(gateway, tmp_path, replace(GOES_ON, body=f"setsid sleep {mark} &\nsleep 600")).identity
        eventually(lambda: processes_with(mark) or None)
        gateway.cancel(job)
        reaches(gateway, job, JobState.CANCELLED)
        eventually(lambda: True if not processes_with(mark) else None)

    def test_submission_cut_off_half_way_is_no_job_and_disturbs_none(
        self, make_gateway: Callable[..., LocalGateway], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before, tag = utc_now(), some_tag()
        gateway = make_gateway()
        gateway.check()
        full = OSError(errno.ENOSPC, "No space left on device")
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", lambda *_: _raise(full))
            with pytest.raises(GatewayUnavailable, match="No space left") as error:
                self.submit(gateway, tmp_path, SUCCEEDS, tag)
        assert error.value.remedy
        # A crash in the same place can't tidy up.
        (tmp_path / "local" / "jobs" / ".new-2").mkdir()
        (tmp_path / "local" / "active" / "2").touch()
        (tmp_path / "local" / "counter").write_text("2")
        later = make_gateway()
        assert later.find(tag, since=before) == ()
        job = self.submit(later, tmp_path, SUCCEEDS, tag).identity
        assert job.job_id == 3
        reaches(later, job, JobState.COMPLETED)
        assert [path.name for path in (tmp_path / "local" / "jobs").iterdir()] == ["3"]

    def test_waiting_job_that_is_cancelled_never_runs(
        self, make_gateway: Callable[..., LocalGateway], tmp_path: Path
    ) -> None:
        gateway = make_gateway(parallel=1)
        first = self.submit(gateway, tmp_path, GOES_ON).identity
        second = self.submit(gateway, tmp_path, replace(SUCCEEDS, body=f"touch {tmp_path}/ran")).identity
        gateway.cancel(second)
        assert gateway.poll([second])[second].state is JobState.CANCELLED
        gateway.cancel(first)
        reaches(gateway, first, JobState.CANCELLED)
        third = self.submit(gateway, tmp_path, SUCCEEDS).identity
        reaches(gateway, third, JobState.COMPLETED)
        assert not (tmp_path / "ran").exists()

    def test_script_that_ignores_sigterm_is_killed_after_the_grace(self, gateway: LocalGateway, tmp_path: Path) -> None:
        work = replace(GOES_ON, body="trap '' TERM; echo ready; while :; do sleep 0.1; done")
        job = self.submit(gateway, tmp_path, work).identity
        log = tmp_path / f"job-{job.job_id}.log"
        eventually(lambda: True if log.exists() and log.read_text() else None)
        gateway.cancel(job)
        assert reaches(gateway, job, JobState.CANCELLED).signal == signal.SIGKILL

    def test_jobs_that_ended_long_ago_are_cleared_away_at_a_start_and_no_others(
        self, make_gateway: Callable[..., LocalGateway], tmp_path: Path
    ) -> None:
        gateway = make_gateway()
        old, new, running = (self.submit(gateway, tmp_path, work).identity for work in (SUCCEEDS, SUCCEEDS, GOES_ON))
        for job in (old, new):
            reaches(gateway, job, JobState.COMPLETED)
        for job in (old, running):
            folder = gateway._queue.folder(job.job_id)
            long_ago = (utc_now() - KEPT_FOR - timedelta(days=1)).timestamp()
            os.utime(folder.path, (long_ago, long_ago))
        again = make_gateway()
        assert set(again.account([old, new, running])) == {new, running}

    def test_script_that_cannot_be_launched_is_a_failure(self, gateway: LocalGateway, tmp_path: Path) -> None:
        work = replace(SUCCEEDS, lines=f"#SBATCH --output={tmp_path}/absent/log")
        job = self.submit(gateway, tmp_path, work).identity
        report = reaches(gateway, job, JobState.FAILED)
        assert "JobLaunchFailure" in report.reason
        assert "absent" in report.reason

    def test_usage_is_measured(self, gateway: LocalGateway, tmp_path: Path) -> None:
        body = f"{sys.executable} -c 'b = bytearray(50_000_000); import time; time.sleep(0.3)'"
        job = self.submit(gateway, tmp_path, replace(SUCCEEDS, body=body)).identity
        reaches(gateway, job, JobState.COMPLETED)
        usage = gateway.account([job])[job].usage
        assert float(usage["elapsed_s"]) >= 0.3
        assert int(usage["max_rss_bytes"]) > 50_000_000


def _found(gateway: Gateway, tag: RunTag) -> bool:
    return bool(gateway.find(tag, since=utc_now() - timedelta(hours=1)))


def _raise(error: Exception) -> NoReturn:
    raise error


@contextmanager
def without_program(monkeypatch: pytest.MonkeyPatch, empty: Path) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(empty))
        yield


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Return a stack of this module's own: its daemons are stopped, hung and killed here."""
    private = Stack(tmp_path_factory.mktemp("cluster"))
    try:
        private.up({"slurm", "accounting", "rest"}, nodes=2)
        yield private
    finally:
        private.down()


class OnTheStack(ScriptsRun):
    """What holds on the real SLURM of the private stack, accounting included, whichever way it is asked."""

    @pytest.fixture(autouse=True)
    def _stack(self, cluster: Stack) -> None:
        self.environment = os.environ | cluster.environment()

    def hand_over(self, gateway: Gateway, folder: Path, work: Work, tag: RerunTag) -> int:  # noqa: ARG002 - as above
        return self.sbatch(folder, work, tag)

    def sbatch(self, folder: Path, work: Work, tag: RerunTag, *options: str) -> int:
        script = folder / "rerun.sbatch"
        own = (directive("job-name", tag.job_name), directive("comment", tag.comment))
        script.write_text("\n".join(["#!/bin/bash", *own, work.lines, work.body, ""]))
        command = ["sbatch", "--parsable", *options, str(script)]
        done = subprocess.run(command, cwd=folder, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    def test_rerun_that_somebody_gave_another_name_is_known_by_its_comment(
        self, gateway: Gateway, tmp_path: Path
    ) -> None:
        before, tag = utc_now(), some_rerun()
        self.sbatch(tmp_path, SUCCEEDS, tag, "--job-name=peaks")
        job = eventually(lambda: _if_ended(gateway.queued_reruns(), tag))
        assert job.report.name == "peaks"
        # By this stack's setting: AccountingStoreFlags=job_comment.
        assert eventually(lambda: _if_ended(gateway.accounted_reruns(since=before), tag)).user == job.user

    def test_jobs_of_other_users_are_listed_and_followed(self, gateway: Gateway, tmp_path: Path) -> None:
        if os.geteuid() != 0:
            pytest.skip("NOT TESTED: only root can submit as another user")
        tag, waits = some_rerun(), Work(body="true", lines=self.held, play=stays_pending)
        own = self.submit(gateway, tmp_path, waits).identity
        self.sbatch(tmp_path, waits, tag, "--uid=nobody", "--chdir=/", "--output=/dev/null")
        job = eventually(lambda: _of(gateway.queued_reruns(), tag))
        identity = job.report.identity
        assert (job.user, job.working_directory) == ("nobody", Path("/"))
        assert gateway.poll([own, identity])[identity].state is JobState.PENDING
        subprocess.run(["scancel", str(identity.job_id)], env=self.environment, check=True)
        gateway.cancel(own)
        for one in (own, identity):
            reaches(gateway, one, JobState.CANCELLED, within_s=20)
            is_accounted(gateway, one, JobState.CANCELLED, within_s=20)

    def test_rerun_that_is_an_array_is_one_job(self, gateway: Gateway, tmp_path: Path) -> None:
        before, tag = utc_now(), some_rerun()
        job_id = self.hand_over(gateway, tmp_path, ARRAY_SUCCEEDS, tag)
        job = eventually(lambda: _if_ended(gateway.queued_reruns(), tag))
        assert job.report.identity.job_id == job_id
        assert len([one for one in gateway.queued_reruns() if one.tag == tag]) == 1
        accounted = eventually(lambda: _if_ended(gateway.accounted_reruns(since=before), tag))
        assert accounted.report.identity.job_id == job_id


@pytest.mark.stack
class TestCli(OnTheStack):
    """The real SLURM of the private stack, accounting included."""

    held: ClassVar[str] = "#SBATCH --hold"

    @pytest.fixture
    def make_gateway(self, cluster: Stack) -> Callable[[Mapping[str, str]], CliGateway]:
        def make(environment: Mapping[str, str] = os.environ, **settings: object) -> CliGateway:
            return CliGateway(environment={**environment, **cluster.environment()}, **settings)

        return make

    @pytest.fixture
    def gateway(self, make_gateway: Callable[..., CliGateway]) -> CliGateway:
        return make_gateway()

    def cancel_all(self, gateway: Gateway, jobs: list[JobIdentity]) -> None:
        assert isinstance(gateway, CliGateway)
        gateway._ask("scancel", *(str(job.job_id) for job in jobs))

    def test_memory_kill_is_not_a_success(self, gateway: CliGateway, tmp_path: Path) -> None:
        hog = f"{sys.executable} -c 'import time; b = bytearray(400_000_000); time.sleep(60)'"
        job = self.submit(gateway, tmp_path, replace(FAILS, body=hog, lines="#SBATCH --mem=100M")).identity
        report = reaches(gateway, job, JobState.OUT_OF_MEMORY, JobState.FAILED, JobState.CANCELLED)
        assert report.signal or report.exit_code
        accounted = is_accounted(gateway, job, report.state)
        assert int(accounted.usage["max_rss_bytes"]) > 100 * 2**20

    def test_requeued_job_keeps_its_identity_with_controller_and_accounting(
        self, gateway: CliGateway, tmp_path: Path
    ) -> None:
        body = f'echo run >> {tmp_path}/runs; [ -n "$SLURM_RESTART_COUNT" ] || sleep 600'
        job = self.submit(gateway, tmp_path, replace(SUCCEEDS, body=body, lines="#SBATCH --requeue")).identity
        reaches(gateway, job, JobState.RUNNING)
        eventually(lambda: True if (tmp_path / "runs").exists() else None)
        gateway._ask("scontrol", "requeue", str(job.job_id))
        assert job in gateway.poll([job])
        waiting = eventually(lambda: r if (r := gateway.poll([job])[job]).restarts else None)
        assert waiting.identity == job
        eventually(lambda: True if gateway.account([job])[job].restarts == 1 else None)
        gateway.cancel(job)
        reaches(gateway, job, JobState.CANCELLED, JobState.COMPLETED)

    def test_node_failure_is_told_and_the_job_requeued(
        self, gateway: CliGateway, cluster: Stack, tmp_path: Path
    ) -> None:
        work = replace(GOES_ON, lines="#SBATCH --requeue\n#SBATCH --nodelist=n2")
        kept = self.submit(gateway, tmp_path, work).identity
        given_up = self.submit(gateway, tmp_path, replace(work, lines=work.lines.replace("requeue", "no-requeue")))
        for job in (kept, given_up.identity):
            reaches(gateway, job, JobState.RUNNING)
        cluster.kill("slurmd-n2")
        try:
            reaches(gateway, given_up.identity, JobState.NODE_FAIL, within_s=150)
            waiting = reaches(gateway, kept, JobState.PENDING, within_s=150)
            assert waiting.restarts == 1
            is_accounted(gateway, given_up.identity, JobState.NODE_FAIL)
        finally:
            gateway.cancel(kept)
            cluster.start("slurmd-n2")

    def test_stopped_controller_is_unavailable_for_every_question(
        self, gateway: CliGateway, cluster: Stack, tmp_path: Path
    ) -> None:
        before, tag = utc_now(), some_tag()
        job = self.submit(gateway, tmp_path, SUCCEEDS).identity
        cluster.stop("slurmctld")
        try:
            calls: tuple[Callable[[], object], ...] = (
                gateway.check,
                lambda: self.submit(gateway, tmp_path, SUCCEEDS, tag),
                lambda: gateway.find(tag, since=before),
                lambda: gateway.poll([job]),
                gateway.queued_reruns,
                lambda: gateway.cancel(job),
            )
            for call in calls:
                with pytest.raises(GatewayUnavailable, match="connect failure") as error:
                    call()
                assert error.value.remedy
        finally:
            cluster.start("slurmctld")
        assert gateway.find(tag, since=before) == ()

    def test_submission_to_a_controller_that_hangs_is_unknown_and_the_job_is_found_later(
        self, gateway: CliGateway, cluster: Stack, tmp_path: Path
    ) -> None:
        before, tag = utc_now(), some_tag()
        gateway.check()
        (controller,) = [daemon for daemon in cluster.status() if daemon.name == "slurmctld"]
        assert controller.pid is not None
        os.kill(controller.pid, signal.SIGSTOP)
        try:
            with pytest.raises(OutcomeUnknown, match="timed out"):
                self.submit(gateway, tmp_path, SUCCEEDS, tag)
        finally:
            os.kill(controller.pid, signal.SIGCONT)
        assert len(eventually(lambda: gateway.find(tag, since=before) or None)) == 1

    def test_sbatch_that_takes_too_long_is_unknown(
        self, make_gateway: Callable[..., CliGateway], cluster: Stack, tmp_path: Path
    ) -> None:
        gateway = make_gateway(submit_timeout_s=1.0)
        gateway.check()
        (controller,) = [daemon for daemon in cluster.status() if daemon.name == "slurmctld"]
        assert controller.pid is not None
        os.kill(controller.pid, signal.SIGSTOP)
        try:
            with pytest.raises(OutcomeUnknown, match="within 1 s"):
                self.submit(gateway, tmp_path, SUCCEEDS)
        finally:
            os.kill(controller.pid, signal.SIGCONT)

    def test_stopped_accounting_is_told_from_absent_accounting(
        self, make_gateway: Callable[..., CliGateway], cluster: Stack, tmp_path: Path
    ) -> None:
        gateway = make_gateway()
        before, tag = utc_now(), some_tag()
        job = self.submit(gateway, tmp_path, SUCCEEDS, tag).identity
        reaches(gateway, job, JobState.COMPLETED)
        cluster.stop("slurmdbd")
        try:
            with pytest.raises(GatewayUnavailable):
                gateway.account([job])
            assert [report.identity for report in gateway.find(tag, since=before)] == [job]
            with pytest.raises(GatewayUnavailable):
                gateway.find(some_tag(), since=before)
            with pytest.raises(GatewayUnavailable):
                gateway.accounted_reruns(since=before)
        finally:
            cluster.start("slurmdbd")
        without = tmp_path / "slurm.conf"
        text = cluster.layout.slurm_conf.read_text()
        without.write_text(text.replace("accounting_storage/slurmdbd", "accounting_storage/none"))
        unaccounted = CliGateway(environment={**os.environ, "SLURM_CONF": str(without)})
        assert unaccounted.account([job]) == {}
        assert unaccounted.accounted_reruns(since=before) == []
        assert unaccounted.find(some_tag(), since=before) == ()

    def test_missing_programs_are_named_with_the_remedy(
        self, make_gateway: Callable[..., CliGateway], tmp_path: Path
    ) -> None:
        gateway = make_gateway(programs=tmp_path)
        with pytest.raises(GatewayUnavailable, match="scontrol") as error:
            gateway.check()
        assert "local" in error.value.remedy

    @pytest.mark.parametrize(
        ("line", "option"),
        [
            ("--partition=nonsense", "--partition"),
            ("--mem=100000G", "--mem"),
            ("--constraint=nonsense", "--constraint"),
            ("--nodelist=nonsense", "--nodelist"),
            ("--gres=gpu:9", "--gres"),
            ("--reservation=nonsense", "--reservation"),
            ("--time=nonsense", "--time"),
            ("--nonsense", "#SBATCH"),
        ],
    )
    def test_refusal_names_the_option(self, gateway: CliGateway, tmp_path: Path, line: str, option: str) -> None:
        with pytest.raises(SubmitRefused) as refusal:
            self.submit(gateway, tmp_path, replace(SUCCEEDS, lines=f"#SBATCH {line}"))
        assert option in refusal.value.remedy


@pytest.mark.stack
class TestCliOfALongQueue(OnTheStack):
    """The same route where it asks for the whole queue only now and then."""

    held: ClassVar[str] = "#SBATCH --hold"

    @pytest.fixture
    def make_gateway(self, cluster: Stack) -> Callable[[Mapping[str, str]], CliGateway]:
        def make(environment: Mapping[str, str] = os.environ) -> CliGateway:
            return CliGateway(environment={**environment, **cluster.environment()}, long_queue=0)

        return make

    @pytest.fixture
    def gateway(self, make_gateway: Callable[..., CliGateway]) -> CliGateway:
        return make_gateway()

    def cancel_all(self, gateway: Gateway, jobs: list[JobIdentity]) -> None:
        assert isinstance(gateway, CliGateway)
        gateway._ask("scancel", *(str(job.job_id) for job in jobs))

    def test_jobs_that_begin_end_and_wait_again_are_told_at_once(self, gateway: CliGateway, tmp_path: Path) -> None:
        work = Work(body='[ -n "$SLURM_RESTART_COUNT" ] || sleep 600', lines="#SBATCH --hold", play=stays_pending)
        jobs = [self.submit(gateway, tmp_path, work).identity for _ in range(3)]
        first, second, third = jobs
        assert {report.state for report in gateway.poll(jobs).values()} == {JobState.PENDING}
        gateway._ask("scontrol", "release", str(first.job_id))
        told = eventually(lambda: t if (t := gateway.poll(jobs))[first].state is JobState.RUNNING else None)
        gateway.cancel(second)
        later = gateway.poll(jobs)
        assert later[second].state is JobState.CANCELLED
        assert later[third] is told[third]
        gateway._ask("scontrol", "requeuehold", str(first.job_id))
        again = reaches(gateway, first, JobState.PENDING, within_s=9)
        assert again.identity == first
        for job in (first, third):
            gateway.cancel(job)


@pytest.mark.stack
@pytest.mark.pyslurm
class TestPyslurm(OnTheStack):
    """The real SLURM of the private stack through libslurm; what only this route has is in test_pyslurm.py."""

    held: ClassVar[str] = "#SBATCH --hold"

    @pytest.fixture
    def make_gateway(self, cluster: Stack, pyslurm_python: Path) -> Iterator[Callable[..., PyslurmGateway]]:
        made: list[PyslurmGateway] = []

        def make(environment: Mapping[str, str] = os.environ) -> PyslurmGateway:
            made.append(PyslurmGateway(python=pyslurm_python, environment={**environment, **cluster.environment()}))
            return made[-1]

        yield make
        for gateway in made:
            gateway.close()

    @pytest.fixture
    def gateway(self, make_gateway: Callable[..., PyslurmGateway]) -> PyslurmGateway:
        return make_gateway()


@pytest.mark.stack
class TestRest(OnTheStack):
    """The real slurmrestd of the private stack; what only this route has is in test_rest.py."""

    held: ClassVar[str] = "#SBATCH --hold"
    # Version 0.0.38 of the API calls every exit code in accounting 0, which is read as not known.
    three_in_accounting: ClassVar[int | None] = None

    @pytest.fixture
    def make_gateway(self, cluster: Stack, tmp_path: Path) -> Iterator[Callable[..., RestGateway]]:
        made: list[RestGateway] = []
        token = tmp_path / "token"
        token.write_text(cluster.token())

        def make(environment: Mapping[str, str] = os.environ) -> RestGateway:
            url = cluster.environment()["ORCHESTRATOR_SLURMRESTD_URL"]
            made.append(RestGateway(url=url, token_file=token, environment=environment))
            return made[-1]

        yield make
        for gateway in made:
            gateway.close()

    @pytest.fixture
    def gateway(self, make_gateway: Callable[..., RestGateway]) -> RestGateway:
        return make_gateway()
