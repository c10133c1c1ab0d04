"""``orchestrator submit`` and ``orchestrator cancel``: what people ask for without a broker."""

from __future__ import annotations

import getpass
import logging
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.text import Text

from orchestrator.cli.common import ExitCode, JsonOption, SiteOption, out, print_json, print_table, says_errors
from orchestrator.cli.finishing import follow_to_the_end, submit_now
from orchestrator.cli.message_argument import MessageArgument, read_message
from orchestrator.cli.run_argument import RunArgument
from orchestrator.dispatching import Dispatcher
from orchestrator.dispatching import cancel as cancel_run
from orchestrator.errors import InvalidMessage
from orchestrator.listening.door import Rejected
from orchestrator.messages import understand
from orchestrator.provenance import RunSummary, Store
from orchestrator.records import CollectionStart, RawMessage, RunState
from orchestrator.service import open_gateway, open_store
from orchestrator.settings import load_settings


@says_errors
def submit(
    *,
    message: MessageArgument,
    site: SiteOption,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the runs to their end.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Take one message from a file, as if a broker had brought it, and submit its runs.

    The service may be running or not. The same message again changes nothing. Exit code 6 when no recipe wants the
    collection or a run is refused, or with `--wait` when one doesn't end complete.

    - see first what would happen: `orchestrator plan start.json`
    - process a finished file and wait: `orchestrator submit start.json --wait`
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    settings = load_settings(site)
    raw = read_message(message)
    with open_store(settings) as store:
        dispatcher = Dispatcher(store=store, gateway=open_gateway(settings), settings=settings)
        [verdict] = dispatcher.receive([raw])
        if isinstance(verdict, Rejected):
            raise InvalidMessage(f"{message}: {verdict.reason}", remedy="orchestrator schema shows what is expected")
        dispatcher.plan_waiting()
        understood = understand(raw)
        uid = understood.uid
        ids = [run.run_id for run in store.runs(uid=uid)]
        submit_now(dispatcher, ids)
        if wait:
            follow_to_the_end(dispatcher, ids)
        runs = store.runs(uid=uid)
        _print(store, raw, runs, duplicate=verdict.duplicate, as_json=as_json)
    good = {RunState.COMPLETE} if wait else set(RunState) - {RunState.REFUSED}
    unwanted = isinstance(understood, CollectionStart) and not runs
    if unwanted or any(run.state not in good for run in runs):
        raise typer.Exit(ExitCode.INCOMPLETE)


def _print(store: Store, raw: RawMessage, runs: Sequence[RunSummary], *, duplicate: bool, as_json: bool) -> None:
    if as_json:
        print_json({"duplicate": duplicate, "runs": runs})
        return
    if duplicate:
        out.print("This message was known already; nothing new was submitted.")
    if runs:
        rows = [(run.run_id, run.state, run.recipe, str(run.job or "-"), run.reason) for run in runs]
        print_table(("run", "state", "recipe", "job", "why"), rows)
    else:
        note = next((record.note for record in store.messages() if record.raw.sha256 == raw.sha256), "")
        out.print(Text(note or "Recorded; no run came of it."))


@says_errors
def cancel(
    run: RunArgument,
    site: SiteOption,
    as_json: JsonOption = False,
) -> None:
    """End a run that isn't wanted any more. What it has done so far is kept; one that has ended is left alone.

    - `orchestrator cancel 3f2a && orchestrator watch 3f2a` waits until SLURM has ended the job
    """
    settings = load_settings(site)
    with open_store(settings) as store:
        run_id = store.find_run(run)
        before = store.run(run_id).summary.state
        state = cancel_run(store, open_gateway(settings), run_id, by=getpass.getuser())
    if as_json:
        print_json({"run": run_id, "state": state})
    elif before.ended:
        out.print(f"run {run_id} had ended already: {state}")
    elif state is RunState.CANCELLED:
        out.print(f"run {run_id} is cancelled")
    else:
        out.print(f"run {run_id}: SLURM was told to end its job; `orchestrator show {run_id[:8]}` tells when it has")
