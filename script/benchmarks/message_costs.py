"""What messages between two ranks cost: one small object to all, and rows from each. Run under ``mpirun -n 2``.

    python message_costs.py BINS

Rank 0 prints JSON: seconds of a broadcast, of a gather without rows, and of each row (intensities and errors) in it, as
an object, which is how the kernels send them, and as a plain buffer.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
from mpi4py import MPI

ROWS = 128
REPEATS = 200


def seconds_of(comm: MPI.Comm, exchange: Callable[[], object]) -> float:
    """Return the median duration of an exchange on this rank; the others are ready for it."""
    found = []
    for _ in range(REPEATS):
        comm.Barrier()
        began_s = time.perf_counter()
        exchange()
        found.append(time.perf_counter() - began_s)
    return statistics.median(found)


def main() -> None:
    """Measure, and print on rank 0."""
    comm, bins = MPI.COMM_WORLD, int(sys.argv[1])
    batch = list(range(64))
    rows = np.ones((ROWS, 2, bins))
    broadcast_s = seconds_of(comm, lambda: comm.bcast(batch, root=0))
    gather_s = seconds_of(comm, lambda: comm.gather(rows[:0], root=0))
    rows_s = seconds_of(comm, lambda: comm.gather(rows, root=0))
    into = np.empty((comm.size, *rows.shape)) if comm.rank == 0 else None
    buffers_s = seconds_of(comm, lambda: comm.Gather(rows, into, root=0))
    if comm.rank == 0:
        from_others = ROWS * (comm.size - 1)
        costs = {
            "broadcast_s": broadcast_s,
            "gather_s": gather_s,
            "row_s": max(0.0, rows_s - gather_s) / from_others,
            "buffer_row_s": buffers_s / from_others,
        }
        sys.stdout.write(f"{json.dumps(costs)}\n")


if __name__ == "__main__":
    main()
