"""Whether a result is valid NeXus: asked in a process of its own, which may crash, hang or not be there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from orchestrator.errors import InvalidInput
from orchestrator.provenance import OutputIdentity, Validation, validation_from_json

PATIENCE_S = 60.0
"""How long a validator may take for a file: a third of a second is usual, whatever the file's size."""

REMEDY = (
    "install nexusformat for the interpreter of the service: requirements/validation.txt, or the extra `validation`"
)

_MODULE = "orchestrator.nexus_validator"

# The file is finished: nobody must be kept from it, nor find a lock file beside it. One thread is enough: on a large
# machine the buffers of all of them would be more memory than the validator may have.
_ENVIRONMENT = {"HDF5_USE_FILE_LOCKING": "FALSE", "NX_LOCK": "0", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def validate(path: Path, *, patience_s: float = PATIENCE_S, module: str = _MODULE) -> Validation:
    """Have a file validated; what stands in the way is told in the answer, and never raised.

    Parameters
    ----------
    module
        What is run, as ``python -m``.
    """
    words = [sys.executable, "-P", "-m", module, os.fspath(path.absolute())]
    environment = os.environ | _ENVIRONMENT
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=patience_s,
            env=environment,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        return Validation(obstacle=f"the validator took longer than {patience_s:g} s")
    except OSError as error:
        return Validation(obstacle=f"the validator can't be started: {error}")
    if done.returncode:
        return Validation(obstacle=f"the validator {_end(done.returncode, done.stderr)}")
    try:
        return validation_from_json(json.loads(done.stdout))
    except (ValueError, InvalidInput) as error:
        return Validation(obstacle=f"the validator's answer can't be read: {error}")


def validate_output(output: OutputIdentity) -> Validation:
    """Have a run's result validated, if it still is what the run made."""
    there = output.path.stat().st_size if output.path.is_file() else None
    if there is None:
        return Validation(obstacle="the file isn't there any more")
    if there != output.size:
        return Validation(obstacle=f"the file has {there} bytes now; the run made {output.size}")
    return validate(output.path)


def _end(code: int, said: bytes) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    last = (said.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
    return f"broke off: {last[:300]}"
