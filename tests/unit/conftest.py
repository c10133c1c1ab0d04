"""Fixtures of the unit tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.site_with_runs import SiteWithRuns
from tests.unit.trip import Trip


@pytest.fixture
def trip(tmp_path: Path) -> Iterator[Trip]:
    trip = Trip(tmp_path)
    yield trip
    trip.store.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[SiteWithRuns]:
    site = SiteWithRuns(tmp_path)
    yield site
    site.store.close()
