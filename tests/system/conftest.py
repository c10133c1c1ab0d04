"""One private stack for all tests of a worker; it is up for the session and ended after it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestrator.stack import Stack


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Return a running stack with SLURM (two nodes) and a broker; tests that use it are marked ``stack``."""
    private = Stack(tmp_path_factory.mktemp("stack"))
    try:
        private.up({"slurm", "broker"}, nodes=2)
        yield private
    finally:
        private.down()


@pytest.fixture(scope="session")
def accounting_stack(stack: Stack) -> Stack:
    """Return the same stack, with accounting from here on."""
    stack.up({"accounting"})
    return stack


@pytest.fixture(scope="session")
def rest_stack(stack: Stack) -> Stack:
    """Return the same stack, with slurmrestd from here on."""
    stack.up({"rest"})
    return stack
