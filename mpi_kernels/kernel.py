"""The shape of a kernel: what it must bring, so that everything else is done for it.

A kernel is a file of pure functions over arrays, and a class that says what it makes of frames (`Reduction`). Waiting,
reading, sharing out, writing and going on after an interruption are the same for all.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import h5py
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from mpi_kernels.native.library import Chunk

Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Column:
    """What a kernel makes of each frame: one row of a dataset that grows.

    Parameters
    ----------
    group, name
        Where it stands in the result, the group counted from ``/entry``.
    shape
        Of one row; ``()`` for a number.
    fill
        Stands where a frame has no result.
    attributes
        Of the dataset, e.g. its units.
    """

    group: str
    name: str
    shape: tuple[int, ...] = ()
    dtype: type[np.generic] = np.float64
    fill: float = np.nan
    attributes: Mapping[str, str] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """Names the column among all of a kernel."""
        return f"{self.group}/{self.name}"


@dataclass(frozen=True)
class Reduced:
    """What became of some frames.

    Parameters
    ----------
    columns
        By `Column.path`, each of shape ``(frames, *shape)``.
    errors
        What is wrong with a frame, by its place among them; its rows mean nothing.
    """

    columns: Mapping[str, Array]
    errors: Mapping[int, str] = field(default_factory=dict)


class Reduction(Protocol):
    """What is done with frames. Made once, sent to all ranks, and the same on all of them."""

    @property
    def columns(self) -> Sequence[Column]:
        """What each frame yields."""

    @property
    def per_frame(self) -> Mapping[str, str]:
        """Numbers that it needs with each frame: their names, and the paths of their datasets in the input file."""

    @property
    def takes_chunks(self) -> bool:
        """Whether `of_chunks` works here: it may need what this processor hasn't."""

    @property
    def chunks_at_once(self) -> int:
        """How many chunks `of_chunks` is best given: more cost less each, but should fit the processor's cache."""

    def get_ready(self) -> None:
        """Make on this rank what the first frame shouldn't have to wait for."""

    def of_chunks(self, chunks: Sequence[Chunk], given: Sequence[Mapping[str, float]]) -> Reduced:
        """Reduce frames that are stored as one chunk of bitshuffle-LZ4 each; the same bits as `of_frames`.

        `given` are each frame's own numbers (`per_frame`).
        """

    def of_frames(self, frames: Sequence[Array], given: Sequence[Mapping[str, float]]) -> Reduced:
        """Reduce frames, each of shape ``(y, x)``."""


@runtime_checkable
class Accumulating(Protocol):
    """A reduction that also gathers something over all frames, to the same bits in any order and on any ranks."""

    def take(self) -> dict[str, Array]:
        """Hand out what was gathered since the last time, and begin anew."""

    def parts(self) -> dict[str, Array]:
        """Return what was gathered, and go on gathering."""

    def add(self, part: Mapping[str, Array]) -> None:
        """Add what another rank, or an earlier run, has handed out."""

    def operations(self) -> Mapping[str, str]:
        """Return for each array how ranks' parts come together: ``sum`` or ``max``."""

    def pictures(self, *, final: bool) -> Mapping[str, Array]:
        """Return what stands in the result for what was gathered, by path below ``/entry``.

        What takes long may wait for the `final` time.
        """


@dataclass(frozen=True)
class Frames:
    """What the frames look like, and where parameters count relative paths from."""

    file: Path
    dataset: str
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    base: Path


@dataclass(frozen=True, kw_only=True)
class NamedFile:
    """A file that a parameter names.

    Parameters
    ----------
    dataset
        What is taken from it, as the parameter says; None: the whole file.
    sha256
        Of all its bytes; None while somebody writes it.
    """

    parameter: str
    path: str
    real_path: str
    dataset: str | None
    size: int
    mtime_ns: int
    sha256: str | None


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything that is decided before the first frame.

    Parameters
    ----------
    describe
        Writes what doesn't change into the ``NXentry`` of the result.
    attributes
        Of what is gathered, by path below ``/entry``.
    notes
        Stand in the result beside the parameters, by name; those that begin with ``made_`` as circumstances.
    files
        Those that parameters name. What they hold counts in the results; their names don't.
    """

    reduction: Reduction
    definition: str
    title: str
    reference: str
    note: str
    describe: Callable[[h5py.Group], None]
    attributes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    notes: Mapping[str, str | int] = field(default_factory=dict)
    files: Sequence[NamedFile] = ()

    @property
    def fingerprint(self) -> str:
        """A digest of all that a frame's result depends on, but for the frame."""
        return hashlib.sha256(pickle.dumps(self.reduction, protocol=5)).hexdigest()


@dataclass(frozen=True)
class Kernel:
    """A kernel as the command line knows it.

    Parameters
    ----------
    prepare
        From the open input, its frames, and parameters to what is decided before the first frame.
    """

    summary: str
    parameters: type[BaseModel]
    prepare: Callable[..., Prepared]
