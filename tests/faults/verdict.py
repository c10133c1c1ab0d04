"""What must hold after a round of faults, judged from four accounts that don't know of each other.

In: what was sent, what the database says, what the jobs themselves did (a line appended to a file past the fence), what
SLURM's accounting says. Out: every violation, in words. Nothing here does input or output.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Sent:
    """A message that the broker has taken, and how its job is to end."""

    uid: str
    exit_code: int


@dataclass(frozen=True, kw_only=True)
class Record:
    """What the database says of a run."""

    uid: str
    run_id: str
    state: str
    reason: str
    attempts: int
    attempt: int | None
    """The newest attempt's number; None where there is none."""
    job_id: int | None
    job_state: str | None
    exit_code: int | None
    adopted: bool
    evidence: str | None = None
    """Who told the program of the job's end."""

    @property
    def tag(self) -> str:
        """Name of the attempt's job."""
        return f"run-{self.run_id}.{self.attempt}"


@dataclass(frozen=True, kw_only=True)
class Effect:
    """A line that a job wrote past the fence."""

    uid: str
    run_id: str
    attempt: int
    job_id: int


@dataclass(frozen=True, kw_only=True)
class Accounted:
    """A job as accounting has it."""

    job_id: int
    tag: str
    """Its name, or its comment where accounting calls it *allocation*."""
    state: str
    """SLURM's first word, e.g. ``COMPLETED``."""
    exit_code: int


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The violations, in words, and what happened without being one."""

    lost: tuple[str, ...] = ()
    doubled: tuple[str, ...] = ()
    disagreements: tuple[str, ...] = ()
    dispatches: int = 0
    """Jobs that passed the fence."""
    fenced: int = 0
    """Jobs that were made for an attempt that another job has, and did nothing."""
    adopted: int = 0
    forgotten: int = 0
    """Jobs of which accounting never heard, because the controller that knew them was killed; their own word counts."""
    overruled: int = 0
    """Jobs of which accounting believes that SLURM ended them, by their time limit, say, because the controller forgot
    their end when it was killed. They ended by themselves as they were to, and their records say so."""

    @property
    def violations(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.lost, *self.doubled, *self.disagreements)


@dataclass(kw_only=True)
class _Findings:
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    disagreements: list[str] = field(default_factory=list)


# What SLURM says of a job that ended by itself, and the program's word for it.
_WORDS = {"COMPLETED": "completed", "FAILED": "failed"}
_BY_SLURM = frozenset({"TIMEOUT", "NODE_FAIL", "CANCELLED"})
_RUN_STATES = {0: "complete", 4: "partial"}
"""How the run ends for an exit code of its job whose kernel said that it has finished; any other code fails it."""


def judge(
    sent: Sequence[Sent],
    messages: Counter[str],
    records: Iterable[Record],
    effects: Sequence[Effect],
    accounted: Sequence[Accounted],
) -> Verdict:
    """Compare the four accounts.

    Parameters
    ----------
    messages
        How many rows the database has for each collection's uid.
    """
    of_uid: dict[str, list[Record]] = {}
    for record in records:
        of_uid.setdefault(record.uid, []).append(record)
    findings = _Findings()
    chosen: list[Record] = []
    for item in sent:
        mine = [effect for effect in effects if effect.uid == item.uid]
        _judge_message(item, messages[item.uid], of_uid.get(item.uid, []), mine, findings)
        for record in of_uid.get(item.uid, [])[:1]:
            chosen.append(record)
            _judge_record(item, record, mine, accounted, findings)
    tags = {record.tag for record in chosen}
    done = {(effect.run_id, effect.job_id) for effect in effects}
    known = {(f"run-{run_id}", job_id) for run_id, job_id in done}
    return Verdict(
        lost=tuple(findings.lost),
        doubled=tuple(findings.doubled),
        disagreements=tuple(findings.disagreements),
        dispatches=len({effect for effect in effects if effect.uid in {item.uid for item in sent}}),
        fenced=sum(job.tag in tags and (job.tag.rpartition(".")[0], job.job_id) not in known for job in accounted),
        adopted=sum(record.adopted for record in chosen),
        forgotten=sum(_is_forgotten(record, accounted) for record in chosen),
        overruled=sum(_is_overruled(record, accounted) for record in chosen),
    )


def _judge_message(
    item: Sent, rows: int, records: Sequence[Record], effects: Sequence[Effect], findings: _Findings
) -> None:
    if rows == 0:
        findings.lost.append(f"{item.uid}: the message was taken by the broker and isn't in the database")
    if rows > 1:
        findings.doubled.append(f"{item.uid}: {rows} rows in the table of messages")
    if not records:
        findings.lost.append(f"{item.uid}: no run")
    if len(records) > 1:
        findings.doubled.append(f"{item.uid}: {len(records)} runs")
    if not effects:
        said = "; ".join(f"run {record.state}: {record.reason}" for record in records)
        findings.lost.append(f"{item.uid}: no job passed the fence ({said})")
    if len(effects) > 1:
        jobs = ", ".join(str(effect.job_id) for effect in effects)
        findings.doubled.append(f"{item.uid}: {len(effects)} jobs passed the fence: {jobs}")


def _judge_record(
    item: Sent, record: Record, effects: Sequence[Effect], accounted: Sequence[Accounted], findings: _Findings
) -> None:
    def disagree(text: str) -> None:
        findings.disagreements.append(f"{item.uid} ({record.tag}): {text}")

    wanted = _RUN_STATES.get(item.exit_code, "failed")
    if record.state != wanted:
        disagree(f"the run is {record.state}, not {wanted}: {record.reason}")
    if record.exit_code != item.exit_code:
        disagree(f"exit code {record.exit_code} in the record; the job was to end with {item.exit_code}")
    if record.attempts != record.attempt:
        disagree(f"the run counts {record.attempts} attempts, the newest is {record.attempt}")
    for effect in effects[:1]:
        if (effect.run_id, effect.attempt, effect.job_id) != (record.run_id, record.attempt, record.job_id):
            disagree(f"the record has job {record.job_id}; {effect} did the work")
    for text in _differences(record, accounted):
        disagree(text)


def _differences(record: Record, accounted: Sequence[Accounted]) -> list[str]:
    jobs = [job for job in accounted if job.tag == record.tag and job.job_id == record.job_id]
    if not jobs and _is_forgotten(record, accounted):
        return []
    if _is_overruled(record, accounted):
        return []
    if not jobs:
        return [f"accounting has no job {record.job_id} of this name"]
    return [
        f"job {job.job_id} is {record.job_state}, exit code {record.exit_code} in the record; "
        f"accounting says {job.state}, {job.exit_code}"
        for job in jobs[-1:]  # the others are earlier starts of a requeued job
        if (job.exit_code, _WORDS.get(job.state)) != (record.exit_code, record.job_state)
    ]


def _is_overruled(record: Record, accounted: Sequence[Accounted]) -> bool:
    """Whether accounting says that SLURM ended a job that ended by itself; with what, `_judge_record` looks at."""
    jobs = [job for job in accounted if job.tag == record.tag and job.job_id == record.job_id]
    return bool(jobs) and jobs[-1].state in _BY_SLURM and record.job_state in _WORDS.values()


def _is_forgotten(record: Record, accounted: Sequence[Accounted]) -> bool:
    return record.evidence == "job record" and all(job.tag != record.tag for job in accounted)
