"""Commands that submit and follow runs themselves wait for these, and for no others."""

from __future__ import annotations

import pytest

from orchestrator.cli.finishing import submit_now
from orchestrator.errors import RunDirectoryUnavailable
from tests.unit.trip import Trip


def test_what_stands_in_the_way_of_another_run_stops_no_command(trip: Trip) -> None:
    trip.start("c1")
    trip.start("c2")
    hindered, wanted = trip.run("c1").summary, trip.run("c2").summary
    hindered.run_directory.parent.mkdir(parents=True)
    hindered.run_directory.touch()
    submit_now(trip.dispatcher, [wanted.run_id])
    assert trip.run("c2").summary.job is not None
    with pytest.raises(RunDirectoryUnavailable, match="wait for their directory"):
        submit_now(trip.dispatcher, [hindered.run_id])
