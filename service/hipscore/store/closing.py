"""Settling a closed series: match it and open its job, in the caller's one transaction."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.orm import Session

from hipscore.domain import ModelCard
from hipscore.routing import Decision
from hipscore.store import intake
from hipscore.store.tables import Job


def settle(
    series_id: int, decision: Decision, *, card: ModelCard, now: datetime, session: Session
) -> Job | None:
    """Move a COMPLETE series on and, if it matches, open its job for this bundle.

    Returns
    -------
    Job or None
        None when the series is ignored.
    """
    intake.match(
        series_id,
        matched=decision.matched,
        rule=decision.rule,
        why=decision.explanation,
        now=now,
        session=session,
    )
    if not decision.matched:
        return None
    return intake.open_job(
        series_id,
        bundle_id=card.id,
        bundle_version=card.version,
        bundle_sha256=card.sha256,
        now=now,
        session=session,
    )
