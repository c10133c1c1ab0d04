"""What commands do that follow runs to their end themselves, whether or not a service runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

from orchestrator.dispatching import Dispatcher
from orchestrator.following import Follower
from orchestrator.record_keeping import records_folder, write_due


def follow_to_the_end(dispatcher: Dispatcher, any_left: Callable[[], bool]) -> None:
    """Follow the site's jobs, and submit what is to be tried again, until nothing is left that is waited for."""
    gateway = dispatcher.settings.gateway
    follower = Follower(
        store=dispatcher.store,
        gateway=dispatcher.gateway,
        vanish_after=timedelta(seconds=gateway.vanish_after_s),
        forgive_out_of_memory=gateway.forgive_out_of_memory,
    )
    while any_left():
        follower.cycle()
        dispatcher.settle()
        dispatcher.submit_planned()
        time.sleep(gateway.poll_interval_s)
    follower.cycle()  # last lines of jobs that have just ended
    write_due(dispatcher.store, records_folder(dispatcher.settings))
