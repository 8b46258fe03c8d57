"""Group commit: images that wait for the database at the same time share a transaction."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy.orm import Session, sessionmaker

from hipscore.domain import Transient
from hipscore.store import engine as database
from hipscore.store import recording
from hipscore.store.recording import Arrival, Recorded

#: images of one transaction: bounds the time that others wait for its locks
LARGEST_GROUP = 64
#: longest wait for others that are sending as well, seconds: about what a transaction takes
LINGER = 0.003
#: an association that brought an image within this time will bring another, seconds
SENDING = 0.1


@dataclass(slots=True)
class _Waiting:
    """One image and, once its transaction has ended, what came of it."""

    arrival: Arrival
    answer: Recorded | None = None
    error: Exception | None = None

    @property
    def done(self) -> bool:
        return self.answer is not None or self.error is not None


class Recorder:
    """Records images for any number of threads; one of them commits for all that wait.

    There is no thread of its own: whoever finds nobody committing takes everything that
    waits, so that a single association pays for no handing over.
    """

    def __init__(self, sessions: sessionmaker[Session]) -> None:
        self._sessions = sessions
        self._waiting: list[_Waiting] = []
        self._last: dict[str, float] = {}
        self._door = threading.Condition()
        self._turn = threading.Lock()

    def record(self, arrival: Arrival) -> Recorded:
        """Record one image; when this returns, its row is committed.

        Raises
        ------
        Transient
            If the database cannot be reached, is locked or full.
        Exception
            Whatever else the database says of this image; the others are not harmed.
        """
        own = _Waiting(arrival)
        with self._door:
            self._waiting.append(own)
            self._last[arrival.association_id] = time.monotonic()
            self._door.notify_all()
        while not own.done:
            with self._turn:
                if not own.done:
                    self._commit(self._group())
        if own.answer is None:
            raise own.error or RuntimeError("neither an answer nor an error")
        return own.answer

    def _group(self) -> list[_Waiting]:
        """What waits now, and what comes in a moment when several are sending."""
        with self._door:
            now = time.monotonic()
            self._last = {each: at for each, at in self._last.items() if now - at < SENDING}
            enough = len(self._last)
            if enough > 1:
                self._door.wait_for(lambda: len(self._waiting) >= enough, LINGER)
            group = self._waiting[:LARGEST_GROUP]
            del self._waiting[:LARGEST_GROUP]
        return group

    def _commit(self, group: Sequence[_Waiting]) -> None:
        try:
            with database.transaction(self._sessions) as session:
                answers = recording.record_all(
                    [each.arrival for each in group], now=datetime.now(UTC), session=session
                )
        except Transient as error:
            for each in group:
                each.error = error
        except Exception as error:  # noqa: BLE001 - it may be the fault of one image alone
            if len(group) == 1:
                group[0].error = error
                return
            for each in group:
                self._commit([each])
        else:
            for each, answer in zip(group, answers, strict=True):
                each.answer = answer
