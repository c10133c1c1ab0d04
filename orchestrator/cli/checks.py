"""What `orchestrator doctor` looks at around the service: each check says what it found, and what to do about it.

The checks know nothing of each other and run side by side; one that fails or hangs holds up no other.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from importlib import metadata
from pathlib import Path
from queue import Empty, SimpleQueue
from time import monotonic

from orchestrator.cli.common import ExitCode, exit_code_of
from orchestrator.errors import (
    DoorUnavailable,
    InvalidSettings,
    NotFound,
    OrchestratorError,
    RunDirectoryUnavailable,
)
from orchestrator.listening.broker import BrokerSession
from orchestrator.provenance import Store
from orchestrator.provenance.schema import check_schema
from orchestrator.rendering import template_names
from orchestrator.settings import Settings, SpoolSettings, StompSettings
from orchestrator.slurm.choice import choose
from orchestrator.slurm.failures import query_failure
from orchestrator.validating import REMEDY

LIMIT_S = 30.0
"""How long a check may take."""
PROGRAM_S = 10.0
"""How long a program may take to say its version."""

COMMANDS = ("sbatch", "squeue", "scancel", "scontrol", "sacct")


class State(StrEnum):
    """What is to be thought of a finding."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Parameters
    ----------
    code
        What the command's exit code says of a problem like this one.
    """

    name: str
    state: State = State.OK
    found: str
    remedy: str = ""
    code: ExitCode = ExitCode.OK


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing to be looked at; `look` raises `OrchestratorError` when something is wrong with it."""

    name: str
    look: Callable[[], Finding | str]


def carry_out(checks: Sequence[Check], *, limit_s: float = LIMIT_S) -> list[Finding]:
    """Carry out all checks at the same time; return what each one found, in their order.

    A fault of this program in a check is a finding too.
    """
    answers = {check.name: _started(check) for check in checks}
    deadline = monotonic() + limit_s
    return [_answer(name, queue, deadline, limit_s) for name, queue in answers.items()]


def _started(check: Check) -> SimpleQueue[Finding]:
    queue: SimpleQueue[Finding] = SimpleQueue()
    # A daemon: nobody waits for one that hangs, not even the end of the program.
    threading.Thread(target=lambda: queue.put(_looked(check)), name=check.name, daemon=True).start()
    return queue


def _answer(name: str, queue: SimpleQueue[Finding], deadline: float, limit_s: float) -> Finding:
    try:
        return queue.get(timeout=max(deadline - monotonic(), 0))
    except Empty:
        return Finding(
            name=name, state=State.PROBLEM, found=f"no answer within {limit_s:g} s",
            remedy="see whether its host and file system can be reached from here", code=ExitCode.UNAVAILABLE,
        )  # fmt: skip


def _looked(check: Check) -> Finding:
    try:
        found = check.look()
    except OrchestratorError as error:
        return problem(check.name, error)
    except Exception as error:  # noqa: BLE001 - one check's fault mustn't hide what the others found
        return Finding(
            name=check.name, state=State.PROBLEM, found=f"a fault in this program: {error!r}",
            remedy="report it, with what `orchestrator doctor --json` prints", code=ExitCode.FAULT,
        )  # fmt: skip
    return found if isinstance(found, Finding) else Finding(name=check.name, found=found)


