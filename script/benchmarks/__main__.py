"""``script/bench``: what to measure, and how often."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import dispatch
import following
import kernel_report
import kernel_rounds
import store
from bench_site import ROUTES, private_stack
from peers_environment import PEERS

from orchestrator.errors import OrchestratorError


def arguments(words: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="script/bench", description="Measures this program beside its alternatives.")
    kinds = parser.add_subparsers(dest="kind", required=True)
    command = kinds.add_parser("dispatch", help="from a message to an accepted job, and following active jobs")
    _add_dispatch_options(command)
    command = kinds.add_parser("kernels", help="from files to results, beside decoding alone, pyFAI and azint")
    _add_kernel_options(command)
    store.add_options(kinds.add_parser("store", help="what commands and pages ask, with a million runs"))
    for command in kinds.choices.values():
        command.add_argument("--json", type=Path, metavar="FILE", help="write every single figure there")
    return parser.parse_args(words)


def _add_dispatch_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--jobs", type=int, default=300, metavar="N", help="jobs per contender and round (%(default)s)"
    )
    command.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds; medians are told (%(default)s)")
    command.add_argument(
        "--idle", type=int, default=60, metavar="N", help="single messages for the latency (%(default)s)"
    )
    command.add_argument(
        "--follow", type=int, default=10_000, metavar="N", help="active jobs to follow (%(default)s; 0: none)"
    )
    command.add_argument("--routes", nargs="+", choices=ROUTES, default=ROUTES, help="gateways to measure (all)")
    command.add_argument("--without-peers", action="store_true", help=f"leave out {', '.join(PEERS)}")
    command.add_argument("--pyslurm-python", type=Path, metavar="FILE", help="an interpreter that has pyslurm")
    command.add_argument("--database", metavar="URL", help="measure the path on this database instead of SQLite")


def _add_kernel_options(command: argparse.ArgumentParser) -> None:
    whole, quick = kernel_rounds.WHOLE, kernel_rounds.QUICK
    command.add_argument("--rounds", type=int, metavar="N", help=f"rounds; medians are told ({whole.rounds})")
    command.add_argument("--frames", type=int, metavar="N", help=f"frames of a file ({whole.frames})")
    command.add_argument(
        "--quick",
        action="store_true",
        help=f"only a look: small frames, {quick.frames} of them, {quick.rounds} round; its figures mean nothing",
    )
    command.add_argument(
        "--only",
        nargs="+",
        default=(),
        metavar="CONTENDER",
        help="those whose name has one of these in it; also: live, memory, '64 nodes'",
    )
    command.add_argument("--without-peers", action="store_true", help="leave out pyFAI and azint")
    command.add_argument("--azint-python", type=Path, metavar="FILE", help="an interpreter that has azint")
    command.add_argument(
        "--folder", type=Path, metavar="FOLDER", help="keep the files of frames there, for the next run (nowhere)"
    )


def main() -> int:
    """Measure and print; 0 when every target is met, 1 when one isn't, 2 when nothing could be measured."""
    options = arguments(sys.argv[1:])
    logging.getLogger("orchestrator").setLevel(logging.ERROR)  # that cancelled runs are cancelled is no news here
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was made is removed then, too
    measure, report = KINDS[options.kind]
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        try:
            figures = measure(options, Path(folder))
        except OrchestratorError as error:
            sys.stderr.write(f"bench: error: {error.full_text}\n")
            return 2
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return report(figures)


def _dispatch(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    with private_stack(folder) as stack:
        figures = dispatch.measure(options, folder, stack)
        if options.follow:
            figures["following"] = following.measure(options, folder, stack)
    return figures


KINDS = {
    "dispatch": (_dispatch, dispatch.report),
    "kernels": (kernel_rounds.measure, kernel_report.report),
    "store": (store.measure, store.report),
}


if __name__ == "__main__":
    sys.exit(main())
