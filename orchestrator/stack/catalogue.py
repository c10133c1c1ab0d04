"""The services a stack can offer: which programs, configuration and daemons each one is made of."""

from __future__ import annotations

from collections.abc import Collection

from orchestrator.errors import StackError
from orchestrator.stack import accounting, broker, munge, rest, slurm
from orchestrator.stack.daemon import Daemon
from orchestrator.stack.layout import NEEDS, Layout, Service
from orchestrator.stack.programs import find_program

PROGRAMS = {
    Service.SLURM: (*munge.PROGRAMS, *slurm.PROGRAMS),
    Service.BROKER: broker.PROGRAMS,
    Service.ACCOUNTING: accounting.PROGRAMS,
    Service.REST: rest.PROGRAMS,
}


def with_needed(services: Collection[str]) -> frozenset[Service]:
    """Return the services of these names and those that they need.

    Raises
    ------
    StackError
        There is no such service.
    """
    try:
        wanted = {Service(name) for name in services}
    except ValueError as unknown:
        raise StackError(str(unknown), remedy=f"services are: {', '.join(Service)}") from unknown
    return frozenset(wanted).union(*(NEEDS[service] for service in wanted))


def require_programs(services: Collection[Service]) -> None:
    """Raise `StackError` where a program that these services need is missing; names it and its Debian package."""
    for service in services:
        for name in PROGRAMS[service]:
            find_program(name)
    if Service.BROKER in services:
        broker.require_libraries()


def prepare(facts: Layout) -> bool:
    """Write all configuration; return whether SLURM's differs from the one it may be running with."""
    changed = False
    if Service.SLURM in facts.services:
        munge.prepare(facts)
        changed = slurm.prepare(facts)
    if Service.ACCOUNTING in facts.services:
        accounting.prepare(facts)
    if Service.BROKER in facts.services:
        broker.prepare(facts)
    return changed


def describe(facts: Layout) -> list[Daemon]:
    """Return all daemons of a stack, those needed by others first."""
    daemons = []
    if Service.BROKER in facts.services:
        daemons.append(broker.daemon(facts))
    if Service.SLURM in facts.services:
        daemons.append(munge.daemon(facts))
    if Service.ACCOUNTING in facts.services:
        daemons.extend(accounting.daemons(facts))
    if Service.SLURM in facts.services:
        daemons.extend(slurm.daemons(facts))
    if Service.REST in facts.services:
        daemons.append(rest.daemon(facts))
    return daemons
