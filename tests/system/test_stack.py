"""The private stack: what comes up, what comes down, and that jobs end the way they do on a real cluster."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from orchestrator.stack import Stack

pytestmark = pytest.mark.stack


def in_stack(stack: Stack, *command: str | Path) -> str:
    environment = {**os.environ, **stack.environment()}
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=120).stdout


def test_every_daemon_is_alive_and_named_by_its_process(stack: Stack) -> None:
    daemons = {daemon.name: daemon for daemon in stack.status()}
    assert {"munged", "slurmctld", "slurmd-n1", "slurmd-n2", "broker"} <= set(daemons)
    assert all(daemon.alive for daemon in daemons.values())
    assert in_stack(stack, "sinfo", "-h", "-o", "%D %t", "-p", "live") == "2 idle\n"
