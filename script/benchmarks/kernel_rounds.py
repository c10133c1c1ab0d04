"""The kernels beside what limits them and beside what people use today: every contender in turn, round by round.

In: the command line's options. Out: figures (`measure`); `kernel_report` prints them. What is compared was measured in
the same run, at most some minutes apart, so that a noisy machine is noisy for all.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import h5py
import kernel_decoding
import kernel_live
import kernel_programs
import kernel_scaling
from kernel_files import HOT_16, LOADS, MIDDLE, FrameFile, FrameFiles
from kernel_peers import PEERS
from kernel_programs import Kernel, azimuthal, new_result

from mpi_kernels.native.library import PATHS
from orchestrator.errors import OrchestratorError

AZIMUTHAL, BOUNDING_BOX, FULL, PROJECTION = (
    "azimuthal",
    "azimuthal, bounding box",
    "azimuthal, full splitting",
    "projection",
)
AVX2, PORTABLE, WHEELS = "azimuthal over avx2", "azimuthal over portable C", "azimuthal, wheels only"
TWO_RANKS, TWO_PROCESSES = ", 2 ranks", ", 2 processes"

_ALWAYS: Mapping[str, Kernel] = {
    AZIMUTHAL: azimuthal(),
    AZIMUTHAL + TWO_RANKS: azimuthal(ranks=2),
    BOUNDING_BOX: azimuthal(splitting="bbox"),
    PROJECTION: Kernel(name="projection"),
}
_MIDDLE_ONLY: Mapping[str, Kernel] = {
    BOUNDING_BOX + TWO_RANKS: azimuthal(splitting="bbox", ranks=2),
    FULL: azimuthal(splitting="full"),
    PROJECTION + TWO_RANKS: Kernel(name="projection", ranks=2),
    AVX2: azimuthal(native="avx2"),
    PORTABLE: azimuthal(native="portable"),
    WHEELS: azimuthal(native="off"),
    WHEELS + TWO_RANKS: azimuthal(native="off", ranks=2),
}
_PACKAGES = ("numpy", "h5py", "hdf5plugin", "dectris-compression", "numba", "pyFAI", "mpi4py")
_SHORT = 0.25
"""Part of a file that is enough for slow contenders; memory is compared between it and the whole one."""


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How much is measured."""

    frames: int
    rounds: int
    loads: Sequence[str]
    live_ranks: Sequence[int]
    live_s: float
    decode_s: float
    peer_s: float


