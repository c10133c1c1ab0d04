"""Rounds of faults on one ground: deliver, break, heal, wait until everything has settled, judge, count."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace

from tests.faults.ground import Ground, Impossible, wait_until
from tests.faults.kinds import LATE_S, Kind, Round, all_kinds
from tests.faults.verdict import Sent, Verdict, judge

SETTLE_S = 300.0
QUEUE_S = 120.0
"""How long the queue may take to be empty: a controller that was killed may hold jobs for running until their time is
up, and starts requeued ones after a while."""
EXIT_CODES = (0, 0, 0, 0, 4, 7)
"""What the jobs are to end with: in order, partly, with a fault."""
REPEATED_SHARE = 0.2
CONTROL = "none"


@dataclass(kw_only=True)
class Line:
    """One line of the table."""

    kind: str
    rounds: int = 0
    happened: int = 0
    """How often the fault really happened."""
    messages: int = 0
    dispatches: int = 0
    lost: int = 0
    doubled: int = 0
    disagreements: int = 0
    fenced: int = 0
    adopted: int = 0
    forgotten: int = 0
    overruled: int = 0
    seconds: float = 0.0
    impossible: str = ""
    violations: list[str] = field(default_factory=list)

    def add(self, verdict: Verdict, *, happened: int, messages: int, seconds: float, rounds: int = 1) -> None:
        """Count a round."""
        self.rounds += rounds
        self.happened += happened
        self.messages += messages
        self.dispatches += verdict.dispatches
        self.lost += len(verdict.lost)
        self.doubled += len(verdict.doubled)
        self.disagreements += len(verdict.disagreements)
        self.fenced += verdict.fenced
        self.adopted += verdict.adopted
        self.forgotten += verdict.forgotten
        self.overruled += verdict.overruled
        self.seconds += seconds
        self.violations += verdict.violations


class Campaign:
    """A series of rounds, all decided by one seed."""

    def __init__(
        self, ground: Ground, *, seed: int, batch: int = 25, say: Callable[[str], None], first: int = 0
    ) -> None:
        self._ground = ground
        self._chance = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
        self._batch = batch
        self._say = say
        self._number = first
        self._rounds: list[tuple[str, Sequence[Sent], str]] = []
        self.lines: dict[str, Line] = {}

    def run(self, kinds: Sequence[str], *, dispatches: int) -> None:
        """Go through the kinds, in an order that chance decides, until so many jobs have done their work."""
        if (control := self.round(CONTROL)) is None or control.violations:
            return  # what fails without a fault proves nothing with one
        possible = [kind for kind in kinds if kind != CONTROL] or [CONTROL]
        while possible and sum(line.dispatches for line in self.lines.values()) < dispatches:
            self._chance.shuffle(possible)
            for kind in tuple(possible):
                self.round(kind)
                if self.lines[kind].impossible:
                    possible.remove(kind)
                if self.total().dispatches >= dispatches and set(self.lines) >= set(possible):
                    return

    def round(self, name: str) -> Verdict | None:
        """Take one round of one kind; None where this machine can't make this fault."""
        self._number += 1
        line = self.lines.setdefault(name, Line(kind=name))
        prefix = f"c{self._number:04d}-"
        sent = [Sent(uid=f"{prefix}{n:03d}", exit_code=self._chance.choice(EXIT_CODES)) for n in range(self._batch)]
        began = time.monotonic()
        try:
            happened = self._happen(all_kinds()[name], sent, f"{prefix}%")
        except Impossible as error:
            line.impossible = str(error)
            self._say(f"{self._number:4d}  {name}: NOT POSSIBLE HERE: {error}")
            return None
        verdict = self._settle_and_judge(sent, f"{prefix}%")
        self._rounds.append((name, sent, f"{prefix}%"))
        seconds = time.monotonic() - began
        line.add(verdict, happened=happened, messages=len(sent), seconds=seconds)
        self._say(
            f"{self._number:4d}  {name}: {happened} faults, {verdict.dispatches} dispatches, {verdict.adopted} adopted,"
            f" {verdict.fenced} fenced, {len(verdict.violations)} violations, {seconds:.0f} s"
        )
        for violation in verdict.violations:
            self._say(f"      VIOLATION {violation}")
        return verdict

    def _happen(self, kind: Kind, sent: Sequence[Sent], like: str) -> int:
        deliveries = [*sent, *self._chance.sample(sent, round(REPEATED_SHARE * len(sent)))]
        self._chance.shuffle(deliveries)

        def deliver() -> None:
            for item in deliveries:
                self._ground.publish(item)

        def settled() -> bool:
            return self._ground.all_ended(like, len(sent))

        return kind(self._ground, Round(chance=self._chance, messages=len(sent), deliver=deliver, settled=settled))

    def _settle_and_judge(self, sent: Sequence[Sent], like: str) -> Verdict:
        ground = self._ground
        ground.ensure_service()
        deadline = time.monotonic() + SETTLE_S
        while not ground.all_ended(like, len(sent)) and time.monotonic() < deadline:
            if wait_until(lambda: ground.all_ended(like, len(sent)), timeout_s=5):
                break
            ground.tidy_up()
        self._empty_the_queue()
        late = ground.slurm_door.delays_until - time.monotonic()
        if late > 0:  # a request on its way may still make a job
            time.sleep(min(late, LATE_S) + 1)
            self._empty_the_queue()
        # Accounting lags by a few seconds; what is still wrong after that is wrong.
        verdict = self._judge(sent, like)
        deadline = time.monotonic() + 20
        while verdict.disagreements and time.monotonic() < deadline:
            time.sleep(1)
            verdict = self._judge(sent, like)
        return verdict

    def _empty_the_queue(self) -> None:
        deadline = time.monotonic() + QUEUE_S
        while time.monotonic() < deadline and not wait_until(lambda: self._ground.queued() == 0, timeout_s=5):
            self._ground.tidy_up()

    def _judge(self, sent: Sequence[Sent], like: str) -> Verdict:
        ground = self._ground
        return judge(sent, ground.messages(like), ground.records(like), ground.effects(), ground.accounted())

    def judge_all_again(self) -> None:
        """Judge every round once more at the end: a job that SLURM starts again may come rounds later."""
        self._empty_the_queue()
        for name, sent, like in self._rounds:
            verdict, line = self._judge(sent, like), self.lines[name]
            if new := [text for text in verdict.violations if text not in line.violations]:
                line.add(
                    replace(
                        verdict,
                        dispatches=0,
                        fenced=0,
                        adopted=0,
                        forgotten=0,
                        overruled=0,
                        lost=_of(verdict.lost, new),
                        doubled=_of(verdict.doubled, new),
                        disagreements=_of(verdict.disagreements, new),
                    ),
                    happened=0,
                    messages=0,
                    seconds=0,
                    rounds=0,
                )
                for text in new:
                    self._say(f"      VIOLATION, seen at the end: {text}")

    def total(self) -> Line:
        """Return the sum of all lines."""
        return summed(self.lines.values())


