"""HDF5 files are opened for reading in one place: what isn't opened twice isn't read wrongly (h5py issue 2803)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import mpi_kernels

PACKAGE = Path(mpi_kernels.__file__).parent
DOOR = "hdf5_files.py"
WRITING = {"w", "w-", "x", "a", "r+"}
OPENERS = {"h5py.File", "File", "h5py.h5f.open", "h5f.open", "h5py.h5d.open", "h5d.open", "h5py.h5o.open", "h5o.open"}


def reading_calls(source: str) -> list[int]:
    """Return the lines that open HDF5 files or datasets, unless a literal mode says that it is for writing."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [call.lineno for call in calls if ast.unparse(call.func) in OPENERS and not _writes(call)]


def _writes(call: ast.Call) -> bool:
    modes = [*call.args[1:2], *(word.value for word in call.keywords if word.arg == "mode")]
    return any(isinstance(mode, ast.Constant) and mode.value in WRITING for mode in modes)


@pytest.mark.parametrize("module", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_library_opens_files_for_reading(module: Path) -> None:
    lines = reading_calls(module.read_text())
    assert bool(lines) == (module.name == DOOR), f"{module.name}: lines {lines}: take it from hdf5_files.Library"


def test_the_search_finds_what_it_looks_for() -> None:
    source = """
h5py.File(path)
h5py.File(path, "r", swmr=True)
h5py.File(path, mode)
h5py.h5d.open(file.id, b"data")
h5py.File(path, "w")
h5py.File(path, mode="x")
"""
    assert reading_calls(source) == [2, 3, 4, 5]
