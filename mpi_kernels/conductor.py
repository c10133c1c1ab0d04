"""Rank 0's part: decide which frames are ready, hand them out, collect what became of them, see when it is over."""

from __future__ import annotations

import hashlib
import heapq
import json
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
from mpi4py import MPI

from mpi_kernels import __version__
from mpi_kernels.arrival import Arrival
from mpi_kernels.earlier import boot_id
from mpi_kernels.ending import CollectionEnd, EndRules, Situation
from mpi_kernels.errors import ExitCode, KernelError, OutputUnwritable
from mpi_kernels.finished import FinishedFlag
from mpi_kernels.hdf5_files import Library
from mpi_kernels.identity import identify, software
from mpi_kernels.kernel import Frames, Prepared
from mpi_kernels.messaging import answers, send_to_all
from mpi_kernels.native.library import CHUNKS_SIDE_BY_SIDE
from mpi_kernels.progress import ProgressFile, Tally
from mpi_kernels.ranks import Batch, Collect, Share, Start, Stop
from mpi_kernels.readiness import MOST_AT_ONCE, Readiness, Ready
from mpi_kernels.recording import Recorder
from mpi_kernels.request import Request
from mpi_kernels.rows import Rows
from mpi_kernels.segments import Layout
from mpi_kernels.sink import Making
from mpi_kernels.source import FrameDataset
from mpi_kernels.termination import Termination

_SHORTEST_POLL_S, _IDLE_POLL_S = 0.0005, 0.05
_POLL_SHARE = 4
"""Looking for frames takes no more than one part in so many of the time."""
_QUIET_S = 2.0
_FULL_POLL_S = 1.0
_END_CHECK_S = 0.02
_BATCH_S, _LIVE_BATCH_S = 0.1, 0.02
"""How long a batch takes: long ones cost least; short ones keep the newest frame's result from waiting for others."""
_FIRST_BATCH_PER_RANK = 16


@dataclass
class _Clock:
    """When things last happened, monotonic seconds, and how long they took."""

    growth: float = field(default_factory=time.monotonic)
    end_seen: float | None = None
    end_check: float = float("-inf")
    full_poll: float = float("-inf")
    full_poll_took: float = 0.0
    poll_took: float = 0.0
    per_frame: float = 0.0
    """What a frame costs rank 0."""
    writing: float = 0.0
    """What rank 0 does in a batch while the others work already."""


