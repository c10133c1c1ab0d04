"""A run as W3C PROV, in the PROV-JSON form.

Entities are the message, the plan, parameters, templates, scripts, and the files that went in and came out. Activities
are the run and each of its attempts; agents are who asked, the service, and the programs.

https://www.w3.org/submissions/prov-json/
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from orchestrator.exporting.account import Account, ended_at, readable, run_uri, started_at
from orchestrator.exporting.software import Program, programs_of
from orchestrator.provenance import AttemptRecord
from orchestrator.records import Json

_PREFIXES: dict[str, Json] = {
    "uuid": "urn:uuid:",
    "file": "file://",
    "schema": "http://schema.org/",
    "run": "urn:x-orchestrator:run:",
}
Attributes = Mapping[str, Json]


class _Document:
    """A PROV-JSON document in the making: relations get numbers, because nobody refers to them."""

    def __init__(self, prefixes: dict[str, Json]) -> None:
        self._parts: dict[str, dict[str, Json]] = defaultdict(dict)
        self._prefixes = prefixes

    def add(self, kind: str, name: str, attributes: Attributes) -> str:
        """Add an entity, activity or agent; return its name."""
        self._parts[kind][name] = {key: value for key, value in attributes.items() if value is not None}
        return name

    def relate(self, kind: str, attributes: Attributes) -> None:
        """Add a relation."""
        self.add(kind, f"_:{kind}{len(self._parts[kind]) + 1}", attributes)

    def used(self, activity: str, entity: str, role: str) -> None:
        self.relate("used", {"prov:activity": activity, "prov:entity": entity, "prov:role": role})

    def to_json(self) -> dict[str, Json]:
        return {"prefix": self._prefixes, **self._parts}


def prov_document(account: Account) -> dict[str, Json]:
    """Return a run's provenance as PROV-JSON."""
    document = _Document(_PREFIXES | {"part": f"{run_uri(account.run_id)}#"})
    run, service = _run(document, account), _program(document, account.programs[0])
    plan = _decision(document, account, service)
    document.used(run, plan, "plan")
    document.relate("wasAssociatedWith", {"prov:activity": run, "prov:agent": service, "prov:plan": plan})
    _requester(document, account, run, service)
    inputs = _inputs(document, account)
    newest = run
    for attempt in account.detail.attempts:
        newest = _attempt(document, attempt, run)
    for name, role in inputs.items():
        document.used(newest, name, role)
    _outputs(document, account, newest, list(inputs))
    _other_runs(document, account, run)
    return document.to_json()


def _run(document: _Document, account: Account) -> str:
    summary = account.detail.summary
    return document.add(
        "activity",
        f"uuid:{account.run_id}",
        {
            "prov:label": account.title,
            "prov:startTime": _time(account.started_at or summary.created_at),
            "prov:endTime": _time(summary.ended_at),
            "prov:type": _name("run:Run"),
            "run:state": summary.state,
            "run:reason": readable(summary.reason),
            "run:recipe": summary.recipe,
            "run:kernel": summary.kernel,
            "run:beamline": summary.beamline,
            "run:visit": summary.visit,
            "run:collection": readable(summary.collection_uid),
        },
    )


def _program(document: _Document, program: Program) -> str:
    name = re.sub(r"[^\w.+-]+", "-", f"{program.key}-{program.version}").strip("-")
    about: Attributes = {"prov:type": _name("prov:SoftwareAgent"), "prov:label": program.title}
    version: Attributes = {"schema:softwareVersion": program.version, "schema:url": program.url}
    return document.add("agent", f"part:{name}", {**about, **version})


def _requester(document: _Document, account: Account, run: str, service: str) -> None:
    requester = account.detail.summary.requester
    if requester != "automatic":
        person = {"prov:type": _name("prov:Person"), "prov:label": readable(requester)}
        asked = document.add("agent", "part:requester", person)
        document.relate("wasAssociatedWith", {"prov:activity": run, "prov:agent": asked})
        document.relate("actedOnBehalfOf", {"prov:delegate": service, "prov:responsible": asked})


