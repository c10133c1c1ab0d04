"""Which tests this machine can run: those that need missing programs are skipped, loudly, or fail where all must run.

``--require-stack``, or ``CI=true`` as root (who could have installed everything), makes every skip of a test marked
``stack`` or ``mpi`` a failure. ``@pytest.mark.stack`` needs the programs that ``script/programs.txt`` lists for the
stack; ``@pytest.mark.stack("initdb", "mariadbd")`` needs just these. ``@pytest.mark.pyslurm`` needs a pyslurm, which
has to be built for the machine's SLURM and is nobody's duty to have: where there is none, those tests are skipped. So
are those marked ``cgroups`` where the machine's kernel doesn't let us make any.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Generator
from functools import cache
from pathlib import Path

import mpi4py
import pytest
from hypothesis import HealthCheck, settings

from orchestrator.errors import StackError
from orchestrator.stack.programs import find_program

CHECKOUT = Path(__file__).parent.parent
_MEMORY_CGROUPS = Path("/sys/fs/cgroup/memory")

# Tests run the kernels under a launcher of their own. MPI in pytest's own process would leave its marks in the
# environment of everything that tests start, and mpirun would take itself for a part of that one.
mpi4py.rc.initialize = False

# Where no /sys is mounted, as in a bare chroot, MPI says so on standard error: no word of the programs that are tested.
os.environ["HWLOC_HIDE_ERRORS"] = "2"

# Its own time limits measure the machine: a busy one, or the first run in a fresh checkout, exceeds them.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-stack", action="store_true", help="fail, rather than skip, tests whose programs are missing"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "pyslurm: needs a pyslurm, see script/build-pyslurm")
    config.addinivalue_line("markers", "cgroups: needs memory cgroups (version 1) that may be made here")
    # An MPI that script/bootstrap has put into the environment is found there, as script/test and script/demo do.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def python_with_pyslurm() -> Path | None:
    """Return the interpreter that has pyslurm: the one named in the environment, or this one."""
    if named := os.environ.get("ORCHESTRATOR_TEST_PYSLURM_PYTHON"):
        return Path(named)
    return Path(sys.executable) if importlib.util.find_spec("pyslurm") else None


@pytest.fixture
def pyslurm_python() -> Path:
    python = python_with_pyslurm()
    assert python is not None, "mark the test with pyslurm"
    return python


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("pyslurm") and python_with_pyslurm() is None:
        pytest.skip(
            "NOT TESTED, pyslurm isn't installed: script/build-pyslurm DIR builds it, then set "
            "ORCHESTRATOR_TEST_PYSLURM_PYTHON=DIR/bin/python"
        )
    missing = [name for name in _programs_needed(item) if not _is_there(name)]
    if missing:
        pytest.skip(f"NOT TESTED, missing here: {', '.join(missing)} (as root, script/bootstrap --for test brings it)")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and _must_run(item):
        report.outcome = "failed"
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.longrepr = f"must not be skipped here: {reason}"
    return report


@pytest.fixture(scope="session")
def memory_cgroups() -> Path:
    """Return the folder in which memory cgroups are made."""
    if not _memory_cgroups_can_be_made():
        pytest.skip("NOT TESTED: memory cgroups (version 1) can't be made here")
    return _MEMORY_CGROUPS


def _memory_cgroups_can_be_made() -> bool:
    allowed = os.access(_MEMORY_CGROUPS, os.W_OK) and os.geteuid() == 0
    return allowed and (_MEMORY_CGROUPS / "cgroup.procs").exists()


def _must_run(item: pytest.Item) -> bool:
    if item.get_closest_marker("cgroups") and not _memory_cgroups_can_be_made():
        return False
    if item.get_closest_marker("pyslurm") and python_with_pyslurm() is None:
        return False
    everything = item.config.getoption("--require-stack") or (os.environ.get("CI") == "true" and os.geteuid() == 0)
    return everything and any(item.get_closest_marker(name) for name in ("stack", "mpi"))


def _programs_needed(item: pytest.Item) -> list[str]:
    names = ["mpirun"] if item.get_closest_marker("mpi") else []
    if marker := item.get_closest_marker("stack"):
        names += marker.args or _stack_programs()
    return names


@cache
def _stack_programs() -> tuple[str, ...]:
    lines = (CHECKOUT / "script" / "programs.txt").read_text().splitlines()
    return tuple(line.split()[1] for line in lines if line.startswith("stack "))


@cache
def _is_there(name: str) -> bool:
    try:
        find_program(name)
    except StackError:
        return False
    return True
