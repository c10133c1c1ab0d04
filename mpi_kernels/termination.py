"""The wish to end in order: SIGTERM, SIGUSR1 or Ctrl-C, at any rank; a second Ctrl-C ends it at once."""

from __future__ import annotations

import signal
from types import FrameType

from mpi4py import MPI

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_TAG = 15


class Termination:
    """Notes the signals of this rank; rank 0 also hears those of the others."""

    def __init__(self, comm: MPI.Comm) -> None:
        self._comm = comm
        self._wanted = self._told = False
        for number in _SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002  a signal handler's signature
        self._wanted = True
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)

    @property
    def wanted(self) -> bool:
        """Whether the run shall end (rank 0)."""
        while self._comm.size > 1 and self._comm.iprobe(tag=_TAG):
            self._comm.recv(tag=_TAG)
            self._wanted = True
        return self._wanted

    def tell(self) -> None:
        """Pass this rank's signal on to rank 0, once (all other ranks)."""
        if self._wanted and not self._told:
            self._comm.send(None, dest=0, tag=_TAG)
            self._told = True
