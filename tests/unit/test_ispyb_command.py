"""What people see of the mirror without an ISPyB: settings, the outbox, the commands."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.common import ExitCode
from orchestrator.errors import InvalidSettings, IspybUnavailable
from orchestrator.ispyb import Mirror
from orchestrator.ispyb.database import IspybDatabase
from orchestrator.provenance import IspybIds, Mirrored
from orchestrator.provenance.mirrors import LOOK_AGAIN_AFTER
from orchestrator.records import RunState, utc_now
from orchestrator.settings import load_settings
from tests.unit.site_with_runs import SiteWithRuns

NOWHERE = "mariadb://u:p@127.0.0.1:1/ispyb"


@pytest.fixture
def mirroring(site: SiteWithRuns) -> SiteWithRuns:
    site.file.write_text(f'{site.file.read_text()}\n[ispyb]\nurl = "{NOWHERE}"\n')
    return site


def mirrored(site: SiteWithRuns, run_id: str, state: RunState, at: Any = None) -> None:
    summary = site.store.run(run_id).summary
    ids = IspybIds(data_collection=1, processing_job=2, program=3)
    site.store.record_mirrored(
        Mirrored(run_id=run_id, state=state, attempts=summary.attempts, ids=ids, fingerprint="f", at=at or utc_now())
    )


# ------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('take_requests = ["azimutal"]', "there is no recipe 'azimutal'; did you mean 'azimuthal'?"),
        ('time_zone = "Nowhere/Land"', "is no time zone"),
        ('file_templates = ["{file}"]', "only {name} and {stem}"),
        ('match = "name"', "ispyb.match"),
        ("importance = { result = 200 }", "ispyb.importance.result"),
        ("schema_version = 5", "unknown key 'ispyb.schema_version'"),
    ],
)
def test_a_wrong_table_is_refused_with_its_place(mirroring: SiteWithRuns, line: str, said: str) -> None:
    mirroring.file.write_text(f"{mirroring.file.read_text()}{line}\n")
    with pytest.raises(InvalidSettings, match=r"site\.toml, line \d+") as refused:
        load_settings(mirroring.file)
    assert said in refused.value.full_text


def test_the_password_comes_from_the_environment(site: SiteWithRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    site.file.write_text(f'{site.file.read_text()}\n[ispyb]\nurl = "mariadb://u:${{ISPYB_PASSWORD}}@h/ispyb"\n')
    settings = load_settings(site.file)
    with pytest.raises(InvalidSettings, match=r"ispyb\.url: the environment variable ISPYB_PASSWORD isn't set"):
        _ = settings.ispyb_url
    monkeypatch.setenv("ISPYB_PASSWORD", "a/b@c")
    assert settings.ispyb_url == "mariadb://u:a%2Fb%40c@h/ispyb"


@pytest.mark.parametrize("url", ["sqlite:///x", "mariadb://u@host", "nonsense"])
def test_what_is_no_ispyb_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(InvalidSettings, match=r"ispyb\.url"):
        IspybDatabase(url, timeout_s=1)


# --------------------------------------------------------------------------------------------------------- outbox


def test_runs_are_entered_once_and_due_until_they_are_mirrored_a_while_after_their_end(site: SiteWithRuns) -> None:
    tag, now = site.submitted(), utc_now()
    assert site.store.enter_for_ispyb(now) == 1
    assert site.store.enter_for_ispyb(now) == 0
    assert [one.run_id for one in site.store.due_for_ispyb(now, 10)] == [tag.run_id]
    mirrored(site, tag.run_id, RunState.PENDING, now)
    assert site.store.due_for_ispyb(now + timedelta(days=1), 10) == []  # nothing has changed
    assert site.store.finish_run(tag.run_id, RunState.COMPLETE, "", now)
    assert len(site.store.due_for_ispyb(now, 10)) == 1
    mirrored(site, tag.run_id, RunState.COMPLETE, now)
    assert site.store.due_for_ispyb(now, 10) == []
    later = now + LOOK_AGAIN_AFTER
    assert len(site.store.due_for_ispyb(later, 10)) == 1
    mirrored(site, tag.run_id, RunState.COMPLETE, later)
    assert site.store.due_for_ispyb(later + timedelta(days=1), 10) == []
    assert site.store.ispyb_counts() == {"active": 0, "waiting": 0, "given_up": 0}


def test_a_run_that_changed_while_it_was_mirrored_is_due_again(site: SiteWithRuns) -> None:
    tag, now = site.submitted(), utc_now()
    site.store.enter_for_ispyb(now)
    assert site.store.finish_run(tag.run_id, RunState.FAILED, "")
    mirrored(site, tag.run_id, RunState.PENDING, now)
    assert len(site.store.due_for_ispyb(now, 10)) == 1


# ------------------------------------------------------------------------------------------------------- commands


def test_without_a_table_the_command_says_what_to_add(site: SiteWithRuns) -> None:
    site.call("ispyb", "status", code=ExitCode.INVALID_INPUT)
    assert "no table [ispyb]" in site.said


def test_an_ispyb_that_is_down_is_told_and_the_runs_wait(mirroring: SiteWithRuns) -> None:
    mirroring.planned()
    mirroring.call("ispyb", "check", code=ExitCode.UNAVAILABLE)
    assert "u:***@127.0.0.1:1/ispyb" in mirroring.said
    mirror = Mirror(mirroring.store, load_settings(mirroring.file))
    with pytest.raises(IspybUnavailable, match="Can't connect"):
        mirror.step()
    assert mirroring.told("ispyb", "status", "--json")["counts"] == {"active": 1, "waiting": 0, "given_up": 0}


def test_the_status_and_the_history_of_a_run_say_why_it_is_not_there(mirroring: SiteWithRuns) -> None:
    site, tag, now = mirroring, mirroring.planned(), utc_now()
    site.store.enter_for_ispyb(now)
    for _ in range(2):
        site.store.record_not_mirrored(tag.run_id, "no data collection", now, again_at=None)
    told = site.told("ispyb", "status", "--json", code=ExitCode.INCOMPLETE)
    assert told["counts"]["given_up"] == 1
    (run,) = told["runs"]
    assert (run["run_id"], run["obstacle"], run["failures"], run["due_at"]) == (
        tag.run_id,
        "no data collection",
        2,
        None,
    )
    assert "1 given up" in site.call("ispyb", "status", code=ExitCode.INCOMPLETE)
    assert site.call("show", tag.run_id).count("not in ISPyB: no data collection") == 1
    site.call("ispyb", "again", "--obstructed")
    assert len(site.store.due_for_ispyb(utc_now(), 10)) == 1
    mirrored(site, tag.run_id, RunState.PLANNED)
    assert "it stands in ISPyB as AutoProcProgram 3" in site.call("show", tag.run_id)
    assert site.told("ispyb", "status", "--all", "--json")["runs"][0]["ids"] == {
        "data_collection": 1,
        "job": 2,
        "program": 3,
    }


def test_a_run_of_long_ago_can_be_had_mirrored(mirroring: SiteWithRuns) -> None:
    tag = mirroring.planned()
    mirroring.call("ispyb", "again", tag.run_id[:8])
    assert len(mirroring.store.due_for_ispyb(utc_now(), 10)) == 1
    mirroring.call("ispyb", "again", code=ExitCode.USAGE)


def test_the_grants_are_printed_for_the_administrator(tmp_path: Path) -> None:
    text = SiteWithRuns(tmp_path).call("ispyb", "grants", "'a'@'%'", "--database", "x")
    assert "ON x.AutoProcProgram TO 'a'@'%';" in text
