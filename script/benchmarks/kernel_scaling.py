"""A projection to 64 nodes from costs that are measured on this machine: no measurement of 64 nodes.

Every rank reads and integrates its block of each batch; rank 0 looks for frames, hands them out, collects the rows and
writes them. So the rate is the least of three: what all ranks integrate, what rank 0 can hand out and write, and what
the file system can deliver. `ASSUMPTIONS` says what was taken for granted.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from kernel_files import BINS, DATASET, FrameFile
from kernel_programs import launcher, launcher_environment

from orchestrator.errors import OrchestratorError

NODES = (1, 2, 4, 8, 16, 32, 64)
RANKS_PER_NODE = 32
BATCH_S = 0.1
FILE_SYSTEM_GB_S = 40.0
_CHUNK_ROWS = 8
_FEW, _MANY = 16, 512

ASSUMPTIONS = (
    f"{RANKS_PER_NODE} ranks a node, each as fast as one of the two ranks here (memory bandwidth isn't modelled)",
    f"batches of {BATCH_S:g} s of work; a broadcast takes log2(ranks) steps, a gather one message from each rank",
    "messages between nodes cost what they cost here in shared memory",
    "rank 0 does nothing but look for frames, hand out, collect and write, one after the other",
    "the writer's costs are those of appending such rows with h5py in SWMR mode in the bench's folder",
    f"the file system delivers {FILE_SYSTEM_GB_S:g} GB/s to all nodes together",
)


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds of the single steps, as measured here."""

    broadcast_s: float
    gather_s: float
    row_s: float
    """Receiving a row, intensities and errors, pickled with an object; not in the projection."""
    buffer_row_s: float
    """The same as a plain buffer, as the kernels send it."""
    write_s: float
    """Writing and flushing a batch, without its rows."""
    write_row_s: float
    poll_s: float
    """Refreshing a growing dataset."""
    look_s: float
    """Finding out whether one frame is there."""


def measure(file: FrameFile, folder: Path) -> Costs:
    """Measure the costs of messages, writer and looking for frames.

    Raises
    ------
    OrchestratorError
        When two ranks can't be started.
    """
    write_s, write_row_s = _writing(folder / "scaling.h5")
    poll_s, look_s = _looking(file)
    return Costs(**_messages(), write_s=write_s, write_row_s=write_row_s, poll_s=poll_s, look_s=look_s)


def _messages() -> dict[str, float]:
    program = Path(__file__).with_name("message_costs.py")
    command = [*launcher(2), sys.executable, str(program), str(BINS)]
    done = subprocess.run(command, env=launcher_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise OrchestratorError(f"message_costs.py ended with {done.returncode}: {done.stderr.strip()[-200:]}")
    costs: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return costs


def _writing(path: Path) -> tuple[float, float]:
    """Return the seconds of a batch without rows, and of each row in it."""
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        datasets = [
            file.create_dataset(name, (0, BINS), maxshape=(None, BINS), chunks=(_CHUNK_ROWS, BINS), dtype="f8")
            for name in ("I", "I_errors")
        ]
        file.swmr_mode = True

        def append(rows: int) -> None:
            values = np.ones((rows, BINS))
            for dataset in datasets:
                held = len(dataset)
                dataset.resize(held + rows, axis=0)
                dataset[held:] = values
            file.flush()

        few_s, many_s = _median_s(lambda: append(_FEW)), _median_s(lambda: append(_MANY))
    path.unlink()
    row_s = max(0.0, many_s - few_s) / (_MANY - _FEW)
    return max(0.0, few_s - _FEW * row_s), row_s


def _looking(file: FrameFile) -> tuple[float, float]:
    """Return the seconds of refreshing a dataset, and of asking for one chunk."""
    with h5py.File(file.path, swmr=True) as opened:
        dataset = opened[DATASET].id
        offsets = [(index, 0, 0) for index in range(min(_MANY, file.frames))]
        look_s = _median_s(lambda: [dataset.get_chunk_info_by_coord(offset) for offset in offsets]) / len(offsets)
        return _median_s(dataset.refresh), look_s


def _median_s(action: Callable[[], object], repeats: int = 15) -> float:
    seconds = []
    for _ in range(repeats):
        began_s = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - began_s)
    return float(np.median(seconds))


def projected(costs: Mapping[str, float], rank_rate: float, stored_bytes: float) -> list[dict[str, Any]]:
    """Return for each number of nodes the three limits, frames/s, and which of them holds.

    Parameters
    ----------
    costs
        The fields of `Costs`.
    rank_rate
        Frames per second of one rank beside others.
    stored_bytes
        Of a frame in the file.
    """
    found = []
    for nodes in NODES:
        ranks = nodes * RANKS_PER_NODE
        per_batch_s = costs["broadcast_s"] * math.log2(ranks) + costs["gather_s"] * ranks
        per_batch_s += costs["write_s"] + costs["poll_s"]
        per_frame_s = costs["buffer_row_s"] + costs["write_row_s"] + costs["look_s"]
        limits = {
            "integrating": ranks * rank_rate,
            "rank 0": 1 / (per_frame_s + per_batch_s / (ranks * rank_rate * BATCH_S)),
            "file system": FILE_SYSTEM_GB_S * 1e9 / stored_bytes,
        }
        limit = min(limits, key=lambda name: limits[name])
        found.append({"nodes": nodes, "ranks": ranks, "limits": limits, "rate": limits[limit], "limit": limit})
    return found
