"""The end of a collection, told to the kernels that follow it: collection-end.json in their runs' directories.

Where that can't be written the kernel ends by itself after its stall time; the next cycle tries again before.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from orchestrator.following.roster import Followed
from orchestrator.provenance import Store, end_to_json
from orchestrator.records import CollectionEnd
from orchestrator.runs import RunDirectory, write_atomically

_OVERLAP = 500
"""How many numbers of messages are looked at again: of two that come at the same moment, the one with the smaller
number may be seen later."""


@dataclass(kw_only=True)
class Announcements:
    """Which ends have been told."""

    store: Store
    _after: int | None = None
    """Number of the message up to which all are known."""
    _known: set[str] = field(default_factory=set)
    """Collections whose ends came after that and have been dealt with."""
    _unasked: list[Followed] = field(default_factory=list)
    """Attempts of which it isn't known yet whether their collection has ended."""
    _owed: list[tuple[Followed, CollectionEnd]] = field(default_factory=list)

    def go_on(self, new: Sequence[Followed], followed: Iterable[Followed]) -> None:
        """Tell the kernels of all attempts, some of them new, of the ends that have come."""
        self._unasked += new
        if self._after is None:
            self._after = max(self.store.newest_message() - _OVERLAP, 0)
        ended = self.store.ended_collections(self._after)
        if news := set(ended.values()) - self._known:
            self._unasked += [one for one in followed if one.attempt.collection_uid in news]
        ends = self.store.collection_ends({one.attempt.collection_uid for one in self._unasked})
        self._owed += [(one, ends[uid]) for one in self._unasked if (uid := one.attempt.collection_uid) in ends]
        self._unasked.clear()
        self._known = set(ended.values())
        self._after = max(self._after, max(ended, default=0) - _OVERLAP)
        self._owed = [(one, end) for one, end in self._owed if not _is_told(one, end)]


def _is_told(one: Followed, end: CollectionEnd) -> bool:
    with one.at_its_own_cost():
        path = RunDirectory(one.attempt.run_directory).collection_end
        if not path.exists():
            write_atomically(path, json.dumps(end_to_json(end)) + "\n")
        return True
    return False
