"""What this interpreter has for the kernels, how fast they are with it, and what would make them faster.

``python -m mpi_kernels doctor`` prints it, for people or as JSON (``docs/reference/kernel-command-line.md``). Nothing
is changed, and no data is read or written.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin

from mpi_kernels.decode import decompress
from mpi_kernels.errors import ExitCode
from mpi_kernels.identity import software
from mpi_kernels.jit import sum_whole_pixels
from mpi_kernels.native.library import INTERFACE, LIBRARY, OBJECT, PATH, PATHS, VARIABLE, NativePath
from mpi_kernels.speed import Speed, measure, native_way, other_way, way_taken

_ENOUGH = 0.9
"""A way this close to the best one isn't worth a word."""
_FLAGS = {NativePath.AVX2: {"avx2"}, NativePath.AVX512: {"avx2", "avx512f", "avx512bw", "avx512vl", "gfni"}}
"""What a processor must have for a path, in the words of ``/proc/cpuinfo``; as ``native_has`` asks."""
_REFERENCE = {
    native_way(NativePath.AVX512): 1.0,
    native_way(NativePath.AVX2): 0.95,
    native_way(NativePath.PORTABLE): 0.85,
    other_way(dectris=True, numba=True): 0.33,
    other_way(dectris=False, numba=True): 0.19,
    other_way(dectris=True, numba=False): 0.18,
    other_way(dectris=False, numba=False): 0.11,
}
"""How fast the ways were beside each other on one machine (EPYC, AVX-512): tells what a core would bring that isn't
compiled here, and so can't be measured."""


class State(StrEnum):
    """What is to be thought of a finding."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    name: str
    found: str
    state: State = State.OK
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that was found.

    Parameters
    ----------
    taken, best
        The way that kernels take, and the fastest that this processor can take.
    of_best
        The speed of the one as a part of the other's.
    estimated
        Whether `of_best` is taken from another machine, because the best way isn't installed here.
    """

    interpreter: str
    software: Mapping[str, str]
    cores: int
    findings: Sequence[Finding]
    speeds: Sequence[Speed]
    taken: str
    best: str
    of_best: float
    estimated: bool

    @property
    def exit_code(self) -> ExitCode:
        wrong = any(finding.state is State.PROBLEM for finding in self.findings)
        return ExitCode.FAULT if wrong else ExitCode.COMPLETE

    def as_json(self) -> dict[str, Any]:
        """Return it for programs."""
        return asdict(self)


def examine() -> Report:
    """Look at everything; takes two or three seconds, and some more where numba compiles for the first time."""
    speeds, taken = measure(), way_taken()
    best, of_best, estimated = _loss(speeds, taken)
    return Report(
        interpreter=sys.executable,
        software=software(),
        cores=len(os.sched_getaffinity(0)),
        findings=(*_parts(), _sums(speeds), _speed(speeds, taken, best, of_best, estimated=estimated)),
        speeds=speeds,
        taken=taken,
        best=best,
        of_best=round(of_best, 3),
        estimated=estimated,
    )


def worded(report: Report) -> str:
    """Return the report for people."""
    width = max(len(finding.name) for finding in report.findings)
    lines = [report.interpreter]
    for finding in report.findings:
        lines.append(f"{finding.state:<9}{finding.name:<{width}}  {finding.found}")
        if finding.remedy:
            lines.append(f"{'':<{width + 9}}  remedy: {finding.remedy}")
    width = max(len(speed.way) for speed in report.speeds)
    lines += ["", f"{'frames per second of a core':<{width}}  decoded  integrated"]
    for speed in report.speeds:
        mark = "  taken" if speed.way == report.taken else ""
        lines.append(f"{speed.way:<{width}}  {speed.decode_fps:7.0f}  {speed.integrate_fps:10.0f}{mark}")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------------- findings


def _parts() -> Iterator[Finding]:
    yield _native_core()
    yield _optional("dectris-compression", there=decompress is not None, what="decodes bitshuffle")
    yield _optional("numba", there=sum_whole_pixels is not None, what="compiles sums")
    yield _hdf5()
    yield _filters()
    yield Finding(name="MPI", found=f"mpi4py {metadata.version('mpi4py')} on {software()['mpi']}")
    yield Finding(name="cores", found=f"{len(os.sched_getaffinity(0))} for this process")


