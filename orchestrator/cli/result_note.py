"""What a result says about its own making: the NXprocess that the kernel wrote into it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import h5py

from orchestrator.records import Json

PROCESS = "/entry/reduction"


@dataclass(frozen=True, kw_only=True)
class ResultNote:
    """The process note of a result; empty where the file doesn't say."""

    program: str = ""
    version: str = ""
    software: str = ""
    """Interpreter and libraries that were loaded, HDF5 and MPI included."""
    parameters: Mapping[str, Json] = field(default_factory=dict)
    """All of them, the kernel's defaults included."""
    unreadable_because: str = ""


def read_result_note(path: Path) -> ResultNote | None:
    """Read the note of a result, also while it grows; None when there is no such file."""
    if not path.exists():
        return None
    try:
        with h5py.File(path, "r", swmr=True) as file:
            process = file.get(PROCESS)
            return _note(process) if isinstance(process, h5py.Group) else ResultNote()
    except (OSError, ValueError) as error:
        return ResultNote(unreadable_because=str(error))


def _note(process: h5py.Group) -> ResultNote:
    parameters = json.loads(_text(process, "input/parameters_json") or "{}")
    return ResultNote(
        program=_text(process, "program"),
        version=_text(process, "version"),
        software=_text(process, "input/made_software"),
        parameters=parameters,
    )


def _text(group: h5py.Group, name: str) -> str:
    dataset = group.get(name)
    return str(dataset.asstr()[()]) if isinstance(dataset, h5py.Dataset) else ""
