"""munged with a key and a socket of its own: what tells this stack's SLURM from any other on the machine."""

from __future__ import annotations

import secrets

from orchestrator.stack import processes
from orchestrator.stack.daemon import Daemon
from orchestrator.stack.layout import Layout, make_private, write_private
from orchestrator.stack.programs import find_program

PROGRAMS = ("munged", "munge", "unmunge")
KEY_BYTES = 128


def prepare(layout: Layout) -> None:
    """Make the key where there is none."""
    key = make_private(layout.directory / "munge") / "munge.key"
    if not key.exists():
        write_private(key, secrets.token_bytes(KEY_BYTES), mode=0o400)


def daemon(layout: Layout) -> Daemon:
    """Return the description of munged."""
    folder = layout.directory / "munge"

    def ready() -> bool:
        credential = processes.run([find_program("munge"), "-n", "-S", layout.munge_socket])
        processes.run([find_program("unmunge"), "-S", layout.munge_socket], text=credential)
        return True

    return Daemon(
        name="munged",
        command=(
            find_program("munged"),
            "--foreground",
            # Our folders are closed to others, which munged takes for a mistake.
            "--force",
            f"--key-file={folder / 'munge.key'}",
            f"--seed-file={folder / 'munge.seed'}",
            f"--pid-file={layout.runtime / 'munged.pid'}",
            f"--socket={layout.munge_socket}",
        ),
        log=layout.log("munged"),
        environment=layout.slurm_environment(),
        ready=ready,
    )
