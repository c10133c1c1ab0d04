"""``watch`` and ``log`` while runs go on."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from orchestrator.cli.common import ExitCode
from orchestrator.cli.watch import bars, current
from orchestrator.records import JobState, RunState
from tests.unit.site_with_runs import SiteWithRuns

PATIENCE_S = 30.0


@contextmanager
def meanwhile(*steps: Callable[[], object], pause_s: float = 0.15) -> Iterator[None]:
    """Take steps one after another in a thread of their own while a command runs; a step that fails is raised."""
    failed: list[BaseException] = []

    def walk() -> None:
        try:
            for step in steps:
                time.sleep(pause_s)
                step()
        except BaseException as error:
            failed.append(error)
            raise

    thread = threading.Thread(target=walk)
    thread.start()
    yield
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert not failed


def append(path: Path, text: str) -> None:
    with path.open("a") as stream:
        stream.write(text)


# ------------------------------------------------------------------------------------------------------- watch


def test_each_change_of_a_run_is_a_line_and_a_complete_end_is_exit_code_0(site: SiteWithRuns) -> None:
    tag = site.submitted()
    steps = (
        lambda: site.begun(tag),
        lambda: site.kernel_says(tag, 10),
        lambda: site.kernel_says(tag, 150),
        lambda: site.counts(tag),
        lambda: site.ended(tag, RunState.COMPLETE, "all frames processed"),
    )
    with meanwhile(*steps):
        lines = site.call("watch", tag.run_id, "--interval", "0.05").splitlines()
    assert all(tag.run_id in line for line in lines)
    assert len(set(lines)) == len(lines)
    assert any("written 12/200 processed 10  2 behind" in line for line in lines)
    assert "complete" in lines[-1]
    assert "on n[1-2]" in lines[-1]
    assert lines[-1].endswith("all frames processed")


def test_a_job_that_waits_is_told_with_the_reason(site: SiteWithRuns) -> None:
    tag = site.submitted()
    site.report(tag, JobState.PENDING, reason="Resources", started_at=None)
    steps = (lambda: site.begun(tag), lambda: site.ended(tag, RunState.COMPLETE, "done"))
    with meanwhile(*steps, pause_s=2):  # longer than the command takes to look for the first time
        first, *_, last = site.call("watch", "latest", "--interval", "0.05").splitlines()
    assert first.endswith("its job waits: it waits for nodes to become free (Resources)")
    assert last.endswith("done")


def test_a_run_that_does_not_end_complete_is_exit_code_6_and_json_tells_why(site: SiteWithRuns) -> None:
    tag = site.submitted()
    site.ended(tag, RunState.FAILED, "the input can't be used")
    (line,) = site.call("watch", "latest", "--json", code=ExitCode.INCOMPLETE).splitlines()
    told = json.loads(line)
    assert (told["run"], told["state"], told["reason"]) == (tag.run_id, "failed", "the input can't be used")
    assert told["frames_written"] is None


def test_without_a_run_it_follows_all_until_it_is_interrupted(site: SiteWithRuns) -> None:
    first, second = site.submitted("c-1"), site.planned("c-2")
    command = [sys.executable, "-m", "orchestrator", "watch", "--interval", "0.05", "--site", str(site.file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        begin = {process.stdout.readline().split()[1] for _ in range(2)}
        site.ended(first, RunState.FAILED, "gone")
        ended = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest, said = process.communicate(timeout=PATIENCE_S)
    assert begin == {first.run_id, second.run_id}
    assert first.run_id in ended
    assert "failed" in ended
    assert (process.returncode, rest, said) == (0, "", "Runs go on.\n")


def test_the_kernels_own_word_is_newer_than_the_stores(site: SiteWithRuns) -> None:
    tag = site.submitted()
    summary = site.store.run(tag.run_id).summary
    assert current(summary) == summary
    site.kernel_says(tag, 20)
    told = current(summary).counts
    assert told is not None
    assert (told.written, told.processed) == (22, 20)
    site.attempt(tag).progress.write_text("{")
    assert current(summary) == summary


def test_bars_fit_a_terminal_of_80_columns(site: SiteWithRuns) -> None:
    tag = site.submitted()
    site.begun(tag)
    site.counts(tag, written=100, processed=50)
    screen = io.StringIO()
    Console(file=screen, width=80, force_terminal=True, color_system=None).print(
        bars([site.store.run(tag.run_id).summary])
    )
    heading, written, processed = screen.getvalue().splitlines()
    assert heading == f"{tag.run_id[:8]}  running  azimuthal of c-1.h5  job live:42 on n[1-2]"
    assert "100/200" in written
    assert written.count("━") == 2 * processed.count("━") > 0
    assert processed.rstrip().endswith("lag 4 ms, 50 behind")
    assert all(len(line) <= 80 for line in (heading, written, processed))


# --------------------------------------------------------------------------------------------------------- log


def test_the_log_is_printed_as_it_is(site: SiteWithRuns) -> None:
    tag = site.submitted()
    site.attempt(tag).log.write_text("[bold]µ\x1b[0m\nsecond\n")
    assert site.call("log", tag.run_id) == "[bold]µ\x1b[0m\nsecond\n"


def test_a_job_that_printed_nothing_is_no_riddle(site: SiteWithRuns) -> None:
    tag = site.submitted()
    site.attempt(tag).log.touch()
    assert site.call("log", tag.run_id) == ""
    assert "has printed nothing" in site.said


def test_a_log_that_is_not_there_is_explained(site: SiteWithRuns) -> None:
    tag = site.submitted()
    site.call("log", tag.run_id, code=ExitCode.NOT_FOUND)
    assert "the run is pending; add -f to wait for its job" in site.said
    site.ended(tag, RunState.FAILED, "the node died")
    site.call("log", tag.run_id, code=ExitCode.NOT_FOUND)
    assert "the run is failed: the node died" in site.said
    site.call("log", tag.run_id, "--attempt", "7", code=ExitCode.NOT_FOUND)
    assert "attempts/7/job.log" in site.said


def test_following_a_log_ends_with_the_run_and_loses_no_last_line(site: SiteWithRuns) -> None:
    tag = site.submitted()
    log = site.attempt(tag).log
    steps = (
        lambda: append(log, "first\n"),
        lambda: append(log, "second\n"),
        lambda: (append(log, "last\n"), site.ended(tag, RunState.PARTIAL, "frames are missing")),
    )
    with meanwhile(*steps):
        assert site.call("log", tag.run_id, "-f") == "first\nsecond\nlast\n"
    assert f"run {tag.run_id} is partial: frames are missing" in site.said


def test_following_a_requeued_jobs_log_begins_anew(site: SiteWithRuns) -> None:
    tag = site.submitted()
    log = site.attempt(tag).log
    log.write_text("a long first start\n")
    steps = (lambda: log.write_text("again\n"), lambda: site.ended(tag, RunState.COMPLETE))
    with meanwhile(*steps, pause_s=1.0):
        assert site.call("log", tag.run_id, "-f") == "a long first start\nagain\n"


def test_a_reader_that_goes_away_is_no_fault(site: SiteWithRuns) -> None:
    tag = site.submitted()
    site.attempt(tag).log.write_text("x\n" * 1_000_000)
    command = f"{sys.executable} -m orchestrator log {tag.run_id} | head -n 1"
    done = subprocess.run(
        ["bash", "-c", command],
        env=os.environ | {"ORCHESTRATOR_SITE": str(site.file)},
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    )
    assert (done.stdout, done.stderr) == ("x\n", "")
