"""Reprocessing that people ask for in ISPyB, as SynchWeb writes it: ProcessingJobs that become runs, or are refused.

A request is a ProcessingJob that isn't automatic, names one of our recipes with the site's prefix, and has no
AutoProcProgram yet. SynchWeb writes its parameters and image sweeps after it, one by one: it is taken when it has been
there for some seconds. The run's id hangs on the ProcessingJob's, so taking it twice makes one run.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, func, select, text

from orchestrator.errors import InvalidInput
from orchestrator.ispyb.database import IspybDatabase
from orchestrator.ispyb.mapping import Mapper
from orchestrator.ispyb.schema import IspybSchema
from orchestrator.ispyb.tables import DATA_COLLECTION, PARAMETER, PROCESSING_JOB, PROGRAM, SWEEP
from orchestrator.ispyb.writing import Writer
from orchestrator.kernel_parameters import check_parameters
from orchestrator.planning import check_allowed, directory_of, held_to_roots, plan_recipe, run_id_of
from orchestrator.provenance import IspybIds, Store
from orchestrator.records import CollectionStart, JobPlan, Json, utc_now
from orchestrator.settings import Settings
from orchestrator.settings.ispyb import IspybSettings

log = logging.getLogger(__name__)

_FIRST_LOOK = 200_000
_LATER_LOOK = 10_000
"""How many of the newest ProcessingJobs are looked through, by their ids: no other index leads to requests."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a ProcessingJob asks for."""

    job: int
    recipe: str
    """Without the prefix."""
    data_collection: int | None
    comments: str
    parameters: tuple[tuple[str, str], ...]
    sweeps: tuple[tuple[int | None, int | None, int | None], ...]
    """Data collection, first and last image of each."""


@dataclass(kw_only=True)
class Requests:
    """Takes requests from one ISPyB."""

    store: Store
    ispyb: IspybDatabase
    settings: Settings
    _look: int = field(default=_FIRST_LOOK, init=False)

    def take(self, schema: IspybSchema, mapper: Mapper) -> int:
        """Turn the requests that wait into runs, or refuse them; return how many runs were made."""
        site = _table(self.settings)
        with self.ispyb.transaction() as connection:
            waiting = _waiting_ids(connection, site, self._look)
        known = self.store.ispyb_requests_known(waiting)
        with self.ispyb.transaction() as connection:
            requests = [_read(connection, job, site) for job in waiting if job not in known]
        self._look = _LATER_LOOK
        return sum(self._take(request, schema, mapper) for request in requests)

    def _take(self, request: Request, schema: IspybSchema, mapper: Mapper) -> int:
        try:
            plan = self._plan(request)
        except InvalidInput as error:
            self._refuse(request, error.full_text, schema, mapper)
            return 0
        ids = IspybIds(data_collection=request.data_collection, processing_job=request.job)
        made = self.store.record_requested_run(plan, ids, utc_now())
        log.info("ISPyB's ProcessingJob %d is run %s", request.job, plan.run_id)
        return int(made)

    def _refuse(self, request: Request, reason: str, schema: IspybSchema, mapper: Mapper) -> None:
        said = f"refused: {reason}"
        program = {"processingMessage": mapper.program_message(said), "processingPrograms": "orchestrator"}
        with self.ispyb.alone(f"job {request.job}") as connection:
            message = mapper.message("ERROR", said)
            Writer(connection=connection, there=schema.there).refuse(request.job, program, message)
        log.warning("ISPyB's ProcessingJob %d is refused: %s", request.job, reason)

    def _plan(self, request: Request) -> JobPlan:
        """Return the run that is asked for.

        Raises
        ------
        InvalidInput
            When it can't be made.
        """
        if request.recipe not in _table(self.settings).take_requests:
            raise InvalidInput(
                f"recipe {request.recipe!r} can't be asked for here",
                remedy=f"ask for {' or '.join(_table(self.settings).take_requests)}",
            )
        values = dict(_values(request.parameters, self.settings))
        start = self._collection(request)
        plan = plan_recipe(request.recipe, start, self.settings, user_parameters=values)
        check_parameters([plan])
        run_id = run_id_of(f"ispyb-job-{request.job}", request.recipe)
        directory = directory_of(self.settings.runs_root, start, request.recipe, run_id)
        return replace(
            plan,
            run_id=run_id,
            run_directory=directory.path,
            requester=f"ISPyB ProcessingJob {request.job}",
            because=request.comments,
            after=plan_recipe(request.recipe, start, self.settings).after,  # the collection's own runs
        )

    def _collection(self, request: Request) -> CollectionStart:
        wanted = request.data_collection
        if wanted is None:
            raise InvalidInput("it names no data collection", remedy="ask for the processing of one")
        columns = DATA_COLLECTION.c
        with self.ispyb.transaction() as connection:
            row = connection.execute(select(*columns).where(columns.dataCollectionId == wanted)).one_or_none()
        if row is None:
            raise InvalidInput(f"there is no data collection {wanted}", remedy="ask for the processing of one")
        _check_sweeps(request, row.numberOfImages)
        start = self.store.collection_of(wanted) or _collection_of(row, self.settings)
        check_allowed(start.file, self.settings.allowed_roots)
        return start


