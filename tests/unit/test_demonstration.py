"""What the demonstration decides before it starts anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.demonstration import Demonstration


@pytest.mark.parametrize(
    ("given", "replayed", "frames_per_second"),
    [(None, None, 20.0), (None, Path("ten-frames.h5"), 2.0), (5.0, None, 5.0), (50.0, Path("ten-frames.h5"), 50.0)],
)
def test_a_replayed_file_is_slow_enough_to_be_followed_unless_a_rate_is_given(
    given: float | None, replayed: Path | None, frames_per_second: float
) -> None:
    demonstration = Demonstration(directory=Path("/nowhere"), rate_hz=given, input=replayed)
    assert demonstration.frames_per_second == frames_per_second
