"""Where a private stack keeps what, and on which ports it listens; kept in ``layout.json`` of its directory.

Everything is below the stack's directory. Only the names of Unix sockets (and SLURM's spool folders, which hold
sockets) are limited to 107 bytes by the kernel, so they move to a short private folder when the directory's own name
is long; the layout remembers it and `down` removes it.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from orchestrator.errors import StackError
from orchestrator.stack import ports

# Room for what SLURM adds: "/run/n12/n12_4294967295.4294967295" and the like.
LONGEST_DIRECTORY = 60
PLAIN_PATH = re.compile(r"[A-Za-z0-9/._+@~-]+")


class Service(StrEnum):
    """What a stack can offer."""

    SLURM = "slurm"
    BROKER = "broker"
    ACCOUNTING = "accounting"
    REST = "rest"


NEEDS = {
    Service.SLURM: frozenset[Service](),
    Service.BROKER: frozenset[Service](),
    Service.ACCOUNTING: frozenset({Service.SLURM}),
    # slurmrestd ends at once where its accounting plugins are installed but there is no slurmdbd.
    Service.REST: frozenset({Service.SLURM, Service.ACCOUNTING}),
}
"""Services that don't work without others."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The unchanging facts about one stack between `up` and `down`."""

    directory: Path
    runtime: Path
    """Sockets and spool folders; short."""
    services: frozenset[Service]
    nodes: int
    ports: Mapping[str, int]
    """By the daemon's name; ``broker-tls`` is the broker's second one."""
    password: str
    """Of the user ``orchestrator`` at the broker and the database."""
    slurm_settings: Mapping[str, str] = field(default_factory=dict)
    """What slurm.conf says otherwise than in other stacks."""

    @property
    def logs(self) -> Path:
        return self.directory / "logs"

    @property
    def slurm_conf(self) -> Path:
        return self.directory / "slurm" / "slurm.conf"

    @property
    def jwt_key(self) -> Path:
        return self.directory / "slurm" / "jwt_hs256.key"

    @property
    def munge_socket(self) -> Path:
        return self.runtime / "munge.sock"

    @property
    def node_names(self) -> list[str]:
        return [f"n{number}" for number in range(1, self.nodes + 1)]

    def log(self, daemon: str) -> Path:
        return self.logs / f"{daemon}.log"

    def slurm_environment(self) -> dict[str, str]:
        """Return our environment, pointing at this stack's SLURM and free of any other's job or settings."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
        return {**inherited, "SLURM_CONF": str(self.slurm_conf)}


def default_directory() -> Path:
    """Return where a stack lives when nobody says: the user's state folder (XDG Base Directory Specification)."""
    state = os.environ.get("XDG_STATE_HOME", "")
    base = Path(state) if Path(state).is_absolute() else Path.home() / ".local" / "state"
    return base / "orchestrator" / "stack"


def port_names(services: frozenset[Service], nodes: int) -> list[str]:
    """Return the names of the ports that these services need."""
    needed = {
        Service.SLURM: ["slurmctld", *(f"slurmd-n{number}" for number in range(1, nodes + 1))],
        Service.BROKER: ["broker", "broker-tls"],
        Service.ACCOUNTING: ["slurmdbd", "mariadb"],
        Service.REST: ["slurmrestd"],
    }
    return [name for service in Service if service in services for name in needed[service]]


def new_layout(directory: Path, services: frozenset[Service], nodes: int) -> Layout:
    """Choose ports and folders for a stack that doesn't run yet, and make the folders.

    Raises
    ------
    StackError
        The directory's name has a character that SLURM's configuration can't hold.
    """
    if not PLAIN_PATH.fullmatch(str(directory)):
        raise StackError(
            f"SLURM can't use a directory named {str(directory)!r}",
            remedy="choose a name of ASCII letters, digits and ._+@~- only",
        )
    names = port_names(services, nodes)
    make_private(directory)
    layout = Layout(
        directory=directory,
        runtime=_runtime_folder(directory),
        services=services,
        nodes=nodes,
        ports=dict(zip(names, ports.free_ports(len(names)), strict=True)),
        password=secrets.token_urlsafe(18),
    )
    make_private(layout.logs)
    return layout


def extended(layout: Layout, services: frozenset[Service]) -> Layout:
    """Return the layout with more services; what runs keeps its ports."""
    wanted = layout.services | services
    missing = [name for name in port_names(wanted, layout.nodes) if name not in layout.ports]
    added = zip(missing, ports.free_ports(len(missing), taken=layout.ports.values()), strict=True)
    return replace(layout, services=wanted, ports={**layout.ports, **dict(added)})


def _runtime_folder(directory: Path) -> Path:
    if len(os.fsencode(directory)) <= LONGEST_DIRECTORY:
        return make_private(directory / "run")
    return Path(tempfile.mkdtemp(prefix="stack-", dir="/tmp"))


def make_private(folder: Path) -> Path:
    """Make a folder that is closed to other users, and return it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def write_private(file: Path, content: str | bytes, *, mode: int = 0o600) -> None:
    """Replace a file atomically; it is closed to other users from the first byte on."""
    temporary = file.with_name(f".{file.name}.new")
    temporary.touch(mode=0o600)
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    temporary.chmod(mode)
    temporary.replace(file)


def save(layout: Layout) -> None:
    """Write the layout to its directory."""
    text = json.dumps(asdict(layout) | {"services": sorted(layout.services)}, indent=2, default=str)
    write_private(_file(layout.directory), text + "\n")


def load(directory: Path) -> Layout | None:
    """Return the layout that stands in a directory, None when there is none.

    Raises
    ------
    StackError
        The file can't be understood.
    """
    file = _file(directory)
    if not file.exists():
        return None
    try:
        fields = json.loads(file.read_text())
        return Layout(
            directory=directory,
            runtime=Path(fields["runtime"]),
            services=frozenset(map(Service, fields["services"])),
            nodes=int(fields["nodes"]),
            ports={str(name): int(port) for name, port in fields["ports"].items()},
            password=str(fields["password"]),
            slurm_settings={str(name): str(value) for name, value in fields.get("slurm_settings", {}).items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError) as broken:
        raise StackError(
            f"{file} can't be understood: {broken}",
            remedy=f"end what processes.json beside it names, then remove {directory}",
        ) from broken


def forget(layout: Layout) -> None:
    """Remove the layout and the folder of sockets; data and logs stay."""
    shutil.rmtree(layout.runtime, ignore_errors=True)
    _file(layout.directory).unlink(missing_ok=True)


def _file(directory: Path) -> Path:
    return directory / "layout.json"
