"""Closing a series: its first header decides by the rules whether it is analysed."""

from __future__ import annotations

from datetime import UTC, datetime

from pydicom.dataset import Dataset
from sqlalchemy.orm import Session, sessionmaker

from hipscore import routing
from hipscore.domain import ModelCard
from hipscore.header import Unreadable, read_leading
from hipscore.identity import identity
from hipscore.lifecycle import CloseReason
from hipscore.spool import Corrupt, Spool
from hipscore.store import closing, intake, studies
from hipscore.store import engine as database
from hipscore.store.tables import Job


class Closing:
    """Closes series for every process that may: listener, API and reaper. Thread safe."""

    def __init__(
        self,
        *,
        card: ModelCard,
        rules: routing.Rules,
        sessions: sessionmaker[Session],
        spool: Spool,
    ) -> None:
        self._card = card
        self._rules = rules
        self._sessions = sessions
        self._spool = spool

    def close(
        self, series_id: int, reason: CloseReason, *, quiet_before: datetime | None = None
    ) -> Job | None:
        """Close the series on ``reason`` and, if a rule matches, open its job.

        Returns
        -------
        Job or None
            None when the series was closed already, has got an image since
            ``quiet_before``, or is ignored.

        Raises
        ------
        hipscore.domain.Transient
            If the database cannot be used now.
        """
        with database.transaction(self._sessions) as session:
            first = intake.first_image(series_id, session=session)
        header = self._header(first)
        with database.transaction(self._sessions) as session:
            closed = intake.close(
                series_id, reason, now=_now(), session=session, quiet_before=quiet_before
            )
            if not closed:
                return None
            arrived = intake.evidence(series_id, session=session)
            came = routing.Came(**intake.origin(series_id, session=session))
            decision = routing.decide(self._rules, header, arrived, came)
            studies.identify(series_id, identity(header), now=_now(), session=session)
            return closing.settle(series_id, decision, card=self._card, now=_now(), session=session)

    def _header(self, first: intake.StoredBytes | None) -> Dataset:
        """What the first image says before its pixels; nothing where it cannot be read now."""
        if first is None:
            return Dataset()
        try:
            return read_leading(self._spool.read(first.spool_key, first.sha256))
        except (Corrupt, Unreadable):
            return Dataset()


def _now() -> datetime:
    return datetime.now(UTC)
