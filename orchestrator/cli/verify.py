"""``orchestrator verify``: a run repeated from its record, and the results compared."""

from __future__ import annotations

import getpass
from typing import Annotated

import typer
from rich.text import Text

from orchestrator.cli.common import ExitCode, JsonOption, SiteOption, err, out, print_json, says_errors
from orchestrator.cli.finishing import follow_to_the_end, submit_now
from orchestrator.cli.repeating import ours, plan_again
from orchestrator.cli.run_argument import RunArgument
from orchestrator.cli.verdict import AbsoluteOption, RelativeOption, as_document, print_differences, print_results
from orchestrator.contents import Verdict
from orchestrator.dispatching import Dispatcher
from orchestrator.errors import NotFound
from orchestrator.examining import examine
from orchestrator.provenance import RunDetail, Store
from orchestrator.record_keeping import records_folder, write_due
from orchestrator.records import Json, RunState, RunTag, utc_now
from orchestrator.service import open_gateway, open_store
from orchestrator.settings import Settings, load_settings
from orchestrator.verifying import Verification, verified


@says_errors
def verify(
    *,
    run: RunArgument,
    site: SiteOption,
    ntasks: Annotated[
        int | None, typer.Option(min=1, help="Another number of MPI ranks; the result must be the same.")
    ] = None,
    rtol: RelativeOption = 0.0,
    atol: AbsoluteOption = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Repeat a run from its record alone, and compare the results: identical, within tolerance, or different.

    The repetition is a run of its own, with the first as its parent. Where the results differ, the recorded ingredients
    that do are named. What came of it stands in the record of both. Exit code 6 when the results differ.

    - can this result be made again? `orchestrator verify 3f2a`
    - on four ranks: `orchestrator verify 3f2a --ntasks 4`
    """
    settings = load_settings(site)
    with open_store(settings) as store:
        first = ours(store.run(run))
        if not first.summary.state.ended or not first.outputs:
            raise NotFound(
                f"run {first.summary.run_id} is {first.summary.state} and has no result on record",
                remedy="verify a run that has ended with one",
            )
        _check_inputs(first)
        second = _repeated(store, settings, first, ntasks)
        found = verified(first, second, rtol=rtol, atol=atol)
        _record(store, found)
        write_due(store, records_folder(settings))
    if as_json:
        print_json(as_document(found))
    else:
        _print(found, second)
    if found.verdict is Verdict.DIFFERENT:
        raise typer.Exit(ExitCode.INCOMPLETE)


def _check_inputs(first: RunDetail) -> None:
    """See that there is something to repeat the run from: without it no comparison would say anything."""
    for path in {one.path: None for one in first.inputs}:
        if not path.exists():
            raise NotFound(
                f"{path}, which run {first.summary.run_id} read, isn't there any more: it can't be repeated",
                remedy="bring the file back, from the archive or from where it was moved",
            )


def _repeated(store: Store, settings: Settings, first: RunDetail, ntasks: int | None) -> RunDetail:
    """Make the run again, and follow it to its end."""
    because = f"verification of {first.summary.run_id}"
    plan = plan_again(first, first.plan.parameter_values(), settings, because=because, ntasks=ntasks)
    store.record_runs(first.message.message_id if first.message else None, [plan], note="", handled=False)
    err.print(f"repeating it as run {plan.run_id} …")
    dispatcher = Dispatcher(store=store, gateway=open_gateway(settings), settings=settings)
    submit_now(dispatcher, [plan.run_id])
    follow_to_the_end(dispatcher, [plan.run_id])
    examine(store, plan.run_id)  # a container image is told by its digest
    return store.run(plan.run_id)


def _record(store: Store, found: Verification) -> None:
    told: Json = {
        "verdict": str(found.verdict),
        "first": found.first,
        "second": found.second,
        "by": getpass.getuser(),
        "culprits": [f"{one.aspect}: {one.name}" for one in found.culprits],
    }
    for run_id in (found.first, found.second):
        store.record_event(RunTag(run_id=run_id, attempt=0), "verified", told, utc_now())


def _print(found: Verification, second: RunDetail) -> None:
    out.print(Text.assemble((found.verdict, "bold"), f": run {found.first} and its repetition {found.second}"))
    if second.summary.state is not RunState.COMPLETE:
        out.print(f"the repetition is {second.summary.state}: {second.summary.reason}", markup=False)
    print_results(found.results)
    if found.culprits:
        out.print("\nWhat went into them and differs:", style="bold")
        print_differences(found.culprits)
    elif found.verdict is not Verdict.IDENTICAL:
        out.print("\nNothing that is recorded of what went into them differs: see `orchestrator diff`.")
