"""Where the programs of other packages are, and which Debian package brings the one that is missing.

Looks on PATH and in the administrator's folders, which aren't on an ordinary user's PATH. Never installs anything.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from orchestrator.errors import StackError

DEBIAN_PACKAGES = {
    "munged": "munge",
    "munge": "munge",
    "unmunge": "munge",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "slurmdbd": "slurmdbd",
    "slurmrestd": "slurmrestd",
    "scontrol": "slurm-client",
    "sinfo": "slurm-client",
    "sbatch": "slurm-client",
    "scancel": "slurm-client",
    "squeue": "slurm-client",
    "sacctmgr": "slurm-client",
    "java": "default-jre-headless",
    "mariadbd": "mariadb-server-core",
    "mariadb-install-db": "mariadb-server-core",
    "postgres": "postgresql",
    "initdb": "postgresql",
    "setpriv": "util-linux",
    "openssl": "openssl",
    "env": "coreutils",
}


def find_program(name: str) -> str:
    """Return the path of a program.

    Raises
    ------
    StackError
        It isn't there; the remedy names the Debian package.
    """
    folders = [os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin", *_postgresql_folders()]
    found = shutil.which(name, path=os.pathsep.join(folders))
    if found is None:
        package = DEBIAN_PACKAGES.get(name, name)
        raise StackError(f"the program {name} is missing", remedy=f"install it: apt-get install {package}")
    return found


def _postgresql_folders() -> list[str]:
    """Return Debian's folders of server programs, newest version first."""
    folders = Path("/usr/lib/postgresql").glob("*/bin")
    return [str(folder) for folder in sorted(folders, key=lambda path: float(path.parent.name), reverse=True)]
