"""Room on the disk: what is being written now counts before it is there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from hipscore.spool import Spool


class Room:
    """Keeps ``reserve`` bytes of the spool's disk free, also while many write at once.

    The reserve is what the database, its journal and the results need to finish what was
    acknowledged; filling the disk to the last byte would strand it.
    """

    def __init__(self, spool: Spool, *, reserve: int) -> None:
        self.reserve = reserve
        self._spool = spool
        self._promised = 0
        self._lock = threading.Lock()

    @contextmanager
    def taken(self, size: int) -> Iterator[bool]:
        """Whether so many bytes fit beside the reserve; they are held while inside."""
        with self._lock:
            self._promised += size
        try:
            with self._lock:
                enough = self._spool.free_bytes() >= self.reserve + self._promised
            yield enough
        finally:
            with self._lock:
                self._promised -= size
