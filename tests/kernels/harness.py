"""Starting writers and kernels as processes of their own, and reading what came out."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest

from orchestrator.contents import compare, content_digest

from .writers import DISTANCE_M, PIXEL_M, SATURATED, WAVELENGTH_M, Spec, frame_of, save_spec

CHECKOUT = Path(__file__).parents[2]
BINS = 40
NEXUS_DATASET = "/entry/instrument/detector/data"
ENVIRONMENT = {
    **os.environ,
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "PYTHONPATH": str(CHECKOUT),
}


def kernel_command(
    input_file: Path, output: Path, *, ranks: int | None, dataset: str = NEXUS_DATASET, **options: object
) -> list[str]:
    """Return the command line; `ranks` None runs without a launcher.

    Options are the command's, with underscores; parameter and progress file stand beside `output`, as does the result
    unless the option `result` names it.
    """
    parameters = output.with_suffix(".json")
    given, kernel = options.pop("parameters", {}), str(options.pop("kernel", "azimuthal"))
    own = {"bins": BINS} if kernel == "azimuthal" else {}
    parameters.write_text(given if isinstance(given, str) else json.dumps({**own, **given}))
    launcher = [] if ranks is None else [launcher_path(), "--oversubscribe", "-n", str(ranks)]
    command = [*launcher, str(options.pop("python", sys.executable)), "-m", "mpi_kernels", kernel]
    required = {
        "input": input_file,
        "dataset": dataset,
        "output": options.pop("result", output),
        "parameters": parameters,
    }
    for name, value in {**required, "progress": output.with_suffix(".progress"), **options}.items():
        command += [f"--{name.replace('_', '-')}"] if value is True else [f"--{name.replace('_', '-')}", str(value)]
    return command


def launcher_path() -> str:
    found = shutil.which("mpirun")
    if found is None:
        pytest.skip("NOT TESTED: mpirun is missing here")
    return found


def run_kernel(
    input_file: Path, output: Path, *, ranks: int | None = None, **options: object
) -> subprocess.CompletedProcess[str]:
    """Run a kernel to its end."""
    command = kernel_command(input_file, output, ranks=ranks, **options)
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)


@contextmanager
def running_kernel(
    input_file: Path, output: Path, *, ranks: int | None = None, **options: object
) -> Iterator[subprocess.Popen[str]]:
    """Start a kernel; it is killed when it is still there at the end."""
    command = kernel_command(input_file, output, ranks=ranks, **options)
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def ranks_of(launcher: subprocess.Popen[str]) -> dict[int, int]:
    """Return the process of each rank."""
    by_rank = {}
    for child in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split():
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        by_rank |= {int(item.partition(b"=")[2]): int(child) for item in variables if item.startswith(b"PMIX_RANK=")}
    return by_rank


@contextmanager
def running_writer(spec: Spec) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process that writes `spec` in SWMR mode."""
    path = save_spec(spec, Path(f"{spec.path}.spec.json"))
    writers = Path(__file__).with_name("writers.py")
    with subprocess.Popen([sys.executable, str(writers), str(path)]) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def write_in_own_process(spec: Spec) -> None:
    """Write a file and wait until it is finished."""
    with running_writer(spec) as process:
        assert process.wait(timeout=120) == 0


def wait_until(condition: Callable[[], bool], *, timeout_s: float = 60) -> None:
    give_up = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up, "it didn't happen in time"
        time.sleep(0.02)


def progress_of(output: Path) -> dict[str, object]:
    """Return the progress file's content; empty before there is one."""
    path = output.with_suffix(".progress")
    return json.loads(path.read_text()) if path.exists() else {}


def values_of(result: Path) -> dict[str, np.ndarray]:
    """Return everything in a result that must not depend on how it was made."""
    changing = {"frames/computed_time", "frames/processed_time", "frames/end_time", "frames/ended_because"}
    found: dict[str, np.ndarray] = {}
    with h5py.File(result) as file:
        for group in {"data", "frames", "totals"} & file["entry"].keys():
            for name, dataset in file[f"entry/{group}"].items():
                if f"{group}/{name}" not in changing:
                    found[f"{group}/{name}"] = dataset[()]
    return found


def assert_same_results(first: Path, second: Path, *, besides: tuple[str, ...] = ()) -> None:
    """Compare two results bit for bit, and by their content digests."""
    ours, theirs = values_of(first), values_of(second)
    assert ours.keys() == theirs.keys()
    assert content_digest(first) == content_digest(second), compare(first, second)
    for name, value in ours.items():
        if name not in besides:
            assert value.shape == theirs[name].shape, name
            assert value.tobytes() == theirs[name].tobytes(), name


def expected_intensity(spec: Spec, number: int, edges: np.ndarray) -> np.ndarray:
    """Integrate a frame of `spec` independently: numpy's histogram, pixel by pixel."""
    ny, nx = spec.shape
    y = (np.arange(ny) + 0.5 - ny / 2) * PIXEL_M
    x = (np.arange(nx) + 0.5 - nx / 2) * PIXEL_M
    two_theta = np.arctan2(np.hypot(y[:, None], x[None, :]), DISTANCE_M)
    q = 4e-9 * np.pi / WAVELENGTH_M * np.sin(two_theta / 2)
    frame = frame_of(spec, number)
    valid = frame != np.array(SATURATED[spec.dtype]).astype(spec.dtype)
    counts = np.histogram(q[valid], edges, weights=frame[valid].astype(float))[0]
    norm = np.histogram(q[valid], edges, weights=np.cos(two_theta[valid]) ** 3)[0]
    with np.errstate(invalid="ignore"):
        return counts / norm


def assert_rows_are_the_frames(result: Path, spec: Spec, written: list[int]) -> None:
    """Check every row against its own frame, so that no row can be another frame's."""
    with h5py.File(result) as file:
        intensity, status = file["entry/data/I"][()], file["entry/frames/status"][()]
        edges = file["entry/data/radial_axis_edges"][()]
        index = file["entry/frames/frame_index"][()]
    assert list(index) == list(range(max(written) + 1))
    for number in range(max(written) + 1):
        if number in written:
            assert status[number] == 1, number
            np.testing.assert_allclose(intensity[number], expected_intensity(spec, number, edges), rtol=1e-9)
        else:
            assert status[number] == 0, number
            assert np.isnan(intensity[number]).all()
