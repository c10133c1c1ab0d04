"""TCP ports of 127.0.0.1 that nobody uses at this moment."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable

from orchestrator.errors import StackError

LOOPBACK = "127.0.0.1"

# Below Linux's ephemeral range (32768-60999): an outgoing connection of anybody's can't take the port of a daemon
# between our choosing it and the daemon's start, or while the daemon is being restarted.
CANDIDATES = range(20000, 32000)


def free_ports(count: int, *, taken: Iterable[int] = ()) -> list[int]:
    """Return `count` different ports that can be listened on now, in random order, without those in `taken`.

    Stacks that start at the same moment hardly ever choose the same one, because the order is random.

    Raises
    ------
    StackError
        There aren't that many.
    """
    candidates = random.SystemRandom().sample(CANDIDATES, len(CANDIDATES))
    known = set(taken)
    chosen: list[int] = []
    for port in candidates:
        if len(chosen) == count:
            break
        if port not in known and is_free(port):
            chosen.append(port)
    if len(chosen) < count:
        raise StackError(
            f"only {len(chosen)} of the {count} ports needed between {CANDIDATES.start} and {CANDIDATES.stop} are free",
            remedy="stop other stacks or servers on this machine",
        )
    return chosen


def is_free(port: int) -> bool:
    """Return whether a server could listen on this port of 127.0.0.1 and of all addresses."""
    with socket.socket() as probe:
        # Ports of connections in TIME_WAIT are usable for a server with this option, and all our daemons set it.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
        return True


def answers(port: int, *, timeout_s: float = 1.0) -> bool:
    """Return whether something accepts connections on this port of 127.0.0.1."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=timeout_s):
            return True
    except OSError:
        return False
