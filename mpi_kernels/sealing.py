"""What would be read of an input now: its seal, and the frames that a result was made of otherwise.

All ranks read; nothing is decoded where frames have chunks of their own. Nothing is written.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from mpi_kernels.errors import ExitCode, FrameUnreadable, KernelError, UnusableInput
from mpi_kernels.frame_digests import DIGESTS, Seal, sealed
from mpi_kernels.hdf5_files import Library
from mpi_kernels.partition import block
from mpi_kernels.readiness import Readiness, Ready
from mpi_kernels.rows import Status
from mpi_kernels.segments import Layout, Segment
from mpi_kernels.source import FrameSource

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class SealRequest:
    """What the command line asks for."""

    input: Path
    dataset: str
    against: Path | None = None
    keys_dataset: str | None = None
    parallel: bool = False


@dataclass(frozen=True)
class _Digests:
    """Of frames.

    Parameters
    ----------
    frames
        Their numbers, ascending, shape ``(n,)``.
    values
        Shape ``(n, 16)``.
    """

    frames: NDArray[np.int64]
    values: NDArray[np.uint8]

    @property
    def seal(self) -> Seal:
        return sealed([(self.frames, self.values)])


def run_seal(comm: MPI.Comm, request: SealRequest) -> ExitCode:
    """Print the seal as JSON; rank 0 returns the exit code: `PARTIAL` where the result was made of other frames."""
    try:
        found = _digests(comm, request)
        if comm.rank != 0:
            return ExitCode.COMPLETE
        consumed = None if request.against is None else _consumed(request.against)
    except KernelError as error:
        if comm.rank == 0:
            sys.stderr.write(f"error: {error.one_line}\n")
        return error.exit_code
    against = None if consumed is None else _differences(found, consumed)
    report = {"input": str(request.input), "dataset": request.dataset, "seal": asdict(found.seal), "against": against}
    sys.stdout.write(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return ExitCode.PARTIAL if against is not None and not against["same"] else ExitCode.COMPLETE


def _digests(comm: MPI.Comm, request: SealRequest) -> _Digests:
    """Return the digests of all frames in the file (rank 0; the others return their own part).

    Raises
    ------
    KernelError
        What went wrong on this rank, or on any (rank 0).
    """
    with closing(Library(parallel=request.parallel)) as library:
        # one rank says which frames there are: the file may be growing
        plan = comm.bcast(_outcome(lambda: _there(library, request)) if comm.rank == 0 else None, root=0)
        own = plan
        if not isinstance(plan, KernelError):
            segments, frames = plan
            mine = block(frames, ranks=comm.size, rank=comm.rank)
            own = _outcome(lambda: _read(FrameSource(library), segments, mine))
    parts = comm.gather(own, root=0) or [own]
    for part in parts:
        if isinstance(part, KernelError):
            raise part
    frames, values = ([getattr(part, name) for part in parts] for name in ("frames", "values"))
    return _Digests(np.concatenate(frames), np.concatenate(values))


def _outcome(attempt: Callable[[], T]) -> T | KernelError:
    """Return an error as a value: other ranks wait for this one's word."""
    try:
        return attempt()
    except KernelError as error:
        return error


def _there(library: Library, request: SealRequest) -> tuple[Sequence[Segment], list[Ready]]:
    """Return the frames that are in the file, by number."""
    layout = Layout(library, request.input, request.dataset)
    readiness = Readiness(library, layout, FrameSource(library), request.keys_dataset, finished=True)
    frames: list[Ready] = []
    while found := readiness.poll(request.input, full=True, final=True):
        frames += found
    return readiness.segments, sorted(frames)


def _read(source: FrameSource, segments: Sequence[Segment], frames: Sequence[Ready]) -> _Digests:
    numbers, values = [], []
    for ready in frames:
        with suppress(FrameUnreadable):  # no result was made of it either
            if (digest := source.digest(segments[ready.segment], ready.index)) is not None:
                numbers.append(ready.frame)
                values.append(digest)
    return _Digests(np.array(numbers, np.int64), np.frombuffer(b"".join(values), np.uint8).reshape(-1, *DIGESTS.shape))


def _consumed(result: Path) -> _Digests:
    """Return what a result was made of.

    Raises
    ------
    UnusableInput
        When it doesn't say.
    """
    with closing(Library()) as library:
        try:
            entry = library.file(result)["entry"]
            status, digests = entry["frames/status"][...], entry[DIGESTS.path][...]
        except (OSError, RuntimeError, KeyError) as error:
            raise UnusableInput(
                f"{result}: it doesn't say what it was made of: {error}", remedy="give the result of a kernel"
            ) from error
    frames = np.flatnonzero(status == Status.PROCESSED)
    return _Digests(frames, digests[frames])


def _differences(found: _Digests, consumed: _Digests) -> dict[str, Any]:
    both, here, there = np.intersect1d(found.frames, consumed.frames, assume_unique=True, return_indices=True)
    changed = both[(found.values[here] != consumed.values[there]).any(axis=1)]
    missing = np.setdiff1d(consumed.frames, found.frames, assume_unique=True)
    return {
        "seal": asdict(consumed.seal),
        "same": not changed.size and not missing.size,
        "changed": _runs(changed),
        "missing": _runs(missing),
        "not_in_result": _runs(np.setdiff1d(found.frames, consumed.frames, assume_unique=True)),
    }


def _runs(frames: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return the first and last of each run of neighbours."""
    runs = np.split(frames, np.flatnonzero(np.diff(frames) != 1) + 1)
    return [(int(run[0]), int(run[-1])) for run in runs if run.size]
