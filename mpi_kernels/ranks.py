"""What every rank does: read and integrate its block of each batch that rank 0 hands out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mpi4py import MPI

from mpi_kernels.azimuthal import Integrator
from mpi_kernels.errors import FrameUnreadable, KernelError
from mpi_kernels.hdf5_files import Library, Mode
from mpi_kernels.messaging import receive
from mpi_kernels.partition import block
from mpi_kernels.readiness import Ready
from mpi_kernels.rows import Row, Status
from mpi_kernels.segments import Segment
from mpi_kernels.source import FrameSource
from mpi_kernels.termination import Termination


@dataclass(frozen=True)
class Start:
    """The first message: what to integrate with."""

    integrator: Integrator


@dataclass(frozen=True)
class Batch:
    """Frames for all ranks; each takes its block."""

    new_segments: Sequence[Segment]
    """Those that came since the last batch; `Ready.segment` counts them all."""
    frames: Sequence[Ready]


@dataclass(frozen=True)
class Stop:
    """The last message."""


def work(comm: MPI.Comm, mode: Mode) -> None:
    """Do rank 0's bidding until it says stop."""
    termination = Termination(comm)
    library = Library(mode)
    share: Share | None = None
    while not isinstance(message := receive(comm, termination.tell), Stop):
        if isinstance(message, Start):
            share = Share(comm, FrameSource(library), message.integrator)
        else:
            assert share is not None  # noqa: S101  the first message is a Start
            comm.gather(share.rows(message), root=0)
    library.close()


class Share:
    """One rank's share of the work."""

    def __init__(self, comm: MPI.Comm, source: FrameSource, integrator: Integrator) -> None:
        self._comm, self._source, self._integrator = comm, source, integrator
        self._segments: list[Segment] = []

    def rows(self, batch: Batch) -> list[Row] | KernelError:
        """Return this rank's rows of a batch, or the error that ends the run."""
        self._segments.extend(batch.new_segments)
        mine = block(batch.frames, ranks=self._comm.size, rank=self._comm.rank)
        try:
            for number in {ready.segment for ready in mine}:
                self._source.look_again(self._segments[number])
            return [_row(self._source, self._integrator, self._segments[ready.segment], ready) for ready in mine]
        except KernelError as error:
            return error


def _row(source: FrameSource, integrator: Integrator, segment: Segment, ready: Ready) -> Row:
    try:
        frame = source.read(segment, ready.index)
    except FrameUnreadable as error:
        return Row(ready.frame, Status.FAILED, reason=error.one_line)
    if frame is None:
        return Row(ready.frame, Status.MISSING)
    pattern = integrator.integrate(frame)
    return Row(ready.frame, Status.PROCESSED, pattern.intensity, pattern.sigma)
