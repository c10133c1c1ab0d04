"""When which frame is written. Pure: no clock, no files."""

from __future__ import annotations

import random

from orchestrator.simulator.settings import Misbehaviour


def writing_order(number: int, wrong: Misbehaviour, *, seed: int = 0) -> list[int]:
    """Return the indices of the frames that will be written, in the order of writing."""
    end = number if wrong.write_only is None else wrong.write_only
    indices = [index for index in range(end) if index not in wrong.gaps]
    generator = random.Random(seed)  # noqa: S311 - not for secrets
    shuffled: list[int] = []
    for start in range(0, len(indices), wrong.shuffle_within):
        block = indices[start : start + wrong.shuffle_within]
        if wrong.shuffle_within > 1:
            generator.shuffle(block)
        shuffled += block
    return shuffled


def due_s(position: int, rate_hz: float, wrong: Misbehaviour) -> float:
    """Return when the frame at `position` in the order is due, in seconds after the scan's start.

    The times are absolute, so that the rate doesn't drift; a stall moves everything after it.
    """
    stalled = wrong.stall_after is not None and position >= wrong.stall_after
    return (position + 1) / rate_hz + (wrong.stall_for_s if stalled else 0.0)
