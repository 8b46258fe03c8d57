"""What a process remembers between two looks at the database; losing it costs nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime

#: studies remembered at once
_MOST = 10_000


@dataclass(slots=True, kw_only=True)
class Pauses:
    """Rows that are left alone for a while, each time twice as long (seconds)."""

    first: float
    longest: float
    _until: dict[int, float] = field(default_factory=dict)
    _length: dict[int, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._length)

    def over(self, row_id: int) -> bool:
        """Whether the row may be tried now."""
        return time.monotonic() >= self._until.get(row_id, 0.0)

    def grow(self, row_id: int) -> None:
        """Leave the row alone, longer than the last time."""
        length = min(2 * self._length.get(row_id, self.first / 2), self.longest)
        self._length[row_id] = length
        self._until[row_id] = time.monotonic() + length

    def forget(self, row_id: int) -> None:
        """Pause no longer for this row."""
        self._length.pop(row_id, None)
        self._until.pop(row_id, None)

    def keep(self, row_ids: Collection[int]) -> None:
        """Forget all other rows."""
        for row_id in set(self._length) - set(row_ids):
            del self._length[row_id], self._until[row_id]


@dataclass(slots=True, kw_only=True)
class Memory:
    """What the reaper, the inquirer and the analyses remember.

    ``seen``: the latest time the clock showed. ``stuck``: series that could not be closed.
    ``asked``: series the PACS was asked about. ``silent``: peers that did not answer beside an
    analysis. ``ordered``: studies whose order was found. ``explained``: when all studies of
    late were looked through for those that no rule matched, by the monotonic clock.
    """

    seen: datetime | None = None
    stuck: Pauses = field(default_factory=lambda: Pauses(first=10.0, longest=600.0))
    asked: Pauses = field(default_factory=lambda: Pauses(first=2.0, longest=60.0))
    silent: Pauses = field(default_factory=lambda: Pauses(first=10.0, longest=60.0))
    ordered: set[str] = field(default_factory=set)
    explained: float = -math.inf

    def remember_order(self, study_instance_uid: str) -> None:
        """The order of this study is known; it is not asked for again."""
        if len(self.ordered) >= _MOST:
            self.ordered.clear()
        self.ordered.add(study_instance_uid)

    def went_back(self, now: datetime) -> bool:
        """Whether the clock shows an earlier time than it did before."""
        before, self.seen = self.seen, now
        return before is not None and now < before
