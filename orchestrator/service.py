"""Composition root: the only place that chooses a gateway, a store and the doors, and runs them together.

Two loops do the work, each in a thread of its own: *dispatch* (messages -> jobs; woken by every message) and *follow*
(jobs -> states, progress, results). The doors have threads of their own. A loop that meets an obstacle says so
once, waits longer each time, and goes on; nothing but `stop` ends it.

Four more, *adopt*, *compare*, *record* and *examine*, take in runs that people made without the service, look for those
of which no word came, write the records of those that have ended, and look at what they left: how valid it is.

Of several services on one database each takes messages and submits runs; one at a time follows, by a lease, and the
next one takes over when it is gone. A loop of its own, *presence*, tells the others that this one lives. Where a site
has an ISPyB, *ispyb* mirrors runs there; nobody waits for it.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from statistics import fmean
from types import TracebackType
from typing import Self

from orchestrator.adopting import Adopter
from orchestrator.dispatching import Dispatcher
from orchestrator.errors import InvalidSettings, OrchestratorError, RunDirectoryUnavailable, StoreUnavailable
from orchestrator.examining import examine_due
from orchestrator.following import Follower
from orchestrator.ispyb import Mirror
from orchestrator.listening.door import Door, Handler, Verdict, backoff
from orchestrator.listening.spool import SpoolDoor
from orchestrator.listening.stomp import StompDoor
from orchestrator.provenance import Store
from orchestrator.provenance.leases import PRESENCE_S
from orchestrator.record_keeping import records_folder, write_due, write_waiting
from orchestrator.records import RawMessage, utc_now
from orchestrator.settings import Settings
from orchestrator.slurm.choice import choose
from orchestrator.slurm.gateway import Gateway
from orchestrator.unreported import LEASE, Comparison

log = logging.getLogger(__name__)

FOLLOWING = "following"
"""Name of the lease of the one service that follows."""

TAKE_OVER_S = 10.0
"""How long after the time of its next cycle the service that follows is waited for."""

_QUESTIONS = 8
"""Of how many questions to the controller the mean decides how often it is asked."""

ADOPT_S = 5.0
"""How often is looked for runs that people made without the service."""

RECORD_S = 2.0
"""How often is looked for runs whose record is due, and for those that are to be examined."""

WAITS_LONG = timedelta(seconds=5)
"""After this time the plan of a run that waits to be submitted is kept outside the database, too."""

IDLE_S = 5.0
"""Longest sleep of the dispatch loop: what another process put into the store is seen after this time at the latest."""


SWITCH_S = 0.0005
"""How long a thread of this process may compute while another one waits for its turn."""


def open_store(settings: Settings, *, create: bool = False) -> Store:
    """Open the site's database; `create` brings its schema up to date first."""
    return Store.open(settings.database, create=create)


def open_gateway(settings: Settings) -> Gateway:
    """Make the site's route to SLURM; with ``auto`` say which and why."""
    choice = choose(settings)
    log.info("gateway: %s, because %s", choice.gateway.name, choice.reason)
    return choice.gateway


def open_doors(settings: Settings) -> tuple[Door, ...]:
    """Make the doors that the site file names.

    Raises
    ------
    InvalidSettings
        When it names none.
    """
    doors: list[Door] = []
    if settings.spool is not None:
        doors.append(SpoolDoor(settings.spool))
    if settings.stomp is not None:
        doors.append(StompDoor(settings.stomp))
    if not doors:
        raise InvalidSettings(
            f"{settings.source}: no door for messages", remedy="add a table [stomp] or [spool] to the site file"
        )
    return tuple(doors)


def steady_clock() -> Callable[[], datetime]:
    """Return a clock that starts at the present time and then only goes on, whatever is done to the machine's."""
    began, began_at_s = utc_now(), time.monotonic()
    return lambda: began + timedelta(seconds=time.monotonic() - began_at_s)


