"""Source to kernel to sink, under MPI. The communicator is passed in.

Rank 0 waits for the input, decides which frames are ready, hands them out, and writes the result (`conductor`). All
ranks, rank 0 among them, read and integrate their block of each batch (`ranks`). Foreseen errors travel as values and
end the run in order; an unforeseen one on any rank ends all of them.
"""

from __future__ import annotations

import sys
import traceback

from mpi4py import MPI

from mpi_kernels.conductor import Conductor
from mpi_kernels.errors import ExitCode
from mpi_kernels.hdf5_files import allow_many_files
from mpi_kernels.ranks import work
from mpi_kernels.request import Request


def run(comm: MPI.Comm, request: Request) -> ExitCode:
    """Process one input with all ranks of `comm`; rank 0 returns the run's exit code, the others `COMPLETE`."""
    allow_many_files()
    try:
        if comm.rank == 0:
            return Conductor(comm, request).run()
        work(comm, request)
    except (Exception, KeyboardInterrupt):  # noqa: BLE001  the other ranks wait for this one: end them, with the traceback
        traceback.print_exc()
        sys.stderr.flush()
        if comm.size > 1:
            comm.Abort(ExitCode.FAULT)
        return ExitCode.FAULT
    return ExitCode.COMPLETE