WHOLE = Extent(
    frames=3000, rounds=3, loads=tuple(LOADS), live_ranks=(1, 2), live_s=kernel_live.SECONDS, decode_s=0.7, peer_s=2.0
)
QUICK = Extent(
    frames=1000,
    rounds=1,
    loads=(MIDDLE, HOT_16),
    live_ranks=(1,),
    live_s=kernel_live.QUICK_SECONDS,
    decode_s=0.05,
    peer_s=0.1,
)


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Somebody whose frames per second are measured on one load."""

    load: str
    name: str
    rate: Callable[[], float]
    """Measures once."""

    @property
    def label(self) -> str:
        """As it is called on the command line."""
        return f"{self.load}: {self.name}"


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One run of the benchmark: what is measured, on which files, and what has come out."""

    options: argparse.Namespace
    extent: Extent
    files: FrameFiles
    scratch: Path
    """A folder for results."""
    failures: dict[str, str] = field(default_factory=dict)
    """By label, why something wasn't measured."""

    def wants(self, label: str) -> bool:
        """Whether the command line asks for it."""
        only = self.options.only
        return not only or any(word in label for word in only)

    # -------------------------------------------------------------------------------------------------- contenders

    def contenders(self) -> list[Contender]:
        """Return all that are wanted."""
        return [one for load in self.extent.loads for one in self._of_load(load) if self.wants(one.label)]

    def _of_load(self, load: str) -> Iterator[Contender]:
        for name in kernel_decoding.CONTENDERS:
            yield Contender(load=load, name=name, rate=partial(self._decoding, load, name))
        kernels = {**_ALWAYS, **(_MIDDLE_ONLY if load == MIDDLE else {})}
        for name, kernel in kernels.items():
            yield Contender(load=load, name=name, rate=partial(self._kernel, load, kernel))
        if load == MIDDLE:
            best = f"decode {max(PATHS).name.lower()}" if PATHS else kernel_decoding.DECTRIS
            yield Contender(load=load, name=best + TWO_PROCESSES, rate=partial(self._two_decoding, load, best))
            for name in () if self.options.without_peers else PEERS:
                yield Contender(load=load, name=name, rate=partial(self._peer, load, name))

    def _ready(self, load: str, *, length: float = 1.0) -> FrameFile:
        file = self.files.of(load, length=length)
        file.into_memory()
        return file

    def _decoding(self, load: str, name: str) -> float:
        return kernel_decoding.frames_per_s(self._ready(load).path, name, seconds=self.extent.decode_s)

    def _two_decoding(self, load: str, name: str) -> float:
        seconds = 2 * self.extent.decode_s  # they don't begin and end at quite the same time
        return kernel_decoding.frames_per_s_of_two(self._ready(load).path, name, seconds=seconds)

    def _kernel(self, load: str, kernel: Kernel) -> float:
        kernel.check_there()
        file = self._ready(load, length=_SHORT if kernel.native == "off" else 1.0)
        with new_result(self.scratch) as result:
            kernel.run(file.path, result, "--mode", "finished")
            return kernel_programs.frames_per_s(result)

    def _peer(self, load: str, name: str) -> float:
        python = sys.executable
        if name.startswith("azint"):
            python = self.options.azint_python
            if python is None:
                raise OrchestratorError("no wheel of it is published: build it and give --azint-python")
        program = Path(__file__).with_name("kernel_peers.py")
        command = [str(python), str(program), name, str(self._ready(load).path), str(self.extent.peer_s)]
        # Its own packages, if it lives elsewhere; and a core, as a rank has.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment["OMP_NUM_THREADS"] = "1"
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise OrchestratorError((done.stderr.strip().splitlines() or ["it says nothing"])[-1])
        rate: float = json.loads(done.stdout.splitlines()[-1])
        return rate

    # ------------------------------------------------------------------------------------------------------- rounds

    def rates(self) -> dict[str, dict[str, list[float]]]:
        """Return frames per second by load and contender, one value a round; the order turns from round to round."""
        contenders = self.contenders()
        for load in dict.fromkeys(one.load for one in contenders):
            _say(f"frames: {load}")
            for length in (1.0, _SHORT) if load == MIDDLE else (1.0,):
                self.files.of(load, length=length)
        os.sync()  # or the disk would be busy with them while others are measured
        found: dict[str, dict[str, list[float]]] = {}
        rounds = self.options.rounds or self.extent.rounds
        for number in range(rounds):
            turn = number * len(contenders) // rounds
            for one in contenders[turn:] + contenders[:turn]:
                if one.label in self.failures:
                    continue
                _say(f"round {number + 1} of {rounds}: {one.label}")
                with self._noting(one.label):
                    found.setdefault(one.load, {}).setdefault(one.name, []).append(one.rate())
        whole = {one.label for one in contenders} - set(self.failures)
        return {
            load: {one.name: rates[one.name] for one in contenders if one.load == load and one.label in whole}
            for load, rates in found.items()
        }

    @contextmanager
    def _noting(self, label: str) -> Iterator[None]:
        """Note why something can't be measured, and go on."""
        try:
            yield
        except (OrchestratorError, OSError) as error:
            self.failures[label] = str(error)

    # ----------------------------------------------------------------------------------- live, memory, many nodes

    def live(self) -> dict[str, dict[str, Any]]:
        """Return what `kernel_live.measure` finds, by the rates' names."""
        found = {}
        for rate in kernel_live.RATES:
            if rate.ranks in self.extent.live_ranks and self.wants(rate.name):
                _say(rate.name)
                with self._noting(rate.name):
                    source = self.files.of(MIDDLE, length=_SHORT)
                    with tempfile.TemporaryDirectory(dir=self.scratch) as own:
                        found[rate.name] = kernel_live.measure(rate, source, Path(own), seconds=self.extent.live_s)
        return found

    def memory(self) -> dict[str, dict[int, list[float]]]:
        """Return the peak memory of each rank, MB, by kernel and number of frames."""
        found: dict[str, dict[int, list[float]]] = {}
        for name in (AZIMUTHAL, PROJECTION):
            label = f"memory: {name}{TWO_RANKS}"
            kernel = {**_ALWAYS, **_MIDDLE_ONLY}[name + TWO_RANKS]
            if self.wants(label):
                _say(label)
                with self._noting(label):
                    kernel.check_there()
                    files = [self.files.of(MIDDLE, length=length) for length in (_SHORT, 1.0)]
                    found[name] = {file.frames: self._peaks_mb(kernel, file) for file in files}
        return found

    def _peaks_mb(self, kernel: Kernel, file: FrameFile) -> list[float]:
        with new_result(self.scratch) as result:
            return kernel_programs.peak_memory_mb(kernel, file.path, result)

    def nodes(self, rates: Mapping[str, Sequence[float]]) -> dict[str, Any]:
        """Return the projection to many nodes, from the rates of the middle load; empty without them."""
        two, one = rates.get(AZIMUTHAL + TWO_RANKS), rates.get(AZIMUTHAL)
        if not (two or one) or not self.wants("64 nodes"):
            return {}
        _say("costs of messages, writer and looking for frames, for 64 nodes")
        with self._noting("64 nodes"):
            file = self.files.of(MIDDLE, length=_SHORT)
            costs = asdict(kernel_scaling.measure(file, self.scratch))
            rank_rate = statistics.median(two) / 2 if two else statistics.median(one or ())
            return {
                "assumptions": kernel_scaling.ASSUMPTIONS,
                "costs_s": costs,
                "rank_rate": rank_rate,
                "projected": kernel_scaling.projected(costs, rank_rate, file.stored_bytes),
            }
        return {}


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure everything that is wanted; a contender that fails is out, and the figures say why.

    Parameters
    ----------
    folder
        For results; files of frames too, unless the options name another one for these.
    """
    extent = QUICK if options.quick else WHOLE
    kept = options.folder or folder
    kept.mkdir(parents=True, exist_ok=True)
    files = FrameFiles(kept, frames=options.frames or extent.frames, quick=options.quick)
    bench = Bench(options=options, extent=extent, files=files, scratch=folder)
    rates = bench.rates()
    return {
        "machine": _machine(),
        "frames_per_s": rates,
        "stored_bytes": {load: files.of(load).stored_bytes for load in rates},
        "live": bench.live(),
        "memory_mb": bench.memory(),
        "nodes": bench.nodes(rates.get(MIDDLE, {})),
        "failures": bench.failures,
    }


def _machine() -> dict[str, object]:
    """Return what figures depend on."""
    cpu = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in cpu if line.startswith("model name")), platform.machine())
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "native_paths": [path.name.lower() for path in PATHS],
        "python": platform.python_version(),
        "hdf5": h5py.version.hdf5_version,
        **{name: _version(name) for name in _PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not here"


def _say(what: str) -> None:
    sys.stderr.write(f"bench: {what}\n")
