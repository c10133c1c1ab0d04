"""Where SLURM's daemons listen: on 127.0.0.1, if this machine lets them.

They listen either on the address that the machine's name leads to, or on all addresses (slurm.conf(5),
CommunicationParameters), and srun is called back on the address it came from, so both must be 127.0.0.1. Debian's
installer makes the name lead to 127.0.1.1, a network to an address of its own, and a bare system to nothing.
"""

from __future__ import annotations

import socket

from orchestrator.stack.ports import LOOPBACK


def listening(on_own_address: str) -> dict[str, str]:
    """Return the setting that keeps a daemon on 127.0.0.1, where that can be done.

    Parameters
    ----------
    on_own_address
        The daemon's words for *only where the machine's name leads*.
    """
    return {} if beyond_loopback() else {"CommunicationParameters": on_own_address}


def beyond_loopback() -> str:
    """Say why SLURM can't be kept on 127.0.0.1 on this machine; empty where it can."""
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        return f"the name of this machine, {name}, leads nowhere instead of to {LOOPBACK}"
    return (
        "" if address == LOOPBACK else f"the name of this machine, {name}, leads to {address} instead of to {LOOPBACK}"
    )
