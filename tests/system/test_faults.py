"""The short form of `script/faults`: a few messages for each fault, and the service killed at each step of the path."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestrator.crashpoints import CrashPoint
from tests.faults.campaign import Campaign
from tests.faults.ground import Ground

SEED = 20260

pytestmark = [
    pytest.mark.stack(
        "munged", "slurmctld", "slurmd", "sbatch", "slurmdbd", "mariadbd", "mariadb", "activemq", "java", "openssl",
        "initdb", "faketime",
    ),
    pytest.mark.timeout(180),
]  # fmt: skip


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with Ground(tmp_path_factory.mktemp("faults"), seed=SEED) as ground:
        yield ground


@pytest.fixture(scope="module")
def numbers() -> Iterator[int]:
    """Where the numbers of rounds go on from one test to the next: the ground remembers what was sent."""
    return iter(range(0, 10_000, 100))


def assert_each_message_has_one_job(ground: Ground, first: int, kind: str, *, messages: int) -> None:
    said: list[str] = []
    campaign = Campaign(ground, seed=SEED + first, batch=messages, say=said.append, first=first)
    verdict = campaign.round(kind)
    if verdict is None:
        pytest.skip(f"NOT TESTED: {campaign.lines[kind].impossible}")
    assert not verdict.violations, "\n".join(said)
    assert campaign.lines[kind].happened, f"the fault never happened\n{said}"
    assert verdict.dispatches == messages


@pytest.mark.parametrize(
    "kind",
    [
        "slurm: reply dropped",
        "slurm: reply delayed",
        "slurm: request cut",
        "slurm: connection refused",
        "broker killed",
        "messages repeated",
        "database: answer to COMMIT dropped",
        "database killed",
        "runs' disk full",
        "clock 10 min forward",
    ],
)
def test_whatever_breaks_each_message_has_one_effective_job(ground: Ground, numbers: Iterator[int], kind: str) -> None:
    assert_each_message_has_one_job(ground, next(numbers), kind, messages=6)


@pytest.mark.parametrize("point", list(CrashPoint))
def test_wherever_the_service_is_killed_each_message_has_one_effective_job(
    ground: Ground, numbers: Iterator[int], point: CrashPoint
) -> None:
    assert_each_message_has_one_job(ground, next(numbers), f"service killed: {point}", messages=4)
