"""Numbers that a beamline writes for each frame beside it: monitor counts, transmissions."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np

from mpi_kernels.errors import FrameUnreadable, NotThereYet, UnusableInput
from mpi_kernels.hdf5_files import Library
from mpi_kernels.source import RETRY_S, VISIBLE_WITHIN_S


class PerFrame:
    """A dataset with one number per frame, in the frames' order.

    Parameters
    ----------
    file, path
        The file that was asked for, and the dataset in it; links are followed.
    """

    def __init__(self, library: Library, file: Path, path: str) -> None:
        self._place = f"{file}::{path}"
        try:
            self._dataset = library.dataset(file, path)
            self._live = library.is_live(library.locate(file, path).file)
        except NotThereYet as error:
            raise UnusableInput(f"{error}", remedy="give a dataset of one number per frame") from error
        if self._dataset.dtype.kind not in "uif" or not self._dataset.shape:
            raise UnusableInput(
                f"{self._place}: {self._dataset.dtype} of shape {self._dataset.shape} isn't one number per frame",
                remedy="give a dataset of one number per frame",
            )

    def value(self, frame: int) -> float:
        """Return a frame's number; wait a moment for it while somebody writes the file.

        Raises
        ------
        FrameUnreadable
            When it isn't there.
        """
        give_up = time.monotonic() + VISIBLE_WITHIN_S
        while True:
            number = self._look(frame)
            if number is not None:
                return number
            if not self._live or time.monotonic() > give_up:
                raise FrameUnreadable(f"{self._place}[{frame}]: no number there")
            time.sleep(RETRY_S)
            self._dataset.refresh()

    def _look(self, frame: int) -> float | None:
        """Return the number; None where nobody wrote one: no room for it yet, the fill value, or NaN."""
        if frame >= math.prod(self._dataset.shape):
            return None
        number = self._dataset[np.unravel_index(frame, self._dataset.shape)]
        if number == self._dataset.fillvalue or not np.isfinite(number):
            return None
        return float(number)
