"""Closing a series: its first header decides by the rules whether it is analysed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime

from pydicom.dataset import Dataset
from sqlalchemy.orm import Session, sessionmaker

from hipscore import routing
from hipscore.domain import ModelCard, Transient
from hipscore.header import Unreadable, read_leading
from hipscore.identity import identity
from hipscore.lifecycle import CloseReason, IllegalMove
from hipscore.spool import Corrupt, Spool
from hipscore.store import closing, explaining, intake, studies
from hipscore.store import engine as database
from hipscore.store.tables import Job

log = logging.getLogger(__name__)


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
            first = intake.first_images(series_id, session=session)
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
            if not decision.matched and explaining.was_ordered(series_id, session=session):
                decision = routing.Decision(matched=True, rule=routing.ORDERED)
            studies.identify(series_id, identity(header), now=_now(), session=session)
            return closing.settle(series_id, decision, card=self._card, now=_now(), session=session)

    def order(self, series_id: int) -> Job:
        """Analyse a series that somebody asked for, whatever the rules say.

        Returns
        -------
        Job
            A new one, or the newest that the series has if it is matched already.

        Raises
        ------
        hipscore.lifecycle.IllegalMove
            If the series is still receiving images, or was changed by somebody just now.
        hipscore.store.moves.NotFound
            If there is no such series.
        hipscore.domain.Transient
            If the database cannot be used now.
        """
        with database.transaction(self._sessions) as session:
            job = explaining.order(
                series_id, routing.ORDERED, card=self._card, now=_now(), session=session
            )
        if job is None:
            msg = f"series {series_id} was changed by someone else just now; try again"
            raise IllegalMove(msg)
        return job

    def explain(self, study_instance_uid: str, *, quiet_before: datetime) -> Job | None:
        """Open one job for a study in which no rule matched, so that it is told why.

        It is the series that came nearest to a rule: most conditions held, then most
        images, then the first; one that had a report before stays the one.

        Returns
        -------
        Job or None
            None when the study is in work after all, or got an image since ``quiet_before``.

        Raises
        ------
        hipscore.domain.Transient
            If the database cannot be used now.
        """
        with database.transaction(self._sessions) as session:
            found = explaining.candidates(study_instance_uid, session=session)
        if not found:
            return None
        weighed = [(each, self._nearness(each.series_id)) for each in found]
        nearest, _ = min(weighed, key=lambda one: (not one[0].told, -one[1], -one[0].images))
        why = f"no series of the study matched a rule; the nearest of {len(found)} is analysed"
        with database.transaction(self._sessions) as session:
            return explaining.order(
                nearest.series_id,
                routing.EXPLAINED,
                card=self._card,
                why=[why],
                unmatched_since=quiet_before,
                now=_now(),
                session=session,
            )

    def _nearness(self, series_id: int) -> int:
        """How many conditions hold of the rule that the series came nearest to."""
        with database.transaction(self._sessions) as session:
            first = intake.first_images(series_id, session=session)
            arrived = intake.evidence(series_id, session=session)
            came = routing.Came(**intake.origin(series_id, session=session))
        return routing.decide(self._rules, self._header(first), arrived, came).nearness

    def _header(self, images: Sequence[intake.StoredBytes]) -> Dataset:
        """What the first image that can be read says before its pixels.

        Nothing where all bytes were purged. Raises Transient if there are bytes and none of
        them can be read: that is a fault of the disk, and no reason to ignore a series.
        """
        for each in images:
            try:
                return read_leading(self._spool.read(each.spool_key, each.sha256))
            except (Corrupt, Unreadable) as error:
                log.error("image %s cannot be read: %s", each.spool_key, type(error).__name__)  # noqa: TRY400
        if images:
            msg = f"none of {len(images)} images of the series can be read from the spool"
            raise Transient(msg)
        return Dataset()


def _now() -> datetime:
    return datetime.now(UTC)
