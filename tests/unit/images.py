"""Container images of a few bytes, for tests of what is told of them."""

from __future__ import annotations

import struct
from pathlib import Path
from uuid import UUID

IDENTIFIER = UUID("de170c43-36ab-44a8-bca9-1ea1a070a274")


def sif(
    path: Path, *, identifier: bytes = IDENTIFIER.bytes, magic: bytes = b"SIF_MAGIC\0", content: bytes = b""
) -> Path:
    """Write a file with the global header of SIF: launch, magic, version, arch, UUID, two times and six numbers."""
    launch = b"#!/usr/bin/env run-singularity\n"
    numbers = (1504657553, 1504657653, 48, 48, 4096, 28080, 32176, len(content))
    path.write_bytes(struct.pack("<32s10s3s3s16s8q", launch, magic, b"01", b"02", identifier, *numbers) + content)
    return path
