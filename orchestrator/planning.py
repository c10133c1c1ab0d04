"""A collection and the site's recipes become plans: what is to run, with which parameters, decided by whom.

In: a `CollectionStart` and the `Settings`. Out: a `Planning`: one `JobPlan` for each recipe that wants the collection,
and for each other recipe the reason why it doesn't. Pure, but for `check_allowed`, which looks at the file system.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.errors import InvalidInput, NoRecipe, PathNotAllowed
from orchestrator.records import ArrayPlan, CollectionStart, JobPlan, Json, Origin, Parameter, Predecessor, Resources
from orchestrator.runs import RunDirectory
from orchestrator.settings import Match, Recipe, Settings, retries_of

_NAMESPACE = uuid.UUID("0d3f2c5e-5b0e-5f59-9a3c-6e1f5d8f7b21")
"""Never to be changed: the ids of all automatic runs hang on it."""

_WORD = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9_.,:^%+-]{0,63}")
"""Text of a message that names no file anywhere but in the run's own directory."""


@dataclass(frozen=True, kw_only=True)
class NotChosen:
    """A recipe that doesn't want a collection."""

    recipe: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Planning:
    """What a collection leads to."""

    plans: tuple[JobPlan, ...]
    not_chosen: tuple[NotChosen, ...]

    @property
    def reason(self) -> str:
        """Why there are no plans, in words for people; empty when there are some."""
        if self.plans:
            return ""
        return "; ".join(f"{one.recipe}: {one.reason}" for one in self.not_chosen) or "the site file has no recipes"

    def require_plans(self) -> tuple[JobPlan, ...]:
        """Return the plans.

        Raises
        ------
        NoRecipe
            When there are none.
        """
        if not self.plans:
            raise NoRecipe(f"no recipe matches: {self.reason}", remedy="see 'orchestrator plan MESSAGE.json'")
        return self.plans


def plan(
    start: CollectionStart,
    settings: Settings,
    *,
    user_parameters: Mapping[str, Json] | None = None,
    requester: str = "automatic",
    parent_run: str | None = None,
) -> Planning:
    """Decide what a collection leads to.

    Parameters
    ----------
    start
        The collection.
    settings
        The site, with its recipes.
    user_parameters
        Values that a person asked for; they win over all others. With them, or with a parent, the run is another run
        than the automatic one.
    requester
        Who asked.
    parent_run
        Run id of the run that this one repeats.
    """
    plans: dict[str, JobPlan] = {}
    not_chosen: list[NotChosen] = []
    for name in _in_order(settings.recipes):
        reasons = [*_reasons_against(settings.recipes[name], start), *_missing_predecessors(name, settings, plans)]
        if reasons:
            not_chosen.append(NotChosen(recipe=name, reason=", ".join(reasons)))
            continue
        try:
            one = plan_recipe(name, start, settings, user_parameters=user_parameters, parent_run=parent_run)
        except PathNotAllowed as error:
            not_chosen.append(NotChosen(recipe=name, reason=error.full_text))
        else:
            plans[name] = replace(one, requester=requester)
    return Planning(plans=tuple(plans.values()), not_chosen=tuple(not_chosen))


def _in_order(recipes: Mapping[str, Recipe]) -> list[str]:
    """Return the recipes' names as the site file has them, but each one behind those that it comes after."""
    ordered: dict[str, None] = {}

    def place(name: str) -> None:
        for earlier in recipes[name].after:
            place(earlier)
        ordered.setdefault(name)

    for name in recipes:
        place(name)
    return list(ordered)


def _missing_predecessors(name: str, settings: Settings, plans: Mapping[str, JobPlan]) -> Iterator[str]:
    missing = [repr(earlier) for earlier in settings.recipes[name].after if earlier not in plans]
    if missing:
        yield f"it comes after {', '.join(missing)}, which isn't chosen"


def run_id_of(
    uid: str, recipe: str, user_parameters: Mapping[str, Json] | None = None, parent_run: str | None = None
) -> str:
    """Return the UUID of a run; the same collection and recipe always give the same one."""
    request: list[Json] = [uid, recipe]
    if user_parameters or parent_run:
        request += [dict(user_parameters or {}), parent_run]
    return str(uuid.uuid5(_NAMESPACE, json.dumps(request, sort_keys=True, ensure_ascii=True)))


