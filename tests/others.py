"""Another user of this machine, and an interpreter that they can run."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import site
import subprocess
import sys
from pathlib import Path

import pytest

NOBODY = pwd.getpwnam("nobody")
AS_NOBODY = ("setpriv", f"--reuid={NOBODY.pw_uid}", f"--regid={NOBODY.pw_gid}", "--clear-groups", "--inh-caps=-all")


def python_for_nobody(folder: Path) -> Path:
    """Return an interpreter that has our packages and that nobody can run; skip the test where there can't be one.

    Ours may lie in the home of root. Then it is another one of the same version, in an environment made in `folder`
    (which others must be able to enter) with the packages of ours.
    """
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: only root can be another user")
    ours = Path(sys.executable)
    if nobody_can_run(ours):
        return ours
    name = "python{}.{}".format(*sys.version_info)
    for place in ("/usr/bin", "/usr/local/bin"):
        base = shutil.which(name, path=place)
        if base is None:
            continue
        subprocess.run([base, "-m", "venv", "--without-pip", folder / "environment"], check=True)
        (packages,) = (folder / "environment").glob("lib/python*/site-packages")
        lines = [f"import site; site.addsitedir({path!r})" for path in site.getsitepackages()]
        (packages / "ours.pth").write_text("\n".join(lines))
        if nobody_can_run(python := folder / "environment" / "bin" / "python"):
            return python
    pytest.skip(f"NOT TESTED: others may not run {ours}, and no other {name} with its packages")


def nobody_can_run(python: Path) -> bool:
    """Whether nobody can begin an interpreter as a job's script does, and finds our packages with it."""
    command = f"exec {shlex.quote(str(python))} -c 'import h5py, mpi_kernels, orchestrator'"
    return not subprocess.run([*AS_NOBODY, "bash", "-c", command], cwd="/", capture_output=True, check=False).returncode
