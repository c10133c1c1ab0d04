"""Rank 0's part: wait for the input, decide which frames are ready, hand them out, collect and write."""

from __future__ import annotations

import heapq
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

import numpy as np
from mpi4py import MPI

from mpi_kernels import __version__
from mpi_kernels.ending import CollectionEnd, EndRules, Situation
from mpi_kernels.errors import ExitCode, KernelError, NotThereYet, OutputUnwritable
from mpi_kernels.finished import FinishedFlag
from mpi_kernels.hdf5_files import Library, WriterState, settled, writer_state
from mpi_kernels.identity import identify, software
from mpi_kernels.messaging import send_to_all
from mpi_kernels.preparation import Frames, Prepared, prepare
from mpi_kernels.progress import ProgressFile, Tally
from mpi_kernels.ranks import Batch, Share, Start, Stop
from mpi_kernels.readiness import MOST_AT_ONCE, Readiness, Ready
from mpi_kernels.request import Request
from mpi_kernels.rows import Row
from mpi_kernels.segments import Layout
from mpi_kernels.sink import Making, ResultFile
from mpi_kernels.source import FrameDataset, FrameSource
from mpi_kernels.termination import Termination

_POLL_S, _IDLE_POLL_S = 0.005, 0.05
_FULL_POLL_S = 1.0
_END_CHECK_S = 0.02
_BATCH_S = 0.1
_FIRST_BATCH_PER_RANK = 8

T = TypeVar("T")


@dataclass
class _Clock:
    """When things last happened, monotonic seconds."""

    growth: float = field(default_factory=time.monotonic)
    end_seen: float | None = None
    end_check: float = float("-inf")
    full_poll: float = float("-inf")
    full_poll_took: float = 0.0


