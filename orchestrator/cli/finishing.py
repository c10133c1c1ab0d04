"""What commands do that follow runs to their end themselves, whether or not a service runs."""

from __future__ import annotations

import time
from collections.abc import Collection
from datetime import timedelta

from orchestrator.dispatching import Dispatcher
from orchestrator.errors import OrchestratorError
from orchestrator.following import Follower
from orchestrator.record_keeping import records_folder, write_due


def submit_now(dispatcher: Dispatcher, run_ids: Collection[str]) -> None:
    """Submit all runs that wait; what stands in the way of others than these is left to the service.

    Raises
    ------
    OrchestratorError
        When one of these can't be submitted now.
    """
    dispatcher.settle()
    try:
        dispatcher.submit_planned()
    except OrchestratorError:
        if dispatcher.store.still_planned(run_ids):
            raise


def follow_to_the_end(dispatcher: Dispatcher, run_ids: Collection[str]) -> None:
    """Follow the site's jobs, and submit what is to be tried again, until these runs have ended."""
    gateway = dispatcher.settings.gateway
    follower = Follower(
        store=dispatcher.store,
        gateway=dispatcher.gateway,
        vanish_after=timedelta(seconds=gateway.vanish_after_s),
        forgive_out_of_memory=gateway.forgive_out_of_memory,
    )
    while any(not dispatcher.store.run(run_id).summary.state.ended for run_id in run_ids):
        follower.cycle()
        submit_now(dispatcher, run_ids)
        time.sleep(gateway.poll_interval_s)
    follower.cycle()  # last lines of jobs that have just ended
    write_due(dispatcher.store, records_folder(dispatcher.settings))
