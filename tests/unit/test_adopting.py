"""Runs that people made with sbatch come home; what can't be used, or isn't theirs, is put aside with the reason."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from orchestrator import adopting
from orchestrator.adopting import ASIDE, COMPARED
from orchestrator.provenance import RunDetail, plan_to_json
from orchestrator.records import JobState, Origin, Retries, RetryRule, RunState, sha256_of, utc_now
from orchestrator.rerunning import user_name
from orchestrator.runs import RECORDS, RunDirectory
from tests.unit.reruns import IN_A_JOB, Reruns, plan_of

NOBODY = 65534


@pytest.fixture
def reruns(tmp_path: Path) -> Iterator[Reruns]:
    reruns = Reruns(tmp_path)
    yield reruns
    reruns.trip.store.close()


@pytest.fixture
def parent(reruns: Reruns) -> RunDetail:
    return reruns.parent()


def put_aside(reruns: Reruns, word: Path) -> str:
    """Have the adopter look; return why it put a word aside."""
    assert reruns.adopter.adopt_all() == 0
    assert not word.exists()
    assert (reruns.drop / ASIDE / word.name).exists()
    assert len(reruns.trip.store.runs()) == 1
    return (reruns.drop / ASIDE / f"{word.name}.reason").read_text()


def test_a_run_comes_home_with_its_parent_its_edits_and_its_job(reruns: Reruns, parent: RunDetail) -> None:
    plan, word = reruns.word(parent, "bins = 2000", because="more bins")
    assert reruns.adopter.adopt_all() == 1
    assert not word.exists()
    run = reruns.trip.store.run(plan.run_id)
    (bins,) = (one for one in run.parameters if one.name == "bins")
    assert (bins.value, bins.origin, bins.place) == (2000, Origin.USER, f"rerun of {parent.summary.run_id}")
    assert (run.summary.parent_run, run.summary.requester) == (parent.summary.run_id, user_name(os.getuid()))
    assert (run.summary.state, str(run.summary.job)) == (RunState.PENDING, "elsewhere:1001")
    assert run.message is not None
    assert parent.message is not None
    assert run.message.message_id == parent.message.message_id
    (made,) = run.events
    submitted = RunDirectory(plan.run_directory).submitted.read_text()
    before = RunDirectory(parent.summary.run_directory).rerun.read_text()
    assert isinstance(made.detail, dict)
    edits = str(made.detail.pop("edits")).splitlines()
    assert made.detail == {
        "how": "sbatch",
        "because": "more bins",
        "submitted_sha256": sha256_of(submitted),
        "parent_sha256": sha256_of(before),
    }
    assert [line for line in edits if line[0] in "+-" and line[:3] not in {"+++", "---"}] == [
        "-" + next(line for line in before.splitlines() if line.startswith("bins = ")),
        "+" + next(line for line in submitted.splitlines() if line.startswith("bins = ")),
    ]
    assert run.made_by_hand
    assert reruns.trip.store.planned_runs() == []


def test_the_same_word_twice_makes_one_run(reruns: Reruns, parent: RunDetail) -> None:
    _, word = reruns.word(parent)
    text = word.read_text()
    assert reruns.adopter.adopt_all() == 1
    word.write_text(text)
    assert reruns.adopter.adopt_all() == 0
    assert not word.exists()
    assert len(reruns.trip.store.runs()) == 2


def test_a_run_that_has_ended_meanwhile_is_concluded_by_its_own_record(reruns: Reruns, parent: RunDetail) -> None:
    plan, _ = reruns.word(parent)
    here = RunDirectory(plan.run_directory).attempt(1)
    job = {"cluster": "elsewhere", "job_id": "1001", "restarts": 0}
    at = utc_now().isoformat()
    events = [{"kind": "begin", "at": at, "job": job, "detail": {}}]
    events.append({"kind": "end", "at": at, "job": job, "detail": {"exit_code": 0}})
    here.claim.write_text(json.dumps(job))
    here.events.write_text("".join(json.dumps(event) + "\n" for event in events))
    here.progress.write_text('{"state": "finished", "expected": 3, "written": 3, "processed": 3, "failed": 0}')
    reruns.adopter.adopt_all()
    reruns.trip.follower.cycle()
    run = reruns.trip.store.run(plan.run_id)
    assert run.summary.state is RunState.COMPLETE, run.summary.reason
    assert [event.kind for event in run.events if event.kind != "state"] == ["made", "begin", "end"]


def test_a_run_whose_parent_nobody_knows_comes_home_with_its_id(reruns: Reruns, parent: RunDetail) -> None:
    folder = reruns.folder / "other"
    folder.mkdir()
    other = Reruns(folder)
    try:
        plan, word = reruns.word(parent)
        word.rename(other.drop / word.name)
        assert other.adopter.adopt_all() == 1
        run = other.trip.store.run(plan.run_id)
        assert (run.summary.parent_run, run.message) == (parent.summary.run_id, None)
    finally:
        other.trip.store.close()


def test_edits_of_a_script_that_is_gone_are_said_to_be_unknown(reruns: Reruns, parent: RunDetail) -> None:
    plan, _ = reruns.word(parent)
    RunDirectory(parent.summary.run_directory).rerun.unlink()
    assert reruns.adopter.adopt_all() == 1
    (made,) = reruns.trip.store.run(plan.run_id).events
    assert isinstance(made.detail, dict)
    assert "rerun.sbatch: " in str(made.detail["edits_unknown_because"])
    assert "edits" not in made.detail


def test_a_script_that_was_edited_in_another_encoding_comes_home(reruns: Reruns, parent: RunDetail) -> None:
    script = reruns.edited(parent, ("because=", "because='caf_'  # _t_"))
    script.write_bytes(script.read_bytes().replace(b"caf_'  # _t_", b"caf\xe9'  # \xe9t\xe9"))
    run_id = plan_of(reruns.made(script, **IN_A_JOB)).run_id
    assert reruns.adopter.adopt_all() == 1
    run = reruns.trip.store.run(run_id)
    (made,) = run.events
    assert run.plan.because == "caf\\xe9"
    assert isinstance(made.detail, dict)
    assert "+because='caf\\xe9'  # \\xe9t\\xe9" in str(made.detail["edits"])
    assert made.detail["submitted_sha256"] == hashlib.sha256(script.read_bytes()).hexdigest()


# ------------------------------------------------------------------------------------------------ what isn't trusted


def as_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: only root can give files to another user")


def test_who_owns_the_files_asked_for_the_run_whatever_they_say(reruns: Reruns, parent: RunDetail) -> None:
    as_root()
    plan, word = reruns.word(parent)
    run = RunDirectory(plan.run_directory)
    run.plan.write_text(json.dumps(plan_to_json(replace(plan, requester="root"))))
    for path in (word, run.plan, run.script, run.template, run.submitted):
        os.chown(path, NOBODY, NOBODY)
    assert reruns.adopter.adopt_all() == 1
    assert reruns.trip.store.run(plan.run_id).summary.requester == user_name(NOBODY)


@pytest.mark.parametrize("name", ["plan", "script", "template", "submitted"])
def test_files_of_another_user_are_refused(reruns: Reruns, parent: RunDetail, name: str) -> None:
    as_root()
    plan, word = reruns.word(parent)
    path: Path = getattr(RunDirectory(plan.run_directory), name)
    os.chown(path, NOBODY, NOBODY)
    said = put_aside(reruns, word)
    assert said.startswith(f"{path}: is {user_name(NOBODY)}'s, and the job, or the word for it, is {user_name(0)}'s")
    assert "who runs rerun.sbatch has to own what it writes" in said


@pytest.mark.parametrize("name", ["plan", "script", "template", "submitted"])
def test_a_link_is_not_followed(reruns: Reruns, parent: RunDetail, name: str) -> None:
    plan, word = reruns.word(parent)
    path: Path = getattr(RunDirectory(plan.run_directory), name)
    path.rename(reruns.folder / "elsewhere")
    path.symlink_to(reruns.folder / "elsewhere")
    assert f"{path}: " in put_aside(reruns, word)


def test_a_word_that_is_a_link_is_not_followed(reruns: Reruns, parent: RunDetail) -> None:
    _, word = reruns.word(parent)
    word.rename(reruns.folder / "elsewhere")
    word.symlink_to(reruns.folder / "elsewhere")
    assert reruns.adopter.adopt_all() == 0
    assert not word.is_symlink()
    assert (reruns.folder / "elsewhere").exists()


def test_files_that_are_too_large_or_none_are_refused(reruns: Reruns, parent: RunDetail) -> None:
    plan, word = reruns.word(parent)
    RunDirectory(plan.run_directory).script.write_bytes(b"#" * (adopting._FILE_LIMIT + 1))
    assert "script.sbatch: no file, or one of more than 4194304 bytes" in put_aside(reruns, word)
    pipe = reruns.drop / "pipe.json"
    os.mkfifo(pipe)
    assert "pipe.json: no file" in put_aside(reruns, pipe)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "Invalid JSON"),
        ("[]", "Input should be an object"),
        ("{}", "run_id: Field required"),
        ('{"surprise": 1}', "surprise: Extra inputs"),
        ("\udcff", "Invalid JSON"),
    ],
)
def test_a_word_that_is_none_is_put_aside_with_the_reason(
    reruns: Reruns, parent: RunDetail, text: str, told: str
) -> None:
    word = reruns.drop / "word.json"
    word.write_bytes(text.encode(errors="surrogateescape"))
    said = put_aside(reruns, word)
    assert told in said
    assert str(word) in said


def test_what_is_half_written_or_no_word_is_left_alone(reruns: Reruns) -> None:
    for name in (".word.json", "note.txt"):
        (reruns.drop / name).touch()
    (reruns.drop / "folder.json").mkdir()
    assert reruns.adopter.adopt_all() == 0
    assert {path.name for path in reruns.drop.iterdir()} == {
        ".word.json",
        "note.txt",
        "folder.json",
        ASIDE,
        COMPARED,
        RECORDS,
    }


def test_a_word_for_another_place_or_run_is_refused(reruns: Reruns, parent: RunDetail) -> None:
    _, word = reruns.word(parent)
    told = json.loads(word.read_text())
    word.write_text(json.dumps(told | {"run_id": parent.summary.run_id}))
    assert f"isn't the plan of run {parent.summary.run_id} in this place" in put_aside(reruns, word)


def test_a_run_that_nobody_made_again_is_refused(reruns: Reruns, parent: RunDetail) -> None:
    plan, word = reruns.word(parent)
    RunDirectory(plan.run_directory).plan.write_text(json.dumps(plan_to_json(replace(plan, parent_run=None))))
    assert "isn't the plan" in put_aside(reruns, word)


def test_a_job_that_is_another_runs_is_refused(reruns: Reruns, parent: RunDetail) -> None:
    _, word = reruns.word(parent)
    job = parent.summary.job
    assert job is not None
    told = json.loads(word.read_text())
    claimed = {"cluster": job.cluster, "job_id": job.job_id, "submitted_at": job.submitted_at.isoformat()}
    word.write_text(json.dumps(told | claimed))
    assert f"job {job} is that of run {parent.summary.run_id}" in put_aside(reruns, word)


def test_a_fault_with_one_word_holds_up_no_other(reruns: Reruns, parent: RunDetail) -> None:
    bad, _ = reruns.word(parent, "bins = 1")
    good, _ = reruns.word(parent, "bins = 2")
    document = plan_to_json(bad)
    document["recipe"] = {"not": "a name"}
    RunDirectory(bad.run_directory).plan.write_text(json.dumps(document))
    with pytest.raises(Exception, match=r".") as raised:
        reruns.adopter.adopt_all()
    assert raised.type.__name__ != "StoreUnavailable"
    assert reruns.trip.store.run(good.run_id).summary.parent_run == parent.summary.run_id


def test_the_service_never_submits_what_others_made(reruns: Reruns, parent: RunDetail) -> None:
    plan, word = reruns.word(parent)
    retries = Retries(most=9, rules={JobState.UNKNOWN: RetryRule(times=9), JobState.FAILED: RetryRule(times=9)})
    evil = replace(plan, retries=retries, submit_as="root", python=Path("/home/mallory/python"))
    RunDirectory(plan.run_directory).plan.write_text(json.dumps(plan_to_json(evil)))
    word.write_text(json.dumps(json.loads(word.read_text()) | {"cluster": "memory", "slurm": True}))
    assert reruns.adopter.adopt_all() == 1
    trip = reruns.trip
    trip.follower.cycle()  # nobody knows its job, and it left nothing of itself
    trip.clock.ahead += timedelta(hours=1)
    trip.follower.cycle()
    run = trip.store.run(plan.run_id)
    assert run.summary.state is RunState.UNKNOWN, run.summary.reason
    assert (run.plan.retries, run.plan.submit_as) == (Retries(), None)
    trip.dispatcher.submit_planned()
    assert len(trip.gateway.jobs) == 1


def test_the_drop_folder_is_everybodys_and_those_in_it_are_the_services(reruns: Reruns) -> None:
    modes = {path.name: path.stat().st_mode & 0o7777 for path in (reruns.drop, *reruns.drop.iterdir())}
    assert modes[reruns.drop.name] == 0o1777
    assert all(modes[name] & 0o022 == 0 for name in (ASIDE, COMPARED, RECORDS))


def test_a_folder_of_the_services_that_another_user_made_is_refused(reruns: Reruns) -> None:
    (reruns.drop / ASIDE).rmdir()
    (reruns.drop / ASIDE).symlink_to(reruns.folder)
    with pytest.raises(OSError, match="somebody else's, and has to be the service's"):
        reruns.adopter.prepare()
    if os.geteuid() == 0:
        (reruns.drop / ASIDE).unlink()
        (reruns.drop / ASIDE).mkdir()
        os.chown(reruns.drop / ASIDE, NOBODY, NOBODY)
        with pytest.raises(OSError, match="somebody else's"):
            reruns.adopter.prepare()
