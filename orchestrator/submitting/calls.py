"""The calls of one batch to a gateway, and what each met."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from orchestrator.crashpoints import CrashPoint, reached
from orchestrator.errors import GatewayError, GatewayUnavailable, StoreUnavailable, SubmitRefused
from orchestrator.provenance import NotSubmitted, Outcome, Submitted, Unanswered
from orchestrator.records import RunTag, Submission, SubmittedJob
from orchestrator.settings import GatewaySettings
from orchestrator.slurm.gateway import Gateway
from orchestrator.submitting.state import Memory, Ready, Round, queue_of, reason_of

log = logging.getLogger(__name__)

OUTCOMES_HELD_S = 0.25
"""How long an outcome may wait for others to be committed with."""

_NEXT = "waiting: another submission's outcome has to be known first"
_LATE = "waiting: the submissions before it took long"


@dataclass(kw_only=True)
class Calls:
    """The calls of one batch, one after another, and their outcomes on the way into the store."""

    gateway: Gateway
    patience: GatewaySettings
    record: Callable[[Sequence[Outcome]], None]
    """Commits outcomes."""
    memory: Memory
    clock: Callable[[], float]
    this: Round
    left: deque[tuple[Ready, OSError | None]]
    """What hasn't been sent, each with what stood in the way of its directory."""
    at: datetime
    """Of the batch's intents."""
    since_s: float
    """When they were about to be committed, by the clock."""
    _sent: deque[Ready] = field(default_factory=deque)
    """What the gateway has, and no answer yet."""
    _unsent: list[Ready] = field(default_factory=list)
    """What the gateway took and gave back."""
    _outcomes: list[Outcome] = field(default_factory=list)
    _oldest_s: float = 0.0
    _begun_s: float = 0.0
    _called: bool = False
    _stopped: bool = False

    @property
    def on_trial(self) -> bool:
        """Whether these calls show if more may be sent."""
        return any(self.memory.pressure.on_trial(queue_of(item.planned)) for item, _ in self.left)

    def make(self) -> None:
        """Submit what may be submitted, in order, and give the rest back."""
        try:
            while self.left:
                self._make_some()
        except StoreUnavailable:
            # What was sent stands in the memory or is found by its tag; of the rest the store hears when it is back.
            self.memory.unrecorded += [*self._outcomes, *self._given_back_all()]
            raise
        except Exception:
            self.give_back()
            raise
        self._commit()

    def _make_some(self) -> None:
        """Make calls until one isn't accepted: then it has to be thought about anew what may be sent."""
        answers = self.gateway.submit_each(self._to_send())
        self._begun_s = self.clock()
        try:
            for answer in answers:
                self._take(answer)
                if self._outcomes and self.clock() - self._oldest_s >= OUTCOMES_HELD_S:
                    self._commit()
        except StoreUnavailable:
            self._stopped = True
            for answer in answers:  # to what is under way
                self._take(answer)
            raise
        finally:
            self.left.extendleft((item, None) for item in reversed(self._unsent))
            self._unsent.clear()

    def _to_send(self) -> Iterator[Submission]:
        """Give what may be sent, each when the gateway takes it; what may not has its outcome."""
        while self.left and not self._stopped:
            item, obstacle = self.left.popleft()
            if obstacle is not None:
                self._keep(item.tag, self._without_directory(item, obstacle))
            elif reason := self._reason_to_wait(item):
                self._keep(item.tag, self._given_back(item.tag, reason))
            else:
                self._called = True
                self._sent.append(item)
                yield item.submission

    def give_back(self) -> None:
        """Make none of the calls that are left."""
        self._outcomes += self._given_back_all()
        self._commit()

    def _given_back_all(self) -> list[NotSubmitted]:
        left, self.left = self.left, deque()
        return [self._given_back(item.tag, _NEXT) for item, _ in left]

    def _without_directory(self, item: Ready, obstacle: OSError) -> Outcome:
        text = f"{obstacle.filename or item.submission.working_directory}: {obstacle.strerror}"
        self.this.directories.append(text)
        return NotSubmitted(tag=item.tag, reason=f"waiting: its directory can't be written: {text}", intent_at=self.at)

    def _reason_to_wait(self, item: Ready) -> str:
        if self.this.unanswered:
            return _NEXT
        if error := self.memory.pressure.obstacle(queue_of(item.planned), self.clock()):
            return reason_of(error)
        # Another service that looks for it must not take it for absent while it is still here. The first one has more
        # time: where everything is slow, something has to be sent all the same.
        patience = self.patience
        longest_s = patience.absence_grace_s / 2 if self._called else patience.submit_deadline_s
        if self.clock() - self.since_s > longest_s:
            return _LATE
        return ""

    def _take(self, answer: SubmittedJob | GatewayError | None) -> None:
        """Learn from an answer, to the oldest call without one."""
        item = self._sent.popleft()
        if answer is None:
            self._unsent.append(item)
        elif isinstance(answer, SubmittedJob):
            self._keep(item.tag, self._accepted(item, answer))
        else:
            self._keep(item.tag, self._not_accepted(item, answer))
        self._begun_s = self.clock()

    def _accepted(self, item: Ready, job: SubmittedJob) -> Outcome:
        reached(CrashPoint.JOB_ACCEPTED)
        self.memory.pressure.accepted(queue_of(item.planned), run_id=item.tag.run_id)
        self.memory.call_s += (self.clock() - self._begun_s - self.memory.call_s) / 4
        self.this.made += 1
        self.memory.made += 1
        log.info("run %s is job %s", item.tag.run_id, job.identity)
        return Submitted(tag=item.tag, job=job)

    def _not_accepted(self, item: Ready, error: GatewayError) -> Outcome:
        tag, said = item.tag, error.full_text
        if isinstance(error, SubmitRefused):
            log.error("run %s refused by %s: %s", tag.run_id, self.gateway.name, said)
            self.memory.pressure.forget(tag.run_id)
            return NotSubmitted(tag=tag, reason=said, refused=True, intent_at=self.at)
        if isinstance(error, GatewayUnavailable):
            queue = queue_of(item.planned)
            # A job array may have more tasks than the limit of an account, and then it never fits.
            array = item.planned.plan.array is not None and not error.everywhere
            alone = tag.run_id if error.doubtful or array else None
            self.memory.pressure.refused(queue, error, self.clock(), alone=alone)
            self.this.closed[queue] = error
            return NotSubmitted(tag=tag, reason=said, intent_at=self.at)
        # `OutcomeUnknown`, or what no route is to say: either way nobody knows whether there is a job.
        log.warning("run %s: %s; looking for its job before anything else", tag.run_id, said)
        self.this.unanswered = True
        return Unanswered(tag=tag, reason=said, intent_at=self.at)

    def _given_back(self, tag: RunTag, reason: str) -> NotSubmitted:
        return NotSubmitted(tag=tag, reason=reason, given_back=True, intent_at=self.at)

    def _keep(self, tag: RunTag, outcome: Outcome) -> None:
        """Have an outcome wait for others to be committed with."""
        if not isinstance(outcome, Unanswered):
            self.memory.first_seen_s.pop((tag, self.at), None)
        if not self._outcomes:
            self._oldest_s = self.clock()
        self._outcomes.append(outcome)

    def _commit(self) -> None:
        outcomes, self._outcomes = self._outcomes, []
        if outcomes:
            self.record(outcomes)
