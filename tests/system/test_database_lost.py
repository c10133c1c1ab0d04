"""The database is lost with every kind of run in it; the runs' directories bring all of them back.

One beamline on a real SLURM with accounting and a broker. Its runs are made side by side, most ended, some under way;
then the service is stopped, the database deleted and made anew from the directories, and each run is compared with what
was known of it before. In the end the service goes on with those that were under way.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.demonstration import shipped
from orchestrator.listening.stomp import publish
from orchestrator.messages import start_document
from orchestrator.provenance import RunDetail
from orchestrator.records import CollectionStart, RunState
from orchestrator.runs import RunDirectory
from orchestrator.service import open_store
from orchestrator.stack import Stack
from tests.system.beamline import Beamline, processed, slurm, slurm_jobs

pytestmark = pytest.mark.stack

FRAMES = 10
HEADERS = {"operator": "Jürgen", "energy": "12.4 keV, 5 µm"}
LONG = 1500
"""Of the scan that goes on while the database is lost; at ten a second."""

HOG = """#!/bin/bash
{% include "_sbatch.j2" %}

{% include "_begin.j2" %}

"$python" -c 'import time; hog = bytearray(600_000_000); time.sleep(60)'
"""
SECOND_TIME = """{% include "_kernel.j2" %}

[ -d attempts/2 ] || exit 9
"""
"""Fails at the first attempt."""

CHAIN = ("reduce", "average", "report")
ENDED: Mapping[str, RunState] = {
    "failed": RunState.FAILED,
    "memory": RunState.FAILED,
    "retried": RunState.COMPLETE,
    "array": RunState.COMPLETE,
    "requeued": RunState.COMPLETE,
    "nowhere": RunState.REFUSED,
    "broken": RunState.REFUSED,
    "cancelled": RunState.CANCELLED,
    "scancelled": RunState.CANCELLED,
    "unsent": RunState.CANCELLED,
}
"""How the runs end that are made by one recipe each, which has the name of its collection."""


def recipe(name: str, **more: object) -> dict[str, object]:
    plain = {"kernel": "azimuthal", "template": "azimuthal.sbatch.j2", "parameters": {"bins": 50}}
    return plain | {"match": {"scan_type": name}} | more


def site_changes(templates: Path) -> dict[str, object]:
    chain = tomllib.loads(shipped("site-configs", "chain.toml").read_text())["recipes"]
    names = [name for name in ENDED if name not in {"nowhere", "unsent", "memory"}]
    recipes: dict[str, object] = {name: recipe(name) for name in [*names, "waiting"]}
    recipes |= {name: chain[name] | {"match": {"scan_type": "chain"}} for name in CHAIN}
    recipes["reduce"] = recipe("chain")
    recipes["memory"] = recipe("memory", template="hog.sbatch.j2", retries={"out-of-memory": {"times": 0}})
    recipes["retried"] = recipe(
        "retried", template="second.sbatch.j2", retries={"failed": {"times": 1, "exit_codes": [9]}}
    )
    recipes["array"] = recipe("array", array={"parameter": "bins", "values": [20, 40]})
    recipes["nowhere"] = recipe("nowhere", resources={"partition": "nowhere"})
    recipes["broken"] = recipe("broken", template="broken.sbatch.j2")
    recipes["unsent"] = recipe("unsent", resources={"partition": "urgent"})
    recipes["unsent_too"] = recipe("unsent_too", resources={"partition": "urgent"})
    recipes["behind"] = recipe("unsent_too", after="unsent_too")
    recipes["waiting"] = recipe("waiting", resources={"partition": "debug"})
    return {
        "templates": str(templates),
        "recipes": recipes,
        "gateway.poll_interval_s": 0.5,
        "gateway.submit_deadline_s": 10.0,
        "gateway.absence_grace_s": 5.0,
        "defaults.launcher": "none",
        "defaults.appear_timeout_s": 300.0,
        "defaults.stall_timeout_s": 120.0,
        "defaults.resources": {"ntasks": 1, "memory_mb": 400, "time_limit_min": 20},
    }


def own_templates(folder: Path) -> Path:
    shutil.copytree(shipped("jobtemplates"), folder)
    whole = (folder / "azimuthal.sbatch.j2").read_text()
    (folder / "hog.sbatch.j2").write_text(HOG)
    (folder / "second.sbatch.j2").write_text(whole.replace('{% include "_kernel.j2" %}\n', SECOND_TIME))
    (folder / "broken.sbatch.j2").write_text(whole + "\necho {{ no_such_thing }}\n")
    return folder


class Site(Beamline):
    """A beamline whose collections say by their scan type which recipe they are for."""

    def wants(self, uid: str, frames: int | None = FRAMES, *, scan_type: str = "", file: str = "") -> bytes:
        start = CollectionStart(
            uid=uid,
            beamline="demo",
            detector="simulated",
            scan_type=scan_type or uid,
            file=self.file(file or uid),
            dataset="/entry/data/nothing" if uid == "failed" else "/entry/data/data",
            frames_expected=frames,
        )
        body = start_document(start)
        assert self.settings.stomp is not None
        publish(self.settings.stomp, body, headers=HEADERS)
        return body

    def runs_of(self, uid: str) -> dict[str, RunDetail]:
        return {run.recipe: self.store.run(run.run_id) for run in self.store.runs(uid=uid)}

    def everything(self) -> dict[str, RunDetail]:
        return {run.run_id: self.store.run(run.run_id) for run in self.store.runs(limit=1000)}

    def until(self, condition: Callable[[], object], *, within_s: float = 120) -> None:
        deadline = time.monotonic() + within_s
        while not condition():
            states = [(run.collection_uid, run.recipe, str(run.state), run.reason) for run in self.store.runs()]
            assert time.monotonic() < deadline, (states, self.log())
            time.sleep(0.3)

    def knows_all(self) -> bool:
        """Whether every ended run has been examined, and its record tells what came of that."""
        return not self.store.due_records() and not self.store.due_examinations()

    def has_ended(self, uid: str, recipe: str = "") -> bool:
        runs = self.runs_of(uid)
        return bool(runs) and all(run.summary.state.ended for name, run in runs.items() if recipe in {"", name})


@dataclass
class Lost:
    """What there was, and what came back."""

    site: Site
    stack: Stack
    before: dict[str, RunDetail]
    messages: dict[str, bytes]
    imported: dict[str, RunDetail]
    said: str


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    private = Stack(tmp_path_factory.mktemp("cluster"))
    try:
        private.up({"slurm", "broker", "accounting"}, nodes=2)
        yield private
    finally:
        private.down()


@pytest.fixture(scope="module")
def lost(cluster: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lost]:
    """Make all runs, lose the database, and bring it back; the scan of `live` goes on until after the tests."""
    folder = tmp_path_factory.mktemp("lost")
    site = Site(folder / "site", cluster, site_changes(own_templates(folder / "templates")))
    slurm(cluster, "scontrol", "update", "partition=debug", "state=DOWN")  # takes jobs, and starts none
    slurm(cluster, "scontrol", "update", "partition=urgent", "state=INACTIVE")  # takes none
    site.start_service()
    with ExitStack() as detectors:
        messages = make_runs(site, cluster, detectors)
        site.stop_service()
        before = site.everything()
        site.file("array").unlink()
        site.store.close()
        for path in site.directory.glob("provenance.sqlite*"):
            path.unlink()
        done = site.command("db", "import", str(site.settings.runs_root))
        done_there = site.command("db", "import", str(site.directory / "home"))
        assert (done.returncode, done_there.returncode) == (0, 0), (done, done_there)
        site.store = open_store(site.settings)
        imported = site.everything()
        yield Lost(site, cluster, before, messages, imported, done.stdout + done_there.stdout)
        site.close()


def make_runs(site: Site, cluster: Stack, detectors: ExitStack) -> dict[str, bytes]:
    """Make a run of every kind; return the messages by their uids."""
    messages = {}
    long = ("--number", str(LONG), "--rate", "10")
    detectors.enter_context(site.detector("live", *long))
    for uid in ("failed", "array", "retried"):
        with site.detector(uid, "--number", str(FRAMES), "--rate", "inf") as detector:
            detector.wait(60)
    detectors.enter_context(site.detector("chain", "--number", str(FRAMES), "--rate", "5"))
    messages["chain"] = site.wants("chain", scan_type="chain")
    for uid in [*ENDED, "waiting", "unsent_too"]:
        messages[uid] = site.wants(uid)
    messages["live"] = site.wants("live", LONG, scan_type="chain")
    end_some(site, cluster)
    site.until(lambda: site.has_ended("chain"))
    make_again(site, cluster)
    site.until(lambda: all(site.has_ended(uid) for uid in ENDED), within_s=180)
    site.until(lambda: processed(1)(site.runs_of("live")["reduce"]))
    site.until(lambda: site.runs_of("live")["report"].summary.state is RunState.PENDING)
    site.until(lambda: site.runs_of("waiting")["waiting"].summary.state is RunState.PENDING)
    site.until(RunDirectory(site.runs_of("unsent_too")["behind"].summary.run_directory).plan.exists)
    site.until(site.knows_all)
    site.until(lambda: all(knows_usage(run) for run in site.everything().values()))
    site.until(site.knows_all)
    return messages


def knows_usage(run: RunDetail) -> bool:
    """Whether all is known of a run that will be: what accounting tells of its jobs comes late."""
    reports = [attempt.last_report for attempt in run.attempts if attempt.last_report is not None]
    return all(report.usage for report in reports if report.state.ended and report.started_at is not None)


def job_of(site: Site, uid: str) -> str:
    job = site.runs_of(uid)[uid].summary.job
    assert job is not None
    return str(job.job_id)


def end_some(site: Site, cluster: Stack) -> None:
    """Cancel runs, and requeue one."""
    for uid in ("cancelled", "scancelled", "requeued"):
        site.wait_for(uid, lambda run: any(event.kind == "begin" for event in run.events), within_s=120)
    assert site.command("cancel", site.runs_of("cancelled")["cancelled"].summary.run_id).returncode == 0
    slurm(cluster, "scancel", job_of(site, "scancelled"))
    number = job_of(site, "requeued")
    slurm(cluster, "scontrol", "requeue", number)
    slurm(cluster, "scontrol", "update", f"JobId={number}", "StartTime=now")
    with site.detector("requeued", "--number", str(FRAMES), "--rate", "inf") as detector:
        detector.wait(60)
    site.wait_for("unsent", lambda run: run.summary.state is RunState.PLANNED and run.summary.reason != "")
    assert site.command("cancel", site.runs_of("unsent")["unsent"].summary.run_id).returncode == 0


def make_again(site: Site, cluster: Stack) -> None:
    """Make one run again through the service, and with sbatch: at the usual place and elsewhere."""
    first = site.runs_of("chain")["reduce"].summary
    again = site.command("rerun", first.run_id, "--set", "bins=77", "--because", "finer")
    assert again.returncode == 0, again.stderr
    text = RunDirectory(first.run_directory).rerun.read_text()
    home = site.directory / "home"
    home.mkdir()
    for name, root in (("here", site.settings.runs_root), ("there", home)):
        script = site.directory / f"{name}.sbatch"
        lines = [f"root={root}" if line.startswith("root=") else line for line in text.splitlines()]
        edited = "\n".join(lines).replace("bins = 50", "bins = 33").replace("because=\n", f"because='by hand {name}'\n")
        script.write_text(edited + "\n")
        environment = os.environ | cluster.environment()
        subprocess.run(["sbatch", script], env=environment, cwd=site.directory, check=True, capture_output=True)
    site.until(lambda: len([run for run in site.store.runs(parent=first.run_id) if run.state.ended]) == 3)


def same_but_for_numbers(run: RunDetail, other: RunDetail) -> RunDetail:
    """Return a run with the number of its message taken from another one; messages get new numbers."""
    if run.message is None or other.message is None:
        return run
    return replace(run, message=replace(run.message, message_id=other.message.message_id))


def test_every_kind_of_run_was_made(lost: Lost) -> None:
    made = {(run.summary.collection_uid, run.summary.recipe): run.summary.state for run in lost.before.values()}
    assert {uid: made[uid, uid] for uid in ENDED} == ENDED
    assert {made["chain", name] for name in CHAIN} == {RunState.COMPLETE}
    assert made["live", "reduce"] is RunState.RUNNING
    assert {made["live", name] for name in CHAIN[1:]} == {RunState.PENDING}
    assert made["waiting", "waiting"] is RunState.PENDING
    assert {made["unsent_too", name] for name in ("unsent_too", "behind")} == {RunState.PLANNED}
    requeued = next(run for run in lost.before.values() if run.plan.recipe == "requeued").attempts[0].last_report
    assert requeued is not None
    assert requeued.restarts == 1
    assert all(
        run.message is not None and run.message.raw.headers.items() >= HEADERS.items() for run in lost.before.values()
    )
    by_hand = [run for run in lost.before.values() if run.made_by_hand]
    assert {run.plan.because for run in by_hand} == {"by hand here", "by hand there"}
    assert all(run.summary.state is RunState.COMPLETE for run in by_hand)


def test_every_run_that_had_ended_is_as_it_was(lost: Lost) -> None:
    ended = {run_id: run for run_id, run in lost.before.items() if run.summary.state.ended}
    assert len(ended) == len(ENDED) + len(CHAIN) + 3
    for run_id, run in ended.items():
        assert same_but_for_numbers(lost.imported[run_id], run) == run


def test_every_run_that_had_not_ended_is_as_far_as_it_was(lost: Lost) -> None:
    assert lost.imported.keys() == lost.before.keys()
    states = {}
    for run_id, before in lost.before.items():
        if before.summary.state.ended:
            continue
        now = lost.imported[run_id]
        states[now.summary.collection_uid, now.summary.recipe] = now.summary.state
        assert now.plan == before.plan
        assert now.message is not None
        assert before.message is not None
        assert now.message.raw.body == before.message.raw.body
        assert [one.script_text for one in now.attempts] == [one.script_text for one in before.attempts]
        assert [one.template_text for one in now.attempts] == [one.template_text for one in before.attempts]
    assert states == {
        ("live", "reduce"): RunState.RUNNING,
        ("live", "average"): RunState.SUBMITTING,
        ("live", "report"): RunState.SUBMITTING,
        ("waiting", "waiting"): RunState.SUBMITTING,
        ("unsent_too", "unsent_too"): RunState.SUBMITTING,
        ("unsent_too", "behind"): RunState.PLANNED,
    }


def test_the_new_database_fits_the_directories_and_the_commands_use_it(lost: Lost) -> None:
    site = lost.site
    checked = site.command("db", "check")
    assert (checked.returncode, checked.stdout) == (0, f"{len(lost.before)} runs, 0 findings\n"), checked
    again = site.command("db", "import", str(site.settings.runs_root))
    assert again.returncode == 0
    assert again.stdout.startswith("0 runs brought back, ")
    assert site.everything() == lost.imported
    first = next(
        run
        for run in lost.before.values()
        if run.summary.collection_uid == "chain" and run.plan.recipe == "reduce" and run.summary.parent_run is None
    )
    finer = next(run for run in lost.before.values() if run.plan.because == "finer")
    assert "77" in site.command("diff", first.summary.run_id, finer.summary.run_id).stdout
    listed = json.loads(site.command("runs", "--json", "--limit", "100").stdout)
    assert {run["run_id"] for run in listed} == lost.before.keys()
    for run_id, run in lost.before.items():
        shown = CliRunner(env={"ORCHESTRATOR_SITE": str(site.site)}).invoke(app, ["show", run_id])
        assert (shown.exit_code, run.summary.collection_uid in shown.stdout) == (0, True), shown.output
    average = next(
        run for run in lost.before.values() if run.summary.collection_uid == "chain" and run.plan.recipe == "average"
    )
    walked = site.command("lineage", str(RunDirectory(average.summary.run_directory).result))
    assert first.summary.run_id[:8] in walked.stdout
    assert str(site.file("chain")) in walked.stdout


def test_the_service_goes_on_with_what_was_under_way_and_submits_nothing_twice(lost: Lost) -> None:
    site, cluster = lost.site, lost.stack
    jobs = slurm_jobs(cluster)
    running = slurm(cluster, "squeue", "--noheader", "--states=R", "--format=%j").split()
    assert running == [site.runs_of("live")["reduce"].attempts[0].tag.job_name], "nothing was under way any more"
    site.start_service()
    publish(site.settings.stomp, lost.messages["live"])  # type: ignore[arg-type]
    publish(site.settings.stomp, lost.messages["chain"])  # type: ignore[arg-type]
    with site.detector("waiting", "--number", str(FRAMES), "--rate", "inf") as detector:
        detector.wait(60)
    shutil.copy(site.file("waiting"), site.file("unsent_too"))
    site.until(lambda: site.runs_of("waiting")["waiting"].summary.state is RunState.PENDING)
    slurm(cluster, "scontrol", "update", "partition=debug", "state=UP")
    slurm(cluster, "scontrol", "update", "partition=urgent", "state=UP")
    site.until(lambda: all(run.summary.state.ended for run in site.everything().values()), within_s=180)
    now = site.everything()
    assert now.keys() == lost.before.keys()
    for run_id, before in lost.before.items():
        if not before.summary.state.ended:
            assert now[run_id].summary.state is RunState.COMPLETE, now[run_id].summary.reason
            assert len(now[run_id].attempts) == 1
    new = slurm_jobs(cluster)
    assert {name: new.count(name) for name in new if name not in jobs} == {
        run.attempts[0].tag.job_name: 1 for uid in ("unsent_too",) for run in site.runs_of(uid).values()
    }
    assert all(new.count(name) == jobs.count(name) for name in jobs)
    live = site.runs_of("live")["reduce"]
    assert live.summary.counts is not None
    assert live.summary.counts.processed == LONG
    assert {event.kind for event in live.events} >= {"begin", "end"}
    assert [output.kind for output in live.outputs] == ["result", "log"]
    site.until(site.knows_all)
    verified = site.command("verify", next(run.summary.run_id for run in now.values() if run.plan.because == "finer"))
    assert verified.stdout.startswith("identical"), (verified.stdout, verified.stderr)
    site.until(site.knows_all)
    site.stop_service()
    checked = site.command("db", "check")
    assert checked.returncode == 0, checked.stdout


def test_check_tells_each_thing_that_does_not_fit(lost: Lost) -> None:
    site = lost.site
    site.stop_service()
    runs = {
        uid: site.runs_of(uid)[uid].summary for uid in ("retried", "array", "requeued", "memory", "failed", "unsent")
    }
    folders = {uid: RunDirectory(run.run_directory) for uid, run in runs.items()}
    moved = folders["unsent"].path.rename(folders["unsent"].path.with_name("elsewhere"))
    away = folders["failed"].path.rename(site.directory / "away")
    edit(folders["memory"].provenance, '"state": "failed"', '"state": "complete"')
    edit(folders["retried"].script, "exit 9", "exit 8")
    edit(folders["retried"].plan, '"bins"', '"binz"')
    edit(folders["requeued"].result, "", "one byte more")
    shutil.copytree(folders["array"].path, folders["array"].path.with_name("copy"))
    stranger = folders["array"].path.with_name("stranger")
    shutil.copytree(folders["array"].path, stranger)
    edit(stranger / "provenance.json", runs["array"].run_id, "11111111-1111-4111-8111-111111111111")
    checked = site.command("db", "check", "--json")
    assert checked.returncode == 6, checked.stderr
    found = [(one["kind"], one["run_id"], Path(one["path"]).name) for one in json.loads(checked.stdout)]
    assert sorted(found) == sorted(
        [
            ("no directory", runs["unsent"].run_id, folders["unsent"].path.name),
            ("no directory", runs["failed"].run_id, folders["failed"].path.name),
            ("record", runs["memory"].run_id, "provenance.json"),
            ("digest", runs["retried"].run_id, "script.sbatch"),
            ("digest", runs["retried"].run_id, "plan.json"),
            ("digest", runs["requeued"].run_id, "result.nxs"),
            ("copy", runs["array"].run_id, "copy"),
            ("no run", "11111111-1111-4111-8111-111111111111", "provenance.json"),
        ]
    )
    said = site.command("db", "check").stdout
    assert f"it is {moved}\n  move it back" in said
    assert f"{folders['failed'].path}: the run's directory isn't there\n  bring it back from a backup" in said
    away.rename(folders["failed"].path)


def edit(file: Path, before: str, after: str) -> None:
    """Change a file by hand; without `before`, put something at its end."""
    if not before:
        with file.open("ab") as stream:
            stream.write(after.encode())
        return
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))
