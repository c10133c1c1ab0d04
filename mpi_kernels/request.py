"""What the command line asks for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from mpi_kernels.hdf5_files import Mode
from mpi_kernels.kernel import Kernel


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the command line asks for."""

    name: str
    kernel: Kernel
    input: Path
    dataset: str
    output: Path
    parameters: BaseModel
    parameters_path: Path
    parameters_sha256: str
    """Of the file as it was read."""
    mode: Mode = "auto"
    parallel: bool = False
    expected: int | None = None
    end_file: Path | None = None
    progress: Path | None = None
    appear_timeout_s: float = 120.0
    stall_timeout_s: float = 300.0
    run_id: str = ""
    resume: bool = False
    keys_dataset: str | None = None
    finished_dataset: str | None = None
    command_line: str = ""
