"""MPI kernels that read detector frames while they are written and write live NeXus results."""

from __future__ import annotations

from importlib import metadata

try:
    __version__ = metadata.version("orchestrator")
except metadata.PackageNotFoundError:  # run from a checkout that isn't installed
    __version__ = "not installed"
