"""Paths in a site file: relative ones count from the file's folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, ValidationInfo


def _from_site_file(path: Path, info: ValidationInfo) -> Path:
    folder = info.context["folder"] if info.context else Path.cwd()
    return Path(os.path.normpath(folder / path.expanduser()))


SitePath: TypeAlias = Annotated[Path, AfterValidator(_from_site_file)]
"""Comes out absolute; links are not followed."""
