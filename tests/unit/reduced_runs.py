"""Runs of azimuthal integration in a store, with all that a kernel tells, for tests of exports."""

from __future__ import annotations

import io
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import h5py

from orchestrator.records import JobState, Json, RunState, RunTag
from tests.unit.site_with_runs import NOON, SiteWithRuns

TOLD: Mapping[str, Json] = {
    "mask": "calibration/mask.npy",
    "use_pixel_mask": True,
    "saturation_value": None,
    "unit": "q_A^-1",
    "splitting": "bbox",
    "radial_range": None,
    "azimuthal_range_deg": None,
    "error_model": "poisson",
    "solid_angle": True,
    "polarization_factor": 0.99,
    "poni": "/calibration/i22.poni",
    "dark": None,
    "flat": None,
    "background": "/dls/back.h5::/entry/data[3]",
    "background_scale": 0.5,
    "thickness_m": 0.001,
    "absolute_scale": 1.0,
    "further": {},
}


def reduced(
    site: SiteWithRuns,
    uid: str = "c-1",
    *,
    told: Mapping[str, Json] = TOLD,
    processed: int = 200,
    state: RunState = RunState.COMPLETE,
    reason: str = "200 of 200 written frames processed",
    **changes: Any,
) -> RunTag:
    """Put a run into the store that has gone all the way to `state`."""
    tag = site.submitted(uid, **changes)
    site.begun(tag)
    site.store.record_defaults(tag.run_id, told, place="the kernel's")
    site.store.record_software(tag, {"loaded": {"numpy": "2.4.6", "hdf5": "2.0.0", "mpi": "Open MPI v4.1.4"}})
    site.inputs(tag)
    site.counts(tag, processed=processed)
    site.result(tag, nexus())
    site.attempt(tag).log.write_text("all is well\n")
    site.directory(tag).message.write_text("{}")
    usage = {"elapsed_s": 125.0, "max_rss_bytes": 99_975_168}
    job = JobState.FAILED if state is RunState.FAILED else JobState.COMPLETED
    site.report(tag, job, exit_code=0, ended_at=NOON + timedelta(seconds=21), usage=usage)
    site.ended(tag, state, reason)
    return tag


def nexus(route: str = "direct chunk read (bitshuffle-lz4)") -> bytes:
    """Return a NeXus result with what exports look up in it."""
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        file["entry/frames/reading_route"] = [route]
        file["entry/instrument/monochromator/wavelength"] = 1.2
        file["entry/reduction/input/masked_pixels"] = 7
    return memory.getvalue()