def check_allowed(path: Path, roots: Sequence[Path]) -> Path:
    """Return where a path really leads, ``..`` and links resolved; the file itself need not exist yet.

    Raises
    ------
    PathNotAllowed
        When that is below none of the roots.
    """
    try:
        real = Path(os.path.realpath(path))
        allowed = any(real.is_relative_to(os.path.realpath(root)) for root in roots)
    except ValueError as error:  # a NUL in the name
        raise PathNotAllowed(f"{str(path)!r}: {error}", remedy="correct the file's name in the message") from error
    if not (path.is_absolute() and allowed):
        leads = "" if real == path else f" (leads to {real})"
        raise PathNotAllowed(
            f"{path}{leads}: outside the allowed roots {', '.join(map(str, roots))}",
            remedy="add its folder to allowed_roots in the site file, or correct the message",
        )
    return real


def directory_of(root: Path, start: CollectionStart, recipe: str, run_id: str) -> RunDirectory:
    """Return where the run of a recipe with a collection is, below a folder for runs."""
    return RunDirectory.under(
        root, beamline=start.beamline, visit=start.visit, recipe=recipe, uid=start.uid, run_id=run_id
    )


def repeated(
    parent: JobPlan,
    parameters: Mapping[str, Json],
    *,
    run_id: str,
    root: Path,
    requester: str,
    because: str,
    file: Path | None = None,
    dataset: str | None = None,
    template: str | None = None,
    resources: Resources | None = None,
) -> JobPlan:
    """Return the plan of a run that makes another one again.

    Parameters
    ----------
    parent
        What was planned for that one.
    parameters
        All of the new run. Those whose values are the parent's keep their origin; others are the requester's.
    run_id, root
        Of the new run, and the folder below which its directory is.
    requester, because
        Who asks for it, and why.
    file, dataset, resources
        The parent's when left out.
    template
        Name of another template than the parent's, of which the text is taken that it had then.
    """
    known = {parameter.name: parameter for parameter in parent.parameters}
    before = parent.collection
    start = replace(before, file=file or before.file, dataset=dataset or before.dataset)
    run = directory_of(root, start, parent.recipe, run_id)
    return replace(
        parent,
        run_id=run_id,
        template=template or parent.template,
        template_of=None if template else parent.run_id,
        collection=start,
        parameters=tuple(_repeated(name, parameters[name], known, parent.run_id) for name in sorted(parameters)),
        resources=resources or parent.resources,
        run_directory=run.path,
        requester=requester,
        parent_run=parent.run_id,
        because=because,
        array=_repeated_array(parent.array, parameters),
    )


def _repeated(name: str, value: Json, known: Mapping[str, Parameter], parent_run: str) -> Parameter:
    if name in known and _same_json(known[name].value, value):
        return known[name]
    return Parameter(name=name, value=value, origin=Origin.USER, place=f"rerun of {parent_run}")


