"""What an interrupted run of the same job has left: rows that needn't be made again.

A job that is requeued, preempted or killed starts its kernel anew with the same command line. The result so far is then
read as any reader of it would, and its rows begin the new one; the bits are those of an undisturbed run, because a
frame's result depends on nothing but the frame and what is in the fingerprint.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from mpi_kernels.errors import KernelError
from mpi_kernels.hdf5_files import Library
from mpi_kernels.kernel import Column
from mpi_kernels.rows import Rows, Status

_WRITTEN_BACK_S = 60.0
"""Linux writes what was written to a file to its disk well within this time."""
_ROWS_AT_ONCE = 4096
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Return what names this machine's present run; empty where the system doesn't say."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


@dataclass(frozen=True)
class Earlier:
    """The rows of an unfinished result that can be kept.

    Parameters
    ----------
    done
        Whether a frame needn't be processed again, by its number.
    """

    entry: h5py.Group
    columns: Sequence[Column]
    done: NDArray[np.bool_]

    @classmethod
    def find(cls, library: Library, path: Path, fingerprint: str, columns: Sequence[Column]) -> Earlier | str:
        """Return what can be kept of the result at `path`, or why nothing can."""
        if not path.exists():
            return ""
        try:
            entry = library.file(path)["entry"]
            made = entry["reduction/input"]
            if made["made_fingerprint"].asstr()[()] != fingerprint:
                return "it was made of other data, or otherwise"
            status, times = entry["frames/status"][...], entry["frames/processed_time"][...]
            lengths = [len(entry[item.path]) for item in columns]
            survived = boot_id() not in {"", made["made_boot_id"].asstr()[()]}
        except (KernelError, OSError, RuntimeError, KeyError, AttributeError) as error:
            return f"it can't be read: {error}"
        length = min(len(status), len(times), *lengths)  # the writer may have ended between one dataset and the next
        done, times = status[:length] == Status.PROCESSED, times[:length]
        if survived and done.any():  # of what was written last some may not have reached the disk
            done &= times < np.nanmax(times) - _WRITTEN_BACK_S
        return cls(entry, columns, done)

    def rows(self, wanted: NDArray[np.bool_]) -> Iterator[Rows]:
        """Yield the rows of the wanted frames, some at a time."""
        for start in range(0, len(wanted), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            kept = wanted[part]
            if kept.any():
                yield Rows(
                    start + np.flatnonzero(kept),
                    np.full(np.count_nonzero(kept), Status.PROCESSED, np.uint8),
                    self.entry["frames/computed_time"][part][kept],
                    {item.path: self.entry[item.path][part][kept] for item in self.columns},
                )
