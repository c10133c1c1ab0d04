"""Processes are named so that nobody else's is ever ended; programs and ports are found."""

from __future__ import annotations

import os
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.errors import StackError
from orchestrator.stack import ports, processes, programs


def started(tmp_path: Path, code: str) -> processes.ProcessIdentity:
    return processes.launch([sys.executable, "-c", code], log=tmp_path / "log", directory=tmp_path)


def said(tmp_path: Path, text: str) -> bool:
    return processes.wait_until(lambda: text in "\n".join(processes.tail(tmp_path / "log")), timeout_s=10)


def test_a_launched_process_is_alive_until_it_is_ended(tmp_path: Path) -> None:
    process = started(tmp_path, "import time; time.sleep(60)")
    assert processes.is_alive(process)
    processes.end([process])
    assert not processes.is_alive(process)


def test_a_reused_process_id_is_neither_alive_nor_ended(tmp_path: Path) -> None:
    process = started(tmp_path, "import time; time.sleep(60)")
    earlier = replace(process, started_ticks=process.started_ticks - 1)
    before_the_boot = replace(process, boot_id="another")
    assert not processes.is_alive(earlier)
    processes.end([earlier, before_the_boot])
    assert processes.is_alive(process)
    processes.end([process])


def test_a_process_deaf_to_term_is_killed(tmp_path: Path) -> None:
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    process = started(tmp_path, deaf)
    assert said(tmp_path, "deaf")
    processes.end([process], patience_s=0.3)
    assert not processes.is_alive(process)


def test_a_launched_process_has_default_signals_and_its_own_session(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        code = "import os, signal as s; print(os.getsid(0) == os.getpid(), s.getsignal(s.SIGINT).__name__, flush=True)"
        started(tmp_path, code)
    finally:
        signal.signal(signal.SIGINT, before)
    assert said(tmp_path, "True default_int_handler")


def test_descendants_are_found_through_generations(tmp_path: Path) -> None:
    code = "import subprocess; subprocess.run(['sh', '-c', 'sleep 60; true'])"
    process = started(tmp_path, code)
    assert processes.wait_until(lambda: len(processes.with_descendants([process])) == 3, timeout_s=10)
    family = processes.with_descendants([process])
    processes.end(family)
    assert not any(processes.is_alive(member) for member in family)


def test_who_listens_on_a_port_is_told_apart_from_who_does_not(tmp_path: Path) -> None:
    ourselves = processes.identify(os.getpid())
    other = started(tmp_path, "import time; time.sleep(60)")
    assert ourselves is not None
    with socket.create_server((ports.LOOPBACK, 0)) as server:
        port = server.getsockname()[1]
        assert processes.listens(ourselves, port)
        assert not processes.listens(other, port)
    assert not processes.listens(ourselves, port)
    processes.end([other])


def test_our_own_identity_is_stable() -> None:
    first, second = processes.identify(os.getpid()), processes.identify(os.getpid())
    assert first == second
    assert first is not None


def test_tail_returns_the_last_lines_of_a_long_log(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("".join(f"line {number}\n" for number in range(10_000)))
    assert processes.tail(tmp_path / "log", lines=2) == ["line 9998", "line 9999"]
    assert processes.tail(tmp_path / "absent") == []


def test_a_failing_program_is_quoted_in_the_error() -> None:
    with pytest.raises(StackError, match="exit code 3: no beam"):
        processes.run(["sh", "-c", "echo no beam >&2; exit 3"])


def test_a_missing_program_names_its_debian_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(programs.DEBIAN_PACKAGES, "no-such-daemon", "its-package")
    with pytest.raises(StackError, match="no-such-daemon is missing") as caught:
        programs.find_program("no-such-daemon")
    assert caught.value.remedy == "install it: apt-get install its-package"


def test_free_ports_are_different_and_leave_out_those_in_use() -> None:
    chosen = ports.free_ports(50)
    assert len(set(chosen)) == 50
    with socket.create_server((ports.LOOPBACK, chosen[0])) as server:
        assert ports.answers(chosen[0])
        assert not ports.is_free(chosen[0])
        assert server.fileno() >= 0
    assert ports.is_free(chosen[0])
    assert not ports.answers(chosen[0])
