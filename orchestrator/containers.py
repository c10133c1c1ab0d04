"""In which container image this process runs, and what proves which one that is; standard library only.

Apptainer and Singularity name the image's file in the environment. What the file is stands there at once: size, time
and, of a SIF file, the UUID in its header. The digest of its gigabytes is taken when the job is over, once for each
image (`orchestrator.examining`). Of engines that show nothing of their image inside, as Docker and Podman, it is known
what the site says in `STATED`: that is its word, and is kept as such.
"""

from __future__ import annotations

import stat
import struct
import uuid
from collections.abc import Mapping
from pathlib import Path

STATED = "ORCHESTRATOR_CONTAINER_IMAGE"
"""The variable by which a site says which image a job runs in, best with its digest: ``registry/name@sha256:…``."""

_NAMED = ("APPTAINER_CONTAINER", "SINGULARITY_CONTAINER")

_SIF_HEADER = struct.Struct("<32s10s3s3s16s")
"""Launch line, magic, version, architecture, UUID: the first fields of ``header`` in apptainer/sif's pkg/sif/sif.go."""
_SIF_MAGIC = b"SIF_MAGIC\0"


def container(environment: Mapping[str, str]) -> dict[str, dict[str, str | int]]:
    """Return which container image the job runs in; empty where it says nothing of one."""
    known: dict[str, str | int] = {}
    if stated := environment.get(STATED):
        known["stated"] = stated
    if named := next(filter(None, map(environment.get, _NAMED)), None):
        known |= {"path": named} | image_file(Path(named))
    return {"container": known} if known else {}


def image_file(path: Path) -> dict[str, str | int]:
    """Return what an image's file is; empty where it is out of sight, as it may be from inside."""
    try:
        real = path.resolve(strict=True)
        found = real.stat()
        if not stat.S_ISREG(found.st_mode):
            return {"real_path": str(real), "sha256_unknown_because": "it is a directory, not a file"}
        identifier = sif_uuid(real)
    except OSError:
        return {}
    state = {"size": found.st_size, "mtime_ns": found.st_mtime_ns, "inode": found.st_ino}
    return {"real_path": str(real), **state, **({"sif_uuid": identifier} if identifier else {})}


def sif_uuid(path: Path) -> str | None:
    """Return the UUID that a SIF file got when it was built; None where it has none, and of other files.

    Signing an image, or adding to it, leaves it: the UUID tells images apart, and doesn't prove that two are the same.
    """
    with path.open("rb") as file:
        head = file.read(_SIF_HEADER.size)
    if len(head) < _SIF_HEADER.size:
        return None
    _launch, magic, _version, _architecture, identifier = _SIF_HEADER.unpack(head)
    return str(uuid.UUID(bytes=identifier)) if magic == _SIF_MAGIC and any(identifier) else None
