"""The route over SLURM's commands when the service dies, with a program that stands in for an sbatch that is slow."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

SLOW_SBATCH = """#!/bin/bash
touch begun
while [ -e begun ]; do sleep 0.05; done
cat > .taken && mv .taken taken
"""
SUBMITS = """
import sys
from pathlib import Path
from orchestrator.slurm.cli import CliGateway

script = "#!/bin/bash\\n" + "# a line\\n" * 40_000
CliGateway(programs=Path(sys.argv[1]))._run("sbatch", script=script, folder=Path.cwd())
"""


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} didn't appear"
        time.sleep(0.02)


def test_sbatch_that_outlives_the_service_gets_the_whole_script_never_its_beginning(tmp_path: Path) -> None:
    sbatch = tmp_path / "sbatch"
    sbatch.write_text(SLOW_SBATCH)
    sbatch.chmod(0o755)
    with subprocess.Popen([sys.executable, "-c", SUBMITS, str(tmp_path)], cwd=tmp_path) as service:
        wait_for(tmp_path / "begun")
        service.send_signal(signal.SIGKILL)
    (tmp_path / "begun").unlink()
    wait_for(tmp_path / "taken")
    assert (tmp_path / "taken").read_text().count("\n") == 40_001