def _same_json(one: Json, other: Json) -> bool:
    """Whether two values are one and the same to a kernel: 1 isn't true."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _repeated_array(array: ArrayPlan | None, parameters: Mapping[str, Json]) -> ArrayPlan | None:
    if array is None:
        return None
    values = parameters.get(array.parameter)
    if not isinstance(values, list) or not values:
        raise InvalidInput(
            f"parameter {array.parameter} isn't a list of values",
            remedy="the run is a job array with a task for each of its values; give one at least",
        )
    return replace(array, values=tuple(values))


# ---------------------------------------------------------------------------------------------------- matching


def _reasons_against(recipe: Recipe, start: CollectionStart) -> Iterator[str]:
    if not recipe.enabled:
        yield "switched off (enabled = false)"
    yield from _mismatches(recipe.match, start)


def _mismatches(match: Match, start: CollectionStart) -> Iterator[str]:
    for name in ("beamline", "detector", "scan_type", "visit"):
        wanted: tuple[str, ...] | None = getattr(match, name)
        value: str | None = getattr(start, name)
        if wanted is not None and not any(fnmatch.fnmatchcase(value or "", pattern) for pattern in wanted):
            yield f"{name} is {value!r}, not {' or '.join(map(repr, wanted))}"
    for key, condition in match.metadata.items():
        if key not in start.metadata:
            yield f"metadata has no {key!r}"
        elif not condition.holds(start.metadata[key]):
            yield f"metadata {key!r} is {start.metadata[key]!r}, not {condition}"


# ------------------------------------------------------------------------------------------------------- plans


def plan_recipe(
    name: str,
    start: CollectionStart,
    settings: Settings,
    *,
    user_parameters: Mapping[str, Json] | None = None,
    parent_run: str | None = None,
) -> JobPlan:
    """Return the plan of one recipe for a collection, whether or not the recipe wants it; see `plan`.

    Raises
    ------
    PathNotAllowed
        When the message sets a parameter to a file outside the allowed roots.
    """
    recipe, defaults = settings.recipes[name], settings.defaults

    def run_of(recipe: str) -> Predecessor:
        run_id = run_id_of(start.uid, recipe, user_parameters, parent_run)
        run = directory_of(settings.runs_root, start, recipe, run_id)
        return Predecessor(recipe=recipe, run_id=run_id, run_directory=run.path)

    own = run_of(name)
    return JobPlan(
        run_id=own.run_id,
        recipe=name,
        kernel=recipe.kernel,
        template=recipe.template,
        launcher=recipe.launcher or defaults.launcher,
        launcher_options=_first(recipe.launcher_options, defaults.launcher_options),
        collection=start,
        parameters=_parameters(name, start, settings, user_parameters or {}),
        resources=_resources(recipe, settings),
        run_directory=own.run_directory,
        modules=_first(recipe.modules, defaults.modules),
        environment={**defaults.environment, **recipe.environment},
        python=settings.python,
        stall_timeout_s=recipe.stall_timeout_s or defaults.stall_timeout_s,
        appear_timeout_s=recipe.appear_timeout_s or defaults.appear_timeout_s,
        parent_run=parent_run,
        retries=retries_of(recipe.retries, defaults.retries),
        after=tuple(run_of(earlier) for earlier in recipe.after),
        array=None if recipe.array is None else ArrayPlan(**recipe.array.model_dump()),
        submit_as=recipe.submit_as,
    )


def _first(own: tuple[str, ...] | None, default: tuple[str, ...]) -> tuple[str, ...]:
    return default if own is None else own


def _resources(recipe: Recipe, settings: Settings) -> Resources:
    defaults = settings.defaults.resources.model_dump(exclude_none=True)
    return Resources(**defaults | recipe.resources.model_dump(exclude_none=True))


def _parameters(
    name: str, start: CollectionStart, settings: Settings, user_parameters: Mapping[str, Json]
) -> tuple[Parameter, ...]:
    """Merge the parameters: those of the site, the recipe, the message and the user; later ones win.

    A parameter that none of them sets is the kernel's own default and stands in the result.
    """
    recipe = settings.recipes[name]
    site = settings.defaults.parameters.get(recipe.kernel, {})
    decided: dict[str, Parameter] = {}

    def decide(key: str, value: Json, origin: Origin, place: str) -> None:
        decided[key] = Parameter(name=key, value=value, origin=origin, place=place)

    for key, value in site.items():
        decide(key, value, Origin.SITE, settings.place(f"defaults.parameters.{recipe.kernel}.{key}"))
    for key, value in recipe.parameters.items():
        decide(key, value, Origin.RECIPE, settings.place(f"recipes.{name}.parameters.{key}"))
    for key, field in recipe.from_metadata.items():
        if field in start.metadata:
            place = f"message: metadata.{field}"
            decide(key, held_to_roots(start.metadata[field], place, settings), Origin.MESSAGE, place)
    if recipe.array is not None:
        place = settings.place(f"recipes.{name}.array.values")
        decide(recipe.array.parameter, list(recipe.array.values), Origin.RECIPE, place)
    for key, value in user_parameters.items():
        decide(key, value, Origin.USER, f"request: {key}")
    return tuple(decided[key] for key in sorted(decided))


def held_to_roots(value: Json, place: str, settings: Settings) -> Json:
    """Return a value from outside for a parameter; text that may name a file is held to the allowed roots.

    Kernels read some parameters as files (``mask``, ``poni``), and which ones isn't known here, so all text is checked.

    Raises
    ------
    PathNotAllowed
        When it leads outside them.
    """
    if not isinstance(value, str) or (_WORD.fullmatch(value) and "::" not in value):
        return value
    file, separator, inside = value.partition("::")
    try:
        return f"{check_allowed(Path(file), settings.allowed_roots)}{separator}{inside}"
    except PathNotAllowed as error:
        raise PathNotAllowed(
            f"{place}: {error}", remedy="send a number, a word, or the absolute path of a file below allowed_roots"
        ) from error