def _native_core() -> Finding:
    name, possible = "native core", f"this processor can take {_listed(processor_paths())}"
    if LIBRARY is None:
        return Finding(
            name=name,
            state=State.WARNING,
            found=f"{why_no_core(OBJECT)}; {possible}",
            remedy="install a C compiler and run script/bootstrap again",
        )
    taken = "it isn't used" if PATH is None else f"{PATH.name.lower()} is taken"
    if PATH is max(PATHS):
        return Finding(name=name, found=f"{taken}; {possible}")
    wish = f"{VARIABLE}={os.environ.get(VARIABLE, '')}"
    return Finding(
        name=name, state=State.WARNING, found=f"{taken}, because of {wish}; {possible}", remedy=f"unset {VARIABLE}"
    )


def why_no_core(path: Path) -> str:
    """Return why a shared object can't be used."""
    if not path.exists():
        return "it wasn't compiled"
    try:
        found = ctypes.CDLL(str(path)).native_interface()
    except (OSError, AttributeError) as error:
        return f"it can't be loaded: {error}"
    return f"it was compiled from other sources (interface {found}, not {INTERFACE})"


def processor_paths(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[NativePath, ...]:
    """Return the paths that this processor can take, whether the core is compiled or not."""
    if PATHS:
        return PATHS
    try:
        words = set(cpuinfo.read_text().split())
    except OSError:
        words = set()
    return tuple(path for path in NativePath if words >= _FLAGS.get(path, set()))


def _optional(distribution: str, *, there: bool, what: str) -> Finding:
    """Word a package that makes kernels faster where the native core is missing."""
    if there:
        return Finding(name=distribution, found=f"{_version(distribution)}, {what} where the native core doesn't")
    missing = f"not installed; {what} where the native core doesn't"
    if PATH is not None:
        return Finding(name=distribution, found=missing)
    return Finding(
        name=distribution,
        state=State.WARNING,
        found=missing,
        remedy=f"{sys.executable} -m pip install {distribution}",
    )


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:  # a build that isn't registered as a package
        return "of unknown version"


def _hdf5() -> Finding:
    parallel = "with MPI" if h5py.get_config().mpi else "without MPI, which no kernel needs"
    return Finding(name="HDF5", found=f"{h5py.version.hdf5_version}, h5py {h5py.__version__} {parallel}")


def _filters() -> Finding:
    there = {name: h5py.h5z.filter_avail(number) for name, number in hdf5plugin.FILTERS.items()}
    names = ", ".join(sorted(name for name, available in there.items() if available))
    missing = ", ".join(sorted(name for name, available in there.items() if not available))
    version = f"hdf5plugin {hdf5plugin.version}"
    if not missing:
        return Finding(name="HDF5 filters", found=f"{version}: {names}")
    return Finding(
        name="HDF5 filters",
        state=State.WARNING,
        found=f"{version}: {names or 'none'}; not {missing}",
        remedy=f"{sys.executable} -m pip install --force-reinstall hdf5plugin, or set HDF5_PLUGIN_PATH",
    )


def _sums(speeds: Sequence[Speed]) -> Finding:
    wrong = [speed.way for speed in speeds if not speed.same_sums]
    if not wrong:
        return Finding(name="sums", found=f"identical, each of {len(speeds)} ways")
    return Finding(
        name="sums",
        state=State.PROBLEM,
        found=f"not those of numpy: {', '.join(wrong)}",
        remedy="process nothing with this installation; run script/bootstrap again, and report it if it stays",
    )


def _speed(speeds: Sequence[Speed], taken: str, best: str, of_best: float, *, estimated: bool) -> Finding:
    (rate,) = (speed.integrate_fps for speed in speeds if speed.way == taken)
    found = f"{rate:.0f} frames/s of 1 Mpixel are integrated by a core, by way of {taken}"
    if of_best >= _ENOUGH:
        return Finding(name="speed", found=found)
    whence = "estimated: it isn't here" if estimated else "measured"
    lost = f"{(1 - of_best) * 100:.0f} % less than by way of {best} ({whence})"
    return Finding(name="speed", state=State.WARNING, found=f"{found}; {lost}")


def _loss(speeds: Sequence[Speed], taken: str) -> tuple[str, float, bool]:
    """Return the best way for this processor, the taken one's speed as a part of its, and whether that is estimated."""
    rates = {speed.way: speed.integrate_fps for speed in speeds}
    if not PATHS:
        best = native_way(max(processor_paths()))
        return best, min(_REFERENCE[taken] / _REFERENCE[best], 1.0), True
    best = max(rates, key=lambda way: rates[way])
    return best, rates[taken] / rates[best], False


def _listed(paths: Sequence[NativePath]) -> str:
    return ", ".join(path.name.lower() for path in sorted(paths, reverse=True))