class Conductor:
    """Rank 0: decides, hands out, collects, writes."""

    def __init__(self, comm: MPI.Comm, request: Request) -> None:
        self._comm, self._request = comm, request
        self._library = Library(request.mode)
        self._source = FrameSource(self._library)
        self._tally = Tally(request.expected)
        self._software = software()
        self._progress = ProgressFile(
            request.progress,
            kernel=request.kernel,
            ranks=comm.size,
            parameters=request.parameters.model_dump(mode="json"),
            software=self._software,
        )
        self._clock = _Clock()
        self._frames: tuple[Layout, FrameDataset] | None = None
        self._waiting: list[Ready] = []  # a heap: lowest frame first
        self._segments_sent = 0
        self._seen_at: dict[int, float] = {}
        self._batch_per_rank = _FIRST_BATCH_PER_RANK
        self._termination = Termination(comm)
        self._started_at = datetime.now(UTC)

    def run(self) -> ExitCode:
        """Run from waiting for the input to the finished result."""
        try:
            ended_because = self._process()
            code = ExitCode.COMPLETE if self._complete() else ExitCode.PARTIAL
            self._note_input("end")
            self._progress.write("finished", self._tally, ended_because=ended_because, now=True)
        except KernelError as error:
            send_to_all(self._comm, Stop())
            sys.stderr.write(f"error: {error.one_line}\n")
            self._library.close()  # it may have taken the last file handles
            self._say_failed(error)
            return error.exit_code
        except Exception as error:
            self._say_failed(KernelError(f"a fault in the kernel: {error!r}", remedy="the log has the traceback"))
            raise
        send_to_all(self._comm, Stop())
        self._library.close()
        return code

    def _say_failed(self, error: KernelError) -> None:
        self._note_input("end")
        self._progress.write_last_word(self._tally, error)

    def _process(self) -> str:
        self._progress.write("waiting", self._tally, now=True)
        layout, first = self._when_there(self._look)
        if self._is_closed_but_short(layout, first):
            self._wait_for_its_writer()
            layout, first = self._when_there(self._look)
        self._frames = (layout, first)
        self._note_input("open")
        prepared = self._prepare(first)
        send_to_all(self._comm, Start(prepared.integrator))
        result = ResultFile(self._request.output, prepared, self._making(), expected=self._request.expected)
        self._readiness = Readiness(
            self._library,
            layout,
            self._source,
            self._request.keys_dataset,
            finished=self._request.mode == "finished",
        )
        self._flag = FinishedFlag.find(self._library, self._request.input, self._request.finished_dataset)
        self._share = Share(self._comm, self._source, prepared.integrator)
        self._result = result
        result.write_reading_route(first.route)
        self._clock.growth = time.monotonic()
        try:
            ended_because = self._follow()
        except OutputUnwritable:
            raise
        except KernelError:
            result.finish(finished=False, ended_because="error")
            raise
        result.finish(finished=ended_because != "terminated", ended_because=ended_because)
        return ended_because

    def _when_there(self, attempt: Callable[[], T]) -> T:
        """Try until it works, the time is over, or waiting is of no use."""
        began = time.monotonic()
        while True:
            try:
                return attempt()
            except NotThereYet as error:
                if error.settled or self._request.mode == "finished":
                    raise
                waited_s = time.monotonic() - began
                if self._termination.wanted:
                    raise error.after(f"waited {waited_s:.0f} s for it, until a signal came") from error
                if waited_s >= (timeout_s := self._request.appear_timeout_s):
                    raise error.after(f"waited {timeout_s:g} s for it (--appear-timeout)") from error
            self._forget()  # what was read of an unfinished file may have changed
            self._progress.write("waiting", self._tally)
            time.sleep(_IDLE_POLL_S)

    def _note_input(self, moment: str) -> None:
        """Put the input's identity into the progress file, if it was ever there and still is."""
        request = self._request
        if self._frames is None:
            return
        with suppress(FileNotFoundError):
            self._progress.note_input(moment, identify(request.input, request.dataset, *self._frames))

    def _forget(self) -> None:
        self._library.close()
        self._source = FrameSource(self._library)

    def _look(self) -> tuple[Layout, FrameDataset]:
        """Return the layout and the first dataset whose file has appeared."""
        layout = Layout(self._library, self._request.input, self._request.dataset)
        layout.extend()
        problem: NotThereYet | None = None
        for segment in layout.segments:
            try:
                return layout, self._source.dataset(segment)
            except NotThereYet as error:
                problem = problem or error
        raise problem or NotThereYet(f"{self._request.input}::{self._request.dataset}: no data file yet")

    def _is_closed_but_short(self, layout: Layout, first: FrameDataset) -> bool:
        """Whether nobody is writing the one file, though it has fewer frames than announced."""
        expected = self._request.expected or 0
        if first.live or len(layout.segments) > 1 or self._request.mode == "finished":
            return False
        return not first.holds(expected)

    def _wait_for_its_writer(self) -> None:
        """Wait until somebody writes the file (many writers make it, close it, and open it again), or it is settled."""
        path = self._request.input
        while writer_state(path) is WriterState.CLOSED and not (settled(path) or self._termination.wanted):
            if CollectionEnd.read(self._request.end_file) is not None:
                break
            self._progress.write("waiting", self._tally)
            time.sleep(_IDLE_POLL_S)
        self._forget()

    def _prepare(self, first: FrameDataset) -> Prepared:
        request = self._request
        base = request.parameters_path.resolve().parent
        frames = Frames(request.input, request.dataset, first.frame_shape, first.dtype, base)
        return prepare(self._library, frames, request.parameters)

    def _making(self) -> Making:
        request = self._request
        return Making(
            program=f"mpi_kernels {request.kernel}",
            version=__version__,
            command_line=request.command_line,
            run_id=request.run_id,
            input=str(request.input.resolve()),
            dataset=request.dataset,
            ranks=self._comm.size,
            host=socket.gethostname(),
            software="Python {python}, numpy {numpy}, h5py {h5py}, HDF5 {hdf5}, {mpi}, {decoder}".format_map(
                self._software
            ),
            started_at=self._started_at,
        )

    # ------------------------------------------------------------------------------------------------------- the loop

    def _follow(self) -> str:
        """Process frames until the end; return why it ended."""
        while True:
            self._poll()
            ended_because = "" if self._waiting else self._why_end()  # what is there is processed first
            if ended_because:
                if ended_because != "terminated":
                    self._process_the_rest()
                return ended_because
            if self._waiting and self._termination.wanted:
                return "terminated"
            if self._waiting:
                self._process_batch()
            else:
                self._progress.write("running", self._tally)
                time.sleep(_POLL_S if time.monotonic() - self._clock.growth < 2.0 else _IDLE_POLL_S)

    def _process_the_rest(self) -> None:
        more = True
        while more and not self._termination.wanted:
            more = self._poll(final=True) == MOST_AT_ONCE
            while self._waiting and not self._termination.wanted:
                self._process_batch()

    def _poll(self, *, final: bool = False) -> int:
        """Look for frames; return how many were found."""
        if len(self._waiting) >= MOST_AT_ONCE and not self._waiting[0].live:
            return 0  # they can wait in the file
        now = time.monotonic()
        full = final or now - self._clock.full_poll > max(_FULL_POLL_S, 20 * self._clock.full_poll_took)
        found = self._readiness.poll(self._request.input, full=full, final=final)
        seen_at = time.monotonic()
        if full:
            self._clock.full_poll, self._clock.full_poll_took = seen_at, seen_at - now
        if found:
            self._clock.growth = seen_at
        for ready in found:
            heapq.heappush(self._waiting, ready)
            if self._tally.see(ready.frame) and ready.live:
                self._seen_at[ready.frame] = seen_at
        return len(found)

    def _why_end(self) -> str:
        now, request = time.monotonic(), self._request
        if now - self._clock.end_check < _END_CHECK_S and not self._termination.wanted:
            return ""
        self._clock.end_check = now
        end = CollectionEnd.read(request.end_file)
        if end is not None and self._clock.end_seen is None:
            self._clock.end_seen = now
        situation = Situation(
            written=self._tally.written,
            idle_s=now - self._clock.growth,
            end=end,
            end_seen_for_s=0.0 if self._clock.end_seen is None else now - self._clock.end_seen,
            writer_finished=self._writer_finished(),
            terminated=self._termination.wanted,
        )
        return EndRules(expected=request.expected, stall_timeout_s=request.stall_timeout_s).reason(situation)

    def _writer_finished(self) -> bool:
        if self._flag is not None and self._flag.is_set():
            return True
        return self._readiness.nothing_more_to_come(self._request.input, stall_timeout_s=self._request.stall_timeout_s)

    def _process_batch(self) -> None:
        started = time.monotonic()
        batch = self._next_batch()
        send_to_all(self._comm, batch)
        answers = self._comm.gather(self._share.rows(batch), root=0)
        rows = _rows_of(answers)
        self._result.write(rows)
        tally = self._tally
        for row in rows:
            tally.settle(row.frame, row.status)
        self._result.write_counts(written=tally.written, processed=tally.processed, failed=tally.failed)
        done = time.monotonic()
        tally.lags.add(done - self._seen_at.pop(row.frame) for row in rows if row.frame in self._seen_at)
        self._progress.write("running", tally)
        self._adapt(len(rows), done - started)

    def _next_batch(self) -> Batch:
        count = min(len(self._waiting), self._batch_per_rank * self._comm.size)
        frames = [heapq.heappop(self._waiting) for _ in range(count)]
        new_segments = self._readiness.segments[self._segments_sent :]
        self._segments_sent += len(new_segments)
        return Batch(new_segments, frames)

    def _adapt(self, frames: int, took_s: float) -> None:
        """Make batches as long as keeps results coming about ten times a second."""
        per_rank = frames / self._comm.size * _BATCH_S / max(took_s, 1e-6)
        if frames >= self._comm.size:
            self._batch_per_rank = int(np.clip(per_rank, self._batch_per_rank / 2, self._batch_per_rank * 2)) or 1

    def _complete(self) -> bool:
        """Whether every frame that was written or announced has its result."""
        tally = self._tally
        wanted = max(tally.highest + 1, tally.expected or 0, self._announced_at_end())
        return tally.failed == 0 and tally.processed == tally.written >= wanted

    def _announced_at_end(self) -> int:
        end = CollectionEnd.read(self._request.end_file)
        return 0 if end is None else end.frames_written or 0


def _rows_of(answers: Sequence[list[Row] | KernelError] | None) -> list[Row]:
    rows: list[Row] = []
    for rank_answer in answers or ():
        if isinstance(rank_answer, KernelError):
            raise rank_answer
        rows.extend(rank_answer)
    return rows
