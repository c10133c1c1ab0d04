"""Times, sizes and numbers as people read them, with units."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from datetime import UTC, datetime, timedelta

import typer
from rich.filesize import decimal

from orchestrator.records import Resources, Retries, RetryRule

_RESOURCE_UNITS = {"memory_mb": "MB per node", "time_limit_min": "minutes"}
_AGO = re.compile(r"(\d+(?:\.\d+)?) ?(min|h|d|w)")
_UNITS = {"min": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


def when(moment: datetime | None) -> str:
    """Word a moment in local time, with the zone."""
    return "unknown" if moment is None else moment.astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def seconds(duration_s: float | None) -> str:
    """Word a duration with a unit that fits: milliseconds, seconds, minutes, hours."""
    if duration_s is None:
        return "unknown"
    if duration_s < 1:
        return f"{duration_s * 1e3:.0f} ms"
    if duration_s < 60:
        return f"{duration_s:.2f} s"
    minutes, rest_s = divmod(round(duration_s), 60)
    return f"{minutes} min {rest_s} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def size(size_bytes: int | None) -> str:
    """Word a file's size, with the exact number of bytes."""
    if size_bytes is None:
        return "size unknown"
    return f"{size_bytes} bytes" if size_bytes < 1000 else f"{decimal(size_bytes)} ({size_bytes} bytes)"


def counted(number: int, noun: str) -> str:
    """Word a number of things: ``1 frame``, ``2 frames``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


REPORT = "report"
"""The step of a chain that is no kernel but keeps to their command line."""


def program_of(kernel: str) -> tuple[str, ...]:
    """Return the Python module that runs a kernel, and its first words."""
    return ("orchestrator.reporting",) if kernel == REPORT else ("mpi_kernels", kernel)


def resources_asked(resources: Resources) -> Iterator[str]:
    """Word what is asked of SLURM, in SLURM's own names; what isn't asked is left out."""
    for item in fields(resources):
        value = getattr(resources, item.name)
        if value is not None and value is not False:
            name, unit = item.name.removesuffix("_mb").removesuffix("_min"), _RESOURCE_UNITS.get(item.name, "")
            yield f"{name} {'yes' if value is True else value} {unit}".strip()


def retries_allowed(retries: Retries) -> Iterator[str]:
    """Word which outcomes are tried again, how often and with what; those that never are, are left out."""
    for cause, rule in retries.rules.items():
        if rule.times:
            yield " ".join([f"{cause} {counted(rule.times, 'time')}", *_with(rule)])


def _with(rule: RetryRule) -> Iterator[str]:
    if rule.exit_codes:
        yield f"after exit code {' or '.join(map(str, rule.exit_codes))}"
    if rule.memory_factor > 1:
        most = "" if rule.memory_max_mb is None else f" up to {rule.memory_max_mb} MB"
        yield f"with {rule.memory_factor:g} times the memory{most}"
    if rule.time_factor > 1:
        most = "" if rule.time_max_min is None else f" up to {rule.time_max_min} minutes"
        yield f"with {rule.time_factor:g} times the time{most}"
    if rule.avoid_nodes:
        yield "on other nodes"
    if rule.delay_s:
        yield f"after {rule.delay_s:g} s"


def parse_moment(text: str) -> datetime:
    """Read a moment: ``2026-11-22``, ``2026-11-22T14:30`` (local unless it says a zone), ``today``, or ``3h`` ago."""
    if (ago := _AGO.fullmatch(text)) is not None:
        return datetime.now(UTC) - float(ago[1]) * _UNITS[ago[2]]
    if text == "today":
        return datetime.now().astimezone().replace(hour=0, minute=0, second=0, microsecond=0)
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no moment; e.g. 2026-11-22, 2026-11-22T14:30, today, 3h") from error
