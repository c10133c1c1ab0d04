"""Compiles the optional native core of the kernels while the package is built (docs/decisions/0008).

Where there is no compiler, or it fails, the package is built without: the kernels then take what wheels offer.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = Path("mpi_kernels", "native")
OBJECT = SOURCES / "libmpi_kernels_native.so"
FLAGS = ("-std=c11", "-O3", "-fPIC", "-fvisibility=hidden", "-shared")
LIMIT_S = 300


class NativeCore(BuildHookInterface[Any]):
    """Hatchling's build hook."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Compile into the checkout, where an editable install finds it, and add it to a wheel."""
        target = Path(self.root, OBJECT)
        target.unlink(missing_ok=True)  # better none than one of other sources
        problem = compile_to(target)
        if problem:
            self.app.display_warning(f"without the native core of the kernels (slower, same results): {problem}")
            return
        build_data["artifacts"].append(f"/{OBJECT}")
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"  # it knows nothing of Python, so it fits every version


def compile_to(target: Path) -> str:
    """Compile the sources beside `target` into it, whole or not at all; return what went wrong, if anything."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        return "no C compiler here"
    sources = sorted(str(path) for path in target.parent.glob("*.c"))
    unfinished = target.with_suffix(f".{os.getpid()}")
    try:
        run = subprocess.run(
            [*compiler.split(), *FLAGS, "-o", str(unfinished), *sources],
            capture_output=True, text=True, check=False, timeout=LIMIT_S,
        )  # fmt: skip
        if run.returncode:
            return run.stderr.strip() or f"{compiler} ended with {run.returncode}"
        unfinished.replace(target)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    finally:
        unfinished.unlink(missing_ok=True)
    return ""
