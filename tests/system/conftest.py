"""One private stack for all tests of a worker; it is up for the session and ended after it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestrator.errors import StackError
from orchestrator.stack import Service, Stack
from orchestrator.stack.stack import require_programs


def need(*services: Service) -> None:
    """Skip where programs are missing, saying which package brings the first of them."""
    try:
        require_programs(services)
    except StackError as missing:
        pytest.skip(f"NOT TESTED: {missing.full_text}")


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Return a running stack with SLURM (two nodes) and a broker."""
    need(Service.SLURM, Service.BROKER)
    private = Stack(tmp_path_factory.mktemp("stack"))
    try:
        private.up({"slurm", "broker"}, nodes=2)
        yield private
    finally:
        private.down()


@pytest.fixture(scope="session")
def accounting_stack(stack: Stack) -> Stack:
    """Return the same stack, with accounting from here on."""
    need(Service.ACCOUNTING)
    stack.up({"accounting"})
    return stack


@pytest.fixture(scope="session")
def rest_stack(stack: Stack) -> Stack:
    """Return the same stack, with slurmrestd from here on."""
    need(Service.REST)
    stack.up({"rest"})
    return stack
