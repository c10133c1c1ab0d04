"""A run's whole record as one JSON document."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.exporting.account import Account
from orchestrator.provenance import encoded
from orchestrator.records import Json

RECORD_VERSION = 1


def record_document(account: Account) -> Json:
    """Return everything that the database knows about a run."""
    detail = account.detail
    document = encoded(replace(detail, message=None))
    assert isinstance(document, dict)  # noqa: S101  a record becomes an object
    if detail.message is not None:
        raw = detail.message.raw
        body = {"body": raw.body.decode(errors="backslashreplace"), "sha256": raw.sha256}
        document["message"] = encoded({**vars(detail.message), "raw": vars(raw) | body})
    return {"record_version": RECORD_VERSION, **document}