def _of(texts: Sequence[str], some: Sequence[str]) -> tuple[str, ...]:
    return tuple(text for text in texts if text in some)


def summed(lines: Iterable[Line]) -> Line:
    """Return the sum of some lines."""
    total = Line(kind="total")
    for line in lines:
        for name in ("rounds", "happened", "messages", "dispatches", "lost", "doubled", "disagreements", "fenced"):
            setattr(total, name, getattr(total, name) + getattr(line, name))
        total.adopted += line.adopted
        total.forgotten += line.forgotten
        total.overruled += line.overruled
        total.seconds += line.seconds
        total.violations += line.violations
    return total


def table(lines: Sequence[Line]) -> Iterator[str]:
    """Give the lines and their sum as a table in Markdown."""
    columns = (
        "rounds",
        "happened",
        "messages",
        "dispatches",
        "adopted",
        "fenced",
        "forgotten",
        "overruled",
        "lost",
        "doubled",
        "disagreements",
    )
    width = max(len(line.kind) for line in lines)
    yield f"| {'fault':{width}} | " + " | ".join(columns) + " |"
    yield f"| {'-' * width} | " + " | ".join("-" * (len(name) - 1) + ":" for name in columns) + " |"
    for line in (*lines, summed(lines)):
        if line.impossible:
            yield f"| {line.kind:{width}} | not possible here: {line.impossible} |"
            continue
        facts = asdict(line)
        yield f"| {line.kind:{width}} | " + " | ".join(f"{facts[name]:{len(name)}d}" for name in columns) + " |"


def summary(lines: Sequence[Line]) -> str:
    """Say in one sentence what came out."""
    total, kinds = summed(lines), sum(line.happened > 0 for line in lines)
    return (
        f"{total.dispatches} dispatches with {kinds} kinds of fault, {total.happened} faults,"
        f" {len(total.violations)} violations: {total.lost} lost, {total.doubled} doubled,"
        f" {total.disagreements} disagreements"
    )