def _table(settings: Settings) -> IspybSettings:
    if settings.ispyb is None:
        raise ValueError("the site file has no table [ispyb]")
    return settings.ispyb


def _waiting_ids(connection: Connection, site: IspybSettings, look: int) -> Sequence[int]:
    jobs = PROCESSING_JOB.c
    newest = connection.scalar(select(func.max(jobs.processingJobId))) or 0
    wanted = (
        select(jobs.processingJobId)
        .outerjoin(PROGRAM, PROGRAM.c.processingJobId == jobs.processingJobId)
        .where(jobs.processingJobId > newest - look, jobs.automatic == 0)
        .where(jobs.recipe.startswith(site.recipe_prefix, autoescape=True), PROGRAM.c.autoProcProgramId.is_(None))
        .where(
            jobs.recordTimestamp.between(
                text("NOW() - INTERVAL :oldest SECOND"), text("NOW() - INTERVAL :newest SECOND")
            )
        )
        .order_by(jobs.processingJobId)
    )
    ages = {"oldest": round(site.request_age_max_h * 3600), "newest": round(site.request_settles_s)}
    return connection.scalars(wanted, ages).all()


def _read(connection: Connection, job: int, site: IspybSettings) -> Request:
    jobs, parameters, sweeps = PROCESSING_JOB.c, PARAMETER.c, SWEEP.c
    row = connection.execute(select(*jobs).where(jobs.processingJobId == job)).one()
    pairs = select(parameters.parameterKey, parameters.parameterValue).where(parameters.processingJobId == job)
    of_sweep = (sweeps.dataCollectionId, sweeps.startImage, sweeps.endImage)
    images = connection.execute(select(*of_sweep).where(sweeps.processingJobId == job)).all()
    found = connection.execute(pairs.order_by(parameters.processingJobParameterId))
    return Request(
        job=job,
        recipe=row.recipe[len(site.recipe_prefix) :],
        data_collection=row.dataCollectionId,
        comments=row.comments or "",
        parameters=tuple((pair.parameterKey or "", pair.parameterValue or "") for pair in found),
        sweeps=tuple((sweep.dataCollectionId, sweep.startImage, sweep.endImage) for sweep in images),
    )


def _values(parameters: Sequence[tuple[str, str]], settings: Settings) -> Iterator[tuple[str, Json]]:
    """Yield the parameters with their values: JSON where the text is some, else the text; files below allowed roots."""
    names = [name for name, _ in parameters]
    for name, written in parameters:
        if names.count(name) > 1:
            raise InvalidInput(f"parameter {name!r} stands there {names.count(name)} times", remedy="give one value")
        yield name, _held(_value(written), f"ISPyB: parameter {name}", settings)


def _held(value: Json, place: str, settings: Settings) -> Json:
    """Hold all text inside a value to the allowed roots."""
    if isinstance(value, list):
        return [_held(item, place, settings) for item in value]
    if isinstance(value, dict):
        return {name: _held(item, place, settings) for name, item in value.items()}
    return held_to_roots(value, place, settings)


def _value(written: str) -> Json:
    try:
        value: Json = json.loads(written, parse_constant=str)
    except ValueError:
        return written
    return value


def _check_sweeps(request: Request, images: int | None) -> None:
    """Refuse what isn't the whole of one data collection: a run processes a whole file."""
    for data_collection, first, last in request.sweeps:
        if data_collection != request.data_collection:
            raise InvalidInput(
                f"it wants images of data collection {data_collection} besides {request.data_collection}",
                remedy="a run processes one data collection: ask for each by itself",
            )
        whole = (first or 1) <= 1 and (last is None or images is None or last >= images)
        if not whole or len(request.sweeps) > 1:
            raise InvalidInput(
                f"it wants images {first} to {last} of {images or 'unknown'}",
                remedy="a run processes all images of a data collection: ask for all of them in one sweep",
            )


def _collection_of(row: Row[*tuple[Any, ...]], settings: Settings) -> CollectionStart:
    """Return the collection of a data collection of which there was no run yet, as far as ISPyB knows it."""
    told = {name: getattr(row, name) for name in ("imageDirectory", "fileTemplate", "imageContainerSubPath")}
    unknown = [name for name, value in told.items() if not value]
    if unknown or "#" in told["fileTemplate"]:
        because = f"has no {' and no '.join(unknown)}" if unknown else f"has no single file: {told['fileTemplate']}"
        raise InvalidInput(
            f"no run of this data collection was made here, and ISPyB {because}",
            remedy="submit its collection-start message first",
        )
    return CollectionStart(
        uid=f"ispyb-{row.dataCollectionId}",
        beamline=settings.name,
        detector="unknown",
        file=Path(told["imageDirectory"]) / told["fileTemplate"],
        dataset=told["imageContainerSubPath"],
        frames_expected=row.numberOfImages,
    )