def _decision(document: _Document, account: Account, service: str) -> str:
    """Add the message, what was decided about it, and the parameters; return the plan."""
    detail = account.detail
    plan = document.add("entity", "part:plan", {"prov:type": _name("prov:Plan"), "prov:label": "plan"})
    values = {f"run:{name}": _literal(one.value) for name, one in account.parameters.items() if one.value is not None}
    parameters = document.add("entity", "part:parameters", {"prov:label": "parameters", **values})
    document.relate("wasDerivedFrom", {"prov:generatedEntity": parameters, "prov:usedEntity": plan})
    document.relate("wasAttributedTo", {"prov:entity": plan, "prov:agent": service})
    if detail.message is not None:
        raw = detail.message.raw
        about: Attributes = {"prov:label": "message", "schema:sha256": raw.sha256, "run:source": readable(raw.source)}
        message = document.add("entity", "part:message", about)
        document.relate("wasDerivedFrom", {"prov:generatedEntity": plan, "prov:usedEntity": message})
    return plan


def _inputs(document: _Document, account: Account) -> dict[str, str]:
    """Add the files that were read; return what each was read for."""
    roles = {}
    for item in account.inputs:
        about: Attributes = {"prov:label": readable(item.path.name), "schema:contentSize": item.size}
        about = {**about, "schema:sha256": item.sha256}
        roles[document.add("entity", _file(item.path), about)] = item.role
    return roles


def _attempt(document: _Document, attempt: AttemptRecord, run: str) -> str:
    """Add an attempt with its script and the programs that it ran with; return it."""
    number, report = attempt.tag.attempt, attempt.last_report
    activity = document.add(
        "activity",
        f"part:attempt-{number}",
        {
            "prov:label": f"attempt {number}",
            "prov:startTime": _time(started_at(attempt) or attempt.intent_at),
            "prov:endTime": _time(ended_at(attempt)),
            "prov:type": _name("run:Attempt"),
            "run:job": None if attempt.identity is None else str(attempt.identity),
            "run:jobState": None if report is None else report.state,
            "run:exitCode": None if report is None else report.exit_code,
            "run:nodes": None if report is None else report.nodes,
        },
    )
    template = document.add(
        "entity",
        f"part:template-{number}",
        {"prov:label": attempt.template_name, "schema:sha256": attempt.template_sha256},
    )
    plan = {"prov:type": _name("prov:Plan"), "prov:label": "batch script", "schema:sha256": attempt.script_sha256}
    script = document.add("entity", f"part:script-{number}", plan)
    for source in (template, "part:plan"):
        document.relate("wasDerivedFrom", {"prov:generatedEntity": script, "prov:usedEntity": source})
    for program in programs_of(attempt.software):
        if program.loaded:
            agent = _program(document, program)
            document.relate("wasAssociatedWith", {"prov:activity": activity, "prov:agent": agent, "prov:plan": script})
    document.relate("wasInformedBy", {"prov:informed": activity, "prov:informant": run})
    document.used(activity, "part:parameters", "parameters")
    document.used(activity, script, "script")
    return activity


def _outputs(document: _Document, account: Account, attempt: str, inputs: list[str]) -> None:
    for output in account.detail.outputs:
        about: Attributes = {
            "prov:label": readable(output.path.name),
            "prov:type": _name(f"run:{output.kind}"),
            "schema:contentSize": output.size,
            "schema:sha256": output.sha256,
            "run:contentSha256": output.content_sha256,
            "run:validity": None if output.validation is None else output.validation.words,
        }
        entity = document.add("entity", _file(output.path), about)
        at = _time(account.detail.summary.ended_at)
        made: dict[str, Json] = {"prov:entity": entity, "prov:activity": attempt}
        document.relate("wasGeneratedBy", made if at is None else made | {"prov:time": at})
        for source in inputs if output in account.results else ():
            document.relate(
                "wasDerivedFrom",
                {"prov:generatedEntity": entity, "prov:usedEntity": source, "prov:activity": attempt},
            )


def _other_runs(document: _Document, account: Account, run: str) -> None:
    """Add the run that this one repeats, and those that it came after."""
    plan = account.detail.plan
    repeats = f"repeats, because: {readable(plan.because)}" if plan.because else "repeats"
    others = [] if plan.parent_run is None else [(plan.parent_run, repeats)]
    others += [(one.run_id, "comes after") for one in plan.after]
    for run_id, role in others:
        other = document.add("activity", f"uuid:{run_id}", {"prov:type": _name("run:Run")})
        document.relate("wasInformedBy", {"prov:informed": run, "prov:informant": other, "run:how": role})


def _file(path: Path) -> str:
    return "file:" + path.as_uri().removeprefix("file://")


def _name(name: str) -> Json:
    return {"$": name, "type": "prov:QUALIFIED_NAME"}


def _literal(value: Json) -> Json:
    """Return a parameter's value as an attribute, which can't be an object and has no order."""
    return value if isinstance(value, bool | int | float | str) else repr(value)


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
