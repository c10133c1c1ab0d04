"""Waiting for the input: until its file, its structure and the first data file are there, or waiting is of no use."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from mpi_kernels.ending import CollectionEnd
from mpi_kernels.errors import NotThereYet
from mpi_kernels.hdf5_files import Library, WriterState, settled, writer_state
from mpi_kernels.request import Request
from mpi_kernels.segments import Layout
from mpi_kernels.source import FrameDataset, FrameSource
from mpi_kernels.termination import Termination

_POLL_S = 0.05

T = TypeVar("T")


class Arrival:
    """Waits for the input.

    Parameters
    ----------
    meanwhile
        Called again and again while waiting.
    """

    def __init__(
        self, request: Request, library: Library, termination: Termination, meanwhile: Callable[[], None]
    ) -> None:
        self._request, self._library, self._termination = request, library, termination
        self._meanwhile = meanwhile
        self.source = FrameSource(library)

    def wait(self) -> tuple[Layout, FrameDataset]:
        """Return the input's layout and the first dataset of frames whose file has appeared.

        Raises
        ------
        NotThereYet
            When the time is over, the place is settled without it, or a signal came.
        UnusableInput
            When it can't be used.
        """
        layout, first = self._when_there(self._look)
        if self._is_closed_but_short(layout, first):
            self._wait_for_its_writer()
            layout, first = self._when_there(self._look)
        return layout, first

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
            self._meanwhile()
            time.sleep(_POLL_S)

    def _forget(self) -> None:
        self._library.close()
        self.source = FrameSource(self._library)

    def _look(self) -> tuple[Layout, FrameDataset]:
        """Return the layout and the first dataset whose file has appeared."""
        layout = Layout(self._library, self._request.input, self._request.dataset)
        layout.extend()
        problem: NotThereYet | None = None
        for segment in layout.segments:
            try:
                return layout, self.source.dataset(segment)
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
            self._meanwhile()
            time.sleep(_POLL_S)
        self._forget()
