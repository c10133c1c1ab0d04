"""The alternatives' own environment: made once, below the user's cache folder."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

PEERS = {"submitit": "1.5.4", "psij-python": "0.9.11", "zocalo": "0.30.2"}
"""Zocalo's newest release that speaks to the slurmrestd of SLURM 22.05; submitit's and psij-python's newest."""


def interpreter() -> Path:
    """Return the interpreter that has the peers.

    Raises
    ------
    subprocess.CalledProcessError
        When pip can't install them.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "orchestrator-bench" / "-".join(f"{name}{version}" for name, version in PEERS.items())
    python = folder / "bin" / "python"
    done = folder / "done"
    if not done.exists():
        sys.stderr.write(f"bench: installing {', '.join(PEERS)} into {folder}\n")
        venv.create(folder, with_pip=True, clear=True)
        wanted = [f"{name}=={version}" for name, version in PEERS.items()]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True, stdout=sys.stderr)
        done.touch()
    return python
