"""The service's loops and choices: nothing but stop ends them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from orchestrator import service as service_module
from orchestrator.demonstration import shipped
from orchestrator.dispatching import Dispatcher
from orchestrator.errors import GatewayUnavailable, InvalidSettings
from orchestrator.service import Loop, Service, open_doors, open_gateway, steady_clock
from orchestrator.settings import Settings, load_settings


@contextmanager
def running(step: Callable[[], None], *, interval_s: float = 60) -> Iterator[Loop]:
    loop = Loop(name="test", step=step, interval_s=interval_s)
    loop.start()
    yield loop
    loop.stop(10)


def site(folder: Path, **changes: object) -> Settings:
    overrides = {"runs_root": str(folder / "runs"), "database": f"sqlite:///{folder}/s.sqlite"}
    return load_settings(shipped("site-configs", "embedded.toml"), overrides | changes)  # type: ignore[arg-type]


def test_a_wake_during_a_step_is_not_lost() -> None:
    steps = threading.Semaphore(0)
    inside, go_on = threading.Event(), threading.Event()

    def step() -> None:
        inside.set()
        go_on.wait(10)
        steps.release()

    with running(step) as loop:
        inside.wait(10)
        loop.wake()
        go_on.set()
        assert steps.acquire(timeout=10)
        assert steps.acquire(timeout=10)


@pytest.mark.parametrize("obstacle", [GatewayUnavailable("no controller"), ZeroDivisionError("a fault")])
def test_a_loop_goes_on_after_an_obstacle(obstacle: Exception, caplog: pytest.LogCaptureFixture) -> None:
    done = threading.Event()
    raised = iter([obstacle, obstacle])

    def step() -> None:
        for error in raised:
            raise error
        done.set()

    with running(step):
        assert done.wait(10)
    if isinstance(obstacle, GatewayUnavailable):
        assert caplog.text.count("no controller") == 1  # said once, not at every try
    else:
        assert "ZeroDivisionError" in caplog.text


def test_auto_takes_this_machine_only_where_slurm_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = site(tmp_path, **{"gateway.route": "auto"})
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    assert open_gateway(settings).name == "local"
    (programs / "sbatch").write_text("#!/bin/sh\nexit 1\n")  # installed, and its controller is down
    (programs / "sbatch").chmod(0o755)
    assert open_gateway(settings).name == "cli"


def test_a_site_without_a_door_for_messages_is_refused(tmp_path: Path) -> None:
    settings = site(tmp_path).model_copy(update={"spool": None})
    with pytest.raises(InvalidSettings, match="no door for messages"):
        open_doors(settings)


def test_a_service_stops_in_order_and_can_start_again(tmp_path: Path) -> None:
    settings = site(tmp_path, **{"spool.folder": str(tmp_path / "spool")})
    for _ in range(2):
        with Service.of(settings) as service:
            assert service.gateway.name == "local"
        assert not any(door.status().connected for door in service.doors)


def test_a_wake_ends_the_wait_after_an_obstacle() -> None:
    steps = threading.Semaphore(0)

    def step() -> None:
        steps.release()
        raise GatewayUnavailable("one run's directory can't be written")

    with running(step) as loop:
        for _ in range(6):  # the waits would add up to 15 s and more
            assert steps.acquire(timeout=2)
            loop.wake()


def test_a_fault_that_stays_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    steps = threading.Semaphore(0)

    def step() -> None:
        steps.release()
        raise ZeroDivisionError("always")

    with running(step) as loop:
        for _ in range(4):
            assert steps.acquire(timeout=5)
            loop.wake()
    assert caplog.text.count("Traceback") == 1


def test_an_obstacle_to_one_dispatch_step_holds_up_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service.of(site(tmp_path, **{"spool.folder": str(tmp_path / "spool")}))
    calls = []

    def obstacle(name: str) -> int:
        calls.append(name)
        raise GatewayUnavailable(name)

    for name in ("plan_waiting", "settle", "submit_planned"):
        monkeypatch.setattr(Dispatcher, name, lambda _self, name=name: obstacle(name))
    with pytest.raises(GatewayUnavailable):
        service._dispatch_step()
    service.store.close()
    assert calls == ["plan_waiting", "settle", "submit_planned"]


def test_a_controller_that_is_slow_is_asked_less_often_and_one_slow_answer_is_soon_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service.of(site(tmp_path, **{"spool.folder": str(tmp_path / "spool"), "gateway.poll_interval_s": 1.5}))
    monkeypatch.setattr(service.follower, "cycle", lambda: 0)

    def pause_after(*answers_s: float) -> float:
        for answer_s in answers_s:
            service.follower.asked_s = answer_s
            service._follow_step()
        return service._follow.interval_s

    try:
        assert pause_after(0.08) == 1.5
        assert pause_after(1.0) == pytest.approx(1.5, abs=0.3)
        assert pause_after(*[0.08] * 8) == 1.5
        assert pause_after(*[3.0] * 8) == pytest.approx(30)
        assert pause_after(*[30.0] * 8) == service.settings.gateway.poll_interval_max_s
    finally:
        service.store.close()


def test_the_followers_patience_does_not_depend_on_the_machines_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = steady_clock()
    before = clock()
    monkeypatch.setattr(service_module, "utc_now", lambda: before + timedelta(days=1))
    assert before <= clock() < before + timedelta(hours=1)


def test_a_second_service_on_sqlite_is_refused_and_the_next_one_after_the_first_is_not(tmp_path: Path) -> None:
    folders = {"spool.folder": str(tmp_path / "spool"), "gateway.local_state": str(tmp_path / "jobs")}
    settings = site(tmp_path, **folders)
    for _ in range(2):
        with Service.of(settings) as first:
            with pytest.raises(InvalidSettings, match=r"has its service already .* SQLite is for one"):
                Service.of(settings)
            assert first.store.leases() == {}
