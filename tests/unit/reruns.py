"""Runs of a script that only echoes, made again with bash as a job would, for tests of reruns."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from orchestrator.adopting import Adopter
from orchestrator.injob import JobHere
from orchestrator.provenance import RunDetail
from orchestrator.records import JobPlan
from orchestrator.rerunning import Request, leave_word, make_again, read_plan
from orchestrator.runs import RunDirectory
from orchestrator.settings import Settings
from orchestrator.stack.programs import find_program
from tests.unit.trip import Trip

ECHO = """#!/bin/bash
{% include "_sbatch.j2" %}
{% include "_begin.j2" %}
echo the first template, in "$PWD"
cat {{ paths.parameters }}
cp {{ paths.parameters }} {{ paths.result }}
echo '{"state": "finished", "expected": 3, "written": 3, "processed": 3, "failed": 0}' > {{ paths.progress }}
"""
IN_A_JOB = {"SLURM_JOB_ID": "77", "SLURM_CLUSTER_NAME": "memory"}
"""What a job of SLURM sees."""
PROGRAMS = ("bash", "cat", "cp")
"""All that jobs may call here: none of SLURM's, which would look for a controller for minutes."""


@dataclass
class Reruns:
    """A site, a run of it, and what is made of that."""

    folder: Path
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Tables of the recipe besides the usual ones."""
    python: Path = Path(sys.executable)
    jobs: int = 0

    def __post_init__(self) -> None:
        self.templates = Path(shutil.copytree(Path(__file__).parents[2] / "jobtemplates", self.folder / "templates"))
        (self.templates / "echo.sbatch.j2").write_text(ECHO)
        self.home = self.folder / "home"
        self.home.mkdir()
        self.programs = self.folder / "bin"
        self.programs.mkdir()
        for name in PROGRAMS:
            (self.programs / name).symlink_to(find_program(name))
        self.trip = Trip(self.folder)
        document = self.trip.settings.model_dump(by_alias=True, exclude_unset=True)
        recipe = document["recipes"]["azimuthal"]
        recipe |= {"template": "echo.sbatch.j2", "parameters": {"bins": 500, "unit": "q_A^-1"}, **self.recipe}
        document |= {"templates": str(self.templates), "python": str(self.python)}
        self.trip.settings = Settings.model_validate(document | {"source": self.trip.settings.source})
        self.trip.dispatcher = replace(self.trip.new_dispatcher(), settings=self.trip.settings)
        self.adopter = Adopter(store=self.trip.store, gateway=self.trip.gateway, settings=self.trip.settings)
        self.drop = self.trip.settings.reruns.drop
        self.adopter.prepare()

    def parent(self, uid: str = "c1") -> RunDetail:
        """Take a run as far as SLURM."""
        self.trip.submitted(uid)
        return self.trip.run(uid)

    def edited(self, parent: RunDetail, *edits: tuple[str, str]) -> Path:
        """Copy a run's script with lines changed, each given by its beginning."""
        return self.copied(RunDirectory(parent.summary.run_directory).rerun, *edits)

    def copied(self, script: Path, *edits: tuple[str, str]) -> Path:
        """Copy a script with lines changed."""
        lines = script.read_text().split("\n")
        for beginning, line in edits:
            (number,) = (number for number, text in enumerate(lines) if text.startswith(beginning))
            lines[number] = line
        copy = self.folder / "mine.sbatch"
        copy.write_text("\n".join(lines))
        return copy

    def word(self, parent: RunDetail, parameters: str = "bins = 2000", **changes: Any) -> tuple[JobPlan, Path]:
        """Have a job make a run and leave word, within this process; return its plan and the word."""
        self.jobs += 1
        job = JobHere(cluster="elsewhere", job_id=str(1000 + self.jobs), restarts=0)
        plan, request = self.made_by(job, parent, parameters, **changes)
        leave_word(plan, job, request)
        return plan, request.drop / f"{plan.run_id}.json"

    def made_by(
        self, job: JobHere, parent: RunDetail, parameters: str = "bins = 2000", **changes: Any
    ) -> tuple[JobPlan, Request]:
        """Have a job make a run, within this process, and leave no word; return its plan and what was asked for."""
        run = RunDirectory(parent.summary.run_directory)
        script = self.folder / "mine.sbatch"
        script.write_text(run.rerun.read_text().replace("bins = 500", parameters))
        collection, reruns = parent.plan.collection, self.trip.settings.reruns
        plain = Request(
            parent=run.path, script=script, input=collection.file, dataset=collection.dataset, because="",
            template=None, root=reruns.root, drop=reruns.drop,
        )  # fmt: skip
        request = replace(plain, **changes)
        return make_again(request, parameters, job), request

    def handed_over(
        self, script: Path, *, user: int | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a script as its job would."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        return subprocess.run(
            ["bash", script],
            env=inherited | {"HOME": str(self.home), "PATH": str(self.programs)} | environment,
            capture_output=True,
            text=True,
            check=False,
            cwd=self.home,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
            timeout=60,
        )

    def made(self, script: Path, *, user: int | None = None, **environment: str) -> RunDirectory:
        """Run a script that has to succeed; return the new run's directory."""
        done = self.handed_over(script, user=user, **environment)
        assert done.returncode == 0, done.stderr
        (path,) = re.findall(r"^The new run is in (.+); what its job prints", done.stdout, re.MULTILINE)
        return RunDirectory(Path(path))


def plan_of(run: RunDirectory) -> JobPlan:
    return read_plan(run)
