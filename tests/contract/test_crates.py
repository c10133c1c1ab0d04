"""Crates are what they say, by the judgement of roc-validator, without a network.

The validator wants another release of rich than this program, so it gets an environment of its own, from
``requirements/crates.txt``. The JSON-LD contexts that it would fetch are files of ``tests/schemas``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.records import JobState, Predecessor, RunState
from tests.unit.images import IDENTIFIER
from tests.unit.reduced_runs import reduced
from tests.unit.site_with_runs import SiteWithRuns

CHECKOUT = Path(__file__).parents[2]
SCHEMAS = CHECKOUT / "tests" / "schemas"
CONTEXTS = {
    "https://w3id.org/ro/crate/1.1/context": SCHEMAS / "ro-crate-1.1-context.json",
    "https://w3id.org/ro/terms/workflow-run/context": SCHEMAS / "workflow-run-context.json",
}
OTHER = "11111111-2222-3333-4444-555555555555"
FACILITY = '[facility]\nname = "A ring"\nurl = "https://ring.example"\nlicense = "https://cc.example/by"\n'
NO_ADDRESSES = {
    "process-run-crate-0.5_3.2",  # a program SHOULD have a url
    "process-run-crate-0.5_5.1",  # and be named by it
}
"""Recommendations that can't be kept: this program has no home page."""

Validate = Callable[..., set[str]]


@pytest.fixture(scope="module")
def validate(tmp_path_factory: pytest.TempPathFactory) -> Validate:
    """Return a function from a crate to the checks that it fails."""
    place = tmp_path_factory.mktemp("validator")
    python = place / "bin" / "python"
    for command in (
        ["-m", "venv", "--without-pip", str(place)],
        ["-m", "pip", "--python", str(python), "install", "-q", "--require-hashes", "-r", "requirements/crates.txt"],
    ):
        subprocess.run([sys.executable, *command], cwd=CHECKOUT, check=True)
    kept = [str(word) for pair in CONTEXTS.items() for word in pair]
    cache = place / "cache"
    # -I: what PYTHONPATH may name isn't for the validator
    subprocess.run([python, "-I", SCHEMAS / "keep_contexts.py", str(cache), *kept], check=True)

    def failed_checks(crate: Path, severity: str = "required") -> set[str]:
        report = place / "report.json"
        command = [python, "-I", place / "bin" / "rocrate-validator", "--no-interactive", "validate", "--offline"]
        options = ["-p", "process-run-crate-0.5", "-l", severity, "-f", "json", "-o", report, "--cache-path", cache]
        done = subprocess.run([*command, *options, crate], text=True, capture_output=True, check=False)
        assert report.is_file(), done.stdout + done.stderr
        issues = json.loads(report.read_text())["issues"]
        report.unlink()
        assert done.returncode == (1 if issues else 0), done.stdout + done.stderr
        return {issue["check"]["identifier"] for issue in issues}

    return failed_checks


@pytest.fixture
def site(tmp_path: Path) -> Iterator[SiteWithRuns]:
    site = SiteWithRuns(tmp_path)
    yield site
    site.store.close()


def complete(site: SiteWithRuns) -> None:
    for file in ("c-1.h5", "runs/calibration/mask.npy"):
        (site.folder / file).parent.mkdir(parents=True, exist_ok=True)
        (site.folder / file).touch()
    reduced(site)


def in_container(site: SiteWithRuns) -> None:
    tag = reduced(site)
    image = {"path": "/images/a.sif", "sif_uuid": str(IDENTIFIER), "sha256": "a" * 64}
    site.store.record_software(tag, {"container": image})


def partial_rerun(site: SiteWithRuns) -> None:
    before = (Predecessor(recipe="average", run_id=OTHER[::-1], run_directory=site.folder),)
    reduced(site, state=RunState.PARTIAL, parent_run=OTHER, after=before, requester="gda")


def failed(site: SiteWithRuns) -> None:
    tag = site.submitted()
    site.begun(tag)
    site.report(tag, JobState.FAILED, exit_code=4)
    site.ended(tag, RunState.FAILED, "input unusable")


def refused(site: SiteWithRuns) -> None:
    tag = site.planned()
    site.directory(tag).path.mkdir(parents=True)
    site.ended(tag, RunState.REFUSED, "the template is wrong")


def crate_of(site: SiteWithRuns, *options: str) -> Path:
    site.call("export", "latest", "--format", "ro-crate", "-o", str(site.folder / "out"), *options)
    return site.folder / "out" / "ro-crate"


@pytest.mark.parametrize("options", [(), ("--results-by-reference",)], ids=["copied", "by reference"])
@pytest.mark.parametrize("run", [complete, in_container, partial_rerun, failed, refused])
def test_crate_of_any_run_keeps_every_requirement(
    site: SiteWithRuns, validate: Validate, run: Callable[[SiteWithRuns], None], options: tuple[str, ...]
) -> None:
    run(site)
    assert validate(crate_of(site, *options)) == set()


def test_crate_of_a_site_that_says_who_it_is_keeps_every_recommendation_but_two(
    site: SiteWithRuns, validate: Validate
) -> None:
    site.file.write_text(site.file.read_text() + FACILITY)
    reduced(site)
    absent = {"ro-crate-1.1_25.1"}  # the inputs of this run were never there
    assert validate(crate_of(site), "recommended") - absent == NO_ADDRESSES


@pytest.mark.mpi
def test_crate_of_a_real_run_keeps_every_recommendation_but_two(site: SiteWithRuns, validate: Validate) -> None:
    site.file.write_text(site.file.read_text() + FACILITY + '[defaults]\nlauncher = "none"\n')
    scan, message = site.folder / "scan.h5", site.folder / "start.json"
    site.call("simulate", str(scan), "--number", "4", "--rate", "inf", "--shape", "60x60", "--layout", "master")
    start = {"schema": "orchestrator/collection-start/1", "uid": "s-1", "beamline": "i22", "detector": "simulated"}
    message.write_text(json.dumps(start | {"file": str(scan), "dataset": "/entry/data", "frames_expected": 4}))
    site.call("submit", str(message), "--wait")
    crate = crate_of(site)
    assert (crate / "result.nxs").is_file()
    assert validate(crate, "recommended") == NO_ADDRESSES


def test_crate_that_lacks_something_is_found_out(site: SiteWithRuns, validate: Validate) -> None:
    reduced(site)
    crate = crate_of(site)
    (crate / "message.json").unlink()
    metadata = crate / "ro-crate-metadata.json"
    metadata.write_text(metadata.read_text().replace('"instrument"', '"tool"'))
    assert len(validate(crate)) >= 3
