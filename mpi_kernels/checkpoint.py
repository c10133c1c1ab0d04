"""What was gathered over all frames so far, with which frames those are: one file, replaced whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from mpi_kernels.errors import OutputUnwritable
from mpi_kernels.kernel import Array

_FINGERPRINT, _FRAMES = "fingerprint", "frames"
_OWN = "gathered_"


@dataclass(frozen=True)
class Gathered:
    """What a checkpoint holds: arrays by name, and whether a frame is in them, by its number."""

    parts: Mapping[str, Array]
    frames: NDArray[np.bool_]


class Checkpoint:
    """The checkpoint beside a result.

    Parameters
    ----------
    result
        Path of the result; the checkpoint has the same name with ``.checkpoint`` behind it.
    fingerprint
        Of all that the arrays depend on; a checkpoint with another one isn't used.
    """

    def __init__(self, result: Path, fingerprint: str) -> None:
        self._path, self._fingerprint = result.with_name(f"{result.name}.checkpoint"), fingerprint

    def write(self, gathered: Gathered) -> None:
        """Replace the checkpoint.

        Raises
        ------
        OutputUnwritable
        """
        temporary = self._path.with_name(f".{self._path.name}.making")
        arrays: dict[str, Any] = {f"{_OWN}{name}": values for name, values in gathered.parts.items()}
        arrays |= {_FINGERPRINT: np.array(self._fingerprint), _FRAMES: gathered.frames}
        try:
            with temporary.open("wb") as stream:
                np.savez(stream, **arrays)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(self._path)
        except OSError as error:
            raise OutputUnwritable(
                f"{self._path}: {error}", remedy="check the folder, its permissions and the disk's space"
            ) from error

    def read(self) -> Gathered | None:
        """Return what the checkpoint holds; None without one, or with one of something else."""
        try:
            with np.load(self._path, allow_pickle=False) as held:
                if held[_FINGERPRINT].item() != self._fingerprint:
                    return None
                names = [name for name in held.files if name.startswith(_OWN)]
                return Gathered({name.removeprefix(_OWN): held[name] for name in names}, held[_FRAMES])
        except (OSError, ValueError, KeyError, BadZipFile):
            return None

    def remove(self) -> None:
        """Remove the checkpoint, which a finished result doesn't need."""
        self._path.unlink(missing_ok=True)
