"""Looks into a growing result every 5 ms, as a live plot would, and notes when each frame's status became visible.

    python live_watcher.py RESULT FRAMES NOTES

NOTES (.npy) gets the time of the wall clock for each frame; NaN where it was never seen.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import h5py
import numpy as np

STATUS = "/entry/frames/status"
POLL_S = 0.005
PATIENCE_S = 60


def main() -> None:
    """Look until all frames were seen, or nothing has come for a while."""
    result, frames, notes = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    seen_s = np.full(frames, np.nan)
    give_up = time.monotonic() + PATIENCE_S
    while not result.exists() and time.monotonic() < give_up:
        time.sleep(POLL_S)
    with h5py.File(result, swmr=True) as file:
        status = file[STATUS]
        while np.isnan(seen_s).any() and time.monotonic() < give_up:
            status.refresh()
            settled = status[:frames] != 0
            news = np.flatnonzero(settled & np.isnan(seen_s[: len(settled)]))
            if news.size:
                seen_s[news] = time.time()
                give_up = time.monotonic() + PATIENCE_S
            time.sleep(POLL_S)
    np.save(notes, seen_s)


if __name__ == "__main__":
    main()
