"""Which programs took part in a run, with their versions as they were recorded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from orchestrator.records import Json

OURS = "orchestrator"
"""This program and its kernels: one package."""


@dataclass(frozen=True)
class _About:
    title: str
    url: str | None = None
    reference: str | None = None
    """Key of what to cite, in `references`."""


_ABOUT = {
    OURS: _About(OURS),
    "python": _About("Python", "https://www.python.org/"),
    "numpy": _About("NumPy", "https://numpy.org/", "numpy"),
    "h5py": _About("h5py", "https://www.h5py.org/", "h5py"),
    "hdf5": _About("HDF5", "https://www.hdfgroup.org/solutions/hdf5/", "hdf5"),
    "hdf5plugin": _About("hdf5plugin", "https://www.silx.org/doc/hdf5plugin/latest/"),
    "mpi4py": _About("mpi4py", "https://mpi4py.github.io/", "mpi4py"),
    "openmpi": _About("Open MPI", "https://www.open-mpi.org/", "openmpi"),
    "dectris-compression": _About("dectris-compression", "https://github.com/dectris/compression"),
    "jinja2": _About("Jinja2", "https://jinja.palletsprojects.com/"),
}


_NO_PROGRAMS = {"decoder", "source_sha256"}
"""What kernels tell besides: which of their ways decodes frames, and what their own code is."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program, as far as the record knows it."""

    key: str
    title: str
    version: str
    loaded: bool
    """The kernel said that it runs with it; else it was merely installed."""
    url: str | None = None
    reference: str | None = None

    def __str__(self) -> str:
        return f"{self.title} {self.version}"


def programs_of(software: Json) -> tuple[Program, ...]:
    """Return the programs that an attempt recorded, this one first.

    Parameters
    ----------
    software
        `AttemptRecord.software`; anything that isn't there is left out.
    """
    told = software if isinstance(software, Mapping) else {}
    installed, loaded = _versions(told, "packages"), _versions(told, "loaded")
    loaded = {key: version for key, version in loaded.items() if key not in _NO_PROGRAMS}
    if loaded.pop("mpi", None) is not None:
        loaded |= dict(_mpi(str(_mapping(told, "loaded")["mpi"])))
        loaded |= {key: installed[key] for key in ("mpi4py",) if key in installed}
    if isinstance(python := told.get("python"), str):
        installed["python"] = python
    versions = installed | loaded
    if OURS in versions:
        versions[OURS] += _commit(told)
    first = sorted(versions, key=lambda key: (key != OURS, key))
    return tuple(_program(key, versions[key], loaded=key in loaded or key == OURS) for key in first)


def _program(key: str, version: str, *, loaded: bool) -> Program:
    about = _ABOUT.get(key, _About(key))
    return Program(key=key, title=about.title, version=version, loaded=loaded, url=about.url, reference=about.reference)


def _mapping(told: Mapping[str, Json], name: str) -> Mapping[str, Json]:
    found = told.get(name)
    return found if isinstance(found, dict) else {}


def _versions(told: Mapping[str, Json], name: str) -> dict[str, str]:
    return {key: str(version) for key, version in _mapping(told, name).items()}


def _mpi(words: str) -> Iterator[tuple[str, str]]:
    """Read what an MPI calls itself, e.g. ``Open MPI v4.1.4``."""
    name, _, version = words.rpartition(" ")
    key = "openmpi" if name == "Open MPI" else name or "mpi"
    yield key, version.removeprefix("v")


def _commit(told: Mapping[str, Json]) -> str:
    commit = told.get("commit")
    if not isinstance(commit, str):
        return ""
    return f" (commit {commit}{', with uncommitted changes' if told.get('dirty') else ''})"
