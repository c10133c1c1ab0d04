"""The kernels as people run them, ``mpirun … python -m mpi_kernels KERNEL``, and what their results tell of the speed.

In: a file and parameters. Out: frames per second while the kernel was running, without its beginning and its end; and
the memory of each rank.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from kernel_files import BINS, DATASET

from orchestrator.errors import OrchestratorError

CHECKOUT = Path(__file__).parents[2]
PATIENCE_S = 300
PROCESSED = 1
STATUS, PROCESSED_TIME, COMPUTED_TIME = (
    f"/entry/frames/{name}" for name in ("status", "processed_time", "computed_time")
)
_BEGINNING, _END = 0.1, 0.95
_SAMPLE_S = 0.02
_COMPLAINT = re.compile(r"error: |[\w.]*(Error|Exception)\b")


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A kernel with parameters, started with so many ranks.

    Parameters
    ----------
    native
        Way through the compiled core, as MPI_KERNELS_NATIVE has it; empty: the kernel's own choice.
    """

    name: str
    parameters: Mapping[str, object] = field(default_factory=dict)
    ranks: int = 1
    native: str = ""

    def check_there(self) -> None:
        """Raise OrchestratorError where there is no such kernel, parameter or way."""
        schema = _schema(self.name, self.native)
        for name, value in self.parameters.items():
            if not _offers(schema, name, value):
                raise OrchestratorError(f"not there: {self.name} has no parameter {name} = {json.dumps(value)}")

    def command(self, file: Path, result: Path, *options: str) -> list[str]:
        """Return the command line; the parameter file is written beside the result."""
        parameters = result.with_suffix(".json")
        parameters.write_text(json.dumps(dict(self.parameters)))
        kernel = [sys.executable, "-m", "mpi_kernels", self.name, "--input", str(file), "--dataset", DATASET]
        kernel += ["--output", str(result), "--parameters", str(parameters), *options]
        return [*launcher(self.ranks), *kernel]

    @contextmanager
    def running(self, file: Path, result: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
        """Start it; it is ended when it still runs at the block's end."""
        with subprocess.Popen(
            self.command(file, result, *options),
            env=launcher_environment(self.native),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.terminate()

    def run(self, file: Path, result: Path, *options: str) -> None:
        """Run it to its end."""
        with self.running(file, result, *options) as process:
            wait_for(process)


def wait_for(process: subprocess.Popen[str]) -> None:
    """Wait for a kernel's end; raise OrchestratorError when it wasn't a good one."""
    try:
        _, complaints = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired as error:
        raise OrchestratorError(f"a kernel hadn't ended after {PATIENCE_S} s") from error
    if process.returncode:
        said = [line for line in complaints.splitlines() if _COMPLAINT.match(line)]  # mpirun says more, and less
        raise OrchestratorError(f"the kernel ended with {process.returncode}: {said[0] if said else 'it says nothing'}")


@contextmanager
def new_result(folder: Path) -> Iterator[Path]:
    """Give a name for a result, in a folder of its own: a kernel may take up what it finds under that name."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        yield Path(own, "result.h5")


def azimuthal(*, ranks: int = 1, native: str = "", **parameters: object) -> Kernel:
    """Return azimuthal integration with Poisson errors; further parameters as in its parameter file."""
    return Kernel(
        name="azimuthal",
        parameters={"bins": BINS, "error_model": "poisson", **parameters},
        ranks=ranks,
        native=native,
    )


@cache
def _schema(name: str, native: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "mpi_kernels", name, "--schema"]
    done = subprocess.run(command, env=launcher_environment(native), capture_output=True, text=True, check=False)
    if done.returncode:
        raise OrchestratorError(f"not there: {(done.stderr.strip().splitlines() or ['it says nothing'])[-1]}")
    schema: dict[str, Any] = json.loads(done.stdout)
    return schema


def _offers(schema: dict[str, Any], name: str, value: object) -> bool:
    """Whether a parameter is there and, where its values are words of a list, has this one."""
    wanted = schema.get("properties", {}).get(name)
    if wanted is None:
        return False
    return "enum" not in wanted or value in wanted["enum"]


def launcher(ranks: int) -> list[str]:
    """Return the beginning of a command that starts so many ranks.

    They aren't bound to cores: writers and readers of results aren't either, and need some of the same ones.
    """
    found = shutil.which("mpirun")
    if found is None:
        raise OrchestratorError("mpirun isn't here")
    return [found, "--oversubscribe", "--bind-to", "none", "-n", str(ranks)]


def launcher_environment(native: str = "") -> dict[str, str]:
    """Return the environment of ranks, with their way through the compiled core."""
    return {
        **os.environ,
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PYTHONPATH": str(CHECKOUT),
        "MPI_KERNELS_NATIVE": native,
        "OMP_NUM_THREADS": "1",
    }


# ------------------------------------------------------------------------------------------------ what results tell


def frames_per_s(result: Path) -> float:
    """Return the rate between a tenth and nineteen twentieths of a finished result's frames.

    Each frame has the time at which its row was written, in batches. At both ends of this span the ranks are equally
    far ahead of the writer, so that neither start-up nor the last rows count.

    Raises
    ------
    OrchestratorError
        When a frame has no result, or all were written at once.
    """
    with h5py.File(result) as file:
        status, written_s = file[STATUS][()], file[PROCESSED_TIME][()]
    if (status != PROCESSED).any():
        raise OrchestratorError(f"{(status != PROCESSED).sum()} of {len(status)} frames have no result")
    times, frames = np.unique(written_s, return_counts=True)
    done = np.cumsum(frames)
    first = int(np.searchsorted(done, _BEGINNING * done[-1]))
    last = int(np.searchsorted(done, _END * done[-1], side="right")) - 1
    if last <= first:
        first, last = 0, len(times) - 1  # so few batches that the ends are most of it
    if last <= first:
        raise OrchestratorError("all rows were written at once: more frames are needed to tell a rate")
    return float((done[last] - done[first]) / (times[last] - times[first]))


def peak_memory_mb(kernel: Kernel, file: Path, result: Path) -> list[float]:
    """Run a kernel; return the largest resident memory of each rank, MB, as its operating system tells it."""
    peaks_mb = [0.0] * kernel.ranks
    with kernel.running(file, result, "--mode", "finished") as process:
        while process.poll() is None:
            for pid in _descendants(process.pid):
                _note_peak(pid, peaks_mb)
            time.sleep(_SAMPLE_S)
        wait_for(process)
    return peaks_mb


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    for task in _read(Path(f"/proc/{pid}/task"), lambda folder: list(folder.iterdir())) or ():
        for child in (_read(task / "children", Path.read_text) or "").split():
            found += [int(child), *_descendants(int(child))]
    return found


def _note_peak(pid: int, peaks_mb: list[float]) -> None:
    environment = (_read(Path(f"/proc/{pid}/environ"), Path.read_bytes) or b"").split(b"\0")
    rank = next((entry for entry in environment if entry.startswith(b"OMPI_COMM_WORLD_RANK=")), None)
    status = (_read(Path(f"/proc/{pid}/status"), Path.read_text) or "").splitlines()
    peak = next((line for line in status if line.startswith("VmHWM:")), None)
    if rank is not None and peak is not None:
        number = int(rank.partition(b"=")[2])
        peaks_mb[number] = max(peaks_mb[number], int(peak.split()[1]) / 1024)


def _read(path: Path, how: Any) -> Any:
    """Read what may be gone; None then."""
    try:
        return how(path)
    except (FileNotFoundError, ProcessLookupError):
        return None
