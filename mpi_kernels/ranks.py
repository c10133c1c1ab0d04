"""What every rank does: read and reduce its block of each batch that rank 0 hands out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mpi4py import MPI

from mpi_kernels.chunk_memory import ChunkMemory
from mpi_kernels.errors import FrameUnreadable, KernelError
from mpi_kernels.frame_digests import DIGESTS
from mpi_kernels.hdf5_files import Library
from mpi_kernels.kernel import Accumulating, Array, Reduced, Reduction
from mpi_kernels.messaging import answer, receive
from mpi_kernels.native.library import Chunk
from mpi_kernels.partition import block
from mpi_kernels.per_frame import PerFrame
from mpi_kernels.readiness import Ready
from mpi_kernels.request import Request
from mpi_kernels.rows import Rows, Status
from mpi_kernels.segments import Segment
from mpi_kernels.source import FrameSource
from mpi_kernels.termination import Termination

_OPERATIONS = {"sum": MPI.SUM, "max": MPI.MAX}


@dataclass(frozen=True)
class Start:
    """The first message: what to do with frames, and the file that was asked for."""

    reduction: Reduction
    file: Path


@dataclass(frozen=True)
class Batch:
    """Frames for all ranks; each takes its block."""

    new_segments: Sequence[Segment]
    """Those that came since the last batch; `Ready.segment` counts them all."""
    frames: Sequence[Ready]
    shares: Sequence[float] = ()
    """How much of them each rank takes, in proportion; without: as much as every other."""


@dataclass(frozen=True)
class Collect:
    """Bring together at rank 0 what all ranks have gathered since the last time."""


@dataclass(frozen=True)
class Stop:
    """The last message."""


def work(comm: MPI.Comm, request: Request) -> None:
    """Do rank 0's bidding until it says stop."""
    termination = Termination(comm)
    library = Library(request.mode, parallel=request.parallel)
    share: Share | None = None
    while not isinstance(message := receive(comm, termination.tell), Stop):
        if isinstance(message, Start):
            share = Share(comm, library, FrameSource(library), message)
            continue
        assert share is not None  # noqa: S101  the first message is a Start
        if isinstance(message, Collect):
            share.collect()
        else:
            answer(comm, share.rows(message))
    library.close()


class Share:
    """One rank's share of the work."""

    def __init__(self, comm: MPI.Comm, library: Library, source: FrameSource, start: Start) -> None:
        self._comm, self._source, self._reduction = comm, source, start.reduction
        self._per_frame = {
            name: PerFrame(library, start.file, path) for name, path in start.reduction.per_frame.items()
        }
        self._segments: list[Segment] = []
        start.reduction.get_ready()
        self._memory = ChunkMemory(start.reduction.chunks_at_once)

    def rows(self, batch: Batch) -> Rows | KernelError:
        """Return this rank's rows of a batch, or the error that ends the run."""
        self._segments.extend(batch.new_segments)
        mine = block(batch.frames, ranks=self._comm.size, rank=self._comm.rank, shares=batch.shares)
        columns = (*self._reduction.columns, DIGESTS)
        rows = Rows.without_result([ready.frame for ready in mine], columns, time.time())
        try:
            for number in {ready.segment for ready in mine}:
                self._source.look_again(self._segments[number])
            for places, reduced in self._reduced(mine, rows):
                self._put(mine, places, reduced, rows)
        except KernelError as error:
            return error
        return rows

    def collect(self) -> dict[str, Array]:
        """Return what all ranks have gathered since the last time (rank 0; the others return their own part)."""
        assert isinstance(self._reduction, Accumulating)  # noqa: S101  nobody else is asked to
        parts = self._reduction.take()
        for name, operation in self._reduction.operations().items():
            own = parts[name]
            together = np.empty_like(own) if self._comm.rank == 0 else None
            self._comm.Reduce(own, together, op=_OPERATIONS[operation], root=0)
            if together is not None:
                parts[name] = together
        return parts

    def _reduced(self, mine: Sequence[Ready], rows: Rows) -> Iterator[tuple[list[int], Reduced]]:
        """Read and reduce, some frames at a time; yield which they were and what became of them."""
        takes_chunks = self._reduction.takes_chunks
        chunks: list[Chunk] = []
        given: list[Mapping[str, float]] = []
        places: list[int] = []
        for place, ready in enumerate(mine):
            segment = self._segments[ready.segment]
            try:
                numbers = {name: dataset.value(ready.frame) for name, dataset in self._per_frame.items()}
                chunk = self._source.chunk(segment, ready.index, self._memory) if takes_chunks else None
                frame = self._source.read(segment, ready.index) if chunk is None else None
                if (digest := self._source.digest(segment, ready.index)) is not None:
                    rows.columns[DIGESTS.path][place] = np.frombuffer(digest, np.uint8)
            except FrameUnreadable as error:
                _fail(rows, place, error.one_line)
                continue
            if chunk is not None:
                chunks.append(chunk)
                given.append(numbers)
                places.append(place)
            elif frame is not None:
                yield [place], self._reduction.of_frames([frame], [numbers])
            if len(chunks) == self._reduction.chunks_at_once:
                yield places, self._reduction.of_chunks(chunks, given)
                chunks, given, places = [], [], []
        if chunks:
            yield places, self._reduction.of_chunks(chunks, given)

    def _put(self, mine: Sequence[Ready], places: list[int], reduced: Reduced, rows: Rows) -> None:
        rows.computed_time[places] = time.time()
        good = [index for index in range(len(places)) if index not in reduced.errors]
        for path, values in reduced.columns.items():
            rows.columns[path][[places[index] for index in good]] = values[good]
        for index in good:
            ready = mine[places[index]]
            rows.status[places[index]] = Status.PROVISIONAL if ready.provisional else Status.PROCESSED
        for index, text in reduced.errors.items():
            ready = mine[places[index]]
            where = self._source.place(self._segments[ready.segment], ready.index)
            _fail(rows, places[index], f"{where}: {text}")


def _fail(rows: Rows, place: int, reason: str) -> None:
    rows.status[place] = Status.FAILED
    rows.columns[DIGESTS.path][place] = DIGESTS.fill
    rows.messages[int(rows.frames[place])] = reason
