"""Fixtures of the unit tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.provenance import Store
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


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store's file with the newest schema and nothing in it, to be copied."""
    path = tmp_path_factory.mktemp("store") / "store.sqlite"
    Store.open(f"sqlite:///{path}").close()
    return path


@pytest.fixture
def new_trip(tmp_path: Path, empty_store: Path) -> Callable[[int], Trip]:
    """Give trips, each in a numbered folder, whose stores needn't be set up anew."""

    def make(number: int) -> Trip:
        folder = tmp_path / str(number)
        folder.mkdir()
        shutil.copy(empty_store, folder / "store.sqlite")
        return Trip(folder)

    return make
