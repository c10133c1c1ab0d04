"""Where a stack keeps what, and the configuration that follows from it."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.errors import StackError
from orchestrator.stack import Layout, Service, Stack, default_directory, layout, slurm
from orchestrator.stack.programs import DEBIAN_PACKAGES

ALL = frozenset(Service)
LISTED_PROGRAMS = Path(__file__).parents[2] / "script" / "programs.txt"


NewLayout = Callable[..., Layout]


@pytest.fixture
def new_layout() -> Iterator[NewLayout]:
    """Make layouts, and remove the folders outside the test's own that they may have afterwards."""
    made: list[Layout] = []

    def make(directory: Path, services: frozenset[Service], *, nodes: int) -> Layout:
        made.append(layout.new_layout(directory, services, nodes))
        return made[-1]

    yield make
    for facts in made:
        layout.forget(facts)


def test_a_saved_layout_is_read_back_as_it_was(new_layout: NewLayout, tmp_path: Path) -> None:
    written = new_layout(tmp_path / "s", ALL, nodes=3)
    layout.save(written)
    assert layout.load(tmp_path / "s") == written


def test_the_layout_with_its_password_is_closed_to_others(new_layout: NewLayout, tmp_path: Path) -> None:
    layout.save(new_layout(tmp_path / "s", ALL, nodes=1))
    assert stat.S_IMODE((tmp_path / "s" / "layout.json").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o700


@pytest.mark.parametrize("text", ["{", "[]", '{"runtime": "/tmp"}', "null"])
def test_a_broken_layout_names_its_file_and_the_remedy(tmp_path: Path, text: str) -> None:
    (tmp_path / "layout.json").write_text(text)
    with pytest.raises(StackError, match=re.escape(str(tmp_path / "layout.json"))) as caught:
        layout.load(tmp_path)
    assert str(tmp_path) in caught.value.remedy


def test_every_daemon_has_a_port_of_its_own(new_layout: NewLayout, tmp_path: Path) -> None:
    ports = new_layout(tmp_path, ALL, nodes=4).ports
    assert len(set(ports.values())) == len(ports)
    assert {"slurmd-n1", "slurmd-n4", "slurmctld", "slurmdbd", "mariadb", "slurmrestd", "broker"} <= set(ports)


def test_adding_services_keeps_the_ports_of_those_that_run(new_layout: NewLayout, tmp_path: Path) -> None:
    before = new_layout(tmp_path, frozenset({Service.SLURM}), nodes=2)
    after = layout.extended(before, frozenset({Service.BROKER}))
    assert before.ports.items() < after.ports.items()
    assert after.services == {Service.SLURM, Service.BROKER}


def test_sockets_of_a_long_directory_lie_in_a_short_private_one(new_layout: NewLayout, tmp_path: Path) -> None:
    long = new_layout(tmp_path / ("d" * 100), ALL, nodes=1)
    assert not long.runtime.is_relative_to(tmp_path)
    assert len(str(long.munge_socket)) < 60
    assert stat.S_IMODE(long.runtime.stat().st_mode) == 0o700
    layout.forget(long)
    assert not long.runtime.exists()


@pytest.mark.parametrize("name", ["with space", "with%n", "with#hash", "with,comma", "ångström"])
def test_a_directory_that_slurm_cannot_hold_is_refused(new_layout: NewLayout, tmp_path: Path, name: str) -> None:
    with pytest.raises(StackError, match="SLURM can't use a directory named"):
        new_layout(tmp_path / name, ALL, nodes=1)
    assert not (tmp_path / name).exists()


def test_slurm_listens_on_the_loopback_only_and_uses_its_own_munge(new_layout: NewLayout, tmp_path: Path) -> None:
    facts = new_layout(tmp_path, ALL, nodes=2)
    text = slurm.configuration(facts)
    assert "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny\n" in text
    assert f"AuthInfo=socket={facts.munge_socket}," in text
    assert re.findall(r"^NodeName=(\S+) .*NodeAddr=127\.0\.0\.1 Port=(\d+)", text, re.MULTILINE) == [
        ("n1", str(facts.ports["slurmd-n1"])),
        ("n2", str(facts.ports["slurmd-n2"])),
    ]
    assert "/etc/" not in text


def test_accounting_appears_in_the_configuration_only_where_it_is_wanted(new_layout: NewLayout, tmp_path: Path) -> None:
    facts = new_layout(tmp_path, ALL, nodes=1)
    assert "AccountingStorageType=accounting_storage/slurmdbd" in slurm.configuration(facts)
    without = replace(facts, services=frozenset({Service.SLURM}))
    assert "AccountingStorageType=accounting_storage/none" in slurm.configuration(without)


def test_another_clusters_variables_do_not_reach_the_daemons(
    new_layout: NewLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/slurm.conf")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SBATCH_PARTITION", "cpu")
    facts = new_layout(tmp_path, ALL, nodes=1)
    environment = facts.slurm_environment()
    assert environment["SLURM_CONF"] == str(facts.slurm_conf)
    assert not {"SLURM_JOB_ID", "SBATCH_PARTITION"} & set(environment)


@pytest.mark.parametrize("state", ["/var/state", "", "relative"])
def test_the_default_directory_follows_the_xdg_specification(state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", state)
    monkeypatch.setenv("HOME", "/home/someone")
    base = state if state.startswith("/") else "/home/someone/.local/state"
    assert default_directory() == Path(base) / "orchestrator" / "stack"


def test_an_unknown_service_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="brokr") as caught:
        Stack(tmp_path / "s").up({"brokr"})
    assert "slurm, broker, accounting, rest" in caught.value.remedy
    assert not (tmp_path / "s").exists()


def test_asking_a_stack_that_is_not_up(tmp_path: Path) -> None:
    absent = Stack(tmp_path / "s")
    assert absent.status() == []
    absent.down()
    assert not (tmp_path / "s").exists()
    with pytest.raises(StackError, match="there is no stack in"):
        absent.environment()


def test_packages_named_in_errors_are_those_that_bootstrap_installs() -> None:
    lines = [line.split() for line in LISTED_PROGRAMS.read_text().splitlines() if line and not line.startswith("#")]
    listed = {program: packages for _, program, *packages in lines}
    both = DEBIAN_PACKAGES.keys() & listed.keys()
    assert "slurmctld" in both
    assert [name for name in both if DEBIAN_PACKAGES[name] not in listed[name]] == []
