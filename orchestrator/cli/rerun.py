"""``orchestrator rerun``: runs made again through the service; and all of a visit, after a wrong calibration."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated

import typer

from orchestrator.cli.common import ExitCode, JsonOption, SiteOption, err, out, print_json, print_table, says_errors
from orchestrator.cli.finishing import follow_to_the_end, submit_now
from orchestrator.cli.repeating import is_anothers, ours, plan_again
from orchestrator.cli.run_argument import complete_run
from orchestrator.cli.wording import parse_moment
from orchestrator.dispatching import Dispatcher
from orchestrator.errors import InvalidInput, NotFound
from orchestrator.kernel_parameters import check_parameters
from orchestrator.provenance import RunDetail, RunSummary, Store
from orchestrator.records import BatchScript, JobPlan, Json, RunState
from orchestrator.rendering import rerun_script
from orchestrator.rendering.rerun import read_value
from orchestrator.service import open_gateway, open_store
from orchestrator.settings import Settings, load_settings

MOST = 100_000
_WHERE = ("beamline", "visit", "uid", "state", "since", "text")


@says_errors
def rerun(
    *,
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN]", help="A run's id, the beginning of one, or `latest`.", autocompletion=complete_run
        ),
    ] = None,
    site: SiteOption,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Another value of a parameter, as JSON; words need no quotes."
        ),
    ] = None,
    unset: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Leave a parameter to the kernel's default.")
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="Another template of the site; else the run's own is taken, as it was then.")
    ] = None,
    ntasks: Annotated[int | None, typer.Option(min=1, help="Another number of MPI ranks.")] = None,
    because: Annotated[str, typer.Option(metavar="TEXT", help="Why; it stands in the record.")] = "",
    recipe: Annotated[str | None, typer.Option(help="Make all runs of this recipe again that --where chooses.")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help=f"With --recipe: {', '.join(_WHERE)}, as `orchestrator runs` has them."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be made again; do nothing.")] = False,
    now: Annotated[bool, typer.Option("--now", help="Submit from here; don't wait for the service to do so.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Submit from here and follow to the end.")] = False,
    script: Annotated[
        bool, typer.Option("--print", help="Print a script for sbatch instead; nothing is recorded.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a run again, as it was or with other parameters; the first one becomes its parent.

    Parameters, template and what SLURM is asked for are the run's own, as they were, but for what is changed here.
    Of many runs so many have jobs at a time as the site file says (`[reruns] at_most`), and the beamline's own come
    first. Exit code 6 with `--wait` when one doesn't end complete.

    - with more bins: `orchestrator rerun 3f2a --set bins=2000 --because "peaks overlap"`
    - by hand, on a login node: `orchestrator rerun 3f2a --set unit=2th_deg --print | sbatch`
    - a whole visit after a wrong calibration, first to look: `orchestrator rerun --recipe azimuthal
      --where visit=cm12345-6 --set poni=/dls/cm12345-6/new.poni --dry-run`
    """
    if (run is None) == (recipe is None):
        raise typer.BadParameter("give a run, or --recipe and --where")
    if script and run is None:
        raise typer.BadParameter("--print is for one run")
    settings = load_settings(site)
    wanted = _parsed(changes or ())
    with open_store(settings) as store:
        parents = [ours(store.run(run))] if run is not None else _chosen(store, str(recipe), where or ())
        plans = [
            plan_again(
                parent,
                _parameters(parent, wanted, unset or ()),
                settings,
                because=because,
                template=template,
                ntasks=ntasks,
            )
            for parent in parents
        ]
        check_parameters(plans)
        if script:
            sys.stdout.write(_script(parents[0], plans[0], settings))
            return
        if dry_run:
            _print_plans(plans, as_json=as_json)
            return
        for parent, plan in zip(parents, plans, strict=True):
            message = parent.message.message_id if parent.message else None
            store.record_runs(message, [plan], note="", handled=False)
        ids = [plan.run_id for plan in plans]
        if now or wait:
            dispatcher = Dispatcher(store=store, gateway=open_gateway(settings), settings=settings)
            submit_now(dispatcher, ids)
        if wait:
            follow_to_the_end(dispatcher, ids)
        _print_runs([store.run(run_id).summary for run_id in ids], as_json=as_json, submitted=now or wait, wait=wait)


