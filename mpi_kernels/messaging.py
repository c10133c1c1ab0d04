"""What ranks say to each other: one message from rank 0 to all, one answer from each.

MPI libraries wait by spinning, which on a shared node takes a core from those who have work. Waiting here sleeps
between looks. Arrays in answers travel as they are: pickled with the rest they would be copied several times.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from mpi4py import MPI

_SHORTEST_S, _LONGEST_S = 0.0001, 0.002
_ARRAY = 17
"""Tag of the arrays of an answer."""


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


def answers(comm: MPI.Comm, own: object) -> list[Any]:
    """Return the answers of all ranks in their order (rank 0), which have given theirs by `answer`."""
    found = [own]
    others = (comm.gather(None, root=0) or [None])[1:]
    for rank, (content, sizes) in enumerate(others, start=1):
        arrays = [bytearray(size) for size in sizes]
        for array in arrays:
            comm.Recv([array, MPI.BYTE], source=rank, tag=_ARRAY)
        found.append(pickle.loads(content, buffers=arrays))  # noqa: S301  from a rank of this very program
    return found


def answer(comm: MPI.Comm, own: object) -> None:
    """Give rank 0 this rank's answer (all other ranks)."""
    arrays: list[pickle.PickleBuffer] = []
    content = pickle.dumps(own, protocol=5, buffer_callback=arrays.append)
    raw = [array.raw() for array in arrays]
    comm.gather((content, [array.nbytes for array in raw]), root=0)
    for array in raw:
        comm.Send([array, MPI.BYTE], dest=0, tag=_ARRAY)


def _wait(request: MPI.Request, meanwhile: Callable[[], None] = lambda: None) -> None:
    pause = _SHORTEST_S
    while not request.Test():
        meanwhile()
        time.sleep(pause)
        pause = min(_LONGEST_S, pause * 1.2)
