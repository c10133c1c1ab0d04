"""Versions of slurmrestd's API, and which one to speak. Pure.

A server offers several side by side: SLURM 22.05 has 0.0.36 to 0.0.38, 23.02 adds 0.0.39, and so on up to 0.0.45 of
26.05; the oldest go away again. The newest one that both sides know is taken. What a server offers stands in the paths
of its ``/openapi/v3`` document, where ``/slurm/`` is the controller and ``/slurmdb/`` is accounting.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.errors import GatewayUnavailable


@dataclass(frozen=True, order=True)
class ApiVersion:
    """A version as it stands in a path, ``v0.0.<number>``."""

    number: int

    def __str__(self) -> str:
        return f"0.0.{self.number}"


OLDEST, NEWEST = ApiVersion(38), ApiVersion(45)
FIRST_TYPED = ApiVersion(39)
"""From here on values have types, and states and flags are lists."""
SCRIPT_IN_JOB = ApiVersion(40)
"""From here on the script is a field of the job; before, it stands beside it."""
NEW_QUERIES = ApiVersion(40)
"""From here on accounting tells every run of a job only when asked for it, and several ids are several parameters."""

_SUBMIT = re.compile(r"/slurm/v0\.0\.(\d+)/job/submit/?")
_ACCOUNT = re.compile(r"/slurmdb/v0\.0\.(\d+)/jobs/?")


@dataclass(frozen=True, kw_only=True)
class Spoken:
    """What is spoken with a server."""

    version: ApiVersion
    accounting: bool
    """Whether the server has this version's paths to accounting; whether there is accounting is another question."""


def negotiated(paths: Iterable[str], server: str) -> Spoken:
    """Choose the version.

    Parameters
    ----------
    paths
        Of the server's OpenAPI document.
    server
        Its address, for the error.

    Raises
    ------
    GatewayUnavailable
        When the server has none of the supported versions.
    """
    known = list(paths)
    offered = _versions(_SUBMIT, known)
    common = [version for version in offered if OLDEST <= version <= NEWEST]
    if not common:
        said = ", ".join(map(str, sorted(offered))) or "no way to submit jobs"
        raise GatewayUnavailable(
            f"slurmrestd at {server} offers {said}; this program speaks {OLDEST} to {NEWEST}",
            remedy="start slurmrestd with its plugins slurmctld and slurmdbd, or use the route cli",
        )
    version = max(common)
    return Spoken(version=version, accounting=version in _versions(_ACCOUNT, known))


def _versions(pattern: re.Pattern[str], paths: Iterable[str]) -> set[ApiVersion]:
    return {ApiVersion(int(found[1])) for path in paths if (found := pattern.fullmatch(path))}
