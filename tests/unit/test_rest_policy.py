"""Which of SLURM's limits refused a job, from what slurmrestd tells of them."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from orchestrator.errors import GatewayUnavailable, SubmitRefused
from orchestrator.records import Json
from orchestrator.slurm import rest_policy
from orchestrator.slurm.rest_policy import Limits
from orchestrator.slurm.script_options import read_options

SAID = "Job violates accounting/QOS policy"


def number(value: int | None) -> Json:
    """Return a number as slurmrestd writes it from 0.0.39 on."""
    return {"set": value is not None, "infinite": False, "number": value or 0}


def qos(*flags: str, per_user: Json = None, wall: Json = None, cpus: Json = None, **counts: Json) -> dict[str, Json]:
    per_job: list[Json] = [] if cpus is None else [{"type": "cpu", "name": "", "id": 1, "count": cpus}]
    return {
        "flags": list(flags),
        "limits": {"max": {
            "jobs": {"per": {"account": None, "user": per_user}, **counts},
            "wall_clock": {"per": {"job": wall}},
            "tres": {"per": {"job": per_job}},
        }},
    }  # fmt: skip


def association(user: str = "beamline", *, most: Json = None, group: Json = None) -> dict[str, Json]:
    return {"user": user, "account": "beam", "max": {"jobs": {"total": most, "per": {"submitted": group}}}}


def meaning(
    *records: Mapping[str, Json], most: Json = None, group: Json = None, known_jobs: int = 3, script: str = ""
) -> Exception:
    qualities: list[Json] = [dict(record) for record in records]
    limits = Limits(qos={"qos": qualities}, associations={"associations": [association(most=most, group=group)]})
    options = read_options(f"#!/bin/bash\n{script}\n")
    return rest_policy.meaning(SAID, limits, user="beamline", known_jobs=known_jobs, options=options)


NO_GROUP: dict[str, Json] = {"count": number(None)}


def test_where_no_qos_denies_sizes_it_was_the_number_of_jobs() -> None:
    error = meaning(qos("NO_RESERVE"), qos(), script="#SBATCH --time=1000")
    assert isinstance(error, GatewayUnavailable)
    assert not error.doubtful


@pytest.mark.parametrize("count", [3, number(3)])
def test_a_personal_limit_that_is_reached_is_no_refusal_for_good(count: Json) -> None:
    for error in (
        meaning(qos("DENY_LIMIT", **NO_GROUP), most=count),
        meaning(qos("DENY_LIMIT", per_user=count, **NO_GROUP)),
    ):
        assert isinstance(error, GatewayUnavailable)
        assert error.doubtful


def test_personal_limits_that_are_not_reached_leave_the_size() -> None:
    assert isinstance(meaning(qos("DENY_LIMIT", **NO_GROUP), most=number(4)), SubmitRefused)
    array = meaning(qos("DENY_LIMIT", **NO_GROUP), most=number(4), script="#SBATCH --array=0-1")
    assert isinstance(array, GatewayUnavailable)


@pytest.mark.parametrize(
    ("quality", "group"),
    [
        (qos("DENY_LIMIT", **NO_GROUP), number(100)),
        (qos("DENY_LIMIT", count=number(100)), None),
        # Before 0.0.42 slurmrestd doesn't tell this limit.
        (qos("DENY_LIMIT"), None),
    ],
)
def test_limits_that_other_users_jobs_count_for_leave_it_open(quality: dict[str, Json], group: Json) -> None:
    error = meaning(quality, group=group)
    assert isinstance(error, GatewayUnavailable)
    assert error.doubtful
    assert "can't be told" in str(error)


def test_more_than_any_qos_allows_is_refused_with_the_option() -> None:
    short = qos("DENY_LIMIT", wall=number(10))
    for script, option in (("#SBATCH --time=20", "--time"), ("#SBATCH --time=10:01", "--time")):
        error = meaning(short, script=script)
        assert isinstance(error, SubmitRefused)
        assert option in str(error)
    processors = meaning(qos("DENY_LIMIT", cpus=3), script="#SBATCH --ntasks=2\n#SBATCH --cpus-per-task=2")
    assert isinstance(processors, SubmitRefused)
    assert "--ntasks" in str(processors)


@pytest.mark.parametrize("other", [qos(wall=number(100)), qos("DENY_LIMIT")])
def test_what_one_qos_allows_is_not_surely_too_much(other: dict[str, Json]) -> None:
    assert isinstance(
        meaning(qos("DENY_LIMIT", wall=number(10)), other, script="#SBATCH --time=20"), GatewayUnavailable
    )


def test_nothing_known_of_limits_leaves_it_open() -> None:
    error = meaning()
    assert isinstance(error, GatewayUnavailable)
    assert error.doubtful
