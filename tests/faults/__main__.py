"""``script/faults``: the long form of the proof that each message makes one effective job, whatever fails."""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from tests.faults.campaign import Campaign, summary, table
from tests.faults.ground import Ground
from tests.faults.kinds import all_kinds


def main() -> int:
    """Run the campaign; 1 when anything was violated, or nothing happened."""
    options = _options()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(2**32)
    directory = options.directory or Path(tempfile.mkdtemp(prefix="faults-"))

    def say(text: str) -> None:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is ended in either case
    say(f"seed {seed}, at least {options.trials} dispatches, everything in {directory}")
    with Ground(directory, seed=seed, route=options.gateway, pyslurm_python=options.pyslurm_python) as ground:
        campaign = Campaign(ground, seed=seed, batch=options.batch, say=say)
        try:
            campaign.run(options.kinds, dispatches=options.trials)
            campaign.judge_all_again()
        except KeyboardInterrupt:
            say("interrupted: this is what was done so far")
    total = campaign.total()
    lines = sorted(campaign.lines.values(), key=lambda line: list(all_kinds()).index(line.kind))
    if options.json:
        result = {"seed": seed, "gateway": options.gateway, "kinds": [asdict(line) for line in lines]}
        sys.stdout.write(json.dumps(result | {"total": asdict(total)}, indent=2) + "\n")
    else:
        sys.stdout.write("\n".join((*table(lines), "", summary(lines))) + f"; seed {seed}, gateway {options.gateway}\n")
    if total.violations:
        say(f"the service's log, runs and daemons' logs are kept in {directory}")
    elif options.directory is None:
        shutil.rmtree(directory, ignore_errors=True)
    return int(bool(total.violations) or total.dispatches < options.trials)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="script/faults",
        description="Break everything around the service, and the service, while messages come in; then compare what "
        "was sent, the database, what the jobs did and SLURM's accounting. Ends with 1 when anything was lost, "
        "doubled, or disagrees.",
    )
    add = parser.add_argument
    add("--trials", type=int, default=1000, metavar="N", help="dispatches to make, at least (default: 1000)")
    add("--batch", type=int, default=25, metavar="N", help="messages in each round (default: 25)")
    add("--seed", type=int, metavar="N", help="decides everything that chance decides; drawn and printed if left out")
    add("--kinds", metavar="TEXT", help="only faults whose name contains this; several, separated by commas")
    add("--list", action="store_true", help="print the names of the faults and leave")
    add(
        "--gateway",
        choices=("cli", "rest", "pyslurm"),
        default="cli",
        help="the service's route to SLURM (default: cli)",
    )
    add("--pyslurm-python", type=Path, metavar="FILE", help="an interpreter that has pyslurm")
    add("--directory", type=Path, help="where everything goes and stays; a temporary one if left out")
    add("--json", action="store_true", help="print one JSON document instead of a table")
    options = parser.parse_args()
    if options.list:
        sys.stdout.write("\n".join((*all_kinds(), "")))
        sys.exit(0)
    parts = options.kinds.split(",") if options.kinds else [""]
    options.kinds = [name for name in all_kinds() if any(part.strip() in name for part in parts)]
    if not options.kinds:
        parser.error("--kinds: no fault has such a name; see --list")
    return options


if __name__ == "__main__":
    sys.exit(main())