class Conductor:
    """Rank 0: decides, hands out, collects, writes."""

    def __init__(self, comm: MPI.Comm, request: Request) -> None:
        self._comm, self._request = comm, request
        self._library = Library(request.mode, parallel=request.parallel)
        self._tally = Tally(request.expected)
        self._software = software()
        self._progress = ProgressFile(
            request.progress,
            kernel=request.name,
            ranks=comm.size,
            settled={
                "parameters": request.parameters.model_dump(mode="json"),
                "parameters_sha256": request.parameters_sha256,
                "software": self._software,
            },
        )
        self._clock = _Clock()
        self._frames: tuple[Layout, FrameDataset] | None = None
        self._waiting: list[Ready] = []  # a heap: lowest frame first
        self._segments_sent = 0
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
        waiting = Arrival(
            self._request, self._library, self._termination, lambda: self._progress.write("waiting", self._tally)
        )
        layout, first = waiting.wait()
        self._frames = (layout, first)
        self._note_input("open")
        prepared = self._prepare(first)
        self._progress.note_files(prepared.files)
        start = Start(prepared.reduction, self._request.input)
        send_to_all(self._comm, start)
        self._share = Share(self._comm, self._library, waiting.source, start)
        self._recorder = Recorder(self._request, prepared, self._making(prepared, first), self._tally)
        self._readiness = Readiness(
            self._library,
            layout,
            waiting.source,
            self._request.keys_dataset,
            finished=self._request.mode == "finished",
        )
        self._flag = FinishedFlag.find(self._library, self._request.input, self._request.finished_dataset)
        self._recorder.result.write_reading_route(first.route)
        self._clock.growth = time.monotonic()
        try:
            ended_because = self._follow()
            self._collect()
        except OutputUnwritable:
            raise
        except KernelError:
            self._finish(finished=False, ended_because="error")
            raise
        self._finish(finished=ended_because != "terminated", ended_because=ended_because)
        return ended_because

    def _finish(self, *, finished: bool, ended_because: str) -> None:
        self._progress.note_seal(self._recorder.finish(finished=finished, ended_because=ended_because))

    def _note_input(self, moment: str) -> None:
        """Put the input's identity into the progress file, if it was ever there and still is."""
        request = self._request
        if self._frames is None:
            return
        with suppress(FileNotFoundError):
            self._progress.note_input(moment, identify(request.input, request.dataset, *self._frames))

    def _prepare(self, first: FrameDataset) -> Prepared:
        request = self._request
        base = request.parameters_path.resolve().parent
        frames = Frames(request.input, request.dataset, first.frame_shape, first.dtype, base)
        return request.kernel.prepare(self._library, frames, request.parameters)

    def _making(self, prepared: Prepared, first: FrameDataset) -> Making:
        request = self._request
        return Making(
            program=f"mpi_kernels {request.name}",
            version=__version__,
            command_line=request.command_line,
            run_id=request.run_id,
            input=str(request.input.resolve()),
            dataset=request.dataset,
            ranks=self._comm.size,
            host=socket.gethostname(),
            boot_id=boot_id(),
            software="Python {python}, numpy {numpy}, h5py {h5py}, HDF5 {hdf5}, {mpi}, {decoder}".format_map(
                self._software
            ),
            fingerprint=self._fingerprint(prepared, first),
            source_sha256=self._software["source_sha256"],
            parameters_sha256=request.parameters_sha256,
            parameters=request.parameters.model_dump(),
            parameters_json=request.parameters.model_dump_json(),
            started_at=self._started_at,
        )

    def _fingerprint(self, prepared: Prepared, first: FrameDataset) -> str:
        """Return a digest of all that the rows depend on."""
        path = self._request.input
        what = [
            self._request.name,
            self._software["source_sha256"],
            prepared.fingerprint,
            str(path.resolve()),
            path.stat().st_ino,
            self._request.dataset,
            first.frame_shape,
            first.dtype.str,
        ]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()

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
                self._rest()
            if self._recorder.collecting_is_due:
                self._collect()

    def _process_the_rest(self) -> None:
        more = True
        while more and not self._termination.wanted:
            more = self._poll(final=True) == MOST_AT_ONCE
            while self._waiting and not self._termination.wanted:
                self._process_batch()

    def _rest(self) -> None:
        """Write what waits to be written, and let others have the processor for a moment."""
        if not self._recorder.write():
            quiet = time.monotonic() - self._clock.growth > _QUIET_S
            time.sleep(_IDLE_POLL_S if quiet else max(_SHORTEST_POLL_S, _POLL_SHARE * self._clock.poll_took))
        self._progress.write("running", self._tally)

    def _collect(self) -> None:
        """Bring together what the ranks have gathered, if there is anything new."""
        if not self._recorder.is_collected:
            send_to_all(self._comm, Collect())
            self._recorder.collect(self._share.collect())

    def _poll(self, *, final: bool = False) -> int:
        """Look for frames; return how many were found."""
        if len(self._waiting) >= MOST_AT_ONCE and not self._waiting[0].live:
            return 0  # they can wait in the file
        now = time.monotonic()
        full = final or now - self._clock.full_poll > max(_FULL_POLL_S, 20 * self._clock.full_poll_took)
        found = self._readiness.poll(self._request.input, full=full, final=final)
        seen_at = time.monotonic()
        self._clock.poll_took = seen_at - now
        if full:
            self._clock.full_poll, self._clock.full_poll_took = seen_at, seen_at - now
        if found:
            self._clock.growth = seen_at
        for ready in found:
            if self._recorder.see(ready, seen_at):
                heapq.heappush(self._waiting, ready)
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
        """Hand out a batch; write what became of earlier ones while the other ranks work on it; do rank 0's part."""
        started = time.monotonic()
        batch = self._next_batch()
        send_to_all(self._comm, batch)
        sent = time.monotonic()
        problem = self._write_meanwhile()
        written = time.monotonic()
        own = problem or self._share.rows(batch)  # an error has to wait until the others have given their answers
        done = time.monotonic()
        for rows in _rows_of(answers(self._comm, own)):
            self._recorder.take(rows)
        self._learn(batch, 0 if isinstance(own, KernelError) else len(own), written - sent, done - written)
        self._adapt(len(batch.frames), time.monotonic() - started, live=batch.frames[0].live)

    def _write_meanwhile(self) -> KernelError | None:
        try:
            self._recorder.write()
            self._progress.write("running", self._tally)
        except KernelError as error:
            return error
        return None

    def _next_batch(self) -> Batch:
        count = min(len(self._waiting), self._batch_per_rank * self._comm.size)
        frames = [heapq.heappop(self._waiting) for _ in range(count)]
        new_segments = self._readiness.segments[self._segments_sent :]
        self._segments_sent += len(new_segments)
        return Batch(new_segments, frames, self._shares(count))

    def _shares(self, frames: int) -> Sequence[float]:
        """Return each rank's share of a batch, so that all are done together though rank 0 also writes."""
        ranks = self._comm.size
        if ranks == 1 or frames < 2 * ranks or not self._clock.per_frame:
            return ()
        behind = min(self._clock.writing / self._clock.per_frame, frames / ranks)
        others = (frames + behind) / ranks
        return [max(0.0, others - behind), *[others] * (ranks - 1)]

    def _learn(self, batch: Batch, own: int, writing_s: float, working_s: float) -> None:
        """Note what rank 0's work costs, the older the batch the less it counts."""
        if len(batch.frames) >= 2 * self._comm.size:
            self._clock.writing += 0.2 * (writing_s - self._clock.writing)
            if own:
                self._clock.per_frame = working_s / own

    def _adapt(self, frames: int, took_s: float, *, live: bool) -> None:
        """Make batches as long as they should take, of as many frames as are reduced side by side if possible."""
        wanted_s = _LIVE_BATCH_S if live else _BATCH_S
        per_rank = frames / self._comm.size * wanted_s / max(took_s, 1e-6)
        if frames >= self._comm.size:
            per_rank = np.clip(per_rank, self._batch_per_rank / 2, self._batch_per_rank * 2)
            side_by_side = round(per_rank / CHUNKS_SIDE_BY_SIDE) * CHUNKS_SIDE_BY_SIDE
            self._batch_per_rank = side_by_side or int(per_rank) or 1

    def _complete(self) -> bool:
        """Whether every frame that was written or announced has its result."""
        tally, announced = self._tally, max(self._tally.expected or 0, self._announced_at_end())
        if not announced and self._readiness.lacks_files:
            return False
        return tally.failed == 0 and tally.processed == tally.written >= max(tally.highest + 1, announced)

    def _announced_at_end(self) -> int:
        end = CollectionEnd.read(self._request.end_file)
        return 0 if end is None else end.frames_written or 0


def _rows_of(of_ranks: Sequence[Rows | KernelError]) -> list[Rows]:
    rows: list[Rows] = []
    for answer in of_ranks:
        if isinstance(answer, KernelError):
            raise answer
        rows.append(answer)
    return rows
