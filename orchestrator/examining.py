"""What isn't urgent, after a run's end: how valid its results are, and the digest of its container image.

Nothing waits for it, and nothing fails with it: what can't be told is kept with the reason. The record is written
before, and once more after.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.containers import image_file
from orchestrator.injob import file_sha256
from orchestrator.provenance import AttemptRecord, RunDetail, Store, Validation
from orchestrator.records import Json
from orchestrator.rerunning import user_name
from orchestrator.validating import validate_output

LEASE = "examining"
"""Name of the lease of the one service that examines."""

LEASE_S = 600.0


def examine_due(store: Store) -> int:
    """Examine runs for which that is due; return of how many something was found out."""
    number = 0
    for run_id in store.due_examinations():
        if store.shared and not store.hold_lease(LEASE, for_s=LEASE_S):
            break
        number += examine(store, run_id)
    return number


def examine(store: Store, run_id: str) -> bool:
    """Look at what of a run hasn't been looked at yet; return whether there was anything."""
    run = store.run(run_id)
    for output in run.unvalidated:
        theirs = _is_anothers(run, output.path)
        found = Validation(obstacle=theirs) if theirs else validate_output(output)
        store.record_validation(run_id, output.path, found)
    for attempt in run.undigested:
        digest = _digest(store, attempt, known_only=run.made_by_hand)
        store.record_software(attempt.tag, {"container": {**attempt.container, **digest}})
    return run.unexamined


def _is_anothers(run: RunDetail, path: Path) -> str:
    """Say why a file that a user's job named isn't read for it; no text when it may be.

    Users name what they like, and what the service reads would tell them of it.
    """
    if not run.made_by_hand or not path.exists() or user_name(path.stat().st_uid) == run.summary.requester:
        return ""
    return f"the file isn't {run.summary.requester}'s, who made the run"


def _digest(store: Store, attempt: AttemptRecord, *, known_only: bool) -> Mapping[str, Json]:
    """Return what an attempt's container image is, with its digest, or why there is none.

    Parameters
    ----------
    known_only
        Only a digest that was taken for another run: no file is read.
    """
    recorded = attempt.container
    path = Path(str(recorded.get("real_path") or recorded["path"]))
    found = image_file(path)
    if obstacle := _obstacle(attempt, found):
        return {"sha256_unknown_because": obstacle}
    real = Path(str(found["real_path"]))
    digest = store.image_digest(real, found)
    if digest is None and known_only:
        return {"sha256_unknown_because": "a user's job named it, and no other run was in it"}
    try:
        digest = digest or file_sha256(real)
    except OSError as error:
        return {"sha256_unknown_because": f"it can't be read: {error.strerror}"}
    if image_file(path) != found:
        return {"sha256_unknown_because": "it was changed while it was read"}
    return {**found, "sha256": digest}


def _obstacle(attempt: AttemptRecord, found: Mapping[str, Json]) -> str:
    """Say why a file doesn't stand for the image that an attempt's job ran in; no text when it does."""
    recorded = attempt.container
    if not found:
        return "the service doesn't find it, or may not read it"
    if "sha256_unknown_because" in found:
        return str(found["sha256_unknown_because"])
    if "size" in recorded:
        same = all(recorded[name] == found[name] for name in ("size", "mtime_ns"))
    else:  # it was out of sight from inside
        began_at = next((event.at for event in attempt.events if event.kind == "begin"), attempt.intent_at)
        same = datetime.fromtimestamp(int(str(found["mtime_ns"])) / 1e9, UTC) < began_at
    return "" if same else "it was changed since the job began"