@dataclass(kw_only=True)
class Loop:
    """One thread that takes a step whenever it is woken, and at least every `interval_s`."""

    name: str
    step: Callable[[], None]
    interval_s: float
    longest_pause_s: float = 30.0
    """Between steps that meet obstacles."""
    _wake: threading.Event = field(default_factory=threading.Event)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Take a step now."""
        self._wake.set()

    def stop(self, timeout_s: float) -> None:
        """Take no more steps; wait for the present one."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        delays = None
        said = ""
        while not self._stopping.is_set():
            try:
                self.step()
            except Exception as error:  # noqa: BLE001 - logged with its traceback; nothing but stop ends the loop
                said = self._say(error, said)
                delays = delays or backoff(initial_s=0.5, longest_s=self.longest_pause_s)
                pause_s = next(delays)
            else:
                if said:
                    log.info("%s: going on after an obstacle", self.name)
                delays, said = None, ""
                pause_s = self.interval_s
            self._wake.wait(pause_s)
            # Cleared before the next step looks around, and before the loop asks whether to stop: no wake is lost.
            self._wake.clear()

    def _say(self, error: Exception, said: str) -> str:
        """Log what stands in the way unless it was the last thing said; return its text."""
        foreseen = isinstance(error, OrchestratorError)
        text = error.full_text if isinstance(error, OrchestratorError) else f"fault: {error!r}; going on"
        if text != said:
            log.log(logging.WARNING if foreseen else logging.ERROR, "%s: %s", self.name, text, exc_info=not foreseen)
        return text