def problem(name: str, error: OrchestratorError) -> Finding:
    """Return the finding that an error is."""
    return Finding(
        name=name, state=State.PROBLEM, found=str(error), remedy=error.remedy, code=exit_code_of(error)
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------- of this machine


def of_machine() -> list[Check]:
    """Return what is looked at without a site file.

    What isn't there is no more than a warning: which of it is needed, a site's gateway and its jobs decide.
    """
    looks = {
        "SLURM commands": _slurm_commands, "mpirun": _mpirun, "srun": _srun, "NeXus validator": _nexus_validator,
    }  # fmt: skip
    return [Check(name=name, look=partial(_at_most_warned, name, look)) for name, look in looks.items()]


def _at_most_warned(name: str, look: Callable[[], str]) -> Finding | str:
    try:
        return look()
    except OrchestratorError as error:
        return Finding(name=name, state=State.WARNING, found=str(error), remedy=error.remedy)


def _slurm_commands() -> str:
    missing = [command for command in COMMANDS if shutil.which(command) is None]
    if missing:
        raise NotFound(
            f"not on the PATH: {', '.join(missing)}",
            remedy='a submit host has them (slurm-client); without: gateway.route = "rest", or "local"',
        )
    return f"{slurm_release(_said('sbatch'))}: {', '.join(COMMANDS)}"


def slurm_release(text: str) -> str:
    """Return the release that a SLURM command's ``--version`` printed (``slurm-wlm 22.05.8``, ``slurm 25.11.2``)."""
    found = re.search(r"slurm\S* (\d\S*)", text)
    return f"SLURM {found[1]}" if found else f"SLURM of unknown release ({text})"


def _mpirun() -> str:
    place = _place("mpirun", "install an MPI, or load its module; a job may do so by itself")
    return f"{_said('mpirun', _broken)} ({place})"


def _srun() -> str:
    place = _place("srun", "needed where recipes have it as their launcher: install SLURM's commands (slurm-client)")
    return f"{slurm_release(_said('srun'))} ({place})"


def _nexus_validator() -> str:
    try:
        return f"nexusformat {metadata.version('nexusformat')}"
    except metadata.PackageNotFoundError as error:
        raise NotFound("not installed: records will say that no result was validated", remedy=REMEDY) from error


def _place(program: str, remedy: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise NotFound("not on the PATH", remedy=remedy)
    return path


def _broken(program: str, said: str) -> OrchestratorError:
    return NotFound(f"{program} --version fails: {' '.join(said.split())}", remedy="repair its installation")


def _said(program: str, failure: Callable[[str, str], OrchestratorError] = query_failure) -> str:
    """Return the first line of what a program's ``--version`` prints."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, timeout=PROGRAM_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotFound(f"{program} can't be run: {error}", remedy=f"try `{program} --version` in a shell") from error
    if done.returncode:
        raise failure(program, done.stderr)
    return (done.stdout.splitlines() or [""])[0].strip()


# ---------------------------------------------------------------------------------------------------- of a site


def of_site(settings: Settings) -> list[Check]:
    """Return what is looked at for a site: what its file names, and whether it answers."""
    checks = [
        Check(name="database", look=partial(_database, settings)),
        Check(name="gateway", look=partial(_gateway, settings)),
        Check(name="runs_root", look=partial(_runs_root, settings.runs_root)),
        Check(name="allowed_roots", look=partial(_allowed_roots, settings.allowed_roots)),
        Check(name="templates", look=partial(_templates, settings)),
    ]
    if settings.stomp is not None:
        checks.insert(1, Check(name="broker", look=partial(_broker, settings.stomp)))
    if settings.spool is not None:
        checks.insert(1, Check(name="spool", look=partial(_spool, settings.spool)))
    return checks


def _database(settings: Settings) -> str:
    with Store.connect(settings.database) as store:
        status = store.schema_status()
    check_schema(status)
    searches = f"; text searches look at every run: {status.searches}" if status.searches else ""
    return f"{status.address} has schema {status.revision}, which this release needs{searches}"


def _broker(settings: StompSettings) -> Finding | str:
    """Log in at each broker: it is enough when one answers, as a broker's stand-in doesn't."""
    answering, silent = [], []
    for address in settings.addresses():
        session = BrokerSession(settings, address)
        try:
            session.open()
            answering.append(session.address)
        except DoorUnavailable as error:
            silent.append(error)
        finally:
            session.close()
    if not answering:
        raise DoorUnavailable("; ".join(map(str, silent)), remedy=silent[-1].remedy) from silent[-1]
    found = f"{', '.join(answering)} took the login"
    if not silent:
        return found
    found = "; ".join([found, *map(str, silent)])
    return Finding(name="broker", state=State.WARNING, found=found, remedy=silent[-1].remedy)


def _spool(settings: SpoolSettings) -> str:
    return _writable(settings.folder, "spool.folder", DoorUnavailable)


def _gateway(settings: Settings) -> str:
    choice = choose(settings)
    try:
        info = choice.gateway.check()
    finally:
        choice.gateway.close()
    accounting = "with" if info.accounting else "without"
    return f"{info.gateway}: cluster {info.cluster}, SLURM {info.release}, {accounting} accounting ({choice.reason})"


def _runs_root(path: Path) -> str:
    """Write where the service will: a file, and a hard link, on which it relies to do things once."""
    found = _writable(path, "runs_root", RunDirectoryUnavailable)
    folder = _nearest(path)
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=folder) as trial:
            file = Path(trial, "file")
            file.write_bytes(b"\0")
            os.link(file, Path(trial, "link"))
    except OSError as error:
        raise RunDirectoryUnavailable(
            f"{folder}: {error.strerror}", remedy="make room, or choose a file system that has hard links"
        ) from error
    return found


def _writable(path: Path, key: str, kind: type[OrchestratorError]) -> str:
    folder = _nearest(path)
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise kind(f"{path} can't be written ({folder})", remedy=f"give this user the permission, or correct {key}")
    return f"{path} can be written" if folder == path else f"{path} will be made in {folder}"


def _nearest(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())


def _allowed_roots(roots: Sequence[Path]) -> str:
    wrong = [str(root) for root in roots if not root.is_dir() or not os.access(root, os.R_OK | os.X_OK)]
    if wrong:
        raise NotFound(
            f"no folder that can be read: {', '.join(wrong)}",
            remedy="mount it, give this user the permission, or correct allowed_roots",
        )
    return ", ".join(map(str, roots))


def _templates(settings: Settings) -> str:
    folder = settings.templates
    if not folder.is_dir():
        raise InvalidSettings(f"{folder}: no such folder", remedy="correct templates, or copy jobtemplates there")
    wanted, there = {recipe.template for recipe in settings.recipes.values()}, set(template_names(folder))
    if missing := sorted(wanted - there):
        raise InvalidSettings(
            f"{folder} hasn't {', '.join(missing)}", remedy="copy it there, or correct the recipes that name it"
        )
    return f"{folder} has what {len(settings.recipes)} recipes name"
