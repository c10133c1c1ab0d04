"""``orchestrator diff``: what two runs have different."""

from __future__ import annotations

import typer

from orchestrator.cli.common import ExitCode, JsonOption, SiteOption, out, print_json, says_errors
from orchestrator.cli.run_argument import RunArgument
from orchestrator.cli.verdict import AbsoluteOption, RelativeOption, as_document, print_differences, print_results
from orchestrator.contents import Verdict
from orchestrator.service import open_store
from orchestrator.settings import load_settings
from orchestrator.verifying import verified


@says_errors
def diff(
    *,
    first: RunArgument,
    second: RunArgument,
    site: SiteOption,
    rtol: RelativeOption = 0.0,
    atol: AbsoluteOption = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Say what two runs have different: their results, and what went into them and where they were made.

    First the results; then parameters, input, files that parameters name, template and code, which decide about them;
    then script, resources, place and message, which mustn't. Exit code 6 when the results differ.

    - a rerun and its parent: `orchestrator diff 3f2a 81c0`
    - what has changed since last time, as JSON: `orchestrator diff 3f2a latest --json`
    """
    with open_store(load_settings(site)) as store:
        found = verified(store.run(first), store.run(second), rtol=rtol, atol=atol)
    if as_json:
        print_json(as_document(found))
    else:
        if found.results:
            print_results(found.results)
        else:
            out.print("Neither run has a result on record.")
        print_differences(found.differences)
    if found.verdict is Verdict.DIFFERENT:
        raise typer.Exit(ExitCode.INCOMPLETE)