@dataclass(kw_only=True)
class Service:
    """The whole, running. A context manager: started on entry, stopped in order on exit."""

    settings: Settings
    store: Store
    gateway: Gateway
    doors: tuple[Door, ...]

    def __post_init__(self) -> None:
        gateway = self.settings.gateway
        self.dispatcher = Dispatcher(store=self.store, gateway=self.gateway, settings=self.settings)
        self.follower = self._new_follower()
        self._follows = not self.store.shared
        self._cycle_cost_s = 0.0
        self._rests_s = deque([0.0] * _QUESTIONS, maxlen=_QUESTIONS)
        self._presence = Loop(name="presence", step=self.store.become_service, interval_s=PRESENCE_S / 4)
        # Its steps themselves see to it that SLURM isn't asked too often.
        self._dispatch = Loop(name="dispatch", step=self._dispatch_step, interval_s=IDLE_S, longest_pause_s=IDLE_S)
        self._follow = Loop(name="follow", step=self._follow_step, interval_s=gateway.poll_interval_s)
        self.adopter = Adopter(store=self.store, gateway=self.gateway, settings=self.settings)
        self._adopt = Loop(name="adopt", step=self._adopt_step, interval_s=ADOPT_S)
        self._comparison = Comparison(adopter=self.adopter)
        every_s = self.settings.reruns.compare_interval_s
        self._compare = Loop(name="compare", step=self._compare_step, interval_s=every_s, longest_pause_s=every_s)
        self._kept_waiting: set[str] = set()
        self._record = Loop(name="record", step=self._record_step, interval_s=RECORD_S)
        self._examine = Loop(name="examine", step=self._examine_step, interval_s=RECORD_S)
        self._ispyb: Loop | None = None
        if self.settings.ispyb is not None:
            self.mirror = Mirror(self.store, self.settings)
            self._ispyb = Loop(name="ispyb", step=self._ispyb_step, interval_s=self.settings.ispyb.poll_interval_s)

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Compose the service that a site file describes."""
        doors = open_doors(settings)
        store = open_store(settings)
        try:
            store.become_service()
        except BaseException:
            store.close()
            raise
        return cls(settings=settings, store=store, gateway=open_gateway(settings), doors=doors)

    def __enter__(self) -> Self:
        # A thread that has heard SLURM's answer waits for its turn as long as this, at each call, while others compute.
        sys.setswitchinterval(SWITCH_S)
        if self.store.shared:
            self._presence.start()
        self._dispatch.start()
        self._follow.start()
        self._adopt.start()
        self._compare.start()
        self._record.start()
        self._examine.start()
        if self._ispyb is not None:
            self._ispyb.start()
        for door in self.doors:
            door.start(self._handler())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for door in self.doors:
            door.stop()
        # The outcome of a submission under way is worth waiting for; if it takes longer, the next start finds it.
        self._dispatch.stop(self.settings.gateway.submit_deadline_s)
        self._follow.stop(10)
        if self._ispyb is not None:
            self._ispyb.stop(10)
            self.mirror.close()
        self._adopt.stop(10)
        self._compare.stop(10)
        self._record.stop(10)
        self._examine.stop(10)
        self._presence.stop(10)
        self.gateway.close()
        try:
            self.store.resign()
        except StoreUnavailable as obstacle:
            log.warning("what this service held isn't free before it runs out: %s", obstacle.full_text)
        self.store.close()

    def _new_follower(self) -> Follower:
        gateway = self.settings.gateway
        return Follower(
            store=self.store,
            gateway=self.gateway,
            vanish_after=timedelta(seconds=gateway.vanish_after_s),
            forgive_out_of_memory=gateway.forgive_out_of_memory,
            now=steady_clock(),
        )

    def _handler(self) -> Handler:
        def handle(raws: Sequence[RawMessage]) -> Sequence[Verdict]:
            verdicts = self.dispatcher.receive(raws)
            self._dispatch.wake()
            return verdicts

        return handle

    def _dispatch_step(self) -> None:
        """Decide about messages, submit, settle what is open; an obstacle to one doesn't hold up the next.

        Where something may be open, that comes before anything else is sent. Most messages are decided about when they
        come in: those that weren't make nobody wait.
        """
        if self.dispatcher.may_be_open:
            steps = (self._plan_step, self._settle_step, self._submit_step)
        else:
            steps = (self._submit_step, self._plan_step, self._settle_step)
        with ExitStack() as all_of_them:
            for step in reversed(steps):
                all_of_them.callback(step)

    def _plan_step(self) -> None:
        if self.dispatcher.plan_waiting():
            self._dispatch.wake()

    def _settle_step(self) -> None:
        self._dispatch.interval_s = min(self.settings.gateway.poll_interval_s, IDLE_S)
        if not self.dispatcher.settle():
            self._dispatch.interval_s = IDLE_S

    def _submit_step(self) -> None:
        before = self.dispatcher.jobs_made
        try:
            self.dispatcher.submit_planned()
        finally:
            if self.dispatcher.jobs_made > before:
                self._dispatch.wake()  # there may be more than one step takes, in queues without an obstacle too

    def _follow_step(self) -> None:
        settings = self.settings.gateway
        if not self._may_follow():
            self._follow.interval_s = settings.poll_interval_s
            return
        started = time.monotonic()
        self.follower.cycle()
        self._cycle_cost_s = time.monotonic() - started
        # The controller's time is everybody's: rest ten times as long as its answers take, not all of which are alike.
        self._rests_s.append(max(10 * self.follower.asked_s, self._cycle_cost_s))
        pause_s = min(max(settings.poll_interval_s, fmean(self._rests_s)), settings.poll_interval_max_s)
        self._follow.interval_s = pause_s
        self._may_follow()  # until the next cycle

    def _ispyb_step(self) -> None:
        if self.mirror.step() and self._ispyb is not None:
            self._ispyb.wake()

    def _adopt_step(self) -> None:
        try:
            self.adopter.prepare()
            adopted = self.adopter.adopt_all()
        except OSError as error:
            raise RunDirectoryUnavailable(
                f"{error.filename or self.settings.reruns.drop}: {error.strerror}",
                remedy="correct its rights, or [reruns] drop in the site file; runs made with sbatch come home later",
            ) from error
        if adopted:
            self._follow.wake()

    def _compare_step(self) -> None:
        every_s = self.settings.reruns.compare_interval_s
        if self.store.shared and not self.store.hold_lease(LEASE, for_s=self._compare.interval_s + TAKE_OVER_S):
            return
        started = time.monotonic()
        try:
            if self._comparison.look():
                self._follow.wake()
        finally:
            self._compare.interval_s = max(every_s, 10 * (time.monotonic() - started))

    def _record_step(self) -> None:
        with ExitStack() as both:
            both.callback(write_waiting, self.store, self._kept_waiting, before=utc_now() - WAITS_LONG)
            both.callback(write_due, self.store, records_folder(self.settings))

    def _examine_step(self) -> None:
        if examine_due(self.store):
            self._record.wake()

    def _may_follow(self) -> bool:
        """Take or renew the lease of the one that follows, where there may be others."""
        if not self.store.shared:
            return True
        followed = self._follows
        patience_s = self._follow.interval_s + 2 * self._cycle_cost_s + TAKE_OVER_S
        self._follows = self.store.hold_lease(FOLLOWING, for_s=patience_s)
        if self._follows and not followed:
            self.follower = self._new_follower()  # what the last one remembers may be of long ago
            log.info("following jobs from now on")
        elif followed and not self._follows:
            log.warning("another service follows jobs from now on: this one was silent for too long")
        return self._follows
