"""What all datasets of frames have in common, whether they lie whole in a file or are put together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpi_kernels.chunk_memory import ChunkMemory
from mpi_kernels.frame_numbers import Numbers


class Holder(NamedTuple):
    """A real dataset that holds frames, or parts of them, and at which of its positions; None: it can't be said."""

    file: Path
    path: str
    positions: Numbers | None


class FrameDataset(ABC):
    """Frames of one shape and type, each at a position: whole numbers from 0, in C order over the scan's dimensions."""

    place: str
    """File and dataset, for people."""
    frame_shape: tuple[int, int]
    dtype: np.dtype[np.generic]
    chunks: tuple[int, ...] | None
    """Shape of the chunks; None when not chunked, or put together from several datasets."""
    allocated_as_written: bool
    """Whether the file gains storage frame by frame, so that storage tells which frames were written."""
    fusable: bool
    """Whether kernels may take the stored chunks themselves (`chunk`)."""

    holders: tuple[Holder, ...]
    """The real datasets that hold the frames, links followed."""

    @property
    @abstractmethod
    def live(self) -> bool:
        """Whether somebody was writing it when it was opened."""

    @property
    @abstractmethod
    def route(self) -> str:
        """How frames are read, for the result's process note."""

    @property
    @abstractmethod
    def scan_shape(self) -> tuple[int, ...]:
        """The leading dimensions."""

    @property
    @abstractmethod
    def frames_per_chunk(self) -> int:
        """Frames that share one chunk; 1 when not chunked."""

    @property
    @abstractmethod
    def extent(self) -> int:
        """Frames the present shape has room for; not all need to be written."""

    @property
    @abstractmethod
    def stored_frames(self) -> int:
        """An upper bound of how many frames are in the file; quick, however many they are."""

    def holds(self, count: int) -> bool:
        """Whether as many frames are in the file, wherever they lie; quick, however many they are."""
        return self.extent >= count <= self.stored_frames

    @abstractmethod
    def closed_but_short(self, count: int) -> set[Path]:
        """Return the files that nobody writes although some of the first `count` frames aren't there."""

    @abstractmethod
    def place_of(self, position: int) -> str:
        """Return where one frame lies, for messages."""

    @abstractmethod
    def refresh(self) -> None:
        """See what the writer has flushed. Nothing to do for finished files.

        Raises
        ------
        UnusableInput
            When the file was replaced or damaged.
        """

    @abstractmethod
    def has(self, position: int) -> bool:
        """Whether all of a frame is in the file."""

    @abstractmethod
    def has_later_chunk(self, position: int) -> bool:
        """Whether a chunk is in the file all of whose frames come after those that share this one's chunk."""

    @abstractmethod
    def chunk(self, position: int, memory: ChunkMemory) -> memoryview | None:
        """Return one frame as it is stored: one chunk of bitshuffle-LZ4; None if this one isn't stored so.

        It lies in `memory`, and stays there while no more are read than it has room for.

        Raises
        ------
        FrameUnreadable
            When it isn't in the file.
        """

    @abstractmethod
    def read(self, position: int) -> NDArray[Any] | None:
        """Return one frame, shape ``(y, x)``, possibly read-only.

        None for a frame of nothing but fill values that shares its chunk with others: nobody wrote it, as far as can
        be told.

        Raises
        ------
        FrameUnreadable
            When it isn't in the file or can't be decoded.
        """

    @abstractmethod
    def digest(self, position: int) -> bytes | None:
        """Return the digest of one frame: of what was read, if it is the one that was read last.

        It is of the stored bytes, where the frame has chunks of its own; else of the decoded ones, because what its
        chunk has besides may still change. None as of `read`.

        Raises
        ------
        FrameUnreadable
            As `read` does.
        """
