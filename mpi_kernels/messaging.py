"""What ranks say to each other: one message from rank 0 to all, one answer from each.

MPI libraries wait by spinning, which on a shared node takes a core from those who have work. Waiting here sleeps
between looks.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from mpi4py import MPI

_SHORTEST_S, _LONGEST_S = 0.0001, 0.002


def send_to_all(comm: MPI.Comm, message: object) -> None:
    """Hand `message` to all other ranks (rank 0 only)."""
    if comm.size == 1:
        return
    content = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    length = np.array([len(content)], np.int64)
    _wait(comm.Ibcast([length, MPI.INT64_T], root=0))
    comm.Bcast([bytearray(content), MPI.BYTE], root=0)


def receive(comm: MPI.Comm, meanwhile: Callable[[], None]) -> Any:
    """Wait for rank 0's next message (all other ranks); `meanwhile` is called while there is none."""
    length = np.zeros(1, np.int64)
    _wait(comm.Ibcast([length, MPI.INT64_T], root=0), meanwhile)
    content = bytearray(int(length[0]))
    comm.Bcast([content, MPI.BYTE], root=0)
    return pickle.loads(content)  # noqa: S301  from rank 0 of this very program


def _wait(request: MPI.Request, meanwhile: Callable[[], None] = lambda: None) -> None:
    pause = _SHORTEST_S
    while not request.Test():
        meanwhile()
        time.sleep(pause)
        pause = min(_LONGEST_S, pause * 1.2)
