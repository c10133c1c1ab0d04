"""Options that can't be are refused by name; the order and the times of writing are what was asked."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import InvalidInput
from orchestrator.simulator import (
    GeometryOverrides,
    Misbehaviour,
    PixelType,
    ReplaySettings,
    SimulationSettings,
    SyntheticFramesSettings,
)
from orchestrator.simulator.misbehaviour import due_s, writing_order

OUT = Path("scan.h5")


@pytest.mark.parametrize(
    ("option", "make"),
    [
        ("--number", lambda: SimulationSettings(output=OUT, number=0)),
        ("--rate", lambda: SimulationSettings(output=OUT, rate_hz=-1)),
        ("--rate", lambda: SimulationSettings(output=OUT, rate_hz=math.nan)),
        ("--frames-per-file", lambda: SimulationSettings(output=OUT, frames_per_file=0)),
        ("--shape", lambda: SyntheticFramesSettings(shape=(0, 10))),
        ("--peak-counts", lambda: SyntheticFramesSettings(pixel_type=PixelType.UINT16, peak_counts=60_000)),
        ("--background-counts", lambda: SyntheticFramesSettings(background_counts=-1)),
        ("--ring-fwhm-px", lambda: SyntheticFramesSettings(ring_fwhm_px=0)),
        ("--pool", lambda: SyntheticFramesSettings(pool=0)),
        ("--seed", lambda: SyntheticFramesSettings(seed=-1)),
        ("--distance-mm", lambda: SyntheticFramesSettings(geometry=GeometryOverrides(distance_m=0))),
        ("--pixel-um", lambda: SyntheticFramesSettings(geometry=GeometryOverrides(pixel_m=-1))),
        (
            "--wavelength-angstrom",
            lambda: ReplaySettings(file=OUT, dataset="x", geometry=GeometryOverrides(wavelength_angstrom=math.inf)),
        ),
        ("--beam-center", lambda: SyntheticFramesSettings(geometry=GeometryOverrides(beam_center_px=(math.nan, 0)))),
        ("--stall-for", lambda: Misbehaviour(stall_after=3)),
        ("--stall-for", lambda: Misbehaviour(stall_for_s=3)),
        ("--stall-after", lambda: Misbehaviour(stall_after=-1, stall_for_s=1)),
        ("--die-after", lambda: Misbehaviour(die_after=-1)),
        ("--shuffle-within", lambda: Misbehaviour(shuffle_within=0)),
    ],
)
def test_option_that_cannot_be_is_refused_by_name(option: str, make: Callable[[], Any]) -> None:
    with pytest.raises(InvalidInput, match=f"^{option} ") as caught:
        make()
    assert option in caught.value.remedy


@pytest.mark.parametrize(
    ("option", "wrong"),
    [
        ("--die-after", Misbehaviour(die_after=11)),
        ("--write-only", Misbehaviour(write_only=11)),
        ("--stall-after", Misbehaviour(stall_after=11, stall_for_s=1)),
        ("--gaps", Misbehaviour(gaps=frozenset({3, 10}))),
    ],
)
def test_misbehaviour_that_would_never_happen_is_refused(option: str, wrong: Misbehaviour) -> None:
    with pytest.raises(InvalidInput, match=f"^{option} "):
        SimulationSettings(output=OUT, misbehaviour=wrong).check_against(10)


def test_gaps_and_a_short_scan_leave_frames_out_of_the_order() -> None:
    assert writing_order(10, Misbehaviour(write_only=7, gaps=frozenset({0, 4, 9}))) == [1, 2, 3, 5, 6]


def test_shuffling_keeps_every_frame_near_its_place() -> None:
    order = writing_order(100, Misbehaviour(shuffle_within=8))
    assert sorted(order) == list(range(100))
    assert order != list(range(100))
    assert all(position // 8 == index // 8 for position, index in enumerate(order))


def test_schedule_is_absolute_and_a_stall_moves_what_follows() -> None:
    wrong = Misbehaviour(stall_after=2, stall_for_s=5.0)
    assert [due_s(position, 10.0, wrong) for position in range(4)] == pytest.approx([0.1, 0.2, 5.3, 5.4])
    assert due_s(999_999, 100.0, Misbehaviour()) == pytest.approx(10_000.0)