def _parsed(changes: Sequence[str]) -> Mapping[str, Json]:
    """Read ``name=value`` pairs; a value that isn't JSON is a word."""
    values: dict[str, Json] = {}
    for change in changes:
        name, separator, text = change.partition("=")
        if not separator or not name.isidentifier():
            raise InvalidInput(f"--set {change}: isn't NAME=VALUE", remedy="for example --set bins=2000")
        try:
            values[name] = read_value(text)
        except ValueError:
            if text[:1] in {'"', "[", "{"}:
                raise InvalidInput(f"--set {change}: the value isn't JSON", remedy="quote it for the shell") from None
            values[name] = text
    return values


def _chosen(store: Store, recipe: str, where: Sequence[str]) -> list[RunDetail]:
    """Return the newest run of each collection that conditions choose, oldest first: what is right by now stays so.

    What other users made with sbatch is theirs, and left out.
    """
    conditions: dict[str, str] = {}
    for condition in where:
        key, separator, value = condition.partition("=")
        if not separator or key not in _WHERE:
            raise InvalidInput(f"--where {condition}: isn't KEY=VALUE", remedy=f"the keys are {', '.join(_WHERE)}")
        conditions[key] = value
    states = [_state(conditions.pop("state"))] if "state" in conditions else []
    since = parse_moment(conditions.pop("since")) if "since" in conditions else None
    found = store.runs(recipe=recipe, states=states, since=since, limit=MOST, **conditions)  # type: ignore[arg-type]
    newest: dict[str, RunDetail] = {}
    for summary in found:
        if summary.collection_uid not in newest and not is_anothers(run := store.run(summary.run_id)):
            newest[summary.collection_uid] = run
    if not newest:
        raise NotFound("no run is chosen by these conditions", remedy="try them with `orchestrator runs`")
    return list(reversed(newest.values()))


def _state(text: str) -> RunState:
    try:
        return RunState(text)
    except ValueError as error:
        raise InvalidInput(f"--where state={text}: no such state", remedy=f"one of {', '.join(RunState)}") from error


def _parameters(parent: RunDetail, changes: Mapping[str, Json], unset: Sequence[str]) -> Mapping[str, Json]:
    parameters = parent.plan.parameter_values()
    for name in unset:
        if name not in parameters:
            raise InvalidInput(f"--unset {name}: run {parent.summary.run_id} hadn't set it")
        del parameters[name]
    return {**parameters, **changes}


def _script(parent: RunDetail, plan: JobPlan, settings: Settings) -> str:
    """Return the parent's ``rerun.sbatch`` with the changed parameters."""
    if not parent.attempts:
        raise NotFound(f"run {parent.summary.run_id} has no script: no attempt was made", remedy=parent.summary.reason)
    newest = parent.attempts[-1]
    submitted = BatchScript(
        text=newest.script_text, template_name=newest.template_name, template_text=newest.template_text
    )
    edited = replace(parent.plan, parameters=plan.parameters)
    return rerun_script(edited, submitted, root=settings.reruns.root, drop=settings.reruns.drop)


def _print_plans(plans: Sequence[JobPlan], *, as_json: bool) -> None:
    told = [
        {
            "parent": plan.parent_run,
            "recipe": plan.recipe,
            "file": plan.collection.file,
            "changes": {one.name: one.value for one in plan.parameters if one.place == f"rerun of {plan.parent_run}"},
        }
        for plan in plans
    ]
    if as_json:
        print_json(told)
        return
    rows = [(str(one["parent"]), str(one["recipe"]), str(one["file"]), json.dumps(one["changes"])) for one in told]
    print_table(("would be made again", "recipe", "file", "with"), rows)
    err.print(f"{len(plans)} runs; nothing was done.")


def _print_runs(runs: Sequence[RunSummary], *, as_json: bool, submitted: bool, wait: bool) -> None:
    if as_json:
        print_json(runs)
    else:
        rows = [(run.run_id, str(run.parent_run), run.state, str(run.job or "-"), run.reason) for run in runs]
        print_table(("run", "made again from", "state", "job", "why"), rows)
        if not submitted:
            out.print("The service submits them; `orchestrator watch` follows. Without a service: --now")
    if any(run.state is RunState.REFUSED or (wait and run.state is not RunState.COMPLETE) for run in runs):
        raise typer.Exit(ExitCode.INCOMPLETE)
