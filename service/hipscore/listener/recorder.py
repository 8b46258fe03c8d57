"""Group commit: images that wait for the database at the same time share a transaction."""

from __future__ import annotations

import threading
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
        self._door = threading.Lock()
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
        while not own.done:
            with self._turn:
                if not own.done:
                    with self._door:
                        group = self._waiting[:LARGEST_GROUP]
                        del self._waiting[:LARGEST_GROUP]
                    self._commit(group)
        if own.answer is None:
            raise own.error or RuntimeError("neither an answer nor an error")
        return own.answer

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
