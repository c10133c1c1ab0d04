"""What only the result file tells: how frames were stored, and the wavelength (``docs/reference/result-file.md``)."""

from __future__ import annotations

from dataclasses import dataclass

import h5py

from orchestrator.errors import InvalidInput
from orchestrator.exporting.account import Account, readable


@dataclass(frozen=True)
class ResultFacts:
    """None where there is no such result, or it doesn't say."""

    reading_route: str | None = None
    wavelength_angstrom: float | None = None
    masked_pixels: int | None = None


def read_result(account: Account) -> ResultFacts:
    """Look into a run's first NeXus result.

    Raises
    ------
    InvalidInput
        When it can't be read.
    """
    results = [output.path for output in account.outputs() if output.path.suffix == ".nxs"]
    if not results:
        return ResultFacts()
    try:
        with h5py.File(results[0], "r") as file:
            return ResultFacts(
                reading_route=_text(file, "entry/frames/reading_route"),
                wavelength_angstrom=_number(file, "entry/instrument/monochromator/wavelength"),
                masked_pixels=_count(file, "entry/reduction/input/masked_pixels"),
            )
    except OSError as error:  # HDF5's own errors don't name the file
        raise InvalidInput(f"{readable(results[0])}: {error}", remedy="restore the file, or repeat the run") from error


def _text(file: h5py.File, path: str) -> str | None:
    return file[path].asstr()[0] or None if path in file else None


def _number(file: h5py.File, path: str) -> float | None:
    return float(file[path][()]) if path in file else None


def _count(file: h5py.File, path: str) -> int | None:
    return int(file[path][()]) if path in file else None
